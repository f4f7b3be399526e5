"""What a tool found, as JSON. Part of all that have --json."""

import json
import sys
from pathlib import Path
from typing import Any

from swin_mim.errors import UserError


def write_json(report: dict[str, Any], file: str | Path | None) -> None:
    """Write it to a file, or to stdout for "-", or nowhere for None."""
    text = json.dumps(report, indent=1) + "\n"
    if file is None:
        return
    if str(file) == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text)
    except OSError as error:
        raise UserError(f"cannot write --json {file}: {error.strerror}") from None
