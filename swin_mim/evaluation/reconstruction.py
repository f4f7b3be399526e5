"""What the model sees and what it makes of it, as one picture."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.files import replacing
from swin_mim.masking import pixel_mask

Captions = tuple[str, str, str, str]
CAPTIONS: Captions = ("image", "masked", "prediction", "composite")

CELL = 128
"""Min side of a cell in pixels: smaller images are enlarged by a whole factor, so that every pixel stays exact."""
TWO_BLOCKS_FROM = 6
"""Rows from which the picture has two blocks side by side, to be wider than high."""
HOLE, HOLE_EDGE = (212, 212, 212), (184, 184, 184)
FRAME = (216, 216, 216)
INK = (58, 58, 64)


def reconstruct(
    model: nn.Module,
    images: Tensor,
    mask: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor],
    restore: Callable[[Tensor], Tensor],
    **valid: Tensor,
) -> Tensor:
    """Predict every pixel, masked or not. The model comes back in the mode it was in.

    Args:
        model: called as model(images, mask); its result's second field is the prediction (B, C, H, W).
        images: (B, C, H, W), as they come from a loader.
        mask: bool (B, H/p, W/p) on the model's device, True = masked.
        prepare: images -> normalised float on the model's device.
        restore: prediction -> in the units of the images. For a normalised target it brings back the local mean and
            std.
        valid: nothing, or the model's argument `valid`.

    Returns:
        (B, C, H, W), as `restore` gives it.
    """
    with evaluation_mode(model):
        return restore(model(prepare(images), mask, **valid)[1])


def save_reconstruction(
    path: str | os.PathLike[str],
    images: Tensor,
    mask: Tensor,
    prediction: Tensor,
    *,
    patch: int,
    captions: Captions = CAPTIONS,
) -> None:
    """Write `reconstruction_grid` as a PNG; nobody ever sees half a file. Folders are made where they are missing."""
    picture = reconstruction_grid(images, mask, prediction, patch=patch, captions=captions)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        picture.save(temporary, format="PNG", optimize=True, pnginfo=_blocks(len(images)))


def _blocks(rows: int) -> PngInfo:
    """How many blocks lie side by side, for whoever has less room than a wide page."""
    info = PngInfo()
    info.add_text("blocks", str(GridLayout(rows, 1, 1).blocks))
    return info


def reconstruction_grid(
    images: Tensor, mask: Tensor, prediction: Tensor, *, patch: int, captions: Captions = CAPTIONS
) -> Image.Image:
    """One row per image: the image, what the model sees of it, its prediction, and the holes filled with that.

    Args:
        images: uint8 (B, 3, H, W), at least one.
        mask: bool (B, H/p, W/p), True = masked.
        prediction: uint8 (B, 3, H, W), of every pixel.
        patch: pixels along the side of one token.
        captions: what stands above the four columns.
    """
    assert images.dtype == prediction.dtype == torch.uint8, f"{images.dtype}, {prediction.dtype}"
    assert images.shape == prediction.shape, f"{tuple(images.shape)} and {tuple(prediction.shape)}"
    images, mask, prediction = images.cpu(), mask.cpu(), prediction.cpu()
    rows, _, height, width = images.shape
    layout = GridLayout(rows, height, width)
    holes = pixel_mask(mask, patch)[:, None]  # (B, 1, H, W)
    columns = images, images, prediction, torch.where(holes, prediction, images)
    enlarged = [_enlarge(column, layout.scale) for column in columns]  # each (B, H', W', 3)
    hole = _enlarge(holes, layout.scale)[..., 0]
    enlarged[1] = np.stack([_punch(*pair) for pair in zip(enlarged[1], hole, strict=True)])
    picture = Image.new("RGB", layout.size, "white")
    draw = ImageDraw.Draw(picture)
    for row in range(layout.rows):
        for column, cells in enumerate(enlarged):
            _paste_framed(picture, draw, cells[row], layout.corner(row, column))
    _write_captions(draw, layout, captions)
    return picture


@dataclass(frozen=True)
class GridLayout:
    """Where everything stands in the picture, in pixels: margins and gaps in proportion to the cells."""

    rows: int
    height: int
    """Height of an image, before it is enlarged."""
    width: int

    @property
    def scale(self) -> int:
        return max(1, -(-CELL // min(self.height, self.width)))

    @property
    def cell(self) -> tuple[int, int]:
        """(width, height)"""
        return self.width * self.scale, self.height * self.scale

    @property
    def gap(self) -> int:
        return max(4, min(self.cell) // 32)

    @property
    def margin(self) -> int:
        return 4 * self.gap

    @property
    def font_size(self) -> int:
        return max(12, min(self.cell) // 10)

    @property
    def header(self) -> int:
        """Height of the captions with the space below them."""
        return 2 * self.font_size

    @property
    def blocks(self) -> int:
        return 2 if self.rows >= TWO_BLOCKS_FROM else 1

    @property
    def rows_per_block(self) -> int:
        return -(-self.rows // self.blocks)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture."""
        left, top = self.corner(self.rows_per_block * self.blocks - 1, 3)
        return left + self.cell[0] + self.margin, top + self.cell[1] + self.margin

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """(left, top) of the cell of one image; rows fill the left block first."""
        block, row = divmod(row, self.rows_per_block)
        (width, height), gap = self.cell, self.gap
        block_width = 4 * width + 3 * gap + self.margin
        left = self.margin + block * block_width + column * (width + gap)
        return left, self.margin + self.header + row * (height + gap)


def _enlarge(pixels: Tensor, scale: int) -> np.ndarray:
    """(B, C, H, W) -> (B, H * scale, W * scale, C), every pixel a square."""
    return pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1).numpy()


def _punch(cell: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Grey for the pixels (H, W, 3) under a hole (H, W), with a fine line along its edge."""
    wide = np.pad(hole, 1, mode="edge")  # no line where a hole leaves the picture
    inside = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:] & hole
    return np.where(inside[..., None], HOLE, np.where(hole[..., None], HOLE_EDGE, cell)).astype(np.uint8)


def _paste_framed(picture: Image.Image, draw: ImageDraw.ImageDraw, cell: np.ndarray, corner: tuple[int, int]) -> None:
    """A cell (H, W, 3) with a hairline around it, in the gap: a white image must not melt into the page."""
    (left, top), (height, width) = corner, cell.shape[:2]
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FRAME)
    picture.paste(Image.fromarray(cell), corner)


def _write_captions(draw: ImageDraw.ImageDraw, layout: GridLayout, captions: Captions) -> None:
    font = ImageFont.load_default(size=layout.font_size)
    for block in range(layout.blocks):
        for column, caption in enumerate(captions):
            left, top = layout.corner(block * layout.rows_per_block, column)
            baseline = top - layout.font_size * 3 // 4
            draw.text((left + layout.cell[0] // 2, baseline), caption, INK, font, anchor="ms")
