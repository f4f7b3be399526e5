"""JPEGs that are decoded to a part of their size, or by simplejpeg, against whole ones of Pillow's."""

import io
import math
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import datasets
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swin_mim.data.blue_marble.tiles import composite
from swin_mim.data.decoding import decode_limits, rgb
from swin_mim.data.decoding.rgb import BrokenImage, Decoded, decode_image, decoder_text, open_image
from swin_mim.data.loading.loader import LoaderOptions, TrainingLoader
from swin_mim.data.sampling import SampleOrder, sample_generator
from swin_mim.data.sources.base import Source, Subset
from swin_mim.data.sources.open import open_source
from swin_mim.data.transforms.crops import Flips, PretrainTransform

HOPPER = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(image, exif=exif, **options)


def smooth(width: int, height: int) -> Image.Image:
    """Waves of some hundred pixels, of their own in each channel and direction."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [np.sin(x / 41) + np.cos(y / 67), np.sin(x / 73 + 1) * np.cos(y / 37), np.sin((x + 2 * y) / 97)]
    return Image.fromarray((np.stack(waves, axis=2) * 60 + 128).astype(np.uint8))


def array(decoded: Decoded) -> np.ndarray:
    """float (H, W, 3)"""
    return np.asarray(decoded.image).astype(float)


def crop_of(transform: PretrainTransform, data: bytes, seed: int) -> torch.Tensor:
    return transform(open_image(data), np.random.default_rng(seed))


def whole_crop_of(transform: PretrainTransform, data: bytes, seed: int) -> torch.Tensor:
    return transform(decode_image(data), np.random.default_rng(seed))


@pytest.fixture(params=["with simplejpeg", "without simplejpeg"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "with simplejpeg":
        assert rgb.simplejpeg, "it belongs to the extra of the tests"
    else:
        monkeypatch.setattr(rgb, "simplejpeg", None)


# the scale


@pytest.mark.parametrize(
    ("size", "most", "factor", "expected"),
    [
        ((64, 48), 1.99, 1, (64, 48)),
        ((64, 48), 2.0, 2, (32, 24)),
        ((64, 48), 3.99, 2, (32, 24)),
        ((65, 47), 4.0, 4, (17, 12)),
        ((65, 47), 7.99, 4, (17, 12)),
        ((65, 47), 1000.0, 8, (9, 6)),
        ((7, 3), 1000.0, 2, (4, 2)),
        ((1, 400), 1000.0, 1, (1, 400)),
        ((64, 48), 0.3, 1, (64, 48)),
    ],
)
def test_a_jpeg_is_made_as_small_as_is_allowed(
    size: tuple[int, int], most: float, factor: int, expected: tuple[int, int]
) -> None:
    decoded = open_image(encode(Image.new("RGB", size, (9, 90, 200)))).decode(most)
    assert (decoded.factor, decoded.size, array(decoded).shape) == (factor, size, (*expected[::-1], 3))
    assert np.abs(array(decoded) - (9, 90, 200)).max() <= 3


@settings(deadline=None, max_examples=200)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    to=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_a_crop_keeps_the_pixels_that_the_result_has(
    width: int, height: int, to: tuple[int, int], orientation: int, seed: int
) -> None:
    transform = PretrainTransform(to)
    data = turned(Image.new("L", (width, height)), orientation)
    whole, opened = decode_image(data), open_image(data)
    assert opened.size == whole.size
    box = transform._box(opened.size, np.random.default_rng(seed))
    decoded = opened.decode(transform._shrink(box))
    assert decoded.size == whole.size
    left, top, right, bottom = decoded.place(box)
    assert 0 <= left < right <= array(decoded).shape[1]
    assert 0 <= top < bottom <= array(decoded).shape[0]
    larger = right - left >= to[1] and bottom - top >= to[0]
    assert larger or decoded.factor == 1
    twice = right - left >= 2 * to[1] and bottom - top >= 2 * to[0]
    assert not twice or decoded.factor == 8 or min(whole.size) < 2 * decoded.factor


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_decoded_whole(kind: str) -> None:
    data = encode(smooth(50, 40), kind)
    decoded = open_image(data)
    assert isinstance(decoded, Decoded)
    assert decoded.decode(8) is decoded
    assert (decoded.factor, decoded.margin) == (1, (0, 0))
    assert np.array_equal(array(decoded), np.asarray(decode_image(data)))


def test_a_multi_picture_jpeg_is_made_smaller() -> None:
    data = encode(smooth(80, 64), "MPO", save_all=True, append_images=[Image.new("RGB", (80, 64))])
    decoded = open_image(data).decode(4)
    assert decoded.factor == 4
    assert abs(array(decoded).mean() - np.asarray(decode_image(data)).mean()) < 1


# what it shows


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_every_orientation_keeps_its_place(orientation: int, factor: int, decoder: None) -> None:
    """203 x 149 is no multiple of a factor: a part of the last squares is no picture, at whichever side they end."""
    data = turned(smooth(203, 149), orientation, quality=98, subsampling=0)
    whole = np.asarray(decode_image(data)).astype(float)
    opened = open_image(data)
    decoded = opened.decode(factor)
    assert opened.size == decoded.size == whole.shape[1::-1]
    assert decoded.factor == factor
    left, top, _, _ = decoded.place((0, 0, 1, 1))
    x, y = math.ceil(left), math.ceil(top)  # the first pixel whose square lies in the picture, and where that begins:
    start_x, start_y = round((x - left) * factor), round((y - top) * factor)
    rows, columns = (whole.shape[0] - start_y) // factor, (whole.shape[1] - start_x) // factor
    squares = whole[start_y : start_y + rows * factor, start_x : start_x + columns * factor]
    means = squares.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))
    assert np.abs(means - array(decoded)[y : y + rows, x : x + columns]).max() < 3


JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "colour": ("RGB", {}),
    "colour 4:4:4": ("RGB", {"subsampling": 0}),
    "colour 4:2:2": ("RGB", {"subsampling": 1}),
    "colour, not converted": ("RGB", {"keep_rgb": True}),
    "colour, progressive": ("RGB", {"progressive": True}),
    "colour, restart markers": ("RGB", {"restart_marker_blocks": 4}),
    "grey": ("L", {}),
    "grey, progressive": ("L", {"progressive": True}),
    "four colours": ("CMYK", {}),
    "four colours, progressive": ("CMYK", {"progressive": True}),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_every_kind_of_jpeg(kind: str, factor: int, decoder: None) -> None:
    mode, options = JPEGS[kind]
    data = encode(smooth(208, 160).convert(mode), quality=95, **options)
    decoded = open_image(data).decode(factor)
    assert decoded.factor == factor
    whole = np.asarray(decode_image(data)).astype(float)
    means = whole.reshape(160 // factor, factor, 208 // factor, factor, 3).mean(axis=(1, 3))
    if factor == 1:
        assert np.array_equal(array(decoded), whole)
    assert np.abs(array(decoded) - means).mean() < 2.2  # 0.6, but where 4:2:2 leaves less of the colours than 1/8
    assert np.abs(array(decoded) - means).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1203, 901), (1600, 1200)])
def test_a_crop_shows_the_same_part_of_the_picture(size: tuple[int, int], orientation: int) -> None:
    """Red grows to the right and green downwards, so that colours are places: they agree within a pixel."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    data = turned(
        Image.fromarray(np.stack([x, y, 0 * x], axis=2).round().astype(np.uint8)),
        orientation,
        quality=100,
        subsampling=0,
    )
    transform = PretrainTransform((96, 128))
    pixel = max(size) / 255 / 8  # in grey levels, of the picture that is 8 times as wide as the result
    for seed in range(8):
        difference = (crop_of(transform, data, seed).float() - whole_crop_of(transform, data, seed).float())[:2]
        inner = difference[:, 2:-2, 2:-2]
        assert inner.mean(dim=(1, 2)).abs().max() < 0.2  # a pixel of the whole picture
        assert inner.mean(dim=1).abs().max() < 2 * pixel
        assert inner.mean(dim=2).abs().max() < 2 * pixel
        assert difference.abs().max() <= 3  # at the edges, where Pillow's filter sees beyond the crop: half a pixel


