import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from swin_mim.errors import UserError
from swin_mim.training.run.lock import is_held, lock


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swin_mim.training.run.lock._PATIENCE", 0.05)


HOLDER = """
import os, signal, sys
from pathlib import Path
from swin_mim.training.run.lock import is_held, lock
held = lock(Path(sys.argv[1]))
worker = os.fork()
if not worker:
    print(os.getpid(), flush=True)  # it runs: what it inherited it has let go of
    signal.pause()
sys.stdin.read()
os.kill(worker, signal.SIGKILL)
"""


@contextmanager
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has the lock, and a worker that was forked from it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            yield process, worker
        finally:
            process.kill()
            os.kill(worker, signal.SIGKILL)


def released(held: FileLock | None) -> None:
    assert held is not None
    held.release()


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        with pytest.raises(UserError) as caught:
            lock(tmp_path)
        message = str(caught.value)
        assert f"{tmp_path} is in use by process {process.pid} on {os.uname().nodename}, since 20" in message
        assert "--run.name" in message
        assert "\n" not in message
        with pytest.raises(UserError, match=str(process.pid)):
            lock(tmp_path)  # a refusal leaves the lock and the name of its holder as they are


def test_a_second_run_of_the_same_process_is_refused_too(tmp_path: Path) -> None:
    held = lock(tmp_path)
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
        lock(tmp_path)
    released(held)


def test_a_dead_holder_has_no_lock_even_if_its_workers_live(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, worker):
        process.kill()
        process.wait()
        os.kill(worker, 0)  # lives
        released(lock(tmp_path))


def test_a_run_that_ended_leaves_no_lock(tmp_path: Path) -> None:
    for _ in range(2):
        released(lock(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}'])
def test_a_holder_without_a_name(tmp_path: Path, text: str) -> None:
    with holder(tmp_path):
        (tmp_path / "run.lock").write_text(text)
        with pytest.raises(UserError, match="is in use by another process: wait"):
            lock(tmp_path)


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert lock(tmp_path) is None
    assert "cannot be locked (No locks available): nothing keeps two runs out" in caplog.text
    assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()


def test_whether_a_process_has_a_folder_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_held(tmp_path) is None
    assert [*tmp_path.iterdir()] == []
    with holder(tmp_path) as (process, worker):
        name = (tmp_path / "run.lock").read_bytes()
        assert is_held(tmp_path) is True
        process.kill()
        process.wait()
        os.kill(worker, 0)  # lives
        assert is_held(tmp_path) is False
    assert (tmp_path / "run.lock").read_bytes() == name
    held = lock(tmp_path)
    assert is_held(tmp_path) is True  # also where this process itself has it
    released(held)
    assert is_held(tmp_path) is False
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert is_held(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_of_a_holder_without_a_name_nobody_can_tell(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.lock").write_text(text, encoding="latin-1")
    assert is_held(tmp_path) is None


def test_without_locks_nobody_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released(lock(tmp_path))

    def refused(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert is_held(tmp_path) is None


def test_a_run_begins_although_somebody_asks_for_an_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swin_mim.training.run.lock._PATIENCE", 60.0)
    released(lock(tmp_path))
    with (tmp_path / "run.lock").open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(asking, fcntl.LOCK_UN)).start()
        released(lock(tmp_path))
