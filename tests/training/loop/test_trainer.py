"""The training loop on a model small enough to compute by hand."""

import copy
import json
import logging
import math
from itertools import chain, count, islice
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from swin_mim.data.loading.loader import Batch
from swin_mim.data.sources.base import StreamStatus
from swin_mim.data.timing import LoadingTime
from swin_mim.errors import CANNOT_WRITE, STOPPED, UNAVAILABLE, UserError
from swin_mim.training.checkpoints.state import RunState
from swin_mim.training.distributed.prepare import FullModel, PreparedModel
from swin_mim.training.loop import trainer
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.trainer import Evaluation, fit
from swin_mim.training.run import tracking
from swin_mim.training.run.folder import BrokenImages
from swin_mim.training.run.signals import StopSignal
from swin_mim.training.run.tracking import RunLog


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
        "learning_rate": lambda step, scale: 0.1 * scale,
    }  # fmt: skip
    return TrainingSchedule(**(values | changes))


class Memory:
    """Checkpoints that need no disk; the saves of the steps in `full` fail."""

    def __init__(self, model, optimizer, events, full, state):
        self.state = state
        self.model, self.optimizer, self.events, self.full = model, optimizer, events, full
        self.saved = None
        self.failed = 0

    def save(self, state):
        self.events.append(f"save {state.step}")
        self.failed += state.step in self.full
        state_dicts = self.model.state_dict(), self.optimizer.optimizer.state_dict()
        self.saved = copy.deepcopy((vars(state), *state_dicts))

    def finish(self):
        self.events.append("finish")

    def failure_reason(self):
        return "the disk is full" if self.failed == 2 else ""

    def roll_back(self, state):
        if self.saved is None:
            raise UserError("no checkpoint")
        counters, model, optimizer = copy.deepcopy(self.saved)
        self.model.load_state_dict(model)
        self.optimizer.optimizer.load_state_dict(optimizer)
        vars(state).update(counters | {"samples_seen": state.samples_seen, "skipped_in_a_row": 0})
        self.events.append(f"back to {state.step} at image {state.samples_seen}")


class Run:
    """Fits y = w x to given pairs; keeps what the loop did."""

    def __init__(
        self,
        folder,
        plan,
        batches,
        *,
        state=None,
        spoil=None,
        full=(),
        stopped=False,
        supply=None,
        fused=True,
        scaler=None,
    ):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulation)
        if scaler:  # accelerate has none on a CPU
            self.accelerator.scaler, self.accelerator.native_amp = scaler, True
            self.accelerator.state._mixed_precision = "fp16"
        self.model = torch.nn.Linear(3, 1, bias=False)
        torch.nn.init.constant_(self.model.weight, 0.5)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.1, fused=fused)
        prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.events, self.weights, self.skipped = [], [], []
        self.state = state or RunState()
        self.saving = Memory(self.model, self.optimizer, self.events, full, self.state)
        stop = StopSignal()
        stop.received = stopped
        stream = batches if callable(batches) else lambda _: iter(batches)
        log = RunLog(folder, total_steps=plan.total_steps, step=self.state.step, accelerator=self.accelerator)

        def loss_of(batch):
            self.weights.append(self.model.weight.detach().clone())
            loss = prepared(batch.images).square().mean()
            return spoil(loss, batch) if spoil else loss

        run = SimpleNamespace(
            accelerator=self.accelerator,
            stop=stop,
            stream=supply or StreamStatus(),
            log=log,
            skipped=self.skipped.append,
            watch=lambda batches: batches,
            workers=0,
        )
        evaluation = Evaluation(2, lambda step: self.events.append(f"evaluate {step}") or {"score": step})
        trained = PreparedModel(prepared, self.optimizer, FullModel(self.model))
        loader = SimpleNamespace(batches=stream)
        self.finished = fit(run, trained, loss_of, loader, plan, self.saving, [evaluation])


def batches(number, poison=(), broken=0):
    generator = torch.Generator().manual_seed(1)
    for i in range(number):
        images = torch.randn(2, 3, generator=generator) * 3
        if i in poison:
            images[0, 0] = torch.nan
        yield Batch(images, 2 * i, [("name", "reason")] * broken, torch.arange(2 * i, 2 * i + 2))


def stream(poison=()):
    """The endless micro batches from a position on: a function of the position alone."""

    def start(seen):
        for i in count(seen // 2):
            images = torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) * 3
            if i in poison:
                images[0, 0] = torch.nan
            yield Batch(images, 2 * i, [], torch.arange(2 * i, 2 * i + 2))

    return start


