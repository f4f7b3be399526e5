import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swin_mim import block_mask
from swin_mim.evaluation.hole_filling import CHUNK, laplace_inpaint, mean_fill

RANGE = 1e-3  # the accuracy that is asked for, as a part of the range of the visible pixels


def scattered(batch, height, width, share, seed):
    """A mask that varies from pixel to pixel, with at least one visible pixel in every image."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, height, width, generator=generator) < share
    mask[:, height // 2, width // 3] = False
    return mask


def direct(image, mask):
    """The Laplace equation of one image (C, H, W) as a dense system, row by row, in float64."""
    unknown = [(int(y), int(x)) for y, x in mask.nonzero()]
    number = {place: i for i, place in enumerate(unknown)}
    matrix = torch.zeros(len(unknown), len(unknown), dtype=torch.float64)
    right = torch.zeros(len(unknown), len(image), dtype=torch.float64)
    for (y, x), i in number.items():
        for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1]):
                continue  # a reflected neighbour is the pixel itself: it adds nothing
            matrix[i, i] += 1
            if place in number:
                matrix[i, number[place]] -= 1
            else:
                right[i] += image[:, place[0], place[1]].double()
    filled = image.double().clone()
    filled[:, mask] = torch.linalg.solve(matrix, right).T
    return filled


@pytest.mark.parametrize(
    "mask",
    [
        block_mask(2, (32, 32), 8, 0.6, seed=1),
        block_mask(2, (36, 24), 12, 0.75, seed=0),
        scattered(2, 23, 30, 0.6, seed=0),
        scattered(2, 30, 23, 0.97, seed=1),
        scattered(1, 41, 31, 1.0, seed=2),
        scattered(2, 1, 40, 0.8, seed=3),
        scattered(2, 7, 2, 0.5, seed=4),
    ],
    ids=lambda mask: f"{mask.shape[1]}x{mask.shape[2]}, {mask.float().mean():.2f}",
)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_laplace_inpainting_is_the_direct_solution(mask, offset):
    images = torch.rand(len(mask), 3, *mask.shape[1:]) + offset
    filled = laplace_inpaint(images, mask)
    for got, image, hidden in zip(filled, images, mask, strict=True):
        expected = direct(image, hidden)
        seen = expected[:, ~hidden]
        accuracy = RANGE * float(seen.max() - seen.min()) + 1e-7 * (1 + offset)
        assert (got - expected).abs().max() < accuracy
        assert torch.equal(got[:, ~hidden], image[:, ~hidden])


def test_a_tighter_tolerance_brings_a_better_solution():
    image, mask = torch.rand(1, 1, 32, 32, dtype=torch.float64), block_mask(1, (32, 32), 8, 0.6, seed=1)
    expected = direct(image[0], mask[0])
    errors = [float((laplace_inpaint(image, mask, tolerance=t)[0] - expected).abs().max()) for t in (1e-2, 1e-5, 1e-9)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-8


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 30), st.integers(5, 30), st.floats(0, 1), st.integers(0, 10**6))
def test_a_ramp_is_reproduced_where_no_hole_meets_the_border(height, width, share, seed):
    """A ramp is harmonic; only at a reflecting border, where the solution is level, it is not."""
    mask = scattered(1, height, width, share, seed)
    mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramps = torch.stack([0.5 * y - 2 * x + 3, 1.0 * x, -1.0 * y])[None]
    assert (laplace_inpaint(ramps, mask) - ramps).abs().max() < RANGE * 2 * (height + width)


def test_a_ramp_along_a_border_is_reproduced_at_that_border():
    ramp = torch.arange(24.0).expand(1, 1, 16, 24)
    mask = torch.zeros(1, 16, 24, dtype=torch.bool)
    mask[:, :9, 5:20] = True
    assert (laplace_inpaint(ramp, mask) - ramp).abs().max() < RANGE * 24
    falling = torch.arange(16.0)[:, None].expand(1, 1, 16, 24)  # not level where the hole meets the border
    assert (laplace_inpaint(falling, mask) - falling).abs().max() > 1


@pytest.mark.parametrize("value", [0.0, -2.5, 1e6, 1e-8])
@pytest.mark.parametrize("fill", [mean_fill, laplace_inpaint])
def test_a_constant_is_reproduced(fill, value):
    images, mask = torch.full((3, 2, 33, 20), value), scattered(3, 33, 20, 0.9, seed=0)
    torch.testing.assert_close(fill(images, mask), images)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10**6))
def test_laplace_inpainting_never_overshoots(height, width, share, seed):
    mask = scattered(2, height, width, share, seed)
    images = torch.rand(2, 2, height, width, generator=torch.Generator().manual_seed(seed))
    filled = laplace_inpaint(images, mask)
    seen = ~mask[:, None]
    assert (filled <= images.where(seen, -torch.inf).amax((2, 3), keepdim=True) + RANGE).all()
    assert (filled >= images.where(seen, torch.inf).amin((2, 3), keepdim=True) - RANGE).all()
    assert torch.equal(filled.where(seen, 0), images.where(seen, 0))


def test_laplace_inpainting_has_no_preferred_direction():
    images, mask = torch.rand(2, 3, 37, 26), scattered(2, 37, 26, 0.85, seed=0)
    filled = laplace_inpaint(images, mask)
    for dims in ((2,), (3,), (2, 3)):
        flipped = laplace_inpaint(images.flip(dims), mask.flip([d - 1 for d in dims])).flip(dims)
        assert (flipped - filled).abs().max() < RANGE
    turned = laplace_inpaint(images.transpose(2, 3), mask.transpose(1, 2)).transpose(2, 3)
    assert (turned - filled).abs().max() < RANGE


def test_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        laplace_inpaint(torch.rand(1, 1, 8, 8), scattered(1, 8, 8, 0.5, seed=0))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_mean_fill_is_a_mean_per_image_and_channel():
    images, mask = torch.randn(3, 2, 5, 7), scattered(3, 5, 7, 0.6, seed=0)
    filled = mean_fill(images, mask)
    for b in range(3):
        for c in range(2):
            seen = [float(images[b, c, y, x]) for y in range(5) for x in range(7) if not mask[b, y, x]]
            for y in range(5):
                for x in range(7):
                    expected = sum(seen) / len(seen) if mask[b, y, x] else float(images[b, c, y, x])
                    assert float(filled[b, c, y, x]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fill", [mean_fill, laplace_inpaint])
class TestBothFillings:
    def test_what_is_masked_is_never_read_and_nothing_is_changed(self, fill):
        images, mask = torch.rand(2, 3, 16, 18), scattered(2, 16, 18, 0.7, seed=0)
        spoiled = images.masked_fill(mask[:, None], torch.nan)
        kept = spoiled.clone()
        assert torch.equal(fill(images, mask), fill(spoiled, mask))
        assert torch.equal(spoiled.nan_to_num(7), kept.nan_to_num(7))

    def test_an_image_depends_on_no_other_one(self, fill):
        n = 2 * CHUNK + 3
        images, mask = torch.rand(n, 1, 12, 12), scattered(n, 12, 12, 0.8, seed=0)
        alone = torch.cat([fill(images[i : i + 1], mask[i : i + 1]) for i in range(n)])
        assert (fill(images, mask) - alone).abs().max() < RANGE

    def test_without_a_visible_pixel_an_image_is_zero(self, fill):
        images, mask = torch.rand(3, 2, 9, 9) + 5, scattered(3, 9, 9, 0.7, seed=0)
        mask[1] = True
        filled = fill(images, mask)
        assert not filled[1].any()
        assert (filled[[0, 2]] >= 5).all()

    def test_without_a_mask_nothing_happens(self, fill):
        images = torch.rand(2, 3, 9, 9)
        assert torch.equal(fill(images, torch.zeros(2, 9, 9, dtype=torch.bool)), images)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_keeps_the_dtype(self, fill, dtype):
        images, mask = torch.rand(1, 3, 16, 16, dtype=dtype), scattered(1, 16, 16, 0.6, seed=0)
        filled = fill(images, mask)
        assert filled.dtype == dtype
        torch.testing.assert_close(filled.double(), fill(images.double(), mask), atol=0.005, rtol=0.01)

    def test_refuses_a_mask_of_another_shape_or_kind(self, fill):
        images = torch.rand(2, 3, 8, 8)
        with pytest.raises(AssertionError, match="mask"):
            fill(images, torch.zeros(2, 2, 2, dtype=torch.bool))
        with pytest.raises(AssertionError, match="float32"):
            fill(images, torch.zeros(2, 8, 8))
