"""docs/architecture.md: the rooms, and a tree of every module with the first sentence of its docstring."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
WIDTH = 120
COLUMN = 34
"""Where the explanations begin."""

INTRODUCTION = """\
# Architecture

## The rooms

Imports go down this list and never back up; `tests/test_architecture.py` holds it. A step of training passes through no
file of `evaluation/`, an unstreamed folder through none of `streaming/`.

```
recipes > cli > evaluation > training > models > hub > weights > data > kernels
    > architecture, masking, errors, files, redaction, counts
```

`datasets` is imported in `data/` only, `huggingface_hub` in `hub/` and `weights/` only, DeepSpeed nowhere.

To read it: `recipes/pretrain.py`, `recipes/finetune.py`, `swin_mim/models/simmim.py`, `swin_mim/models/swin.py`,
`swin_mim/data/sampling.py`, `swin_mim/training/loop/trainer.py`, `swin_mim/training/checkpoints/store.py`.

## Where randomness comes from

The position of a run is one integer, `samples_seen`. It, the seed, the global batch and a fingerprint of the data set
decide which image, crop, flip and mask follow; never the global state of a worker or a process. So one process, two,
eight workers, accumulation and a resume in the middle of an epoch all see the same.

## The tree

*Made of the modules' docstrings by `python -m tools.docs`.*
"""

FOLDERS = {
    "swin_mim": "the package",
    "swin_mim/cli": "the command swin-mim: a file or a folder for each subcommand",
    "swin_mim/cli/convert": "swin-mim convert",
    "swin_mim/cli/doctor": "swin-mim doctor",
    "swin_mim/cli/doctor/images": "what the images hold, before anything is trained",
    "swin_mim/cli/export": "swin-mim export",
    "swin_mim/cli/transfer": "swin-mim transfer",
    "swin_mim/data": "from files to batches",
    "swin_mim/data/blue_marble": "the data set that is always there",
    "swin_mim/data/decoding": "bytes to pixels",
    "swin_mim/data/dense": "images with masks or boxes",
    "swin_mim/data/loading": "batches, ahead of their time",
    "swin_mim/data/packing": "images into shards that train fast",
    "swin_mim/data/scenes": "scenes of any size, read window by window",
    "swin_mim/data/sources": "images by index",
    "swin_mim/data/streaming": "shards that are elsewhere",
    "swin_mim/data/tiling": "scenes cut into images",
    "swin_mim/data/transforms": "crops and augmentation",
    "swin_mim/evaluation": "what is measured",
    "swin_mim/evaluation/dense": "what is measured of pixels and objects",
    "swin_mim/evaluation/outputs": "what a finished model makes of every image, as files",
    "swin_mim/evaluation/overview": "a page of what a data set holds, by features and hashes",
    "swin_mim/evaluation/report": "runs as one page",
    "swin_mim/hub": "publishing",
    "swin_mim/kernels": "window attention and products",
    "swin_mim/kernels/native": "C++ for CPUs, compiled at first use",
    "swin_mim/models": "the networks",
    "swin_mim/models/blocks": "what Swin is made of: attention in windows, MLP, merging",
    "swin_mim/models/targets": "what a masked image model predicts, and its losses",
    "swin_mim/models/dense": "heads that see every pixel or object",
    "swin_mim/training": "what opens the data and builds the model that a config names",
    "swin_mim/training/checkpoints": "what a run continues from",
    "swin_mim/training/config": "settings",
    "swin_mim/training/config/dense": "settings of segmentation and detection",
    "swin_mim/training/dense": "the same for segmentation and detection",
    "swin_mim/training/distributed": "several processes",
    "swin_mim/training/loop": "steps",
    "swin_mim/training/planning": "what a run takes on machines that are not here",
    "swin_mim/training/run": "the folder of a run",
    "swin_mim/weights": "files of weights and the names in them",
    "recipes": "installed as swin_mim.recipes",
    "recipes/configs": "a YAML file for each recipe",
    "recipes/launch": "for accelerate: GPUs, machines, DeepSpeed",
    "tools": "for developers, not installed",
    "tools/bench": "speed and memory, beside others: python -m tools.bench",
    "tools/bench/commands": "what it measures: one file a command",
    "tools/bench/gpu": "all that a GPU machine has to show: python -m tools.bench.gpu",
    "tools/chaos": "breaks runs, and counts what was lost: python -m tools.chaos",
    "tools/docs": "this page, that of the settings, the figure of the pipeline",
    "tools/pretraining_study": "docs/pretraining-gain.md as runs: python -m tools.pretraining_study",
}


def page() -> str:
    lines = [line for top in ("swin_mim", "recipes", "tools") for line in tree(ROOT / top)]
    return "\n".join(
        [INTRODUCTION, "```", *lines, *entry("tests/", "mirrors the package, recipes and tools", 0), "```", ""]
    )


def tree(folder: Path, depth: int = 0) -> Iterator[str]:
    """A folder, its files, then the folders in it; what holds no code that is ours to explain is left out."""
    yield from entry(f"{folder.name}/", FOLDERS[folder.relative_to(ROOT).as_posix()], depth)
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            yield from entry(file.name, first_sentence(file), depth + 1)
    for inside in sorted(folder.iterdir()):
        if not inside.is_symlink() and (any(inside.glob("*.py")) or any(inside.glob("*.yaml"))):
            yield from tree(inside, depth + 1)


def entry(name: str, text: str, depth: int) -> list[str]:
    """A line, or several where the text is long."""
    start = f"{'  ' * depth}{name}"
    gap = max(COLUMN, len(start) + 2)
    lines = textwrap.wrap(text, WIDTH - COLUMN, break_on_hyphens=False)
    return [f"{start:<{gap}}{lines[0]}", *(" " * COLUMN + line for line in lines[1:])]


def first_sentence(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if text is None:
        raise ValueError(f"{file} has no docstring")
    return re.split(r"\.(?:\s|$)", " ".join(text.split("\n\n")[0].split()))[0]
