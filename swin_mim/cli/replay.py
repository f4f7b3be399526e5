"""Do one step of a run again, and name the first module whose output or gradient is not finite.

    swin-mim replay runs/mine 8125
    swin-mim replay runs/mine 8125 --precision fp32

RUN is the folder of a run, STEP a number from its log, its metrics or skipped_steps.jsonl. The run trains again from
the newest checkpoint before that step, on the same images, crops and masks, in one process; its folder is not
changed. With --precision fp32 it tells whether the numbers or the precision are to blame.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from swin_mim.errors import Parser, UserError, one_line_errors

if TYPE_CHECKING:
    from swin_mim.training.config.dense.recipes import RecipeConfig


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="the folder of a run")
    add("step", metavar="STEP", type=int, help="from 1")
    add("--precision", choices=("fp32", "bf16", "fp16"), help="of all steps that are done again (default: the run's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
        print(
            "\n".join([f"step {options.step} of {options.run}:", *replay(options.run, options.step, options.precision)])
        )


def replay(run: Path, step: int, precision: str | None) -> list[str]:
    """What was seen, a line each."""
    from swin_mim.training.loop.replay import Replayed, replaying

    recipe, config = recipe_of(run)
    if step < 1:
        raise UserError(f"STEP {step} must be at least 1")
    with TemporaryDirectory() as folder:
        again = quiet(config, Path(folder), precision)
        try:
            copy_run(run, Path(folder) / again.run.name, again, step)
        except OSError as error:  # shutil's has a list of files and of what was said of each
            said = error.args[0][0][2] if isinstance(error, shutil.Error) else error
            raise UserError(f"the run could not be copied to {folder}: {said}: make room, or set TMPDIR") from error
        try:
            recipe(again, fit=replaying(step, position(run, step)))
        except Replayed as done:
            return done.findings
    raise AssertionError("a recipe that replays ends by its findings")


def recipe_of(run: Path) -> "tuple[Callable[..., int], RecipeConfig]":
    """The recipe that made a run, and the run's settings.

    Raises:
        UserError: the folder is not one of a run.
    """
    from swin_mim.training.config.dense.detect import DetectConfig
    from swin_mim.training.config.dense.segment import SegmentConfig
    from swin_mim.training.config.finetune import FinetuneConfig
    from swin_mim.training.config.parsing import from_mapping
    from swin_mim.training.config.pretrain import PretrainConfig
    from swin_mim.training.config.yaml_file import read_yaml

    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a folder of a run: it has no config.yaml")
    values = read_yaml(path)
    (values.get("data") or {}).setdefault("color_profile", "ignore")  # what a run did before there was the setting
    model = values.get("model") or {}
    marks = {"pretrain": "mask" in values, "segment": "head" in model, "detect": "masks" in model, "finetune": True}
    name = next(name for name, marked in marks.items() if marked)
    configs: dict[str, Any] = {
        "pretrain": PretrainConfig,
        "segment": SegmentConfig,
        "detect": DetectConfig,
        "finetune": FinetuneConfig,
    }
    return import_module(f"swin_mim.recipes.{name}").main, from_mapping(configs[name], values, path)


def quiet(config: Any, root: Path, precision: str | None) -> Any:
    """The same run in another place, which measures, publishes and compiles nothing."""
    changes: dict[str, dict[str, Any]] = {
        "run": {"root": str(root)},
        "train": {"compile": False, "fsdp": False, "activation_checkpointing": False, "stop_after": "0 steps"},
        "log": {"trackers": (), "report": False},
        "hub": {"repo": None},
    }
    if precision:
        changes["train"]["precision"] = precision
    if hasattr(config, "probe"):
        changes["probe"] = {"every": "0 steps", "first": "0 steps"}
    sections = {name: replace(getattr(config, name), **values) for name, values in changes.items()}
    return replace(config, **sections)


def copy_run(run: Path, copy: Path, config: Any, step: int) -> None:
    """The settings, and the newest whole checkpoint before a step."""
    from swin_mim.training.checkpoints import store
    from swin_mim.training.config.yaml_file import to_yaml

    copy.mkdir(parents=True)
    (copy / "config.yaml").write_text(to_yaml(config))
    before = [path for path in store.steps_on_disk(run / "checkpoints") if store.step_of(path) < step]
    for path in sorted(before, reverse=True):
        if not store.verify(path):
            shutil.copytree(path, copy / "checkpoints" / path.name)
            return
    print(f"no checkpoint before step {step} is left: from the start of the run", file=sys.stderr)


def position(run: Path, step: int) -> int | None:
    """Where the images of a step stand, if the run noted it because the step was left out; of several the last time."""
    from swin_mim.training.run.jsonl import whole_lines

    noted = [entry["positions"][0] for entry in whole_lines(run / "skipped_steps.jsonl") if entry["step"] == step]
    return noted[-1] if noted else None
