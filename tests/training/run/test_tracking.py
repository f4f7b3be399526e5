import io
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from errno import ENOSPC
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from swin_mim.data.timing import LoadingTime
from swin_mim.training.run import tracking
from swin_mim.training.run.tracking import (
    Interval,
    RunLog,
    baselines,
    duration_text,
    heldout_text,
    plot_curves,
    plot_losses,
    read_metrics,
    start_log,
    summary,
)

CPU = torch.device("cpu")
FILLINGS = {"heldout_loss": 0.9, "mean_fill_error": 0.5, "interpolation_error": 0.4}


class FakeTracker:
    """Remembers what it was given, and that it was closed; from some step on its disk is full."""

    def __init__(self, name: str, full_at: float = math.inf) -> None:
        self.name, self.full_at = name, full_at
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.full_at:
            raise OSError(ENOSPC, "No space left on device")
        self.logged.append((step, values))

    def finish(self) -> None:
        if self.full_at < math.inf:
            raise OSError(ENOSPC, "No space left on device")
        self.closed = True


class FakeAccelerator:
    def __init__(self, *trackers: FakeTracker, main: bool) -> None:
        self.is_main_process = main
        self.trackers = list(trackers)


def run_log(folder: Path, step: int = 0, *, main: bool = True) -> RunLog:
    return RunLog(folder, total_steps=10, step=step, accelerator=FakeAccelerator(main=main))


