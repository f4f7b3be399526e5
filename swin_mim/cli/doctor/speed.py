"""How fast images come and how fast the model takes them, on this machine. For `swin-mim doctor`."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from swin_mim.architecture import as_pair
from swin_mim.data.decoding.channel_reader import numbers
from swin_mim.data.decoding.raster import pixel_bytes
from swin_mim.data.loading.loader import Batch, LoaderOptions, TrainingLoader
from swin_mim.data.sources.base import Source
from swin_mim.data.timing import LoadingTime, together
from swin_mim.data.transforms.crops import PretrainTransform
from swin_mim.masking import BlockMasks
from swin_mim.training.channels import preprocessing_of
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import reads_rasters, swin_config
from swin_mim.training.distributed.processes import resolve_precision, set_threads, uses_gpu
from swin_mim.training.loop.optim import adamw
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.worker_count import room_for_workers, worker_count
from swin_mim.training.models import build_simmim
from swin_mim.training.run.tracking import peak_memory_gb

SECONDS = 4.0
"""Length of the measurement of the loader."""
STEP_SECONDS = 20.0
"""Length of the steps on a CPU, about."""
ENOUGH = 1.1
"""How much more than the model takes a loader delivers that is enough."""
SPARE = 1.25
"""How many more workers than are needed on paper."""

LARGEST = 1024
"""Largest micro batch that is tried unasked: what a GPU loses between two steps is hidden long before."""

_MEMORY = 0.8  # share of what is available
_GPU_MEMORY = 0.85  # the rest is for evaluations, for what the allocator cannot use, and for others on that GPU
_TRIAL = 2  # images of the first step on a CPU
_GPU_STEPS = 5


@dataclass(frozen=True)
class Loading:
    """The loader by itself."""

    workers: int
    images_per_second: float
    alone_per_second: float
    """Rate of one core that does nothing else."""
    milliseconds: dict[str, float]
    """Time of each stage, for one image on such a core."""
    room: int
    """Workers that would have a core."""
    slowest: str

    def per_core(self) -> float:
        """Seconds of a core for one image."""
        return 1 / self.alone_per_second


@dataclass(frozen=True)
class Larger:
    """Steps of a larger micro batch than the config's, on a GPU whose memory holds it."""

    micro_batch: int
    images_per_second: float
    peak_gb: float


@dataclass(frozen=True)
class Steps:
    """Training steps by themselves."""

    device: str
    precision: str
    threads: int
    parameters: int
    micro_batch: int
    """That of the config."""
    measured_batch: int
    """Images of the steps that were measured."""
    images_per_second: float
    peak_gb: float
    """At the micro batch of the config, measured or, from a smaller batch, estimated."""
    available_gb: float
    fitting_batch: int
    """The largest micro batch up to that of the config that fits, and divides its global batch; 0 if none does."""
    larger: Larger | None = None
    """What a GPU has the memory for beyond the config's micro batch, if that is fewer images than it could take."""

    @property
    def estimated(self) -> bool:
        return self.measured_batch != self.micro_batch

    @property
    def fits(self) -> bool:
        return self.fitting_batch == self.micro_batch


@dataclass(frozen=True)
class Duration:
    """How long the run takes, on one process."""

    images_per_second: float
    """Rate of loader and model together."""
    steps: int
    steps_per_epoch: float
    epoch_seconds: float
    run_seconds: float
    loader_limits: bool
    factor: float
    """How much more the faster of the two would do."""
    workers: int
    """That suffice, or all that this machine has cores for."""


def device_of_runs() -> torch.device:
    return torch.device("cuda" if uses_gpu() else "cpu")


def gpus() -> int:
    """That `accelerate launch` would start a process for."""
    return torch.cuda.device_count() if uses_gpu() else 0


def measure_loader(config: PretrainConfig, source: Source) -> Loading:
    """One core alone, and then the config's workers.

    Files that were read a moment ago come from memory, as they do in the second epoch if they fit there.

    Raises:
        UserError: too many images cannot be read.
    """
    seconds, images, spent = _loaded(config, source, workers=0, micro_batch=4, seconds=SECONDS / 3)
    device, processes = device_of_runs(), max(1, gpus())
    alone, workers = images / seconds, worker_count(config.data, device, processes)
    rate = alone
    if workers:
        passed, delivered, _ = _loaded(config, source, workers, min(config.train.micro_batch, 32), SECONDS)
        rate = delivered / passed
    return Loading(
        workers=workers,
        images_per_second=rate,
        alone_per_second=alone,
        milliseconds={stage: 1000 * value / images for stage, value in spent._asdict().items()},
        room=room_for_workers(device, processes),
        slowest=spent.slowest,
    )


