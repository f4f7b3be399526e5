"""How many processes load the images of a run: as many as its settings say, or what this machine has the cores for."""

import torch

from swin_mim.counts import counted
from swin_mim.data.loading.cores import processes_here, usable_cores
from swin_mim.training.config.defaults import EMBEDDED
from swin_mim.training.config.pretrain import ImagesConfig

MOST = 32
"""Workers of one training process that are started unasked: batches that wait for it hold a few open files for each
worker, of usually 1,024, and one worker decodes some hundreds of photographs a second."""
MOST_ON_CPU = 4
"""Where the training needs the same cores, and takes far fewer images than a GPU."""


def room_for_workers(device: torch.device, processes: int | None = None) -> int:
    """How many workers of one training process have a core: all of its cores, but for one that drives a GPU.

    Args:
        processes: of this machine that train; None: as the launcher says.
    """
    return max(1, usable_cores() // (processes or processes_here()) - (device.type == "cuda"))


def worker_count(data: ImagesConfig, device: torch.device, processes: int | None = None) -> int:
    """Workers of one training process: data.workers, or what `auto` is here before anybody looks at shared memory.

    Args:
        device: that trains.
        processes: of this machine that train; None: as the launcher says.
    """
    if data.workers != "auto":
        return data.workers
    if data.source == EMBEDDED:  # crops of a picture in memory cost less than to pass them on
        return 0
    share = usable_cores() // (processes or processes_here())
    return max(1, min(share - 1, MOST_ON_CPU if device.type == "cpu" else MOST))


def count_text(data: ImagesConfig, device: torch.device) -> str:
    """What `auto` is here, and why, for the log of a run; empty where there is nothing to load."""
    count, cores, processes = worker_count(data, device), usable_cores(), processes_here()
    if not count:
        return ""
    share = cores // processes
    among = counted(cores, "core") + (f" among {processes} processes" if processes > 1 else "")
    why = f"{among}, less one" if share > count else among
    if share - 1 > count:
        why = f"{among}, which the training uses too" if device.type == "cpu" else f"{among}, and so many at most"
    return f"data.workers auto is {count}: {why}"