def photographs() -> Iterator[tuple[str, bytes]]:
    earth = Image.fromarray(composite())
    for left, top in ((2500, 500), (1100, 700), (3600, 600), (800, 400)):
        yield "aerial", encode(earth.crop((left, top, left + 1600, top + 1200)), quality=90)
    yield "sharp", HOPPER.read_bytes()


def test_photographs_look_as_if_decoded_whole() -> None:
    """The tolerances that `PretrainTransform` states, for every single crop."""
    means: dict[str, list[float]] = {"aerial": [], "sharp": []}
    for name, data in photographs():
        for size, seed in product((96, 160, 192, 224), range(6)):
            transform = PretrainTransform((size, size))
            if transform._shrink(transform._box(decode_image(data).size, np.random.default_rng(seed))) >= 2:
                difference = crop_of(transform, data, seed).int() - whole_crop_of(transform, data, seed).int()
                means[name].append(float(difference.abs().float().mean()))
                assert difference.abs().max() <= 64
    assert len(means["aerial"]) > 80
    assert len(means["sharp"]) > 15
    assert max(means["aerial"]) < 1
    assert max(means["sharp"]) < 2


@pytest.mark.parametrize("flips", ["none", "horizontal", "both", "dihedral"])
def test_flips_are_those_of_the_whole_image(flips: Flips) -> None:
    transform, data = PretrainTransform((64, 64), flips=flips), encode(smooth(700, 500), quality=98, subsampling=0)
    for seed in range(16):
        crop, expected = crop_of(transform, data, seed), whole_crop_of(transform, data, seed)
        assert crop.is_contiguous()
        assert (crop.int() - expected.int()).abs().float().mean() < 1


