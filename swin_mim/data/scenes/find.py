"""The scenes below a folder."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from swin_mim.data.decoding.kinds import RASTER_SUFFIXES
from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.sources.folder import FolderSource, files_below
from swin_mim.data.sources.open import open_files
from swin_mim.data.sources.stacks import group
from swin_mim.errors import UserError


class SceneFiles(NamedTuple):
    """The files of a scene."""

    name: str
    """What messages call it: a relative path, or what {image} is in a stack."""
    stem: str
    """Relative path that its tiles' names begin with."""
    files: tuple[tuple[str | None, Path], ...]
    """(channel, path) of each file of a stack, or (None, path)."""
    bytes: int
    """Of all files."""


def find_scenes(spec: str, bands: ChannelSpec | None, stack: str | None) -> tuple[list[SceneFiles], str]:
    """(the scenes, fingerprint of the names and sizes of their files).

    Args:
        spec: a folder, or a file.
        bands, stack: every channel is a file of its own, as in `open_source`.

    Raises:
        UserError: there are none, or they are no files.
    """
    root = Path(os.path.expanduser(spec))
    if stack is not None and bands is not None:
        return _find_stacks(spec, root, bands, stack)
    if root.is_file():
        root, source = root.parent, FolderSource(root.parent, [(root.name, root.stat().st_size)])
    else:
        opened = open_files(spec, bands=ChannelSpec(1))
        if not isinstance(opened, FolderSource):
            raise UserError(f"{spec} is a table: --tile cuts image files, name a folder of these or one of them")
        source = opened
    sizes = [size for _, size in source.inventory()]
    scenes = [
        SceneFiles(source.name(index), stem, ((None, root / path),), size)
        for index, (stem, path, size) in enumerate(zip(stems(source.paths), source.paths, sizes, strict=True))
    ]
    return scenes, source.fingerprint


def stems(paths: Sequence[str]) -> list[str]:
    """Paths without their suffixes, and with them where two scenes would be called the same."""
    found = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    while len(set(found)) < len(found):  # one that keeps its suffix may be called like another one without
        counts = Counter(found)
        found = [path if counts[stem] > 1 else stem for path, stem in zip(paths, found, strict=True)]
    return found


def _find_stacks(spec: str, root: Path, bands: ChannelSpec, stack: str) -> tuple[list[SceneFiles], str]:
    if not root.is_dir():
        raise UserError(f"{spec} is not a folder: --stack {stack!r} is the path of files below one")
    files = files_below(root, RASTER_SUFFIXES)
    paths = [path for path, _ in files]
    found, names = group(paths, stack, bands, spec)
    scenes = []
    for image in sorted(found):
        there = found[image]
        missing = {name: stack.replace("{image}", image).replace("{channel}", name) for name in names}
        channels = tuple((name, root / (paths[there[name]] if name in there else missing[name])) for name in names)
        scenes.append(SceneFiles(image, image, channels, sum(files[index][1] for index in there.values())))
    return scenes, FolderSource(root, files).fingerprint
