"""The segmenter against transformers' UperNet, its loss, and its way through files."""

import json
import logging
import math

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from swin_mim import SimMIM, Swin, SwinConfig, SwinSegmenter
from swin_mim.cli.convert import command
from swin_mim.errors import UserError
from swin_mim.hub import saved
from swin_mim.models.dense.convolutions import BatchNorm, groups_of
from swin_mim.models.dense.segmenter import SegmenterOutput, segmentation_loss
from swin_mim.training.loop.optim import adamw

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

CONFIG = SwinConfig(64, embed_dim=8, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=2)
"""Grids 16, 8, 4."""
SMALL = SwinConfig(32, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4)
NAMES = ("water", "land", "ice")


def stretched(model):
    """Weights and running statistics of a trained model's size."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim == 1:
                value += 0.3 * torch.rand_like(value)
            elif "classifier" in name or "table" in name:
                value += 0.1 * torch.randn_like(value)
    return model


def upernet(**options):
    model = stretched(SwinSegmenter(CONFIG, len(NAMES), head_channels=16, **options))
    model.labels = NAMES
    return model.eval()


def theirs_of(model, folder):
    folder.mkdir()
    saved.write_transformers(folder, model.description(), model._tensors())
    model, info = transformers.UperNetForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("size", [(64, 64), (50, 93)])
def test_equals_transformers_upernet(tmp_path, size):
    """Logits and loss, training or not; gradients of the images and of every weight; running statistics."""
    ours = upernet()
    theirs = theirs_of(ours, tmp_path / "theirs")
    # of several images: from two values a batch norm makes +-1, and of their rounding too
    x, y = (torch.randn(6, 3, *size, generator=torch.Generator().manual_seed(3)).requires_grad_() for _ in range(2))
    labels = torch.randint(len(NAMES), (6, *size))
    with torch.no_grad():
        torch.testing.assert_close(ours(x).logits, theirs.eval()(y).logits, atol=1e-5, rtol=0)
        assert ours(x).auxiliary is None
    ours.train()
    theirs.train()
    out, reference = ours(x), theirs(y, labels=labels)
    torch.testing.assert_close(out.logits, reference.logits, atol=1e-5, rtol=0)
    loss = segmentation_loss(out, labels)
    torch.testing.assert_close(loss, reference.loss, atol=1e-5, rtol=0)
    loss.backward()
    reference.loss.backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=0)
    for parameter in theirs.parameters():  # so that what they write of them is read back under our names
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs.save_pretrained(tmp_path / "gradients")
    gradients = SwinSegmenter.from_pretrained(tmp_path / "gradients").state_dict()
    found = {name: parameter.grad for name, parameter in ours.named_parameters()} | dict(ours.named_buffers())
    assert found.keys() == gradients.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, gradients[name], atol=1e-5, rtol=0, msg=name)


def test_the_pipeline_works_on_what_convert_writes(tmp_path, capsys):
    model = upernet()
    model.save_pretrained(tmp_path / "ours")
    command.main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "transformers"])
    assert "ours and transformers: logits differ by" in capsys.readouterr().out
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (45, 70, 3), dtype=np.uint8))
    pipe = transformers.pipeline("image-segmentation", model=str(tmp_path / "theirs"), device="cpu")
    masks = {found["label"]: np.array(found["mask"]) > 0 for found in pipe(picture)}
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")(picture, return_tensors="pt")
    with torch.no_grad():
        logits = model(images["pixel_values"]).logits
    classes = torch.nn.functional.interpolate(logits, size=(45, 70), mode="bilinear").argmax(1)[0].numpy()
    assert len(masks) > 1
    for number, name in enumerate(NAMES):
        expected = classes == number
        assert np.mean(masks.get(name, np.zeros_like(expected)) != expected) < 1e-3  # argmax of rounded numbers
    command.main([str(tmp_path / "theirs"), str(tmp_path / "back"), "--to", "swin_mim"])
    back = SwinSegmenter.from_pretrained(tmp_path / "back")
    assert back.labels == NAMES
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("config", "options"),
    [(CONFIG, {}), (SMALL, {"head": "fpn", "head_norm": "group"})],
)
def test_saved_and_loaded_it_is_the_same(tmp_path, config, options):
    model = stretched(SwinSegmenter(config, 2, head_channels=8, **options)).eval()
    model.labels = ("a", "b")
    folder = model.save_pretrained(tmp_path / "model")
    loaded = SwinSegmenter.from_pretrained(folder)
    images = torch.randn(1, 3, 40, 24)
    assert torch.equal(model(images).logits, loaded(images).logits)
    assert loaded.description() == model.description()
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "dense_head.safetensors", "config.json", "README.md")
    }
    alone = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    square = torch.randn(1, 3, config.image_size, config.image_size)
    torch.testing.assert_close(alone.forward_features(square), model.encoder(square), atol=1e-5, rtol=0)
    assert torch.equal(Swin.from_pretrained(folder)(square), model.encoder(square))


def test_a_new_head_for_any_weights_of_the_bridge(tmp_path, caplog):
    simmim = stretched(SimMIM(SMALL))
    folder = simmim.save_pretrained(tmp_path / "simmim")
    with pytest.raises(UserError, match=r"has no decode_head\.classifier\.weight.*num_classes=N"):
        SwinSegmenter.from_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        model = SwinSegmenter.from_pretrained(folder, num_classes=3, head_channels=8, drop_path_rate=0.2)
    assert "norms, decode_head, auxiliary_head new, drawn at random" in caplog.text
    assert model.from_simmim
    assert model.encoder.config.drop_path_rate == 0.2
    for name, value in simmim.encoder.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name])
    model.labels = NAMES
    folder = model.save_pretrained(tmp_path / "model")
    more = SwinSegmenter.from_pretrained(folder, num_classes=5)
    assert more(torch.randn(1, 3, 8, 8)).logits.shape == (1, 5, 8, 8)
    assert more.labels is None
    assert torch.equal(more.get_parameter("decode_head.fpn_bottleneck.conv.weight"), _fused(model))
    other = SwinSegmenter.from_pretrained(folder, num_classes=3, head="fpn", head_channels=8)
    assert torch.equal(other.norms[0].weight, model.norms[0].weight)
    assert not torch.equal(other.get_parameter("decode_head.classifier.weight")[..., 0], torch.zeros(3, 4, 1))
    assert other.labels is None


def _fused(model):
    return model.get_parameter("decode_head.fpn_bottleneck.conv.weight")


def test_a_damaged_head_is_refused(tmp_path):
    folder = SwinSegmenter(SMALL, 2, head="fpn", head_channels=8).save_pretrained(tmp_path / "model")
    file = folder / "dense_head.safetensors"
    tensors = load_file(file)
    for name, change in (
        ("decode_head.lateral_convs.0.weight", None),
        ("norms.0.weight", torch.ones(9)),
        ("decode_head.odd", torch.ones(1)),
    ):
        changed = {key: value for key, value in tensors.items() if key != name}
        save_file(changed if change is None else changed | {name: change}, file)
        with pytest.raises(UserError, match=f"{name} is .*damaged"):
            SwinSegmenter.from_pretrained(folder)
    document = json.loads((folder / "config.json").read_text())
    document["swin_mim"]["head"]["norm"] = "layer"
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"swin_mim\.head\.norm is 'layer', which no SwinSegmenter has"):
        SwinSegmenter.from_pretrained(folder)


def test_what_transformers_has_not_is_refused(tmp_path):
    for config, options, why in (
        (CONFIG, {"head": "fpn"}, "fpn with batch norms"),
        (CONFIG, {"head_norm": "group"}, "upernet with group norms"),
        (SMALL, {}, "not 2 stages"),
        (SwinConfig(48, embed_dim=8, depths=(1, 1, 2), num_heads=(1, 1, 1), window_size=3), {}, "grid of 3x3 of stage"),
    ):
        with pytest.raises(UserError, match=why):
            SwinSegmenter(config, 2, head_channels=8, **options).save_pretrained(tmp_path / "x", transformers=True)
        assert not (tmp_path / "x").exists()


def test_the_loss_is_the_mean_over_all_pixels_however_a_batch_is_cut():
    logits, auxiliary = torch.randn(2, 4, 3, 5, 7).unbind()
    labels = torch.randint(3, (4, 5, 7))
    labels[torch.rand(4, 5, 7) < 0.4] = 255
    labels[1] = 255
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = 0.0
    for part, share in ((logits, 1), (auxiliary, 0.4)):
        for place in torch.nonzero(labels != 255).tolist():
            label = labels[tuple(place)]
            scores = part[place[0], :, place[1], place[2]].double()
            expected -= share * weights[label].item() * scores.log_softmax(0)[label].item() / labels.numel()
    loss = segmentation_loss(SegmenterOutput(logits, auxiliary), labels, weights)
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)
    halves = [
        segmentation_loss(SegmenterOutput(logits[half], auxiliary[half]), labels[half], weights)
        for half in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(halves) / 2, loss, atol=1e-6, rtol=0)


def test_without_labels_the_loss_is_zero_with_gradients():
    model = SwinSegmenter(SMALL, 2, head="fpn", head_channels=8)
    loss = segmentation_loss(model(torch.randn(1, 3, 16, 16)), torch.full((1, 16, 16), 255))
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
    with pytest.raises(UserError, match=r"labels must be int64 \(1, 16, 16\), not uint8 \(1, 16, 16\)"):
        segmentation_loss(model(torch.randn(1, 3, 16, 16)), torch.zeros(1, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("head", ["upernet", "fpn"])
def test_any_size_channels_and_version(head):
    config = SwinConfig(32, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4, in_channels=6, version=2)
    model = SwinSegmenter(config, 4, head=head, head_channels=8, head_norm="group", head_dropout=0.5)
    for size in ((1, 37), (33, 2), (19, 26)):
        out = model(torch.randn(1, 6, *size))
        assert out.logits.shape == (1, 4, *size)
        assert out.logits.dtype == torch.float32
        assert (out.auxiliary is None) == (head == "fpn")
        assert model.eval()(torch.randn(1, 6, *size)).auxiliary is None
        model.train()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"head": "mask"}, "head is 'mask': expected one of upernet, fpn"),
        ({"head_norm": "layer"}, "head_norm is 'layer'"),
        ({"head_channels": 3}, "head_channels is 3"),
    ],
)
def test_what_cannot_be_built_is_refused(given, why):
    with pytest.raises(UserError, match=why):
        SwinSegmenter(**({"config": SMALL, "num_classes": 2} | given))
    with pytest.raises(UserError, match="are one stage"):
        SwinSegmenter(SwinConfig(16, depths=(1,), num_heads=(1,), embed_dim=4), 2)


def test_our_batch_norm_is_torchs():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(2, 5, 3, 4)
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    with pytest.raises(UserError, match='head_norm "group"'):
        BatchNorm(5)(torch.randn(1, 5, 1, 1))


def test_groups_are_as_published_and_never_of_few_channels():
    found = {channels: groups_of(channels) for channels in (4, 12, 32, 100, 128, 256, 512, 520)}
    assert found == {4: 1, 12: 1, 32: 4, 100: 10, 128: 16, 256: 32, 512: 32, 520: 26}


def test_layer_decay_falls_with_depth_and_heads_learn_at_the_full_rate():
    depths = (2, 2, 1)
    model = SwinSegmenter(CONFIG, 2, head_channels=8)
    optimizer = adamw(model, weight_decay=0.01, layer_decay=0.9)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    for name, (scale, decay) in found.items():
        layer = sum(depths) + 1  # norms, heads
        if name.startswith("encoder.patch_embed."):
            layer = 0
        elif name.startswith("encoder.layers."):
            stage, rest = int(name.split(".")[2]), name.split(".")[3:]
            layer = sum(depths[:stage]) + (0 if rest[0] == "downsample" else int(rest[1]) + 1)
        assert math.isclose(scale, 0.9 ** (sum(depths) + 1 - layer)), name
        matrix = model.get_parameter(name).ndim > 1 and "bias_table" not in name
        assert decay == (0.01 if matrix else 0.0), name
