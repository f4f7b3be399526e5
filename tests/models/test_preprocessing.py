"""Images as they come become the input that evaluation gives the model."""

import re

import pytest
import torch
from PIL import Image

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.errors import UserError
from swin_mim.weights.config_json import Preprocessing

CONFIG = SwinConfig((48, 64), embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)
TAKEN = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation="bicubic", crop_pct=0.875)


@pytest.fixture
def picture():
    pixels = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def model():
    model = Swin(CONFIG)
    model.preprocessing = TAKEN
    return model


def expected(picture):
    image = EvaluationTransform((48, 64), "bicubic", 0.875)(picture)
    return normalize(image[None], TAKEN.mean, TAKEN.std)


def test_pictures_and_files_become_what_evaluation_gives(model, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    for images in (picture, [picture], tmp_path / "a.png", str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        assert torch.equal(model.preprocess(images), expected(picture))
    both = model.preprocess([picture, str(tmp_path / "a.png")])
    assert both.shape == (2, 3, 48, 64)
    assert model(both).shape == (2, 6, 8, 32)


@pytest.mark.parametrize("build", [lambda: SimMIM(CONFIG), lambda: SwinClassifier(CONFIG, 3)])
def test_every_model_has_it(build, picture):
    assert build().preprocess(picture).shape == (1, 3, 48, 64)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "F"])
def test_pictures_of_any_mode_are_as_their_files(model, picture, mode, tmp_path):
    other = picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)
    name = tmp_path / ("a.tif" if mode in ("CMYK", "F") else "a.png")
    other.save(name)
    assert torch.equal(model.preprocess(other), model.preprocess(name))


def test_a_picture_is_turned_as_its_exif_says(model, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        assert torch.equal(model.preprocess(opened), model.preprocess(tmp_path / "a.png"))
    assert torch.equal(model.preprocess(tmp_path / "a.png"), expected(picture.transpose(Image.Transpose.ROTATE_270)))


def test_a_uint8_tensor_keeps_its_size(model):
    images = torch.randint(0, 256, (2, 3, 32, 80), dtype=torch.uint8)
    assert torch.equal(model.preprocess(images), normalize(images, TAKEN.mean, TAKEN.std))
    assert torch.equal(model.preprocess(images[0]), model.preprocess(images[:1]))
    assert model.preprocess(images).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.float32])
def test_other_channels_come_in_the_units_of_their_files(dtype):
    model = Swin(SwinConfig(32, in_channels=2, embed_dim=16, depths=(1,), num_heads=(1,), window_size=4))
    model.preprocessing = Preprocessing((100.0, 1000.0), (10.0, 50.0), ("vv", "vh"), scale=1)
    values = torch.tensor([110.0, 900.0]).view(1, 2, 1, 1).expand(1, 2, 32, 32).to(dtype)
    assert model.preprocess(values)[0, :, 0, 0].tolist() == [1.0, -2.0]
    if dtype == torch.float32:
        gap = values.clone()
        gap[..., 0] = torch.nan
        assert (model.preprocess(gap)[..., 0] == 0).all()
    with pytest.raises(UserError, match="files and pictures are RGB and this model is not"):
        model.preprocess("a.png")


def test_what_is_no_image_is_told(model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for images, message in (
        (torch.rand(1, 3, 8, 8), "images must be uint8, from 0 to 255, not float32"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), r"images must be \(B, 3, H, W\), not \(1, 4, 8, 8\)"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"images must be \(B, 3, H, W\), not \(8, 8\)"),
        ([], "no images were given"),
        (tmp_path / "none.png", "none.png cannot be read: No such file"),
        (tmp_path / "text.png", re.escape(f"{tmp_path / 'text.png'} cannot be read: ")),
    ):
        with pytest.raises(UserError, match=message):
            model.preprocess(images)
