"""Bias tables against timm and scipy, channels against what a grey image must give."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import interpolate
from timm.layers import resize_rel_pos_bias_table_simple

from swin_mim import SimMIM, Swin, SwinConfig
from swin_mim.errors import UserError
from swin_mim.weights.adapt import adapt, adapt_channels, adapt_tables, cubic_spline_matrix, resize_bias_table
from swin_mim.weights.config_json import Description
from swin_mim.weights.network import expected_shapes

METHODS = ("bicubic", "geometric")
NAMES = st.lists(st.sampled_from(["red", "green", "blue", "nir", "swir"]), min_size=1, unique=True)


def table(window, heads=3):
    return torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), heads)


def as_map(values, window):
    return values.T.unflatten(1, (2 * window[0] - 1, 2 * window[1] - 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("window", [(7, 7), (4, 6), (1, 1)])
def test_a_table_of_the_same_window_stays_as_it_is(window, method):
    values = table(window)
    assert torch.equal(resize_bias_table(values, window, window, method), values)


@pytest.mark.parametrize(
    ("source", "target"), [((6, 6), (7, 7)), ((12, 12), (6, 6)), ((7, 7), (12, 8)), ((1, 1), (3, 3))]
)
def test_bicubic_equals_timm(source, target):
    values = table(source)
    shape = ((2 * target[0] - 1) * (2 * target[1] - 1), 3)
    expected = resize_rel_pos_bias_table_simple(values, target, shape)
    assert torch.equal(resize_bias_table(values, source, target), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_rectangular_table_is_the_product_of_its_sides(method):
    down, right = torch.randn(2 * 4 - 1), torch.randn(2 * 6 - 1)
    values = torch.outer(down, right).flatten()[:, None]
    sides = [
        resize_bias_table(torch.outer(side, torch.ones(2 * w - 1)).flatten()[:, None], (w, w), (t, t), method)
        for side, w, t in ((down, 4, 7), (right, 6, 9))
    ]
    down, right = (as_map(side, (t, t))[0, :, t - 1] for side, t in zip(sides, (7, 9), strict=True))
    expected = torch.outer(down, right)
    torch.testing.assert_close(as_map(resize_bias_table(values, (4, 6), (7, 9), method), (7, 9))[0], expected)


@pytest.mark.parametrize(("source", "target"), [(6, 7), (6, 12), (7, 14), (12, 14), (3, 16)])
def test_geometric_keeps_centre_and_border(source, target):
    values = table((source, source))
    out = as_map(resize_bias_table(values, (source, source), (target, target), "geometric"), (target, target))
    before = as_map(values, (source, source))
    for here, there in ((0, 0), (source - 1, target - 1), (2 * source - 2, 2 * target - 2)):
        torch.testing.assert_close(out[:, there, there], before[:, here, here])
        torch.testing.assert_close(out[:, there, target], before[:, here, source])  # one token to the right


def test_geometric_takes_the_centre_for_a_smaller_window():
    values = table((7, 5))
    out = as_map(resize_bias_table(values, (7, 5), (4, 2), "geometric"), (4, 2))
    assert torch.equal(out, as_map(values, (7, 5))[:, 3:10, 3:6])


@given(st.integers(4, 20), st.integers(0, 2**32 - 1))
def test_the_spline_reproduces_cubics(count, seed):
    generator = torch.Generator().manual_seed(seed)
    knots = (0.1 + torch.rand(count, generator=generator, dtype=torch.float64)).cumsum(0)
    points = torch.cat([knots, knots[:-1] + knots.diff() * 0.3, knots[-1:]])
    cubic = torch.randn(4, generator=generator, dtype=torch.float64)

    def value(x):
        return (cubic * (x[:, None] / knots[-1]) ** torch.arange(4)).sum(1)

    torch.testing.assert_close(cubic_spline_matrix(knots, points) @ value(knots), value(points))


@pytest.mark.parametrize(("source", "target"), [(6, 7), (6, 14), (12, 14), (4, 6)])
def test_geometric_equals_scipys_spline(source, target):
    ratio, low = 3.0, 1.01
    while ratio - low > 1e-9:
        middle = (low + ratio) / 2
        reach = (1 - middle ** (source - 1)) / (1 - middle)
        low, ratio = (low, middle) if reach > target - 1 else (middle, ratio)
    positive = [sum(ratio**k for k in range(i + 1)) for i in range(source - 1)]
    positions = [-p for p in reversed(positive)] + [0.0] + positive
    values = table((source, source))
    offsets = range(-(target - 1), target)
    out = as_map(resize_bias_table(values, (source, source), (target, target), "geometric"), (target, target))
    for head, before in zip(out, as_map(values, (source, source)), strict=True):
        spline = interpolate.RectBivariateSpline(positions, positions, before.numpy(), kx=3, ky=3, s=0)
        torch.testing.assert_close(head, torch.tensor(spline(offsets, offsets)).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_half_tables_are_computed_in_float32(method):
    values = table((6, 6)).half()
    expected = resize_bias_table(values.float(), (6, 6), (7, 7), method).half()
    assert torch.equal(resize_bias_table(values, (6, 6), (7, 7), method), expected)


def test_a_table_of_another_window_is_refused():
    with pytest.raises(UserError, match=r"6x6 windows has 121 rows, .* not shape \(169, 3\)"):
        resize_bias_table(table((7, 7)), (6, 6), (8, 8))


def test_a_window_too_small_for_a_spline_is_refused():
    with pytest.raises(UserError, match="at least 3, not 2: use bicubic"):
        resize_bias_table(table((2, 2)), (2, 2), (3, 3), "geometric")


@pytest.mark.parametrize("method", METHODS)
def test_all_tables_of_a_model_fit_the_other_geometry(method):
    before = SwinConfig(192, embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=6)
    after = SwinConfig(224, embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=14)
    state = Swin(before).state_dict()
    windows = [[config.stage_window(stage) for stage in range(4)] for config in (before, after)]
    adapted, lines = adapt_tables(state, sources=windows[0], targets=windows[1], depths=before.depths, method=method)
    Swin(after).load_state_dict(adapted)
    assert lines[0] == f"stage 0: bias tables resized from 6x6 to 14x14 windows ({method})"
    assert lines[3] == f"stage 3: bias tables resized from 6x6 to 7x7 windows ({method})"
    assert all(adapted[name] is state[name] for name in state if not name.endswith("bias_table"))


def test_windows_that_stay_are_not_touched():
    state = Swin(SwinConfig(64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)).state_dict()
    same = [(4, 4), (4, 4)]
    adapted, lines = adapt_tables(state, sources=same, targets=same, depths=(1, 1))
    assert lines == []
    assert all(adapted[name] is state[name] for name in state)


def small(channels):
    return SwinConfig(16, in_channels=channels, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2)


def grey(channels):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 1, 16, 16, generator=generator).expand(-1, channels, -1, -1)


def published(model):
    return {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}


def loaded(state, channels):
    model = SimMIM(small(channels)).eval()
    own = {name: name.removeprefix("encoder.") for name in model.state_dict()}
    model.load_state_dict({name: state[ours] for name, ours in own.items()})
    return model


@given(NAMES, NAMES)
def test_a_grey_image_embeds_the_same_if_nothing_is_dropped(source, target):
    torch.manual_seed(0)
    model = SimMIM(small(len(source))).eval()
    state, lines = adapt_channels(published(model), source=source, target=target)
    after = loaded(state, len(target))
    assert bool(lines) == (source != target)
    if set(source) <= set(target) or not set(source) & set(target):
        expected = model.encoder.embed(grey(len(source)))
        torch.testing.assert_close(after.encoder.embed(grey(len(target))), expected, atol=1e-5, rtol=1e-4)


@given(st.integers(1, 5), st.integers(1, 5))
def test_by_number_a_grey_image_embeds_the_same(old, new):
    torch.manual_seed(0)
    model = SimMIM(small(old)).eval()
    state, lines = adapt_channels(published(model), source=None, target=new)
    assert bool(lines) == (old != new)
    after = loaded(state, new).encoder.embed(grey(new))
    torch.testing.assert_close(after, model.encoder.embed(grey(old)), atol=1e-5, rtol=1e-4)
    if old == new:
        assert torch.equal(state["patch_embed.proj.weight"], model.encoder.patch_embed.proj.weight)


def test_the_decoder_predicts_kept_channels_as_before_and_the_mean_for_new_ones():
    names = ["red", "green", "blue"]
    model = SimMIM(small(3)).eval()
    state, lines = adapt_channels(published(model), source=names, target=["nir", "blue", "red", "green"])
    features = torch.randn(2, 2, 2, 16)
    before, after = model.decoder(features), loaded(state, 4).decoder(features)
    torch.testing.assert_close(after[:, 1:], before[:, [2, 0, 1]])
    torch.testing.assert_close(after[:, 0], before.mean(1))
    words = "blue, red, green kept, nir is the mean of the 3"
    assert lines == [f"patch_embed.proj: {words}, all scaled by 3/4", f"decoder.0: {words}"]


def test_a_permutation_of_channels_is_exact():
    model = SimMIM(small(3)).eval()
    state, _ = adapt_channels(published(model), source=["red", "green", "blue"], target=["blue", "green", "red"])
    weight = state["patch_embed.proj.weight"]
    assert torch.equal(weight, model.encoder.patch_embed.proj.weight.flip(1))
    back, _ = adapt_channels(state, source=["blue", "green", "red"], target=["red", "green", "blue"])
    assert all(torch.equal(back[name], tensor) for name, tensor in published(model).items())


def test_a_dropped_channel_is_reported():
    encoder = Swin(small(3)).state_dict()
    state, lines = adapt_channels(encoder, source=["red", "green", "blue"], target=["green", "nir"])
    assert lines == ["patch_embed.proj: green kept, red, blue dropped, nir is the mean of the 3, all scaled by 3/2"]
    kernels = encoder["patch_embed.proj.weight"]
    torch.testing.assert_close(state["patch_embed.proj.weight"][:, 0], kernels[:, 1] * 1.5)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (["red", "green", "blue"], ["red", "red"], "'red' of the new model is named twice"),
        (["red", "red", "blue"], ["red", "nir"], "'red' of these weights is named twice"),
        (None, ["red", "nir"], "say their number, channels=2, and all get the mean"),
        (["red", "green"], ["red", "nir"], "have 3 channels, but 2 names for them: red, green"),
        (["red"], ["red", "nir"], "have 3 channels, but 1 name for them: red"),
        (["red", "green", "blue"], [], "at least one"),
        (None, 0, "at least one"),
    ],
)
def test_what_cannot_be_adapted_is_refused(source, target, message):
    with pytest.raises(UserError, match=message) as caught:
        adapt_channels(Swin(small(3)).state_dict(), source=source, target=target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("swin_base", (192, 6), (224, 7)), ("swin_large", (192, 12), (224, 14)), ("swin_large", (192, 12), (384, 12))],
)
@pytest.mark.parametrize("method", ["bicubic", "geometric"])
def test_the_official_simmim_weights_fit_the_fine_tuning_sizes(name, before, after, method):
    """Every table of the published networks, and nothing else, changes to what the other network has."""
    old, new = (SwinConfig.named(name, image_size=size, window_size=window) for size, window in (before, after))
    shapes = dict(expected_shapes(old, "SimMIM", 0))
    tables = {key for key in shapes if key.endswith("bias_table")}
    tensors = {key: torch.randn(shape, device=None if key in tables else "meta") for key, shape in shapes.items()}
    fields = {"image_size": after[0], "window_size": after[1]}
    description, adapted, lines = adapt(Description("SimMIM", old), tensors, fields, bias_tables=method)
    assert description.config == new
    assert {key: tuple(value.shape) for key, value in adapted.items()} == dict(expected_shapes(new, "SimMIM", 0))
    changed = {key for key, value in adapted.items() if value is not tensors[key]}
    stages = [i for i in range(4) if old.stage_window(i) != new.stage_window(i)]
    assert changed == {key for key in tables if int(key.split(".")[1]) in stages}
    assert len(lines) == len(stages)


@pytest.mark.parametrize(
    ("size", "window", "kept"), [(224, 14, (12, 12, 12, 6)), (256, 16, (12, 12, 12, 6)), (384, 12, (12, 12, 12, 6))]
)
def test_a_v2_keeps_its_weights_and_what_measures_its_positions(size, window, kept):
    """As microsoft's configs for fine-tuning say it."""
    old = SwinConfig.named("swinv2_base", image_size=192, window_size=12)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(old, "SimMIM", 0)}
    description, adapted, lines = adapt(
        Description("SimMIM", old), tensors, {"image_size": size, "window_size": window}
    )
    assert description.config == replace(old, image_size=size, window_size=window, pretrained_window_sizes=kept)
    assert all(adapted[name] is tensors[name] for name in tensors)
    last = min(window, size // 32)
    assert lines[-1] == (
        f"stage 3: windows of 6x6 become {last}x{last}, positions measured by 6x6 as in pretraining "
        "(pretrained_window_sizes)"
    )
    assert len(lines) == (4 if window > 12 else 1)
    again, _, _ = adapt(description, adapted, {"image_size": 512, "window_size": (16, 8)})
    assert again.config.pretrained_window_sizes == kept  # of the pretraining, not of what came between


def test_a_v2_whose_windows_stay_stays_as_it_is():
    config = SwinConfig(64, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, version=2)
    tensors = Swin(config).state_dict()
    description, _, lines = adapt(Description("Swin", config), tensors, {"image_size": 96, "drop_rate": 0.1})
    assert (description.config, lines) == (replace(config, image_size=96, drop_rate=0.1), [])
    wide, _, _ = adapt(Description("Swin", config), tensors, {"window_size": (4, 6)})
    assert wide.config.pretrained_window_sizes == (4, 4)
    with pytest.raises(UserError, match="bias_tables is 'geometric', and a Swin V2 has no bias tables: leave it out"):
        adapt(Description("Swin", config), tensors, {}, bias_tables="geometric")


def test_other_channels_are_resized_as_before(tmp_path):
    from swin_mim import Swin, SwinConfig
    from swin_mim.weights.config_json import Preprocessing

    model = Swin(SwinConfig(64, embed_dim=16, depths=(1,), num_heads=(1,), window_size=4))
    model.preprocessing = Preprocessing(interpolation="bicubic", crop_pct=0.875)
    folder = model.save_pretrained(tmp_path / "model")
    for channels in (4, ["red", "nir"]):
        seen = Swin.from_pretrained(folder, channels=channels).preprocessing
        assert (seen.interpolation, seen.crop_pct) == ("bicubic", 0.875)
