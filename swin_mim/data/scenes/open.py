"""Opens scenes by what their files begin with."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.kinds import HEAD, kind_of
from swin_mim.data.scenes.find import SceneFiles
from swin_mim.data.scenes.jpeg2000 import open_jpeg2000_scene
from swin_mim.data.scenes.scene import Scene
from swin_mim.data.scenes.stacked import stack_scenes
from swin_mim.data.scenes.tiff import open_tiff_scene
from swin_mim.data.scenes.whole import open_npy_scene, open_whole_scene
from swin_mim.errors import UserError

_IN_PARTS = {"TIFF": open_tiff_scene, "JPEG 2000": open_jpeg2000_scene, "NPY": open_npy_scene}
"""What is not read whole."""


def read_in_parts(scene: SceneFiles) -> bool:
    """Whether a window of the scene is read without all the others, and its header without its pixels.

    Raises:
        BrokenImage: it cannot be read.
    """
    with refusals():
        return all(_kind(path) in _IN_PARTS for _, path in scene.files)


def open_scene(scene: SceneFiles, *, nodata: float | None = None, max_pixels: int) -> Scene:
    """Open a scene; whoever does closes it.

    Args:
        nodata: the value of pixels that are not there, where its file does not say it.
        max_pixels: of a file that is read whole.

    Raises:
        BrokenImage: it cannot be used.
        UserError: a package is missing.
    """
    with refusals():
        if scene.files[0][0] is None:
            return _open(scene.files[0][1], nodata, max_pixels)
        if missing := [path.name for _, path in scene.files if not path.exists()]:
            raise BrokenImage(f"a channel of it is missing: there is no file {missing[0]}")
        with ExitStack() as opened:
            bands = {}
            for name, path in scene.files:
                bands[str(name)] = _open(path, nodata, max_pixels)
                opened.callback(bands[str(name)].close)
            whole = stack_scenes(bands)
            opened.pop_all()  # a scene closes them
            return whole


@contextmanager
def refusals() -> Iterator[None]:
    """Whatever is raised inside is a `BrokenImage`, or was a `UserError`."""
    try:
        # numpy and Pillow warn of what is odd in a file: nothing that a reader of a log can mend
        with warnings.catch_warnings(action="ignore"):
            yield
    except (BrokenImage, UserError):
        raise
    except OSError as error:
        raise BrokenImage(f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged files raise ValueError, struct.error, zlib.error, MemoryError and more
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]) from error


def _open(path: Path, nodata: float | None, max_pixels: int) -> Scene:
    reader = _IN_PARTS.get(_kind(path))
    opened = reader(path) if reader else open_whole_scene(path, max_pixels)
    if nodata is None or opened.nodata is not None:
        return opened
    return replace(opened, nodata=nodata, picture=False)


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise BrokenImage("the file is empty")
    return kind_of(head) or ""
