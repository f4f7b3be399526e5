"""The page that a training writes of itself: when, by whom, and that nothing about it ends the training."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_runs
import pytest

from swin_mim.evaluation.report import page
from swin_mim.evaluation.report.keep import report_kept
from swin_mim.evaluation.report.page import REPORT


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "plotly_js", lambda: "")


def run_in(folder: Path, *, report: bool = True, is_main: bool = True, begun: bool = True) -> Any:
    log = {"log": None} if begun else {}
    return SimpleNamespace(
        folder=folder, is_main=is_main, config=SimpleNamespace(log=SimpleNamespace(report=report)), **log
    )


def test_it_is_written_at_an_evaluation_and_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = made_runs.pretraining(tmp_path / "demo")
    with report_kept(run_in(folder)) as write:
        assert not (folder / REPORT).exists()
        assert write(100) == {}
        assert "<h1>demo</h1>" in (folder / REPORT).read_text()
        (folder / REPORT).unlink()
    assert (folder / REPORT).is_file()
    assert f"the run as a page: {folder / REPORT}" in caplog.text


@pytest.mark.parametrize("without", [{"report": False}, {"is_main": False}])
def test_it_is_not_written(tmp_path: Path, without: dict[str, bool]) -> None:
    folder = made_runs.pretraining(tmp_path / "demo")
    with report_kept(run_in(folder, **without)) as write:
        assert write(100) == {}
    assert not (folder / REPORT).exists()


def test_of_a_run_that_has_not_begun_there_is_none(tmp_path: Path) -> None:
    folder = made_runs.pretraining(tmp_path / "demo")
    with pytest.raises(ZeroDivisionError), report_kept(run_in(folder, begun=False)):
        raise ZeroDivisionError
    assert not (folder / REPORT).exists()


def test_of_a_run_that_fails_there_is_one(tmp_path: Path) -> None:
    folder = made_runs.pretraining(tmp_path / "demo")
    with pytest.raises(ZeroDivisionError), report_kept(run_in(folder)):
        raise ZeroDivisionError
    assert (folder / REPORT).is_file()


def test_a_page_that_cannot_be_written_is_a_warning_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = made_runs.pretraining(tmp_path / "demo")
    (folder / REPORT).mkdir()
    with report_kept(run_in(folder)) as write:
        assert write(100) == write(200) == {}
        (folder / REPORT).rmdir()
        (folder / "metrics.jsonl").write_text('{"step": "x"}\n{"step": 1}\n')
        assert write(300) == {}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2
    assert said[0].startswith("report.html could not be written (IsADirectoryError:")
    assert said[1].startswith("report.html could not be written (TypeError:")
