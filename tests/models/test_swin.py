import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig
from swin_mim.errors import UserError
from swin_mim.kernels.window_geometry import relative_position_index
from swin_mim.models.swin import freeze


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    patch=st.integers(1, 3),
    channels=st.integers(1, 5),
    window=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    stages=st.integers(1, 4),
)
def test_any_geometry(grid, patch, channels, window, stages):
    size = (grid[0] * patch, grid[1] * patch)
    config = SwinConfig(size, patch, channels, 8, (2,) * stages, (2,) * stages, window)
    model = Swin(config)
    images = torch.randn(2, channels, *size)
    out, maps = model(images), model.pyramid(images)
    assert out.shape == (2, *config.stage_grid(stages - 1), config.num_features)
    for stage, x in enumerate(maps):
        assert x.shape == (2, config.stage_dim(stage), *config.stage_grid(stage))
        assert x.is_contiguous()
    assert_close(model.norm(maps[-1].permute(0, 2, 3, 1)), out)
    assert out.isfinite().all()


def test_a_forward_never_changes_the_module(tiny):
    model = Swin(tiny).eval()
    before, attributes = copy.deepcopy(model.state_dict()), [dict(m.__dict__) for m in model.modules()]
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    for size in [
        (32, 32),
        (64, 96),
        (100, 36),
        (128, 128),
        (8, 8),
    ]:  # smaller and larger than the window and the config
        model(torch.randn(1, 3, *size))
    assert torch.equal(model(images), expected)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for module, attribute in zip(model.modules(), attributes, strict=True):
        for key, value in attribute.items():
            assert module.__dict__[key] is value, f"{type(module).__name__}.{key}"


def test_a_small_grid_uses_the_centre_of_the_bias_table():
    """A window of 2 cut from a table for 4: the same offsets, hence the same biases."""
    index, whole = relative_position_index((2, 3), (4, 5)), relative_position_index((4, 5), (4, 5))
    tokens = [y * 5 + x for y in range(2) for x in range(3)]
    assert torch.equal(index, whole[tokens][:, tokens])
    assert index.max() < 7 * 9


def test_the_image_is_not_transposed():
    """A change in the lower left corner reaches the lower left of a one-window-deep network, and only that."""
    config = SwinConfig((32, 64), embed_dim=8, depths=(1,), num_heads=(2,), window_size=4)
    model = Swin(config).eval()
    images = torch.randn(1, 3, 32, 64)
    changed = images.clone()
    changed[..., 20:, :12] += 1
    moved = (model(images) - model(changed)).abs().amax(-1)[0] > 1e-6  # (8, 16)
    assert moved[4:, :4].all()
    assert not moved[:4].any()
    assert not moved[:, 4:].any()


def test_activation_checkpointing_changes_nothing(tiny):
    config = SwinConfig(64, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4, drop_path_rate=0.5)
    images = torch.randn(3, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Swin(config, activation_checkpointing=recompute)
        model(images).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_both_backends_agree(tiny):
    reference, sdpa = Swin(tiny, attention="reference"), Swin(tiny, attention="sdpa")
    sdpa.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 72)
    assert_close(reference(images), sdpa(images), atol=1e-5, rtol=0)


def test_stochastic_depth_grows_linearly_and_keeps_the_mean():
    config = SwinConfig(32, embed_dim=8, depths=(2, 3), num_heads=(1, 1), window_size=4, drop_path_rate=0.4)
    model = Swin(config)
    assert [b.drop_path.rate for b in model.blocks()] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    kept = list(model.blocks())[-1].drop_path(torch.ones(20_000, 1, 1, 1))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert abs(kept.mean() - 1) < 0.02


RATES = SwinConfig(
    64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4, drop_rate=0.3, drop_path_rate=0.5
)
"""Dropout and stochastic depth that nobody can overlook."""