# simplejpeg


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (500, 375), (333, 17)])
def test_simplejpeg_gives_the_pixels_of_pillow(kind: str, size: tuple[int, int]) -> None:
    assert rgb.simplejpeg, "it belongs to the extra of the tests"
    mode, options = JPEGS[kind]
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for picture in (Image.fromarray(noise), smooth(*size)):
        data = encode(picture.convert(mode), quality=85, **options)
        decoded = open_image(data).decode(1)
        assert isinstance(decoded.image, Image.Image if mode == "CMYK" else np.ndarray)
        assert np.array_equal(array(decoded), np.asarray(decode_image(data)))


def test_simplejpeg_gives_the_crops_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rgb.simplejpeg, "it belongs to the extra of the tests"
    transform, data = PretrainTransform((192, 192), flips="both"), HOPPER.read_bytes()
    crops = [crop_of(transform, data, seed) for seed in range(6)]
    monkeypatch.setattr(rgb, "simplejpeg", None)
    assert all(torch.equal(crop, crop_of(transform, data, seed)) for seed, crop in enumerate(crops))


def test_what_simplejpeg_refuses_or_gets_wrong_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(smooth(40, 30))

    class Refuses:
        @staticmethod
        def decode_jpeg(data: bytes, buffer: np.ndarray) -> np.ndarray:
            raise ValueError("Unsupported")

    class OtherSize:
        @staticmethod
        def decode_jpeg(data: bytes, buffer: np.ndarray) -> np.ndarray:
            return buffer[:1]

    for double in (Refuses, OtherSize):
        monkeypatch.setattr(rgb, "simplejpeg", double)
        assert np.array_equal(array(open_image(data).decode(1)), np.asarray(decode_image(data)))


