"""What a run says of itself: metrics.jsonl, trackers, train.log, progress bar, loss plot."""

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from swin_mim.data.timing import LoadingTime, together
from swin_mim.files import replace_text
from swin_mim.redaction import RedactingFormatter
from swin_mim.training.run.jsonl import append_line, disk_may_fail, whole_lines

_LOG = logging.getLogger("swin_mim")
_LEARNED, _ABOVE = 0.96, 1.05
"""Part of the loss of a mean below which something is learned, and over which it is a worse answer: a run on grey
pictures of clothes that fell back to a mean had a training loss of 0.98 of it."""
_PIXELS = {"heldout_loss": "mean_fill_error"}


class RunLog:
    """Metrics of one run. Only the main process writes; in the others every method does nothing.

    Args:
        folder: the run's folder.
        total_steps: steps of the whole run.
        step: steps already done; metrics of later ones, from a run that was cut off, are removed.
        accelerator: its trackers get every metric too.
    """

    def __init__(self, folder: Path, *, total_steps: int, step: int, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._main: bool = accelerator.is_main_process
        self._path = folder / "metrics.jsonl"
        self._bar: tqdm | None = None
        self._tracked, self._total_steps = 0, total_steps
        if not self._main:
            return
        _keep_metrics_until(self._path, step)
        if sys.stderr.isatty():
            self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.05)

    @property
    def shows_progress(self) -> bool:
        """Whether every step is seen on the terminal."""
        return self._bar is not None

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to the trackers; nothing measured is no line."""
        if not values:
            return
        if step >= self._tracked:  # trackers go forwards only; what is done again they have
            self._tracked = step
            self._for_trackers(lambda tracker: tracker.log(values, step=step))
        if self._main:
            append_line(self._path, {"step": step, **values})

    def log_step(self, step: int, text: str) -> None:
        """Write a line about a step to the terminal and train.log."""
        _LOG.info("step %6d/%d  %s", step, self._total_steps, text)

    def rewind(self, step: int) -> None:
        """The run is back at `step`: what was measured after it is removed."""
        if self._main:
            _keep_metrics_until(self._path, step)
        if self._bar is not None:
            self._bar.reset()
            self._bar.update(step)

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """The end of the run: the trackers write what they have left."""
        if self._bar is not None:
            self._bar.close()
        self._for_trackers(lambda tracker: tracker.finish())
        self._accelerator.trackers.clear()

    def _for_trackers(self, do: Callable[[Any], None]) -> None:
        for tracker in list(self._accelerator.trackers):
            try:
                do(tracker)
            except OSError as error:  # the disk is full: TensorBoard's writer does not recover from that
                _LOG.warning("%s cannot write (%s): the run goes on without it", tracker.name, error.strerror or error)
                self._accelerator.trackers.remove(tracker)


def start_log(folder: Path, *, main: bool) -> None:
    """Send the package's messages to the terminal and to train.log; of several processes only the main one talks."""
    _LOG.setLevel(logging.INFO if main else logging.ERROR)
    _LOG.propagate = False
    for handler in list(_LOG.handlers):
        _LOG.removeHandler(handler)
        handler.close()
    terminal = _Terminal()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    _LOG.addHandler(terminal)
    if main:
        try:
            file = _LogFile(folder / "train.log")
        except OSError as error:  # if nothing can be written there, the lock refuses it
            _say_without_log(error)
            return
        file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
        _LOG.addHandler(file)


class _LogFile(logging.FileHandler):
    """Says once, on the terminal, that the disk does not take it: everything else is there too."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            _say_without_log(error)


def _say_without_log(error: OSError) -> None:
    sys.stderr.write(f"train.log could not be written ({error.strerror or error}): the run goes on without it\n")


class _Terminal(logging.StreamHandler):
    """Writes above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


