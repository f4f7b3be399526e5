import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn

from swin_mim.errors import CANNOT_WRITE, DATA_ERROR, UserError
from swin_mim.files import replace_json
from swin_mim.training.checkpoints import manager, store
from swin_mim.training.checkpoints import state as checkpoint_state
from swin_mim.training.checkpoints.manager import Checkpoints
from swin_mim.training.checkpoints.model_state import load_model, load_optimizer, optimizer_tensors
from swin_mim.training.checkpoints.state import Best, RunState, newest_checkpoint, published_weights, read_state
from swin_mim.training.distributed.weight_average import WeightAverage
from swin_mim.training.loop.optim import adamw
from swin_mim.weights.safetensors_writer import write_tensors

FILES = ("MANIFEST.json", "deepspeed/state/shard.bin", "model.safetensors", "trainer.json")


def committed(folder: Path, step: int) -> Path:
    """A checkpoint as small as one can be, with a file in a folder of its own."""
    staging = store.stage(folder, step)
    (staging / "deepspeed" / "state").mkdir(parents=True)
    (staging / "deepspeed" / "state" / "shard.bin").write_bytes(bytes(range(64)))
    write_tensors({"weight": torch.full((2, 3), float(step))}, staging / "model.safetensors")
    replace_json(staging / "trainer.json", {"step": step})
    return store.commit(staging, step)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_the_newest_is_the_highest_step_and_not_the_latest_date(tmp_path: Path) -> None:
    assert store.newest(tmp_path / "nothing") is None
    assert store.newest(tmp_path) is None
    for step, age in ((900, 0), (10_000, 500), (2_000, 1000)):
        path = committed(tmp_path, step)
        for file in (path, *path.rglob("*")):
            os.utime(file, (10**9 + age, 10**9 + age))
    assert store.newest(tmp_path) == tmp_path / "step_0000010000"


def test_a_committed_checkpoint_holds_what_was_staged(tmp_path: Path) -> None:
    path = committed(tmp_path, 7)
    assert path == tmp_path / "step_0000000007"
    assert sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()) == list(FILES)
    assert names(tmp_path) == {path.name}
    assert store.verify(path) == ""
    assert load_file(path / "model.safetensors")["weight"].tolist() == [[7.0] * 3] * 2
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert (manifest["step"], set(manifest["files"])) == (7, set(FILES[1:]))


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_bit_flip_is_seen(tmp_path: Path, name: str) -> None:
    path = committed(tmp_path, 3)
    whole = (path / name).read_bytes()
    draw = random.Random(name)
    damaged = [whole[:size] for size in range(0, len(whole), 7)] + [whole[:-1], whole + b"\n"]
    for bit in (draw.randrange(8 * len(whole)) for _ in range(300)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(data))
    if name == "MANIFEST.json":
        damaged.remove(whole + b"\n")  # says the same
    for data in damaged:
        (path / name).write_bytes(data)
        assert store.verify(path) != "", data
    (path / name).write_bytes(whole)
    assert store.verify(path) == ""


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flip", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_a_broken_one_is_taken(
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    for step in (1, 2, 3):
        committed(tmp_path, step)
    damage(tmp_path / "step_0000000003" / name)
    with caplog.at_level(logging.WARNING, "swin_mim.training.checkpoints.store"):
        assert store.newest(tmp_path) == tmp_path / "step_0000000002"
    assert names(tmp_path) == {"step_0000000001", "step_0000000002", "bad_step_0000000003"}
    assert "step_0000000003" in caplog.text
    assert name in caplog.text


def test_a_broken_one_replaces_an_older_broken_one_of_its_step(tmp_path: Path) -> None:
    for _ in range(2):
        flip(committed(tmp_path, 5) / "trainer.json")
        assert store.newest(tmp_path) is None
    assert names(tmp_path) == {"bad_step_0000000005"}


def test_a_checkpoint_under_the_name_of_another_step_is_broken(tmp_path: Path) -> None:
    committed(tmp_path, 1).rename(tmp_path / "step_0000000009")
    assert "step 1" in store.verify(tmp_path / "step_0000000009")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"digest": null}', "[" * 50, "\x00"])
