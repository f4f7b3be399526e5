"""Whole models: every backend of the window attention gives the loss and the gradients of the reference."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from triton_interpreter import overflow_checked

from swin_mim import SimMIM, SwinConfig, block_mask

# dynamo itself looks at the .grad of every tensor it meets
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CONFIG = SwinConfig((40, 36), embed_dim=32, depths=(2, 2), num_heads=(1, 4), window_size=4)
"""Grids of 10 x 9 and 5 x 5: padded windows, shifted and not."""


CPU_BACKENDS = ("reference", "sdpa", "chunked", "auto")
"""auto is the compiled one, where it can be compiled."""


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()


FEWER = replace(CONFIG, depths=(2, 1))
"""Of every kind of block one, for what takes seconds for each."""


def loss_and_gradients(backend, compiled=False, config=CONFIG, batch=2, **options):
    torch.manual_seed(0)
    model = SimMIM(config, attention=backend, **options)
    for parameter in model.parameters():  # as large as a trained model's, or attention would hardly matter
        torch.nn.init.normal_(parameter, std=0.3)
    if compiled:
        for block in model.encoder.blocks():
            block.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    images = torch.randn(batch, 3, 40, 36, generator=torch.Generator().manual_seed(1))
    loss = model(images, block_mask(batch, (10, 9), 1, 0.6, seed=0)).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize(
    ("backend", "compiled"),
    [
        *((backend, False) for backend in (*CPU_BACKENDS, "triton")),
        ("auto", True),
        *(
            pytest.param(backend, True, marks=pytest.mark.slow)
            for backend in (*CPU_BACKENDS, "triton")
            if backend != "auto"
        ),
    ],
)
def test_backends_agree(backend, compiled):
    less = {"config": FEWER} if compiled else {}
    less |= {"batch": 1} if backend == "triton" else {}  # its own tests have more
    expected = loss_and_gradients("reference", **less)
    with overflow_checked(False):
        found = loss_and_gradients(backend, compiled, **less)
    for ours, reference in zip(found, expected, strict=True):
        assert_close(ours, reference, atol=1e-5 * max(1, reference.abs().max().item()), rtol=1e-4)


@pytest.mark.parametrize("backend", ["chunked", "auto"])
def test_checkpointed_blocks_give_the_same_bits(backend):
    plain, again = (loss_and_gradients(backend, activation_checkpointing=on) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
