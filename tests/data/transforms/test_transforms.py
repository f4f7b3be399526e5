import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP, rand_augment_transform
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torch import Tensor
from torchvision.transforms import v2

from swin_mim.data.sampling import sample_generator
from swin_mim.data.transforms import crops
from swin_mim.data.transforms.crops import (
    EvaluationTransform,
    FinetuneTransform,
    Flips,
    Interpolation,
    PretrainTransform,
    central_crop_box,
    denormalize,
    normalize,
    random_crop_box,
    to_tensor,
)
from swin_mim.data.transforms.rand_augment import check_policy
from swin_mim.errors import UserError

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


@pytest.mark.parametrize("limit", [90 * 90 - 1, 100], ids=["warning", "error"])
def test_crops_of_whole_pixels_are_cut_beyond_pillows_limit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(100, 100)
    transform = PretrainTransform((32, 32), scale=(0.9, 0.99), ratio=(1.0, 1.0))
    expected = [transform(image, sample_generator(0, position)) for position in range(4)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow warns above it, and refuses twice as many
    for position, crop in enumerate(expected):
        assert torch.equal(transform(image, sample_generator(0, position)), crop)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_crops_have_the_aspect_of_a_size_that_is_not_square() -> None:
    """5:1 images for a 5:1 model: nearly all of an image is in reach, and no crop is squeezed to another aspect."""
    image = Image.new("RGB", (500, 100))
    boxes = []

    def keep(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Tensor:
        boxes.append(box)
        return torch.zeros(3, *size, dtype=torch.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "_cut", keep)
        for position in range(200):
            PretrainTransform((32, 160))(image, sample_generator(0, position))
    shares = [(right - left) * (bottom - top) / 50_000 for left, top, right, bottom in boxes]
    ratios = [(right - left) / (bottom - top) / 5 for left, top, right, bottom in boxes]
    assert min(shares) > 0.65
    assert min(ratios) > 0.74
    assert max(ratios) < 1.35
    assert len(set(boxes)) > 150


# flips


ORIENTATIONS = [None, *Image.Transpose]
REACHED: dict[Flips, list[Image.Transpose | None]] = {
    "none": [None],
    "horizontal": [None, Image.Transpose.FLIP_LEFT_RIGHT],
    "both": [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180],
    "dihedral": ORIENTATIONS,
}
Transform = PretrainTransform | FinetuneTransform


@pytest.mark.parametrize("kind", [PretrainTransform, FinetuneTransform])
@pytest.mark.parametrize("flips", REACHED)
def test_flips_reach_their_orientations_equally_often(kind: type[Transform], flips: Flips) -> None:
    image = picture(6, 6)
    shown = {
        to_tensor(image if turn is None else image.transpose(turn)).numpy().tobytes(): turn for turn in ORIENTATIONS
    }
    transform = kind((6, 6), scale=(1, 1), ratio=(1, 1), flips=flips)
    tries = 800
    seen = Counter(
        shown[transform(image, sample_generator(0, position)).numpy().tobytes()] for position in range(tries)
    )
    share = 1 / len(REACHED[flips])
    assert seen.keys() == set(REACHED[flips])
    for count in seen.values():
        assert abs(count - tries * share) <= 4.4 * math.sqrt(tries * share * (1 - share))


def test_horizontal_flips_are_decided_by_the_one_number_after_the_crop() -> None:
    """As before there were others: runs that were begun then go on with the same images."""
    transform, image = PretrainTransform((16, 24)), picture(50, 40)
    for position in range(100):
        rng = sample_generator(3, position)
        box = random_crop_box(image.size, SCALE, (RATIO[0] * 1.5, RATIO[1] * 1.5), rng)
        crop = image.crop(box).resize((24, 16), Image.Resampling.BILINEAR)
        expected = to_tensor(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop)
        difference = transform(image, sample_generator(3, position)).int() - expected.int()
        assert difference.abs().max() <= 1  # two libraries that resize, and round for themselves


@pytest.mark.parametrize("kind", [PretrainTransform, FinetuneTransform])
def test_quarter_turns_of_images_that_are_not_square_are_refused(kind: type[Transform]) -> None:
    with pytest.raises(UserError, match=r"dihedral .* 8 x 12 pixels: use both"):
        kind((8, 12), flips="dihedral")
    assert kind((8, 12), flips="both")(picture(9, 9), np.random.default_rng(0)).shape == (3, 8, 12)


# fine-tuning


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
POLICY = "rand-m9-mstd0.5-inc1"
OPTIONS: list[dict[str, object]] = [
    {"auto": POLICY},
    {"auto": "rand-m5-n4-p0.9", "interpolation": "bilinear"},
    {"auto": "rand-m10-n4-p0.9-mmax10-inc1"},
    {"color_jitter": 0.4},
    {"random_erasing": 0.8},
    {"auto": POLICY, "random_erasing": 0.8},
    {"auto": POLICY, "color_jitter": 0.4, "random_erasing": 0.8},
]


def smooth(width: int, height: int) -> Image.Image:
    """A picture in which neighbouring pixels are alike, as in photographs."""
    y, x = np.mgrid[:height, :width] / min(width, height)
    waves = [np.sin(9 * x + 4 * y), np.cos(3 * x - 7 * y), np.sin(20 * x * y)]
    return Image.fromarray((127.5 + 127.5 * np.stack(waves, axis=-1)).round().astype(np.uint8))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def global_states() -> list[object]:
    kind, words, *rest = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), kind, words.tolist(), rest, torch.get_rng_state().tolist()]


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """As timm's with a Pillow before 13: no bits are black."""
    return image.point([value & 256 - 2 ** (8 - bits) for value in range(256)] * 3)