def test_a_manifest_that_is_none_is_broken(tmp_path: Path, text: str) -> None:
    path = committed(tmp_path, 1)
    (path / "MANIFEST.json").write_text(text)
    assert "MANIFEST.json" in store.verify(path)


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    path = committed(tmp_path, 4)
    for name in (
        "step_5",
        "step_00000000005",
        "step_0000000005.bak",
        "xstep_0000000005",
        "bad_step_0000000006",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (path / "notes.txt").write_text("mine")
    before = names(tmp_path)
    assert store.newest(tmp_path) == path
    store.prune(tmp_path, keep=1)
    assert names(tmp_path) == before


def test_a_file_under_the_name_of_a_checkpoint_is_set_aside(tmp_path: Path) -> None:
    path = committed(tmp_path, 4)
    (tmp_path / "step_0000000005").write_text("no folder")
    assert store.newest(tmp_path) == path


def test_a_staged_folder_is_no_candidate_and_the_next_save_sweeps_it(tmp_path: Path) -> None:
    path = committed(tmp_path, 1)
    whole = store.stage(tmp_path, 2)
    shutil.copytree(path, whole, dirs_exist_ok=True)
    assert store.newest(tmp_path) == path
    trash = tmp_path / ".trash_step_0000000000"  # of a deletion that was interrupted
    shutil.copytree(path, trash)
    assert store.newest(tmp_path) == path
    staging = store.stage(tmp_path, 3)
    assert names(tmp_path) == {path.name, staging.name}
    assert list(staging.iterdir()) == []


def test_a_step_that_is_saved_again_is_replaced(tmp_path: Path) -> None:
    flip(committed(tmp_path, 2) / "trainer.json")
    assert store.verify(committed(tmp_path, 2)) == ""


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_prune_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    steps = [9, 100, 30, 4]
    for step in steps:
        committed(tmp_path, step)
    store.prune(tmp_path, keep)
    assert names(tmp_path) == {f"step_{step:010d}" for step in sorted(steps)[-keep:]}


@pytest.mark.parametrize(
    ("best", "kept"),
    [
        (None, {30, 100}),
        (4, {4, 30, 100}),
        (9, {9, 30, 100}),
        (30, {30, 100}),
        (100, {30, 100}),
        (5, {30, 100}),  # it is gone: another run's, or set aside
    ],
)
def test_prune_keeps_the_best_besides(tmp_path: Path, best: int | None, kept: set[int]) -> None:
    for step in (9, 100, 30, 4):
        committed(tmp_path, step)
    store.prune(tmp_path, 2, besides=best)
    assert names(tmp_path) == {f"step_{step:010d}" for step in kept}
    assert not any(store.verify(path) for path in store.steps_on_disk(tmp_path))


def test_prune_keeps_one_of_so_many_steps(tmp_path: Path) -> None:
    for step in (10, 20, 25, 30, 40, 50):
        committed(tmp_path, step)
        store.prune(tmp_path, 2, every=20)
    assert names(tmp_path) == {f"step_{step:010d}" for step in (20, 40, 50)}


@pytest.mark.parametrize("step", [0, 7, 9_999_999_999])
def test_the_path_of_a_step_is_where_it_is_committed(tmp_path: Path, step: int) -> None:
    assert store.path_of(tmp_path / "none", step) == tmp_path / "none" / f"step_{step:010d}"
    assert committed(tmp_path, step) == store.path_of(tmp_path, step)


def test_all_is_flushed_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[int | str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def recorded_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    path = committed(tmp_path, 1)
    assert events.count("rename") == 1
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    inside = {item.stat().st_ino: item for item in (path, *path.rglob("*"))}
    assert set(before) == set(inside), "each file and folder, and nothing else"
    order = [inside[number].name for number in before if isinstance(number, int) and inside[number].is_file()]
    assert order[-1] == "MANIFEST.json"
    assert after == [tmp_path.stat().st_ino, tmp_path.parent.stat().st_ino]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from swin_mim.files import replace_json
from swin_mim.training.checkpoints import store

root = Path(sys.argv[1])

def save(folder, step):
    staging = store.stage(folder, step)
    for name in ("model.safetensors", "optimizer.safetensors"):
        with (staging / name).open("wb", buffering=0) as file:
            file.write(b"a" * 50)
            tick()
            file.write(b"b" * 50)
    replace_json(staging / "trainer.json", {"step": step})
    store.commit(staging, step)
    store.prune(folder, keep=2)

def tick():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def ticking(function):
    def wrapped(*args, **kwargs):
        tick()
        return function(*args, **kwargs)
    return wrapped

left = 0
save(root / "start", 1)
save(root / "start", 2)
for module, name in ((os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "rename"), (os, "replace"),
                     (Path, "rename"), (Path, "replace"), (Path, "write_text"), (Path, "mkdir")):
    setattr(module, name, ticking(getattr(module, name)))
moment, status = 0, -1
while status != 0:
    moment += 1
    left = 0
    shutil.copytree(root / "start", root / str(moment))
    child = os.fork()
    if not child:
        left = moment
        save(root / str(moment), 3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
print(moment)
"""


def test_a_process_killed_at_any_moment_of_a_save_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    moments = int(done.stdout)
    assert moments > 20
    found = []
    for moment in range(1, moments + 1):
        folder = tmp_path / str(moment)
        faults = [store.verify(path) for path in store.steps_on_disk(folder)]
        assert not any(faults), "neither half-written nor half-deleted looks like a checkpoint"
        newest = store.newest(folder)
        assert newest is not None
        found.append(newest.name)
        # The next save leaves no trace of the accident.
        committed(folder, 4)
        store.prune(folder, keep=2)
        assert names(folder) == {newest.name, "step_0000000004"}
    old, new = "step_0000000002", "step_0000000003"
    assert found == [old] * found.count(old) + [new] * found.count(new), "one moment makes the checkpoint"
    assert found.count(old) > 10
    assert found.count(new) > 2


def model_and_optimizer(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    optimizer = adamw(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_weights_and_moments_come_back_bit_for_bit(tmp_path: Path, steps: int) -> None:
    model, optimizer = model_and_optimizer(seed=1)
    train(model, optimizer, range(steps))
    write_tensors(model.state_dict(), tmp_path / "model.safetensors")
    write_tensors(optimizer_tensors(optimizer, model), tmp_path / "optimizer.safetensors")

    resumed, its_optimizer = model_and_optimizer(seed=2)
    load_model(resumed, tmp_path / "model.safetensors")
    load_optimizer(its_optimizer, resumed, tmp_path / "optimizer.safetensors")
    for old, new in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(old, new)
        assert set(optimizer.state[old]) == set(its_optimizer.state[new]) == {"step", "exp_avg", "exp_avg_sq"}
        for moment, value in optimizer.state[old].items():
            loaded = its_optimizer.state[new][moment]
            assert torch.equal(value, loaded)
            assert (value.dtype, value.shape) == (loaded.dtype, loaded.shape)
        assert its_optimizer.state[new]["step"] == steps

    # A run that is resumed twice saves what it loaded.
    write_tensors(optimizer_tensors(its_optimizer, resumed), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "optimizer.safetensors").read_bytes()

    # The file may go: the moments do not hang on it.
    (tmp_path / "optimizer.safetensors").unlink()
    train(model, optimizer, range(steps, steps + 3))
    train(resumed, its_optimizer, range(steps, steps + 3))
    for old, new in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(old, new)


def test_loading_keeps_the_settings_of_this_run(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(seed=1)
    train(model, optimizer, range(1))
    write_tensors(optimizer_tensors(optimizer, model), tmp_path / "o.safetensors")
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    load_optimizer(optimizer, model, tmp_path / "o.safetensors")
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]


def test_saving_does_not_touch_the_optimizer_of_a_model_with_frozen_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    optimizer = adamw(model)
    train(model, optimizer, range(1))
    before = optimizer.state_dict()
    write_tensors(optimizer_tensors(optimizer, model), tmp_path / "o.safetensors")
    assert {key.split("/")[1] for key in load_file(tmp_path / "o.safetensors")} == {"1.weight", "1.bias"}
    assert optimizer.state_dict()["state"].keys() == before["state"].keys()
    load_optimizer(optimizer, model, tmp_path / "o.safetensors")


def test_moments_of_an_unknown_parameter_are_refused(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer(seed=1)
    path = tmp_path / "o.safetensors"
    save_file({"exp_avg/head.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError) as caught:
        load_optimizer(optimizer, model, path)
    assert "exp_avg/head.weight" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_weights_load_strictly(tmp_path: Path, change: str) -> None:
    model, _ = model_and_optimizer(seed=1)
    weights = dict(model.state_dict())
    if change == "more":
        weights["extra"] = torch.zeros(1)
    else:
        del weights["0.bias"]
    write_tensors(weights, tmp_path / "m.safetensors")
    with pytest.raises(RuntimeError, match="extra" if change == "more" else "0.bias"):
        load_model(model, tmp_path / "m.safetensors")


def run_checkpoints(folder: Path, init: int, **facts: object) -> Checkpoints:
    """The checkpoints of a run of one process."""
    model, optimizer = model_and_optimizer(init)
    accelerator = SimpleNamespace(
        is_main_process=True,
        wait_for_everyone=lambda: None,
        distributed_type=DistributedType.NO,
        num_processes=1,
        scaler=None,
    )
    wrapped = SimpleNamespace(optimizer=optimizer)
    return Checkpoints(folder, accelerator, model, model, wrapped, keep=2, facts=facts)  # type: ignore[arg-type]


def save(run: Checkpoints, state: RunState) -> None:
    """To the disk, and not only on its way."""
    run.save(state)
    run.writer.wait()


def test_a_run_is_saved_without_pickle_and_comes_back(tmp_path: Path) -> None:
    first = run_checkpoints(tmp_path, 1, images="abc", seed=0)
    train(first.model, first.optimizer.optimizer, range(3))
    state = RunState(
        step=3,
        samples_seen=24,
        skipped=1,
        broken=2,
        sums={"steps": 3.0, "loss": 0.1 + 0.2, "grad_norm": 1 / 3},
    )
    save(first, state)
    path = tmp_path / "step_0000000003"
    assert names(path) == {"MANIFEST.json", "trainer.json", "model.safetensors", "optimizer.safetensors"}
    for file in path.iterdir():
        if file.suffix == ".json":
            assert isinstance(json.loads(file.read_text()), dict)
        else:
            assert load_file(file)
            assert file.read_bytes()[8:9] == b"{", "a safetensors header, not a zip of pickles"
    second = run_checkpoints(tmp_path, 2, images="abc", seed=0)
    assert second.restore(path) == state
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])


def test_a_run_on_other_images_is_refused(tmp_path: Path) -> None:
    first = run_checkpoints(tmp_path, 1, images="abc")
    train(first.model, first.optimizer.optimizer, range(1))
    save(first, RunState(step=1))
    with pytest.raises(UserError, match=r"images abc, now it is xyz") as caught:
        run_checkpoints(tmp_path, 1, images="xyz").restore(tmp_path / "step_0000000001")
    assert "step_0000000001" in str(caught.value)


# The best step and the average of the weights.


def averaged(folder: Path, init: int) -> Checkpoints:
    """The checkpoints of a run with a running average."""
    checkpoints = run_checkpoints(folder, init)
    return replace(checkpoints, average=WeightAverage(checkpoints.model, 0.9))


def train_and_follow(checkpoints: Checkpoints, steps: range) -> None:
    assert checkpoints.average is not None
    for step in steps:
        train(checkpoints.model, checkpoints.optimizer.optimizer, range(step, step + 1))
        checkpoints.average.update(step)


@pytest.fixture
def one_process() -> Iterator[None]:
    PartialState(cpu=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.mark.parametrize("best", [None, Best(2, 1 / 3), Best(3, float("-1e-30"))])
def test_the_best_step_so_far_comes_back(tmp_path: Path, best: Best | None) -> None:
    first = run_checkpoints(tmp_path, 1)
    train(first.model, first.optimizer.optimizer, range(1))
    state = RunState(step=3, samples_seen=24, broken=1, sums={"loss": 0.5}, best=best)
    save(first, state)
    path = tmp_path / "step_0000000003"
    assert run_checkpoints(tmp_path, 2).restore(path) == state == read_state(path)
    assert read_state(path).best == best


def test_a_checkpoint_from_before_there_was_a_best_step_is_read(tmp_path: Path) -> None:
    state = asdict(RunState(step=5, samples_seen=40))
    del state["best"]
    replace_json(tmp_path / "trainer.json", {"state": state})
    assert read_state(tmp_path) == RunState(step=5, samples_seen=40)


def test_the_best_checkpoint_stays_while_newer_ones_come_and_go(tmp_path: Path) -> None:
    run = run_checkpoints(tmp_path, 1)
    state = RunState()
    for step, best in ((1, None), (2, Best(2, 0.5)), (3, None), (4, None), (5, None), (6, Best(6, 0.6)), (7, None)):
        train(run.model, run.optimizer.optimizer, range(step - 1, step))
        state.step, state.best = step, best or state.best
        save(run, state)
        kept = {max(1, step - 1), step} | ({state.best.step} if state.best else set())
        assert names(tmp_path) == {f"step_{step:010d}" for step in kept}
    assert read_state(store.path_of(tmp_path, 6)).best == Best(6, 0.6)


def test_the_average_comes_back_bit_for_bit_and_goes_on(tmp_path: Path) -> None:
    first, second = averaged(tmp_path, 1), averaged(tmp_path, 2)
    train_and_follow(first, range(3))
    save(first, RunState(step=3))
    path = tmp_path / "step_0000000003"
    assert names(path) >= {"average.safetensors", "model.safetensors"}
    second.restore(path)
    for steps in (range(0), range(3, 6)):
        train_and_follow(first, steps)
        train_and_follow(second, steps)
        assert first.average is not None
        assert second.average is not None
        for name, value in first.average.state().items():
            assert torch.equal(value, second.average.state()[name]), name
            assert torch.equal(first.model.state_dict()[name], second.model.state_dict()[name]), name
            assert not torch.equal(value, first.model.state_dict()[name]), "the test could not tell one from the other"


def test_without_an_average_there_is_no_file_of_it(tmp_path: Path) -> None:
    run = run_checkpoints(tmp_path, 1)
    train(run.model, run.optimizer.optimizer, range(1))
    save(run, RunState(step=1))
    assert not list(tmp_path.rglob("average*"))


def test_the_average_is_published_where_there_is_one(tmp_path: Path) -> None:
    run = averaged(tmp_path / "averaged", 1)
    train_and_follow(run, range(3))
    save(run, RunState(step=3))
    plain = replace(run, folder=tmp_path / "plain", average=None)
    save(plain, RunState(step=3))
    assert run.average is not None
    for folder, expected in ((run.folder, run.average.state()), (plain.folder, run.model.state_dict())):
        published = published_weights(store.path_of(folder, 3))
        assert published.keys() == run.model.state_dict().keys()
        assert all(torch.equal(published[name], value) for name, value in expected.items())


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flip", "missing"])
@pytest.mark.parametrize("name", ["average.safetensors", "model.safetensors", "trainer.json", "MANIFEST.json"])
def test_damaged_weights_are_not_published(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    run = averaged(tmp_path, 1)
    train_and_follow(run, range(1))
    save(run, RunState(step=1))
    path = tmp_path / "step_0000000001"
    damage(path / name)
    with pytest.raises(UserError) as caught:
        published_weights(path)
    message = str(caught.value)
    assert str(path) in message
    assert name in message
    assert "--save.export best or last" in message
    assert "\n" not in message


def test_weights_that_are_gone_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step_0000000007, .* is broken \(MANIFEST.json cannot be read"):
        published_weights(store.path_of(tmp_path, 7))


def test_the_newest_checkpoint_is_found(tmp_path: Path, one_process: None) -> None:
    assert newest_checkpoint(tmp_path / "nothing") is None
    assert newest_checkpoint(tmp_path) is None
    for step in (1, 2):
        committed(tmp_path, step)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_0000000002"
    flip(tmp_path / "step_0000000002" / "model.safetensors")
    assert newest_checkpoint(tmp_path) == tmp_path / "step_0000000001"
    assert names(tmp_path) == {"step_0000000001", "bad_step_0000000002"}


def test_a_run_of_which_all_is_broken_does_not_start_from_scratch(tmp_path: Path, one_process: None) -> None:
    for step in (1, 2):
        flip(committed(tmp_path, step) / "trainer.json")
    for _ in range(2):  # nor at the second try, when they were set aside before
        with pytest.raises(UserError, match=r"every checkpoint in .* is broken and was set aside as bad_") as caught:
            newest_checkpoint(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for path in tmp_path.iterdir():
        shutil.rmtree(path)
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("told", [[None, False], [Path("step_0000000005"), False], [None, True]])
def test_other_processes_believe_the_main_one(
    tmp_path: Path, told: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not look: on a shared disk the main one may just be setting a broken checkpoint aside."""
    flip(committed(tmp_path, 1) / "trainer.json")
    monkeypatch.setattr(checkpoint_state, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(checkpoint_state, "broadcast_object_list", lambda own: own if any(own) else told)
    if told[1]:
        with pytest.raises(UserError, match="is broken"):
            newest_checkpoint(tmp_path)
    else:
        assert newest_checkpoint(tmp_path) == told[0]
    assert names(tmp_path) == {"step_0000000001"}


# Beside the training.


def train_on(run: Checkpoints, steps: range) -> None:
    train(run.model, run.optimizer.optimizer, steps)


def test_what_is_trained_meanwhile_does_not_reach_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is held up until weights, moments and counters have moved on."""
    may_write = threading.Event()
    written = manager.write_tensors

    def late(tensors: dict[str, torch.Tensor], path: Path) -> str:
        assert may_write.wait(30)
        return written(tensors, path)

    monkeypatch.setattr(manager, "write_tensors", late)
    run = averaged(tmp_path, 1)
    train_and_follow(run, range(2))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert run.average is not None
    average = {name: value.clone() for name, value in run.average.state().items()}
    state = RunState(step=2, samples_seen=16, sums={"loss": 1.0})
    run.save(state)
    assert not any(tmp_path.rglob("*.safetensors")), "save() waited for the disk"
    train_and_follow(run, range(2, 4))
    state.step, state.samples_seen, state.sums = 4, 32, None
    may_write.set()
    run.writer.wait()
    path = tmp_path / "step_0000000002"
    assert read_state(path) == RunState(step=2, samples_seen=16, sums={"loss": 1.0})
    for name, value in load_file(path / "model.safetensors").items():
        assert torch.equal(value, before[name])
        assert not torch.equal(value, run.model.state_dict()[name])
    assert all(torch.equal(value, average[name]) for name, value in load_file(path / "average.safetensors").items())
    assert {value.item() for key, value in load_file(path / "optimizer.safetensors").items() if "step/" in key} == {2}


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    run = run_checkpoints(tmp_path, 1)
    train_on(run, range(1))
    for step in range(1, 6):
        run.save(RunState(step=step))
    run.writer.wait()
    assert names(tmp_path) == {"step_0000000004", "step_0000000005"}
    assert not any(store.verify(path) for path in store.steps_on_disk(tmp_path))


def full_disk(limit: int) -> Callable[[dict[str, torch.Tensor], Path], str]:
    def write(tensors: dict[str, torch.Tensor], path: Path) -> str:
        path.write_bytes(b"x" * limit)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, one_process: None
) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    run = run_checkpoints(tmp_path, 1)
    train_on(run, range(1))
    save(run, RunState(step=1))
    with monkeypatch.context() as broken:
        broken.setattr(manager, "write_tensors", full_disk(100))
        for step in (2, 3):
            save(run, RunState(step=step))
            assert names(tmp_path) == {"step_0000000001"}, "what was written in part is removed: it takes up room"
            assert run.failure_reason() == ""
        assert "the checkpoint of step 3 could not be written (No space left on device)" in caplog.text
        with pytest.raises(UserError, match="No space left on device") as caught:
            run.finish()
        assert caught.value.code == CANNOT_WRITE
    save(run, RunState(step=4))
    run.finish()
    assert names(tmp_path) == {"step_0000000001", "step_0000000004"}
    monkeypatch.setattr(manager, "write_tensors", full_disk(100))
    for step in (5, 6, 7):
        assert run.failure_reason() == "", "the count begins again after a success"
        save(run, RunState(step=step))
    assert "3 checkpoints in a row could not be written" in run.failure_reason()
    assert names(tmp_path) == {"step_0000000001", "step_0000000004"}


def test_an_error_that_is_ours_is_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(tensors: dict[str, torch.Tensor], path: Path) -> str:
        raise KeyError("oh")

    run = run_checkpoints(tmp_path, 1)
    train_on(run, range(1))
    monkeypatch.setattr(manager, "write_tensors", wrong)
    run.save(RunState(step=1))
    with pytest.raises(KeyError, match="oh"):
        run.writer.wait()
    run.writer.wait()  # it is raised once


def test_what_the_disk_has_wrong_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that changes between the memory and the disk."""
    written = manager.write_tensors

    def spoilt(tensors: dict[str, torch.Tensor], path: Path) -> str:
        digest = written(tensors, path)
        flip(path)
        return digest

    run = run_checkpoints(tmp_path, 1)
    train_on(run, range(1))
    save(run, RunState(step=1))
    monkeypatch.setattr(manager, "write_tensors", spoilt)
    save(run, RunState(step=2))
    assert names(tmp_path) == {"step_0000000001"}
    assert run.writer.reason == "model.safetensors is not on the disk as it was written"


def test_back_to_the_newest_checkpoint_and_on_behind_the_images_seen(tmp_path: Path, one_process: None) -> None:
    run = run_checkpoints(tmp_path, 1, images="abc")
    train_on(run, range(2))
    state = RunState(step=2, samples_seen=16, broken=1, sums={"loss": 0.5}, best=Best(2, 0.25))
    run.save(state)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    for number in (1, 2):
        train_on(run, range(2, 5))
        state.step, state.samples_seen, state.skipped, state.skipped_in_a_row = 5, 16 + 24 * number, 3 * number, 3
        state.broken, state.sums, state.best = 4, None, Best(5, 0.5)
        run.roll_back(state)
        assert state == RunState(
            step=2,
            samples_seen=16 + 24 * number,
            skipped=3 * number,
            broken=4,
            rollbacks=number,
            sums={"loss": 0.5},
            best=Best(2, 0.25),
        )
        assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    with pytest.raises(UserError, match="2 returns to a checkpoint did not help: the run has diverged") as caught:
        run.roll_back(state)
    assert caught.value.code == DATA_ERROR
    assert "\n" not in str(caught.value)


def test_the_way_back_does_not_need_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None
) -> None:
    run = run_checkpoints(tmp_path, 1)
    train_on(run, range(1))
    save(run, RunState(step=1, samples_seen=8))
    monkeypatch.setattr(manager, "write_tensors", full_disk(10))
    save(run, RunState(step=2, samples_seen=16))
    state = RunState(step=5, samples_seen=40, skipped_in_a_row=3)
    run.roll_back(state)
    assert (state.step, state.samples_seen) == (1, 40)


def test_a_trash_that_cannot_be_removed_is_no_reason_not_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, where another process has a file open."""
    remove = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if ".trash_" not in str(path):
            remove(path, ignore_errors=ignore_errors)
        elif not ignore_errors:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(shutil, "rmtree", busy)
    run = run_checkpoints(tmp_path, 1)
    train_on(run, range(1))
    for step in range(1, 6):
        save(run, RunState(step=step))
        assert store.newest(tmp_path) == store.path_of(tmp_path, step)


def test_without_a_checkpoint_there_is_no_way_back(tmp_path: Path, one_process: None) -> None:
    run = run_checkpoints(tmp_path, 1)
    with pytest.raises(UserError, match="there is no checkpoint yet: the run has diverged"):
        run.roll_back(RunState(step=3, skipped_in_a_row=3))
