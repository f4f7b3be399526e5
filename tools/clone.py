"""This clone: where it lies, and how a process that is started finds `tools` and `swin_mim` of it from any folder."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(**variables: str) -> dict[str, str]:
    """The variables of this process with the clone on PYTHONPATH, and others over them."""
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))} | variables