def test_equals_a_loop_by_hand(tmp_path):
    """Accumulated, clipped as a whole, decayed: against the same arithmetic written out with plain AdamW."""
    run = Run(tmp_path, plan(learning_rate=lambda step, scale: 0.1 * scale / (step + 1)), batches(12))
    weight = torch.full((1, 3), 0.5, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.0, weight_decay=0.1, foreach=False, fused=False)
    micro_batches = batches(12)
    for step in range(6):
        images = torch.cat([next(micro_batches).images, next(micro_batches).images])
        weight.grad = torch.autograd.grad((images @ weight.T).square().mean(), weight)[0]
        norm = weight.grad.norm()
        assert norm > 0.5, "nothing to clip"
        weight.grad *= 0.5 / (norm + 1e-6)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
    torch.testing.assert_close(run.model.weight, weight, atol=1e-6, rtol=0)
    assert run.finished
    assert run.state.samples_seen == 24


def test_losses_by_name_are_trained_as_their_sum_and_logged_one_by_one(tmp_path):
    """Exact binary shares, over accumulation and over a log interval."""
    (tmp_path / "sum").mkdir()
    whole, losses = Run(tmp_path / "sum", plan(), batches(12)), []

    def parts(loss, batch):
        losses.append(loss.item())
        return {"first": 0.25 * loss, "second": 0.75 * loss}

    run = Run(tmp_path, plan(), batches(12), spoil=parts)
    torch.testing.assert_close(run.model.weight, whole.model.weight, atol=1e-7, rtol=0)
    rows = [row for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert len(rows) == 3
    for number, row in enumerate(rows):
        mean = sum(losses[4 * number : 4 * number + 4]) / 4
        assert row["first"] == pytest.approx(0.25 * mean, rel=1e-6)
        assert row["second"] == pytest.approx(0.75 * mean, rel=1e-6)
        assert row["first"] + row["second"] == pytest.approx(row["loss"], rel=1e-6)
    assert "first" not in (tmp_path / "sum" / "metrics.jsonl").read_text()


def test_the_order_of_things(tmp_path):
    run = Run(tmp_path, plan(), batches(12))
    assert run.events == ["evaluate 2", "save 3", "evaluate 4", "evaluate 6", "save 6", "finish"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], "loss" in row) for row in rows] == [
        (2, True), (2, False), (4, True), (4, False), (6, True), (6, False)
    ]  # fmt: skip


def test_a_resumed_run_does_not_repeat_what_was_done_at_its_step(tmp_path):
    state = RunState(step=2, samples_seen=8)
    assert Run(tmp_path, plan(), batches(8), state=state).events == [
        "save 3",
        "evaluate 4",
        "evaluate 6",
        "save 6",
        "finish",
    ]


def test_stop_after_saves_and_leaves(tmp_path):
    run = Run(tmp_path, plan(stop_after=1), batches(2))
    assert not run.finished
    assert run.events == ["save 1", "finish"]
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


