"""What kernels read and write besides matrix products and attention, which on a GPU takes about as long as these."""

from typing import NamedTuple

from swin_mim.models.cost import Part, Storage


class Moved(NamedTuple):
    """Bytes of one image."""

    forward: int
    backward: int


def moved_bytes(part: Part, storage: Storage, compiled: bool) -> Moved:
    """Bytes that the operations between the products of a part read and write on a GPU.

    Args:
        compiled: neighbours are one kernel, as torch.compile makes it; otherwise each operation is one of its own.
    """
    stream, inner = storage.stream, storage.inner
    numbers = part.tokens * part.channels
    if part.kind == "block":
        return _block(part, storage, compiled)
    if part.kind == "embedding":
        pixels = part.tokens * part.products[0].inner
        images = pixels * (1 + 4 + 2 * 8 + 4 + inner)  # uint8, fp32, normalised, and written out as patches
        norm, _ = _norm(stream, inner, False)
        return Moved(images + numbers * (norm + 2 * stream), numbers * (4 * stream + 4 * stream) + numbers * inner)
    if part.kind == "merging":
        forward, backward = _norm(stream, inner, compiled)
        return Moved(numbers * (2 * stream + forward), numbers * (2 * stream + backward))
    forward, backward = _norm(stream, inner, compiled)
    outputs = part.outputs * (inner + 4 + (0 if compiled else 16))  # the difference, its absolute value, means
    target = 8 * part.outputs
    return Moved(numbers * forward + outputs + target, numbers * backward + part.outputs * (4 + 4 + 2 * inner))


def _block(part: Part, storage: Storage, compiled: bool) -> Moved:
    stream, inner = storage.stream, storage.inner
    numbers, hidden = part.tokens * part.channels, part.tokens * part.hidden
    norm, norm_back = _norm(stream, inner, compiled)
    cast = 0 if compiled or inner == stream else stream + inner  # of the gradient on its way into a branch
    residual = 2 * stream + inner
    residual_back = 0 if compiled else 3 * stream  # the gradient of the stream is a sum
    biases = inner * (5 * numbers + hidden)
    unit, unit_back = _cosine(inner, compiled) if part.version == 2 else (0, 0)
    if part.version == 2 and not compiled and stream != inner:
        unit += 2 * (stream + inner)  # the stream is converted alone, where V1 normalises it
    return Moved(
        2 * numbers * (norm + residual) + 2 * inner * hidden + numbers * unit,
        2 * numbers * (norm_back + cast + residual_back) + 3 * inner * hidden + biases + numbers * unit_back,
    )


def _cosine(inner: int, compiled: bool) -> tuple[int, int]:
    """Bytes for a number of the stream in dividing queries and keys by their lengths, forward and backward."""
    if compiled:
        return 6 * inner, 9 * inner
    # lengths, quotients, values; backward the output and its gradient in fp32, and six products and sums of them
    return 8 * inner, 8 * inner + 2 * 4 * 13


def _norm(stream: int, inner: int, compiled: bool) -> tuple[int, int]:
    """Bytes for a number in a norm, forward and backward, with the conversion from one precision to the other."""
    if compiled:
        return stream + inner, 2 * inner + 3 * stream
    cast = 0 if inner == stream else stream + inner  # under autocast norms are written in fp32
    return 2 * stream + cast, cast + 3 * stream + 2 * stream  # the last: gradients of weight and bias
