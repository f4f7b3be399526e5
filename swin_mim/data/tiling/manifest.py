"""tiles.json: what was cut into a folder of tiles, how, and what became of each scene."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swin_mim.errors import UserError
from swin_mim.files import replace_text

MANIFEST = "tiles.json"


@dataclass
class SceneTiles:
    """What became of a scene."""

    tiles: int = 0
    """Files of it in the folder."""
    missing: int = 0
    """Tiles that were left out because too many of their pixels are not there."""
    constant: int = 0
    """Tiles that were left out because all their pixels are alike."""
    suffix: str = ""
    """Of the files."""
    whole: bool = False
    """Whether it is not larger than a tile."""

    def add(self, other: "SceneTiles") -> None:
        """Count another part of the same scene."""
        self.tiles += other.tiles
        self.missing += other.missing
        self.constant += other.constant
        self.suffix = self.suffix or other.suffix
        self.whole |= other.whole


@dataclass
class Tiles:
    """What tiles.json holds."""

    source: dict[str, Any]
    """What was cut: `source` and `stack` as they were given, `scenes`, their number, and their `fingerprint`."""
    settings: dict[str, Any]
    """What decides the tiles."""
    scenes: dict[str, SceneTiles] = field(default_factory=dict)
    """Scenes that are dealt with, by name."""
    broken: dict[str, str] = field(default_factory=dict)
    """Scenes that were left out, by name, and why."""
    complete: bool = False

    @property
    def tiles(self) -> int:
        return sum(scene.tiles for scene in self.scenes.values())

    def suffixes(self) -> Counter[str]:
        """How many tiles have which suffix."""
        counts: Counter[str] = Counter()
        for scene in self.scenes.values():
            counts[scene.suffix] += scene.tiles
        return +counts

    def write(self, folder: Path) -> None:
        replace_text(folder / MANIFEST, json.dumps(asdict(self), indent=1) + "\n", durable=True)


def read_tiles(folder: Path) -> Tiles | None:
    """What the manifest of a folder says; None: it has none. Raises `UserError` if it is damaged."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        fields["scenes"] = {name: SceneTiles(**scene) for name, scene in fields["scenes"].items()}
        return Tiles(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): cut the scenes again into a new folder") from error


def check_same(folder: Path, there: Tiles, begun: Tiles) -> None:
    """Raises `UserError` for tiles of other settings or other scenes."""
    if change := _difference(there.settings, begun.settings):
        raise UserError(
            f"{folder} was cut with {change}: give the same arguments to go on, or name another folder to start anew"
        )
    if there.source["fingerprint"] != begun.source["fingerprint"]:
        raise UserError(
            f"{folder} was cut from other scenes than {begun.source['source']!r} holds now, {there.source['scenes']} "
            f"then and {begun.source['scenes']} now: name another folder to cut these"
        )


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """ "tile 512, not 256"."""
    changed: Iterable[str] = (key for key in {**before, **now} if before.get(key) != now.get(key))
    return ", ".join(f"{key} {before.get(key)}, not {now.get(key)}" for key in changed)
