"""What a segmentation tells of itself for the card of its export."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from swin_mim.counts import counted
from swin_mim.hub.about import About, Picture, Result, Training
from swin_mim.redaction import name_of, public_url
from swin_mim.training.checkpoints.state import RunState, published_step
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.dense.segmenter import load_segmenter
from swin_mim.training.run import publishing
from swin_mim.training.run.export import EXPORT
from swin_mim.training.run.run import Run
from swin_mim.training.run.tracking import plot_curves

OVERLAYS = "overlays.png"
METRICS = {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}


def export_segmenter(
    run: Run,
    state: RunState,
    origin: publishing.Origin | None,
    counts: tuple[int, int],
    report: Mapping[str, Any],
) -> None:
    """Write the export of a segmentation, in the main process, from the checkpoint of the published step.

    Args:
        counts: of the images that it learned from, and of the classes.
        report: the last one of an evaluation; it goes into the card if it is of that step.
    """
    assert origin is not None
    config = run.config
    assert isinstance(config, SegmentConfig)
    step = published_step(state, config.save.export, run.checkpoints)
    devices = publishing.devices_text(run.device, run.world)
    facts = publishing.RunFacts(run.folder, origin, devices, run.precision)
    about = about_segmentation(facts, config, state, counts, report, step=step)
    model = load_segmenter(path_of(run.checkpoints, step))
    model.save_pretrained(run.folder / EXPORT, about=about, transformers=config.hub.transformers)


def about_segmentation(
    run: publishing.RunFacts,
    config: SegmentConfig,
    state: RunState,
    counts: tuple[int, int],
    report: Mapping[str, Any],
    *,
    step: int,
) -> About:
    """What a segmentation tells of itself; arguments as in `export_segmenter`."""
    measured = report if report.get("step") == step else {}
    overlays = run.folder / "evaluation" / OVERLAYS
    caption = "Images that it did not learn from: the image, its mask, the prediction."
    pictures = [Picture(overlays, "card_overlays.png", caption)] if measured and overlays.is_file() else []
    pictures.append(Picture(plot_curves(run.folder), "loss.png", "Loss and mean IoU over the steps."))
    facts = {
        "Method": "fine-tuning" if config.model.pretrained else "training from new weights",
        "Head": f"{config.model.head}, {config.model.head_norm} norms",
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
            data=_data(config, run.origin, counts, measured),
            steps=state.step,
            images=state.samples_seen,
            facts=facts | publishing.facts_of(run, config),
            config_yaml=publishing.recipe_yaml(config),
            command="accelerate launch -m swin_mim.recipes.segment --config recipe.yaml  # the recipe below as a file",
        ),
        results=_results(config, measured) if measured else (),
        pictures=tuple(pictures),
    )


def _data(
    config: SegmentConfig, origin: publishing.Origin, counts: tuple[int, int], measured: Mapping[str, Any]
) -> str:
    source, (images, classes) = config.data.source, counts
    where = f'images of a folder "{name_of(source)}"'
    if source == "blue_marble":
        where = "satellite tiles, cut from NASA's Blue Marble (public domain), with land cover after Koeppen"
    elif origin.data_on_hub:
        where = f"images of the data set {source}"
    others = f"; evaluated on {measured['evaluated']} others" if measured else ""
    return f"{images} labelled {where}, in {counted(classes, 'class', 'classes')} of pixels{others}."


def _results(config: SegmentConfig, measured: Mapping[str, Any]) -> tuple[Result, ...]:
    evaluated = config.data.validation or config.data.source
    source = "Blue Marble" if evaluated == "blue_marble" else name_of(public_url(evaluated))
    split = config.data.validation_split or ("validation" if config.data.validation else "held out")
    values, images = measured["metrics"], measured["evaluated"]
    return tuple(
        Result(source, f"{name} on {counted(images, 'image')}", key, round(values[key], 6), split)
        for key, name in METRICS.items()
        if values.get(key) is not None
    )