@pytest.mark.parametrize("options", OPTIONS)
def test_changes_are_those_of_timm(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same global generators, pixel for pixel, on the crop of a transform that does nothing else."""
    for name in ("Posterize", "PosterizeIncreasing"):
        monkeypatch.setitem(NAME_TO_OP, name, posterize)
    interpolation: Interpolation = "bilinear" if "interpolation" in options else "bicubic"
    ours = FinetuneTransform((32, 24), mean=MEAN, std=STD, **options)  # type: ignore[arg-type]
    plain = FinetuneTransform((32, 24), interpolation=interpolation)
    _, change, finish = transforms_imagenet_train(
        (32, 24),
        auto_augment=options.get("auto"),
        color_jitter=options.get("color_jitter"),
        force_color_jitter=True,
        re_prob=options.get("random_erasing", 0.0),
        re_mode="pixel",
        interpolation=interpolation,
        mean=MEAN,
        std=STD,
        separate=True,
    )
    image, different = smooth(60, 50), 0
    for position in range(25):

        @contextmanager
        def seeded(_: np.random.Generator, position: int = position) -> Iterator[None]:
            seed_all(position)
            yield

        monkeypatch.setattr(crops, "_global_generators", seeded)
        out, crop = (transform(image, sample_generator(0, position)) for transform in (ours, plain))
        seed_all(position)
        expected = finish(change(Image.fromarray(crop.permute(1, 2, 0).numpy())))
        assert torch.equal(out, denormalize(expected[None], MEAN, STD)[0])
        different += not torch.equal(out, crop)
    assert different > 12


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_options_there_is_a_crop_and_a_flip(interpolation: Interpolation) -> None:
    transform, image = FinetuneTransform((16, 24), interpolation=interpolation), picture(50, 40)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for position in range(50):
        rng = sample_generator(3, position)
        box = random_crop_box(image.size, (0.08, 1), (RATIO[0] * 1.5, RATIO[1] * 1.5), rng)
        crop = image.resize((24, 16), method, box=box)
        expected = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
        assert torch.equal(transform(image, sample_generator(3, position)), to_tensor(expected))


def full(size: tuple[int, int] = (24, 24)) -> FinetuneTransform:
    """Every option is on."""
    return FinetuneTransform(size, flips="both", auto=POLICY, color_jitter=0.4, random_erasing=0.5)


def test_a_change_is_a_function_of_the_image_and_the_generator_alone() -> None:
    transform, image = full(), smooth(40, 40)
    outs: list[list[Tensor]] = []
    for seed in (1, 2):
        seed_all(seed)
        random.gauss(0, 1)  # which keeps a second number for the next call
        outs.append([transform(image, sample_generator(0, position)) for position in range(20)])
    fresh = [full()(image, sample_generator(0, position)) for position in range(20)]
    for one, other, third in zip(*outs, fresh, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    assert len({out.numpy().tobytes() for out in outs[0]}) == 20


def test_the_global_generators_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_all(5)
    random.gauss(0, 1)
    np.random.standard_normal()  # noqa: NPY002
    before = global_states()
    for position in range(5):
        full()(smooth(40, 40), sample_generator(0, position))
        assert global_states() == before

    def fail(*_: object) -> None:
        random.random()
        raise MemoryError

    monkeypatch.setattr("timm.data.random_erasing.RandomErasing.__call__", fail)
    with pytest.raises(MemoryError):
        full()(smooth(40, 40), sample_generator(0, 0))
    assert global_states() == before


@settings(deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 99))
def test_fine_tuning_gives_the_asked_size(width: int, height: int, seed: int) -> None:
    out = full((12, 20))(picture(width, height), np.random.default_rng(seed))
    assert out.dtype == torch.uint8
    assert out.shape == (3, 12, 20)
    assert out.is_contiguous()


def test_a_part_of_the_images_loses_a_rectangle_to_noise() -> None:
    plain, erasing = FinetuneTransform((32, 32)), FinetuneTransform((32, 32), random_erasing=0.25)
    grey, erased = Image.new("RGB", (40, 40), (124, 116, 104)), []
    for position in range(200):
        before, after = (transform(grey, sample_generator(0, position)) for transform in (plain, erasing))
        rows, columns = torch.nonzero((before != after).any(dim=0), as_tuple=True)
        if len(rows):
            inside = after[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
            erased.append(inside)
            assert 0.01 < inside[0].numel() / 32**2 < 0.37  # 2 % to a third, in whole pixels
            assert len(rows) > 0.9 * inside[0].numel()
    assert 23 < len(erased) < 77  # 4.4 standard deviations
    noise = torch.cat([inside.flatten(1) for inside in erased], dim=1)
    assert noise.mean(dim=1).tolist() == pytest.approx([124, 116, 104], abs=1)
    assert noise.std(dim=1).tolist() == pytest.approx([58, 57, 57], abs=2)  # of ImageNet, a little less by the cut


numbers = st.decimals("0.1", "0.9", places=1)
parts = st.lists(
    st.one_of(
        st.integers(0, 10).map("m{}".format),
        st.integers(1, 4).map("n{}".format),
        numbers.map("p{}".format),
        numbers.map("mstd{}".format),
        st.integers(1, 12).map("mmax{}".format),
        st.integers(0, 1).map("inc{}".format),
    ),
    max_size=6,
    unique_by=lambda part: part.rstrip("0123456789."),
)


@settings(deadline=None)
@given(parts=parts)
def test_timm_reads_every_part_of_a_policy(parts: list[str]) -> None:
    policy = "-".join(["rand", *parts])
    check_policy(policy)
    given = {part.rstrip("0123456789."): float(part.lstrip("abcdefghijklmnopqrstuvwxyz")) for part in parts}
    augment = rand_augment_transform(policy, {"interpolation": Image.Resampling.BICUBIC})
    assert augment.num_layers == given.get("n", 2)
    assert {op.magnitude for op in augment.ops} == {given.get("m", 10)}
    assert {op.prob for op in augment.ops} == {given.get("p", 0.5)}
    assert {op.magnitude_std for op in augment.ops} == {given.get("mstd", 0)}
    assert {op.magnitude_max for op in augment.ops} == {given.get("mmax")}
    assert any("Increasing" in op.name for op in augment.ops) == bool(given.get("inc", 0))


@pytest.mark.parametrize(
    "policy",
    [
        "",
        "rand-",
        "rand9",
        "rand m9",
        "rand-m9 ",
        "rand-m9\n",
        "Rand-m9",
        "rand-m",
        "rand-m-9",
        "rand-m9.5",
        "rand-n0",
        "rand-p.5",
        "rand-p2",
        "rand-mstd",
        "rand-inc2",
        "rand-x3",
        "rand-tweights",
        "rand-m9-mstd0.5-inc1-w0",
        "original",
        "augmix-m3-w3",
        "3a",
    ],
)
def test_a_policy_that_timm_would_read_in_part_is_refused(policy: str) -> None:
    for refuse in (check_policy, lambda text: FinetuneTransform((8, 8), auto=text)):
        with pytest.raises(UserError, match=r"augment\.auto .* is no RandAugment: .*rand-m9-mstd0\.5-inc1") as error:
            refuse(policy)
        assert repr(policy) in str(error.value)
        assert "\n" not in str(error.value)


def test_no_policy_is_no_error() -> None:
    check_policy(None)
    assert FinetuneTransform((8, 8), auto=None).auto is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalising_leaves_the_images_as_they_are(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=dtype, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    expected = (before.float() / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.equal(normalize(images, mean, std), expected)
    assert torch.equal(images, before)


# evaluation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_interpolates_as_asked(interpolation: Interpolation) -> None:
    image = picture(30, 20)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for box, share in (((5, 0, 25, 20), 1.0), ((10, 5, 20, 15), 0.5)):
        expected = to_tensor(image.resize((12, 12), method, box=box))
        assert torch.equal(EvaluationTransform((12, 12), interpolation, share)(image), expected)


def test_a_share_takes_less_of_the_middle() -> None:
    image = picture(40, 24)
    assert torch.equal(EvaluationTransform((12, 12), crop_pct=0.5)(image), to_tensor(image)[:, 6:18, 14:26])
    assert torch.equal(EvaluationTransform((6, 10), crop_pct=0.25)(image), to_tensor(image)[:, 9:15, 15:25])
    assert torch.equal(EvaluationTransform((12, 12), crop_pct=1.0)(image), EvaluationTransform((12, 12))(image))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (640, 427), (300, 900), (200, 150)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_share_of_seven_eighths_is_nearly_a_resize_and_a_crop(
    size: tuple[int, int], interpolation: Interpolation
) -> None:
    """Half a pixel off at most, here one grey level in 256 on average: they cut at whole pixels, we in the middle."""
    image = smooth(*size)
    method = v2.InterpolationMode(interpolation)
    theirs = v2.Compose([v2.Resize(256, method), v2.CenterCrop(224), v2.PILToTensor()])(image)
    timms = transforms_imagenet_eval(224, interpolation=interpolation, crop_pct=0.875, normalize=False)(image)
    ours = EvaluationTransform((224, 224), interpolation, 0.875)(image).int()
    for other in (theirs, timms):
        difference = (ours - other.int()).abs().float()
        assert difference.mean() < 1.3
        assert difference.max() <= 8
