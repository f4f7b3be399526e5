"""What a tool found, as JSON: the option, and the file. convert.py alone has its own, which overwrites nothing."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from swin_mim.errors import UserError


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """--json FILE; a file that cannot be written is a mistake before the work begins, and not after it."""
    text = "write everything there too; - is stdout, and what one reads goes to stderr"
    parser.add_argument("--json", type=_file, metavar="FILE", help=text)


def text_stream(file: str | None) -> TextIO:
    """Where what one reads goes: stdout holds the JSON alone where that was asked for."""
    return sys.stderr if file == "-" else sys.stdout


def write_json(report: dict[str, Any], file: str | None) -> None:
    """Write it to a file, or to stdout for "-", or nowhere for None."""
    text = json.dumps(report, indent=1) + "\n"
    if file is None:
        return
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text)
    except OSError as error:
        raise UserError(f"cannot write --json {file}: {error.strerror}") from None


def _file(text: str) -> str:
    if text == "-":
        return text
    path = Path(text).absolute()
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder: name a file")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text} may not be written")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    return text
