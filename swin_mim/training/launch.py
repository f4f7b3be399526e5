"""What every recipe begins with: the processes, their threads and log, and the folder of the run."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from swin_mim.training import processes, run_folder
from swin_mim.training.config import FinetuneConfig, PretrainConfig, accumulation
from swin_mim.training.tracking import start_log


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
        trackers=config.log.trackers if trains else (),
    )
    say = start_log(folder, main=accelerator.is_main_process)
    run_folder.claim(folder, config, write=trains and accelerator.is_main_process)
    return Launch(accelerator, folder, world, accumulated, threads, say)