class Interval:
    """Sums between two log lines, kept on the device so that adding to them does not wait for it.

    Part of a run's state: a run that stops between two lines continues the same sums.
    """

    FIELDS = ("steps", "loss", "grad_norm")

    def __init__(self, device: torch.device, sums: dict[str, float] | None = None) -> None:
        sums = dict.fromkeys(self.FIELDS, 0.0) | (sums or {})
        self._fields = tuple(sums)
        precision = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.tensor([*sums.values()], dtype=precision, device=device)
        self._saving = 0.0
        self.restart_clock()

    def add(
        self,
        loss: torch.Tensor,
        grad_norm: torch.Tensor,
        parts: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        """One step; all are scalars on the device. A non-finite step, which changed nothing, does not count.

        Args:
            parts: losses of which `loss` is the sum, by name; the same names at every step.
        """
        if len(self._fields) == len(self.FIELDS) and parts:
            self._fields += tuple(parts)
            self._sums = torch.cat([self._sums, self._sums.new_zeros(len(parts))])
        values = torch.stack([torch.ones_like(loss), loss, grad_norm, *parts.values()])
        self._sums += torch.where(values.isfinite().all(), values, 0)
        self.steps_timed += 1

    def sums(self) -> dict[str, float]:
        return dict(zip(self._fields, self._sums.tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """Mean losses and gradient norm, nothing if no step was finite; starts the next interval."""
        sums = self.sums()
        self._sums.zero_()
        return {field: sums[field] / sums["steps"] for field in self._fields[1:]} if sums["steps"] else {}

    def restart_clock(self) -> None:
        """What came before (an evaluation, a checkpoint) does not count as training time."""
        self._start, self._waited, self.steps_timed = time.perf_counter(), 0.0, 0
        self.loading = LoadingTime()

    def saved(self, seconds: float) -> None:
        """Time that the training stood still for a checkpoint."""
        self._saving += seconds

    def waited(self, seconds: float, loading: LoadingTime | None = None) -> None:
        """Time that the step spent waiting for images, and what those who loaded them spent."""
        self._waited += seconds
        if loading is not None:
            self.loading = together((self.loading, loading))

    @property
    def seconds(self) -> float:
        """Since the clock was started."""
        return max(time.perf_counter() - self._start, 1e-9)

    def speed(self, global_batch: int) -> dict[str, float]:
        """images/s over all processes, the share of that time spent waiting for images, and the seconds that the
        training stood still for checkpoints, which is not part of it; restarts the clock."""
        seconds = self.seconds
        speed = {
            "images_per_second": round(self.steps_timed * global_batch / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
            "save_wait": round(self._saving, 3),
        }
        self._saving = 0.0
        self.restart_clock()
        return speed


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB (10^9 bytes): allocated on the accelerator, or resident on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    import resource  # not on Windows, which has no such count

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)


def duration_text(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All whole lines of a run's metrics.jsonl, in their order."""
    return whole_lines(folder / "metrics.jsonl")


def summary(folder: Path) -> str:
    """The last held-out loss, beside what filling the holes with nothing learned costs; empty without evaluations."""
    losses = [row["heldout_loss"] for row in read_metrics(folder) if "heldout_loss" in row]
    fillings = baselines(folder)
    if not losses or not fillings:
        return ""
    lines = [f"held-out loss {losses[-1]:.4f}; the same holes filled with nothing learned:"]
    for key, name in (("mean_fill_error", "mean of the visible pixels"), ("interpolation_error", "interpolation")):
        lines.append(
            f"  {name:<27}{fillings[key]:.4f}  (the loss is {losses[-1] / max(fillings[key], 1e-12):.2f} of it)"
        )
    return "\n".join(lines)


def heldout_text(measured: Mapping[str, float], levels: Mapping[str, float], *, late: bool) -> str:
    """A held-out loss as a line of the log, which says where it is that of a model that answers with a mean.

    A pretraining starts there, and one whose rate is too high falls back to it and stays, with hardly a gradient. Not
    seen where a constant is much better than the mean of what is visible: on pictures with one plain background.

    Args:
        measured: the held-out losses; with histograms as the target these alone are judged, as the pixels are then
            predicted beside the training.
        levels: what these losses are with nothing learned; empty: not known.
        late: whether the run should have left them by now.
    """
    text = f"held-out loss {measured['heldout_loss']:.4f}"
    histograms = {key: key.replace("heldout", "constant") for key in measured if key.endswith("hog_loss")}
    pairs = {key: level for key, level in (histograms or _PIXELS).items() if level in levels}
    shares = {key: measured[key] / max(levels[level], 1e-12) for key, level in pairs.items()}
    best = min(shares, key=lambda key: shares[key], default=None)  # one head that learns is enough
    if best is None or shares[best] < _LEARNED:
        return text
    name = "the mean histogram" if histograms else "the mean of the visible pixels"
    of = f", of histograms {measured[best]:.4f}" if histograms else ""
    text += f"{of}, {'about' if shares[best] < _ABOVE else 'above'} that of {name} ({levels[pairs[best]]:.4f})"
    if not late:
        return text
    way_out = "another optim.base_lr, most often a smaller one, or a longer optim.warmup"
    return f"{text}: nothing is learned; where images have structure, {way_out} helps"


def baselines(folder: Path) -> dict[str, float]:
    """What a run measured of held-out images with nothing learned, at its start; empty: nothing."""
    found = next((row for row in read_metrics(folder) if "mean_fill_error" in row), {})
    return {key: value for key, value in found.items() if key != "step"}


class _Panel(NamedTuple):
    """One diagram: metrics over the steps, and metrics that were measured once, as dashed levels."""

    ylabel: str
    lines: dict[str, tuple[str, str]]
    """Metric -> its name in the legend, its style."""
    levels: dict[str, tuple[str, str, tuple[int, int]]] = {}  # noqa: RUF012 - nobody changes it
    """Metric -> its name in the legend, its colour, its dashes."""


def plot_losses(folder: Path) -> Path:
    """Losses and probes of a pretraining over the steps -> plots/loss.png."""
    others = sorted({key for row in read_metrics(folder) for key in row if _is_of_another_head(key)})
    names = [key.removeprefix("heldout_").removesuffix("_loss").replace("_", " ") for key in others]
    loss = _Panel(
        "loss" if others else "masked L1",
        {
            "loss": ("training, all together" if others else "training", "-"),
            "heldout_loss": ("held out, pixels" if others else "held out, fixed masks", "o-"),
            **{key: (f"held out, {name}", "o-") for key, name in zip(others, names, strict=True)},
        },
        {
            "mean_fill_error": ("mean of the visible pixels", "grey", (6, 2)),
            "interpolation_error": ("interpolation from the surroundings", "grey", (2, 2)),
        },
    )
    stages = sorted({key for row in read_metrics(folder) for key in row if key.startswith("linear_stage")})
    names = [f"stage {key.removeprefix('linear_stage')}" for key in stages]
    probe = _Panel(
        "accuracy of a linear probe",
        {key: (name, f"C{i}o-") for i, (key, name) in enumerate(zip(stages, names, strict=True))},
        {
            f"random_{key}": (f"{name}, random weights", f"C{i}", (4, 3))
            for i, (key, name) in enumerate(zip(stages, names, strict=True))
        },
    )
    return _plot(folder, [loss, probe] if stages else [loss])


def _is_of_another_head(key: str) -> bool:
    """Whether a metric is the held-out loss of a head besides the decoder."""
    return key.startswith("heldout_") and key.endswith("_loss") and key != "heldout_loss"


def plot_curves(folder: Path) -> Path:
    """Losses and accuracies of a training with labels over the steps -> plots/loss.png."""
    loss = _Panel("loss", {"loss": ("training, augmented", "-"), "heldout_loss": ("evaluation", "o-")})
    shares = {
        "accuracy": ("accuracy", "o-"),
        "balanced_accuracy": ("balanced accuracy", "o-"),
        "top5_accuracy": ("top-5 accuracy", "o-"),
        "mean_average_precision": ("mean average precision", "o-"),
        "mean_iou": ("mean IoU", "o-"),
        "pixel_accuracy": ("pixel accuracy", "o-"),
        "AP": ("AP of boxes", "o-"),
        "AP50": ("AP of boxes at IoU 0.5", "o-"),
        "mask_AP": ("AP of shapes", "o-"),
    }
    return _plot(folder, [loss, _Panel("evaluation images", shares)])


def _plot(folder: Path, panels: Sequence[_Panel]) -> Path:
    # without pyplot, whose backend is the caller's, as in a notebook
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = read_metrics(folder)
    size = (7 * len(panels) ** 0.7, 4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        for key, (label, style) in panel.lines.items():
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1.2)
        for key, (label, color, dashes) in panel.levels.items():
            level = next((row[key] for row in rows if key in row), None)
            if level is not None:
                axes.axhline(level, color=color, linewidth=1, dashes=dashes, label=label)
        axes.set(xlabel="step", ylabel=panel.ylabel, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    path = folder / "plots" / "loss.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _keep_metrics_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    # a run that starts anew measures step 0 again
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step] if step else []
    with disk_may_fail(f"{path.name} up to step {step}"):
        replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
