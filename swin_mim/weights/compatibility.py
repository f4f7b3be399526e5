"""What the libraries can build: the geometries that each of them cannot, with the way out.

Found in their code and held by tests against them: a network that passes gives the same outputs there as here.
"""

from collections.abc import Sequence

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.weights.config_json import Description
from swin_mim.weights.dense_heads import DENSE_PARTS
from swin_mim.weights.layouts import Format

Pair = tuple[int, int]


def unsupported_reason(format: Format, description: Description) -> str:
    """Why a library cannot build this very network, in one line with the way out; "" if it can."""
    config, simmim = description.config, description.kind == "SimMIM"
    stages = range(config.num_stages)
    windows, grids = [config.stage_window(stage) for stage in stages], [config.stage_grid(stage) for stage in stages]
    if format == "mmpretrain":
        return "mmpretrain files are read, not written: choose timm, microsoft, torchvision or transformers"
    if format in ("swin_mim", "checkpoint"):
        return ""
    if format == "transformers" and description.kind in DENSE_PARTS:
        reason = _not_an_upernet(description)
        if reason:
            return reason
    reason = _not_of_v2(format, config) if config.version == 2 else ""
    if reason:
        return reason
    if format == "timm":
        return _not_in_timm(windows, grids, config.depths)
    if format == "torchvision":
        return _not_in_torchvision(windows, config.depths, config.in_channels, config.qkv_bias)
    if simmim and grids[0][0] != grids[0][1]:
        return f"{format} decodes square images only, not a grid of {_by(grids[0])}: give a square image_size"
    reason = _not_square(format, windows, grids, config.depths)
    if reason:
        return reason
    if format == "transformers":
        return _not_one_window(format, windows) if config.version == 1 else _not_halved_alike(config)
    if simmim and config.in_channels != 3:
        return (
            f"microsoft's decoder has 3 channels, this model {config.in_channels}: write timm or transformers instead"
        )
    return _not_divided(windows, grids)


def _not_an_upernet(description: Description) -> str:
    """What transformers' UperNet with a Swin as its backbone has not. The latter shifts and pads windows always."""
    config, head = description.config, description.head
    if description.kind != "SwinSegmenter" or (head["head"], head["norm"]) != ("upernet", "batch"):
        what = (
            "detector of a Swin" if description.kind != "SwinSegmenter" else f"{head['head']} with {head['norm']} norms"
        )
        return (
            f"transformers has no {what}, only UperNet with batch norms: write the encoder alone, with --encoder-only"
        )
    if config.version != 1 or config.num_stages < 3:
        what = "Swin V2" if config.version != 1 else f"{config.num_stages} stages"
        return (
            f"transformers' UperNet has norms and an auxiliary head for a Swin V1 of three stages or more, not {what}"
        )
    for stage, depth in enumerate(config.depths):
        grid, window = config.stage_grid(stage), as_pair(config.window_size)
        if any(g < w or (g == w and depth > 1) for g, w in zip(grid, window, strict=True)):
            return (
                f"transformers' UperNet shifts and pads windows of {_by(window)} in the grid of {_by(grid)} of stage "
                f"{stage} too, where a Swin does not: give an image_size whose last grid is larger than the window"
            )
    return ""


def _not_of_v2(format: Format, config: SwinConfig) -> str:
    """What the Swin V2 of a library has not."""
    if config.extra_norm_period:
        return f"{format} has no extra norms (extra_norm_period {config.extra_norm_period}): only swin_mim has"
    if format == "torchvision":
        return ""  # its coordinates are in the file, and are what it computes with
    for stage, size in enumerate(config.pretrained_window_sizes):
        measure = as_pair(size)
        if 0 in measure and any(measure):
            return (
                f"{format} has no pretrained_window_sizes of which one side is 0, as {size} of stage {stage}: name both"
            )
        if format == "transformers" and measure[0] != measure[1]:
            return f"transformers has square pretrained_window_sizes only, stage {stage} has {_by(measure)}: write timm"
        divides = measure if any(measure) else config.stage_window(stage)
        if 1 in divides and (format == "microsoft" or (format == "transformers" and any(measure))):
            return (
                f"{format} divides by 0 where a window measures 1, as in stage {stage} with {_by(divides)}: write timm"
            )
    return ""


