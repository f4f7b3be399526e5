"""How scenes are cut."""

from dataclasses import dataclass
from typing import Literal

MAX_WHOLE = 512 * 2**20
"""Max pixels of a scene that is read whole, where nobody chose another number."""

Format = Literal["jpeg"] | None


@dataclass(frozen=True)
class TileOptions:
    """How scenes are cut."""

    tile: int = 512
    """Pixels of a side of a tile."""
    overlap: int = 0
    """Pixels that neighbours share at least."""
    min_valid: float = 0.5
    """Part of the pixels of a tile that have to be there."""
    format: Format = None
    """"jpeg": lossy where tiles are 8-bit RGB or grey. None: nothing is lost."""
    quality: int = 95
    """JPEG quality."""
    nodata: float | None = None
    """The value of pixels that are not there, where files do not say it."""
    mask_channel: str | None = None
    """Name or number of the channel that is 0 where a pixel is not there."""
    max_pixels: int = MAX_WHOLE
    """Max pixels of a scene in a file that can only be read whole."""
    workers: int = 4
    """Processes that cut; 0: this one does."""
    progress: bool = False
    """Show a bar with the tiles and the time that is left."""
