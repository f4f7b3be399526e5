import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from swin_mim.errors import UserError
from swin_mim.training.run.lock import lock

HOLDER = """
import os, signal, sys
from pathlib import Path
from swin_mim.training.run.lock import lock
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
