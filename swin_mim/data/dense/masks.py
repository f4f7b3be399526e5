"""Files of class numbers, one for each pixel of an image -> labels that a model learns from.

A class has a number in the files and another in training, from 0. What is not labelled has a label above all of these.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from swin_mim.counts import counted
from swin_mim.data.decoding.decode_limits import MAX_PIXELS, BrokenImage
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.decoding.multichannel import open_channels
from swin_mim.data.decoding.options import DecodeOptions
from swin_mim.data.decoding.rgb import palette_numbers
from swin_mim.data.dense.limits import MAX_NUMBER
from swin_mim.data.sources.base import FileSource
from swin_mim.errors import UserError
from swin_mim.files import sha256

_INVALID = 65534


@dataclass(frozen=True)
class ClassNumbers:
    """Which numbers of the files are classes."""

    count: int
    """How many classes there are, from 1 to `MAX_CLASSES`."""
    first: int = 0
    """Number of the first one; what is below is not labelled."""
    ignore: int = 255
    """Number of pixels that are not labelled."""

    @property
    def dtype(self) -> np.dtype:
        """Type of labels."""
        return np.dtype(np.uint8 if self.count <= 255 else np.uint16)

    @property
    def unlabelled(self) -> int:
        """Label of pixels that are not labelled: 255, or where there are more than 255 classes 65535."""
        return int(np.iinfo(self.dtype).max)

    def labels(self, mask: np.ndarray) -> np.ndarray:
        """Numbers of a file, integers (H, W) -> labels, uint8 or uint16 (H, W).

        Raises:
            ValueError: a number that is no class; says which.
        """
        low, high = int(mask.min()), int(mask.max())
        if low < 0 or high > MAX_NUMBER:
            raise ValueError(self._refusal(low if low < 0 else high))
        found = self._table[mask.astype(np.uint16, copy=False)]
        if (wrong := found == _INVALID).any():
            raise ValueError(self._refusal(int(mask[wrong][0])))
        return found.astype(self.dtype)

    def numbers(self, labels: np.ndarray) -> np.ndarray:
        """Labels -> numbers as the files have them: uint8 where all fit, else uint16."""
        dtype = np.uint8 if max(self.first + self.count - 1, self.ignore) < 256 else np.uint16
        if self.first == 0 and self.ignore == self.unlabelled:  # the same, and of a large scene a lot less memory
            return labels.astype(dtype, copy=False)
        return np.where(labels == self.unlabelled, self.ignore, labels.astype(np.int64) + self.first).astype(dtype)

    @cached_property
    def _table(self) -> np.ndarray:
        """uint16 (65536,): the label of each number."""
        table = np.full(MAX_NUMBER + 1, _INVALID, dtype=np.uint16)
        table[: self.first] = self.unlabelled
        table[self.first : self.first + self.count] = np.arange(self.count)
        table[self.ignore] = self.unlabelled
        return table

    def _refusal(self, number: int) -> str:
        last = self.first + self.count - 1
        return (
            f"has the class number {number}, and {counted(self.count, 'class', 'classes')} have the numbers "
            f"{self.first} to {last}: correct it, or set data.num_classes, data.class_names or data.ignore_index "
            f"({self.ignore})"
        )


class Masks(ABC):
    """Class numbers of the pixels of images, by index."""

    fingerprint: str
    """Changes with the masks, as that of a `Source`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a message calls it."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Decode one: integers (H, W).

        Raises:
            BrokenImage: it is damaged.
            UserError: it is no mask.
        """

    def labels(self, index: int, numbers: ClassNumbers) -> np.ndarray:
        """Decode one into labels (H, W). Raises as `read`, and `UserError` for a number that is no class."""
        try:
            return numbers.labels(self.read(index))
        except ValueError as error:
            if isinstance(error, BrokenImage | UserError):
                raise
            raise UserError(f"mask {self.name(index)} {error}") from None


class FileMasks(Masks):
    """Masks that are files of a source, in another order."""

    def __init__(self, files: FileSource, indices: np.ndarray) -> None:
        """`indices`, int64 (n,), are those of the files."""
        self._files, self._indices = files, indices
        self.fingerprint = files.fingerprint
        if len(indices) != len(files):  # what was counted in all masks is not of these
            self.fingerprint = sha256([files.fingerprint.encode(), indices.astype("<i8").tobytes()])

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._files.name(int(self._indices[index]))

    def read(self, index: int) -> np.ndarray:
        data = self._files.content(int(self._indices[index]))
        try:
            return decode_mask(data, self._files.decoding.max_pixels)
        except BrokenImage as error:
            raise BrokenImage(f"its mask {self.name(index)}: {error}") from error
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"mask {self.name(index)} {error}") from None


def decode_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the bytes of a mask: PNG with a palette or grey, of 1 to 16 bit, TIFF, .npy -> integers (H, W).

    Raises:
        BrokenImage: damaged or too large.
        ValueError: it holds no class numbers; says what.
    """
    if kind_of(data[:HEAD]) == "JPEG":
        raise ValueError("is a JPEG, which changes class numbers: save masks as PNG")
    mask = palette_numbers(data, DecodeOptions(max_pixels)) if kind_of(data[:HEAD]) == "PNG" else None
    if mask is None:
        mask = _only_channel(data, max_pixels)
    if mask.dtype.kind not in "biu":
        raise ValueError(f"holds {mask.dtype} numbers, and class numbers are whole: save it as 8 or 16 bit integers")
    return mask


def _only_channel(data: bytes, max_pixels: int) -> np.ndarray:
    """(H, W) of a file of one channel; what the file says of gaps is not asked, as these numbers are classes."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is odd in a file: nothing that a reader can mend
            file = open_channels(data, None, max_pixels)
            values = file.read([0])[:, :, 0] if len(file.names) == 1 else None
    except (BrokenImage, UserError):
        raise
    except Exception as error:  # damaged files raise ValueError, struct.error, zlib.error, MemoryError and more
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]) from error
    if values is None:
        count = len(file.names)
        what = "colours" if count in (3, 4) else f"{count} channels"
        raise ValueError(f"has {what}, and a mask has one class number a pixel: save it as PNG, grey or with a palette")
    return values
