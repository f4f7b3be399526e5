"""Look at images, settings and machine before a run: what is there, what fits, what limits, how long it takes.

    swin-mim doctor photos
    swin-mim doctor photos --config simmim_swin_base_192_100ep --train.micro_batch 64
    swin-mim doctor user/name --data.split train --images 500 --json doctor.json
    swin-mim doctor --on 8xh100                        # a plan for GPUs that are not here; --on GPUS --help

SOURCE comes first; after it any option of swin-mim pretrain (its --help lists them). The page ends with the command
to start with. Nothing is written but --json, and nothing is trained: the loader runs for a few seconds, and the model
does a few steps on random images. Exit code: 0 if a run can start, 2 if not.
"""

import argparse
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from swin_mim.cli.doctor import plan as planner
from swin_mim.cli.options import add_json_option, text_stream, write_json
from swin_mim.errors import MISTAKE, Parser, UserError, one_line_errors
from swin_mim.training.config.common_checks import accumulation
from swin_mim.training.config.parsing import load_config
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import check, swin_config, with_packed_channels

if TYPE_CHECKING:
    from swin_mim.cli.doctor.images import Images
    from swin_mim.cli.doctor.opened import Opened
    from swin_mim.cli.doctor.page import Report, Suggestion
    from swin_mim.cli.doctor.speed import Duration, Loading, Steps
    from swin_mim.data.sources.base import Source
    from swin_mim.training.loop.schedule import TrainingSchedule

CONFIG = "simmim_swin_tiny_192_100ep"
"""Without --config: the one for one GPU."""

FEW_STEPS = 10
"""Updates in an epoch that are few."""

_MIN_BATCH = 16
_LONG = 2 * 86400.0
"""Seconds of a run on a CPU that call for a word."""
_FASTER = 1.03  # from which gain on another micro batch is worth a word
_BUSY = 0.5
"""Load of a core by others that spoils the figures."""

Result = TypeVar("Result")


class Job(NamedTuple):
    """The command line."""

    source: str
    config: PretrainConfig
    file: str
    """The config, or the name of a shipped one."""
    flags: list[str]
    """Options of the pretraining that were given."""
    images: int
    json: str | None


