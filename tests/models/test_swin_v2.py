"""Swin V2 against timm: outputs and all gradients; and what is its own."""

import pytest
import timm
import torch
from torch.testing import assert_close

from swin_mim import SimMIM, Swin, SwinConfig, block_mask
from swin_mim.errors import UserError
from swin_mim.kernels.cosine import cosine
from swin_mim.kernels.window_geometry import relative_coordinates
from swin_mim.models.blocks import v2
from swin_mim.models.compilation import compile_model

# dynamo itself looks at the .grad of every tensor it meets
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def perturbed(model, seed=0):
    """Weights of a trained model's size: new blocks are the identity."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "logit_scale" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def gradients(model, output, upstream):
    found = torch.autograd.grad((output * upstream).sum(), list(model.parameters()))
    return dict(zip((name for name, _ in model.named_parameters()), found, strict=True))


def assert_same(ours, theirs, name_of=lambda name: name):
    for name, gradient in ours.items():
        other = theirs[name_of(name)]
        assert_close(gradient, other, atol=1e-5 * other.abs().max().item() + 1e-12, rtol=1e-5, msg=name)


SIZES = [
    ("tiny", 96, 3),
    *(pytest.param(*case, marks=pytest.mark.slow)
      for case in (("tiny", 64, 4), ("tiny", 96, 8), ("tiny", 256, 16), ("base", 192, 12))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size", "window"), SIZES)
def test_outputs_and_gradients_are_timms(name, size, window):
    """Also where the window is larger than the grid of a stage, and where it does not divide it."""
    ours = perturbed(Swin(SwinConfig.named(f"swinv2_{name}", image_size=size, window_size=window))).double()
    theirs = timm.create_model(
        f"swinv2_{name}_window8_256", img_size=size, window_size=window, num_classes=0, global_pool="", drop_path_rate=0
    ).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    output, expected = ours(images), theirs.forward_features(images)
    assert_close(output, expected, atol=1e-5, rtol=0)
    upstream = torch.randn_like(output)
    assert_same(gradients(ours, output, upstream), gradients(theirs, expected, upstream))


def test_pretrained_windows_measure_positions():
    """As timm's argument, so that a smaller window sees the part of the same function that it covers."""
    sizes = (8, 8, 8, 4)
    config = SwinConfig.named("swinv2_tiny", image_size=64, window_size=4, pretrained_window_sizes=sizes)
    ours = perturbed(Swin(config)).double().eval()
    theirs = timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, window_size=4, num_classes=0, global_pool="",
        pretrained_window_sizes=sizes,
    ).double().eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(ours(images), theirs.forward_features(images), atol=1e-5, rtol=0)
    whole = relative_coordinates((8, 8), (0, 0))
    part = relative_coordinates((4, 4), (8, 8))
    assert torch.equal(part, whole[4:11, 4:11])
    assert relative_coordinates((1, 2), (0, 0)).isfinite().all()


def test_the_bias_of_the_keys_is_zero_and_attention_may_have_none():
    attention = Swin(SwinConfig.named("swinv2_nano", image_size=64, window_size=4)).layers[0].blocks[0].attn
    torch.nn.init.normal_(attention.q_bias)
    assert attention._bias().view(3, -1)[1].abs().max() == 0
    bare = Swin(SwinConfig.named("swinv2_nano", image_size=64, window_size=4, qkv_bias=False))
    assert not [name for name in bare.state_dict() if name.endswith(("q_bias", "v_bias"))]
    assert bare(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_a_new_model_is_its_embedding():
    """New residual norms give zeros, so that every block is the identity."""
    encoder = Swin(SwinConfig.named("swinv2_nano", image_size=64, window_size=4))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder.layers[0].blocks[0](encoder.embed(images)), encoder.embed(images))
    assert encoder.layers[0].blocks[0].attn.logit_scale.exp().unique().item() == pytest.approx(10)


def test_the_scale_is_limited():
    attention = Swin(SwinConfig.named("swinv2_nano", image_size=64, window_size=4)).layers[0].blocks[0].attn
    torch.nn.init.constant_(attention.logit_scale, 9.0)
    assert_close(attention._scale().detach(), torch.full((attention.num_heads, 1), 100.0))


