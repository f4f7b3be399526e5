"""The start of SimMIM's encoder for less: of the windows that are masked as a whole one stands for all.

A masked token is the same vector wherever it lies, and the first block, whose windows are not shifted and whose bias
knows relative positions alone, makes the same of every window that holds nothing else. The legend of dimension letters
is in `swin.py`; besides, n is the number of windows of a batch.
"""

import torch
from torch import Tensor, nn

from swin_mim.kernels.graph_windows import is_exporting
from swin_mim.kernels.window_geometry import Pair, window_geometry
from swin_mim.models.blocks.linear import watched
from swin_mim.models.swin import PatchEmbed, Swin

PAYS = 8
"""More than one in so many windows have to be masked as a whole: the others are copied out and back."""


def first_block(encoder: Swin, images: Tensor, mask: Tensor, token: Tensor) -> Tensor | None:
    """What the first block gives for a batch with masked tokens, or None where it is to be called as it is.

    That is where little would be saved, where the number of such windows is known too late (on a GPU, in a graph), and
    where something else sees what goes in and out. The results are the same but for rounding.

    Args:
        images, mask: as in `SimMIM.forward`.
        token: (1, 1, D), in place of those that are masked.

    Returns:
        (B, h, w, D) or None.
    """
    patch = encoder.config.patch_size
    if images.ndim != 4 or not _can(encoder, images, mask):
        return None
    grid = images.shape[2] // patch, images.shape[3] // patch
    if mask.shape != (len(images), *grid):
        return None
    window, _ = window_geometry(grid, encoder.config.stage_window(0), shifted=False)
    if grid[0] % window[0] or grid[1] % window[1]:  # padding is not masked
        return None
    masks = _to_windows(mask, window)  # (n, wh, ww)
    mixed = ~masks.flatten(1).all(1)
    chosen = mixed.nonzero()[:, 0]
    if (len(masks) - len(chosen)) * PAYS <= len(masks):
        return None
    patches = _to_windows(encoder.patch_embed.cut(images), window).index_select(0, chosen)
    tokens = encoder.patch_embed.project(patches)  # (mixed, wh, ww, D)
    token = token.to(tokens.dtype)
    tokens = torch.where(masks[chosen][..., None], token, tokens)
    windows = encoder.first_block(torch.cat([tokens, token.expand(1, *window, -1)]))
    place = torch.where(mixed, mixed.cumsum(0) - 1, len(chosen))
    return _from_windows(windows.index_select(0, place), grid, window)


def _can(encoder: Swin, images: Tensor, mask: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_exporting()
    plain = mask.dtype == torch.bool and type(images) is Tensor and images.device.type == mask.device.type == "cpu"
    drops = encoder.training and encoder.config.drop_rate > 0
    ours = type(encoder.patch_embed) is PatchEmbed and type(encoder).embed is Swin.embed
    return plain and ours and not traced and not drops and not observed(encoder.patch_embed, next(encoder.blocks()))


def observed(*parts: nn.Module) -> bool:
    """Whether one of these modules, or one below, is compiled or has a hook."""
    modules = [module for part in parts for module in part.modules()]
    return watched(*modules) or any(module._compiled_call_impl is not None for module in modules)


def _to_windows(x: Tensor, window: Pair) -> Tensor:
    """(B, h, w, ...) -> (n, wh, ww, ...)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # (B, nh, wh, nw, ww, ...)
    return x.transpose(2, 3).flatten(0, 2)


def _from_windows(x: Tensor, grid: Pair, window: Pair) -> Tensor:
    """(n, wh, ww, D) -> (B, h, w, D)."""
    x = x.unflatten(0, (-1, grid[0] // window[0], grid[1] // window[1]))  # (B, nh, nw, wh, ww, D)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
