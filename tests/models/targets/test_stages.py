"""Every stage predicts the target at its own stride: the loss, what is saved of it, and what it costs."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from swin_mim import SimMIM, Swin, SwinConfig, block_mask
from swin_mim.errors import UserError
from swin_mim.masking import masked_cells, pixel_mask
from swin_mim.models.compilation import compile_model
from swin_mim.models.targets.hog import Hog

WEIGHTS = (0.5, 0.25, 1.0)


def config_of(version: int, **changes) -> SwinConfig:
    sizes = {"embed_dim": 16, "depths": (2, 1, 1), "num_heads": (1, 2, 4), "window_size": 4, "in_channels": 2}
    return SwinConfig((48, 64), version=version, **(sizes | changes))


def batch(gaps: bool):
    images, valid = torch.randn(3, 2, 48, 64), None
    if gaps:
        valid = torch.ones(3, 48, 64, dtype=torch.bool)
        valid[1, 5:40, 3:21] = False
        valid[2, :, 30:] = False
    mask = block_mask(3, (12, 16), 2, 0.6, seed=0, **({} if valid is None else {"valid": valid}))
    return images, mask, valid


def slow_loss(model: SimMIM, images, mask, valid) -> torch.Tensor:
    """Written out: every stage's own 1x1 convolution, and the error of each masked pixel one after the other."""
    seen = images if valid is None else images.where(valid[:, None], 0)
    tokens = torch.where(mask[..., None], model.mask_token, model.encoder.embed(seen))
    counted = pixel_mask(mask, 4) if valid is None else pixel_mask(mask, 4) & valid
    total = 0.0
    for stage, features in enumerate(model.encoder.stage_outputs(tokens)):
        stride, last = 4 * 2**stage, stage == len(WEIGHTS) - 1
        head = None if last and model.target != "hog" else model.stage_heads[str(stage)]
        if last:
            x = model.encoder.norm(features)
        else:
            x = F.layer_norm(features, features.shape[-1:], head.norm.weight, head.norm.bias)
        weight, bias = (
            (model.decoder[0].weight.flatten(1), model.decoder[0].bias)
            if head is None
            else (
                head.proj.weight,
                head.proj.bias,
            )
        )
        predicted = F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
        if model.target == "hog":
            cell = min(8, stride)
            predicted = F.pixel_shuffle(predicted, stride // cell)
            error = (predicted - Hog([cell])(images, valid)[cell]).square().mean(1)
            error = error.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        else:
            error = (F.pixel_shuffle(predicted, stride) - model.targets(images, valid)).abs().mean(1)
        if valid is None:
            loss = error[counted].mean()
        else:
            loss = torch.stack([error[i][counted[i]].mean() for i in range(len(images))]).mean()
        total = total + WEIGHTS[stage] * loss
    return total


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("target", ["pixels", "normalized", "hog"])
def test_the_loss_is_the_weighted_sum_over_the_stages(target, gaps, version):
    model = SimMIM(config_of(version), target=target, stage_weights=WEIGHTS)
    images, mask, valid = batch(gaps)
    cells = masked_cells((12, 16), 2, 0.6, 4)
    expected = slow_loss(model, images, mask, valid)
    whole, part = (model(images, mask, number, valid) for number in (None, cells))
    learned = expected + whole.parts["loss"] if target == "hog" else expected
    assert_close(whole.loss, learned, atol=1e-6, rtol=1e-5)
    assert_close(part.loss, learned, atol=1e-6, rtol=1e-5)
    encoder = list(model.encoder.parameters())
    gradients = [torch.autograd.grad(loss, encoder) for loss in (expected, part.loss)]
    for ours, reference in zip(gradients[1], gradients[0], strict=True):
        assert_close(ours, reference, atol=1e-6, rtol=1e-4)


def test_the_loss_does_not_depend_on_how_a_batch_is_cut():
    images, mask, valid = batch(gaps=True)
    for target in ("pixels", "hog"):
        model = SimMIM(config_of(1), target=target, stage_weights=WEIGHTS)
        each = [model(images[i : i + 1], mask[i : i + 1], None, valid[i : i + 1]).loss for i in range(3)]
        assert_close(model(images, mask, None, valid).loss, torch.stack(each).mean())


@pytest.mark.parametrize("target", ["pixels", "hog"])
def test_what_is_published_has_the_heads_and_the_encoder_none(tmp_path, target):
    model = SimMIM(config_of(1, in_channels=3), target=target, stage_weights=WEIGHTS).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = SimMIM.from_pretrained(tmp_path / "model")
    assert (loaded.target, loaded.stage_weights) == (target, WEIGHTS)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert not [name for name in Swin.from_pretrained(tmp_path / "model").state_dict() if "heads" in name]
    Swin.from_pretrained(tmp_path / "model" / "model.safetensors")  # the encoder by itself is whole
    last = SimMIM.from_pretrained(tmp_path / "model", target="pixels", stage_weights=())
    assert torch.equal(last.decoder[0].weight, model.decoder[0].weight)
    assert not last.part_names
    last.save_pretrained(tmp_path / "last")
    with pytest.raises(UserError, match=r"has no stage_heads.*new_decoder=True"):
        SimMIM.from_pretrained(tmp_path / "last", stage_weights=WEIGHTS)
    anew = SimMIM.from_pretrained(tmp_path / "last", stage_weights=WEIGHTS, target=target, new_decoder=True)
    assert anew.stage_weights == WEIGHTS
    two = SimMIM.from_pretrained(tmp_path / "model", channels=["red", "nir"])
    head, old = two.stage_heads["0"].proj.weight, model.stage_heads["0"].proj.weight
    assert torch.equal(head[: len(old) // 3], old[: len(old) // 3])


def test_a_file_of_other_heads_is_refused(tmp_path):
    SimMIM(config_of(1, in_channels=3), stage_weights=WEIGHTS).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    document = json.loads(path.read_text())
    for changes, why in (
        ({"stage_weights": [1, 1]}, "stage_weights is .*expected 3 numbers"),
        ({"target": "hog"}, "stage_heads.2.proj.bias, stage_heads.2.proj.weight are missing"),
        ({"stage_weights": None}, "stage_heads.*too many"),
    ):
        path.write_text(json.dumps(document | {"swin_mim": document["swin_mim"] | changes}))
        with pytest.raises(UserError, match=why):
            SimMIM.from_pretrained(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pixels", "hog"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_and_recomputed_it_is_the_same(target):
    images, mask, _ = batch(gaps=False)
    model = SimMIM(config_of(1), target=target, stage_weights=WEIGHTS)
    other = SimMIM(config_of(1), target=target, stage_weights=WEIGHTS, activation_checkpointing=True)
    other.load_state_dict(model.state_dict())
    torch.compiler.reset()
    compile_model(other, torch.device("cpu"), backend="aot_eager", fullgraph=True)
    for one, two in zip(*(_gradients(each, images, mask) for each in (model, other)), strict=True):
        assert_close(two, one, atol=1e-6, rtol=1e-4)


def _gradients(model: SimMIM, images, mask) -> list[torch.Tensor]:
    loss = model(images, mask, masked_cells((12, 16), 2, 0.6, 4)).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def test_weights_must_fit():
    for weights, why in (
        ((1.0,), "has 1 entry and the model 3 stages"),
        ((1.0, 1.0, 0.0), "the last must be positive"),
    ):
        with pytest.raises(UserError, match=why):
            SimMIM(config_of(1), stage_weights=weights)
    with pytest.raises(UserError, match="which patch_size 6 neither divides"):
        SimMIM(SwinConfig(48, patch_size=6, depths=(1, 1), num_heads=(1, 2), embed_dim=16), target="hog")