def _not_in_timm(windows: Sequence[Pair], grids: Sequence[Pair], depths: Sequence[int]) -> str:
    """timm shifts before it pads: a shifted block has other windows, unless padding and shift are equal."""
    for stage, (window, grid) in enumerate(zip(windows, grids, strict=True)):
        if depths[stage] > 1 and any(-g % w not in (0, w // 2) for g, w in zip(grid, window, strict=True)):
            return (
                f"timm pads after the shift, not before: stage {stage} has a grid of {_by(grid)} and windows of "
                f"{_by(window)}, which do not divide it; choose an image_size whose grids the window divides"
            )
    return ""


def _not_in_torchvision(windows: Sequence[Pair], depths: Sequence[int], in_channels: int, qkv_bias: bool) -> str:
    if in_channels != 3:
        return f"torchvision's Swin has 3 channels, this model {in_channels}: write timm or transformers instead"
    if not qkv_bias:
        return "torchvision's Swin always has a bias on queries, keys and values (qkv_bias): write timm instead"
    if sum(depths) < 2:
        return "torchvision's Swin has at least two blocks, this model one: write timm instead"
    return _not_one_window("torchvision", windows)


def _not_one_window(format: Format, windows: Sequence[Pair]) -> str:
    if len(set(windows)) == 1:
        return ""
    smallest = min(windows[-1])
    return (
        f"{format} has one window for all stages, this model has {', '.join(map(_by, windows))}: resize it to "
        f"window_size {smallest}, or to an image_size at which the last stage holds a window of {_by(windows[0])}"
    )


def _not_halved_alike(config: SwinConfig) -> str:
    """transformers' V2 decides on windows and shifts by grids that it rounds down; it runs on those rounded up."""
    for stage in range(config.num_stages):
        grid = config.stage_grid(stage)
        rounded = tuple(side // 2**stage for side in config.stage_grid(0))
        alike = all(
            min(g, w) == min(r, w) and (config.depths[stage] == 1 or (g > w) == (r > w))
            for g, r, w in zip(grid, rounded, as_pair(config.window_size), strict=True)
        )
        if not alike:
            return (
                f"transformers takes the grid of stage {stage} for {rounded[0]}x{rounded[1]}, which is {_by(grid)}: "
                f"choose an image_size that is a multiple of {config.stride}"
            )
    return ""


def _not_square(format: Format, windows: Sequence[Pair], grids: Sequence[Pair], depths: Sequence[int]) -> str:
    """microsoft and transformers: one number per window, and no shift where either side of the grid fits into it."""
    for stage, (window, grid) in enumerate(zip(windows, grids, strict=True)):
        if window[0] != window[1]:
            return (
                f"{format} has square windows only, stage {stage} has {_by(window)}: resize it to window_size "
                f"{min(min(pair) for pair in windows)}"
            )
        if depths[stage] > 1 and min(grid) <= window[0] < max(grid):
            return (
                f"{format} shifts no window where one side of the grid is no larger, as at stage {stage} with a grid "
                f"of {_by(grid)} and windows of {_by(window)}: give a square image_size"
            )
    return ""


def _not_divided(windows: Sequence[Pair], grids: Sequence[Pair]) -> str:
    """microsoft asserts that grids are even before they are halved, and reshapes them to whole windows."""
    for stage, (window, grid) in enumerate(zip(windows, grids, strict=True)):
        if stage < len(grids) - 1 and (grid[0] % 2 or grid[1] % 2):
            return (
                f"microsoft halves even grids only, stage {stage} has {_by(grid)}: choose an image_size whose first "
                f"grid is a multiple of {2 ** (len(grids) - 1)}"
            )
        if _remainder(grid, window):
            return (
                f"microsoft does not pad: windows of {_by(window)} do not divide the grid of {_by(grid)} of stage "
                f"{stage}; choose an image_size whose grids the window divides"
            )
    return ""


def _remainder(grid: Pair, window: Pair) -> bool:
    return any(g % w for g, w in zip(grid, window, strict=True))


def _by(pair: Pair) -> str:
    return f"{pair[0]}x{pair[1]}"
