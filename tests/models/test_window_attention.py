"""The batched window attention against one that visits every window and token by itself, in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from swin_mim.models.window_attention import window_attention, window_geometry

CASES = [
    ((8, 8), (4, 4), (0, 0)),
    ((8, 8), (4, 4), (2, 2)),
    ((9, 7), (4, 4), (2, 2)),
    ((6, 10), (3, 5), (1, 2)),
    ((5, 12), (5, 4), (0, 2)),
    ((3, 3), (3, 3), (0, 0)),
    ((7, 7), (4, 4), (0, 0)),
    ((13, 5), (6, 2), (3, 1)),
]


def inputs(grid, window, heads=2, d=4, batch=2, dtype=torch.float64):
    q, k, v = (torch.randn(batch, *grid, heads, d, dtype=dtype, requires_grad=True) for _ in range(3))
    t = window[0] * window[1]
    bias = torch.randn(heads, t, t, dtype=dtype, requires_grad=True)
    fill = tuple(torch.randn(heads, d, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v, bias, fill


def token_by_token(q, k, v, bias, fill, window, shift):
    """Pads, then for each query collects the keys of its shifted window by coordinates."""
    _, h, w, heads, d = q.shape
    size = [math.ceil(g / s) * s for g, s in zip((h, w), window, strict=True)]
    padded = []
    for x, f in zip((q, k, v), fill, strict=True):
        canvas = f.expand(x.shape[0], *size, heads, d).clone()
        canvas[:, :h, :w] = x
        padded.append(canvas)
    q, k, v = padded
    cells = [
        [(y, x) for y in range(top, top + window[0]) for x in range(left, left + window[1])]
        for top in range(0, size[0], window[0])
        for left in range(0, size[1], window[1])
    ]
    out = torch.zeros_like(q)
    for cell in cells:  # in shifted coordinates, which may run over the border: (y + shift) mod size
        raw = [(y + shift[0], x + shift[1]) for y, x in cell]
        home = [(y % size[0], x % size[1]) for y, x in raw]
        side = [(y >= size[0], x >= size[1]) for y, x in raw]  # which side of the border a token came from
        for i, (y, x) in enumerate(home):
            scores = torch.stack(
                [
                    (q[:, y, x] * k[:, a, b]).sum(-1) * d**-0.5 + bias[:, i, j] - 100.0 * (side[i] != side[j])
                    for j, (a, b) in enumerate(home)
                ]
            )  # (t, B, heads)
            values = torch.stack([v[:, a, b] for a, b in home])  # (t, B, heads, d)
            out[:, y, x] = (scores.softmax(0)[..., None] * values).sum(0)
    return out[:, :h, :w]


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize(("grid", "window", "shift"), CASES)
def test_equals_token_by_token(grid, window, shift, backend):
    q, k, v, bias, fill = inputs(grid, window)
    out = window_attention(q, k, v, bias, window=window, shift=shift, fill=fill, backend=backend)
    expected = token_by_token(q, k, v, bias, fill, window, shift)
    # fp32 softmax inside a float64 test of the reference backend
    assert_close(out, expected, atol=1e-6, rtol=0)
    weights = torch.randn_like(out)
    leaves = [q, k, v, bias, *fill]
    ours = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        zero = torch.zeros(())
        assert_close(
            *torch.broadcast_tensors(zero.double() if a is None else a, zero.double() if b is None else b),
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize(
    ("grid", "window", "shifted", "expected"),
    [
        ((8, 8), (4, 4), True, ((4, 4), (2, 2))),
        ((8, 8), (4, 4), False, ((4, 4), (0, 0))),
        ((4, 8), (4, 4), True, ((4, 4), (0, 2))),
        ((3, 9), (7, 7), True, ((3, 7), (0, 3))),
        ((14, 14), (7, 7), True, ((7, 7), (3, 3))),
    ],
)
def test_geometry_is_decided_per_dimension(grid, window, shifted, expected):
    assert window_geometry(grid, window, shifted) == expected


def test_rolled_neighbours_do_not_see_each_other():
    """With a shift, a token in the last row must not depend on the first row."""
    q, k, v, bias, _ = inputs((8, 8), (4, 4))
    out = window_attention(q, k, v, bias, window=(4, 4), shift=(2, 2), backend="reference")
    (gradient,) = torch.autograd.grad(out[:, -1].sum(), v)
    assert gradient[:, 0].abs().max() < 1e-30
    assert gradient[:, -1].abs().min() > 0
