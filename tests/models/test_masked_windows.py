"""What is not computed of the first and of the last block: the same loss and gradients as of the plain way."""

import pytest
import torch
from torch.testing import assert_close

from swin_mim import SimMIM, SwinConfig, block_mask
from swin_mim.architecture import as_pair
from swin_mim.masking import masked_cells
from swin_mim.models import masked_windows
from swin_mim.models.masked_windows import first_block
from swin_mim.models.swin import PatchEmbed


def small(version=1, image_size=64, **settings):
    sizes = {"embed_dim": 16, "depths": (2, 1, 2), "num_heads": (1, 2, 4), "window_size": 4}
    return SwinConfig(image_size, version=version, **sizes | settings)


def trained(config, **settings):
    """A model whose norms, biases and tables do something."""
    model = SimMIM(config, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def results(model, *inputs, seed=0):
    torch.manual_seed(seed)
    out = model(*inputs)
    return out.loss, *torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)


def plain(model, *inputs):
    """Everything is computed where something looks on."""
    blocks = [*model.encoder.blocks()]
    hooks = [block.register_forward_hook(lambda *_: None) for block in (blocks[0], blocks[-1])]
    found = results(model, *inputs)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture
def rows(monkeypatch):
    """How many tokens the MLPs of a model see, each time that it is called."""

    def seen(model):
        numbers = []
        for block in model.encoder.blocks():
            forward = block.mlp.forward
            monkeypatch.setattr(
                block.mlp, "forward", lambda x, *a, f=forward: (numbers.append(x[..., 0].numel()), f(x, *a))[1]
            )
        return numbers

    return seen


def assert_same(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        if b is not None:
            assert_close(a.double(), b.double(), atol=1e-5 * max(b.abs().max().item(), 1e-2), rtol=0)


CASES = {
    "V1": (small(), {}, 4),
    "V2": (small(2), {}, 4),
    "window and unit differ": (small(image_size=96, window_size=6), {}, 4),
    "not square": (small(2, (64, 96), window_size=(4, 8)), {}, 8),
    "one window": (small(image_size=16, depths=(1, 1), num_heads=(1, 2), window_size=7), {}, 4),
    "stochastic depth": (small(drop_path_rate=0.5), {}, 4),
    "stages": (small(2), {"stage_weights": (0.3, 0.2, 1.0)}, 4),
    "HOG": (small(), {"target": "hog"}, 4),
    "one stage and block, a teacher": (small(depths=(1,), num_heads=(1,)), {"teacher_width": 5}, 4),
    "checkpointed": (small(2), {"activation_checkpointing": True}, 4),
    "one channel, patch 2": (small(patch_size=2, in_channels=1, image_size=32), {}, 4),
}


@pytest.mark.parametrize("decode_all", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_way(name, decode_all):
    config, settings, unit = CASES[name]
    model = trained(config, **settings).train()
    images, grid = torch.randn(3, config.in_channels, *as_pair(config.image_size)), config.stage_grid(0)
    mask = block_mask(3, grid, unit, 0.6, seed=1)
    cells = None if decode_all else masked_cells(grid, unit, 0.6, config.stride // config.patch_size)
    inputs = (images, mask, cells, None, torch.randn(3, 5) if model.teacher_width else None)
    assert_same(results(model, *inputs), plain(model, *inputs))


def test_less_is_computed(rows):
    config = small()
    model, mask = trained(config), block_mask(2, (16, 16), 4, 0.5, seed=0)
    numbers = rows(model)
    model(torch.randn(2, 3, 64, 64), mask, 8)
    assert numbers == [17 * 16, 512, 128, 32, 16], (
        "8 windows of 16 of each image and one more; 8 cells of 16 in the end"
    )


def test_where_everything_is_computed(rows):
    """Few whole windows, padded windows, something that looks on, and dropout, which makes tokens differ."""
    config = small()
    images, mask = torch.randn(2, 3, 64, 64), block_mask(2, (16, 16), 4, 0.5, seed=0)
    token = torch.zeros(1, 1, 16)

    def left_out(model, images, mask):
        return first_block(model.encoder, images, mask, token) is not None

    model = SimMIM(config)
    assert left_out(model, images, mask)
    assert not left_out(model, images, block_mask(2, (16, 16), 1, 0.5, seed=0))
    assert not left_out(model, torch.randn(2, 3, 72, 64), block_mask(2, (18, 16), 2, 0.5, seed=0))
    assert not left_out(SimMIM(small(drop_rate=0.1)).train(), images, mask)
    assert left_out(SimMIM(small(drop_rate=0.1)).eval(), images, mask)
    model.encoder.layers[0].blocks[0].mlp.fc1.register_forward_hook(lambda *_: None)
    assert not left_out(model, images, mask)
    model = SimMIM(config)
    model.encoder.layers[0].blocks[0].compile(backend="eager")
    assert not left_out(model, images, mask)
    model = SimMIM(config)
    model.encoder.patch_embed.__class__ = type("Other", (PatchEmbed,), {})  # which may embed in another way
    assert not left_out(model, images, mask)


def test_all_and_nothing_masked():
    model = trained(small())
    images = torch.randn(2, 3, 64, 64)
    for mask in (torch.ones(2, 16, 16, dtype=torch.bool), torch.zeros(2, 16, 16, dtype=torch.bool)):
        assert_same(results(model, images, mask), plain(model, images, mask))


def test_a_graph_has_it_plain():
    model = SimMIM(small())
    images, mask = torch.randn(2, 3, 64, 64), block_mask(2, (16, 16), 4, 0.5, seed=0)
    compiled = torch.compile(lambda *inputs: model(*inputs).loss, backend="eager", fullgraph=True)
    assert_close(compiled(images, mask, 8), model(images, mask, 8).loss)


def test_bf16_is_near(monkeypatch):
    model = trained(small(2))
    images, mask = torch.randn(2, 3, 64, 64), block_mask(2, (16, 16), 4, 0.5, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model(images, mask, 8).loss
        monkeypatch.setattr(masked_windows, "_can", lambda *_: False)
        assert_close(ours, model(images, mask, 8).loss, atol=2e-2, rtol=0)