def test_a_loss_scaler_leaves_out_a_non_finite_loss_with_a_finite_gradient_too(tmp_path):
    """It was reported as left out, and had been done."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    spoil = lambda loss, batch: loss + (torch.nan if batch.start == 8 else 0.0)  # noqa: E731
    run = Run(tmp_path, plan(), batches(12), spoil=spoil, scaler=scaler)
    assert not torch.equal(run.weights[4], run.weights[2])
    assert torch.equal(run.weights[6], run.weights[4])
    assert not torch.equal(run.weights[8], run.weights[6])
    assert (run.state.skipped, [skipped.step for skipped in run.skipped]) == (1, [3])
    assert scaler.get_scale() == 512.0


def test_where_the_fused_optimizer_ignores_found_inf_the_loop_leaves_the_step_out(tmp_path, monkeypatch):
    """As on MPS. An optimizer that is not fused stands for that, which refuses to be told of it."""
    monkeypatch.setattr(trainer, "heeds_found_inf", lambda device: False)
    run = Run(tmp_path, plan(), batches(12, poison={4}), fused=False)
    assert torch.equal(run.weights[6], run.weights[4])
    assert run.model.weight.isfinite().all()
    assert (run.state.skipped, run.optimizer.optimizer.state[run.model.weight]["step"]) == (1, 5)


def test_only_mps_ignores_found_inf():
    assert [trainer.heeds_found_inf(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [True, True, False]


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
    (skipped,) = run.skipped
    assert (skipped.step, len(skipped.parts)) == (3, 1)
    assert not math.isfinite(skipped.loss)
    assert (skipped.parts[0].start, skipped.parts[0].indices) == (2 * poison, [2 * poison, 2 * poison + 1])


def test_three_non_finite_steps_in_a_row_without_a_checkpoint_end_the_run(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        Run(tmp_path, plan(save_every=0), batches(12, poison={2, 5, 6}))


def test_three_non_finite_steps_in_a_row_go_back(tmp_path):
    """Steps 4 to 6 (micro batches 6 to 11) are bad: from the checkpoint of step 3, with the images from 24 on."""
    for name in ("back", "by_hand"):
        (tmp_path / name).mkdir()
    run = Run(tmp_path / "back", plan(), stream(poison={6, 9, 10}))
    before, after = ["evaluate 2", "save 3", "evaluate 4"], ["evaluate 4", "evaluate 6", "save 6", "finish"]
    assert run.events == [*before, "back to 3 at image 24", *after]
    assert (run.finished, run.state.step, run.state.samples_seen) == (True, 6, 36)
    assert [skipped.step for skipped in run.skipped] == [4, 5, 6]
    by_hand = Run(tmp_path / "by_hand", plan(), lambda _: chain(islice(stream()(0), 6), stream()(24)))
    assert torch.equal(run.model.weight, by_hand.model.weight)
    rows, expected = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("back", "by_hand")
    )
    assert [(row["step"], row.get("loss")) for row in rows] == [(row["step"], row.get("loss")) for row in expected]


def test_checkpoints_that_cannot_be_written_end_the_run(tmp_path):
    with pytest.raises(UserError, match="the disk is full") as caught:
        Run(tmp_path, plan(save_every=1), batches(12), full={2, 4})
    assert caught.value.code == CANNOT_WRITE
    assert Run(tmp_path, plan(save_every=1), batches(12), full={2}).finished


@pytest.mark.parametrize("code", [UNAVAILABLE, STOPPED])
def test_images_that_run_out_end_the_run_with_a_checkpoint(code, tmp_path):
    supply = StreamStatus()

    def some(seen):
        for number, batch in enumerate(stream()(seen)):
            if number == 2:  # the second step has its images, and it is known that there are no more
                supply.failure = UserError("the server is away", code=code)
            if number == 4:
                raise supply.failure
            yield batch

    saved = []
    memory = Memory.save
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Memory, "save", lambda self, state: (saved.append(state.step), memory(self, state)))
        if code == STOPPED:
            assert not Run(tmp_path, plan(), some, supply=supply).finished
        else:
            with pytest.raises(UserError, match="the server is away") as error:
                Run(tmp_path, plan(), some, supply=supply)
            assert error.value.code == UNAVAILABLE
    assert saved == [2]


def test_a_stop_that_came_before_the_first_step_ends_the_run_after_it(tmp_path):
    run = Run(tmp_path, plan(), batches(12), stopped=True)
    assert (run.finished, run.state.step, run.events) == (False, 1, ["save 1", "finish"])


def test_the_wait_for_checkpoints_is_in_the_metrics(tmp_path):
    Run(tmp_path, plan(save_every=1), batches(12))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    waits = [row["save_wait"] for row in rows if "loss" in row]
    assert len(waits) == 3
    assert all(0 <= wait < 1 for wait in waits)


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


def test_a_run_that_waits_for_images_says_why(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    loading = LoadingTime(read=0.5, decode=0.125)
    now = [0.0]

    def slow():
        for batch in batches(12):
            now[0] += 1.0
            yield batch._replace(seconds=loading)

    for module in (trainer, tracking):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    Run(tmp_path, plan(save_every=6), slow())  # a save in between would start the clock anew
    rows = [row for row in tracking.read_metrics(tmp_path) if "loss" in row]
    assert [row["data_wait"] for row in rows] == [1.0] * 3
    assert [row["read_seconds"] for row in rows] == [2.0] * 3
    assert [row["decode_seconds"] for row in rows] == [0.5] * 3
    assert [row["transform_seconds"] for row in rows] == [0.0] * 3
    (said,) = [message for message in caplog.messages if "waiting for images" in message]
    assert said.startswith("step 4: waiting for images took 100 %")
    assert "Reading files is slow" in said