def _loaded(
    config: PretrainConfig, source: Source, workers: int, micro_batch: int, seconds: float
) -> tuple[float, int, LoadingTime]:
    """(seconds, images in them, what loading those took), once every worker has delivered a batch."""
    data, size = config.data, as_pair(config.model.image_size)
    pixel = pixel_bytes(config.model.in_channels) if reads_rasters(data, config.model) else 3
    loader = TrainingLoader(
        source,
        PretrainTransform(size, scale=data.crop_scale, ratio=data.crop_ratio, flips=data.flips),
        seed=config.run.seed,
        global_batch=micro_batch,
        micro_batch=micro_batch,
        options=LoaderOptions(workers=workers, automatic=data.workers == "auto", pixel_bytes=pixel),
    )
    batches = loader.batches(samples_seen=0)
    with closing(batches):  # type: ignore[type-var]  # it is a generator
        for _ in range(max(workers, 1)):
            next(batches)
        return _count(batches, max(workers, 1), seconds)


def _count(batches: Iterator[Batch], rounds: int, seconds: float) -> tuple[float, int, LoadingTime]:
    """Whole rounds of the workers, each of which delivers a batch in turn."""
    start, images, times = time.perf_counter(), 0, []
    for number in count(1):
        batch = next(batches)
        images += len(batch.images)
        times.append(batch.seconds)
        passed = time.perf_counter() - start
        if passed >= seconds and number % rounds == 0:
            return passed, images, together(times)
    raise AssertionError("the batches have no end")


def measure_steps(config: PretrainConfig) -> Steps:
    """Real steps of the config's model: forward, backward, clipping, update; on random images.

    Raises:
        UserError: settings that this device cannot do, or weights that are not there.
    """
    threads = set_threads(config.train.threads)
    precision, device = resolve_precision(config.train.precision), device_of_runs()
    trainer = _Trainer(config, device, precision)
    measure = _on_gpu if device.type == "cuda" else _on_cpu
    measured, rate, peak, available, fitting = measure(trainer, config)
    roomy = device.type == "cuda" and fitting == config.train.micro_batch
    larger = _larger_on_gpu(trainer, config, peak, available) if roomy else None
    return Steps(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        precision=precision,
        threads=threads,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        micro_batch=config.train.micro_batch,
        measured_batch=measured,
        images_per_second=rate,
        peak_gb=peak,
        available_gb=available,
        fitting_batch=fitting,
        larger=larger,
    )


class _Trainer:
    """The step of a pretraining, by itself: neither loader nor log."""

    def __init__(self, config: PretrainConfig, device: torch.device, precision: str) -> None:
        swin, data = swin_config(config.model), config.data
        rasters = reads_rasters(data, config.model)
        channels = (data.channels or numbers(swin.in_channels)) if rasters else None
        self.model = build_simmim(config, preprocessing_of(data, channels)).to(device)
        self._optimizer = adamw(self.model)
        self._clip, self._device = config.optim.clip_norm, device
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._autocast = partial(torch.autocast, device.type, half, enabled=half is not None)
        self._masks = BlockMasks.of(swin, unit=config.mask.unit, ratio=config.mask.ratio)
        self._size = (swin.in_channels, *as_pair(swin.image_size))

    def steps(self, batch: int, number: int) -> float:
        """Seconds of so many steps."""
        images, mask = torch.randn(batch, *self._size, device=self._device), self._drawn(batch)
        self._synchronize()
        start = time.perf_counter()
        for _ in range(number):
            self._step(images, mask)
        self._synchronize()
        return time.perf_counter() - start

    def _step(self, images: Tensor, mask: Tensor) -> None:
        with self._autocast():
            loss = self.model(images, mask, self._masks.cells).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _drawn(self, batch: int) -> Tensor:
        return self._masks.draw(batch, seed=0, start=0, device=self._device)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


Measured = tuple[int, float, float, float, int]
"""(images of the measured steps, images/s, peak and available GB, micro batch that fits)"""


def _on_gpu(trainer: _Trainer, config: PretrainConfig) -> Measured:
    device = torch.device("cuda")
    total = torch.cuda.mem_get_info(device)[1] / 1e9
    for batch in _divisors(config):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            trainer.steps(batch, 2)
            seconds = trainer.steps(batch, _GPU_STEPS)
        except torch.OutOfMemoryError:
            continue
        wished, peak = config.train.micro_batch, peak_memory_gb(device)
        return batch, _GPU_STEPS * batch / seconds, peak * wished / batch, total, batch
    return 0, 0.0, total, total, 0


