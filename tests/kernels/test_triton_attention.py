"""The Triton kernels against attention over all pairs of tokens of an image in float64.

On a machine without a GPU they run in Triton's interpreter (see conftest.py), and a compiler shows that a GPU's
registers and shared memory hold them.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import triton.language as tl
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from triton_interpreter import overflow_checked

from swin_mim.errors import UserError
from swin_mim.kernels import triton_attention, window_kernels
from swin_mim.kernels.triton_attention import attention_op, backward_op, window_attention
from swin_mim.kernels.window_plan import Processors, Taken, groups_of, launch_of, part_widths, plan_of, programs_of

pytestmark = pytest.mark.usefixtures("_overflow")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OLDEST_TRITON = "triton==3.6.0"
"""What the oldest torch that we allow, 2.11, comes with."""
LEAST_SHARED = 99 * 1024
"""Bytes of shared memory that a program may have on every GPU since Ampere (compute capability 8.6, 8.9, 12.0)."""


COMPARED = ("test_fp32_equals_attention_over_all_pairs", "test_half_precision_is_off_by_its_rounding")


@pytest.fixture
def _overflow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Addresses are checked for overflow where every kernel runs in every shape, and not again where others do."""
    with overflow_checked(request.node.originalname in COMPARED):
        yield


@dataclass(frozen=True)
class Case:
    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    table: tuple[int, int] | None = None
    heads: int = 1
    d: int = 32
    batch: int = 1

    @property
    def table_window(self):
        return self.table or self.window


SMALL = Case((8, 8), (4, 4), (2, 2), heads=2, d=16, batch=2)
PADDED = Case((9, 10), (6, 6), (3, 3))
KINDS = Case((9, 10), (3, 4), (1, 2), d=16, batch=2)
"""3 x 3 windows, padded on the right: of its four kinds an image has 4, 2, 2 and 1."""
ONE_WAY = Case((3, 9), (3, 7), (0, 3), table=(7, 7), d=16)
WIDE = Case((5, 12), (6, 12), (3, 6), d=16)
"""72 tokens: two strips, the second with 8 rows, and parts of 32, 32 and 16 columns. Padded, all of one kind."""
WIDE_KINDS = Case((6, 24), (6, 12), (3, 6), d=16)
LARGE = Case((11, 12), (12, 12), (6, 6))
LARGEST = Case((15, 16), (16, 16), (8, 8), d=16)
TINY = Case((4, 8), (4, 4), (0, 2), heads=2, d=16)
CASES = [
    SMALL,
    PADDED,
    KINDS,
    ONE_WAY,
    WIDE,
    Case((6, 6), (6, 6), table=(12, 12), heads=2),
    Case((2, 3), (2, 3), table=(7, 7), heads=3),
    Case((7, 7), (7, 7), (3, 3), d=24),
    Case((6, 10), (3, 5), (1, 2), d=48),
    Case((5, 7), (7, 4), (3, 2), batch=2),
    Case((8, 8), (8, 8), (4, 4), d=64),
    Case((5, 13), (5, 13), (0, 4), table=(7, 14), heads=2, d=24),
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (LARGE, Case((12, 12), (12, 12), heads=2), Case((13, 14), (14, 14), (7, 7)), LARGEST)
    ),
]


def inputs(case: Case, dtype=torch.float32):
    """qkv, table, fill."""
    entries = (2 * case.table_window[0] - 1) * (2 * case.table_window[1] - 1)
    qkv = torch.randn(case.batch, *case.grid, 3, case.heads, case.d).to(DEVICE, dtype).requires_grad_()
    table = torch.randn(entries, case.heads).to(DEVICE).requires_grad_()
    return qkv, table, torch.randn(3, case.heads, case.d).to(DEVICE).requires_grad_()


def attend(case: Case, qkv, table, fill):
    return window_attention(qkv, table, fill, case.window, case.table_window, case.shift)


