"""A frozen network whose features are predicted: what it sees, what it says, and the loss."""

import pytest
import torch
from torch.testing import assert_close

from swin_mim import SimMIM, Swin, SwinConfig, block_mask
from swin_mim.errors import UserError
from swin_mim.masking import masked_cells
from swin_mim.models.saving import Preprocessing
from swin_mim.models.targets.teacher import open_teacher
from swin_mim.weights.weights_file import write_safetensors

SIZES = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 2, 4), "window_size": 4}
RGB = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
BANDS = Preprocessing((10.0,) * 5, (2.0,) * 5, ("nir", "blue", "green", "red", "depth"), scale=1)


@pytest.fixture(params=[1, 2])
def saved(request, tmp_path):
    """A Swin of three channels with stages of different sizes."""
    encoder = Swin(SwinConfig(48, version=request.param, **SIZES)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    encoder.preprocessing = RGB
    return encoder.save_pretrained(tmp_path / "teacher"), encoder


def test_its_features_are_timms(saved):
    folder, encoder = saved
    ours, timms = (open_teacher(name, Preprocessing(), None) for name in (str(folder), f"timm:local-dir:{folder}"))
    images = torch.rand(2, 3, 48, 48)
    normalised = (images - torch.tensor(RGB.mean).view(-1, 1, 1)) / torch.tensor(RGB.std).view(-1, 1, 1)
    known = Preprocessing()
    seen = (images - torch.tensor(known.mean).view(-1, 1, 1)) / torch.tensor(known.std).view(-1, 1, 1)
    expected = encoder.pyramid(normalised)[1].mean((2, 3))
    assert ours.width == timms.width == 32
    for teacher in (ours, timms):
        assert_close(teacher(seen), expected.detach(), atol=1e-5, rtol=1e-4)
        assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_it_sees_named_bands_as_they_are_normalised_and_gaps_as_the_mean(saved):
    folder, encoder = saved
    images, valid = torch.randn(2, 5, 48, 48), torch.rand(2, 48, 48) > 0.2
    expected = encoder.pyramid(images[:, [3, 2, 1]].where(valid[:, None], 0))[1].mean((2, 3))
    for channels in (None, ("red", "green", "blue")):
        assert_close(open_teacher(str(folder), BANDS, channels)(images, valid), expected.detach())
    for channels, why in (
        (("red", "green"), "teacher.channels has 2 entries, and .* sees 3 channels"),
        (("red", "green", "swir"), "names 'swir', and images have nir, blue, green, red, depth"),
    ):
        with pytest.raises(UserError, match=why):
            open_teacher(str(folder), BANDS, channels)
    with pytest.raises(UserError, match=r"sees 3 channels \(red, green, blue\), and images have 1, 2: name as many"):
        open_teacher(str(folder), Preprocessing.unknown(2), None)
    with pytest.raises(UserError, match="timm cannot give features of it"):
        open_teacher("timm:no_such_network", RGB, None)


@pytest.mark.parametrize("target", ["pixels", "hog"])
def test_the_loss_is_1_less_the_cosine(tmp_path, target):
    model = SimMIM(SwinConfig(48, **SIZES), target=target, teacher_width=7, teacher_weight=0.5)
    images, mask, taught = torch.randn(3, 3, 48, 48), block_mask(3, (12, 12), 2, 0.6, seed=0), torch.randn(3, 7)
    cells = masked_cells((12, 12), 2, 0.6, 4)
    alone, out = model(images, mask, cells), model(images, mask, cells, taught=taught)
    tokens = torch.where(mask[..., None], model.mask_token, model.encoder.embed(images))
    features = list(model.encoder.stage_outputs(tokens))[1].mean((1, 2))
    said = (features @ model.teacher_head.weight.mT + model.teacher_head.bias).detach()
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(said, taught, strict=True)]
    assert out.parts["teacher_loss"].item() == pytest.approx(1 - sum(cosines) / 3, abs=1e-6)
    assert_close(out.loss, alone.loss + 0.5 * out.parts["teacher_loss"])
    assert "teacher_loss" not in model.part_names, "of held-out images nobody asks a teacher"
    out.loss.backward()
    assert model.teacher_head.weight.grad.any()
    model.save_pretrained(tmp_path / "model")
    loaded = SimMIM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.teacher_head.weight, model.teacher_head.weight)
    assert "teacher_head.weight" not in Swin.from_pretrained(tmp_path / "model").state_dict()
    write_safetensors(model.state_dict(), tmp_path / "state.safetensors")
    assert SimMIM.from_pretrained(tmp_path / "state.safetensors").teacher_width == 7
