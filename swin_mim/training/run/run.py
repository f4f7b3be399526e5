"""A run: its processes, its folder, its log, and the signals that end it."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from swin_mim.counts import counted
from swin_mim.data.labels import Labelled
from swin_mim.data.loading.loader import Batch, LoaderOptions
from swin_mim.data.loading.workers import warn_if_more_than_cores
from swin_mim.data.sources.base import Source, StreamStatus
from swin_mim.data.sources.inventory import explain_change
from swin_mim.errors import STOPPED, UserError
from swin_mim.files import writing
from swin_mim.models.compilation import compile_model, is_compiled
from swin_mim.models.saving import Pretrained
from swin_mim.models.swin import Swin, attention_text
from swin_mim.training.checkpoints.manager import Checkpoints
from swin_mim.training.checkpoints.state import RunState, newest_checkpoint
from swin_mim.training.checkpoints.writer import BackgroundWriter
from swin_mim.training.config.common_checks import accumulation
from swin_mim.training.config.dense.recipes import RecipeConfig
from swin_mim.training.distributed import processes
from swin_mim.training.distributed.prepare import PreparedModel, prepare
from swin_mim.training.distributed.sharding import zero_stage
from swin_mim.training.distributed.weight_average import WeightAverage
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.worker_count import count_text, worker_count
from swin_mim.training.run.folder import BrokenImages, claim, removed_unless_begun, write_extension
from swin_mim.training.run.lock import lock
from swin_mim.training.run.publishing import devices_text
from swin_mim.training.run.signals import StopSignal, follow_launcher
from swin_mim.training.run.skipped_steps import SkippedStep, SkippedSteps
from swin_mim.training.run.starts import note_start
from swin_mim.training.run.tracking import RunLog, start_log
from swin_mim.weights import config_json

INVENTORY = "images.gz"

Model = TypeVar("Model", bound=Pretrained)
_LOG = logging.getLogger(__name__)


@dataclass
class Run:
    """A run of connected processes; made by `open_run`, and filled in while a recipe builds what it trains."""

    config: RecipeConfig
    accelerator: Accelerator
    folder: Path
    accumulation: int
    """Micro batches of each process in one step."""
    threads: int
    """CPU threads of each process."""
    stop: StopSignal
    """Listens until `stop.leave()`, unless this is only a look at a run."""
    newest: Path | None
    """The newest whole checkpoint of the run; None: it has none yet."""
    broken: BrokenImages
    extends: bool = False
    """Whether this start makes a run longer that had ended."""
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    """Writes the checkpoints."""
    stream: StreamStatus = field(init=False)
    """Whether images that are streamed go on coming."""
    log: RunLog = field(init=False)
    """The metrics; there from `begin` on."""
    skipped: Callable[[SkippedStep], None] = field(init=False)
    """Told of every step that was left out; there from `begin` on."""

    def __post_init__(self) -> None:
        self.stream = StreamStatus(stopped=lambda: self.stop.received)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def precision(self) -> str:
        return processes.precision_text(self.accelerator)

    @property
    def workers(self) -> int:
        """Processes that load images for this one; `auto` may be fewer where shared memory is small."""
        return worker_count(self.config.data, self.device)

    def log_info(self, text: str) -> None:
        """Write to the terminal and train.log, in the main process only."""
        _LOG.info(text)

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a CPU tensor over all processes, on the CPU."""
        if self.world == 1:
            return values
        return self.accelerator.reduce(values.to(self.device), "sum").cpu()

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches through, and list the images that could not be read."""
        return self.broken.watch(batches)

    def loader_options(self, pixel_bytes: int = 3) -> LoaderOptions:
        """How this process takes part in loading images of so many bytes a pixel."""
        pinned, automatic = self.device.type == "cuda", self.config.data.workers == "auto"
        return LoaderOptions(
            self.rank, self.world, self.workers, automatic=automatic, pixel_bytes=pixel_bytes, pin_memory=pinned
        )

    def prepare(
        self, model: Model, optimizer_of: Callable[[Model], torch.optim.Optimizer], *, ema: float = 0.0
    ) -> PreparedModel[Model]:
        """Spread a model over the processes as the settings say; `ema` above 0 is the decay of an average of it."""
        if self._is_compiled(cast(Swin, model.get_submodule("encoder"))):
            compile_model(model, self.device)
        prepared = prepare(self.accelerator, model, optimizer_of, fsdp=self.config.train.fsdp)
        return prepared._replace(average=WeightAverage(model, ema)) if ema else prepared

    def begin(
        self,
        model: Pretrained,
        trained: PreparedModel[Any],
        schedule: TrainingSchedule,
        data: Source | Labelled,
        **facts: Any,
    ) -> Checkpoints:
        """Continue from the newest checkpoint, or begin at step 0; start trackers and metrics.

        Args:
            model: the bare model.
            trained: what `prepare` made of it.
            data: what is trained on.
            facts: what else a resumed run must have the same, as values of JSON.

        Raises:
            UserError: the checkpoint belongs to other images or settings, or to another kind of distribution.
        """
        images, config = data.images if isinstance(data, Labelled) else data, self.config
        state = RunState()
        checkpoints = Checkpoints(
            self.checkpoints,
            self.accelerator,
            model,
            trained.model,
            trained.optimizer,
            keep=config.save.keep,
            keep_every=config.save.keep_every * schedule.save_every,
            facts={
                "images": data.fingerprint,
                **facts,
                "seed": config.run.seed,
                "global_batch": config.train.global_batch,
            },
            documents={"config.json": config_json.document(model.description())},
            average=trained.average,
            changes={"images": partial(explain_change, self.folder / INVENTORY, images)},
            state=state,
            writer=self.writer,
        )
        if self.newest:
            vars(state).update(vars(checkpoints.restore(self.newest)))
        self._check_extension(schedule, state.step)
        processes.start_trackers(self.accelerator, config.run.name, step=state.step)
        self.log = RunLog(self.folder, total_steps=schedule.total_steps, step=state.step, accelerator=self.accelerator)
        skipped = self.folder / "skipped_steps.jsonl"
        self.skipped = SkippedSteps(skipped, seed=config.run.seed, rank=self.rank, name_of=images.name).add
        return checkpoints

    def _check_extension(self, schedule: TrainingSchedule, step: int) -> None:
        """Write an extension down that begins now, and refuse one of a run that is not at its end.

        Raises:
            UserError: the newest checkpoint that is whole is of an earlier step.
        """
        train = self.config.train
        if len(schedule.restarts) != len(train.extended):
            raise UserError(
                f"{self.folder} holds a run that was extended, which this recipe does not know: it is to make its "
                "TrainingSchedule of run.config, as that of swin-mim copy does"
            )
        if not self.extends:
            return
        if step < (end := schedule.restarts[-1]):
            raise UserError(
                f"{self.folder} holds a run that has not ended, its newest checkpoint is of step {step} of {end}: "
                f"continue it with --train.duration '{train.extended[-1]}' before you make it longer"
            )
        if self.is_main:
            write_extension(self.folder, self.config)

    def announce(
        self,
        subject: tuple[str, str],
        encoder: Swin,
        trained: PreparedModel[Any],
        schedule: TrainingSchedule,
        step: int,
    ) -> None:
        """Say in a line, and note for later, what is trained on what (the subject), where and how."""
        config, train = self.config, self.config.train
        parameters = sum(parameter.numel() for parameter in trained.full.model.parameters()) / 1e6
        batch = f"{schedule.global_batch} = {self.world} x {train.micro_batch} x {self.accumulation}"
        strategy = processes.strategy_text(self.accelerator, fsdp=train.fsdp)
        attention = attention_text(encoder, self.device, processes.compute_dtype(self.accelerator))
        attention += ", compiled in the first step" if self._is_compiled(encoder) else ""
        start = f"resumed at step {step}" if self.newest else f"from {config.model.pretrained or 'new weights'}"
        self.log_info(
            f"{config.run.name}: {subject[0]}, {parameters:.3g} M parameters, {subject[1]}; "
            f"{counted(schedule.total_steps, 'step')} of {batch}; {self.device.type}, {strategy}, "
            f"{counted(self.threads, 'thread')}, "
            f"precision {self.precision}, attention {attention}; {start} in {self.folder}"
        )
        if schedule.restarts and schedule.restarts[-1] <= step < schedule.total_steps:
            self.log_info(schedule.extension_text())
        if self.is_main:
            device = devices_text(self.device, self.world)
            facts = {"model": f"{subject[0]}, {parameters:.3g} M parameters", "images": subject[1], "device": device}
            facts |= {"processes": strategy if self.world == 1 else f"{self.world}, {strategy}", "batch": batch}
            facts |= {"precision": self.precision}
            note_start(self.folder, step, facts | {"attention": attention})

    def _is_compiled(self, encoder: Swin) -> bool:
        """`auto` leaves out ZeRO-3, which gathers the weights of each module when it is called."""
        setting = self.config.train.compile
        if setting == "auto" and zero_stage(self.accelerator) == 3:
            return False
        return is_compiled(setting, encoder, self.device, processes.compute_dtype(self.accelerator))

    def exit_code(self, checkpoints: Checkpoints, schedule: TrainingSchedule) -> int:
        """0 at the end of the schedule and where it was to stop, 75 where it was stopped."""
        step = checkpoints.state.step
        return 0 if step >= schedule.total_steps or schedule.ends_early_at(step) else STOPPED


@contextmanager
def open_run(config: RecipeConfig, *, trains: bool = True) -> Iterator[Run]:
    """Connect the processes, and make the run's folder this run's for the time of the block.

    In a thread that is not the main one signals are left alone, and a warning says so. After a mistake of a user before
    anything was trained, such as a source that is not there, a new folder is gone again.

    Args:
        trains: False for a look at a run, which leaves its settings and trackers as they are.

    Raises:
        UserError: settings that do not fit this machine or the run that is in the folder.
    """
    folder = Path(config.run.root).expanduser() / config.run.name
    with removed_unless_begun(folder), _connected(config, folder, trains) as run:
        yield run


@contextmanager
def _connected(config: RecipeConfig, folder: Path, trains: bool) -> Iterator[Run]:
    stop = StopSignal()
    if trains and threading.current_thread() is threading.main_thread():
        stop.listen()
        follow_launcher()
    held = None
    try:
        train = config.train
        # whatever the number of processes, images can be dealt to them to be looked at
        accumulated = accumulation(train, processes.world_size()) if trains else 1
        threads = processes.set_threads(train.threads)
        accelerator = processes.start_accelerator(
            folder,
            precision=train.precision,
            accumulation=accumulated,
            micro_batch=train.micro_batch,
            clip_norm=config.optim.clip_norm,
            fsdp=train.fsdp,
            trackers=config.log.trackers if trains else (),
        )
        start_log(folder, main=accelerator.is_main_process)
        if trains and not stop.listens:
            _LOG.warning("this is not the main thread: no signal ends the run with a checkpoint, nor does Ctrl-C")
        if config.data.workers != "auto":
            warn_if_more_than_cores(config.data.workers)
        elif chosen := count_text(config.data, accelerator.device):
            _LOG.info(chosen)
        held = _hold(folder, main=accelerator.is_main_process) if trains else None
        with writing(folder):
            config, extends = claim(folder, config, write=trains and accelerator.is_main_process)
        broken = BrokenImages(
            folder / "broken_images.jsonl", "another image takes its place" if trains else "it is left out"
        )
        newest = newest_checkpoint(folder / "checkpoints")
        if trains and newest is None and (faster := processes.faster_precision(train.precision)):
            _LOG.info(faster)
        run = Run(config, accelerator, folder, accumulated, threads, stop, newest, broken, extends and trains)
        try:
            yield run
            accelerator.end_training()
        finally:
            run.writer.join()  # after an error too: a checkpoint that was begun is finished under the lock
            if "log" in vars(run):
                run.log.close()
    finally:
        stop.leave()
        if held is not None:
            held.release()


def _hold(folder: Path, *, main: bool) -> Any:
    """Lock the folder for all processes; the main one has the lock, and all learn if it cannot."""
    held, refusal = None, ""
    if main:
        try:
            held = lock(folder)
        except UserError as error:
            refusal = str(error)
    (refusal,) = broadcast_object_list([refusal])
    if refusal:
        raise UserError(refusal)
    return held