def all_pairs(case: Case, qkv, table, fill):
    """Every token of the padded image with every other; two attend to each other if one shifted window holds both."""
    qkv, table, fill = qkv.double(), table.double(), fill.to(qkv.dtype).double()
    size = [math.ceil(g / w) * w for g, w in zip(case.grid, case.window, strict=True)]
    canvas = fill.expand(case.batch, *size, *fill.shape).clone()
    canvas[:, : case.grid[0], : case.grid[1]] = qkv
    q, k, v = canvas.flatten(1, 2).unbind(2)  # (B, N, heads, d)
    place = torch.cartesian_prod(*(torch.arange(side) for side in size))  # (N, 2)
    shifted = (place - torch.tensor(case.shift)) % torch.tensor(size)
    home, inside = shifted // torch.tensor(case.window), shifted % torch.tensor(case.window)
    together = (home[:, None] == home[None, :]).all(-1)
    wrapped = place < torch.tensor(case.shift)
    apart = (wrapped[:, None] != wrapped[None, :]).any(-1)
    offset = inside[:, None] - inside[None, :] + torch.tensor(case.table_window) - 1  # (N, N, 2)
    entry = offset[..., 0] * (2 * case.table_window[1] - 1) + offset[..., 1]
    bias = table[entry.where(together, torch.tensor(0)).to(table.device)].permute(2, 0, 1)
    bias = bias - 100.0 * apart.to(table.device)
    bias = bias.masked_fill(~together.to(table.device), -math.inf)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * case.d**-0.5 + bias
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    return out.unflatten(1, size)[:, : case.grid[0], : case.grid[1]]


def gradients(out, leaves, weights):
    return torch.autograd.grad((out * weights).sum(), leaves, materialize_grads=True)


