"""The Triton kernels of shifted-window attention. `triton_attention.py` starts them and says what they compute.

A program owns one head and a strip of the rows of the score matrix, for every `step`-th window of the batch. So the
sum of the bias gradient over its windows stays in registers, and no two programs add to the same place. A strip has 16
rows for each of its warps, because Triton gives the warps of products that feed each other different rows and never
different columns: with fewer rows they would repeat each other's work. Its columns come in parts, whose widths are
powers of two as Triton wants them, but not all the same: 144 = 4 x 32 + 16, where a single tile would be 256 wide.
Scores come into being part by part, and index arithmetic per score there is none: what windows have in common is in
the bias, the shift mask included, or it would be kept in registers for all parts at once.

i and j are the tokens of a window as queries and keys, t of them; P is the `Plan`, known at compile time. Scores and
bias are kept in base 2 (times log2 e), which saves a multiplication per score. Products have operands of the tensors'
dtype and fp32 sums; softmax is fp32. Zeros are `tl.full`: up to Triton 3.7 `tl.zeros` takes no field of P as a size.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
APART = tl.constexpr(-100.0 * 1.4426950408889634)
"""Added to the score of tokens that only the cyclic shift brought together: -100, as in `window_attention`."""

LOWEST = tl.constexpr(-65504.0)
"""Of fp16."""


@triton.jit(do_not_specialize=["windows"])
def forward_whole(
    qkv, bias, fill, out, windows, height: tl.constexpr, width: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """out (B, h, w, heads, d), for windows that are one tile and whose bias stays in registers."""
    _strip, head, first, step = _share(P)  # `_` is another variable of the loop
    i = tl.arange(0, P.rows)
    before = 0
    for kind in range(P.kinds):
        own_bias = _bias(bias, kind, head, i, i, P)
        end = _how_many(kind, windows, height, width, P)
        start = (first + step - before % step) % step
        before += end
        for number in range(start, end, step):
            image, y, x = _of_kind(number, kind, height, width, P)
            source = qkv + image * (height * width * 3 * P.heads * P.head_dim)
            row, real, _ = _place(i, y, x, height, width, P)
            q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
            k = _load(source, fill, 1, head, row, real, 3, P.filled, P)
            v = _load(source, fill, 2, head, row, real, 3, P.filled, P)
            s = _scores(q, k, own_bias, P)
            p = tl.exp2(s - tl.max(s, 1)[:, None])
            o = _dot(p.to(q.dtype), v) / tl.sum(p, 1)[:, None]
            _store(out + image * (height * width * P.heads * P.head_dim), o, 0, head, row, real, 1, P)


@triton.jit(do_not_specialize=["windows"])
def forward(
    qkv, bias, fill, out, log_sums, windows, height: tl.constexpr, width: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """out (B, h, w, heads, d): a strip of queries against all keys.

    Leaves for the backward pass of wide windows log_sums (windows, heads, t), fp32: of every query the logarithm of
    the sum of the exponentials of its scores.
    """
    strip, head, first, step = _share(P)
    i = strip * P.rows + tl.arange(0, P.rows)
    for window in range(first, windows, step):
        image, y, x = _locate(window, height, width, P)
        kind = _kind(y, x, height, width, P)
        source = qkv + image * (height * width * 3 * P.heads * P.head_dim)
        row, real, _ = _place(i, y, x, height, width, P)
        q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
        top = tl.full([P.rows], float("-inf"), tl.float32)
        total = tl.full([P.rows], 0.0, tl.float32)
        o = tl.full([P.rows, P.padded_dim], 0.0, tl.float32)
        for part in tl.static_range(tl.constexpr(P.parts)):
            j = P.starts[part] + tl.arange(0, P.widths[part])
            k, v = _keys(source, fill, head, j, y, x, height, width, P)
            s = _scores(q, k, _bias(bias, kind, head, i, j, P), P)
            higher = tl.maximum(top, tl.max(s, 1))
            shrink = tl.exp2(top - higher)
            p = tl.exp2(s - higher[:, None])
            total = total * shrink + tl.sum(p, 1)
            o = o * shrink[:, None] + _dot(p.to(q.dtype), v)
            top = higher
        _store(out + image * (height * width * P.heads * P.head_dim), o / total[:, None], 0, head, row, real, 1, P)
        if not P.whole:
            tl.store(log_sums + _rows_of(window, head, P) + i, top + tl.log2(total), mask=i < P.tokens)


@triton.jit(do_not_specialize=["windows"])
def backward_whole(
    qkv, bias, fill, grad, qkv_grad, pair_grad, fill_grad, windows,
    height: tl.constexpr, width: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """Everything at once, for windows that are one tile.

    qkv_grad (B, h, w, 3, heads, d); and of every group of programs the sums over its windows, fp32: pair_grad (groups,
    heads, t, t) and, for k and v, fill_grad (groups, heads, strips, 2, d).
    """
    _, head, first, step = _share(P)
    i = tl.arange(0, P.rows)
    pairs = tl.full([P.rows, P.rows], 0.0, tl.float32)
    fill_k = tl.full([P.padded_dim], 0.0, tl.float32)
    fill_v = tl.full([P.padded_dim], 0.0, tl.float32)
    before = 0
    for kind in range(P.kinds if P.held else 1):
        if P.held:
            own_bias = _bias(bias, kind, head, i, i, P)
            end = _how_many(kind, windows, height, width, P)
            start = (first + step - before % step) % step
            before += end
        else:
            start, end = first, windows
        for number in range(start, end, step):
            if P.held:
                image, y, x = _of_kind(number, kind, height, width, P)
            else:
                image, y, x = _locate(number, height, width, P)
                own_bias = _bias(bias, _kind(y, x, height, width, P), head, i, i, P)
            source = qkv + image * (height * width * 3 * P.heads * P.head_dim)
            target = qkv_grad + image * (height * width * 3 * P.heads * P.head_dim)
            row, real, padding = _place(i, y, x, height, width, P)
            q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
            k = _load(source, fill, 1, head, row, real, 3, P.filled, P)
            v = _load(source, fill, 2, head, row, real, 3, P.filled, P)
            do = _load(grad + image * (height * width * P.heads * P.head_dim), fill, 0, head, row, real, 1, False, P)
            p, ds = _softmax_gradient(_scores(q, k, own_bias, P), _dot(do, tl.trans(v)))
            pairs += ds
            p, ds = p.to(q.dtype), ds.to(q.dtype)
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


@triton.jit(do_not_specialize=["windows"])
def backward_rows(
    qkv, bias, fill, out, grad, log_sums, means, qkv_grad, pair_grad, windows,
    height: tl.constexpr, width: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """dq and the bias gradient, for a strip of queries against all keys.

    Leaves for `backward_columns` means (windows, heads, t), fp32: of every query the mean of dp under p.
    """
    strip, head, first, step = _share(P)
    i = strip * P.rows + tl.arange(0, P.rows)
    pairs = ()
    for part in tl.static_range(tl.constexpr(P.parts)):
        pairs = pairs + (tl.full([P.rows, P.widths[part]], 0.0, tl.float32),)
    for window in range(first, windows, step):
        image, y, x = _locate(window, height, width, P)
        kind = _kind(y, x, height, width, P)
        source = qkv + image * (height * width * 3 * P.heads * P.head_dim)
        row, real, _ = _place(i, y, x, height, width, P)
        q = _load(source, fill, 0, head, row, real, 3, P.filled, P)
        o = _load(out + image * (height * width * P.heads * P.head_dim), fill, 0, head, row, real, 1, False, P)
        do = _load(grad + image * (height * width * P.heads * P.head_dim), fill, 0, head, row, real, 1, False, P)
        log_sum = tl.load(log_sums + _rows_of(window, head, P) + i, mask=i < P.tokens, other=0.0)
        mean = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        tl.store(means + _rows_of(window, head, P) + i, mean, mask=i < P.tokens)
        dq = tl.full([P.rows, P.padded_dim], 0.0, tl.float32)
        sums = ()
        for part in tl.static_range(tl.constexpr(P.parts)):
            j = P.starts[part] + tl.arange(0, P.widths[part])
            k, v = _keys(source, fill, head, j, y, x, height, width, P)
            p = tl.exp2(_scores(q, k, _bias(bias, kind, head, i, j, P), P) - log_sum[:, None])
            ds = p * (_dot(do, tl.trans(v)) - mean[:, None])
            dq += _dot(ds.to(q.dtype), k)
            sums = sums + (pairs[part] + ds,)
        pairs = sums
        _store(qkv_grad + image * (height * width * 3 * P.heads * P.head_dim), dq * P.scale, 0, head, row, real, 3, P)
    for part in tl.static_range(tl.constexpr(P.parts)):
        j = P.starts[part] + tl.arange(0, P.widths[part])
        _store_pairs(pair_grad, pairs[part], first, head, i, j, P)


@triton.jit(do_not_specialize=["windows"])
def backward_columns(
    qkv, turned_bias, fill, grad, log_sums, means, qkv_grad, fill_grad, windows,
    height: tl.constexpr, width: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """dk, dv and their sums at padded positions, for a strip of keys against all queries.

    All is transposed, (keys, queries); so is turned_bias (kinds, heads, t, pitch).
    """
    strip, head, first, step = _share(P)
    j = strip * P.rows + tl.arange(0, P.rows)
    fill_k = tl.full([P.padded_dim], 0.0, tl.float32)
    fill_v = tl.full([P.padded_dim], 0.0, tl.float32)
    for window in range(first, windows, step):
        image, y, x = _locate(window, height, width, P)
        kind = _kind(y, x, height, width, P)
        source = qkv + image * (height * width * 3 * P.heads * P.head_dim)
        target = qkv_grad + image * (height * width * 3 * P.heads * P.head_dim)
        row, real, padding = _place(j, y, x, height, width, P)
        k = _load(source, fill, 1, head, row, real, 3, P.filled, P)
        v = _load(source, fill, 2, head, row, real, 3, P.filled, P)
        dk = tl.full([P.rows, P.padded_dim], 0.0, tl.float32)
        dv = tl.full([P.rows, P.padded_dim], 0.0, tl.float32)
        for part in tl.static_range(tl.constexpr(P.parts)):
            i = P.starts[part] + tl.arange(0, P.widths[part])
            other_row, there, _ = _place(i, y, x, height, width, P)
            q = _load(source, fill, 0, head, other_row, there, 3, P.filled, P)
            do = _load(
                grad + image * (height * width * P.heads * P.head_dim), fill, 0, head, other_row, there, 1, False, P
            )
            log_sum = tl.load(log_sums + _rows_of(window, head, P) + i, mask=i < P.tokens, other=0.0)
            mean = tl.load(means + _rows_of(window, head, P) + i, mask=i < P.tokens, other=0.0)
            p = tl.exp2(_scores(k, q, _bias(turned_bias, kind, head, j, i, P), P) - log_sum[None, :])
            dv += _dot(p.to(q.dtype), do)
            ds = p * (_dot(v, tl.trans(do)) - mean[None, :])
            dk += _dot(ds.to(q.dtype), q)
        dk *= P.scale
        _store(target, dk, 1, head, row, real, 3, P)
        _store(target, dv, 2, head, row, real, 3, P)
        if P.filled:
            fill_k += tl.sum(tl.where(padding[:, None], dk, 0.0), 0)
            fill_v += tl.sum(tl.where(padding[:, None], dv, 0.0), 0)
    if P.filled:
        _store_fill(fill_grad, fill_k, fill_v, first, strip, head, P)


@triton.jit
def table_to_pairs(table, bias, P: tl.constexpr, KEYS: tl.constexpr, TURNED: tl.constexpr):
    """table (entries, heads) -> bias (kinds, heads, t, pitch) in base 2, 16 queries to a program; see `_bias`.

    The largest of every query is taken off, which softmax does not see. So fp16 is fine enough for biases of any size:
    its steps are small near zero, where the probabilities are large. Who is below its range gets LOWEST, a probability
    of zero, and not minus infinity, from which no part of a row may be made alone.

    The kinds of windows of a shifted grid: in the middle, at the bottom, on the right, in the corner. At the bottom
    the cyclic shift brings the first rows of the image under the last ones, which get APART from them.
    """
    i, j = tl.program_id(0) * 16 + tl.arange(0, 16)[:, None], tl.arange(0, KEYS)[None, :]
    head, kind = tl.program_id(1), tl.program_id(2)
    i_y, i_x, j_y, j_x = i // P.window[1], i % P.window[1], j // P.window[1], j % P.window[1]
    entry = (i_y - j_y + P.table_window[0] - 1) * (2 * P.table_window[1] - 1) + i_x - j_x + P.table_window[1] - 1
    exists = (i < P.tokens) & (j < P.tokens)
    value = tl.load(table + entry * P.heads + head, mask=exists, other=0.0).to(tl.float32) * LOG2_E
    edge_y, edge_x = P.window[0] - P.shift[0], P.window[1] - P.shift[1]
    apart_y = (kind % 2 == 1) & ((i_y >= edge_y) != (j_y >= edge_y))
    apart_x = (kind // 2 == 1) & ((i_x >= edge_x) != (j_x >= edge_x))
    value += tl.where(apart_y | apart_x, APART, 0.0)
    largest = tl.max(tl.where(j < P.tokens, value, float("-inf")), 1)[:, None]
    value = tl.where(exists, tl.maximum(value - largest, LOWEST), float("-inf")).to(bias.dtype.element_ty)
    target = bias + (kind * P.heads + head) * (P.tokens * P.pitch)
    if TURNED:
        tl.store(target + j * P.pitch + i, value, mask=(i < P.pitch) & (j < P.tokens))
    else:
        tl.store(target + i * P.pitch + j, value, mask=(i < P.tokens) & (j < P.pitch))


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
def _share(P: tl.constexpr):
    """The strip, the head and the first window of this program, and the distance to its next window.

    Neighbouring programs read the same window, which one of them brings into the cache for the others.
    """
    program = tl.program_id(0)
    strip_and_head = program % (P.strips * P.heads)
    first = program // (P.strips * P.heads)
    return strip_and_head % P.strips, strip_and_head // P.strips, first, tl.num_programs(0) // (P.strips * P.heads)


@triton.jit
def _windows(height, width, P: tl.constexpr):
    """How many windows an image has (down, across), padding included."""
    return (height + P.window[0] - 1) // P.window[0], (width + P.window[1] - 1) // P.window[1]


@triton.jit
def _locate(window, height, width, P: tl.constexpr):
    """The image of a window of the batch, and how many windows are above it and on its left.

    The image is int64: what is multiplied with it may pass 2^31.
    """
    down, across = _windows(height, width, P)
    return tl.cast(window // (down * across), tl.int64), window // across % down, window % across


@triton.jit
def _kind(y, x, height, width, P: tl.constexpr):
    """The kind of the window with y windows above it and x on its left, as `table_to_pairs` counts them."""
    if P.kinds == 1:
        kind = 0
    else:
        down, across = _windows(height, width, P)
        kind = tl.where(y == down - 1, 1, 0) + tl.where(x == across - 1, 2, 0)
    return kind


@triton.jit
def _how_many(kind, windows, height, width, P: tl.constexpr):
    """Windows of a kind in the batch.

    A program goes through them kind after kind, as if they stood in one row of which it takes every `step`-th.
    """
    down, across = _windows(height, width, P)
    if P.kinds > 1:
        some = tl.where(kind % 2 == 1, 1, down - 1) * tl.where(kind // 2 == 1, 1, across - 1)
        windows = windows // (down * across) * some
    return windows


@triton.jit
def _of_kind(number, kind, height, width, P: tl.constexpr):
    """As `_locate`, for the window of that number among those of its kind in the batch."""
    if P.kinds > 1:
        down, across = _windows(height, width, P)
        lowest, rightmost = kind % 2 == 1, kind // 2 == 1
        rest = tl.where(rightmost, number, number // max(1, across - 1))
        x = tl.where(rightmost, across - 1, number % max(1, across - 1))
        image = tl.where(lowest, rest, rest // max(1, down - 1))
        y = tl.where(lowest, down - 1, rest % max(1, down - 1))
        place = tl.cast(image, tl.int64), y, x
    else:
        place = _locate(number, height, width, P)
    return place


@triton.jit
def _place(i, y, x, height, width, P: tl.constexpr):
    """Where tokens i of a window lie: token of the image (y w + x), if it is real, and if it is padding.

    A token of the tile that is neither does not exist.
    """
    down, across = _windows(height, width, P)
    y = y * P.window[0] + i // P.window[1] + P.shift[0]
    x = x * P.window[1] + i % P.window[1] + P.shift[1]
    y = tl.where(y >= down * P.window[0], y - down * P.window[0], y)
    x = tl.where(x >= across * P.window[1], x - across * P.window[1], x)
    inside = (y < height) & (x < width)
    return y * width + x, (i < P.tokens) & inside, (i < P.tokens) & (inside == 0)


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
def _keys(source, fill, head, j, y, x, height, width, P: tl.constexpr):
    """k and v (keys, padded_dim) of tokens j of a window."""
    row, real, _ = _place(j, y, x, height, width, P)
    k = _load(source, fill, 1, head, row, real, 3, P.filled, P)
    return k, _load(source, fill, 2, head, row, real, 3, P.filled, P)


@triton.jit
def _scores(a, b, bias, P: tl.constexpr):
    """(tokens of a, tokens of b), base 2."""
    return _dot(a, tl.trans(b)) * (P.scale * LOG2_E) + bias


@triton.jit
def _dot(a, b):
    """fp32 a @ b. Never TF32: who runs in fp32 wants it exact."""
    if INTERPRETED:  # which multiplies the bits of bf16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _softmax_gradient(s, dp):
    """p, the softmax of scores s in base 2, and the gradient of s times ln 2, from that of p."""
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    p *= (1 / tl.sum(p, 1))[:, None]
    return p, p * (dp - tl.sum(p * dp, 1)[:, None])


@triton.jit
def _bias(bias, kind, head, a, b, P: tl.constexpr):
    """(tokens a, tokens b) of bias (kinds, heads, t, pitch); minus infinity for b that do not exist.

    The pitch is t rounded up, so that odd windows are read in pairs of numbers too. Rows of a that do not exist are
    those of another token: finite, so that nothing becomes NaN.
    """
    base = (kind * P.heads + head) * (P.tokens * P.pitch)
    row = bias + base + tl.minimum(a, P.tokens - 1)[:, None] * P.pitch
    return tl.load(row + b[None, :], mask=(b < P.pitch)[None, :], other=float("-inf"))


@triton.jit
def _rows_of(window, head, P: tl.constexpr):
    """Where the rows of a window and a head begin in (windows, heads, t), int64."""
    return tl.cast(window * P.heads + head, tl.int64) * P.tokens


@triton.jit
def _store_pairs(pair_grad, pairs, group, head, i, j, P: tl.constexpr):
    """One group's sum over its windows of the scores' gradient, into (groups, heads, t, t)."""
    place = pair_grad + ((group * P.heads + head) * P.tokens + i[:, None]) * P.tokens + j[None, :]
    tl.store(place, pairs, mask=(i < P.tokens)[:, None] & (j < P.tokens)[None, :])


@triton.jit
def _store_fill(fill_grad, fill_k, fill_v, group, strip, head, P: tl.constexpr):
    """One program's sums of dk and dv over padded tokens, into (groups, heads, strips, 2, d)."""
    channel = tl.arange(0, P.padded_dim)
    place = fill_grad + ((group * P.heads + head) * P.strips + strip) * (2 * P.head_dim) + channel
    tl.store(place, fill_k, mask=channel < P.head_dim)
    tl.store(place + P.head_dim, fill_v, mask=channel < P.head_dim)
