import itertools
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from swin_mim import SimMIM, block_mask
from swin_mim.data.transforms.crops import denormalize, normalize
from swin_mim.evaluation.reconstruction import (
    CELL,
    HOLE,
    HOLE_EDGE,
    GridLayout,
    reconstruct,
    reconstruction_grid,
    save_reconstruction,
)
from swin_mim.models.targets.pixels import MimOutput

PATCH = 4


def example(rows, height, width):
    images, prediction = torch.randint(0, 256, (2, rows, 3, height, width), dtype=torch.uint8)
    return images, torch.rand(rows, height // PATCH, width // PATCH) < 0.5, prediction


def read_cell(picture, layout, row, column):
    """(H, W, 3): the pixels of one cell, after a check that each one is enlarged to an even square."""
    (left, top), (width, height) = layout.corner(row, column), layout.cell
    cell = np.asarray(picture)[top : top + height, left : left + width]
    small = cell[:: layout.scale, :: layout.scale]
    assert (small.repeat(layout.scale, 0).repeat(layout.scale, 1) == cell).all()
    return small


def channels_last(images):
    return images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("rows", "height", "width"), [(1, 32, 32), (3, 20, 28), (7, 64, 48), (2, 136, 200)])
def test_the_picture_on_disk_holds_the_exact_pixels(tmp_path, rows, height, width):
    images, mask, prediction = example(rows, height, width)
    save_reconstruction(tmp_path / "samples" / "step_7.png", images, mask, prediction, patch=PATCH)
    with Image.open(tmp_path / "samples" / "step_7.png") as file:
        assert file.format == "PNG"
        picture = file.convert("RGB")
    layout = GridLayout(rows, height, width)
    assert picture.size == layout.size
    hidden = np.kron(mask.numpy(), np.ones((PATCH, PATCH), dtype=bool))
    for row in range(rows):
        image, predicted = channels_last(images)[row], channels_last(prediction)[row]
        assert (read_cell(picture, layout, row, 0) == image).all()
        assert (read_cell(picture, layout, row, 2) == predicted).all()
        composite = read_cell(picture, layout, row, 3)
        assert (composite[~hidden[row]] == image[~hidden[row]]).all()
        assert (composite[hidden[row]] == predicted[hidden[row]]).all()


@pytest.mark.parametrize(("height", "width"), [(32, 40), (128, 132)])
def test_holes_are_grey_and_show_nothing_of_the_image(height, width):
    images, mask, prediction = example(2, height, width)
    layout = GridLayout(2, height, width)
    picture = np.asarray(reconstruction_grid(images, mask, prediction, patch=PATCH))
    for row in range(2):
        (left, top), (cell_width, cell_height) = layout.corner(row, 1), layout.cell
        cell = picture[top : top + cell_height, left : left + cell_width]
        side = PATCH * layout.scale
        hidden = np.kron(mask[row].numpy(), np.ones((side, side), dtype=bool))
        image = channels_last(images)[row].repeat(layout.scale, 0).repeat(layout.scale, 1)
        assert (cell[~hidden] == image[~hidden]).all()
        assert {tuple(colour) for colour in cell[hidden].tolist()} == {HOLE, HOLE_EDGE}
        assert (cell[hidden] == HOLE).all(axis=1).mean() > 0.3


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 8, 12])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (192, 192), (32, 64), (200, 100)])
def test_cells_are_large_and_keep_their_distance(rows, height, width):
    layout = GridLayout(rows, height, width)
    assert min(layout.cell) >= CELL
    assert layout.scale == 1 or min(layout.cell) < 2 * CELL
    corners = [layout.corner(row, column) for row in range(rows) for column in range(4)]
    for a, b in itertools.combinations(corners, 2):
        assert abs(a[0] - b[0]) >= layout.cell[0] + layout.gap or abs(a[1] - b[1]) >= layout.cell[1] + layout.gap
    for axis in (0, 1):
        places = [corner[axis] for corner in corners]
        assert min(places) >= layout.margin
        assert max(places) + layout.cell[axis] == layout.size[axis] - layout.margin


