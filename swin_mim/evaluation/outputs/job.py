"""One result for every image of a source, by one process or several, that goes on where it was interrupted."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from swin_mim.counts import counted
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError
from swin_mim.evaluation.outputs.collect import Outputs, Rows, collect, reader_of
from swin_mim.evaluation.outputs.dense import DenseOutputs
from swin_mim.evaluation.outputs.images import image_name
from swin_mim.evaluation.outputs.parts import (
    Manifest,
    Parts,
    begun_manifest,
    check_any_read,
    check_same,
    finished_manifest,
    held,
    join,
)
from swin_mim.evaluation.reader import Reader
from swin_mim.training.config.pretrain import DataConfig
from swin_mim.training.distributed.processes import DTYPES
from swin_mim.training.run.tracking import duration_text

PART_BATCHES = 16
"""Batches of a part: what is computed again after an interruption is less than this."""
PART_BYTES = 64 * 2**20
"""Max size of a part's values, but a batch of them."""
NAMED = 20
"""Images that cannot be read and are named one by one."""
_HASHES = "hashes"  # in the manifest
_SAID_EVERY = 60.0  # seconds, where there is no terminal
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is computed, and where it goes.

    Args:
        out: the file that is made of all parts.
        folder: of the parts; removed at the end unless it holds more than them.
        images: settings of the source, which is open.
        batch: images of one forward.
        part: images of one part, a multiple of that.
        precision: "fp32", or what autocast multiplies in.
        about: what else decides the result, as JSON; "model" is a digest of its weights.
        labels: of every image; None: there are none.
        hashes: columns pixels and look, as `image_hash` makes them, are wanted too; parts that were begun without or
            with them go on so.
        table_of: a part's number, its columns image, label and error, and its values -> `pyarrow.Table`.
        finish: `pyarrow.Table` of parts -> that of `out`.
        write: writes `out` in a form of its own, by a function that reads the tables of all parts from the first one;
            None: as .parquet or .csv.
        discard: removes what earlier commands left besides `out` and parts, which still say what that is.
    """

    out: Path
    folder: Path
    images: DataConfig
    source: Source
    outputs: Outputs | DenseOutputs
    batch: int
    part: int
    precision: str
    about: Manifest
    labels: Sequence[str | None] | None
    table_of: Callable[[int, dict[str, Any], dict[str, np.ndarray]], Any]
    finish: Callable[[Any], Any] = lambda table: table
    write: Callable[[Path, Callable[[], Iterator[Any]]], None] | None = None
    discard: Callable[[], None] = lambda: None
    hashes: bool = False

    @property
    def manifest(self) -> Manifest:
        source = {"model": self.about["model"], "source": self.source.fingerprint, "images": len(self.source)}
        source |= self.about | {"batch": self.batch, "part": self.part, "precision": self.precision}
        return source | {_HASHES: self.hashes or None}

    def reader(self) -> Reader:
        """How images reach the model."""
        assert isinstance(self.outputs, Outputs)
        return reader_of(self.outputs, self.images, self.source, self.batch, hashes=self.hashes)

    @property
    def parts(self) -> Parts:
        return Parts(self.folder, len(self.source), self.part)


@dataclass
class Done:
    """How it went."""

    images: int
    computed: int
    """Images that this call computed, over all processes."""
    seconds: float
    """What computing them took."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the images that could not be read."""


