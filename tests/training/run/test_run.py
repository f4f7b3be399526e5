import threading
from pathlib import Path

import pytest

from recipes import pretrain
from swin_mim.api import _left_as_found
from swin_mim.errors import UserError
from swin_mim.training.checkpoints.writer import BackgroundWriter
from swin_mim.training.config.commands import pretrain_settings
from swin_mim.training.run.folder import removed_unless_begun
from swin_mim.training.run.lock import lock
from swin_mim.training.run.run import open_run


def test_after_an_error_a_checkpoint_that_was_begun_is_finished_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    leaving, refused, join = threading.Event(), list[str](), BackgroundWriter.join

    def noted(writer: BackgroundWriter) -> None:
        if writer._thread is not None:
            leaving.set()
        join(writer)

    def write() -> None:
        leaving.wait(timeout=10)
        with pytest.raises(UserError) as caught:
            lock(tmp_path / "broken")
        refused.append(str(caught.value))

    monkeypatch.setattr(BackgroundWriter, "join", noted)
    settings = {"run.root": str(tmp_path), "run.name": "broken", "train.threads": 1, "log.trackers": []}
    config = pretrain_settings("demo", settings)
    with _left_as_found():
        with pytest.raises(ZeroDivisionError), open_run(config) as run:  # noqa: PT012
            run.writer.start(write, "a checkpoint")
            raise ZeroDivisionError
        assert len(refused) == 1
        assert "is in use by" in refused[0]
        held = lock(tmp_path / "broken")
        assert held is not None
        held.release()


@pytest.mark.parametrize("before", ["nothing", "root", "run", "files"])
def test_a_mistake_before_anything_is_trained_leaves_no_new_folder(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    root = tmp_path / "all" / "runs"
    if before != "nothing":
        (root if before == "root" else root / "wrong").mkdir(parents=True)
    if before == "files":
        (root / "wrong" / "notes.txt").write_text("mine")
    settings = {"run.root": str(root), "run.name": "wrong", "train.threads": 1, "log.trackers": []}
    config = pretrain_settings("demo", {**settings, "data.source": str(tmp_path / "nowhere")})
    with _left_as_found(), pytest.raises(UserError, match="nowhere"):
        pretrain.main(config)
    assert (tmp_path / "all").exists() == (before != "nothing")
    assert (root / "wrong").exists() == (before == "files")
    assert before != "files" or (root / "wrong" / "notes.txt").read_text() == "mine"


def test_a_run_that_another_process_begins_at_the_same_time_stays(tmp_path: Path) -> None:
    """The one that is refused had seen no folder, and finds what every run begins with."""
    folder = tmp_path / "runs" / "mine"
    with pytest.raises(UserError, match="refused"), removed_unless_begun(folder):  # noqa: PT012
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        held = lock(folder)
        raise UserError("refused")
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "run.lock"}
    assert held is not None
    held.release()


@pytest.mark.parametrize("error", [UserError, RuntimeError])
def test_what_a_run_has_written_stays(error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    settings = {"run.root": str(tmp_path), "run.name": "begun", "train.threads": 1, "log.trackers": []}
    with _left_as_found(), pytest.raises(error), open_run(pretrain_settings("demo", settings)) as run:  # noqa: PT012
        if error is UserError:
            (run.folder / "run_status.json").write_text("{}")
        raise error("failed")
    assert (tmp_path / "begun" / "train.log").is_file()
    assert (tmp_path / "begun" / "config.yaml").is_file()