def _larger_on_gpu(trainer: _Trainer, config: PretrainConfig, peak: float, total: float) -> Larger | None:
    """The largest micro batch that by the memory of the config's one should fit, and then does.

    Args:
        peak: GB at the config's micro batch.
        total: GB of the GPU.
    """
    device = torch.device("cuda")
    kept = torch.cuda.memory_allocated(device) / 1e9  # weights and moments, whatever the batch
    for batch in larger_batches(config, max(1, gpus()), (peak - kept) / config.train.micro_batch, total - kept):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            trainer.steps(batch, 2)
            seconds = trainer.steps(batch, _GPU_STEPS)
        except torch.OutOfMemoryError:
            continue
        return Larger(batch, _GPU_STEPS * batch / seconds, peak_memory_gb(device))
    return None


def larger_batches(config: PretrainConfig, processes: int, each: float, free: float) -> list[int]:
    """Micro batches above the config's that divide the images of a process and are expected to fit, the largest first.

    Args:
        processes: that share the global batch.
        each: GB of an image.
        free: GB for images.
    """
    train = config.train
    if train.global_batch % processes:
        return []
    share = train.global_batch // processes
    most = min(share, LARGEST, int(_GPU_MEMORY * free / each) if each > 0 else LARGEST)
    return [batch for batch in range(most, train.micro_batch, -1) if share % batch == 0]


def _on_cpu(trainer: _Trainer, config: PretrainConfig) -> Measured:
    """First a small batch, which tells how many images the time and the memory allow."""
    wished = config.train.micro_batch
    batch = min(_TRIAL, wished)
    trainer.steps(batch, 1)
    kept = _resident_gb()
    _forget_peak()
    seconds = trainer.steps(batch, 1)
    each = max(_peak_gb() - kept, 0.0) / batch
    available = _available_gb() + kept
    by_time = int(STEP_SECONDS / 2 * batch / seconds)
    by_memory = int(_MEMORY * (available - kept) / each) if each else wished
    larger = min(wished, by_time, by_memory)
    if larger > batch:
        batch = larger
        _forget_peak()
        seconds = trainer.steps(batch, 2) / 2
        each = max(_peak_gb() - kept, 0.0) / batch
    peak = kept + each * wished
    fitting = next((each_batch for each_batch in _divisors(config) if kept + each * each_batch <= available), 0)
    return batch, batch / seconds, peak, available, fitting


def _divisors(config: PretrainConfig) -> list[int]:
    """Micro batches up to the wished one that divide the global batch, the largest first."""
    train = config.train
    return [batch for batch in range(train.micro_batch, 0, -1) if train.global_batch % batch == 0]


def duration_of(plan: TrainingSchedule, images: int, loading: Loading, steps: Steps) -> Duration:
    """What both measurements mean for the run.

    On a CPU workers and training share the cores; beside a GPU, the slower one of the two sets the pace.
    """
    gpu = steps.device != "CPU"
    if not loading.workers:
        rate = 1 / (1 / steps.images_per_second + loading.per_core())
    elif gpu:
        rate = min(steps.images_per_second, loading.images_per_second)
    else:
        shared = 1 / (1 / steps.images_per_second + loading.per_core() / _cores())
        rate = min(shared, loading.images_per_second)
    ratio = loading.images_per_second / steps.images_per_second
    needed = int(SPARE * steps.images_per_second * loading.per_core()) + 1
    step = plan.global_batch / rate
    return Duration(
        images_per_second=rate,
        steps=plan.total_steps,
        steps_per_epoch=images / plan.global_batch,
        epoch_seconds=images / rate,
        run_seconds=plan.total_steps * step,
        loader_limits=ratio < 1,
        factor=max(ratio, 1 / ratio),
        workers=min(needed, loading.room),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _available_gb() -> float:
    """That this machine, or this container, has left."""
    limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9]
    if free := _kilobytes(Path("/proc/meminfo"), "MemAvailable"):
        limits = [free * 1024 / 1e9]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, StopIteration):  # no such file, or no limit
        in_use = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        anonymous = next(int(size) for name, size in in_use if name == "anon")
        limits.append((int((group / "memory.max").read_text()) - anonymous) / 1e9)
    return max(min(limits), 0.0)


def _resident_gb() -> float:
    return (_kilobytes(Path("/proc/self/status"), "VmRSS") or 0) * 1024 / 1e9


def _peak_gb() -> float:
    high_water = _kilobytes(Path("/proc/self/status"), "VmHWM")
    return high_water * 1024 / 1e9 if high_water else peak_memory_gb(torch.device("cpu"))


def _forget_peak() -> None:
    """The high-water mark starts anew, where the system can do that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _kilobytes(path: Path, key: str) -> int | None:
    if not path.exists():
        return None
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(words[1]) for words in lines if words and words[0] == f"{key}:"), None)
