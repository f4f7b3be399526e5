import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swin_mim import files
from swin_mim.files import LockHeld, lock, replace_json, replace_text, replacing, sha256, sha256_of_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_new_at_the_end_of_the_block_and_not_before(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_file_as_it_was(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "a.txt"
    replace_text(file, "old")

    def interrupted() -> None:
        with replacing(file) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_reader_never_sees_half_a_json_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "status.json"
    replace_json(file, {"a": 1})

    def fails(self: Path, text: str, encoding: str) -> int:
        with self.open("w") as half:
            half.write(text[:3])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match="disk full"):
        replace_json(file, {"a": 2})
    assert file.read_text() == '{\n "a": 1\n}\n'


def test_a_folder_that_is_not_there_is_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "none" / "a.txt", "a")


def test_a_durable_file_is_flushed_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, flushed = tmp_path / "a.txt", []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append((path, file.exists())))
    replace_text(file, "a", durable=True)
    assert flushed == [(tmp_path / f".a.txt.{os.getpid()}.tmp", False), (tmp_path, True)]
    replace_text(file, "b")
    assert len(flushed) == 2


def test_a_temporary_name_of_ones_own(tmp_path: Path) -> None:
    with replacing(tmp_path / "a", temporary=tmp_path / "b") as temporary:
        temporary.write_text("a")
        assert names(tmp_path) == ["b"]
    assert names(tmp_path) == ["a"]


def test_the_mode_is_the_users_default(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.txt", "a")
    (tmp_path / "b.txt").write_text("b")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "b.txt").stat().st_mode)


def test_the_hash_of_a_file_and_of_parts(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "a") == sha256([b"a", b"", b"bc"]) == hashlib.sha256(b"abc").hexdigest()


def test_a_lock_keeps_others_out_and_the_content_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = lock(path)
    path.write_text("whose it is")
    with pytest.raises(LockHeld):
        lock(path)
    code = f"from pathlib import Path; from swin_mim.files import lock; lock(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "LockHeld" in done.stderr
    assert path.read_text() == "whose it is"
    held.release()
    lock(path).release()
    assert path.read_text() == "whose it is"


def test_who_waits_gets_the_lock_or_gives_up(tmp_path: Path) -> None:
    path, asked = tmp_path / "lock", []
    with ThreadPoolExecutor(1) as other:
        held = other.submit(lock, path).result()

        def cancelled() -> bool:
            asked.append(True)
            return len(asked) == 3

        with pytest.raises(LockHeld):
            lock(path, cancelled=cancelled)
        assert len(asked) == 3

        def released_meanwhile() -> bool:
            if held.is_locked:
                held.release()
            return False

        lock(path, cancelled=released_meanwhile).release()


def test_a_forked_worker_has_no_lock(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from swin_mim.files import lock
held = lock(Path(sys.argv[1]))
worker = os.fork()
if not worker:
    os.close(1)
    signal.pause()
print(worker, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    worker = int(done.stdout)
    os.kill(worker, 0)  # lives
    lock(tmp_path / "lock").release()
    os.kill(worker, 9)


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="not implemented"):
        lock(tmp_path / "lock")
