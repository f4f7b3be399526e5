"""Which classes are how frequent in masks, by reading all of them once."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.dense.masks import Masks
from swin_mim.data.dense.pairs import Pairs
from swin_mim.errors import UserError
from swin_mim.files import replace_json, sha256

_log = logging.getLogger(__name__)


def numbers_in(masks: Masks, cache: Path | None = None) -> list[int]:
    """The class numbers that are in any of some masks, in order. Masks that are damaged are left out, with a warning.

    Args:
        cache: a file that keeps the answer.

    Raises:
        UserError: a mask is none, or has a number below 0.
    """
    known = sha256([b"numbers", masks.fingerprint.encode()])
    if (kept := _kept(cache, known)) is not None:
        return kept
    found: set[int] = set()

    def add(index: int) -> None:
        numbers = [int(number) for number in np.unique(masks.read(index))]
        if numbers and numbers[0] < 0:
            raise UserError(f"mask {masks.name(index)} has the class number {numbers[0]}: they are 0 and more")
        found.update(numbers)

    _each(len(masks), add)
    return _keep(cache, known, sorted(found))


def class_pixels(pairs: Pairs, cache: Path | None = None) -> np.ndarray:
    """Pixels of each class, int64 (classes,). As `numbers_in`."""
    known = sha256([b"pixels", pairs.fingerprint.encode()])
    if (kept := _kept(cache, known)) is None:
        counts = np.zeros(len(pairs.names), dtype=np.int64)

        def add(index: int) -> None:
            labels = pairs.labels(index)
            counts[:] += np.bincount(labels[labels != pairs.numbers.unlabelled], minlength=len(counts))

        _each(len(pairs), add)
        kept = _keep(cache, known, counts.tolist())
    return np.array(kept, dtype=np.int64)


def pixel_weights(counts: np.ndarray) -> np.ndarray:
    """float32 (classes,): the inverse of each class's share of the pixels, so that their mean over these is 1.

    A class without pixels has 0.
    """
    weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def _each(count: int, add: Callable[[int], None]) -> None:
    from tqdm import tqdm

    broken = 0
    for index in tqdm(range(count), desc="masks", unit="", file=sys.stderr, disable=None, leave=False):
        try:
            add(index)
        except BrokenImage as error:
            broken += 1
            if broken == 1:
                _log.warning("%s", error)
    if broken:
        _log.warning("%s cannot be read and are not counted", counted(broken, "mask"))


def _kept(cache: Path | None, known: str) -> list[int] | None:
    if cache is None or not cache.is_file():
        return None
    value = json.loads(cache.read_text()).get(known)
    return None if value is None else [int(number) for number in value]


def _keep(cache: Path | None, known: str, value: list[int]) -> list[int]:
    if cache is not None:
        there = json.loads(cache.read_text()) if cache.is_file() else {}
        replace_json(cache, {**there, known: value})
    return value
