"""The published model of a run: export/ of its folder, whole at any time, and the same on the Hub."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swin_mim.counts import counted
from swin_mim.data.labels import Labelled
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.inventory import save_inventory
from swin_mim.hub import repository
from swin_mim.hub.about import Picture
from swin_mim.models.classifier import SwinClassifier
from swin_mim.models.saving import Pretrained
from swin_mim.training.checkpoints.manager import Checkpoints
from swin_mim.training.checkpoints.state import RunState, published_step, published_weights
from swin_mim.training.checkpoints.store import path_of
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.images import Images
from swin_mim.training.loop.schedule import TrainingSchedule, due
from swin_mim.training.run import publishing
from swin_mim.training.run.labelled_export import EXPORT, Learned, Task, export_labelled, place
from swin_mim.training.run.run import INVENTORY, Run

CLASSIFICATION = Task(
    SwinClassifier,
    "finetune",
    {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "top5_accuracy": "top-5 accuracy",
        "mean_average_precision": "mean average precision",
    },
    Picture(
        Path("confusion.png"),
        "card_confusion.png",
        "Which class is predicted (columns) for the images of each class (rows).",
    ),
    "Loss and accuracy over the steps.",
)


def check_export(run: Run, model: Pretrained, data: Source | Labelled) -> publishing.Origin | None:
    """Refuse before the first step what would be refused when the run ends, and note where everything is from.

    That is the place of the export, its card, a copy for transformers, and write access on the Hub. In the main
    process; the others get None.

    Raises:
        UserError: the run could not be published.
    """
    if not run.is_main:
        return None
    if run.newest is None:
        save_inventory(run.folder / INVENTORY, data.images if isinstance(data, Labelled) else data)
    resumed = run.newest is not None
    origin = publishing.Origin.of(run.folder, run.config, base_is_simmim=model.from_simmim, resumed=resumed)
    publishing.check(run.folder, run.config, model.description())
    if run.config.hub.repo:
        repository.check_write_access(run.config.hub.repo, private=run.config.hub.private)
    return origin


def export_pretrained(
    run: Run, model: Pretrained, state: RunState, origin: publishing.Origin | None, images: Images
) -> None:
    """Write the export of a pretraining, in the main process, from the full model."""
    assert origin is not None
    assert isinstance(run.config, PretrainConfig)
    facts = publishing.RunFacts(run.folder, origin, publishing.devices_text(run.device, run.world), run.precision)
    about = publishing.about_run(facts, run.config, state, images=len(images.training), heldout=len(images.heldout))
    model.save_pretrained(run.folder / EXPORT, about=about, transformers=run.config.hub.transformers)


def take_published(run: Run, model: Pretrained, state: RunState, export: str) -> int:
    """Give the full model the weights that are published -> the step they are of.

    Args:
        export: "best" or "last"; where the best could not be written, the last are taken, and that is said.
    """
    step = published_step(state, export, run.checkpoints)
    if step != published_step(state, export):
        run.log_info("the checkpoint of the best step could not be written: the last one is published")
    model.load_state_dict(published_weights(path_of(run.checkpoints, step)))
    return step


def export_classifier(
    run: Run, state: RunState, origin: publishing.Origin | None, images: Labelled, report: Mapping[str, Any]
) -> None:
    """Write the export of a fine-tuning that learned from `images`; see `export_labelled`."""
    assert isinstance(run.config, FinetuneConfig)
    learned = classes_learned(run.config, origin, len(images), len(images.names))
    export_labelled(CLASSIFICATION, run, state, origin, learned, report)


def classes_learned(config: FinetuneConfig, origin: publishing.Origin | None, images: int, classes: int) -> Learned:
    """What a fine-tuning learned: how many images it had, of how many classes."""
    where, few = place(config, origin, "satellite tiles of land"), config.data.labels_per_class
    each = f", {few} of each class" if few else ""
    return Learned(f"{images} labelled {where}{each}, in {counted(classes, 'class', 'classes')}")


class Exporter:
    """Publishes a run while it goes on, if that is wanted, and when it ends.

    Args:
        ready: makes what is published complete; all processes call it together.
        write: writes the export, in the main process.
    """

    def __init__(
        self,
        run: Run,
        schedule: TrainingSchedule,
        checkpoints: Checkpoints,
        *,
        ready: Callable[[], Any],
        write: Callable[[], None],
    ) -> None:
        self._run, self._schedule, self._checkpoints, self._ready = run, schedule, checkpoints, ready
        hub, folder = run.config.hub, run.folder / EXPORT
        self._write = write
        self._publisher = None
        if hub.repo and run.is_main:
            self._publisher = publishing.Publisher(folder, write, hub.repo, private=hub.private)

    def saved(self, step: int) -> None:
        """Push what the run has become, if that is due after the checkpoint of this step."""
        hub, total = self._run.config.hub, self._schedule.total_steps
        if hub.repo and step < total and due(step, self._schedule.save_every * hub.every, 0):
            self._ready()
            if self._publisher:
                self._publisher.offer(f"{self._run.config.run.name}, step {step} of {total}")

    def conclude(self, summary: Callable[[], str]) -> None:
        """Write and push the export of a finished run; say of a stopped one how it goes on.

        Args:
            summary: what to say of a finished run, in the main process.

        Raises:
            UserError: the push failed or was interrupted; the export is there.
        """
        run, step, total = self._run, self._checkpoints.state.step, self._schedule.total_steps
        run.stop.leave()
        if step < total:
            run.log_info(f"stopped at step {step} of {total}, with a checkpoint: the same command continues the run")
            if self._publisher:
                self._publisher.leave()
        elif run.is_main:
            if self._publisher:
                steps = counted(total, "step")
                run.log_info(f"published: {self._publisher.finish(f'{run.config.run.name}, {steps}')}")
            else:
                self._write()
            run.log_info(summary())
