"""The configs that are installed with the recipes, found by their names."""

import difflib
from importlib.util import find_spec
from pathlib import Path

from swin_mim.errors import UserError


def recipes_folder() -> Path:
    """Folder of the recipes: that of the package swin_mim.recipes, which is not imported for it."""
    spec = find_spec("swin_mim.recipes")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def config_path(name_or_path: str | Path) -> Path:
    """Path of a config: a file, or the name of a shipped one such as "demo" or "demo.yaml".

    Raises:
        UserError: a name without a folder that is neither; proposes the shipped configs with similar names.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted((recipes_folder() / "configs").glob("*.yaml"))}
    name = str(name_or_path).removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    if path.exists() or len(path.parts) > 1:
        return path  # a pipe; or reading tells what it is, a folder or missing
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), shipped, n=3, cutoff=0.5)
    way_out = f"did you mean {' or '.join(near)}?" if near else f"the shipped ones are {', '.join(shipped)}"
    raise UserError(f"there is no config file {path} and no shipped config of this name: {way_out}")