def test_the_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rgb, "simplejpeg", None)
    assert decoder_text().startswith("Pillow 1")
    monkeypatch.setattr(rgb, "simplejpeg", type("Double", (), {"__version__": "1.9.0"}))
    assert decoder_text().startswith("simplejpeg 1.9.0 and Pillow 1")


# damage


@pytest.mark.parametrize("kind", ["colour", "colour, progressive", "colour, restart markers", "grey", "four colours"])
@pytest.mark.parametrize("factor", [1, 2, 8])
def test_the_same_damaged_files_are_broken(kind: str, factor: int, decoder: None) -> None:
    mode, options = JPEGS[kind]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)).convert(mode)
    data = encode(noise, **options)
    rng = np.random.default_rng(1)
    damaged = [data[:cut] for cut in range(0, len(data), 23)] + [data[:-cut] for cut in range(1, 20)]
    for _ in range(150):
        changed = bytearray(data)
        changed[int(rng.integers(len(data) if rng.random() < 0.5 else 700))] = int(rng.integers(256))
        damaged.append(bytes(changed))
    outcomes = [broken_or_size(lambda file=file: decode_image(file)) for file in damaged]
    assert "broken" in outcomes
    assert outcomes == [broken_or_size(lambda file=file: open_image(file).decode(factor)) for file in damaged]


def broken_or_size(read: object) -> str | tuple[int, int]:
    try:
        return read().size  # type: ignore[operator]
    except BrokenImage:
        return "broken"


def test_bombs_are_refused_before_their_scale_is_asked() -> None:
    data = bytearray(encode(Image.new("L", (16, 16))))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"

    with pytest.raises(BrokenImage, match="pixels"):
        open_image(bytes(data))


