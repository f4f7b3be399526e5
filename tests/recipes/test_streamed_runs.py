"""A run that streams its images from a server: cut up in any way, it is the same run."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TINY, Recipe
from loopback_hub import LoopbackHub


def shards(images: Path) -> dict[str, bytes]:
    """The 44 pictures in 6 parquet files."""
    contents, made = [path.read_bytes() for path in sorted(images.glob("*.png"))], {}
    for number, (start, end) in enumerate(((0, 9), (9, 14), (14, 22), (22, 30), (30, 33), (33, 44))):
        file = io.BytesIO()
        pq.write_table(pa.table({"image": [{"bytes": each, "path": None} for each in contents[start:end]]}), file)
        made[f"train-{number}.parquet"] = file.getvalue()
    return made


@pytest.fixture
def streaming(hub: LoopbackHub, images: Path, tmp_path: Path) -> Recipe:
    hub.write("ada/shards", shards(images), kind="datasets")
    source = f"{hub.url}/datasets/ada/shards/resolve/main/train-{{0..5}}.parquet"
    data = TINY["data"] | {"source": source, "streaming": True, "shards_at_once": 2, "cache": str(tmp_path / "cache")}
    return Recipe("pretrain.py", tmp_path, TINY | {"data": data | {"cache_gb": 0.5}})


def test_a_streamed_run_continues_as_it_would_have_gone_on(
    streaming: Recipe, hub: LoopbackHub, images: Path, tmp_path: Path
) -> None:
    assert "40 images and 4 held out" in streaming.run("whole")
    cut = ("cut", "--data.cache", str(tmp_path / "other"), "--data.workers", "2", "--train.stop_after", "4 steps")
    assert "the same command continues the run" in streaming.run(*cut)
    assert "resumed at step 4" in streaming.run(*cut[:-2])
    streaming.assert_same_run("whole", "cut")

    output = streaming.run("cut", "--data.streaming", "false", expect=2)
    assert "data.streaming: True -> False" in output
    changed = shards(images)["train-3.parquet"].replace(b"IDAT", b"IDAX", 1)  # of the same size
    hub.write("ada/shards", {"train-3.parquet": changed}, kind="datasets")
    output = streaming.run("cut", expect=2)
    assert "the images are not those that this run began with: of 6" in output
    assert "of 6 shards then and 6 now, 1 is new (train-3.parquet (8 rows, tag:" in output


@pytest.mark.slow
def test_a_streamed_run_of_two_processes_is_that_of_one(streaming: Recipe) -> None:
    streaming.run("whole")
    streaming.launch("two", "--train.micro_batch", "8", "--data.workers", "1")
    for a, b in zip(streaming.metrics("whole"), streaming.metrics("two"), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-4)
