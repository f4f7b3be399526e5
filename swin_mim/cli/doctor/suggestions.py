"""Settings that suit these images and this machine better than those that were given."""

import math
from collections.abc import Iterator

from swin_mim.cli.doctor.images.source import Images
from swin_mim.cli.doctor.page import Suggestion, plural, rate
from swin_mim.cli.doctor.speed import Duration, Loading, Steps, gpus
from swin_mim.data.decoding.decode_limits import MAX_MEMORY, MAX_PIXELS
from swin_mim.training.config.pretrain import PretrainConfig

FEW_STEPS = 10
"""Updates in an epoch that are few."""

_MIN_BATCH = 16
_FASTER = 1.03
"""Gain on another micro batch that is worth a word."""


def suggestions_for(
    config: PretrainConfig,
    images: Images | None,
    count: int,
    loading: Loading | None,
    steps: Steps | None,
    duration: Duration | None,
) -> Iterator[Suggestion]:
    """Settings to change for a pretraining, as far as what was measured tells.

    Args:
        count: images to train on.
    """
    if images and images.broken_share > config.data.max_broken:
        yield from _reading_more(config, images)
    yield from batches(config, count, steps)
    if loading and duration and (reason := why_other_workers(loading, duration)):
        yield Suggestion("data.workers", str(duration.workers), reason)


def _reading_more(config: PretrainConfig, images: Images) -> Iterator[Suggestion]:
    """A limit of pixels that reads what is too large, and a share of what stays broken."""
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


def batches(config: PretrainConfig, count: int, steps: Steps | None) -> Iterator[Suggestion]:
    """A global batch with which there are enough updates of `count` images, and a micro batch that fits."""
    train = config.train
    together = train.global_batch
    micro = steps.fitting_batch if steps and steps.fitting_batch else train.micro_batch
    reason = "it fits into the memory; what is missing to the global batch is accumulated, with the same result"
    if steps and (more := steps.larger) and more.images_per_second > _FASTER * steps.images_per_second:
        gain = more.images_per_second / steps.images_per_second - 1
        micro, reason = more.micro_batch, f"the GPU holds it, and is {gain:.0%} faster with it, with the same result"
    if 0 < count < FEW_STEPS * train.global_batch:
        world = max(1, gpus())
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


def why_other_workers(loading: Loading, duration: Duration) -> str:
    """Empty if they are right as they are."""
    if not loading.workers and loading.images_per_second > 20 * duration.images_per_second:
        return ""  # decoding in the training process costs less than 5 %
    if loading.workers < duration.workers and (duration.loader_limits or not loading.workers):
        return f"a worker delivers about {rate(loading.alone_per_second)}, and cores for them are free"
    if loading.workers > loading.room:
        enough = "it is enough" if duration.workers == 1 else "they are enough, or all that there is"
        return f"this machine has cores for {plural(loading.room, 'worker')}; {enough}, and more only take memory"
    return ""
