import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources import _own_cache, png, write  # noqa: F401 - the first is for every test here too

from swin_mim.data.blue_marble.tiles import TILE, TileSource
from swin_mim.data.sources.base import Source
from swin_mim.data.sources.inventory import explain_change, save_inventory
from swin_mim.data.sources.open import open_source


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(20):
        write(tmp_path / "images" / f"{number:02}.png", number)
    return tmp_path / "images"


def change(images: Path, listing: Path, *, seed: int = 0) -> str:
    return explain_change(listing, open_source(str(images)).split(2, seed)[0])


@pytest.fixture
def listing(images: Path, tmp_path: Path) -> Path:
    """Inventory of the training part: of the whole data set, as one image more changes which ones those are."""
    save_inventory(tmp_path / "images.txt.gz", open_source(str(images)).split(2, 0)[0])
    return tmp_path / "images.txt.gz"


def test_a_data_set_that_is_as_it_was(images: Path, listing: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert change(images, listing, seed=seed) == (
            "its 20 images have the names and sizes they had: others of them are held out, or others chosen"
        )
    save_inventory(tmp_path / "again", open_source(str(images)))
    assert (tmp_path / "again").read_bytes() == listing.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "images", "images.txt.gz"]


def test_what_is_new_gone_or_changed_is_named(images: Path, listing: Path) -> None:
    (images / "03.png").unlink()
    assert change(images, listing) == "of 20 images then and 19 now, 1 is gone (03.png)"
    for number in range(20, 25):
        write(images / f"{number}.png")
    (images / "04.png").write_bytes(b"something else")
    assert change(images, listing) == (
        "of 20 images then and 24 now, 5 are new (20.png, 21.png, 22.png, ...), 1 is gone (03.png), "
        "1 is of another size (04.png)"
    )


def test_files_that_earlier_versions_left_out_are_told_as_such(images: Path, listing: Path) -> None:
    write(images / "a.jfif")
    write(images / "b")
    assert change(images, listing) == (
        "of 20 images then and 22 now, 2 are new (a.jfif, b): earlier versions did not read files of these suffixes, "
        "move them to another folder to go on"
    )
    write(images / "c.png")
    assert change(images, listing) == "of 20 images then and 23 now, 3 are new (a.jfif, b, c.png)"


def test_names_of_any_bytes(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a b\n\udce9.png")
    save_inventory(tmp_path / "listing", open_source(str(tmp_path / "images")))
    (tmp_path / "images" / "a b\n\udce9.png").rename(tmp_path / "images" / "c.png")
    assert explain_change(tmp_path / "listing", open_source(str(tmp_path / "images"))) == (
        "of 1 image then and 1 now, 1 is new (c.png), 1 is gone (a b\\n\\xe9.png)"
    )


def test_rows_of_a_table(tmp_path: Path) -> None:
    def table(*cells: bytes | None) -> Source:
        pq.write_table(pa.table({"image": pa.array(cells, pa.binary())}), tmp_path / "table" / "x.parquet")
        return open_source(str(tmp_path / "table"))

    (tmp_path / "table").mkdir()
    save_inventory(tmp_path / "listing", table(png(0), png(1), None))
    assert explain_change(tmp_path / "listing", table(png(0), b"", None, png(3))) == (
        "of 3 images then and 4 now, 1 is new (row 3), 1 is of another size (row 1)"
    )


def test_tiles_of_blue_marble(tmp_path: Path) -> None:
    corners = np.array([[300, 0], [600, 900]])
    save_inventory(tmp_path / "listing", TileSource("training", corners))
    assert explain_change(tmp_path / "listing", TileSource("training", corners[:1], side=TILE // 2)) == (
        "of 2 images then and 1 now, 1 is gone (Blue Marble tile with corner at 50.0 N, -120.0 E), "
        "1 is of another size (Blue Marble tile with corner at 70.0 N, -180.0 E)"
    )


def test_a_damaged_listing(images: Path, listing: Path) -> None:
    whole = listing.read_bytes()
    for damaged in (b"no listing", b"", whole[:-9], whole[:30] + b"\0\0" + whole[32:], gzip.compress(b"no size\n")):
        listing.write_bytes(damaged)
        with pytest.raises(OSError, match=r"images\.txt\.gz|gzip"):
            change(images, listing)