# BMP, as images are packed raw


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (4, 3), (13, 8), (14, 7), (15, 6)], ids=str)
def test_a_plain_bmp_is_read_where_it_lies(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    data, transform = encode(noise, "BMP"), PretrainTransform((8, 8), flips="dihedral")
    expected = [whole_crop_of(transform, data, seed) for seed in range(12)]
    monkeypatch.setattr(rgb.Image, "open", None)  # Pillow is not asked
    decoded = open_image(data).decode(8.0)
    assert (decoded.size, decoded.factor) == (size, 1)
    assert np.array_equal(array(decoded), np.asarray(noise))
    assert np.shares_memory(decoded.image, np.frombuffer(data, np.uint8))
    assert all(torch.equal(crop_of(transform, data, seed), crop) for seed, crop in enumerate(expected))


def test_other_bmps_are_what_pillow_makes_of_them() -> None:
    """Every byte of the header changed, rows from top to bottom, cut off, too long, of other modes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8))
    data = encode(noise, "BMP")
    files = [
        data[:at] + bytes([value]) + data[at + 1 :] for at in range(54) for value in (0, 1, 3, 8, 32, 40, 128, 255)
    ]
    files += [data[:cut] for cut in range(1, len(data), 7)] + [
        data + b"more",
        data[:22] + b"\xfa\xff\xff\xff" + data[26:],
    ]
    files += [encode(noise.convert(mode), "BMP") for mode in ("RGBA", "L", "P", "1")]
    outcomes = [pixels_or_broken(lambda file=file: decode_image(file)) for file in files]
    assert b"broken" in outcomes
    assert len(set(outcomes)) > 5
    assert outcomes == [pixels_or_broken(lambda file=file: open_image(file).decode(8.0).image) for file in files]


def pixels_or_broken(read: object) -> bytes:
    try:
        pixels = np.asarray(read())  # type: ignore[operator]
    except BrokenImage:
        return b"broken"
    return str(pixels.shape).encode() + pixels.tobytes()


def test_a_plain_bmp_may_not_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_limits, "MAX_SIDE", 30)
    data = encode(Image.new("RGB", (31, 2)), "BMP")
    reasons = []
    for read in (decode_image, lambda data: open_image(data).decode(8.0)):
        with pytest.raises(BrokenImage, match="31 x 2 pixels are more") as refused:
            read(data)
        reasons.append(str(refused.value))
    assert len(set(reasons)) == 1


# sources and the loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of many sizes, turns and kinds, one of which is cut off."""
    root = tmp_path_factory.mktemp("photographs")
    earth = Image.fromarray(composite())
    sizes = [(500, 375), (403, 301), (130, 97), (90, 250), (40, 30), (260, 260), (311, 207), (64, 64)]
    for index, (width, height) in enumerate(sizes):
        picture = earth.crop((2600 + 50 * index, 700, 2600 + 50 * index + width, 700 + height))
        (root / f"{index}.jpg").write_bytes(turned(picture, index + 1, progressive=index % 3 == 0))
    (root / "grey.jpg").write_bytes(encode(smooth(300, 200).convert("L")))
    (root / "cmyk.jpg").write_bytes(encode(smooth(300, 200).convert("CMYK")))
    (root / "lossless.png").write_bytes(encode(smooth(300, 200), "PNG"))
    (root / "broken.jpg").write_bytes(encode(smooth(300, 200))[:3000])
    return root


def samples(source: Source, workers: int, start: int = 0, count: int = 36) -> dict[int, torch.Tensor]:
    loader = TrainingLoader(
        source,
        PretrainTransform((48, 48), flips="both"),
        seed=3,
        global_batch=6,
        micro_batch=3,
        options=LoaderOptions(workers=workers),
    )
    taken = islice(loader.batches(start), count // 3)
    return {batch.start + i: image.clone() for batch in taken for i, image in enumerate(batch.images)}


def test_a_folder_gives_the_same_crops_however_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(folder))
    here = samples(source, workers=0)
    others = {"workers": samples(source, workers=2), "a part": samples(Subset(source, range(len(source))), workers=0)}
    monkeypatch.setattr(rgb, "simplejpeg", None)
    others["no simplejpeg"] = samples(source, workers=0)
    for name, other in others.items():
        assert other.keys() == here.keys()
        assert all(torch.equal(other[position], here[position]) for position in here), name
    resumed = samples(source, workers=0, start=18, count=18)
    assert all(torch.equal(resumed[position], here[position]) for position in resumed)


def test_a_folder_gives_the_crops_of_whole_images(folder: Path) -> None:
    source, transform = open_source(str(folder)), PretrainTransform((48, 48), flips="both")
    order = SampleOrder(len(source), seed=3)
    smaller = 0
    for position, crop in samples(source, workers=0).items():
        index = order.index(position)
        if source.name(index) == "broken.jpg":
            continue
        whole = source.image(index)
        expected = transform(whole, sample_generator(3, position))
        assert (crop.int() - expected.int()).abs().float().mean() < 1.5, source.name(index)
        smaller += not torch.equal(crop, expected)
    assert smaller > 10


def test_sources_that_hold_no_files_give_whole_images() -> None:
    class Pictures(Source):
        fingerprint = "pictures"

        def __len__(self) -> int:
            return 3

        def name(self, index: int) -> str:
            return str(index)

        def image(self, index: int) -> Image.Image:
            return Image.new("RGB", (40 + index, 30))

    for source in (Pictures(), Subset(Pictures(), [0, 1, 2])):
        decoded = source.open(2).decode(8)
        assert (decoded.size, decoded.factor) == ((42, 30), 1)


def test_tables_make_images_smaller_too(tmp_path: Path) -> None:
    file = encode(smooth(80, 64))
    table = datasets.Dataset.from_dict({"image": [{"bytes": file, "path": None}, None]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "table"))
    source = open_source(str(tmp_path / "table"))
    assert source.open(0).decode(4).factor == 4
    with pytest.raises(BrokenImage, match="empty"):
        source.open(1).decode(4)
