import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_mim.data import transforms
from swin_mim.data.sampling import sample_generator
from swin_mim.data.transforms import (
    EvaluationTransform,
    PretrainTransform,
    central_crop_box,
    denormalize,
    normalize,
    random_crop_box,
    to_tensor,
)

SCALE, RATIO = (0.67, 1.0), (3 / 4, 4 / 3)
sides = st.integers(1, 3000)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(deadline=None)
@given(width=sides, height=sides, seed=st.integers(0, 2**32))
def test_a_crop_lies_in_the_image_and_in_the_bounds(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_crop_box((width, height), SCALE, RATIO, np.random.default_rng(seed))
    w, h = right - left, bottom - top
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert RATIO[0] <= (w + 0.5) / max(h - 0.5, 0.5)  # up to the rounding of both sides
    assert (w - 0.5) / (h + 0.5) <= RATIO[1]
    share = w * h / (width * height)
    is_fallback = (left, top, right, bottom) == central_crop_box((width, height), RATIO)
    rounding = (w + h + 1) / (2 * width * height)
    assert is_fallback or SCALE[0] - rounding <= share <= 1


def test_crops_spread_over_shares_ratios_and_places() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box((1000, 1000), SCALE, RATIO, rng) for _ in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, log_ratio = w * h / 1e6, np.log(w / h)
    assert share.min() >= 0.669
    # a wide crop of a large share does not fit: rejection favours small shares, symmetrically in the ratio
    assert 0.75 < share.mean() < 0.835
    assert share.max() > 0.98
    assert abs(log_ratio.mean()) < 0.01
    assert log_ratio.max() > 0.25
    assert log_ratio.min() < -0.25
    free = w < 1000
    assert abs((boxes[:, 0] / np.maximum(1000 - w, 1))[free].mean() - 0.5) < 0.02
    free = h < 1000
    assert abs((boxes[:, 1] / np.maximum(1000 - h, 1))[free].mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 20_000), (0, 9999, 1, 10_000)), ((20_000, 1), (9999, 0, 10_000, 1)), ((100, 400), (0, 133, 100, 266))],
)
def test_extreme_shapes_fall_back_to_the_centre(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    left, top, right, bottom = random_crop_box(size, SCALE, RATIO, np.random.default_rng(0))
    assert (left, top, right, bottom) == expected
    assert math.isclose((left + right) / 2, size[0] / 2, abs_tol=1)


@settings(deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 99))
def test_transforms_give_the_asked_size(width: int, height: int, seed: int) -> None:
    image = picture(width, height)
    for out in (PretrainTransform((12, 20))(image, np.random.default_rng(seed)), EvaluationTransform((12, 20))(image)):
        assert out.dtype == torch.uint8
        assert out.shape == (3, 12, 20)
        assert out.is_contiguous()


def test_a_crop_is_a_function_of_the_generator_alone() -> None:
    transform, image = PretrainTransform((16, 16)), picture(50, 40)
    outs = [transform(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_half_of_the_crops_are_flipped() -> None:
    left_to_right = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    transform = PretrainTransform((8, 8), scale=(1, 1), ratio=(1, 1))
    rng = np.random.default_rng(0)
    outs = [transform(left_to_right, rng) for _ in range(1000)]
    flipped = sum(bool(out[0, 0, 0] > out[0, 0, -1]) for out in outs)
    assert 430 < flipped < 570  # 4.4 standard deviations
    plain = next(out for out in outs if out[0, 0, 0] < out[0, 0, -1])
    mirrored = next(out for out in outs if out[0, 0, 0] > out[0, 0, -1])
    assert torch.equal(plain, mirrored.flip(-1))


def test_evaluation_takes_the_centre_in_the_right_aspect() -> None:
    image = picture(30, 20)
    assert torch.equal(EvaluationTransform((20, 30))(image), to_tensor(image))
    assert torch.equal(EvaluationTransform((20, 20))(image), to_tensor(image)[:, :, 5:25])
    assert torch.equal(EvaluationTransform((10, 30))(image), to_tensor(image)[:, 5:15, :])
    assert torch.equal(EvaluationTransform((10, 10))(image.resize((30, 20))), EvaluationTransform((10, 10))(image))


def test_shrinking_is_antialiased() -> None:
    checkers = Image.fromarray(np.kron(np.indices((128, 128)).sum(0) % 2, np.ones((1, 1))).astype(np.uint8) * 255)
    out = EvaluationTransform((16, 16))(checkers.convert("RGB")).float()
    assert (out - 127.5).abs().max() < 4


def test_to_tensor_keeps_rows_columns_and_channels_apart() -> None:
    image = picture(5, 4)
    assert tuple(to_tensor(image)[:, 3, 1].tolist()) == image.getpixel((1, 3))


def test_normalize_matches_its_formula() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    out = normalize(images, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    assert out.dtype == torch.float32
    assert out[1, 2, 3, 4].item() == pytest.approx((images[1, 2, 3, 4].item() / 255 - 0.3) / 0.3, abs=1e-6)
    assert out[0, 1, 0, 0].item() == pytest.approx((images[0, 1, 0, 0].item() / 255 - 0.4) / 0.1, abs=1e-6)


def test_denormalize_is_the_inverse() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert torch.equal(denormalize(normalize(images, mean, std), mean, std), images)
    assert denormalize(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2), (0.5,), (0.5,)).flatten().tolist() == [0, 255]


def test_crops_have_the_aspect_of_a_size_that_is_not_square() -> None:
    """5:1 images for a 5:1 model: nearly all of an image is in reach, and no crop is squeezed to another aspect."""
    image = Image.new("RGB", (500, 100))
    boxes = []

    def keep(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
        boxes.append(box)
        return image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "_resize", keep)
        for position in range(200):
            PretrainTransform((32, 160))(image, sample_generator(0, position))
    shares = [(right - left) * (bottom - top) / 50_000 for left, top, right, bottom in boxes]
    ratios = [(right - left) / (bottom - top) / 5 for left, top, right, bottom in boxes]
    assert min(shares) > 0.65
    assert min(ratios) > 0.74
    assert max(ratios) < 1.35
    assert len(set(boxes)) > 150
