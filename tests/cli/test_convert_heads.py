"""`swin-mim convert` of models with heads of stages, of a teacher or of a detector: kept for us, named for others."""

import pytest
import torch

from swin_mim import SimMIM, Swin, SwinConfig, SwinDetector
from swin_mim.cli.convert.conversion import Options, convert
from swin_mim.cli.convert.report import as_text
from swin_mim.weights.heads import is_head
from swin_mim.weights.weights_file import load_tensors

CONFIG = SwinConfig(64, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2)
MODELS = {
    "stages": {"stage_weights": (0.1, 0.2, 0.3, 0.4)},
    "hog": {"target": "hog"},
    "hog_stages_taught": {"target": "hog", "stage_weights": (0.25,) * 4, "teacher_width": 24},
    "normalized_taught": {"target": "normalized", "teacher_width": 24},
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = SimMIM(CONFIG, **MODELS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def source(model, tmp_path):
    return model.save_pretrained(tmp_path / "source")


def test_ours_keeps_every_head(model, source, tmp_path):
    report = convert(str(source), tmp_path / "dest", "swin_mim", Options())
    kept = SimMIM.from_pretrained(tmp_path / "dest")
    assert kept.description() == model.description()
    for name, value in model.state_dict().items():
        assert torch.equal(kept.state_dict()[name], value), name
    assert not report.left
    assert {row.ours for row in report.rows if is_head(row.ours)} == {n for n in model.state_dict() if is_head(n)}


@pytest.mark.parametrize("to", ["timm", "transformers", "microsoft", "torchvision"])
def test_others_have_no_place_and_each_head_is_named(to, model, source, tmp_path):
    """What is left is what it was: the encoder, and the decoder where the other has one."""
    dest = tmp_path / ("dest" if to in ("timm", "transformers") else "dest.safetensors")
    report = convert(str(source), dest, to, Options())
    heads = {name for name in model.state_dict() if is_head(name)}
    said = {left.name for left in report.left}
    assert heads <= said
    assert all(f"as {to} has no place for it" in left.why for left in report.left if left.name in heads)
    text = as_text(report)
    assert all(name in text for name in heads)
    back = Swin.from_pretrained(dest, image_size=64, window_size=2)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(back(images), model.encoder(images), atol=1e-5, rtol=1e-5)
    if to in ("transformers", "microsoft"):  # they have a decoder of pixels
        decodes = SimMIM.from_pretrained(dest, image_size=64, window_size=2)
        assert not decodes.stage_weights
        assert not decodes.teacher_width
        assert torch.equal(decodes.decoder[0].weight, model.decoder[0].weight)


def test_an_encoder_alone_has_none(source, tmp_path):
    report = convert(str(source), tmp_path / "dest", "swin_mim", Options(encoder_only=True))
    assert {row.ours for row in report.rows if is_head(row.ours) or row.ours.startswith("decoder")} == set()
    assert all(left.why == "as --encoder-only asks" for left in report.left)
    assert not [name for name in load_tensors(tmp_path / "dest" / "model.safetensors") if is_head(name)]


def test_a_detector_stays_whole_for_us_and_leaves_its_encoder_to_others(tmp_path):
    torch.manual_seed(0)
    model = SwinDetector(CONFIG, 2, masks=True, head_channels=16, smallest_anchor=12)
    source = str(model.save_pretrained(tmp_path / "source"))
    report = as_text(convert(source, tmp_path / "dest", "swin_mim", Options()))
    assert "map pool differ by 0.0e+00" in report
    kept = SwinDetector.from_pretrained(tmp_path / "dest")
    assert kept.description() == model.description()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in kept.state_dict().items())
    convert(source, tmp_path / "timm", "timm", Options())
    encoder = Swin.from_pretrained(tmp_path / "timm")
    assert all(torch.equal(value, model.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())
