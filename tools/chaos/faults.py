"""Run a module with faults in it, each at a chosen place of a run.

    python -m tools.chaos.faults '[{"kind": "signal", "step": 12, "rank": 0}]' swin_mim.recipes.pretrain --config ...

Kinds, all in the process `rank` (default 0) only; with "onwards" a NaN is at all later positions too:
    signal      gets SIGTERM in the middle of the step after `step` steps
    kill        is killed there
    input       the first image of the micro batch that holds position `position` has a NaN
    activation  the output of `module` has a NaN, at that position
    gradient    the gradient of the output of `module` has one
"""

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def main() -> None:
    for fault in json.loads(sys.argv[1]):
        # in a replay, which has one process, every fault is in that one
        if int(os.environ.get("RANK", "0")) == fault.get("rank", 0) or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            FAULTS[fault["kind"]](fault)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def at_step(fault: dict[str, Any]) -> None:
    from swin_mim.training.loop import trainer

    number = {"signal": signal.SIGTERM, "kill": signal.SIGKILL}[fault["kind"]]
    seed_forward = trainer.seed_forward
    steps: list[int] = []

    class Faulty(trainer.Trainer):
        def step(self) -> None:
            steps[:] = [self.state.step]
            super().step()

    def in_the_middle(seed: int, position: int) -> None:
        if steps == [fault["step"]]:
            steps.clear()  # once: a second signal would end the process without a checkpoint
            os.kill(os.getpid(), number)
        seed_forward(seed, position)

    trainer.Trainer = Faulty  # type: ignore[misc]
    trainer.seed_forward = in_the_middle


def at_position(spoil: Callable[[dict[str, Any], Any, list[bool]], None] | None) -> Callable[[dict[str, Any]], None]:
    """Calls `spoil` with the model; what it installs asks a list of one bool whether this is the micro batch. None:
    the model is left as it is, and gets an image with a NaN."""

    def install(fault: dict[str, Any]) -> None:
        from swin_mim.models.simmim import SimMIM
        from swin_mim.training.loop import replay, trainer

        now = [False]
        seed_forward, forward = trainer.seed_forward, SimMIM.forward
        known: list[int] = []

        def note(seed: int, position: int) -> None:
            now[0] = position == fault["position"] or (fault.get("onwards", False) and position > fault["position"])
            seed_forward(seed, position)

        def forward_once_spoilt(self: Any, images: Tensor, *arguments: Any) -> Any:
            if spoil is None:
                images = with_nan(images) if now[0] and self.training else images
            elif id(self) not in known:
                known.append(id(self))
                spoil(fault, self, now)
            return forward(self, images, *arguments)

        trainer.seed_forward = replay.seed_forward = note
        SimMIM.forward = forward_once_spoilt  # type: ignore[assignment, method-assign]

    return install


def with_nan(values: Tensor) -> Tensor:
    """The same with a NaN in its first place."""
    place = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    place[0] = True
    return values.masked_fill(place.view(values.shape), torch.nan)


def spoil_activation(fault: dict[str, Any], model: Any, now: list[bool]) -> None:
    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        return with_nan(output) if now[0] and model.training else None

    model.get_submodule(fault["module"]).register_forward_hook(hook)


def spoil_gradient(fault: dict[str, Any], model: Any, now: list[bool]) -> None:
    def hook(module: Any, inputs: Any, output: Tensor) -> None:
        if now[0] and output.requires_grad:
            output.register_hook(with_nan)

    model.get_submodule(fault["module"]).register_forward_hook(hook)


FAULTS = {
    "signal": at_step,
    "kill": at_step,
    "input": at_position(None),
    "activation": at_position(spoil_activation),
    "gradient": at_position(spoil_gradient),
}


if __name__ == "__main__":
    main()
