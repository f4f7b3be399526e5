"""Where the tiles of a scene lie, and what their files are called."""

_DIGITS = 5


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles begin along a side; the last one is moved inwards, so that all have `tile` pixels.

    A side that is not longer than a tile has one.

    Args:
        overlap: pixels that neighbours share at least, less than `tile`.
    """
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def tile_name(stem: str, top: int, left: int, size: tuple[int, int]) -> str:
    """Path of a tile without its suffix: that of its scene, and the row and column where it begins.

    Args:
        stem: as `stems` gives it.
        size: (H, W) of the scene: what numbers have fewer digits begin with zeros.
    """
    digits = max(_DIGITS, len(str(max(size))))
    return f"{stem}_{top:0{digits}}_{left:0{digits}}"
