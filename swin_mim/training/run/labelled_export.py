"""The export of a training with labels, and what the run tells of itself on its card: alike for every task."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swin_mim.counts import counted
from swin_mim.hub.about import About, Picture, Result, Training
from swin_mim.models.saving import Pretrained
from swin_mim.redaction import name_of, public_url
from swin_mim.training.checkpoints.state import RunState, published_step
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.finished import load_published
from swin_mim.training.run.publishing import (
    Origin,
    RunFacts,
    about_config,
    devices_text,
    facts_of,
    recipe_yaml,
)
from swin_mim.training.run.run import Run
from swin_mim.training.run.tracking import plot_curves

EXPORT = "export"
LabelledConfig = FinetuneConfig | SegmentConfig | DetectConfig


@dataclass(frozen=True)
class Task:
    """What a task has of its own on a card."""

    kind: type[Pretrained]
    recipe: str
    """Module of swin_mim.recipes."""
    metrics: Mapping[str, str]
    """Of an evaluation: identifier -> name in words. Those that were measured are published."""
    picture: Picture
    """What an evaluation draws; its file is named as it is in evaluation/."""
    curves: str
    """Caption of the plot of loss and metric."""


@dataclass(frozen=True)
class Learned:
    """What a run learned."""

    data: str
    """From what, without an end: "120 labelled images of a folder "trees", in 3 classes"."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Rows of the card that no other task has."""


def export_labelled(
    task: Task, run: Run, state: RunState, origin: Origin | None, learned: Learned, report: Mapping[str, Any]
) -> None:
    """Write the export of a run, in the main process, from the checkpoint of the published step.

    Args:
        report: the last one of an evaluation; it goes into the card if it is of that step.
    """
    assert origin is not None
    config = run.config
    assert isinstance(config, FinetuneConfig | SegmentConfig | DetectConfig)
    step = published_step(state, config.save.export, run.checkpoints)
    facts = RunFacts(run.folder, origin, devices_text(run.device, run.world), run.precision)
    about = about_labelled(task, facts, config, state, learned, report, step=step)
    model = load_published(task.kind, path_of(run.checkpoints, step))
    model.save_pretrained(run.folder / EXPORT, about=about, transformers=config.hub.transformers)


def about_labelled(
    task: Task,
    run: RunFacts,
    config: LabelledConfig,
    state: RunState,
    learned: Learned,
    report: Mapping[str, Any],
    *,
    step: int,
) -> About:
    """What a run tells of itself.

    Args:
        state: where it stands.
        report: the last one of an evaluation; it goes into the card if it is of `step`.
        step: after which the weights were these.
    """
    measured = report if report.get("step") == step else {}
    drawn = run.folder / "evaluation" / task.picture.file
    pictures = [task.picture._replace(file=drawn)] if measured and drawn.is_file() else []
    pictures.append(Picture(plot_curves(run.folder), "loss.png", task.curves))
    facts = {
        "Method": "fine-tuning" if config.model.pretrained else "training from new weights",
        **learned.facts,
        "Layer-wise decay of the learning rate": str(config.optim.layer_decay),
        "Stochastic depth": str(config.model.drop_path_rate),
    }
    if step != state.step:
        facts["Published"] = f"the weights after step {step}, the best of all evaluations on the images below"
    if config.train.ema:
        facts["Weights"] = f"a running average with decay {config.train.ema}"
    others = f"; evaluated on {measured['evaluated']} others" if measured else ""
    command = f"accelerate launch -m swin_mim.recipes.{task.recipe} --config recipe.yaml  # the recipe below as a file"
    return replace(
        about_config(config, run.origin),
        tags=("simmim",) if run.origin.base_is_simmim else (),
        training=Training(
            data=f"{learned.data}{others}.",
            steps=state.step,
            images=state.samples_seen,
            facts=facts | facts_of(run, config),
            config_yaml=recipe_yaml(config),
            command=command,
        ),
        results=_results(task, config, measured) if measured else (),
        pictures=tuple(pictures),
    )


def place(config: LabelledConfig, origin: Origin | None, tiles: str = "satellite tiles") -> str:
    """ "images of a folder "trees"": where the images of a run are from; `tiles`: what Blue Marble's are called."""
    source = config.data.source
    if source == "blue_marble":
        return f"{tiles}, cut from NASA's Blue Marble (public domain)"
    if origin is not None and origin.data_on_hub:
        return f"images of the data set {source}"
    return f'images of {"" if source.endswith(".json") else "a folder "}"{name_of(source)}"'


def _results(task: Task, config: LabelledConfig, measured: Mapping[str, Any]) -> tuple[Result, ...]:
    evaluated = config.data.validation or config.data.source
    source = "Blue Marble" if evaluated == "blue_marble" else name_of(public_url(evaluated))
    split = config.data.validation_split or ("validation" if config.data.validation else "held out")
    values, images = measured["metrics"], measured["evaluated"]
    return tuple(
        Result(source, f"{name} on {counted(images, 'image')}", key, round(values[key], 6), split)
        for key, name in task.metrics.items()
        if values.get(key) is not None
    )
