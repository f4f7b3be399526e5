"""Look at images, settings and machine before a run: what is there, what fits, what limits, how long it takes.

    swin-mim doctor photos
    swin-mim doctor photos --config simmim_swin_base_192_100ep --train.micro_batch 64
    swin-mim doctor user/name --data.split train --images 500 --json doctor.json
    swin-mim doctor --on 8xh100                        # a plan for GPUs that are not here; --on GPUS --help

SOURCE comes first, or as --data.source; besides any option of swin-mim pretrain (its --help lists them). The page ends
with the command to start with. Nothing is written but --json, and nothing is trained: the loader runs for a few
seconds, and the model does a few steps on random images. Exit code: 0 if a run can start, 2 if not.
"""

import argparse
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from swin_mim.cli.doctor import plan as planner
from swin_mim.cli.doctor.named import SOURCE, add_source, named_source
from swin_mim.cli.doctor.reasons import Reasons
from swin_mim.cli.options import add_json_option, text_stream, write_json
from swin_mim.errors import MISTAKE, Parser, one_line_errors
from swin_mim.training.config.common_checks import accumulation
from swin_mim.training.config.parsing import load_config
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import check, swin_config, with_packed_channels

if TYPE_CHECKING:
    from swin_mim.cli.doctor.images.forecast import Forecast
    from swin_mim.cli.doctor.images.source import Images
    from swin_mim.cli.doctor.opened import Opened
    from swin_mim.cli.doctor.page import Report, Suggestion
    from swin_mim.cli.doctor.speed import Duration, Loading, Steps
    from swin_mim.data.sources.base import Source
    from swin_mim.training.loop.schedule import TrainingSchedule

CONFIG = "simmim_swin_tiny_192_100ep"
"""Without --config: the one for one GPU."""

IMAGES = 2000
"""To look at, at most, unless --images says otherwise."""
_LONG = 2 * 86400.0
"""Seconds of a run on a CPU that call for a word."""
_BUSY = 0.5
"""Load of a core by others that spoils the figures."""


class Job(NamedTuple):
    """The command line."""

    source: str
    config: PretrainConfig
    file: str
    """The config, or the name of a shipped one."""
    flags: list[str]
    """Options of the pretraining that were given."""
    images: int
    labelled: int | None
    json: str | None


def parse(arguments: Sequence[str] | None) -> Job:
    parser = Parser(
        prog="swin-mim doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s SOURCE [--config FILE] [--images N] [--labelled N] [--json FILE] [--section.option VALUE ...]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_source(parser)
    add("--config", default=CONFIG, metavar="FILE", help=f"of a pretraining, or the name of one (default: {CONFIG})")
    add("--images", type=int, default=IMAGES, metavar="N", help=f"to look at, at most (default: {IMAGES})")
    add("--labelled", type=int, metavar="N", help="images that have labels, to tell what pretraining may be worth")
    add_json_option(parser)
    own, rest = parser.parse_known_args(arguments)
    source, flags = named_source(parser, own, rest)
    if not source:
        parser.error(f"say which images to look at: {SOURCE}")
    if own.images < 1:
        parser.error(f"--images {own.images} must be at least 1")
    if own.labelled is not None and own.labelled < 1:
        parser.error(f"--labelled {own.labelled} must be at least 1: leave it out if there are none")
    config = load_config(
        PretrainConfig,
        ["--config", own.config, *source, *flags],
        default_config=CONFIG,
        prog="swin-mim doctor",
        description="The options of a pretraining.",
        complete=with_packed_channels,
    )
    return Job(config.data.source, config, own.config, flags, own.images, own.labelled, own.json)


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
    from swin_mim.cli.doctor.suggestions import suggestions_for

    reasons, load = Reasons(), os.getloadavg()[0]
    with _unsaid("swin_mim.data.sources.listing"), _unsaid("swin_mim.data.decoding.tiff_files"):
        config, opened, images, changes = _found(job, reasons)
    varied = not (images and images.channels and not images.channels.varied)
    valid = varied and (reasons.of(lambda: _is_valid(config)) or False)
    if valid:
        reasons.of(lambda: _fits_this_machine(config))
    count = len(opened.training) if opened else 0
    plan = reasons.of(lambda: _plan(config, count)) if opened and valid else None
    loading = steps = duration = forecast = None
    if opened and plan and images and images.broken < images.looked_at:
        forecast = reasons.of(lambda: _forecast(config, opened, job.labelled))
        loading, steps, duration = _measure(config, opened.training, plan, reasons)
    if images:
        reasons.too_many_broken(images, config, plan)
    suggestions = (*changes, *suggestions_for(config, images, count, loading, steps, duration))
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
        forecast=forecast,
        expected=_expected(forecast, config),
    )


def _forecast(config: PretrainConfig, opened: "Opened", labelled: int | None) -> "Forecast":
    from swin_mim.cli.doctor.images.forecast import forecast_of

    _print_progress("filling holes")
    return forecast_of(config, opened.training, opened.source.channels, labelled)


def _expected(forecast: "Forecast | None", config: PretrainConfig) -> tuple[tuple[str, str], ...]:
    from swin_mim.cli.doctor.images.expectation import lines

    return () if forecast is None else tuple(lines(forecast, config))


def _found(
    job: Job, reasons: "Reasons"
) -> "tuple[PretrainConfig, Opened | None, Images | None, tuple[Suggestion, ...]]":
    """The config with what the images need, all of them, what they are, and what that changes."""
    from swin_mim.cli.doctor.images.rasters import constant_channels, with_channels, with_values
    from swin_mim.cli.doctor.opened import open_images
    from swin_mim.cli.doctor.page import Suggestion

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


def _is_valid(config: PretrainConfig) -> bool:
    check(config)
    return True


def _fits_this_machine(config: PretrainConfig) -> None:
    """What a recipe refuses before it looks at an image, beside `check`."""
    from swin_mim.cli.doctor.speed import device_of_runs
    from swin_mim.models.blocks.window_attention import resolve_backend
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
    from swin_mim.cli.doctor.images.source import look_at_all

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
    config: PretrainConfig, training: "Source", plan: "TrainingSchedule", reasons: Reasons
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
