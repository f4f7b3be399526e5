"""What the libraries can build: the geometries that each of them cannot, with the way out.

Found in their code and held by tests against them: a network that passes gives the same outputs there as here.
"""

from collections.abc import Sequence

from swin_mim.weights.config_json import Description
from swin_mim.weights.formats import Format

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
        return _not_one_window(format, windows)
    if simmim and config.in_channels != 3:
        return (
            f"microsoft's decoder has 3 channels, this model {config.in_channels}: write timm or transformers instead"
        )
    return _not_divided(windows, grids)


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