def part_size(batch: int, image_bytes: int, most: int, batches: int = PART_BATCHES) -> int:
    """Images of a part: whole batches, so many and of not more than `most` bytes, but one at least."""
    return batch * max(1, min(batches, most // (image_bytes * batch)))


def parts_beside(out: Path) -> Path:
    """The folder of the parts of a file."""
    return out.with_name(f"{out.name}.parts")


def run(job: Job, accelerator: Accelerator, *, overwrite: bool = False) -> Done | None:
    """Compute what is missing; all processes call it together, and each computes whole parts.

    Args:
        overwrite: what is there of an earlier command is replaced, finished or not.

    Returns:
        how it went, on the main process; None on the others.

    Raises:
        UserError: there is something else in the folder or at `out`, or no image can be read.
    """
    main, world = accelerator.is_main_process, accelerator.num_processes
    start = time.monotonic()
    job.outputs.model.to(accelerator.device)
    with _alone(job, overwrite=overwrite) if main else nullcontext(None) as found:
        plan: Any = broadcast_object_list([found])[0] if world > 1 else found
        if isinstance(plan, UserError):
            raise plan
        if plan is None:
            return Done(len(job.source), 0, 0.0) if main else None
        job = replace(job, hashes=plan.hashes)
        numbers = plan.missing[accelerator.process_index :: world]
        _fill(job, numbers, processes=world, place=accelerator.process_index)
        if world > 1:
            accelerator.wait_for_everyone()
        if not main:
            return None
        seconds = time.monotonic() - start
        broken = check_any_read(job.parts, job.images.source)
        join(job.parts, job.out, job.manifest, job.finish, job.write)
        job.parts.remove()
    computed = sum(len(job.parts.range(number)) for number in plan.missing)
    return Done(len(job.source), computed, seconds, broken)


class _Plan(NamedTuple):
    missing: list[int]
    """Numbers of parts."""
    hashes: bool
    """Whether they have those."""


@contextmanager
def _alone(job: Job, *, overwrite: bool) -> Iterator[_Plan | UserError | None]:
    """Hold the folder for the main process -> what is missing; None: it is finished; or what speaks against it."""
    with ExitStack() as stack:
        try:
            found: _Plan | UserError | None = _claimed(job, stack, overwrite=overwrite)
        except UserError as error:
            found = error
        yield found


def _claimed(job: Job, stack: ExitStack, *, overwrite: bool) -> _Plan | None:
    # a process that is killed between the last two steps leaves both the file and the parts
    if job.out.exists() and not overwrite and begun_manifest(job.folder) is None:
        there = finished_manifest(job.out)
        if there is None:
            raise UserError(f"{job.out} exists already: name another --out, or give --overwrite")
        # they are no part of what was asked for, and can be made without the model
        check_same(there, {key: value for key, value in job.manifest.items() if key != _HASHES}, f"{job.out} is")
        return None
    if not overwrite and (begun := begun_manifest(job.folder)) is not None:
        job = replace(job, hashes=bool(begun.get(_HASHES)))
    stack.enter_context(held(job.folder, job.manifest, discard=job.discard if overwrite else None))
    return _Plan(job.parts.missing(), job.hashes)


def _fill(job: Job, numbers: Sequence[int], *, processes: int, place: int) -> None:
    """Compute these parts."""
    parts, batch = job.parts, job.batch
    starts = [start for number in numbers for start in parts.range(number)[::batch]]
    total = sum(len(parts.range(number)) for number in numbers)
    left = iter(numbers)
    rows: list[Rows] = []
    with _Progress(total, processes=processes, place=place) as progress:

        def take(more: Rows) -> None:
            rows.append(more)
            progress.broken(job.source, more)
            progress.update(len(more.errors))
            last = more.start + len(more.errors)
            if last % parts.size == 0 or last == parts.images:
                number = next(left)
                parts.write(number, _table(job, number, rows))
                rows.clear()

        dtype = DTYPES[job.precision]
        if isinstance(job.outputs, DenseOutputs):
            job.outputs.compute(starts, dtype, take)
        else:
            collect(job.source, job.reader(), job.outputs, starts, dtype, take)
    assert not rows
    assert next(left, None) is None


def _table(job: Job, number: int, rows: Sequence[Rows]) -> Any:
    import pyarrow as pa

    indices = job.parts.range(number)
    known = {"image": pa.array([image_name(job.source, index) for index in indices], pa.string())}
    if job.labels is not None:
        known["label"] = pa.array([job.labels[index] for index in indices], pa.string())
    if job.hashes:
        hashes = np.concatenate([each.hashes for each in rows if each.hashes is not None])
        known |= {name: pa.array(hashes[:, place], pa.uint64()) for place, name in enumerate(("pixels", "look"))}
    known["error"] = pa.array([reason for each in rows for reason in each.errors], pa.string())
    values = [np.concatenate(each) for each in zip(*(each.values for each in rows), strict=True)]
    return job.table_of(number, known, dict(zip(job.outputs.shapes, values, strict=True)))


class _Progress:
    """A bar on a terminal, a line a minute elsewhere: of the first process, which has as much to do as each other."""

    def __init__(self, total: int, *, processes: int, place: int) -> None:
        self._total, self._count, self._named = total, 0, 0
        self._start = self._said = time.monotonic()
        self._main, among = place == 0, f"process 1 of {processes}" if processes > 1 else None
        bar: dict[str, Any] = {"unit": " images", "dynamic_ncols": True, "desc": among}
        self._bar = tqdm(total=total, **bar) if self._main and sys.stderr.isatty() and total else None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int) -> None:
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._main and time.monotonic() - self._said > _SAID_EVERY:
            self._said = time.monotonic()
            rate = self._count / (self._said - self._start)
            left = duration_text((self._total - self._count) / rate)
            print(
                f"{self._count} of {self._total} images, {rate:.1f} images/s, eta {left}", file=sys.stderr, flush=True
            )

    def broken(self, source: Source, rows: Rows) -> None:
        """Name the images that cannot be read."""
        for index, reason in enumerate(rows.errors, rows.start):
            if reason is None or len(source) == 1:  # of one alone an error says it
                continue
            self._named += 1
            if self._named <= NAMED:
                _log.warning("cannot read %s (%s)", image_name(source, index), reason)
            if self._named == NAMED:
                _log.warning("further images that cannot be read are only listed in the result, with their reasons")


def done_text(done: Done, out: Path) -> str:
    """One line: what was written, how fast, and what could not be read."""
    if not done.computed and not done.seconds:
        return f"{out}: finished before, {counted(done.images, 'image')}"
    before = done.images - done.computed
    parts = [counted(done.images, "image")]
    if before:
        parts.append(f"{before} of them before")
    if done.computed:
        parts.append(f"{done.computed / done.seconds:.1f} images/s")
    if done.broken:
        listed = "its list unreadable" if out.suffix.lower() == ".json" else "the column error"
        parts.append(f"{len(done.broken)} cannot be read, see {listed}")
    return f"{out}: {', '.join(parts)}"