def write(folder: Path, *rows: dict[str, float]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_metric_is_a_line_of_json_and_goes_to_the_trackers(tmp_path: Path) -> None:
    tracker = FakeTracker("mine")
    log = RunLog(tmp_path, total_steps=10, step=0, accelerator=FakeAccelerator(tracker, main=True))
    log.metrics(1, {"loss": 0.1 + 0.2, "lr": 1e-7})
    log.advance()
    log.metrics(2, {"heldout_loss": 1 / 3})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().split("\n")
    assert lines.pop() == ""
    rows = [{"step": 1, "loss": 0.1 + 0.2, "lr": 1e-7}, {"step": 2, "heldout_loss": 1 / 3}]
    assert [json.loads(line) for line in lines] == rows == read_metrics(tmp_path)
    assert tracker.logged == [(1, {"loss": 0.1 + 0.2, "lr": 1e-7}), (2, {"heldout_loss": 1 / 3})]
    assert tracker.closed


@pytest.mark.parametrize("full_at", [2, 9])
def test_a_tracker_whose_disk_is_full_is_left_out_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full_at: int
) -> None:
    """In the middle, or only when it writes the rest at the end."""
    monkeypatch.setattr(tracking._LOG, "propagate", True)  # start_log keeps messages from others
    full, other = FakeTracker("tensorboard", full_at), FakeTracker("other")
    log = RunLog(tmp_path, total_steps=3, step=0, accelerator=FakeAccelerator(full, other, main=True))
    with caplog.at_level("WARNING"):
        for step in (1, 2, 3):
            log.metrics(step, {"loss": 1.0})
        log.close()
    assert [step for step, _ in full.logged] == [step for step in (1, 2, 3) if step < full_at]
    assert [step for step, _ in other.logged] == [1, 2, 3]
    assert other.closed
    assert caplog.text.count("tensorboard cannot write (No space left on device)") == 1


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"step": 0, **FILLINGS},
        {"step": 2, "loss": 0.3},
        {"step": 2, "heldout_loss": 0.4},
    ]
    write(tmp_path, *rows, {"step": 3, "loss": 0.2}, {"step": 4, "loss": 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "loss"')
    log = run_log(tmp_path, step=2)
    assert read_metrics(tmp_path) == rows
    log.metrics(3, {"loss": 0.25})
    assert read_metrics(tmp_path) == [*rows, {"step": 3, "loss": 0.25}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200))
def test_a_torn_line_costs_that_line_only(tmp_path_factory: pytest.TempPathFactory, torn: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows: list[dict[str, float]] = [{"step": step, "loss": step / 7, "lr": 1e-4} for step in range(1, 5)]
    write(folder, *rows)
    path = folder / "metrics.jsonl"
    data = path.read_bytes()[:-torn]
    path.write_bytes(data)
    log = run_log(folder, step=9)
    log.metrics(10, {"loss": 0.0})
    whole = sum(data.startswith("".join(json.dumps(row) + "\n" for row in rows[:n])[:-1].encode()) for n in range(1, 5))
    assert read_metrics(folder) == [*rows[:whole], {"step": 10, "loss": 0.0}]


def test_a_run_that_starts_anew_has_no_metrics(tmp_path: Path) -> None:
    write(tmp_path, {"step": 0, **FILLINGS}, {"step": 2, "loss": 0.3})
    run_log(tmp_path, step=0)
    assert read_metrics(tmp_path) == []


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    write(tmp_path, {"step": 5, "loss": 0.3})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    log = run_log(tmp_path, step=2, main=False)
    log.metrics(3, {"loss": 0.1})
    log.advance()
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_terminal_gets_a_progress_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    run_log(tmp_path, step=4, main=False).close()
    assert terminal.getvalue() == ""
    log = run_log(tmp_path, step=4)
    log.advance()
    log.close()
    assert "4/10" in terminal.getvalue()
    assert "5/10" in terminal.getvalue()


@pytest.fixture
def package_log() -> Iterator[logging.Logger]:
    """The package's logger, afterwards as it was."""
    log = logging.getLogger("swin_mim")
    level, propagate, handlers = log.level, log.propagate, list(log.handlers)
    yield log
    for handler in set(log.handlers) - set(handlers):
        handler.close()
    log.handlers[:] = handlers
    log.setLevel(level)
    log.propagate = propagate


def test_messages_go_to_the_terminal_and_to_train_log(
    tmp_path: Path, package_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # a second start in the same process does not say everything twice
        start_log(tmp_path, main=True)
    package_log.info("hello")
    logging.getLogger("swin_mim.training.loop.trainer").warning("careful: %d", 7)
    assert capsys.readouterr().err == "hello\ncareful: 7\n"
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO hello", "WARNING careful: 7"]


def test_a_folder_that_takes_no_log_is_said_once(
    tmp_path: Path, package_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.log").mkdir()  # root may write to anything but this
    start_log(tmp_path, main=True)
    package_log.info("hello")
    package_log.info("again")
    assert capsys.readouterr().err.splitlines() == [
        "train.log could not be written (Is a directory): the run goes on without it",
        "hello",
        "again",
    ]


def test_of_several_processes_one_talks(
    tmp_path: Path, package_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    start_log(tmp_path, main=False)
    package_log.info("hello")
    logging.getLogger("swin_mim.training.loop.trainer").warning("careful")
    logging.getLogger("swin_mim.training.loop.trainer").error("lost")
    assert capsys.readouterr().err == "lost\n"
    assert list(tmp_path.iterdir()) == []


def add(interval: Interval, steps: range, names: tuple[str, ...] = ()) -> None:
    for step in steps:
        draw = torch.rand(2 + len(names), generator=torch.Generator().manual_seed(step))
        interval.add(draw[0], draw[1], dict(zip(names, draw[2:], strict=True)))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from([(), ("loss_of_boxes", "loss_of_shapes")]))
def test_an_interval_goes_on_exactly_after_a_restart(before: int, after: int, names: tuple[str, ...]) -> None:
    whole, first = Interval(CPU), Interval(CPU)
    add(whole, range(before + after), names)
    add(first, range(before), names)
    on_disk = json.dumps(first.sums())
    second = Interval(CPU, json.loads(on_disk))
    assert json.dumps(second.sums()) == on_disk
    add(second, range(before, before + after), names)
    assert set(names) <= whole.sums().keys() or not before + after
    assert second.sums() == whole.sums()
    assert second.means() == whole.means()


def test_sums_do_not_lose_small_losses() -> None:
    interval = Interval(CPU)
    for _ in range(3):
        interval.add(torch.tensor(2.0**24), torch.tensor(1.0))
        interval.add(torch.tensor(1.0), torch.tensor(1.0))
    assert interval.sums()["loss"] == 3 * 2**24 + 3


def test_means_start_the_next_interval() -> None:
    interval = Interval(CPU)
    for loss, norm in ((1.0, 2.0), (0.5, 4.0)):
        interval.add(torch.tensor(loss), torch.tensor(norm))
    assert interval.sums() == {"steps": 2.0, "loss": 1.5, "grad_norm": 6.0}
    assert interval.means() == {"loss": 0.75, "grad_norm": 3.0}
    assert interval.sums() == {"steps": 0.0, "loss": 0.0, "grad_norm": 0.0}
    interval.add(torch.tensor(0.25), torch.tensor(1.0))
    assert interval.means() == {"loss": 0.25, "grad_norm": 1.0}


def test_speed_counts_the_time_since_the_clock_started(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(tracking, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    interval = Interval(CPU, {"steps": 3.0, "loss": 1.0, "grad_norm": 1.0})  # steps of an earlier process have no time
    add(interval, range(2))
    interval.waited(1.0)
    now[0] += 4
    assert interval.speed(global_batch=8) == {"images_per_second": 4.0, "data_wait": 0.25, "save_wait": 0.0}
    now[0] += 100
    interval.saved(1.5)
    interval.saved(0.25)
    interval.restart_clock()
    add(interval, range(1))
    now[0] += 2
    assert interval.speed(global_batch=8) == {"images_per_second": 4.0, "data_wait": 0.0, "save_wait": 1.75}
    assert interval.speed(global_batch=8)["save_wait"] == 0.0


def test_an_interval_sums_what_loading_took() -> None:
    interval = Interval(CPU)
    interval.waited(1.0, LoadingTime(1.0, 2.0, 3.0, 4.0))
    interval.waited(1.0, LoadingTime(0.5, 0.5, 0.5, 0.5))
    interval.waited(1.0)
    assert interval.loading == LoadingTime(1.5, 2.5, 3.5, 4.5)
    interval.speed(global_batch=8)
    assert interval.loading == LoadingTime()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.9, "0:00"),
        (9, "0:09"),
        (60, "1:00"),
        (61.5, "1:01"),
        (3599.9, "59:59"),
        (3600, "1:00:00"),
        (3725, "1:02:05"),
        (86_400 * 4 + 59, "96:00:59"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_peak_memory_is_in_gigabytes() -> None:
    assert 0.05 < tracking.peak_memory_gb(CPU) < 100


def test_the_summary(tmp_path: Path) -> None:
    write(tmp_path, {"step": 0, **FILLINGS}, {"step": 5, "heldout_loss": 0.3}, {"step": 9, "heldout_loss": 0.25})
    assert summary(tmp_path) == (
        "held-out loss 0.2500; the same holes filled with nothing learned:\n"
        "  mean of the visible pixels 0.5000  (the loss is 0.50 of it)\n"
        "  interpolation              0.4000  (the loss is 0.62 of it)"
    )


def test_a_held_out_loss_that_is_that_of_a_mean_is_said_to_be(tmp_path: Path) -> None:
    assert baselines(tmp_path) == {}
    write(tmp_path, {"step": 0, **FILLINGS}, {"step": 5, "heldout_loss": 0.3})
    levels = baselines(tmp_path)
    assert levels == FILLINGS
    assert heldout_text({"heldout_loss": 0.3}, {}, late=True) == "held-out loss 0.3000"  # nothing to compare with
    assert heldout_text({"heldout_loss": 0.47}, levels, late=True) == "held-out loss 0.4700"
    early = "held-out loss 0.4900, about that of the mean of the visible pixels (0.5000)"
    assert heldout_text({"heldout_loss": 0.49}, levels, late=False) == early
    assert heldout_text({"heldout_loss": 0.49}, levels, late=True).startswith(f"{early}: nothing is learned; where ima")
    assert ", above that of the mean of" in heldout_text({"heldout_loss": 1.5}, levels, late=False)


def test_where_histograms_are_the_target_they_are_judged() -> None:
    levels = {"mean_fill_error": 0.5, "constant_hog_loss": 0.05}
    assert heldout_text({"heldout_loss": 0.5, "heldout_hog_loss": 0.04}, levels, late=True) == "held-out loss 0.5000"
    said = heldout_text({"heldout_loss": 0.3, "heldout_hog_loss": 0.0495}, levels, late=True)
    assert said.startswith(
        "held-out loss 0.3000, of histograms 0.0495, about that of the mean histogram (0.0500): nothing"
    )
    levels = {f"constant_stage{stage}_hog_loss": 0.05 for stage in (1, 2)}
    heads = {"heldout_loss": 0.3, "heldout_stage1_hog_loss": 0.05, "heldout_stage2_hog_loss": 0.04}
    assert heldout_text(heads, levels, late=True) == "held-out loss 0.3000"  # one head learns
    assert "mean histogram" in heldout_text(heads | {"heldout_stage2_hog_loss": 0.05}, levels, late=True)


def test_without_evaluations_there_is_no_summary(tmp_path: Path) -> None:
    assert summary(tmp_path) == ""
    write(tmp_path, {"step": 1, "loss": 0.3})
    assert summary(tmp_path) == ""


@pytest.mark.parametrize(
    "rows",
    [
        [
            {"step": 0, **FILLINGS},
            {"step": 1, "loss": 0.5},
            {"step": 2, "loss": 0.4},
            {"step": 2, "heldout_loss": 0.4},
        ],
        [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}],
        [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}],
        [{"step": 5, "heldout_loss": 0.3}],
        [{"step": 5, "other": 0.3}],
        None,
    ],
    ids=["all", "training", "not finite", "held out", "nothing", "no metrics"],
)
def test_the_plot_is_a_picture(tmp_path: Path, rows: list[dict[str, Any]] | None) -> None:
    if rows is not None:
        write(tmp_path, *rows)
    path = plot_losses(tmp_path)
    assert path == tmp_path / "plots" / "loss.png"
    with Image.open(path) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (840, 480))
    assert plot_losses(tmp_path) == path, "a second time it is replaced"


PROBES = {"linear_stage1": 0.5, "linear_stage2": 0.6, "linear_stage3": 0.7}
RANDOM = {f"random_{key}": value - 0.2 for key, value in PROBES.items()}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], Path], Path], Figure]:
    """Plots -> the figure that was saved."""

    def draw(plot: Callable[[Path], Path], folder: Path) -> Figure:
        figures: list[Figure] = []
        with monkeypatch.context() as patch:
            saved = Figure.savefig
            patch.setattr(
                Figure, "savefig", lambda figure, *_, **options: (figures.append(figure), saved(figure, *_, **options))
            )
            assert plot(folder) == folder / "plots" / "loss.png"
        (figure,) = figures
        assert pyplot.get_fignums() == [], "a figure of pyplot, which belongs to the caller"
        return figure

    return draw


