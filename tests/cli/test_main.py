"""The command swin-mim: its list, its speed, what it says of a name that it doesn't know, and its version."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import swin_mim
from swin_mim.cli.main import COMMANDS, main

HEAVY = {"torch", "tyro", "yaml", "huggingface_hub", "numpy"}


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swin_mim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("flag", [("--help",), ("-h",), ()])
def test_the_commands_are_listed_in_the_order_of_the_work(flag: tuple[str, ...]) -> None:
    done = run(*flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == list(COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_imports_nothing_that_takes_long() -> None:
    script = f"import sys\nfrom swin_mim.cli.main import main\nmain(['--help'])\nassert not {HEAVY} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_does_not_wait_for_torch(name: str) -> None:
    script = f"import sys\nfrom swin_mim.cli.main import main\ntry:\n    main(['{name}', '--help'])\nfinally:\n"
    script += "    assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: swin-mim {name} ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pretain", "error: swin-mim has no command 'pretain': did you mean pretrain?\n"),
        ("xyz", "error: swin-mim has no command 'xyz': swin-mim --help lists the commands\n"),
    ],
)
def test_an_unknown_command_is_one_line(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    assert capsys.readouterr() == ("", message)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"swin-mim {version('swin-mim')}\n"
    assert swin_mim.__version__ == version("swin-mim")


def test_a_checkout_that_is_not_installed_says_so(tmp_path: Path) -> None:
    """On PYTHONPATH, of an interpreter without site-packages."""
    package = tmp_path / "swin_mim"
    package.symlink_to(Path(swin_mim.__file__).parent)
    command = [sys.executable, "-S", "-m", "swin_mim", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert (done.stdout, done.stderr) == ("swin-mim 0+unknown\n", "")