def test_giant_has_norms_after_every_sixth_block():
    config = SwinConfig(
        32, embed_dim=32, depths=(1, 7), num_heads=(1, 2), window_size=4, version=2, extra_norm_period=3
    )
    names = {name.rsplit(".", 1)[0] for name in Swin(config).state_dict() if "norm3" in name}
    assert names == {"layers.1.blocks.2.norm3", "layers.1.blocks.5.norm3"}
    giant = SwinConfig.named("swinv2_giant")
    assert (giant.depths, giant.extra_norm_period, giant.stage_dim(3) // giant.num_heads[3]) == ((2, 2, 42, 4), 6, 32)


@pytest.mark.parametrize(("fields", "message"), [
    ({"version": 3}, "version 3 is no Swin Transformer"),
    ({"pretrained_window_sizes": (4, 4, 4, 4)}, "belong to version 2, and this is version 1"),
    ({"extra_norm_period": 6}, "belong to version 2, and this is version 1"),
    ({"version": 2, "pretrained_window_sizes": (4, 4)}, "must name the 4 stages"),
    ({"version": 2, "pretrained_window_sizes": (4, 4, -1, 4)}, "must not be negative"),
])  # fmt: skip
def test_a_config_that_no_network_has(fields, message):
    with pytest.raises(UserError, match=message):
        SwinConfig(64, **fields)


@pytest.mark.parametrize("compiled", [False, True])
def test_cosines_have_the_gradients_of_their_formula(compiled):
    def formula(qkv, scale):
        q, k, v = qkv.unbind(-3)
        unit = torch.nn.functional.normalize
        return torch.stack([unit(q, dim=-1) * scale, unit(k, dim=-1), v], dim=-3)

    torch.compiler.reset()
    qkv = torch.randn(2, 3, 4, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(5, 1, dtype=torch.float64) + 0.5).requires_grad_()
    ours = torch.compile(cosine, backend="eager", fullgraph=True) if compiled else cosine
    upstream = torch.randn_like(qkv)
    for x in (qkv, qkv[0, 0, 0]):  # tokens, and the bias of the projection
        results = [function(x, scale) for function in (ours, formula)]
        assert_close(*results)
        u = upstream if x is qkv else upstream[0, 0, 0]
        assert_close(*(torch.autograd.grad(result, (qkv, scale), u) for result in results))


def test_cosines_in_half_precision_are_off_by_one_rounding():
    qkv, scale = torch.randn(6, 3, 4, 16), torch.rand(4, 1) * 50
    assert_close(cosine(qkv.bfloat16(), scale).float(), cosine(qkv.bfloat16().float(), scale), atol=1e-6, rtol=2**-8)


def test_a_vector_of_zeros_stays_one():
    qkv = torch.zeros(1, 3, 1, 4, requires_grad=True)
    out = cosine(qkv, torch.ones(1, 1))
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert qkv.grad.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"attention": "sdpa"},
        {"attention": "chunked"},
        pytest.param({"compiled": True}, marks=pytest.mark.slow),
        pytest.param({"attention": "triton"}, marks=pytest.mark.slow),
    ],
)
def test_all_ways_give_the_same_loss_and_gradients(options):
    config = SwinConfig((40, 36), embed_dim=32, depths=(2, 2), num_heads=(1, 4), window_size=4, version=2)
    images, mask = torch.randn(2, 3, 40, 36), block_mask(2, (10, 9), 1, 0.6, seed=0)

    def loss_and_gradients(compiled=False, **options):
        torch.manual_seed(0)
        model = perturbed(SimMIM(config, **options))
        if compiled:
            torch.compiler.reset()
            compile_model(model, torch.device("cpu"), backend="aot_eager", fullgraph=True)
        loss = model(images, mask).loss
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    for ours, expected in zip(loss_and_gradients(**options), loss_and_gradients(attention="reference"), strict=True):
        assert_close(ours, expected, atol=1e-5 * max(1, expected.abs().max().item()), rtol=1e-4)


def test_channels_gaps_and_maps_of_every_stage():
    """Of five channels: what lies where nothing was recorded changes no loss and no gradient."""
    config = SwinConfig(
        (40, 36), in_channels=5, embed_dim=32, depths=(1, 1), num_heads=(1, 4), window_size=4, version=2
    )
    model = perturbed(SimMIM(config, target="normalized"))
    images, mask = torch.randn(2, 5, 40, 36), block_mask(2, (10, 9), 1, 0.6, seed=0)
    valid = torch.rand(2, 40, 36) < 0.7
    results = []
    for filling in (0.0, 1e4):
        loss = model(images.where(valid[:, None], filling), mask, valid=valid).loss
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert [tuple(x.shape) for x in model.encoder.pyramid(images)] == [(2, 32, 10, 9), (2, 64, 5, 5)]


def test_after_a_look_in_inference_mode_it_still_trains():
    config = SwinConfig(64, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, version=2)
    model, images, mask = SimMIM(config), torch.rand(2, 3, 64, 64), block_mask(2, (16, 16), 8, 0.6, seed=0)
    v2._coordinates_on.cache_clear()
    with torch.inference_mode():
        seen = model(images, mask).loss
    loss = model(images, mask).loss
    loss.backward()
    assert_close(loss, seen, atol=1e-6, rtol=0)
