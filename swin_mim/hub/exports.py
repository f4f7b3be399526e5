"""Files for other runtimes that lie in a published model, and their section in its card."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from swin_mim.files import replace_text

TITLE = "## Exported files"
BEFORE = ("## Limits", "## Citation")
"""Sections of a card that come after it."""
Format = Literal["onnx", "torch-export", "torchscript"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "torchscript": ".torchscript"}
"""How the files of a format end."""
Output = Literal["features", "embedding", "pyramid", "logits"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
"""What a file can give."""
INT8 = "_int8"
"""At the end of the name of a file of 8-bit weights."""
NAMES = re.compile(rf"({'|'.join(OUTPUTS)})({INT8})?({'|'.join(map(re.escape, SUFFIXES.values()))})")
"""What they are called: after what they give, and by their format."""

_ROW = re.compile(r"\| \[(?P<name>[^]]+)\]\([^)]*\) \| (?P<text>.*) \|")
_HEAD = ("| file | takes |", "| --- | --- |")
_TEXT = (
    "Written by `swin-mim export`, and compared with the model then. ONNX files need onnxruntime and numpy alone; how "
    "images are prepared is in their metadata."
)


def list_in_card(card: Path, files: Mapping[str, str]) -> None:
    """Name files in the card beside which they lie; what it says of others that are still there stays.

    Args:
        card: README.md of a published model.
        files: what each takes, by its name.
    """
    text = card.read_text(encoding="utf-8")
    before, old, after = _cut(text)
    known = {match["name"]: match["text"] for match in map(_ROW.fullmatch, old.splitlines()) if match}
    known = {name: takes for name, takes in (known | dict(files)).items() if (card.parent / name).is_file()}
    rows = [f"| [{name}]({name}) | {takes} |" for name, takes in sorted(known.items())]
    section = "\n".join([TITLE, "", _TEXT, "", *_HEAD, *rows, "", ""])
    replace_text(card, f"{before}{section}{after}")


def _cut(text: str) -> tuple[str, str, str]:
    """A card -> what comes before the section, the section, and what comes after it."""
    start = re.search(rf"^{TITLE}$", text, re.MULTILINE)
    if start:
        end = re.search(r"^## ", text[start.end() :], re.MULTILINE)
        stop = start.end() + end.start() if end else len(text)
        return text[: start.start()], text[start.start() : stop], text[stop:]
    for title in BEFORE:
        found = re.search(rf"^{title}$", text, re.MULTILINE)
        if found:
            return text[: found.start()], "", text[found.start() :]
    return text.rstrip("\n") + "\n\n", "", ""
