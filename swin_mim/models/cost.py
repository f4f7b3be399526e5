"""What a masked image model costs: parameters, arithmetic, and what it keeps for the backward pass. Needs no torch.

The network is a list of parts, from the image to the loss, each with the matrix products of its forward pass. What is
kept is counted from what the layers save (`swin.py`, `simmim.py`, the kernels), for one image of the configured size.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from swin_mim.architecture import POSITION_HIDDEN, SwinConfig
from swin_mim.weights.heads import TEACHER, taught_stage

Kind = Literal["embedding", "merging", "block", "head"]

NO_HEADS: Mapping[int, int] = {}


class Product(NamedTuple):
    """A matrix product of one image: (rows, inner) by (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiplication with its addition."""
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Part:
    """A piece of the network; numbers are those of one image."""

    kind: Kind
    parameters: int
    tokens: int
    """Of its input; of a head, those that go through its norm."""
    channels: int
    """Of its input; of the embedding, those of a token."""
    products: tuple[Product, ...]
    """Of the layers, without the attention."""
    hidden: int = 0
    """Channels inside the MLP of a block."""
    heads: int = 0
    padded_tokens: int = 0
    """That attention computes on: whole windows."""
    window_tokens: int = 0
    shifted: bool = False
    version: int = 1
    """Of the Swin that it belongs to."""
    extra_norm: bool = False
    outputs: int = 0
    """Of the head: values that are predicted."""

    @property
    def linear_flops(self) -> int:
        return sum(product.flops for product in self.products)

    @property
    def attention_flops(self) -> int:
        """Forward: scores, and their product with the values."""
        return 2 * Product(self.padded_tokens, self.channels, self.window_tokens).flops

    @property
    def forward_flops(self) -> int:
        return self.linear_flops + self.attention_flops

    @property
    def backward_flops(self) -> int:
        """Twice the forward; of the embedding once, as images need no gradient."""
        return (1 if self.kind == "embedding" else 2) * self.forward_flops


@dataclass(frozen=True)
class Storage:
    """What layers keep for the backward pass, which the device and the precision decide."""

    stream: int = 4
    """Bytes of a number between the blocks."""
    inner: int = 4
    """Bytes of a number inside them."""
    normed: bool = True
    """Whether the outputs of norms are kept; otherwise they are computed again, and so is GELU."""
    again: int = 0
    """Most channels of a block whose MLP keeps its input alone."""
    lengths: bool = True
    """Whether V2's lengths of queries and keys are kept; otherwise they are computed again."""
    copies_bias: bool = False
    """Whether shifted blocks write their bias out for every window, as torch's fused attention needs it."""


AUTOCAST = Storage(stream=4, inner=2)
"""On a GPU in bf16 or fp16 by autocast."""
HALF = Storage(stream=2, inner=2)
"""On a GPU with weights in bf16 or fp16, as DeepSpeed keeps them."""
FP32 = Storage()
"""On a GPU in fp32."""
CPU_ONEDNN = Storage(normed=False, again=384, lengths=False)
"""On a CPU in fp32 with oneDNN's products, of all but tiny layers, where they are cheap; elsewhere `again` is another
(`kernels.chunked_mlp.again`). A CPU keeps less of the first block and the last: how much less is up to the masks
(`models.masked_windows`), and is not counted."""
CPU_MKL = Storage(again=96, lengths=False)
"""On other CPUs in fp32, where a hidden layer is larger than a cache (`kernels.chunked_mlp.pays`)."""


def parts_of(config: SwinConfig, cells: int | None = None, heads: Mapping[int, int] = NO_HEADS) -> tuple[Part, ...]:
    """The parts of a `SimMIM` with this encoder, from the image to the loss.

    Args:
        cells: of the last stage that are decoded for each image (`masking.masked_cells`); None: all.
        heads: besides the decoder, their outputs by stage (`weights.heads.head_outputs`).
    """
    found = [_embedding(config)]
    for stage, depth in enumerate(config.depths):
        if stage:
            found.append(_merging(config, stage))
        found += [_block(config, stage, number) for number in range(depth)]
    every = math.prod(config.stage_grid(config.num_stages - 1))
    decoded = every if cells is None else min(cells, every)
    others = (_stage_head(config, stage, outputs, decoded) for stage, outputs in heads.items())
    return (*found, _head(config, decoded), *others)


def parameter_count(config: SwinConfig, heads: Mapping[int, int] = NO_HEADS) -> int:
    """Parameters of a `SimMIM` with this encoder, its decoder and other heads included; `heads` as in `parts_of`."""
    return sum(part.parameters for part in parts_of(config, heads=heads))


def kept_bytes(part: Part, storage: Storage) -> int:
    """What a part keeps of one image for the backward pass, weights not counted."""
    stream, inner, normed = storage.stream, storage.inner, storage.inner if storage.normed else 0
    numbers = part.tokens * part.channels
    if part.kind == "embedding":
        # the patches, and the input of the norm; which token is masked is a byte
        return part.tokens * (part.products[0].inner * inner + part.channels * stream + 1 + _norms(1))
    if part.kind == "merging":
        kept = numbers * inner + numbers // 2 * stream if part.version == 2 else numbers * (stream + normed)
        return kept + part.tokens // 4 * _norms(1)
    if part.kind == "head":
        # the input of the final norm, the cells of it that are decoded, and the sign of each error
        return part.products[0].rows * part.channels * inner + part.tokens * part.channels * stream + 4 * part.outputs
    if part.version == 2:
        # attention: its input, q, k and v with two lengths of each head, its output; MLP: input and hidden layer; and
        # of both the result, which is normalised
        lengths = 8 * part.tokens * part.heads if storage.lengths else 0
        attention = numbers * (5 * inner + stream) + lengths + _copied_bias(part, storage)
        mlp = numbers * (inner + stream) + _kept_hidden(part, storage)
        return (
            attention + mlp + part.tokens * _norms(2) + part.extra_norm * (numbers * stream + part.tokens * _norms(1))
        )
    mlp = _kept_hidden(part, storage) + (numbers * normed if part.channels > storage.again else 0)
    attention = numbers * (stream + normed + 4 * inner)  # input, its norm, q, k and v, and the output
    return attention + _copied_bias(part, storage) + numbers * stream + mlp + part.tokens * _norms(2)


def _kept_hidden(part: Part, storage: Storage) -> int:
    """Of the MLP, before and after GELU, or before it alone."""
    hidden = part.tokens * part.hidden * storage.inner
    return 0 if part.channels <= storage.again else 2 * hidden if storage.normed else hidden


def _copied_bias(part: Part, storage: Storage) -> int:
    written_out = storage.copies_bias and part.shifted
    return part.padded_tokens * part.window_tokens * part.heads * storage.inner if written_out else 0


def transient_bytes(part: Part, storage: Storage) -> int:
    """What the backward pass of a part needs besides, for one image: gradients of what lies between its layers."""
    stream, inner = storage.stream, storage.inner
    numbers = part.tokens * part.channels
    if part.kind == "embedding":
        return numbers * (2 * stream + inner)
    if part.kind == "merging":
        return numbers * (2 * stream + inner)
    if part.kind == "head":
        return 2 * part.outputs * (4 + inner) + numbers * stream
    if not storage.normed:  # attention: the sum of gradients, those of its output and of q, k, v, and of its input
        return numbers * (3 * stream + 4 * inner)
    return numbers * (stream + inner) + 2 * part.tokens * part.hidden * inner


class Peak(NamedTuple):
    """What one image takes at the moment of a step at which most memory is in use."""

    activations: int
    """Kept for the backward pass."""
    transient: int
    """In use for a moment."""
    gradients: int
    """Parameters that have gradients by then, of all."""


def moments_of_backward(
    config: SwinConfig,
    storage: Storage,
    cells: int | None,
    checkpointing: bool,
    heads: Mapping[int, int] = NO_HEADS,
) -> Iterator[Peak]:
    """Memory as the backward pass reaches each part, from the loss to the image.

    Args:
        cells, heads: as in `parts_of`.
        checkpointing: blocks keep their inputs alone, and one at a time what else its backward pass needs.
    """
    parts = parts_of(config, cells, heads)
    inputs = [part.tokens * part.channels * storage.stream for part in parts]
    full = [kept_bytes(part, storage) for part in parts]
    again = [checkpointing and part.kind == "block" for part in parts]
    kept = [one if anew else all_ for one, all_, anew in zip(inputs, full, again, strict=True)]
    done = 0
    for place in reversed(range(len(parts))):
        done += parts[place].parameters
        recomputed = full[place] - kept[place]
        yield Peak(sum(kept[: place + 1]) + recomputed, transient_bytes(parts[place], storage), done)


def _norms(number: int) -> int:
    """Bytes of mean and scale of a token in so many norms."""
    return 8 * number


def _embedding(config: SwinConfig) -> Part:
    tokens, inner, channels = (
        math.prod(config.stage_grid(0)),
        config.in_channels * config.patch_size**2,
        config.embed_dim,
    )
    parameters = inner * channels + channels + 2 * channels + channels  # projection, norm, mask token
    return Part("embedding", parameters, tokens, channels, (Product(tokens, inner, channels),))


def _merging(config: SwinConfig, stage: int) -> Part:
    """Its tokens are those of the padded grid, which is even."""
    channels, after = config.stage_dim(stage - 1), math.prod(config.stage_grid(stage))
    product = Product(after, 4 * channels, 2 * channels)
    normed = 2 * channels if config.version == 2 else 4 * channels
    return Part("merging", 8 * channels**2 + 2 * normed, 4 * after, channels, (product,), version=config.version)


def _block(config: SwinConfig, stage: int, number: int) -> Part:
    grid, window, padding = config.stage_grid(stage), config.stage_window(stage), config.stage_padding(stage)
    dim, heads, tokens = config.stage_dim(stage), config.num_heads[stage], math.prod(grid)
    hidden = int(dim * config.mlp_ratio)
    layers = ((dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim))
    second = config.version == 2
    biases = ((2 if second else 3) * dim if config.qkv_bias else 0) + dim + hidden + dim
    # V2 has a network and a scale for each head
    table = POSITION_HIDDEN * (3 + heads) + heads if second else (2 * window[0] - 1) * (2 * window[1] - 1) * heads
    extra_norm = bool(config.extra_norm_period) and (number + 1) % config.extra_norm_period == 0
    return Part(
        "block",
        sum(inner * columns for inner, columns in layers) + biases + table + (6 if extra_norm else 4) * dim,
        tokens,
        dim,
        tuple(Product(tokens, inner, columns) for inner, columns in layers),
        hidden=hidden,
        heads=heads,
        padded_tokens=math.prod(side + more for side, more in zip(grid, padding, strict=True)),
        window_tokens=math.prod(window),
        shifted=number % 2 == 1 and window != grid,
        version=config.version,
        extra_norm=extra_norm,
    )


def _head(config: SwinConfig, cells: int) -> Part:
    channels, values = config.num_features, config.stride**2 * config.in_channels
    every = math.prod(config.stage_grid(config.num_stages - 1))
    parameters = 2 * channels + channels * values + values  # final norm, decoder
    return Part("head", parameters, every, channels, (Product(cells, channels, values),), outputs=cells * values)


def _stage_head(config: SwinConfig, stage: int, outputs: int, decoded: int) -> Part:
    """One that predicts pixels does so for the cells that are decoded, of histograms for all, of features for one."""
    if stage == TEACHER:
        channels = config.stage_dim(taught_stage(config))
        product = Product(1, channels, outputs)
        return Part("head", channels * outputs + outputs, 0, channels, (product,), outputs=outputs)
    channels, every, last = config.stage_dim(stage), math.prod(config.stage_grid(stage)), config.num_stages - 1
    of_pixels = outputs == config.in_channels * (config.patch_size * 2**stage) ** 2
    rows = min(every, decoded * 4 ** (last - stage)) if of_pixels else every
    normed = 0 if stage == last else rows
    parameters = (2 * channels if normed else 0) + channels * outputs + outputs
    return Part("head", parameters, normed, channels, (Product(rows, channels, outputs),), outputs=rows * outputs)
