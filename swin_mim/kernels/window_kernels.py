"""The Triton kernels of shifted-window attention. `triton_attention.py` starts them and says what they compute.

A program owns one head and a strip of the rows of the score matrix, for every `step`-th window of the batch. What is
the same in all windows, the bias and the sum of its gradient, so stays in registers, and no two programs add to the
same place. The columns of a strip come in two parts, `near` and `far`, because Triton's tiles have sides that are
powers of two: 144 = 128 + 16 is exact where one tile would be 256 wide.

i and j are the tokens of a window as queries and keys, t of them; P is the `Plan`, known at compile time. Scores are
kept in base 2 (times log2 e), which saves a multiplication per score. Products have fp32 sums and operands of the
tensors' dtype, softmax is fp32.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
APART = tl.constexpr(-100.0 * 1.4426950408889634)
"""Added to the score of tokens that only the cyclic shift brought together: -100, as in `models.window_attention`."""


@triton.jit
def forward(qkv, table, fill, out, windows, height, width, P: tl.constexpr):
    """out (B, h, w, heads, d): a strip of queries against all keys."""
    strip, head, first, step = _share(P)
    i = strip * P.rows + tl.arange(0, P.rows)
    near = tl.arange(0, P.near)
    near_bias = _bias_of_queries(table, head, i, near, P)
    if P.far > 0:
        far = P.near + tl.arange(0, P.far)
        far_bias = _bias_of_queries(table, head, i, far, P)
    for window in range(first, windows, step):
        pixels = _image(window, height, width, P) * height * width
        source = qkv + pixels * (3 * P.heads * P.head_dim)
        row, real, _, region = _place(i, window, height, width, P)
        q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
        k, near_v, other = _keys(source, fill, head, near, window, height, width, P)
        near_s = _scores(q, k, near_bias, region, other, P)
        top = tl.max(near_s, 1)
        if P.far > 0:
            k, far_v, other = _keys(source, fill, head, far, window, height, width, P)
            far_s = _scores(q, k, far_bias, region, other, P)
            top = tl.maximum(top, tl.max(far_s, 1))
        near_p = tl.exp2(near_s - top[:, None])
        total = tl.sum(near_p, 1)
        o = _dot(near_p.to(q.dtype), near_v)
        if P.far > 0:
            far_p = tl.exp2(far_s - top[:, None])
            total += tl.sum(far_p, 1)
            o += _dot(far_p.to(q.dtype), far_v)
        _store(out + pixels * (P.heads * P.head_dim), o / total[:, None], 0, head, row, real, 1, P)


@triton.jit
def backward_whole(
    qkv, table, fill, grad, qkv_grad, pair_grad, fill_grad, windows, height, width, P: tl.constexpr
):  # fmt: skip
    """Everything at once, for windows that fit into one tile.

    qkv_grad (B, h, w, 3, heads, d); of every group of programs its sums pair_grad (step, heads, t, t) and, for k and
    v, fill_grad (step, strips, 2, heads, d), fp32.
    """
    _, head, first, step = _share(P)
    i = tl.arange(0, P.rows)
    bias = _bias_of_queries(table, head, i, i, P)
    pairs = tl.zeros([P.rows, P.rows], tl.float32)
    fill_k = tl.zeros([P.padded_dim], tl.float32)
    fill_v = tl.zeros([P.padded_dim], tl.float32)
    for window in range(first, windows, step):
        pixels = _image(window, height, width, P) * height * width
        source = qkv + pixels * (3 * P.heads * P.head_dim)
        target = qkv_grad + pixels * (3 * P.heads * P.head_dim)
        row, real, padding, region = _place(i, window, height, width, P)
        q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
        k = _load(source, fill, 1, head, row, real, 3, P.filled, P)
        v = _load(source, fill, 2, head, row, real, 3, P.filled, P)
        do = _load(grad + pixels * (P.heads * P.head_dim), fill, 0, head, row, real, 1, False, P)
        s = _scores(q, k, bias, region, region, P)
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        p *= (1 / tl.sum(p, 1))[:, None]
        dp = _dot(do, tl.trans(v))
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])
        pairs += ds
        p = p.to(q.dtype)
        ds = ds.to(q.dtype)
        dv = _dot(tl.trans(p), do)
        dk = _dot(tl.trans(ds), q) * P.scale
        _store(target, _dot(ds, k) * P.scale, 0, head, row, real, 3, P)
        _store(target, dk, 1, head, row, real, 3, P)
        _store(target, dv, 2, head, row, real, 3, P)
        if P.filled:
            fill_k += tl.sum(tl.where(padding[:, None], dk, 0.0), 0)
            fill_v += tl.sum(tl.where(padding[:, None], dv, 0.0), 0)
    _store_pairs(pair_grad, pairs, first, head, i, i, P)
    if P.filled:
        _store_fill(fill_grad, fill_k, fill_v, first, 0, head, P)


@triton.jit
def backward_rows(
    qkv, table, fill, grad, qkv_grad, pair_grad, stats, windows, height, width, P: tl.constexpr
):  # fmt: skip
    """dq and the bias gradient, for a strip of queries against all keys.

    Leaves for `backward_columns` in stats (windows, heads, 2, t), fp32: of every query the logarithm of the sum of
    the exponentials, base 2, and the mean of dp under p.
    """
    strip, head, first, step = _share(P)
    i = strip * P.rows + tl.arange(0, P.rows)
    near = tl.arange(0, P.near)
    near_bias = _bias_of_queries(table, head, i, near, P)
    near_pairs = tl.zeros([P.rows, P.near], tl.float32)
    if P.far > 0:
        far = P.near + tl.arange(0, P.far)
        far_bias = _bias_of_queries(table, head, i, far, P)
        far_pairs = tl.zeros([P.rows, P.far], tl.float32)
    for window in range(first, windows, step):
        pixels = _image(window, height, width, P) * height * width
        source = qkv + pixels * (3 * P.heads * P.head_dim)
        row, real, _, region = _place(i, window, height, width, P)
        q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
        do = _load(grad + pixels * (P.heads * P.head_dim), fill, 0, head, row, real, 1, False, P)
        near_k, v, other = _keys(source, fill, head, near, window, height, width, P)
        near_s, near_dp = _scores(q, near_k, near_bias, region, other, P), _dot(do, tl.trans(v))
        top = tl.max(near_s, 1)
        if P.far > 0:
            far_k, v, other = _keys(source, fill, head, far, window, height, width, P)
            far_s, far_dp = _scores(q, far_k, far_bias, region, other, P), _dot(do, tl.trans(v))
            top = tl.maximum(top, tl.max(far_s, 1))
        near_p = tl.exp2(near_s - top[:, None])
        total, mean = tl.sum(near_p, 1), tl.sum(near_p * near_dp, 1)
        if P.far > 0:
            far_p = tl.exp2(far_s - top[:, None])
            total, mean = total + tl.sum(far_p, 1), mean + tl.sum(far_p * far_dp, 1)
        mean /= total
        ds = near_p * (1 / total)[:, None] * (near_dp - mean[:, None])
        near_pairs += ds
        dq = _dot(ds.to(q.dtype), near_k)
        if P.far > 0:
            ds_far = far_p * (1 / total)[:, None] * (far_dp - mean[:, None])
            far_pairs += ds_far
            dq += _dot(ds_far.to(q.dtype), far_k)
        _store(qkv_grad + pixels * (3 * P.heads * P.head_dim), dq * P.scale, 0, head, row, real, 3, P)
        place = stats + _stats_of(window, head, P) + i
        tl.store(place, top + tl.log2(total), mask=i < P.tokens)
        tl.store(place + P.tokens, mean, mask=i < P.tokens)
    _store_pairs(pair_grad, near_pairs, first, head, i, near, P)
    if P.far > 0:
        _store_pairs(pair_grad, far_pairs, first, head, i, far, P)


@triton.jit
def backward_columns(
    qkv, table, fill, grad, qkv_grad, fill_grad, stats, windows, height, width, P: tl.constexpr
):  # fmt: skip
    """dk, dv and their sums at padded positions, for a strip of keys against all queries, transposed."""
    strip, head, first, step = _share(P)
    j = strip * P.rows + tl.arange(0, P.rows)
    near = tl.arange(0, P.near)
    near_bias = _bias_of_keys(table, head, near, j, P)
    if P.far > 0:
        far = P.near + tl.arange(0, P.far)
        far_bias = _bias_of_keys(table, head, far, j, P)
    fill_k = tl.zeros([P.padded_dim], tl.float32)
    fill_v = tl.zeros([P.padded_dim], tl.float32)
    for window in range(first, windows, step):
        pixels = _image(window, height, width, P) * height * width
        source = qkv + pixels * (3 * P.heads * P.head_dim)
        target = qkv_grad + pixels * (3 * P.heads * P.head_dim)
        above = grad + pixels * (P.heads * P.head_dim)
        known = stats + _stats_of(window, head, P)
        row, real, padding, region = _place(j, window, height, width, P)
        k = _load(source, fill, 1, head, row, real, 3, P.filled, P)
        v = _load(source, fill, 2, head, row, real, 3, P.filled, P)
        dk, dv = _from_queries(
            source, fill, above, known, head, near, k, v, near_bias, region, window, height, width, P
        )  # fmt: skip
        if P.far > 0:
            more_dk, more_dv = _from_queries(
                source, fill, above, known, head, far, k, v, far_bias, region, window, height, width, P
            )  # fmt: skip
            dk += more_dk
            dv += more_dv
        dk *= P.scale
        _store(target, dk, 1, head, row, real, 3, P)
        _store(target, dv, 2, head, row, real, 3, P)
        if P.filled:
            fill_k += tl.sum(tl.where(padding[:, None], dk, 0.0), 0)
            fill_v += tl.sum(tl.where(padding[:, None], dv, 0.0), 0)
    if P.filled:
        _store_fill(fill_grad, fill_k, fill_v, first, strip, head, P)


@triton.jit
def pairs_to_table(pair_grad, table_grad, P: tl.constexpr, ENTRIES: tl.constexpr, KEYS: tl.constexpr):
    """pair_grad (heads, t, t) -> table_grad (entries, heads), 16 entries to a program.

    An entry is an offset between two tokens; it gathers the pairs with that offset, key by key.
    """
    entry = tl.program_id(0) * 16 + tl.arange(0, 16)
    head = tl.program_id(1)
    j = tl.arange(0, KEYS)
    across: tl.constexpr = 2 * P.table_window[1] - 1
    y = j[None, :] // P.window[1] + entry[:, None] // across - (P.table_window[0] - 1)
    x = j[None, :] % P.window[1] + entry[:, None] % across - (P.table_window[1] - 1)
    exists = (y >= 0) & (y < P.window[0]) & (x >= 0) & (x < P.window[1]) & (j < P.tokens)[None, :]
    pair = (head * P.tokens + y * P.window[1] + x) * P.tokens + j[None, :]
    sums = tl.sum(tl.load(pair_grad + pair, mask=exists, other=0.0), 1)
    tl.store(table_grad + entry * P.heads + head, sums, mask=entry < ENTRIES)


@triton.jit
def _from_queries(source, fill, above, known, head, i, k, v, bias, region, window, height, width, P: tl.constexpr):
    """What the queries i give to dk (not yet scaled) and dv of the keys at hand, each (rows, padded_dim)."""
    row, real, _, other = _place(i, window, height, width, P)
    q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
    do = _load(above, fill, 0, head, row, real, 1, False, P)
    log_sum = tl.load(known + i, mask=i < P.tokens, other=0.0)
    mean = tl.load(known + P.tokens + i, mask=i < P.tokens, other=0.0)
    p = tl.exp2(_scores(k, q, bias, region, other, P) - log_sum[None, :])  # transposed: (keys, queries)
    ds = p * (_dot(v, tl.trans(do)) - mean[None, :])
    return _dot(ds.to(q.dtype), q), _dot(p.to(q.dtype), do)


@triton.jit
def _share(P: tl.constexpr):
    """The strip, the head and the first window of this program, and the distance to its next window.

    Neighbouring programs read the same window, which one of them brings into the cache for the others.
    """
    program = tl.program_id(0)
    strip_and_head = program % (P.strips * P.heads)
    first = program // (P.strips * P.heads)
    return strip_and_head % P.strips, strip_and_head // P.strips, first, tl.num_programs(0) // (P.strips * P.heads)


@triton.jit
def _image(window, height, width, P: tl.constexpr):
    """The image of a window, int64: what is multiplied with it may pass 2^31."""
    down, across = _windows(height, width, P)
    return (window // (down * across)).to(tl.int64)


@triton.jit
def _windows(height, width, P: tl.constexpr):
    """How many windows an image has (down, across), padding included."""
    return (height + P.window[0] - 1) // P.window[0], (width + P.window[1] - 1) // P.window[1]


@triton.jit
def _place(i, window, height, width, P: tl.constexpr):
    """Where tokens i of a window lie: token of the image (y w + x), if it is real, if it is padding, and its region.

    A token of the tile that is neither real nor padding does not exist. Regions: tokens of one window that the
    cyclic shift brought from different sides of the image differ in it.
    """
    down, across = _windows(height, width, P)
    y = window // across % down * P.window[0] + i // P.window[1] + P.shift[0]
    x = window % across * P.window[1] + i % P.window[1] + P.shift[1]
    below, beyond = y >= down * P.window[0], x >= across * P.window[1]
    y = tl.where(below, y - down * P.window[0], y)
    x = tl.where(beyond, x - across * P.window[1], x)
    exists = i < P.tokens
    real = exists & (y < height) & (x < width)
    padding = exists & ((y >= height) | (x >= width))
    return y * width + x, real, padding, 2 * below.to(tl.int32) + beyond.to(tl.int32)


@triton.jit
def _load(source, fill, part, head, row, real, PARTS: tl.constexpr, FILLED: tl.constexpr, P: tl.constexpr):
    """(rows, padded_dim) of an image (h w, PARTS, heads, d); where it has none, fill (PARTS, heads, d) or zeros."""
    channel = tl.arange(0, P.padded_dim)
    column = (part * P.heads + head) * P.head_dim + channel
    place = source + row[:, None] * (PARTS * P.heads * P.head_dim) + column[None, :]
    x = tl.load(place, mask=real[:, None] & (channel < P.head_dim)[None, :], other=0.0)
    if FILLED:
        value = tl.load(fill + column, mask=channel < P.head_dim, other=0.0).to(x.dtype)
        x = tl.where(real[:, None], x, value[None, :])
    return x


@triton.jit
def _store(target, x, part, head, row, real, PARTS: tl.constexpr, P: tl.constexpr):
    """The reverse of `_load`: padding has no place."""
    channel = tl.arange(0, P.padded_dim)
    column = (part * P.heads + head) * P.head_dim + channel
    place = target + row[:, None] * (PARTS * P.heads * P.head_dim) + column[None, :]
    tl.store(place, x.to(target.dtype.element_ty), mask=real[:, None] & (channel < P.head_dim)[None, :])


@triton.jit
def _keys(source, fill, head, j, window, height, width, P: tl.constexpr):
    """k and v (keys, padded_dim) and the regions (keys) of tokens j of a window."""
    row, real, _, region = _place(j, window, height, width, P)
    k = _load(source, fill, 1, head, row, real, 3, P.filled, P)
    return k, _load(source, fill, 2, head, row, real, 3, P.filled, P), region


@triton.jit
def _scores(a, b, bias, region_a, region_b, P: tl.constexpr):
    """(tokens of a, tokens of b), base 2."""
    s = _dot(a, tl.trans(b)) * (P.scale * LOG2_E) + bias
    if P.shift[0] + P.shift[1] > 0:
        s += tl.where(region_a[:, None] != region_b[None, :], APART, 0.0)
    return s


@triton.jit
def _dot(a, b):
    """fp32 a @ b. Never TF32: who runs in fp32 wants it exact."""
    if INTERPRETED:  # which multiplies the bits of bf16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _bias_of_queries(table, head, i, j, P: tl.constexpr):
    """(queries, keys): minus infinity for keys that do not exist; finite for queries that do not, as softmax needs."""
    bias = _bias(table, head, i[:, None], j[None, :], P)
    return tl.where((j < P.tokens)[None, :], bias, float("-inf"))


@triton.jit
def _bias_of_keys(table, head, i, j, P: tl.constexpr):
    """(keys, queries): minus infinity for all that do not exist, so that they have no weight."""
    bias = _bias(table, head, i[None, :], j[:, None], P)
    return tl.where((i < P.tokens)[None, :] & (j < P.tokens)[:, None], bias, float("-inf"))


@triton.jit
def _bias(table, head, i, j, P: tl.constexpr):
    """fp32, base 2: the table's entries for queries i and keys j, which broadcast to a tile; 0 where there are none."""
    y = i // P.window[1] - j // P.window[1] + P.table_window[0] - 1
    x = i % P.window[1] - j % P.window[1] + P.table_window[1] - 1
    entry = y * (2 * P.table_window[1] - 1) + x
    exists = (i < P.tokens) & (j < P.tokens)
    return tl.load(table + entry * P.heads + head, mask=exists, other=0.0).to(tl.float32) * LOG2_E


@triton.jit
def _stats_of(window, head, P: tl.constexpr):
    """Where the statistics of a window and a head begin, int64."""
    return (window * P.heads + head).to(tl.int64) * (2 * P.tokens)


@triton.jit
def _store_pairs(pair_grad, pairs, group, head, i, j, P: tl.constexpr):
    """One group's sum over its windows of the scores' gradient, into (groups, heads, t, t)."""
    place = pair_grad + ((group * P.heads + head) * P.tokens + i[:, None]) * P.tokens + j[None, :]
    tl.store(place, pairs, mask=(i < P.tokens)[:, None] & (j < P.tokens)[None, :])


@triton.jit
def _store_fill(fill_grad, fill_k, fill_v, group, strip, head, P: tl.constexpr):
    """One program's sums of dk and dv over padded tokens, into (groups, strips, 2, heads, d)."""
    channel = tl.arange(0, P.padded_dim)
    place = fill_grad + (((group * P.strips + strip) * 2) * P.heads + head) * P.head_dim + channel
    tl.store(place, fill_k, mask=channel < P.head_dim)
    tl.store(place + P.heads * P.head_dim, fill_v, mask=channel < P.head_dim)