def test_many_rows_stand_in_two_blocks():
    one, two = GridLayout(5, 96, 96), GridLayout(8, 96, 96)
    assert len({one.corner(row, 0)[0] for row in range(5)}) == 1
    assert len({two.corner(row, 0)[0] for row in range(8)}) == 2
    assert two.corner(4, 0)[1] == two.corner(0, 0)[1]
    assert all(1 < width / height < 2.1 for width, height in (GridLayout(n, 96, 96).size for n in (7, 8, 12)))


@pytest.mark.parametrize("rows", [2, 6])
def test_captions_stand_above_every_column_and_nowhere_else(rows):
    images, mask, prediction = example(rows, 32, 32)
    layout = GridLayout(rows, 32, 32)
    bare = np.asarray(reconstruction_grid(images, mask, prediction, patch=PATCH, captions=("", "", "", "")))
    picture = np.asarray(reconstruction_grid(images, mask, prediction, patch=PATCH))
    changed = (bare != picture).any(axis=2)
    for block, column in itertools.product(range(layout.blocks), range(4)):
        left, top = layout.corner(block * layout.rows_per_block, column)
        header = changed[:top, left : left + layout.cell[0]]
        assert header.sum() > 50
        header[:] = False
    assert not changed.any()


def test_the_page_around_the_cells_is_white():
    picture = reconstruction_grid(*example(3, 32, 32), patch=PATCH)
    assert {picture.getpixel((x, y)) for x in (0, picture.width - 1) for y in range(picture.height)} == {(255,) * 3}


def test_saving_replaces_the_former_picture_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"former")
    save_reconstruction(str(path), *example(1, 32, 32), patch=PATCH)
    assert os.listdir(tmp_path) == ["x.png"]
    Image.open(path).verify()


def test_a_failed_save_keeps_the_former_picture(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"former")

    def fail(self, file, **options):
        file.write_bytes(b"half a pict")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_reconstruction(path, *example(1, 32, 32), patch=PATCH)
    assert os.listdir(tmp_path) == ["x.png"]
    assert path.read_bytes() == b"former"


def test_mismatched_pictures_are_refused():
    images, mask, prediction = example(2, 32, 32)
    with pytest.raises(AssertionError, match="32"):
        reconstruction_grid(images, mask, prediction[:, :, :16], patch=PATCH)
    with pytest.raises(AssertionError, match="float32"):
        reconstruction_grid(images, mask, prediction.float(), patch=PATCH)


def test_reconstruct_gives_the_second_output_through_prepare_and_restore():
    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.9)

        def forward(self, images, mask):
            assert not torch.is_grad_enabled()
            assert mask.dtype == torch.bool
            return MimOutput(images.sum(), self.dropout(1 - images))

    model = Inverse()
    images, mask, _ = example(2, 16, 16)
    prediction = reconstruct(
        model, images, mask, prepare=lambda x: x / 255, restore=lambda x: (x * 255).round().to(torch.uint8)
    )
    assert torch.equal(prediction, 255 - images)
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_reconstruct_with_the_real_model(tiny, target):
    model = SimMIM(tiny, target=target)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mask = block_mask(2, (16, 16), 4, 0.6, seed=0)
    statistics = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    prepared = normalize(images, *statistics)
    prediction = reconstruct(
        model,
        images,
        mask,
        prepare=lambda x: normalize(x, *statistics),
        restore=lambda pixels: denormalize(model.to_images(pixels, prepared), *statistics),
    )
    with torch.no_grad():
        expected = denormalize(model.to_images(model.eval()(prepared, mask).pixels, prepared), *statistics)
    assert prediction.dtype == torch.uint8
    assert torch.equal(prediction, expected)
    assert reconstruction_grid(images, mask, prediction, patch=PATCH).mode == "RGB"
