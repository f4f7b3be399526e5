"""swin-mim report: a page of runs, in a file or served."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from swin_mim.cli.report import main
from swin_mim.evaluation.report.page import LARGEST


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"name": "mine"}, "mask": {"ratio": 0.6}}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    return folder


def test_one_run_is_written_into_its_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run)])
    said = capsys.readouterr().out
    assert said.startswith(f"{run / 'report.html'} (")
    assert "<h1>mine</h1>" in (run / "report.html").read_text()
    assert (run / "report.html").stat().st_size < LARGEST


def test_several_runs_are_written_here(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), str(run)])
    assert capsys.readouterr().out.startswith("report.html (")
    assert "<h1>2 runs</h1>" in Path("report.html").read_text()
    main([str(run), str(run), "--out", "both.html"])
    assert Path("both.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/none"], "the run runs/none does not exist: name the folder of a run"),
        (["runs/mine/config.yaml"], "runs/mine/config.yaml is a file: name the folder of a run"),
        (["runs/mine", "--out", "both"], "--out both must end in .html"),
        (["runs"], "runs is not a run: it has neither config.yaml nor metrics.jsonl"),
        (["runs/mine", "--out", "runs"], "--out runs is a folder: name a file in it"),
        (["runs/mine", "--out", "no/such/file.html"], "--out no/such/file.html: there is no folder no/such"),
        (["runs/mine", "--serve", "--out", "x.html"], "--serve writes no file"),
        (["runs/mine", "--port", "80"], "--port is of --serve"),
        (["runs/mine", "--serve", "--port", "70000"], "--port 70000 must be from 0 to 65535"),
        (["runs/none", "--serve"], "the run runs/none does not exist"),
        (["runs/mine"] * 7, "7 runs are too many to tell apart"),
    ],
)
def test_mistakes_are_one_line(run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_ctrl_c_ends_the_server_in_a_line(run: Path) -> None:
    command = [sys.executable, "-m", "swin_mim", "report", "--serve", str(run)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline()
            assert address.startswith("http://127.0.0.1:")
            server.send_signal(signal.SIGINT)
            out, err = server.communicate(timeout=60)
        finally:
            server.kill()
    assert (out, err, server.returncode) == ("no longer served\n", "", 0)


def test_a_page_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from swin_mim.cli.report import main; main(['runs/mine']);"
        "print(sorted({'torch', 'torchvision', 'accelerate', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
