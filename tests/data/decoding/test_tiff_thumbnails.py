"""Pages of slides that are no channels: what scanners write beside them without a mark."""

import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.tiff_files import open_tiff, pictures_beside
from swin_mim.data.scenes.tiff import open_tiff_scene

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

CHANNELS = np.random.default_rng(0).integers(0, 255, (3, 64, 48), dtype=np.uint8)


def _slide(second: np.ndarray, photometric: str) -> bytes:
    """Three channels, a page of another size without a mark, then reduced pages, as QPTIFF has them."""
    out = BytesIO()
    with tifffile.TiffWriter(out) as file:
        for channel in CHANNELS:
            file.write(channel, photometric="minisblack", metadata=None)
        file.write(second, photometric=photometric, metadata=None)
        for channel in CHANNELS:
            file.write(channel[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
    return out.getvalue()


def test_a_smaller_colour_page_is_left_out_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swin_mim.data.decoding.tiff_files._said", [])
    data = _slide(np.zeros((20, 15, 3), np.uint8), "rgb")
    (tmp_path / "slide.tif").write_bytes(data)
    with caplog.at_level(logging.WARNING, "swin_mim"):
        for _ in range(2):
            opened = open_tiff(data)
            assert np.array_equal(opened.read([0, 1, 2]), np.moveaxis(CHANNELS, 0, 2))
            assert len(opened.names) == 3
        for other in (np.zeros((30, 9, 3), np.uint8), np.zeros((20, 15), np.uint16)):  # slides differ in size
            beside = open_tiff(_slide(other, "rgb" if other.ndim == 3 else "minisblack"))
            assert np.array_equal(beside.read([0, 1, 2]), np.moveaxis(CHANNELS, 0, 2))
        scene = open_tiff_scene(tmp_path / "slide.tif")
    assert scene.size == (64, 48)
    assert len(scene.channels) == 3
    scene.close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].endswith("the first is page 4, (20, 15, 3) of uint8, and page 1 is (64, 48) of uint8")
    assert pictures_beside(data) == 1


@pytest.mark.parametrize(
    ("page", "photometric"),
    [
        (np.zeros((32, 24), np.uint8), "minisblack"),
        (np.zeros((64, 48, 3), np.uint8), "rgb"),
        (np.zeros((64, 48), np.uint16), "minisblack"),
        (np.zeros((80, 60, 3), np.uint8), "rgb"),
        (np.zeros((80, 12, 3), np.uint8), "rgb"),
    ],
    ids=["grey of lower resolution", "colour of the same size", "other numbers", "larger", "larger on one side"],
)
def test_a_page_that_may_be_a_channel_is_refused(page: np.ndarray, photometric: str, tmp_path: Path) -> None:
    data = _slide(page, photometric)
    (tmp_path / "slide.tif").write_bytes(data)
    with pytest.raises(BrokenImage, match=r"page 1 is \(64, 48\) of uint8 and page 4 \(.*NewSubfileType"):
        open_tiff(data)
    with pytest.raises(BrokenImage, match=r"page 1 is \(64, 48\) of uint8 and page 4 \(.*NewSubfileType"):
        open_tiff_scene(tmp_path / "slide.tif")
