"""The libraries that we exchange weights with, built small, and how our models meet them. Shared by tests."""

from dataclasses import replace

import timm
import torch
import transformers
from safetensors.torch import save_file
from torchvision.models import swin_transformer as torchvision_swin

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig, block_mask
from swin_mim.architecture import as_pair
from swin_mim.weights import formats
from swin_mim.weights.compatibility import unsupported_reason
from swin_mim.weights.config_json import Description
from swin_mim.weights.network import network_of

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

UNIFORM = SwinConfig(64, embed_dim=16, depths=(2, 2, 3), num_heads=(1, 2, 4), window_size=4, mlp_ratio=2.0)
"""Grids 16, 8, 4: windows of 4 in all stages, as torchvision and transformers want it."""
PINNED = SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4, mlp_ratio=2.5)
"""Windows 4, 4, 4, 2, as 12, 12, 12, 6 in the official Swin-L."""
UNIFORM_V2, PINNED_V2 = (replace(config, version=2, pretrained_window_sizes=()) for config in (UNIFORM, PINNED))
CLASSES = 5
MODELS = {"Swin": Swin, "SimMIM": SimMIM, "SwinClassifier": SwinClassifier}


def build(config, kind):
    return SwinClassifier(config, CLASSES) if kind == "SwinClassifier" else MODELS[kind](config)


def stretched(model):
    """Weights of a trained model's size, in norms, biases and tables too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.1)
    return model.eval()


def flat(model):
    """Our names."""
    return {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}


def load(config, kind, state):
    model = build(config, kind)
    names = {name: name.removeprefix("encoder.") for name in model.state_dict()}
    assert set(names.values()) == set(state)
    model.load_state_dict({name: state[ours] for name, ours in names.items()})
    return model.eval()


def geometry(config):
    stages = range(config.num_stages)
    windows, grids = [config.stage_window(i) for i in stages], [config.stage_grid(i) for i in stages]
    return {
        "windows": windows,
        "grids": grids,
        "pretrained": [as_pair(size) for size in config.pretrained_window_sizes],
    }


def written(model, format, kind):
    config = model.config if kind == "Swin" else model.encoder.config
    return formats.to_theirs(flat(model), format, **geometry(config), kind=kind)


def reason(config, format, kind="SwinClassifier"):
    return unsupported_reason(format, Description(kind, config, num_classes=CLASSES if kind == "SwinClassifier" else 0))


def images(config):
    return torch.randn(2, config.in_channels, *(config.patch_size * side for side in config.stage_grid(0)))


def as_read(state, format):
    """A file's tensors under our names, after the checks that every reader makes."""
    keys = formats.key_map(state)
    assert keys.format == formats.key_map(state).format == format
    shapes = formats.our_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, keys)
    ours = formats.to_ours(state, keys)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in ours.items()}
    assert all(tensor.is_contiguous() for tensor in ours.values())
    return ours, keys


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def assert_describes(shapes, config, classes=0, decoder=False):
    """The network that is found from the shapes is this one, but for the image size where a larger one does as well."""
    kind = "SimMIM" if decoder else "SwinClassifier" if classes else "Swin"
    stages = range(config.num_stages)
    known = {} if config.version == 1 else {"windows": [config.stage_window(stage) for stage in stages]}
    found, found_kind, found_classes = network_of(shapes, **known)
    assert (found_kind, found_classes) == (kind, classes)
    fields = ("patch_size", "in_channels", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias")
    for field in (*fields, "version", "extra_norm_period"):
        assert getattr(found, field) == getattr(config, field), field
    assert [found.stage_window(stage) for stage in stages] == [config.stage_window(stage) for stage in stages]


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


# The libraries.


def timm_model(config, classes=0):
    theirs, more = timm.models.SwinTransformer, {}
    if config.version == 2:
        theirs, more = timm.models.SwinTransformerV2, {"pretrained_window_sizes": config.pretrained_window_sizes}
    return theirs(
        img_size=config.image_size,
        in_chans=config.in_channels,
        window_size=config.window_size,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        num_classes=classes,
        **more,
    ).eval()


def torchvision_model(config, classes=CLASSES):
    window, more = config.window_size, {}
    if config.version == 2:
        more = {"block": torchvision_swin.SwinTransformerBlockV2, "downsample_layer": torchvision_swin.PatchMergingV2}
    return torchvision_swin.SwinTransformer(
        [4, 4],
        config.embed_dim,
        list(config.depths),
        list(config.num_heads),
        [window, window] if isinstance(window, int) else list(window),
        mlp_ratio=config.mlp_ratio,
        stochastic_depth_prob=0.0,
        num_classes=classes,
        **more,
    ).eval()


TASKS = {"Swin": "Model", "SimMIM": "ForMaskedImageModeling", "SwinClassifier": "ForImageClassification"}


def transformers_config(config):
    names = ("image_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias")
    more = {"pretrained_window_sizes": config.pretrained_window_sizes} if config.version == 2 else {}
    return getattr(transformers, f"{_prefix(config)}Config")(
        num_channels=config.in_channels,
        encoder_stride=config.stride,
        drop_path_rate=0.0,
        num_labels=CLASSES,
        **{name: getattr(config, name) for name in names},
        **more,
    )


def _prefix(config):
    return "Swinv2" if config.version == 2 else "Swin"


def transformers_class(config, kind):
    return getattr(transformers, _prefix(config) + TASKS[kind])


def transformers_model(config, kind):
    return transformers_class(config, kind)(transformers_config(config)).eval()


def transformers_loaded(config, kind, state, folder):
    """Their from_pretrained, from a file that holds `state`; nothing may be missing or left over."""
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    transformers_config(config).save_pretrained(folder)
    model, info = transformers_class(config, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def outputs(model, kind, x, mask=None):
    """What can be compared: features (B, D) of an encoder, pixels of a SimMIM, logits of a classifier."""
    with torch.no_grad():
        out = model(x, mask) if mask is not None and isinstance(model, SimMIM) else None
        if out is not None:
            return out.pixels
        if mask is not None:
            return model(x, bool_masked_pos=mask.flatten(1)).reconstruction
        out = model(x)
    if isinstance(out, torch.Tensor):
        return out.mean(dim=(1, 2)) if isinstance(model, Swin) else out
    return out.pooler_output if kind == "Swin" else out.logits


def a_mask(config, kind):
    return block_mask(2, config.stage_grid(0), 4, 0.5, seed=0) if kind == "SimMIM" else None