def assert_near(actual, expected, unit):
    """Within `unit` of the largest number."""
    assert_close(actual.double(), expected.double(), rtol=0, atol=unit * max(expected.abs().max().item(), 1e-3))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fp32_equals_attention_over_all_pairs(case):
    leaves = inputs(case)
    out, expected = attend(case, *leaves), all_pairs(case, *leaves)
    weights = torch.randn_like(out)
    assert out.is_contiguous()
    assert_near(out, expected, 2e-6)
    for ours, theirs in zip(gradients(out, leaves, weights), gradients(expected, leaves, weights), strict=True):
        assert_near(ours, theirs, 4e-6)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (SMALL, torch.bfloat16),
        (PADDED, torch.bfloat16),
        (WIDE, torch.bfloat16),
        (WIDE, torch.float16),
        (KINDS, torch.float16),
        (ONE_WAY, torch.float16),
        (Case((7, 7), (7, 7), d=24), torch.bfloat16),
        (Case((6, 5), (6, 6), table=(9, 9), d=48), torch.float16),
        (Case((8, 8), (8, 8), (4, 4)), torch.bfloat16),
        *(
            pytest.param(case, torch.bfloat16, marks=pytest.mark.slow)
            for case in (LARGE, Case((14, 14), (14, 14), (7, 7)), LARGEST)
        ),
    ],
    ids=str,
)
def test_half_precision_is_off_by_its_rounding(case, dtype):
    """Probabilities, their gradients and the results are rounded: an error of half a unit each, at most."""
    leaves = inputs(case, dtype)
    out, expected = attend(case, *leaves), all_pairs(case, *leaves)
    weights = torch.randn_like(out)
    assert out.dtype == dtype
    unit = torch.finfo(dtype).eps
    if window_kernels.INTERPRETED and dtype == torch.bfloat16:
        unit *= 2  # the interpreter cuts bf16 off, a GPU rounds to the nearest
    assert_near(out, expected, unit)
    ours, theirs = gradients(out, leaves, weights), gradients(expected, leaves, weights.double())
    assert [x.dtype for x in ours] == [dtype, torch.float32, torch.float32]
    for a, b in zip(ours, theirs, strict=True):
        assert_near(a, b, 2 * unit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", [ONE_WAY, Case((3, 11), (6, 11), d=16)], ids=str)
def test_half_precision_takes_biases_of_any_size(case, dtype):
    """Of wide windows it is written in fp16, whose steps are large there: but a row's largest is taken off."""
    qkv, table, fill = inputs(case, dtype)
    for size in (30.0, 3e5):
        large = (table.detach() * size).requires_grad_()
        out, expected = attend(case, qkv, large, fill), all_pairs(case, qkv, large, fill)
        assert_near(out, expected, (2 if dtype == torch.bfloat16 else 1) * torch.finfo(dtype).eps)
    assert all(x.isfinite().all() for x in gradients(out, (qkv, large, fill), torch.ones_like(out)))


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU has as many processors as it has")
@pytest.mark.parametrize(
    ("case", "dtype"), [(PADDED, torch.float32), (KINDS, torch.float16), (WIDE_KINDS, torch.float16)], ids=str
)
def test_it_does_not_matter_how_many_programs_share_the_windows(case, dtype, monkeypatch):
    leaves = inputs(case, dtype)
    weights = torch.randn_like(attend(case, *leaves))
    few = gradients(attend(case, *leaves), leaves, weights)
    monkeypatch.setattr(triton_attention, "INTERPRETER_PROCESSORS", 100)
    for a, b in zip(gradients(attend(case, *leaves), leaves, weights), few, strict=True):
        assert_near(a, b, 1e-6)


@pytest.mark.parametrize("case", [PADDED, WIDE], ids=str)
def test_two_runs_give_the_same_bits(case):
    leaves = inputs(case, torch.bfloat16)
    weights = torch.randn(attend(case, *leaves).shape, dtype=torch.bfloat16, device=DEVICE)
    first, second = (gradients(attend(case, *leaves), leaves, weights) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_no_fill_is_zeros():
    qkv, table, fill = inputs(PADDED)
    assert torch.equal(attend(PADDED, qkv, table, None), attend(PADDED, qkv, table, torch.zeros_like(fill)))
    ours, theirs = (
        gradients(attend(PADDED, qkv, table, zeros), (qkv, table), torch.ones(1, device=DEVICE))
        for zeros in (None, torch.zeros_like(fill))
    )
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


def test_an_empty_batch_has_zero_gradients():
    _, table, fill = inputs(TINY)
    qkv = torch.zeros(0, 4, 8, 3, 2, 16, device=DEVICE, requires_grad=True)
    out = attend(TINY, qkv, table, fill)
    assert out.shape == (0, 4, 8, 2, 16)
    for x, gradient in zip((qkv, table, fill), gradients(out, (qkv, table, fill), out.detach()), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


def test_strides_of_the_input_and_of_the_gradient_are_free():
    qkv, table, fill = inputs(TINY)
    weights = torch.randn(1, 4, 8, 2, 1, device=DEVICE)
    turned = qkv.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    ours, theirs = (
        gradients(attend(TINY, x, table, fill), (x, table), weights.expand(1, 4, 8, 2, 16)) for x in (turned, qkv)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_gradients_of_some_inputs_only():
    case = Case((3, 5), (3, 4), (1, 2), d=16)
    leaves = inputs(case)
    weights = torch.randn_like(attend(case, *leaves))
    every = gradients(attend(case, *leaves), leaves, weights)
    for wanted in ((0,), (1,), (2,), (0, 2)):
        some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(leaves)]
        attend(case, *some).backward(weights)
        for i, (x, expected) in enumerate(zip(some, every, strict=True)):
            assert torch.equal(x.grad, expected) if i in wanted else x.grad is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("case", [Case((4, 4), (4, 4), d=16), pytest.param(WIDE, marks=pytest.mark.slow)], ids=str)
def test_torch_finds_no_fault_with_the_ops(case):
    qkv, table, fill = inputs(case)
    geometry = (list(case.window), list(case.table_window), list(case.shift))
    torch.library.opcheck(attention_op, (qkv, table, fill, *geometry))
    with torch.no_grad():
        saved = attention_op(qkv, table, fill, *geometry)
        torch.library.opcheck(backward_op, (torch.randn_like(saved[0]), qkv, table, None, *geometry, *saved))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [ONE_WAY, WIDE], ids=str)
def test_shapes_are_known_without_running(case, dtype):
    qkv, table, fill = (x.detach() for x in inputs(case, dtype))
    arguments = (qkv, table, fill, list(case.window), list(case.table_window), list(case.shift))
    torch.library.opcheck(attention_op, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("case", [TINY, pytest.param(WIDE, marks=pytest.mark.slow)], ids=str)
def test_one_graph_under_compile_and_checkpointing(case):
    leaves = inputs(case)
    weights = torch.randn_like(attend(case, *leaves))
    eager = gradients(attend(case, *leaves), leaves, weights)
    compiled = torch.compile(lambda *x: attend(case, *x), fullgraph=True, backend="aot_eager")
    again = checkpoint(lambda *x: attend(case, *x), *leaves, use_reentrant=False)
    for out in (compiled(*leaves), again):
        for a, b in zip(gradients(out, leaves, weights), eager, strict=True):
            assert torch.equal(a, b)


def test_under_autocast_the_projections_dtype_counts():
    layer = torch.nn.Linear(32, 96, device=DEVICE)
    _, table, _ = inputs(Case((4, 4), (4, 4)))
    with torch.autocast(DEVICE, torch.bfloat16):
        qkv = layer(torch.randn(1, 4, 3, 32, device=DEVICE)).unflatten(-1, (3, 1, 32))
        out = window_attention(qkv, table, layer.bias.unflatten(0, (3, 1, 32)), (4, 4), (4, 4), (0, 0))
    out.float().sum().backward()
    assert (qkv.dtype, out.dtype) == (torch.bfloat16, torch.bfloat16)
    assert [x.grad.dtype for x in (layer.weight, layer.bias, table)] == [torch.float32] * 3


def test_weights_in_bf16_get_gradients_in_bf16():
    qkv, table, fill = (x.detach().bfloat16().requires_grad_() for x in inputs(PADDED))
    attend(PADDED, qkv, table, fill).sum().backward()
    assert [x.grad.dtype for x in (qkv, table, fill)] == [torch.bfloat16] * 3


def test_operations_are_counted_as_torch_counts_attention():
    leaves = inputs(PADDED)
    with FlopCounterMode(display=False) as counter:
        attend(PADDED, *leaves).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    product = 2 * 4 * 36 * 36 * 32
    assert counts[torch.ops.swin_mim.window_attention] == 2 * product
    assert counts[torch.ops.swin_mim.window_attention_backward] == 5 * product


@pytest.mark.parametrize(
    ("case", "dtype", "words"),
    [
        (Case((17, 16), (17, 16)), torch.float32, "up to 256 tokens, not 17 x 16"),
        (Case((4, 4), (4, 4), d=65), torch.float32, "up to 64 channels of a head, not 65"),
        (Case((4, 4), (4, 4)), torch.float64, "fp32, bf16 or fp16, not torch.float64"),
    ],
)
def test_what_no_kernel_can_do_is_said_in_one_line(case, dtype, words):
    with pytest.raises(UserError, match=words) as caught:
        attend(case, *inputs(case, dtype))
    assert "\n" not in str(caught.value)


def test_an_image_beyond_32_bit_offsets_is_refused():
    with pytest.raises(UserError, match="less than 2\\^31"):
        triton_attention._check(torch.empty(1, 4096, 4096, 3, 4, 32, device="meta"), [4, 4])


def test_a_cpu_without_the_interpreter_is_told_what_to_use(monkeypatch):
    monkeypatch.setattr(window_kernels, "INTERPRETED", tl.constexpr(False))
    with pytest.raises(UserError, match="needs a GPU: use attention auto"):
        triton_attention._check(torch.empty(1, 4, 4, 3, 1, 32), [4, 4])


@pytest.mark.parametrize("tokens", [65, 81, 100, 144, 196, 225, 256])
def test_parts_cover_a_window_with_less_than_16_columns_to_spare(tokens):
    for exact in (False, True):
        assert 0 <= sum(part_widths(tokens, exact)) - tokens < 16


@pytest.mark.parametrize("windows", [0, 1, 63, 64, 1000, 8192])
def test_programs_share_the_windows_evenly(windows):
    plan = plan_of(4, 32, (7, 7), (7, 7), (3, 3), filled=False, exact=False)
    groups = groups_of(windows, plan, 132 * launch_of("whole", plan, exact=False).programs)
    assert 1 <= groups <= max(1, min(windows, 132 * 2 // 4))
    shares = [len(range(first, windows, groups)) for first in range(groups)]
    assert max(shares) - min(shares) <= 1


H100, A100, RTX_4090 = (Processors(n, kb * 1024, 65536) for n, kb in ((132, 228), (108, 164), (128, 100)))


@pytest.mark.parametrize(
    ("kernel", "shared_kb", "registers", "programs"),
    [
        ("forward", 86, 128, (2, 1, 1)),
        ("forward", 68, 128, (3, 2, 1)),
        ("forward", 32, 168, (3, 3, 3)),  # too many registers for a fourth
        ("forward", 16, 96, (4, 4, 4)),  # five would fit, and bring nothing
        ("columns", 77, 118, (2, 2, 1)),
        ("columns", 60, 144, (3, 2, 1)),
        ("columns", 60, 200, (2, 2, 1)),
        ("rows", 120, 255, (1, 1, 1)),
    ],
)
def test_a_processor_gets_the_programs_that_it_holds(kernel, shared_kb, registers, programs):
    launch = launch_of(kernel, plan_of(4, 32, (12, 12), (12, 12), (6, 6), filled=False, exact=False), exact=False)
    taken = Taken(shared_kb * 1024, registers, 32 * launch.num_warps)
    assert tuple(programs_of(launch, taken, gpu) for gpu in (H100, A100, RTX_4090)) == programs


def compiled_for(targets: str, shapes: list[str], cache: Path, beside: Path | None = None) -> list[dict]:
    """The kernels of a forward and a backward pass, compiled in a process that does not interpret them.

    beside: a folder with another Triton.
    """
    script = Path(__file__).with_name("compile_without_gpu.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    if beside:
        environment["PYTHONPATH"] = os.pathsep.join([str(beside), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(script), targets, *shapes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_fits(kernel: dict) -> None:
    assert kernel["shared"] <= LEAST_SHARED, kernel
    if kernel["kernel"] != "pairs_to_table" and "float32" not in kernel["shape"] and ",64," not in kernel["shape"]:
        # The gradient of the bias of 16 rows takes 72 registers of 255 at 144 tokens and 128 at 256.
        assert kernel["spilled"] <= (512 if kernel["kernel"] == "backward_rows" else 128), kernel


ONE_TILE_AND_WIDE = ["6,6,3,3,4,32,bfloat16,1", "12,12,6,6,4,32,bfloat16,0"]
"""Together they start every kernel but that of fp32."""
KERNELS = {
    *("forward_whole", "forward", "backward_whole", "backward_rows", "backward_columns"),
    *("table_to_pairs", "pairs_to_table"),
}


@pytest.mark.slow
def test_kernels_compile_with_the_oldest_triton_of_our_torch_range(tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "old")]
    try:
        done = subprocess.run([*install, OLDEST_TRITON], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{OLDEST_TRITON} did not arrive within two minutes")
    if done.returncode:
        pytest.skip(f"{OLDEST_TRITON} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    kernels = compiled_for("90", ONE_TILE_AND_WIDE, tmp_path / "cache", tmp_path / "old")
    assert {kernel["kernel"] for kernel in kernels} == KERNELS
    assert {kernel["triton"] for kernel in kernels} == {OLDEST_TRITON.partition("==")[2]}
    for kernel in kernels:
        assert_fits(kernel)


@pytest.mark.slow
def test_kernels_of_all_sizes_compile_for_a_gpu(tmp_path):
    """Tiles of 16, 32 and 64 rows, of 16, 32 and 64 channels, windows padded or not, shifted or not."""
    sizes = ["2,3,0,0,3,32,%s,0", "4,7,0,3,3,24,%s,1", "8,8,4,4,4,48,%s,0", "9,9,0,0,4,16,%s,1"]
    largest = ["7,7,3,3,4,64,bfloat16,1", "12,12,6,6,4,64,bfloat16,1", "16,16,8,8,4,32,bfloat16,1"]
    kernels = compiled_for("90", [*ONE_TILE_AND_WIDE, *(size % "bfloat16" for size in sizes), *largest], tmp_path)
    assert {kernel["kernel"] for kernel in kernels} == KERNELS
    for kernel in kernels:
        assert_fits(kernel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "shapes"),
    [
        ("80,120", ["7,7,3,3,4,32,bfloat16,1", "7,7,3,3,4,64,bfloat16,0", "16,16,8,8,4,32,bfloat16,0"]),
        ("90", ["6,6,3,3,4,32,float16,0", "9,9,0,0,4,32,float16,1"]),
        ("90", ["2,3,0,0,3,32,float32,0", "7,7,3,3,4,64,float32,1", "9,9,4,4,4,32,float32,0"]),
    ],
)
def test_kernels_compile_for_other_gpus_and_dtypes(targets, shapes, tmp_path):
    """What takes most on each, by the sizes of the test before."""
    for kernel in compiled_for(targets, shapes, tmp_path):
        assert_fits(kernel)
