"""One step of a run again, from its newest checkpoint before that step; and where its numbers stop being finite."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from swin_mim.counts import counted
from swin_mim.data.loading.loader import Batch
from swin_mim.errors import UserError
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.distributed.prepare import PreparedModel
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.trainer import Loader, Losses, Saving, fit, seed_forward, summed
from swin_mim.training.run.run import Run


class Replayed(Exception):
    """The step was done again.

    Args:
        findings: what was seen, a line each.
    """

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


def replaying(step: int, position: int | None) -> Callable[..., bool]:
    """What a recipe takes in place of `fit`: up to `step` it trains as before, and that step it looks at.

    Args:
        step: the number that log and metrics give it, from 1.
        position: of the first image of that step; None: where it stands in a run that never went back.

    Raises:
        Replayed: when called, at its end.
        UserError: when called: the run has no such step.
    """

    def loop(
        run: Run,
        trained: PreparedModel[Any],
        task: Callable[[Batch], Losses],
        loader: Loader,
        schedule: TrainingSchedule,
        checkpoints: Saving,
        *_: Any,
    ) -> bool:
        state = checkpoints.state
        if step > schedule.total_steps:
            raise UserError(f"STEP {step} is beyond the run, which has {counted(schedule.total_steps, 'step')}")
        if position is not None:
            state.samples_seen = position - (step - 1 - state.step) * schedule.global_batch
        if state.step < step - 1:
            before = replace(schedule, total_steps=step - 1, stop_after=0, save_every=0)
            run.skipped = lambda skipped: None
            if not fit(run, trained, task, loader, before, _Nowhere(state)):
                raise KeyboardInterrupt
        batches = run.watch(loader.batches(state.samples_seen))
        found = _look(run.accelerator, trained.model, schedule, batches, task)
        raise Replayed([*_parameters_not_finite(trained.model), *found])

    return loop


class _Nowhere:
    """Checkpoints of a run that is only looked at."""

    def __init__(self, state: RunState) -> None:
        self.state = state

    def save(self, state: RunState) -> None: ...

    def finish(self) -> None: ...

    def failure_reason(self) -> str:
        return ""

    def roll_back(self, state: RunState) -> None:
        raise Replayed([f"the steps before step {state.step} are not finite either: replay the first of them"])


def _look(
    accelerator: Accelerator,
    model: Any,
    schedule: TrainingSchedule,
    batches: Iterator[Batch],
    task: Callable[[Batch], Losses],
) -> Iterator[str]:
    """Forward and backward of the next step, without an update -> what was seen."""
    bare = accelerator.unwrap_model(model)
    for _ in range(schedule.accumulation):
        batch = next(batches)
        with accelerator.accumulate(model), _watched(bare) as first:
            seed_forward(schedule.seed, batch.start)
            loss, single = summed(task(batch))
            accelerator.backward(loss)
        named = "".join(f", {name} {value.item():.6g}" for name, value in single.items())
        yield f"images {batch.start} to {batch.start + len(batch.images) - 1} of the run: loss {loss.item():.6g}{named}"
        yield from (f"  {finding}" for finding in first)
    gradients = [(name, p.grad) for name, p in bare.named_parameters() if p.grad is not None]
    wrong = [name for name, gradient in gradients if not gradient.isfinite().all()]
    scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
    norm = torch.stack([gradient.norm() for _, gradient in gradients]).norm() / scale
    yield f"gradient norm {norm.item():.6g}; not finite: the gradients of {len(wrong)} of {len(gradients)} parameters"
    yield from (f"  {name}" for name in wrong[:3])


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """While it is entered, the list gets the first module whose output, and the first whose gradient, is not finite."""
    found: dict[str, str] = {}
    findings: list[str] = []

    def note(kind: str, name: str, before: Any, after: Any) -> None:
        bad, healthy = _not_finite(after), not _not_finite(before)
        if bad and kind not in found and (kind == "output" or not found):  # after a bad output every gradient is
            found[kind] = name
            values = [tensor.detach().abs().max().item() for tensor in _tensors(before) if tensor.numel()]
            origin = f"finite, up to {max(values, default=0.0):.3g}" if healthy else "not finite either"
            findings.append(f"{kind} not finite first in {name} ({bad}); what it came from is {origin}")

    def forward(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: note("output", name, inputs, output)

    def backward(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, outputs: note("gradient", name, outputs, inputs)

    hooks = []
    # what a backward hook sees must not be overwritten by the module itself; the numbers stay the same
    overwriting = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in overwriting:
        module.inplace = False  # type: ignore[assignment]
    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(forward(name or "the loss")))
        hooks.append(module.register_full_backward_hook(backward(name or "the loss")))
    try:
        with warnings.catch_warnings():
            # of modules that take no gradient to their input, which is the images
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            # of modules whose output is a dict: those inside them are watched
            warnings.filterwarnings("ignore", message="For backward hooks to be called", category=UserWarning)
            yield findings
    finally:
        for hook in hooks:
            hook.remove()
        for module in overwriting:
            module.inplace = True  # type: ignore[assignment]


def _not_finite(values: Any) -> str:
    """ "3 of 4096 values", empty if all are finite."""
    tensors = list(_tensors(values))
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors)
    return f"{bad} of {sum(tensor.numel() for tensor in tensors)} values" if bad else ""


def _tensors(values: Any) -> Iterator[Tensor]:
    """The floating-point tensors in an argument or output."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


def _parameters_not_finite(model: nn.Module) -> list[str]:
    names = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    return [f"before the step these weights are not finite: {', '.join(names)}"] if names else []
