import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest

from swin_mim.training.run.signals import StopSignal

CHILD = """
import signal, sys
from swin_mim.training.run import signals
from swin_mim.training.run.signals import StopSignal

# a process that a script starts in the background ignores SIGINT from its birth
signal.signal(signal.SIGINT, signal.SIG_DFL)

stop = StopSignal().listen()
for line in sys.stdin:
    if line == "leave\\n":
        break
    if line == "later\\n":
        signals._PASSED_ON = 0.0
        print("later", flush=True)
        continue
    print(stop.received, flush=True)
stop.leave()
print("left", flush=True)
sys.stdin.readline()
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


@contextmanager
def child() -> Iterator[subprocess.Popen[str]]:
    """A process inside of `StopSignal` that answers each line with what it has received."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str], line: str = "?") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_the_first_signal_is_only_noted_and_the_second_ends_at_once(
    first: signal.Signals, second: signal.Signals
) -> None:
    with child() as process:
        assert ask(process) == "False"
        process.send_signal(first)
        assert ask(process) == "True"
        assert ask(process) == "True", "it goes on"
        if first == second != signal.SIGINT:
            process.send_signal(second)  # passed on by a launcher that got it too
            assert ask(process) == "True"
            assert ask(process, "later") == "later"
        process.send_signal(second)
        assert process.wait(timeout=10) == 128 + second


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_a_signal_does_what_it_did(number: signal.Signals) -> None:
    with child() as process:
        assert ask(process, "leave") == "left"
        process.send_signal(number)
        assert process.wait(timeout=10) == -number


def test_the_end_of_the_launcher_is_no_second_signal() -> None:
    """A Ctrl-C reaches launcher and trainer at once, and the end of the launcher comes on top."""
    with child() as process:
        assert ask(process) == "False"
        for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGUSR2):
            process.send_signal(number)
            assert ask(process) == "True"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 128 + signal.SIGINT


def test_nohup_holds() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + CHILD
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert ask(it) == "False"
        for _ in range(2):
            it.send_signal(signal.SIGHUP)
            assert ask(it) == "False"
        it.kill()


def test_handlers_are_put_back() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it stays ignored
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = StopSignal().listen()
    assert all(signal.getsignal(number) not in before for number in SIGNALS)
    stop.leave()
    stop.leave()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_ctrl_c_in_a_notebook_leaves_the_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    stop = StopSignal().listen()
    try:
        signal.raise_signal(signal.SIGINT)
        assert stop.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.leave()


def test_a_callers_own_sigusr2_is_put_back() -> None:
    def own(number: int, frame: FrameType | None) -> None: ...

    before = signal.signal(signal.SIGUSR2, own)
    try:
        StopSignal().listen().leave()
        assert signal.getsignal(signal.SIGUSR2) is own
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_signal_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    stop = StopSignal().listen()
    try:
        with caplog.at_level(logging.INFO, "swin_mim.training.run.signals"):
            assert not stop.received
            signal.raise_signal(signal.SIGTERM)
            assert stop.received
    finally:
        stop.leave()
    assert caplog.text.count("Terminated") == 1
    assert "checkpoint" in caplog.text


FOLLOWER = """
import signal, sys
from swin_mim.training.run.signals import StopSignal, follow_launcher

stop = StopSignal().listen()
follow_launcher()
print("following", flush=True)
while not stop.received:
    if not sys.stdin.readline():
        signal.pause()
print("told", flush=True)
"""
LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process of its parent's end")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("name", "follows"), [("accelerate", True), ("torchrun", True), ("shell", False)])
def test_the_end_of_a_launcher_is_a_signal_and_that_of_a_shell_is_not(
    tmp_path: Path, name: str, follows: bool, number: signal.Signals
) -> None:
    (tmp_path / name).write_text(LAUNCHER)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / name), FOLLOWER], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        lines = {launcher.stdout.readline().strip() for _ in range(2)}
        (child,) = (int(line) for line in lines if line.isdecimal())
        assert "following" in lines
        launcher.send_signal(number)
        launcher.wait(timeout=10)
        try:
            if follows:
                assert launcher.stdout.readline().strip() == "told"
            else:
                assert not select.select([launcher.stdout], [], [], 0.5)[0]
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
