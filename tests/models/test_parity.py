"""Our Swin and SimMIM against timm, torchvision and transformers, with the same random weights."""

import json

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig, block_mask
from swin_mim.hub.saved import to_theirs
from swin_mim.weights.formats import key_map, to_ours

TIMM = [
    ("swin_tiny", 224, 7),
    ("swin_tiny", 192, 6),
    pytest.param("swin_base", 224, 7, marks=pytest.mark.slow),
    pytest.param("swin_base", 192, 6, marks=pytest.mark.slow),
    ("swin_tiny", 192, 12),
    ("swin_tiny", 96, 6),
]
TORCHVISION = [
    ("swin_tiny", 224, 7),
    ("swin_tiny", 192, 6),
    pytest.param("swin_base", 224, 7, marks=pytest.mark.slow),
    pytest.param("swin_base", 192, 6, marks=pytest.mark.slow),
    ("swin_tiny", 200, 6),
]


def config_and_images(name, size, window, batch=1):
    config = SwinConfig.named(name, image_size=size, window_size=window)
    return config, torch.randn(batch, 3, size, size)


def stretched(model):
    """Weights of a trained model's size: at initialisation bias tables and norms hardly matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # norms, biases and bias tables; of V2 logit scales and the networks of the position bias
            if parameter.ndim == 1 or parameter.shape[-1] < 64 or "cpb_mlp" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def assert_same(ours, theirs, images, to_theirs):
    """Outputs, input gradients and the gradient of every parameter."""
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    out, reference = ours(x), theirs(y)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=0)
    weights = torch.randn_like(out) / out.numel()
    (out * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=0)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients.pop(to_theirs(name)), atol=1e-5, rtol=0, msg=name)
    assert not gradients


@pytest.mark.parametrize(("name", "size", "window"), TIMM)
def test_swin_equals_timm(name, size, window):
    config, images = config_and_images(name, size, window)
    ours = stretched(Swin(config))
    theirs = timm.models.SwinTransformer(
        img_size=size,
        window_size=window,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        num_classes=0,
        global_pool="",
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, images, lambda key: key)


def under_their_names(model, format):
    """The model's weights as that format has them on disk."""
    description, state = model.description(), model.state_dict()
    return to_theirs(format, description, to_ours(state, key_map(state, "checkpoint")))


@pytest.mark.parametrize(("name", "size", "window"), TORCHVISION)
def test_classifier_equals_torchvision(name, size, window):
    config, images = config_and_images(name, size, window)
    ours = stretched(SwinClassifier(config, num_classes=10))
    theirs = TorchvisionSwin(
        [4, 4],
        config.embed_dim,
        list(config.depths),
        list(config.num_heads),
        [window, window],
        stochastic_depth_prob=0.0,
        num_classes=10,
    ).eval()
    state = under_their_names(ours, "torchvision")
    theirs.load_state_dict(state)
    names = key_map(state, "torchvision").sources
    assert_same(ours, theirs, images, lambda key: names[key.removeprefix("encoder.")][0])


def test_classifier_equals_torchvisions_v2():
    config, images = config_and_images("swinv2_tiny", 256, 8)
    ours = stretched(SwinClassifier(config, num_classes=1000))
    theirs = torchvision.models.swin_v2_t().eval()
    theirs.load_state_dict(under_their_names(ours, "torchvision"))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_pyramid_equals_timm():
    config, images = config_and_images("swin_tiny", 96, 6)
    ours = Swin(config).eval()
    theirs = timm.create_model("swin_tiny_patch4_window7_224", img_size=96, window_size=6, features_only=True).eval()
    state = {
        key.replace("layers.", "layers_"): v for key, v in ours.state_dict().items() if not key.startswith("norm.")
    }
    theirs.load_state_dict(state)
    for ours_map, theirs_map in zip(ours.pyramid(images), theirs(images), strict=True):
        torch.testing.assert_close(ours_map, theirs_map.permute(0, 3, 1, 2), atol=1e-5, rtol=0)


SIMMIM = [
    ("swin_tiny", 192, 6),
    ("swin_tiny", 224, 7),
    ("swinv2_tiny", 128, 8),
    pytest.param("swinv2_tiny", 192, 12, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "size", "window"), SIMMIM)
def test_simmim_loss_equals_transformers(name, size, window, tmp_path):
    config, images = config_and_images(name, size, window, batch=2)
    ours = stretched(SimMIM(config))
    prefix = "Swinv2" if config.version == 2 else "Swin"
    settings = getattr(transformers, f"{prefix}Config")(
        image_size=size, window_size=window, encoder_stride=32, architectures=[f"{prefix}ForMaskedImageModeling"]
    )
    (tmp_path / "config.json").write_text(json.dumps(settings.to_dict()))
    save_file(under_their_names(ours, "transformers"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    their_class = getattr(transformers, f"{prefix}ForMaskedImageModeling")
    theirs, report = their_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    mask = block_mask(2, (size // 4, size // 4), 8, 0.6, seed=0)
    with torch.no_grad():
        out, reference = ours(images, mask), theirs.eval()(images, bool_masked_pos=mask.flatten(1))
    assert abs(out.loss - reference.loss) < 1e-6
    torch.testing.assert_close(out.pixels, reference.reconstruction, atol=1e-4, rtol=0)
