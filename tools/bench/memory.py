"""Peak memory of a training step: counted on a GPU, and on a CPU the high-water mark of a process."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tools.bench.settings import Mode, Precision, StepSettings, row_name
from tools.bench.timing import Failed, autocast
from tools.bench.training import Contestant
from tools.clone import environment


def own_bytes(contestant: Contestant) -> int:
    """Weights, gradients, buffers and the optimizer's state."""
    model, state = contestant.system.model, contestant.optimizer.state.values()
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [t for entry in state for t in entry.values() if isinstance(t, Tensor)]
    return sum(t.nbytes for t in tensors if t.device.type == "cuda")


def kept_gb(contestant: Contestant, batch: tuple[Tensor, Tensor], precision: Precision) -> float:
    """What a forward pass keeps for the backward pass, in GB: every piece of memory once, without the parameters."""
    system = contestant.system
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, autocast(batch[0].device, precision):
        loss = system.loss(*batch)
    for parameter in system.model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert loss.requires_grad  # it holds on to the graph, so that no memory was used twice
    return sum(kept.values()) / 1e9


def resident_peak_gb() -> float:
    """Peak memory of the whole process with its libraries, in GB."""
    status = Path("/proc/self/status")
    high_water = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if high_water:
        return int(high_water[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def alone(settings: StepSettings) -> bool:
    return len(settings.systems) == len(settings.modes) == len(settings.batch) == 1


def in_children(settings: StepSettings) -> bool:
    """A CPU has no count for each system; a GPU has."""
    return settings.memory and settings.device == "cpu" and not alone(settings)


def peaks_of_children(
    settings: StepSettings, arguments: Sequence[str]
) -> tuple[dict[int, dict[str, float]], dict[int, dict[str, Failed]]]:
    """Peak memory in GB by batch and row, each in a process of its own, as a high-water mark never falls; and whose
    process did not live."""
    peaks: dict[int, dict[str, float]] = {batch: {} for batch in settings.batch}
    lost: dict[int, dict[str, Failed]] = {batch: {} for batch in settings.batch}
    for batch in settings.batch:
        for mode in settings.modes:
            for system in settings.systems:
                peak = peak_of_child(system, mode, batch, arguments)
                if isinstance(peak, Failed):
                    lost[batch][row_name(system, mode)] = peak
                elif peak is not None:
                    peaks[batch][row_name(system, mode)] = peak
    return peaks, lost


def peak_of_child(system: str, mode: Mode, batch: int, arguments: Sequence[str]) -> float | Failed | None:
    """None if the child says why it measures nothing: so will its parent."""
    # two steps, because the optimizer allocates its state at the end of the first
    overrides = ["--systems", system, "--modes", mode, "--batch", str(batch), "--json", "-"]
    overrides += ["--repeats", "1", "--warmup", "1", "--steps", "1", "--no-ceilings", "--no-breakdown"]
    command = [sys.executable, "-m", "tools.bench", *arguments, *overrides]
    child = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return Failed(f"the process that measures its memory failed: {last}")
    (table,) = json.loads(child.stdout)["batches"]
    result = table["results"].get(row_name(system, mode))
    return result and result["peak_memory_gb"]
