"""Our Swin and SimMIM against timm, torchvision and transformers, with the same random weights."""

import json
import re

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig, block_mask

TIMM = [
    ("swin_tiny", 224, 7),
    ("swin_tiny", 192, 6),
    ("swin_base", 224, 7),
    ("swin_base", 192, 6),
    ("swin_tiny", 192, 12),
    ("swin_tiny", 96, 6),
]
TORCHVISION = [
    ("swin_tiny", 224, 7),
    ("swin_tiny", 192, 6),
    ("swin_base", 224, 7),
    ("swin_base", 192, 6),
    ("swin_tiny", 200, 6),
]


def config_and_images(name, size, window, batch=1):
    config = SwinConfig.named(name, image_size=size, window_size=window)
    return config, torch.randn(batch, 3, size, size)


def stretched(model):
    """Weights of a trained model's size: at initialisation bias tables and norms hardly matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.shape[-1] < 64:  # norms, biases and bias tables
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


def torchvision_key(key):
    """Our key -> torchvision's."""
    rules = [
        (r"^patch_embed\.proj", "features.0.0"),
        (r"^patch_embed\.norm", "features.0.2"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.3"),
        (r"^head\.fc", "head"),
        (r"^encoder\.", ""),
    ]
    for pattern, replacement in reversed(rules):
        key = re.sub(pattern, replacement, key)
    key = re.sub(r"^layers\.(\d+)\.blocks\.", lambda m: f"features.{2 * int(m[1]) + 1}.", key)
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * int(m[1])}.", key)


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
    state = {torchvision_key(key): value for key, value in ours.state_dict().items()}
    buffers = {k: v for k, v in theirs.state_dict().items() if k.endswith("relative_position_index")}
    theirs.load_state_dict(state | buffers)
    assert_same(ours, theirs, images, torchvision_key)


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


def transformers_state(model):
    """SimMIM's weights under the names that transformers has on disk."""
    rules = [
        (r"^encoder\.patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
        (r"^encoder\.patch_embed\.norm", "swin.embeddings.norm"),
        (r"^encoder\.norm", "swin.layernorm"),
        (r"^mask_token", "swin.embeddings.mask_token"),
        (r"^encoder\.layers", "swin.encoder.layers"),
        (r"\.norm1", ".layernorm_before"),
        (r"\.norm2", ".layernorm_after"),
        (r"attn\.proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"attn\.relative", "attention.self.relative"),
        (r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
    ]
    state = {}
    for key, value in model.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if "attn.qkv" in key:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[key.replace("attn.qkv", f"attention.self.{part}")] = piece.contiguous()
        else:
            state[key] = value.contiguous()
    return state


@pytest.mark.parametrize(("size", "window"), [(192, 6), (224, 7)])
def test_simmim_loss_equals_transformers(size, window, tmp_path):
    config, images = config_and_images("swin_tiny", size, window, batch=2)
    ours = stretched(SimMIM(config))
    settings = transformers.SwinConfig(
        image_size=size, window_size=window, encoder_stride=32, architectures=["SwinForMaskedImageModeling"]
    )
    (tmp_path / "config.json").write_text(json.dumps(settings.to_dict()))
    save_file(transformers_state(ours), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = transformers.SwinForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    mask = block_mask(2, (size // 4, size // 4), 8, 0.6, seed=0)
    with torch.no_grad():
        out, reference = ours(images, mask), theirs.eval()(images, bool_masked_pos=mask.flatten(1))
    assert abs(out.loss - reference.loss) < 1e-6
    torch.testing.assert_close(out.pixels, reference.reconstruction, atol=1e-4, rtol=0)