Draw = Callable[[Callable[[Path], Path], Path], Figure]


def lines(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    """Name in the legend -> points, of a panel."""
    axes = figure.axes[panel]
    legend = axes.get_legend()
    names = [text.get_text() for text in legend.get_texts()] if legend else []
    found = {str(line.get_label()): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines}
    assert names == list(found), "what is drawn is named, and nothing else"
    return found


def size_of(folder: Path) -> tuple[int, int]:
    with Image.open(folder / "plots" / "loss.png") as picture:
        picture.load()
        return picture.size


def test_a_pretraining_without_probes_has_one_panel(tmp_path: Path, drawn: Draw) -> None:
    write(tmp_path, {"step": 0, **FILLINGS}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "heldout_loss": 0.45})
    figure = drawn(plot_losses, tmp_path)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_ylim()[0]) == ("step", "masked L1", 0)
    assert lines(figure, 0) == {
        "training": [(1, 0.5), (2, 0.4)],
        "held out, fixed masks": [(0, 0.9), (2, 0.45)],
        "mean of the visible pixels": [(0, 0.5), (1, 0.5)],
        "interpolation from the surroundings": [(0, 0.4), (1, 0.4)],
    }


def test_probes_are_a_second_panel_beside_the_losses(tmp_path: Path, drawn: Draw) -> None:
    rows = [{"step": step, **{key: value + step / 100 for key, value in PROBES.items()}} for step in (0, 10)]
    write(tmp_path, {"step": 0, **FILLINGS}, {"step": 0, **RANDOM}, rows[0], {"step": 5, "loss": 0.5}, rows[1])
    figure = drawn(plot_losses, tmp_path)
    assert [axes.get_ylabel() for axes in figure.axes] == ["masked L1", "accuracy of a linear probe"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["step", "step"]
    assert lines(figure, 0)["training"] == [(5, 0.5)]
    found = lines(figure, 1)
    for stage, (key, value) in enumerate(PROBES.items(), 1):
        assert found.pop(f"stage {stage}") == [(0, rows[0][key]), (10, rows[1][key])]
        assert [y for _, y in found.pop(f"stage {stage}, random weights")] == [value - 0.2] * 2
    assert found == {}
    colors = {str(line.get_label()): to_hex(line.get_color()) for line in figure.axes[1].lines}
    assert all(colors[f"stage {stage}"] == colors[f"stage {stage}, random weights"] for stage in (1, 2, 3))
    assert len(set(colors.values())) == 3
    width, height = size_of(tmp_path)
    assert height == 480
    assert 1.5 * 840 < width < 2 * 840, "two panels, each a little narrower than one"


def test_probes_without_random_weights_have_no_levels(tmp_path: Path, drawn: Draw) -> None:
    write(tmp_path, {"step": 4, "linear_stage1": 0.5})
    figure = drawn(plot_losses, tmp_path)
    assert lines(figure, 0) == {}
    assert lines(figure, 1) == {"stage 1": [(4, 0.5)]}


def test_random_weights_alone_are_no_panel(tmp_path: Path, drawn: Draw) -> None:
    write(tmp_path, {"step": 0, **RANDOM})
    assert len(drawn(plot_losses, tmp_path).axes) == 1
    assert size_of(tmp_path) == (840, 480)


@pytest.mark.parametrize(
    ("measured", "names"),
    [
        ({"accuracy": 0.8, "balanced_accuracy": 0.7}, ["accuracy", "balanced accuracy"]),
        (
            {"accuracy": 0.8, "balanced_accuracy": 0.7, "top5_accuracy": 0.9},
            ["accuracy", "balanced accuracy", "top-5 accuracy"],
        ),
        ({"accuracy": 0.3, "mean_average_precision": 0.6}, ["accuracy", "mean average precision"]),
    ],
    ids=["few classes", "many classes", "several labels"],
)
def test_a_fine_tuning_has_its_loss_and_what_it_is_judged_by(
    tmp_path: Path, measured: dict[str, float], names: list[str], drawn: Draw
) -> None:
    write(
        tmp_path,
        {"step": 2, "loss": 2.0},
        {"step": 3, "heldout_loss": 1.0, **{key: value / 2 for key, value in measured.items()}},
        {"step": 4, "loss": 1.5},
        {"step": 6, "heldout_loss": 0.9, **measured},
    )
    figure = drawn(plot_curves, tmp_path)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "evaluation images"]
    assert all(axes.get_ylim()[0] == 0 for axes in figure.axes)
    assert lines(figure, 0) == {"training, augmented": [(2, 2.0), (4, 1.5)], "evaluation": [(3, 1.0), (6, 0.9)]}
    expected = [[(3, value / 2), (6, value)] for value in measured.values()]
    assert lines(figure, 1) == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize(("plot", "panels"), [(plot_losses, 1), (plot_curves, 2)])
@pytest.mark.parametrize("rows", [None, [], [{"step": 3}], [{"step": 3, "other": 0.5}]])
def test_nothing_measured_is_a_picture_without_lines(
    tmp_path: Path, plot: Callable[[Path], Path], panels: int, rows: list[dict[str, float]] | None, drawn: Draw
) -> None:
    if rows is not None:
        write(tmp_path, *rows)
    figure = drawn(plot, tmp_path)
    assert [lines(figure, panel) for panel in range(panels)] == [{}] * panels
    assert size_of(tmp_path)[0] >= 840


def test_steps_are_whole_numbers_on_the_axis(tmp_path: Path, drawn: Draw) -> None:
    write(
        tmp_path, {"step": 0, "heldout_loss": 1.0, "accuracy": 0.1}, {"step": 1, "heldout_loss": 0.9, "accuracy": 0.2}
    )
    for axes in drawn(plot_curves, tmp_path).axes:
        assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_loss_that_is_not_finite_does_not_cost_the_picture(tmp_path: Path, drawn: Draw) -> None:
    write(tmp_path, {"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf"), "accuracy": 0.5})
    assert len(lines(drawn(plot_curves, tmp_path), 0)["training, augmented"]) == 2