def parse(arguments: Sequence[str] | None) -> Job:
    parser = Parser(
        prog="swin-mim doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s SOURCE [--config FILE] [--images N] [--json FILE] [--section.option VALUE ...]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder of images, a data set of the Hub (user/name), or blue_marble")
    add("--config", default=CONFIG, metavar="FILE", help=f"of a pretraining, or the name of one (default: {CONFIG})")
    add("--images", type=int, default=2000, metavar="N", help="to look at, at most (default: 2000)")
    add_json_option(parser)
    own, flags = parser.parse_known_args(arguments)
    if own.images < 1:
        parser.error(f"--images {own.images} must be at least 1")
    config = load_config(
        PretrainConfig,
        ["--config", own.config, "--data.source", own.source, *flags],
        default_config=CONFIG,
        prog="swin-mim doctor",
        description="The options of a pretraining.",
        complete=with_packed_channels,
    )
    return Job(config.data.source, config, own.config, flags, own.images, own.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """-> exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if planner.is_asked_for(given):
        return planner.main(given, CONFIG)
    with one_line_errors():
        job = parse(given)
        report = examine(job)
        from swin_mim.cli.doctor.page import as_text

        print(as_text(report), file=text_stream(job.json))
        write_json({"can_start": report.can_start, **asdict(report)}, job.json)
        if job.json != "-" and not sys.stdout.isatty():  # whoever keeps the page in a file wants to see these
            for reason in report.reasons:
                _print_progress(f"error: {reason}")
        return 0 if report.can_start else MISTAKE


def examine(job: Job) -> "Report":
    """Everything that can be found out; what stands in the way of a run is among it."""
    # the imports wait until the command line is known to be right: torch takes seconds
    from swin_mim.cli.doctor.geometry import geometry_of, near_sizes
    from swin_mim.cli.doctor.page import Report

    reasons, load = _Reasons(), os.getloadavg()[0]
    with _unsaid("swin_mim.data.sources.listing"), _unsaid("swin_mim.data.decoding.tiff_files"):
        config, opened, images, changes = _found(job, reasons)
    varied = not (images and images.channels and not images.channels.varied)
    valid = varied and (reasons.of(lambda: _is_valid(config)) or False)
    if valid:
        reasons.of(lambda: _fits_this_machine(config))
    count = len(opened.training) if opened else 0
    plan = reasons.of(lambda: _plan(config, count)) if opened and valid else None
    loading = steps = duration = None
    if opened and plan and images and images.broken < images.looked_at:
        loading, steps, duration = _measure(config, opened.training, plan, reasons)
    if images:
        reasons.too_many_broken(images, config, plan)
    suggestions = (*changes, *_suggestions(config, images, count, loading, steps, duration))
    return Report(
        source=job.source,
        config=job.file,
        max_broken=config.data.max_broken,
        images=images,
        geometry=geometry_of(config) if valid else None,
        near_sizes=near_sizes(config),
        loading=loading,
        steps=steps,
        duration=duration,
        training_images=count,
        heldout_images=len(opened.heldout) if opened else 0,
        duration_text=config.train.duration,
        global_batch=config.train.global_batch,
        devices=_gpus(),
        notes=tuple(_notes(config, loading, steps, duration, load)),
        reasons=tuple(reasons.found),
        suggestions=suggestions,
        command=tuple(_command(job, suggestions)),
    )


def _found(
    job: Job, reasons: "_Reasons"
) -> "tuple[PretrainConfig, Opened | None, Images | None, tuple[Suggestion, ...]]":
    """The config with what the images need, all of them, what they are, and what that changes."""
    from swin_mim.cli.doctor.opened import open_images
    from swin_mim.cli.doctor.page import Suggestion
    from swin_mim.cli.doctor.rasters import constant_channels, with_channels, with_values

    prepared = reasons.of(lambda: with_channels(job.config))
    if prepared is None:
        return job.config, None, None, ()
    config, changes = prepared
    opened = reasons.of(lambda: open_images(config))
    source = opened.source if opened else None
    images = reasons.of(lambda: _look(job, config, source)) if source else None
    if images and images.channels:
        reasons.found += constant_channels(images.channels)
        read = config.data.channels, config.data.nodata
        config, more = with_values(config, images.channels)
        changes += more
        if (config.data.channels, config.data.nodata) != read:
            opened = reasons.of(lambda: open_images(config))
    last = {each.key: each for each in changes}
    suggestions = tuple(Suggestion(each.key, shlex.join(each.words), each.reason) for each in last.values())
    return config, opened, images, suggestions


class _Reasons:
    """Why a run cannot start, as the recipe would say it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def of(self, what: Callable[[], Result]) -> Result | None:
        """Its result, or None and a reason more."""
        try:
            return what()
        except UserError as error:
            if str(error) not in self.found:
                self.found.append(str(error))
            return None

    def too_many_broken(self, images: "Images", config: PretrainConfig, plan: "TrainingSchedule | None") -> None:
        from swin_mim.training.loop.trainer import BROKEN_GRACE

        most = config.data.max_broken
        if images.broken == images.looked_at:
            first = images.first_broken[0]
            self.found.append(
                f"none of the {images.looked_at} images of data.source {config.data.source!r} that were tried can be "
                f"read, the first: {first.name}: {first.reason}"
            )
        elif images.broken_share > most and (plan is None or plan.total_steps * plan.global_batch >= BROKEN_GRACE):
            self.found.append(
                f"{images.broken} of {images.looked_at} images cannot be read, more than data.max_broken {most:.2%}: "
                f"a run stops after {BROKEN_GRACE} images; {_for_broken(images, config.data.source)}"
            )


def _for_broken(images: "Images", source: str) -> str:
    from swin_mim.cli.doctor.page import for_too_large

    if not images.too_large:
        return "repair or remove them, or raise data.max_broken"
    way_out, one = for_too_large(images, source), images.too_large == 1
    if images.too_large == images.broken:
        return f"{'it is' if one else 'they are'} too large: {way_out}"
    few = f"{images.too_large} of them {'is' if one else 'are'} too large: {way_out}"
    return f"{few}; repair or remove the others, or raise data.max_broken"


def _is_valid(config: PretrainConfig) -> bool:
    check(config)
    return True


def _fits_this_machine(config: PretrainConfig) -> None:
    """What a recipe refuses before it looks at an image, beside `check`."""
    from swin_mim.cli.doctor.speed import device_of_runs
    from swin_mim.models.window_attention import resolve_backend
    from swin_mim.training.distributed import processes
    from swin_mim.training.run import folder as run_folder

    accumulation(config.train, max(1, _gpus()))
    processes.check_trackers(config.log.trackers)
    dtype, swin = processes.DTYPES[processes.resolve_precision(config.train.precision)], swin_config(config.model)
    for stage in range(swin.num_stages):
        tokens, channels = math.prod(swin.stage_window(stage)), swin.stage_dim(stage) // swin.num_heads[stage]
        resolve_backend(config.train.attention, device_of_runs(), tokens, channels, dtype)
    if (folder := _run_folder(config)).exists():
        run_folder.claim(folder, config, write=False)


def _look(job: Job, config: PretrainConfig, source: "Source") -> "Images":
    from swin_mim.architecture import as_pair
    from swin_mim.cli.doctor.images import look_at_all

    sides = config.model.image_size
    size = as_pair(sides) if len(sides) in (1, 2) else (0, 0)
    workers = len(os.sched_getaffinity(0))
    _print_progress(f"looking at {min(job.images, len(source)):,} of {len(source):,} images")
    return look_at_all(source, job.images, size, workers)


def _plan(config: PretrainConfig, images: int) -> "TrainingSchedule":
    from swin_mim.training.loop.schedule import TrainingSchedule

    accumulated = accumulation(config.train, max(1, _gpus()))
    return TrainingSchedule.from_config(config, images=images, accumulation=accumulated)


def _measure(
    config: PretrainConfig, training: "Source", plan: "TrainingSchedule", reasons: _Reasons
) -> "tuple[Loading | None, Steps | None, Duration | None]":
    from swin_mim.cli.doctor.speed import duration_of, measure_loader, measure_steps

    _print_progress("measuring the loader")
    loading = reasons.of(lambda: measure_loader(config, training))
    _print_progress("measuring training steps")
    steps = reasons.of(lambda: measure_steps(config))
    if steps and not steps.fits:
        needs = f"about {steps.peak_gb:.1f} GB" if steps.device == "CPU" or steps.fitting_batch else "more memory"
        use = f"use train.micro_batch {steps.fitting_batch}" if steps.fitting_batch else "use a smaller model"
        reasons.found.append(
            f"train.micro_batch {steps.micro_batch} needs {needs} and {steps.available_gb:.1f} GB are there: {use}"
        )
    if loading and steps and steps.images_per_second:
        return loading, steps, duration_of(plan, len(training), loading, steps)
    return loading, steps, None


def _suggestions(
    config: PretrainConfig,
    images: "Images | None",
    count: int,
    loading: "Loading | None",
    steps: "Steps | None",
    duration: "Duration | None",
) -> Iterator["Suggestion"]:
    from swin_mim.cli.doctor.page import Suggestion

    if images and images.broken_share > config.data.max_broken:
        yield from _reading_more(config, images)
    yield from _batches(config, count, steps)
    if loading and duration and (reason := _why_other_workers(loading, duration)):
        yield Suggestion("data.workers", str(duration.workers), reason)


def _reading_more(config: PretrainConfig, images: "Images") -> Iterator["Suggestion"]:
    """A limit of pixels that reads what is too large, and a share of what stays broken."""
    from swin_mim.cli.doctor.page import Suggestion
    from swin_mim.data.decoding.decode_limits import MAX_MEMORY, MAX_PIXELS

    if images.max_pixels:
        memory = images.max_pixels * MAX_MEMORY / MAX_PIXELS / 2**30
        why = f"to read the images that are too large, with up to {memory:.1f} GiB of memory in every worker"
        yield Suggestion("data.max_pixels", str(images.max_pixels), why)
    share = (images.broken - images.read_with_max_pixels) / images.looked_at
    if config.data.max_broken < share < 1:
        enough = f"{min(1.0, math.ceil(120 * share) / 100):g}"
        yield Suggestion(
            "data.max_broken", enough, "to replace the broken images by others, if they cannot be repaired"
        )


def _batches(config: PretrainConfig, count: int, steps: "Steps | None") -> Iterator["Suggestion"]:
    """A global batch with which there are enough updates of `count` images, and a micro batch that fits."""
    from swin_mim.cli.doctor.page import Suggestion

    train = config.train
    together = train.global_batch
    micro = steps.fitting_batch if steps and steps.fitting_batch else train.micro_batch
    reason = "it fits into the memory; what is missing to the global batch is accumulated, with the same result"
    if steps and (more := steps.larger) and more.images_per_second > _FASTER * steps.images_per_second:
        gain = more.images_per_second / steps.images_per_second - 1
        micro, reason = more.micro_batch, f"the GPU holds it, and is {gain:.0%} faster with it, with the same result"
    if 0 < count < FEW_STEPS * train.global_batch:
        world = max(1, _gpus())
        together = max(_MIN_BATCH * world, world * _power_of_two(count / (2 * FEW_STEPS * world)))
        if together < train.global_batch:
            updates = [f"{count / batch:.3g}" for batch in (train.global_batch, together)]
            why = (
                f"{train.global_batch} are made for many more images: an epoch of these {count:,} has "
                f"{updates[0]} updates with them, and {updates[1]} with {together}; the learning rate follows by itself"
            )
            yield Suggestion("train.global_batch", str(together), why)
            if micro > together // world:
                micro, reason = together // world, "no more than the global batch"
    if micro != train.micro_batch:
        yield Suggestion("train.micro_batch", str(micro), reason)


def _power_of_two(value: float) -> int:
    """The largest power of two that is not more."""
    return 1 << max(0, int(value).bit_length() - 1)


def _why_other_workers(loading: "Loading", duration: "Duration") -> str:
    """Empty if they are right as they are."""
    from swin_mim.cli.doctor.page import plural, rate

    if not loading.workers and loading.images_per_second > 20 * duration.images_per_second:
        return ""  # decoding in the training process costs less than 5 %
    if loading.workers < duration.workers and (duration.loader_limits or not loading.workers):
        return f"a worker delivers about {rate(loading.alone_per_second)}, and cores for them are free"
    if loading.workers > loading.room:
        enough = "it is enough" if duration.workers == 1 else "they are enough, or all that there is"
        return f"this machine has cores for {plural(loading.room, 'worker')}; {enough}, and more only take memory"
    return ""


def _notes(
    config: PretrainConfig,
    loading: "Loading | None",
    steps: "Steps | None",
    duration: "Duration | None",
    load: float,
) -> Iterator[str]:
    """What else there is to say.

    Args:
        load: of the machine before anything was measured.
    """
    from swin_mim.training.distributed.processes import faster_precision
    from swin_mim.training.loop.data_wait import advice

    if faster := faster_precision(config.train.precision):
        yield faster
    if (folder := _run_folder(config)).exists():
        yield f"{folder} exists: the command continues that run; --run.name begins another one"
    if loading and duration and duration.loader_limits and loading.workers >= duration.workers:
        yield advice(loading.slowest, loading.workers, loading.room)
    if steps and duration and steps.device == "CPU" and duration.run_seconds > _LONG:
        yield "there is no GPU here: a smaller model (--model.name swin_nano) or a shorter run is what a CPU can do"
    cores = len(os.sched_getaffinity(0))
    if loading and load > _BUSY * cores:
        yield f"others are busy here (a load of {load:.1f} on {cores} cores): alone, loader and model are faster"
    compiled = config.train.compile
    if _gpus() if compiled == "auto" else compiled:
        yield "the steps were measured without torch.compile"


def _command(job: Job, suggestions: "Sequence[Suggestion]") -> Iterator[str]:
    several = _gpus() > 1
    yield from ("accelerate", "launch", "-m", "swin_mim.recipes.pretrain") if several else ("swin-mim", "pretrain")
    yield from ("--config", shlex.quote(job.file), "--data.source", shlex.quote(job.source))
    yield from map(shlex.quote, planner.without(job.flags, {each.key for each in suggestions}))
    for each in suggestions:
        yield from (f"--{each.key}", *map(shlex.quote, shlex.split(each.value)))


def _gpus() -> int:
    from swin_mim.cli.doctor.speed import gpus

    return gpus()


def _run_folder(config: PretrainConfig) -> Path:
    return Path(config.run.root).expanduser() / config.run.name


@contextmanager
def _unsaid(name: str) -> Iterator[None]:
    """Keep to itself what a logger says inside, as the page says it."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
