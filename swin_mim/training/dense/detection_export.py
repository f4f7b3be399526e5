"""The published detector of a run, and what the run tells of itself for its card."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from swin_mim.counts import counted
from swin_mim.data.dense.boxes import ImagesWithObjects
from swin_mim.hub.about import About, Picture, Result, Training
from swin_mim.redaction import name_of, public_url
from swin_mim.training.checkpoints.state import RunState, published_step
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.dense.detectors import load_published_detector
from swin_mim.training.run import publishing
from swin_mim.training.run.export import EXPORT
from swin_mim.training.run.run import Run
from swin_mim.training.run.tracking import plot_curves

METRICS = {
    "AP": "average precision of boxes",
    "AP50": "average precision of boxes at IoU 0.5",
    "mask_AP": "average precision of shapes",
}


def export_detector(
    run: Run,
    state: RunState,
    origin: publishing.Origin | None,
    images: ImagesWithObjects,
    report: Mapping[str, Any],
) -> None:
    """Write the export of a detection, in the main process, from the checkpoint of the published step.

    Args:
        images: that it learned from.
        report: the last one of an evaluation; it goes into the card if it is of that step.
    """
    assert origin is not None
    assert isinstance(run.config, DetectConfig)
    step = published_step(state, run.config.save.export, run.checkpoints)
    devices = publishing.devices_text(run.device, run.world)
    facts = publishing.RunFacts(run.folder, origin, devices, run.precision)
    model = load_published_detector(path_of(run.checkpoints, step))
    about = about_detection(facts, run.config, state, images, report if report.get("step") == step else {}, step=step)
    model.save_pretrained(run.folder / EXPORT, about=about, transformers=run.config.hub.transformers)


def about_detection(
    run: publishing.RunFacts,
    config: DetectConfig,
    state: RunState,
    images: ImagesWithObjects,
    measured: Mapping[str, Any],
    *,
    step: int,
) -> About:
    """What a detection tells of itself.

    Args:
        state: where it stands.
        images: that it learned from.
        measured: the report of an evaluation of the published step; empty: there is none.
        step: after which the weights were these.
    """
    drawn = run.folder / "evaluation" / "detections.png"
    caption = "Images that it did not learn from: on the left the objects that are there, on the right what it found."
    pictures = [Picture(drawn, "card_detections.png", caption)] if measured and drawn.is_file() else []
    pictures.append(Picture(plot_curves(run.folder), "loss.png", "Loss and average precision over the steps."))
    facts = {
        "Method": "fine-tuning" if config.model.pretrained else "training from new weights",
        "Layer-wise decay of the learning rate": str(config.optim.layer_decay),
        "Stochastic depth": str(config.model.drop_path_rate),
    }
    if step != state.step:
        facts["Published"] = f"the weights after step {step}, the best of all evaluations on the images below"
    if config.train.ema:
        facts["Weights"] = f"a running average with decay {config.train.ema}"
    return replace(
        publishing.about_config(config, run.origin),
        tags=("simmim",) if run.origin.base_is_simmim else (),
        training=Training(
            data=_data(config, run.origin, images, measured),
            steps=state.step,
            images=state.samples_seen,
            facts=facts | publishing.facts_of(run, config),
            config_yaml=publishing.recipe_yaml(config),
            command="accelerate launch -m swin_mim.recipes.detect --config recipe.yaml  # the recipe below as a file",
        ),
        results=_results(config, measured) if measured else (),
        pictures=tuple(pictures),
    )


def _data(
    config: DetectConfig, origin: publishing.Origin, images: ImagesWithObjects, measured: Mapping[str, Any]
) -> str:
    source = config.data.source
    where = f'images of "{name_of(source)}"'
    if source == "blue_marble":
        where = "satellite tiles, cut from NASA's Blue Marble (public domain)"
    elif origin.data_on_hub:
        where = f"images of the data set {source}"
    objects = counted(int(images.counts().sum()), "object")
    others = f"; evaluated on {measured['evaluated']} others" if measured else ""
    return f"{len(images)} {where} with {objects} of {counted(len(images.names), 'class', 'classes')}{others}."


def _results(config: DetectConfig, measured: Mapping[str, Any]) -> tuple[Result, ...]:
    evaluated = config.data.validation or config.data.source
    source = "Blue Marble" if evaluated == "blue_marble" else name_of(public_url(evaluated))
    split = config.data.validation_split or ("validation" if config.data.validation else "held out")
    values, images = measured["metrics"], measured["evaluated"]
    return tuple(
        Result(source, f"{name} on {counted(images, 'image')}", key, round(values[key], 6), split)
        for key, name in METRICS.items()
        if key in values
    )