def trainable(model):
    """The first parts of the names: "patch_embed", "layers.0", "norm"."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[: 2 if name.startswith("layers") else 1]) for name in names}


@pytest.mark.parametrize("stages", range(1, 5))
def test_frozen_stages_keep_their_weights_and_the_others_learn(stages):
    model = SwinClassifier(RATES, num_classes=3).train()
    freeze(model.encoder, stages)
    learning = {f"layers.{stage}" for stage in range(stages, 4)} | ({"norm"} if stages < 4 else set())
    assert trainable(model.encoder) == learning
    assert trainable(model) == {"head"} | ({"encoder"} if learning else set())
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        frozen = name.startswith("encoder.") and not name.startswith(tuple(f"encoder.{part}" for part in learning))
        assert not frozen or torch.equal(value, before[name]), name
    parts = {f"encoder.{part}" for part in learning} | {"head"}
    for part in parts:
        changed = [not torch.equal(v, before[n]) for n, v in model.state_dict().items() if n.startswith(part)]
        assert any(changed), part


@pytest.mark.parametrize("stages", range(5))
def test_frozen_stages_have_neither_dropout_nor_stochastic_depth_in_training(stages):
    encoder = Swin(RATES)
    images = torch.randn(4, 3, 64, 64)
    expected = encoder.eval().pyramid(images)
    encoder.train()
    freeze(encoder, stages)
    first, second = encoder.pyramid(images), encoder.pyramid(images)
    for stage, maps in enumerate(zip(first, second, expected, strict=True)):
        assert all(torch.equal(maps[0], other) == (stage < stages) for other in maps[1:]), stage
    assert torch.equal(encoder(images), encoder(images)) == (stages == 4)
    assert encoder.training, "the rest of it goes on learning"


def test_nothing_frozen_changes_nothing(tiny):
    encoder = Swin(tiny)
    freeze(encoder, 0)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert all(module.training for module in encoder.modules())


def test_no_more_stages_are_frozen_than_there_are(tiny):
    for encoder, stages, text in (
        (Swin(tiny), 5, "model.freeze 5 is more than the 4 stages of the encoder"),
        (Swin(SwinConfig(32, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4)), 3, "3 is more than the 2"),
    ):
        with pytest.raises(UserError, match=text):
            freeze(encoder, stages)
        assert all(parameter.requires_grad for parameter in encoder.parameters()), "nothing is half frozen"
        assert all(module.training for module in encoder.modules())


def test_initial_weights(tiny):
    model = SwinClassifier(SwinConfig.named("swin_tiny"), num_classes=100)
    for name, parameter in model.named_parameters():
        if "patch_embed.proj" in name:
            assert parameter.abs().max() <= (3 * 16) ** -0.5, name  # kaiming uniform: 1 / sqrt(fan in)
        elif parameter.ndim == 2:
            assert abs(parameter.std() - 0.02) < 0.002, name
            assert abs(parameter.mean()) < 0.003, name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 4: use 28"),
        ({"num_heads": (3, 6)}, "4 and 2 entries"),
        ({"num_heads": (5, 6, 12, 24)}, "stage 0 has 96 channels, which 5 heads do not divide"),
        ({"drop_rate": 1.0}, "drop_rate 1.0 must be at least 0 and less than 1"),
        ({"window_size": 0}, "window_size 0 must be positive"),
        ({"image_size": (1, 2, 3)}, "one number or"),
    ],
)
def test_impossible_configs_say_why(fields, text):
    with pytest.raises(ValueError, match=text):
        SwinConfig(**({"image_size": 224} | fields))


def test_unknown_names_propose_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'swin_base'"):
        SwinConfig.named("swin-base")


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 3, 30, 32), "image side 30 is not a multiple of patch_size 4"),
        ((1, 1, 32, 32), r"\(B, 3, H, W\), not \(1, 1, 32, 32\)"),
    ],
)
def test_impossible_images_say_why(shape, text, tiny):
    with pytest.raises(ValueError, match=text):
        Swin(tiny)(torch.zeros(shape))


INTEGERS = [torch.uint8, torch.int16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_refused_with_the_way_out(tiny, dtype):
    """They would be taken as if they were normalised: timm refuses them, and a cast would hide the mistake."""
    encoder, classifier, simmim = Swin(tiny), SwinClassifier(tiny, 3), SimMIM(tiny)
    images, mask = torch.ones(1, 3, 64, 64, dtype=dtype), torch.ones(1, 16, 16, dtype=torch.bool)
    name = str(dtype).removeprefix("torch.")
    for call in (
        lambda: encoder(images),
        lambda: encoder.embed(images),
        lambda: encoder.pyramid(images),
        lambda: classifier(images),
        lambda: simmim(images, mask),
    ):
        with pytest.raises(
            UserError, match=f"^images are {name}, not normalised floats: give model.preprocess\\(images"
        ):
            call()
    with pytest.raises(UserError, match=r"^images are "):
        simmim(images, mask, valid=torch.ones(1, 64, 64, dtype=torch.bool))
    with pytest.raises(UserError, match=f"^tokens are {name}"):
        encoder.encode(torch.ones(1, 16, 16, tiny.embed_dim, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_any_precision_are_taken(tiny, dtype):
    assert Swin(tiny)(torch.randn(1, 3, 64, 64).to(dtype)).isfinite().all()
