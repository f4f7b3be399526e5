"""Rasters on their way to the model: crops in which gaps give nothing to their neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate
from torch.testing import assert_close

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster, cut_raster
from swin_mim.data.sampling import sample_generator
from swin_mim.data.transforms.crops import EvaluationTransform, PretrainTransform, denormalize, normalize

DTYPES = pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int64", "float32", "float64"])


def raster(shape=(40, 50, 6), dtype="uint16", gap=None, seed=0):
    rng = np.random.default_rng(seed)
    values = (rng.random(shape) * 100).astype(dtype)
    valid = None
    if gap is not None:
        valid = np.ones(shape[:2], dtype=bool)
        valid[gap] = False
    return Raster(values, valid)


@DTYPES
def test_a_crop_is_the_antialiased_resize_of_its_part(dtype):
    image = raster(dtype=dtype)
    got = cut_raster(image, (16, 20), (3, 5, 43, 37))
    part = torch.from_numpy(image.values[5:37, 3:43].astype(np.float32)).permute(2, 0, 1)[None]
    assert_close(got, interpolate(part, (16, 20), mode="bilinear", antialias=True)[0])
    assert got.dtype == torch.float32


@given(st.integers(0, 1000), st.floats(0, 0.9), st.floats(-1e6, 1e6, allow_nan=False, width=32))
def test_what_a_gap_holds_reaches_no_pixel(seed, part, filler):
    rng = np.random.default_rng(seed)
    values, valid = rng.random((23, 17, 2)).astype(np.float32), rng.random((23, 17)) >= part
    valid[11, 8] = valid[10, 8] = valid[11, 9] = True
    box = (1, 2, 17, 23)
    spoiled = np.where(valid[..., None], values, np.float32(filler))
    try:
        one = cut_raster(Raster(values, valid), (9, 8), box)
    except BrokenImage:
        return
    assert torch.equal(one.nan_to_num(7), cut_raster(Raster(spoiled, valid), (9, 8), box).nan_to_num(7))
    found = one[:, ~one[0].isnan()]
    assert (found >= values.min() - 1e-5).all()
    assert (found <= values.max() + 1e-5).all()
    assert (one.isnan().all(0) == one.isnan().any(0)).all(), "a pixel is there in some channels only"


def test_a_constant_stays_constant_beside_a_gap():
    valid = np.ones((32, 32), dtype=bool)
    valid[:, 13:20] = False
    values = np.where(valid, 1234.0, -9999.0)[..., None]
    got = cut_raster(Raster(values, valid), (16, 16), (0, 0, 32, 32))[0]
    assert got.isnan()[:, 7:10].all()
    assert (got[~got.isnan()] - 1234).abs().max() < 1e-3
    assert got.isnan().float().mean() == pytest.approx(7 / 32, abs=0.07)


def test_a_crop_of_nothing_is_broken():
    image = raster(gap=np.s_[:, :30])
    with pytest.raises(BrokenImage, match="too few to be seen at 8 x 8"):
        cut_raster(image, (8, 8), (0, 0, 30, 40))


@pytest.mark.parametrize("corner", [(0, 0), (0, 49), (39, 49), (39, 0), (20, 25)])
def test_a_crop_goes_to_where_pixels_are(corner):
    """A few pixels somewhere: random crops come upon them, the middle is moved to them."""
    image = raster(gap=np.s_[:, :])
    y, x = corner
    image.valid[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = True
    for transform in (EvaluationTransform((32, 32)), EvaluationTransform((32, 64), crop_pct=0.5)):
        assert not transform(image).isnan().all()
    for position in range(5):
        crop = PretrainTransform((32, 32))(image, sample_generator(0, position))
        assert not crop.isnan().all()
        again = PretrainTransform((32, 32))(image, sample_generator(0, position))
        assert torch.equal(again.nan_to_num(), crop.nan_to_num())


def test_what_float32_does_not_hold_warns_of_nothing():
    image = raster(dtype="float64", gap=np.s_[:20])
    image.values[:20] = -np.finfo(np.float64).max
    got = cut_raster(image, (20, 25), (0, 0, 50, 40))  # warnings are errors
    assert got[:, 10:].isfinite().all()
    assert got[:, :10].isnan().all()


@pytest.mark.parametrize("size", [(16, 16), (16, 48), (48, 16)])
def test_crops_and_flips_are_those_of_an_rgb_image(size):
    """The same generator makes the same cut: of an image with nothing but its own coordinates."""
    from PIL import Image

    y, x = np.mgrid[:120, :160].astype(np.uint8)
    pixels = np.stack([y, x, x], -1)
    transform = PretrainTransform(size, flips="both")
    for position in range(8):
        one = transform(Image.fromarray(pixels), sample_generator(0, position)).float()
        other = transform(Raster(pixels.astype(np.uint16)), sample_generator(0, position))
        assert (one - other).abs().max() <= 1


def test_evaluation_takes_the_middle():
    values = np.zeros((100, 60, 1), dtype=np.float32)
    values[20:80] = 1
    assert_close(EvaluationTransform((12, 12))(Raster(values)), torch.ones(1, 12, 12))
    assert EvaluationTransform((64, 192))(Raster(np.ones((1, 2, 4)))).shape == (4, 64, 192)
    assert EvaluationTransform((192, 640))(Raster(np.ones((2, 2, 4)))).shape == (4, 192, 640)


def test_normalising_in_the_units_of_the_files_and_back():
    images = torch.rand(2, 3, 4, 4) * 1e4
    mean, std = (3000.0, 10.0, -5.0), (100.0, 2.0, 1e3)
    normal = normalize(images, mean, std, 1)
    assert_close(normal[:, 1], (images[:, 1] - 10) / 2)
    assert_close(denormalize(normal, mean, std, 1), images, rtol=1e-5, atol=1e-2)
