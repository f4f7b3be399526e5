"""Copy a recipe, a config or a launch file of swin_mim into a folder, to be changed there.

    swin-mim copy                                      # what there is
    swin-mim copy pretrain.py .                        # a recipe, and the config that it takes by default
    swin-mim copy simmim_swin_base_192_100ep configs/
    swin-mim copy zero2.yaml .

A copied recipe runs from where it lies: python pretrain.py, or accelerate launch pretrain.py. It finds shipped configs
by their names, and files by their paths.
"""

import argparse
import ast
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from swin_mim.errors import Parser, UserError, one_line_errors
from swin_mim.training.config.shipped import recipes_folder

TOGETHER = {
    "pretrain.py": ("demo.yaml",),
    "finetune.py": ("finetune_demo.yaml",),
    "segment.py": ("segment_demo.yaml",),
    "detect.py": ("detect_demo.yaml",),
    "zero1.yaml": ("zero1.json",),
    "zero2.yaml": ("zero2.json",),
    "zero3.yaml": ("zero3.json",),
}
"""What is of use with a file, and is copied with it."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim copy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="of a recipe, a config or a launch file, with or without .py or .yaml")
    add("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER", help="where to (default: here)")
    add("--force", action="store_true", help="overwrite files that are there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
        files = shipped()
        print(listing(files) if options.name is None else copied(options.name, options.folder, files, options.force))


def shipped() -> dict[str, Path]:
    """File name -> path of all that can be copied: recipes, then configs, then launch files."""
    folder = recipes_folder()
    recipes = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    others = [*sorted((folder / "configs").glob("*.yaml")), *sorted((folder / "launch").iterdir())]
    return {path.name: path for path in (*recipes, *others)}


def listing(files: Mapping[str, Path]) -> str:
    """One line each; what is copied with another file has none."""
    beside = {name for names in TOGETHER.values() for name in names if name.endswith(".json")}
    width = max(map(len, files))
    return "\n".join(f"{name:<{width}}  {first_line(path)}" for name, path in files.items() if name not in beside)


def first_line(path: Path) -> str:
    """What a file says of itself first."""
    text = path.read_text(encoding="utf-8")
    said = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text.lstrip("# ")
    return said.partition("\n")[0]


def copied(name: str, folder: Path, files: Mapping[str, Path], force: bool) -> str:
    """Copy a file and what belongs to it -> a line on each.

    Raises:
        UserError: no file is called so, one is there already, or it cannot be written.
    """
    chosen = next((each for each in (name, f"{name}.yaml", f"{name}.py") if each in files), None)
    if chosen is None:
        near = difflib.get_close_matches(name, files, n=1, cutoff=0.5)
        way_out = f"did you mean {near[0]}?" if near else "swin-mim copy lists the files"
        raise UserError(f"there is no file {name!r} to copy: {way_out}")
    targets = {folder / each: files[each] for each in (chosen, *TOGETHER.get(chosen, ()))}
    if there := [path for path in targets if path.exists() and not force]:
        raise UserError(f"{there[0]} exists: name another folder, or overwrite it with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, source in targets.items():
            # a launch file names its JSON by a path that starts where the command does
            text = source.read_text(encoding="utf-8").replace("recipes/launch/", f"{(folder / 'x').as_posix()[:-1]}")
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return "\n".join(map(str, targets))
