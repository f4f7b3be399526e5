import pytest
import torch

from swin_mim.models.mlp import CHUNK, Mlp


def both_ways(mlp, x):
    """Output and all gradients, in chunks and whole."""
    weights = torch.randn_like(x)
    results = []
    for chunked in (True, False):
        mlp._chunked = lambda x, answer=chunked: answer
        out = mlp(x)
        results.append([out, *torch.autograd.grad((out * weights).sum(), [x, *mlp.parameters()])])
    return zip(*results, strict=True)


@pytest.mark.parametrize("tokens", [1, CHUNK, 2 * CHUNK + 7])
def test_chunks_change_nothing_but_the_order_of_sums(tokens):
    mlp = Mlp(8, 32, 0.0).double()
    x = torch.randn(1, 1, tokens, 8, dtype=torch.double, requires_grad=True)
    for chunked, whole in both_ways(mlp, x):
        torch.testing.assert_close(chunked, whole, atol=1e-10, rtol=1e-12)


def test_where_chunks_are_used():
    large = torch.randn(2, 160, 160, 48)  # a hidden layer of 20 MB
    assert Mlp(48, 192, 0.0)._chunked(large)
    assert Mlp(48, 192, 0.1).eval()._chunked(large)
    assert not Mlp(48, 192, 0.1)._chunked(large), "dropout would be left out"
    assert not Mlp(48, 192, 0.0)._chunked(large[:, :64]), "fits the cache as it is"
    assert not Mlp(192, 384, 0.0)._chunked(torch.randn(2, 160, 160, 192))
    assert not Mlp(48, 192, 0.0)._chunked(large.double())
    with torch.no_grad():
        assert not Mlp(48, 192, 0.0)._chunked(large)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not Mlp(48, 192, 0.0)._chunked(large)
