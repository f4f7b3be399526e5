"""Compiled for training: few graphs, the same numbers, and nothing compiled for an evaluation."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from swin_mim import SimMIM, SwinClassifier, SwinConfig, block_mask
from swin_mim.errors import UserError
from swin_mim.evaluation.validation import evaluation_mode
from swin_mim.masking import masked_cells
from swin_mim.models import compilation
from swin_mim.models.compilation import compile_model, is_compiled, uncompiled

# dynamo itself looks at the .grad of every tensor it meets
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CPU = torch.device("cpu")
CONFIG = SwinConfig((40, 36), embed_dim=32, depths=(2, 4), num_heads=(1, 4), window_size=4, drop_path_rate=0.3)
"""Grids of 10 x 9 and 5 x 5: padded windows, shifted and not; every block has a rate of its own."""
GRAPHS = {"embedding": 1, "blocks": 4, "merging": 1, "norm": 1, "cells": 1}
MASK = block_mask(2, (10, 9), 1, 0.6, seed=0)
CELLS = masked_cells((10, 9), 1, 0.6, 2)


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()


@pytest.fixture
def counter():
    import torch._dynamo.testing

    return torch._dynamo.testing.CompileCounterWithBackend("eager")


def images(size=2):
    return torch.randn(size, 3, 40, 36, generator=torch.Generator().manual_seed(1))


def test_every_graph_is_compiled_once(counter):
    """Training steps with evaluations of other sizes between them, and after one; shared by blocks of other rates."""
    model = SimMIM(CONFIG)
    compile_model(model, CPU, backend=counter)
    for size in (2, 1, 3):
        model(images(), MASK, cells=CELLS).loss.backward()
        with evaluation_mode(model):
            model(images(size), MASK[:1].expand(size, -1, -1))
            list(model.encoder.pyramid(images(size)))
    assert counter.frame_count == sum(GRAPHS.values())


def test_a_classifier_shares_what_its_encoder_has(counter):
    model = SwinClassifier(CONFIG, 3)
    compile_model(model, CPU, backend=counter)
    for _ in range(2):
        model(images()).sum().backward()
    assert counter.frame_count == sum(GRAPHS.values()) - GRAPHS["cells"]


def test_parts_are_whole_graphs_that_give_the_same_numbers():
    def loss_and_gradients(model):
        loss = model(images(), MASK, cells=CELLS).loss
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    model = SimMIM(CONFIG).eval()  # without stochastic depth, whose draws are others
    compiled = deepcopy(model)
    compile_model(compiled, CPU, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(loss_and_gradients(compiled), loss_and_gradients(model), strict=True):
        assert_close(ours, eager, atol=1e-6, rtol=1e-4)


def test_stochastic_depth_drops_as_often_when_compiled():
    """And what it keeps is scaled up by the same."""
    drop_path = SimMIM(CONFIG).encoder.layers[1].blocks[3].drop_path
    assert drop_path.rate == pytest.approx(0.3)
    drop_path.compile(backend="eager", fullgraph=True)
    dropped = drop_path(torch.ones(20_000, 1, 1, 1)).flatten()
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7], abs=1e-6)
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)  # 6 standard deviations


def test_stochastic_depth_keeps_its_rate_in_half_precision_and_on_the_meta_device():
    with torch.device("meta"):
        model = SimMIM(CONFIG)
    for keep in (
        model.encoder.layers[1].blocks[3].drop_path.keep,
        model.bfloat16().encoder.layers[1].blocks[3].drop_path.keep,
    ):
        assert keep.item() == pytest.approx(0.7, abs=1e-7)
    assert not [name for name in model.state_dict() if "keep" in name]


def test_a_mistake_is_still_a_user_error():
    model = SimMIM(CONFIG)
    compile_model(model, CPU, backend="eager")
    with pytest.raises(UserError, match="image side 38 is not a multiple of patch_size 4"):
        model(torch.randn(2, 3, 38, 36), MASK)


def test_what_is_uncompiled_comes_back_after_an_error(counter):
    model = SimMIM(CONFIG)
    compile_model(model, CPU, backend=counter)
    before = {module: module._compiled_call_impl for module in model.modules()}
    with uncompiled(model):
        model(images(), MASK, cells=CELLS)
    with pytest.raises(UserError, match="mask must be bool"), uncompiled(model):
        model(images(), MASK.int(), cells=CELLS)
    assert {module: module._compiled_call_impl for module in model.modules()} == before
    assert any(before.values())
    assert counter.frame_count == 0


@pytest.mark.parametrize(("setting", "device", "attention", "expected"), [
    ("auto", "cpu", "triton", False), ("auto", "mps", "triton", False),
    ("auto", "cuda", "triton", True), ("auto", "cuda", "sdpa", False),
    (True, "cpu", "sdpa", True), (False, "cuda", "triton", False),
])  # fmt: skip
def test_auto_compiles_where_the_fused_kernel_passed_its_trial(setting, device, attention, expected, monkeypatch):
    monkeypatch.setattr(compilation, "resolve_backend", lambda *_, **__: attention)
    assert is_compiled(setting, SimMIM(CONFIG).encoder, torch.device(device), torch.bfloat16) is expected
