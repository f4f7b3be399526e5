import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swin_mim.training.stop_signal import StopSignal

CHILD = """
import signal, sys
from swin_mim.training.stop_signal import StopSignal

# a process that a script starts in the background ignores SIGINT from its birth
signal.signal(signal.SIGINT, signal.SIG_DFL)

with StopSignal() as stop:
    for line in sys.stdin:
        if line == "leave\\n":
            break
        print(stop.received, flush=True)
print("left", flush=True)
sys.stdin.readline()
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@contextmanager
def child() -> Iterator[subprocess.Popen[str]]:
    """A process inside of `StopSignal` that answers each line with what it has received."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
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
        process.send_signal(second)
        assert process.wait(timeout=10) == 128 + second


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_a_signal_does_what_it_did(number: signal.Signals) -> None:
    with child() as process:
        assert ask(process, "leave") == "left"
        process.send_signal(number)
        assert process.wait(timeout=10) == -number


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignal():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(RuntimeError), StopSignal():
        raise RuntimeError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_signal_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("swin_mim"), "propagate", True)
    with caplog.at_level(logging.INFO, "swin_mim.training.stop_signal"), StopSignal() as stop:
        assert not stop.received
        signal.raise_signal(signal.SIGTERM)
        assert stop.received
    assert caplog.text.count("Terminated") == 1
    assert "checkpoint" in caplog.text
