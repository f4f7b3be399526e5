"""The training loop on a model small enough to compute by hand."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from swin_mim.data.loader import Batch
from swin_mim.training.engine import Plan, fit
from swin_mim.training.run_folder import BrokenImages
from swin_mim.training.run_state import RunState
from swin_mim.training.tracking import RunLog


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def plan(**changes):
    values = {
        "total_steps": 6, "stop_after": 0, "log_every": 2, "save_every": 3, "global_batch": 4, "accumulation": 2,
        "clip_norm": 0.5, "seed": 0, "dataset_size": 100, "max_broken": 0.01,
    }  # fmt: skip
    return Plan(**(values | changes))


class Run:
    """Fits y = w x to given pairs; keeps what the loop did."""

    def __init__(self, folder, plan, batches, *, state=None, rate=lambda step, scale: 0.1 * scale, spoil=None):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulation)
        self.model = torch.nn.Linear(3, 1, bias=False)
        torch.nn.init.constant_(self.model.weight, 0.5)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.1, fused=True)
        prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.events, self.weights = [], []
        self.state = state or RunState()
        log = RunLog(folder, total_steps=plan.total_steps, step=self.state.step, accelerator=self.accelerator)

        def loss_of(batch):
            self.weights.append(self.model.weight.detach().clone())
            loss = prepared(batch.images).square().mean()
            return spoil(loss, batch) if spoil else loss

        self.finished = fit(
            self.accelerator, prepared, self.optimizer, plan=plan, state=self.state, batches=iter(batches),
            loss_of=loss_of, learning_rate=rate, log=log,
            evaluations=[(2, lambda step: self.events.append(f"evaluate {step}") or {"score": step})],
            save=lambda state: self.events.append(f"save {state.step}"),
        )  # fmt: skip


def batches(count, poison=(), broken=0):
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        images = torch.randn(2, 3, generator=generator) * 3
        if i in poison:
            images[0, 0] = torch.nan
        yield Batch(images, 2 * i, [("name", "reason")] * broken, torch.arange(2 * i, 2 * i + 2))


def test_equals_a_loop_by_hand(tmp_path):
    """Accumulated, clipped as a whole, decayed: against the same arithmetic written out with plain AdamW."""
    run = Run(tmp_path, plan(), batches(12), rate=lambda step, scale: 0.1 * scale / (step + 1))
    weight = torch.full((1, 3), 0.5, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.0, weight_decay=0.1, foreach=False, fused=False)
    stream = batches(12)
    for step in range(6):
        images = torch.cat([next(stream).images, next(stream).images])
        weight.grad = torch.autograd.grad((images @ weight.T).square().mean(), weight)[0]
        norm = weight.grad.norm()
        assert norm > 0.5, "nothing to clip"
        weight.grad *= 0.5 / (norm + 1e-6)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
    torch.testing.assert_close(run.model.weight, weight, atol=1e-6, rtol=0)
    assert run.finished
    assert run.state.samples_seen == 24


def test_the_order_of_things(tmp_path):
    run = Run(tmp_path, plan(), batches(12))
    assert run.events == ["evaluate 2", "save 3", "evaluate 4", "evaluate 6", "save 6"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], "loss" in row) for row in rows] == [
        (2, True), (2, False), (4, True), (4, False), (6, True), (6, False)
    ]  # fmt: skip


def test_a_resumed_run_does_not_repeat_what_was_done_at_its_step(tmp_path):
    state = RunState(step=2, samples_seen=8)
    assert Run(tmp_path, plan(), batches(8), state=state).events == ["save 3", "evaluate 4", "evaluate 6", "save 6"]


def test_stop_after_saves_and_leaves(tmp_path):
    run = Run(tmp_path, plan(stop_after=1), batches(2))
    assert not run.finished
    assert run.events == ["save 1"]
    again = Run(tmp_path, plan(stop_after=1), batches(10), state=RunState(step=1, samples_seen=4))
    assert again.finished, "the same command does not continue the run"
    assert run.state.sums["steps"] == 1  # the interval of the log is not over: its sums belong to the state


class FiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, bad):
        return loss * torch.nan if bad else loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.ones(()), None


def test_a_non_finite_loss_with_a_finite_gradient_changes_nothing_either(tmp_path):
    """The gradient of |x| is 0 where x is NaN."""
    run = Run(tmp_path, plan(), batches(12), spoil=lambda loss, batch: FiniteGradient.apply(loss, batch.start == 8))
    assert torch.equal(run.weights[6], run.weights[4])
    assert run.state.skipped == 1


@pytest.mark.parametrize("poison", [4, 5])
def test_a_non_finite_step_changes_nothing(poison, tmp_path, caplog):
    """Micro batches 4 and 5 are step 2: whichever is bad, weights stay, and the next update is as if it never was."""
    run = Run(tmp_path, plan(), batches(12, poison={poison}))
    assert torch.equal(run.weights[6], run.weights[4])
    assert not torch.equal(run.weights[4], run.weights[2])
    assert run.model.weight.isfinite().all()
    assert (run.state.skipped, run.state.skipped_in_a_row) == (1, 0)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert run.optimizer.optimizer.state[run.model.weight]["step"] == 5
    assert run.finished


def test_three_non_finite_steps_in_a_row_end_the_run(tmp_path):
    with pytest.raises(ValueError, match="not finite for 3 steps in a row, up to step 4: the run has diverged"):
        Run(tmp_path, plan(), batches(12, poison={2, 5, 6}))


def test_two_in_a_row_do_not(tmp_path):
    assert Run(tmp_path, plan(), batches(12, poison={2, 5, 8, 10})).state.skipped == 4


def test_broken_images_end_the_run_once_their_share_is_known(tmp_path):
    """Steps of 1000 images: the first may tell, and one of a hundred is the limit."""
    few = plan(global_batch=1000)
    assert Run(tmp_path, few, batches(12, broken=5)).state.broken == 60
    with pytest.raises(ValueError, match=r"12 of 1000 images could not be read, more than data.max_broken 1.00%"):
        Run(tmp_path, few, batches(12, broken=6))


def test_broken_images_are_listed_once(tmp_path):
    path = tmp_path / "broken_images.jsonl"
    for _ in range(2):  # a resumed run knows them
        list(BrokenImages(path).watch(batches(3, broken=2)))
    assert json.loads(path.read_text()) == {"name": "name", "reason": "reason"}


def test_a_torn_list_of_broken_images_is_continued(tmp_path):
    path = tmp_path / "broken_images.jsonl"
    path.write_text('{"name": "a", "reason": "b"}\n{"name": "c", "rea')
    for _ in range(2):
        list(BrokenImages(path).watch(batches(1, broken=1)))
    assert path.read_text().splitlines()[2:] == ['{"name": "name", "reason": "reason"}']
