"""What every recipe begins with: the processes, their threads and log, and the folder of the run."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from swin_mim.data.loading.workers import tell_if_more_than_cores
from swin_mim.errors import UserError
from swin_mim.training.config.common_checks import accumulation
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.distributed import processes
from swin_mim.training.run import folder as run_folder
from swin_mim.training.run.lock import lock
from swin_mim.training.run.signals import StopSignal, follow_launcher
from swin_mim.training.run.tracking import start_log


class Launch(NamedTuple):
    """The processes of a run, connected."""

    accelerator: Accelerator
    folder: Path
    """Of the run."""
    world: int
    accumulation: int
    """Micro batches of each process in one step."""
    threads: int
    """CPU threads of each process."""
    say: Callable[[str], None]
    """Says a text on the terminal and in train.log; in the main process only."""
    stop: StopSignal
    """Listens from now on, unless this is only a look at a run."""
    held: IO[str] | None
    """The lock on the folder; in the main process of a run that trains."""

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def reduce(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a CPU tensor over all processes, on the CPU."""
        if self.world == 1:
            return values
        return self.accelerator.reduce(values.to(self.device), "sum").cpu()


def launch(config: PretrainConfig | FinetuneConfig, *, trains: bool = True) -> Launch:
    """Connect the processes, and make the run's folder this run's.

    Args:
        trains: False for a look at a run, which leaves its settings and trackers as they are.

    Raises:
        UserError: settings that do not fit this machine or the run that is in the folder.
    """
    stop = StopSignal()
    if trains:
        stop.listen()
        follow_launcher()
    run, train = config.run, config.train
    folder, world = Path(run.root).expanduser() / run.name, processes.world_size()
    # whatever the number of processes, images can be dealt to them to be looked at
    accumulated = accumulation(train, world) if trains else 1
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
    say = start_log(folder, main=accelerator.is_main_process)
    tell_if_more_than_cores(config.data.workers)
    held = _hold(folder, main=accelerator.is_main_process) if trains else None
    run_folder.claim(folder, config, write=trains and accelerator.is_main_process)
    return Launch(accelerator, folder, world, accumulated, threads, say, stop, held)


def _hold(folder: Path, *, main: bool) -> IO[str] | None:
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
