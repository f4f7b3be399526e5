"""The page of `swin-mim doctor`: what was found, as a person reads it."""

import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from swin_mim.cli.doctor.geometry import Geometry, Pair
from swin_mim.cli.doctor.images.forecast import Forecast
from swin_mim.cli.doctor.images.look import plural_channels
from swin_mim.cli.doctor.images.rasters import Channels
from swin_mim.cli.doctor.images.source import READABLE, Images
from swin_mim.cli.doctor.speed import ENOUGH, Duration, Loading, Steps
from swin_mim.data.sources.listing import counts_text
from swin_mim.training.loop.data_wait import STAGES

WIDTH = 100
EDGES = 0.01
"""Share of the images from which edges of one colour are worth a word."""
FOLDERS = 5
"""Folders without images that are named."""
_NAMES = 12  # columns of the names of facts


@dataclass(frozen=True)
class Suggestion:
    """Another value for an option."""

    key: str
    value: str
    """Its words, as a shell takes them."""
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything that was found; what could not be measured is None."""

    source: str
    config: str
    max_broken: float
    images: Images | None
    geometry: Geometry | None
    """None: the settings cannot work."""
    near_sizes: tuple[Pair | None, Pair | None]
    """The next smaller and larger image size without padding."""
    loading: Loading | None
    steps: Steps | None
    duration: Duration | None
    training_images: int
    heldout_images: int
    duration_text: str
    """train.duration, as it is set."""
    global_batch: int
    devices: int
    """GPUs of this machine."""
    notes: tuple[str, ...]
    reasons: tuple[str, ...]
    """Why a run cannot start."""
    suggestions: tuple[Suggestion, ...]
    command: tuple[str, ...]
    """Its words; the flags that are suggested among them."""
    forecast: Forecast | None = None
    expected: tuple[tuple[str, str], ...] = ()
    """What the page says of it."""

    @property
    def can_start(self) -> bool:
        return not self.reasons


def as_text(report: Report) -> str:
    parts: list[tuple[str, list[str]]] = [
        ("IMAGES", list(_images(report))),
        ("GEOMETRY", list(_geometry(report))),
        ("WHAT TO EXPECT", [fact(*line) for line in report.expected]),
        ("SPEED", list(_speed(report))),
        ("MEMORY AND TIME", list(_costs(report))),
        ("START", list(_start(report))),
    ]
    head = f"{report.source}, to be trained on with {report.config}"
    return "\n\n".join([head, *("\n".join([title, *lines]) for title, lines in parts if lines)])


def fact(name: str, text: str) -> str:
    """A name and what is to say of it, in two columns."""
    indent = " " * (2 + _NAMES)
    first = f"  {name:<{_NAMES}}"
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _images(report: Report) -> Iterator[str]:
    images = report.images
    if images is None:
        yield fact("", "none: see the end of this page")
        return
    sample = f"; {images.looked_at:,} of them looked at, evenly spread (--images): what follows counts these"
    yield fact("number", f"{images.total:,}{sample if images.looked_at < images.total else ', all looked at'}")
    if images.formats:
        yield fact("formats", counts(images.formats))
        yield fact("pixels", counts(images.pixels))
        yield from _depths(images)
    if images.smallest and images.median and images.largest:
        sizes = [by(size) for size in (images.smallest, images.median, images.largest)]
        text = "all " + sizes[0] if len(set(sizes)) == 1 else "smallest {}, median {}, largest {}".format(*sizes)
        yield fact("sizes", f"{text} (width x height)")
        if images.too_small:
            yield fact("", f"{of(images.too_small, images)} smaller than the training size: crops are enlarged")
    if images.channels:
        yield from _channels(images.channels, report)
    yield from _flaws(report, images)
    if images.folders:
        names = ", ".join(f"{name} ({number:,})" for name, number in list(images.folders.items())[:4])
        more = f" and {len(images.folders) - 4} more" if len(images.folders) > 4 else ""
        classes = f"fine-tuning takes them as {len(images.folders)} classes" if len(images.folders) > 1 else ""
        yield fact("folders", f"{names}{more}; pretraining takes no notice of them{', ' * bool(classes)}{classes}")
    for name, inside in list(images.without_images.items())[:FOLDERS]:
        what = f"none of its files is an image: {counts_text(inside)}" if inside else "it is empty"
        yield fact("", f"error in {name}: {what}; as a class it has no image")
    if images.other_files:
        yield fact("other files", f"{counts_text(images.other_files)}; they are not read")


def _depths(images: Images) -> Iterator[str]:
    """What becomes of values of more than 8 bits, of colours that are converted, and of pictures behind the first."""
    if not images.channels and any("16 bit" in kind for kind in images.pixels):
        yield fact("", "values of 16 bit are divided by 257: a model sees 8 bit")
        yield fact("", "with --data.channels (1 for grey, 1 2 3 for RGB) a model sees all 16: look at them so too")
    if not images.channels and any("32 bit" in kind or "floating" in kind for kind in images.pixels):
        yield fact("", "wider values are stretched to 8 bit, each image by its own range")
    if images.depth:
        yield fact("", images.depth.text)
        if any("channel" in kind for kind in images.pixels):  # DICOM, and what else has no values of its own as RGB
            yield fact("", "as RGB a model sees 8 bit of them; with --data.channels 1 it sees them as they are")
    if images.profiles:
        yield fact("colours", f"{counts(images.profiles)}: converted to sRGB; --data.color_profile ignore leaves them")
    for name, number in images.frames.items():
        yield fact("frames", f"{of(number, images)}: {name}; {_frames_read(name, images)}")


def _frames_read(name: str, images: Images) -> str:
    if not name.startswith("TIFF"):
        return "the first one is read"
    if name.endswith("differ"):
        return "the first is read, as RGB only"
    left_out = ", and what is smaller is left out" if " beside " in name else ""
    if name.startswith("TIFF of 1 page "):
        return f"the page is read{left_out}"
    if images.channels:
        return f"each page is a channel{left_out}" if left_out else "each is a channel"
    return f"as RGB only the first is read; with --data.channels each is a channel, by its number{left_out}"


def _channels(found: Channels, report: Report) -> Iterator[str]:
    total = sum(found.counts.values())
    mixed = ", ".join(f"{number:,} have {plural_channels(count)}" for count, number in found.counts.items())
    yield fact(
        "channels", f"{len(found.names)} {'is' if len(found.names) == 1 else 'are'} read: {', '.join(found.names)}"
    )
    if len(found.counts) > 1:
        yield fact("", f"not all images have as many: of {total:,}, {mixed}")
    if len(found.dtypes) > 1:
        yield fact("", f"not all are of one type: {counts(found.dtypes)}")
    gaps = 1 - found.valid_share
    none = "none that files or options mark" if found.nodata else "none: all pixels are there"
    yield fact("gaps", f"{gaps:.2%} of the pixels are not there" if gaps else none)
    suggested = any(each.key == "data.nodata" for each in report.suggestions)
    for place, suspect in enumerate(found.nodata):
        text = (
            "this table is with it, the command at the end without"
            if suggested and not place
            else (f"if it does, look again with --data.nodata {suspect.text}; these figures are with it")
        )
        yield fact("" if place else "suspicion", f"{suspect.said(total)}; {text}")
    rows: list[tuple[str, ...]] = [("channel", "mean", "std", "min", "max")]
    columns = (found.mean, found.std, found.min, found.max)
    rows += [(name, *(f"{value:.6g}" for value in each)) for name, *each in zip(found.names, *columns, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        cells = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
        yield "  ".join(["", f"{name:<{widths[0]}}", *cells])


def for_too_large(images: Images, source: str) -> str:
    """What reads images that are too large."""
    fits = f"set --data.max_pixels {images.max_pixels}, or " if images.max_pixels else ""
    them = "it" if images.too_large == 1 else "them"
    return f"{fits}cut {them}: swin-mim prepare {shlex.quote(source)} TILES --tile 512"


def _flaws(report: Report, images: Images) -> Iterator[str]:
    if images.offset:
        yield fact("suspicion", images.offset.said())
    if not images.broken:
        yield fact("broken", "none")
    else:
        over = "more than" if images.broken_share > report.max_broken else "within"
        yield fact(
            "broken", f"{of(images.broken, images)}, {over} data.max_broken ({report.max_broken:.1%}); the first:"
        )
        yield from (fact("", f"{broken.name}: {broken.reason}") for broken in images.first_broken)
    if images.too_large:
        way_out = for_too_large(images, report.source)
        yield fact("too large", f"{of(images.too_large, images)}, counted as broken: {way_out}")
    for channels, number in images.too_many_channels.items() if not images.channels else ():
        yield fact("", f"{number:,} are TIFF files of {channels} channels. What is read as RGB: {READABLE}")
    if images.near_empty:
        first = listed(images.first_near_empty, images.near_empty)
        yield fact("near-empty", f"{of(images.near_empty, images)}: almost one colour, nothing to learn from: {first}")
    else:
        yield fact("near-empty", "none")
    for colour, number in images.edges.items():
        if number >= EDGES * images.looked_at:
            yield fact("edges", f"{of(number, images)} are {colour} at two edges at least: cut off what is a frame")
    if images.copies:
        groups = "; ".join(" = ".join(group) for group in images.first_copies[:3])
        yield fact("duplicates", f"{of(images.copies, images)} byte for byte equal to another one: {groups}")
    else:
        among = " among those looked at" if images.looked_at < images.total else ""
        yield fact("duplicates", f"none{among}")


def _geometry(report: Report) -> Iterator[str]:
    if report.geometry is None:
        yield fact("", "the settings cannot work: see the end of this page")
    else:
        yield from _stages(report.geometry)
    sizes = zip(report.near_sizes, ("below", "above"), strict=True)
    if near := [f"{by(size)} {side}" for size, side in sizes if size]:
        yield fact("near it", f"sizes without any padding: {', '.join(near)}")
    if report.geometry and report.geometry.pads and report.geometry.windows:
        yield fact("windows", f"that need no padding at this size: {', '.join(map(str, report.geometry.windows))}")


def _stages(geometry: Geometry) -> Iterator[str]:
    verdict = "works, with padding, which costs time" if geometry.pads else "fits: nothing is padded"
    what = f"{by(geometry.image_size)} px, patches of {geometry.patch}, mask units of {geometry.unit} px"
    yield fact("size", f"{what}, {len(geometry.stages)} stages: {verdict}")
    yield fact("masks", f"{geometry.masked_units} of {geometry.units} units of an image are hidden")
    cells = [("stage", "cells", "channels", "blocks", "windows", "shifted by", "padded to", "padding")]
    for number, stage in enumerate(geometry.stages, start=1):
        one = "one, the whole grid" if stage.windows == 1 else f"{stage.windows} of {by(stage.window)}"
        shift = by(stage.shift) if any(stage.shift) else "-"
        padded = by(stage.padded) if stage.padding else "-"
        share = f"{stage.padding:.0%}" + (", odd: +1 to halve" if stage.halving_pads else "")
        row = str(number), by(stage.grid), str(stage.channels), str(stage.depth), one, shift, padded, share
        cells.append(row)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        yield ("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))).rstrip()


def _speed(report: Report) -> Iterator[str]:
    loading, steps, duration = report.loading, report.steps, report.duration
    if loading is not None:
        stages = ", ".join(f"{STAGES[stage]} {time:.1f}" for stage, time in loading.milliseconds.items())
        with_them = f"with {plural(loading.workers, 'worker')}" if loading.workers else "without workers"
        yield fact("loader", f"{rate(loading.images_per_second)} {with_them} on {plural(loading.room, 'core')}")
        yield fact("", f"one core: {rate(loading.alone_per_second)}; ms for an image: {stages}")
    if steps is not None and steps.fitting_batch:
        precision = (
            f"{steps.precision}, {plural(steps.threads, 'thread')}" if steps.device == "CPU" else steps.precision
        )
        part = f", measured with {steps.measured_batch} of {steps.micro_batch}" if steps.estimated else ""
        yield fact(
            "model",
            f"{rate(steps.images_per_second)} on {steps.device} ({precision}); {steps.parameters / 1e6:.3g} M "
            f"parameters, micro batch {steps.micro_batch}{part}",
        )
    if steps is not None and (more := steps.larger):
        memory = f"{more.peak_gb:.1f} of {steps.available_gb:.1f} GB"
        yield fact("", f"{rate(more.images_per_second)} with a micro batch of {more.micro_batch}, which takes {memory}")
    if loading is not None and duration is not None:
        yield fact("limit", _limit(loading, duration))


def _limit(loading: Loading, duration: Duration) -> str:
    times = f"{duration.factor:,.1f} times" if duration.factor < 10 else f"{duration.factor:,.0f} times"
    if duration.loader_limits:
        return f"the loader: the model would take {times} what it delivers; {STAGES[loading.slowest]} takes longest"
    if duration.factor < ENOUGH:
        return f"both alike: the loader delivers {times} what the model takes, which leaves nothing to spare"
    enough = "is enough" if duration.workers == 1 else "are enough"
    return f"the model: the loader delivers {times} what it takes; {plural(duration.workers, 'worker')} {enough}"


def _costs(report: Report) -> Iterator[str]:
    steps, duration = report.steps, report.duration
    if steps is not None:
        about = "about " if steps.estimated else ""
        what = "GPU memory" if steps.device != "CPU" else "memory"
        yield fact(
            "memory", f"{about}{steps.peak_gb:.1f} GB in a step; {steps.available_gb:.1f} GB of {what} are there"
        )
    if duration is None:
        return
    held = f" ({report.heldout_images:,} more are held out)" if report.heldout_images else ""
    yield fact(
        "an epoch",
        f"{report.training_images:,} images{held} in {duration.steps_per_epoch:,.1f} steps of {report.global_batch}: "
        f"{time_text(duration.epoch_seconds)}",
    )
    steps_text = plural(duration.steps, "step")
    length = report.duration_text if report.duration_text == steps_text else f"{report.duration_text}, {steps_text}"
    yield fact(
        "the run",
        f"{length}: {time_text(duration.run_seconds)} at {rate(duration.images_per_second)}, without evaluations and "
        "checkpoints",
    )
    if report.devices > 1:
        yield fact("", f"that is on one of the {report.devices} GPUs here; all of them take 1/{report.devices} at best")


def _start(report: Report) -> Iterator[str]:
    yield from (fact("note", note) for note in report.notes)
    if report.reasons:
        yield "  A run cannot start as it is:"
        yield from (f"  error: {reason}" for reason in report.reasons)
        if not report.suggestions:
            return
        yield "  With these changes it can try:" if len(report.suggestions) > 1 else "  With this change it can try:"
    elif report.suggestions:
        yield "  A run can start. Suggested changes:"
    else:
        yield "  A run can start; nothing to change:"
    yield from (_suggested(each) for each in report.suggestions)
    yield ""
    yield command_text(report.command)


def _suggested(change: Suggestion) -> str:
    text = f"--{change.key} {change.value}: {change.reason}"
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent=" " * 8, break_on_hyphens=False)


def command_text(words: Sequence[str]) -> str:
    """A command over several lines, one flag with its values never cut."""
    groups: list[str] = []
    for word in words:
        if groups and not word.startswith("--"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = [f"  {groups[0]}"]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) < WIDTH - 3:
            lines[-1] += f" {group}"
        else:
            lines.append(f"      {group}")
    return " \\\n".join(lines)


def by(pair: Pair) -> str:
    return f"{pair[0]} x {pair[1]}"


def counts(numbers: Mapping[str, int]) -> str:
    """ "3 JPEG, 1 PNG"."""
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items())


def of(number: int, images: Images) -> str:
    return f"{number:,} ({number / images.looked_at:.1%})"


def listed(names: Sequence[str], number: int) -> str:
    return ", ".join(names) + (", ..." if number > len(names) else "")


def plural(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' if number != 1 else ''}"


def rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f} images/s" if images_per_second >= 10 else f"{images_per_second:.2g} images/s"


def time_text(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h", "12 days"."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
