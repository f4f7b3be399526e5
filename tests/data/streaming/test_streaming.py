"""Shards through a cache: the same samples however a run is cut up, whatever the server does, or one clear line."""

import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from loopback_hub import LoopbackHub
from PIL import Image

from swin_mim.data.decoding.raster import ChannelSpec
from swin_mim.data.decoding.rgb import BrokenImage, decode_image
from swin_mim.data.loading import loader
from swin_mim.data.loading.loader import Batch, LoaderOptions, TrainingLoader, heldout_batches
from swin_mim.data.sampling import sample_generator
from swin_mim.data.sources.base import StreamStatus
from swin_mim.data.sources.inventory import explain_change, save_inventory
from swin_mim.data.streaming import storage
from swin_mim.data.streaming.cache import ShardCache
from swin_mim.data.streaming.source import CacheOptions, StreamedSource, open_streamed
from swin_mim.data.transforms.crops import EvaluationTransform, PretrainTransform
from swin_mim.errors import CANNOT_WRITE, MISTAKE, STOPPED, UNAVAILABLE, UserError
from swin_mim.redaction import public_url

CROP, CENTRE = PretrainTransform((8, 8)), EvaluationTransform((8, 8))
SIZES = (7, 12, 5, 9, 1, 8, 11)
"""Rows of the shards: 53 in all, which is no multiple of anything."""


def picture(number: int, salt: int = 0) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng([number, salt]).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(number) for number in range(sum(SIZES))]
STARTS = np.cumsum([0, *SIZES])


def parquet(images: list[bytes | None], **options: Any) -> bytes:
    file = io.BytesIO()
    cells = [{"bytes": image, "path": "x.png"} for image in images]
    plain = {"use_dictionary": False, "write_statistics": False, "row_group_size": 4}
    pq.write_table(pa.table({"image": cells, "n": list(range(len(images)))}), file, **plain | options)
    return file.getvalue()


def tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def samples_of(images: list[bytes]) -> list[tuple[str, bytes]]:
    members = ([(f"a/{i:03}.json", b"{}"), (f"a/{i:03}.png", image)] for i, image in enumerate(images))
    return [member for both in members for member in both]


def files(kind: str = "parquet", pictures: list[bytes] = PICTURES) -> dict[str, bytes]:
    parts = [pictures[start:end] for start, end in pairwise(STARTS)]
    made = [parquet(part) if kind == "parquet" else tar(samples_of(part)) for part in parts]
    return {f"train-{number:02}.{kind}": content for number, content in enumerate(made)}


PARQUET, TARS = files("parquet"), files("tar")
CHANGED = PARQUET["train-06.parquet"].replace(PICTURES[-1][200:220], bytes(20))
"""The last shard, of the same size, with another picture in it."""
SERVER = str(Path(__file__).parents[2] / "loopback_hub.py")
LARGEST = max(map(len, PARQUET.values()))


def write(folder: Path, shards: dict[str, bytes]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(storage, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(storage, "PATIENCE", 20.0)
    monkeypatch.setattr(loader, "AHEAD", 0)  # a step is more than a shard here


@pytest.fixture
def served(hub: LoopbackHub) -> str:
    """Address of parquet shards on a web server."""
    hub.write(f"{hub.user}/tiles", PARQUET, kind="datasets")
    return address(hub, "train-{00..06}.parquet")


def address(hub: LoopbackHub, file: str, revision: str = "main") -> str:
    return f"{hub.url}/datasets/{hub.user}/tiles/resolve/{revision}/{file}"


def opened(spec: str, cache: Path, cache_gb: float = 0.01, **settings: Any) -> StreamedSource:
    return open_streamed(spec, cache=CacheOptions(str(cache), cache_gb), **{"shards_at_once": 2} | settings)


def stream(source: Any, *, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0) -> Iterator[Batch]:
    micro, options = 6 if world == 2 else 4, LoaderOptions(rank, world, workers)
    return TrainingLoader(source, CROP, seed=3, global_batch=12, micro_batch=micro, options=options).batches(start)


def take(source: Any, steps: int, world: int = 1, **settings: Any) -> list[Batch]:
    """The micro batches of `steps` global batches of 12 images."""
    return list(islice(stream(source, world=world, **settings), steps * (3 if world == 1 else 1)))


def by_position(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {batch.start + i: image for batch in batches for i, image in enumerate(batch.images)}


def assert_as_defined(source: StreamedSource, batches: list[Batch], pictures: list[bytes] = PICTURES) -> None:
    """Every sample is the crop of the image that `ShardOrder` puts at its position."""
    order = source.order(3)
    for position, image in by_position(batches).items():
        whole = decode_image(pictures[order.index(position)])
        assert torch.equal(image, CROP(whole, sample_generator(3, position))), position


# what it is


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_folder_of_shards(tmp_path: Path, kind: str) -> None:
    source = opened(write(tmp_path / "shards", files(kind)), tmp_path / "cache")
    assert (len(source), source.sizes) == (53, list(SIZES))
    assert [source.content(index) for index in range(53)] == PICTURES
    assert source.image(3).size == (14, 12)
    assert (source.name(0), source.name(8)) == (f"train-00.{kind} row 0", f"train-01.{kind} row 1")
    assert re.fullmatch(rf"train-01.{kind} \(12 rows, [0-9a-f]{{23}}\)", [name for name, _ in source.inventory()][1])
    assert_as_defined(source, take(source, 10))


def test_rows_are_read_wherever_the_library_writes_them(tmp_path: Path) -> None:
    """Dictionaries, compressed pages, plain binary columns, empty cells, images that come again and again."""
    folder = tmp_path / "shards"
    write(folder, {"a.parquet": parquet([PICTURES[0]] * 40 + [None, b""], compression="zstd", use_dictionary=True)})
    source = opened(str(folder), tmp_path / "cache")
    assert {source.content(index) for index in range(40)} == {PICTURES[0]}
    for index in (40, 41):
        with pytest.raises(BrokenImage, match="no image"):
            source.content(index)
    plain = pa.table({"jpg": PICTURES[:5], "mask": PICTURES[5:10]})
    pq.write_table(plain, folder / "a.parquet", use_dictionary=False, data_page_size=64)
    assert opened(str(folder), tmp_path / "cache").content(2) == PICTURES[2]
    assert opened(str(folder), tmp_path / "cache", column="mask").content(2) == PICTURES[7]


# the order


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_workers_and_resumes_change_nothing(tmp_path: Path, served: str, world: int, workers: int) -> None:
    for start in (24,) if workers else (0, 24, 60):  # in the middle of a group, of an epoch
        source = opened(served, tmp_path / f"cache {world}{workers}", cache_gb=4.2 * LARGEST * 2 / 1e9)
        parts = [
            batch for rank in range(world) for batch in take(source, 5, world, start=start, rank=rank, workers=workers)
        ]
        assert sorted(by_position(parts)) == list(range(start, start + 60))
        assert_as_defined(source, parts)


def test_the_cache_stays_within_its_bound(tmp_path: Path, served: str) -> None:
    limit = 3 * LARGEST + 1000  # two groups of one, and one on its way
    source = opened(served, tmp_path, cache_gb=limit / 1e9, shards_at_once=1)
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.is_set():
            most.append(source.cache.used())
            time.sleep(0.0005)

    looking = threading.Thread(target=look)
    looking.start()
    batches = take(source, 15, workers=2)
    over.set()
    looking.join()
    assert_as_defined(source, batches)
    assert 2 * LARGEST < max(most) <= limit < sum(map(len, PARQUET.values()))
    assert not source.roomy


def test_processes_share_a_cache_and_bring_each_shard_once(tmp_path: Path, hub: LoopbackHub, served: str) -> None:
    source = opened(served, tmp_path)
    context, before = multiprocessing.get_context("fork"), len(hub.requests)
    readers = [context.Process(target=take, args=(source, 5)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    # a block of each shard, and whether it is still the same
    assert len(hub.requests) - before == 2 * len(SIZES)
    assert_as_defined(source, take(opened(served, tmp_path), 5))
    assert len(list(tmp_path.glob("*.images"))) == len(SIZES)


def test_the_next_shards_are_brought_while_these_are_read(tmp_path: Path, served: str) -> None:
    source = opened(served, tmp_path)
    order, batches = source.order(3), stream(source)
    next(batches)
    wanted = {*order.group(0).shards.tolist(), *order.group(order.group(0).end).shards.tolist()}
    deadline = time.monotonic() + 10
    while len(list(tmp_path.glob("*.images"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    there = {path.stem for path in tmp_path.glob("*.images")}
    assert there == {source._shards[shard].key for shard in wanted}
    batches.close()  # type: ignore[attr-defined]


# held out, broken


def test_few_shards_are_held_out_of(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "shards", PARQUET), tmp_path / "cache")
    training, heldout = source.split(4, seed=0)
    assert (len(training), len(heldout)) == (49, 4)
    names = [part.name(index) for part in (training, heldout) for index in range(len(part))]
    assert sorted(names) == sorted(source.name(index) for index in range(53))
    assert len({name.split()[0] for name in names[49:]}) == 2
    again = [source.split(4, seed)[1] for seed in (0, 1)]
    assert [part.fingerprint == heldout.fingerprint for part in again] == [True, False]
    assert len({source.fingerprint, training.fingerprint, heldout.fingerprint}) == 3
    every = [opened(str(tmp_path / "shards"), tmp_path / "cache", shards_at_once=1).split(5, s) for s in range(9)]
    assert {len(part) for _, part in every} == {5}  # also where the first shard has one row
    pictures = [PICTURES[int(STARTS[int(name[6:8])]) + int(name.split()[-1])] for name in names[:49]]
    assert_as_defined(training, take(training, 9), pictures)
    batches = heldout_batches(heldout, CENTRE, 3, LoaderOptions(workers=2))
    images = torch.cat([batch.images for batch in batches])
    assert torch.equal(images, torch.stack([CENTRE(heldout.image(index)) for index in range(4)]))
    assert len(source.split(0, seed=0)[1]) == 0


def test_a_broken_image_is_replaced_by_one_of_its_shard(tmp_path: Path) -> None:
    damaged = {8, 9, 13, 30}
    pictures = [b"no picture" if number in damaged else image for number, image in enumerate(PICTURES)]
    write(tmp_path / "shards", files(pictures=pictures))
    runs = []
    for world in (1, 3):
        source = opened(str(tmp_path / "shards"), tmp_path / "cache")
        runs.append([batch for rank in range(world) for batch in take(source, 5, world, rank=rank)])
    one, other = map(by_position, runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[position], other[position]) for position in one)
    order, shard_of = source.order(3), np.repeat(np.arange(len(SIZES)), SIZES)
    replaced = 0
    for batch in runs[0]:
        for i, index in enumerate(batch.indices.tolist()):
            drawn = order.index(batch.start + i)
            assert (index == drawn) == (drawn not in damaged)
            assert shard_of[index] == shard_of[drawn]
            replaced += index != drawn
        assert all(entry.reason.startswith("not a readable JPEG, PNG, ") for entry in batch.broken)
    assert replaced > 3


# the server


@contextmanager
def other_process(port: int, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own, that can be killed."""
    server = subprocess.Popen([sys.executable, SERVER, str(port), str(folder)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline().startswith("HF_ENDPOINT")
        yield server
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_killed_and_comes_back_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "served" / "ada" / "tiles", PARQUET)
    port = free_port()
    spec = f"http://127.0.0.1:{port}/datasets/ada/tiles/resolve/main/train-{{00..06}}.parquet"
    with other_process(port, tmp_path / "served") as server:
        source = opened(spec, tmp_path / "cache", shards_at_once=1)
        batches = stream(source, workers=2)
        taken = list(islice(batches, 2))
        server.kill()
        server.wait()
        back = threading.Timer(
            0.5, lambda: again.append(other_process(port, tmp_path / "served")) or again[0].__enter__()
        )
        again: list[Any] = []
        back.start()
        taken += list(islice(batches, 20))
        batches.close()  # type: ignore[attr-defined]
        back.join()
        again[0].__exit__(None, None, None)
    assert [batch.start for batch in taken] == list(range(0, 88, 4))
    assert_as_defined(source, taken)
    assert [record.getMessage() for record in caplog.records if "cannot be read for now" in record.getMessage()]


@pytest.mark.slow
def test_many_shards_through_many_restarts(tmp_path: Path) -> None:
    """300 shards in a cache of 13, three ranks with two workers each, a server that is killed eight times."""
    pictures = [picture(number, salt=2) for number in range(2400)]
    shards = {f"s-{number:03}.parquet": parquet(pictures[8 * number : 8 * number + 8]) for number in range(300)}
    write(tmp_path / "served" / "ada" / "many", shards)
    port, over = free_port(), threading.Event()
    largest = max(map(len, shards.values()))

    def restart() -> None:
        for number in range(9):
            with other_process(port, tmp_path / "served"):
                ready.set()
                if over.wait(2 + 0.3 * number if number < 8 else None):  # the last one stays
                    return
            over.wait(0.2)

    def read(rank: int) -> None:
        source = opened(spec, tmp_path / "cache", cache_gb=13 * largest / 1e9, shards_at_once=4)
        for batch in take(source, 220, 3, rank=rank, workers=2):
            assert_as_defined(source, [batch], pictures)
            assert source.cache.used() <= 13 * largest

    ready = threading.Event()
    spec = f"http://127.0.0.1:{port}/datasets/ada/many/resolve/main/s-{{000..299}}.parquet"
    restarting = threading.Thread(target=restart)
    restarting.start()
    ready.wait()
    readers = [multiprocessing.get_context("fork").Process(target=read, args=(rank,)) for rank in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    over.set()
    restarting.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_stays_away_is_one_line(
    tmp_path: Path, hub: LoopbackHub, served: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.3)
    source = opened(served, tmp_path, shards_at_once=1)
    hub.down = True
    with pytest.raises(
        UserError, match=r"^http://.*\.parquet could not be read for \d s: .*: the same command"
    ) as error:
        take(source, 1, workers=workers)
    assert (error.value.code, error.value.local) == (UNAVAILABLE, True)
    assert "\n" not in str(error.value)
    hub.down = False
    batches = stream(source, workers=workers)
    first = next(batches)
    hub.down = True
    taken = [first]
    with pytest.raises(UserError, match="could not be read for"):
        taken.extend(batches)
    order = source.order(3)
    assert len(taken) >= order.group(0).end // 4  # all that was there
    assert_as_defined(source, taken)
    assert not multiprocessing.active_children()
    with pytest.raises(UserError, match="could not be read for"):
        opened(served, tmp_path)


END = """
import sys, test_streaming
from pathlib import Path
from loopback_hub import LoopbackHub

hub = LoopbackHub().__enter__()
hub.write("ada/tiles", test_streaming.PARQUET, kind="datasets")
spec = f"{hub.url}/datasets/ada/tiles/resolve/main/train-{{00..06}}.parquet"
source = test_streaming.opened(spec, Path(sys.argv[1]), shards_at_once=1)
order = source.order(3)
source.ensure(order.index(position) for position in range(44))  # what is given out before the first batch is there
hub.down = True
batches = test_streaming.stream(source, workers=1)
next(batches)
raise KeyError("mine")
"""


@pytest.mark.slow
def test_an_error_ends_a_process_that_waits_for_a_shard(tmp_path: Path) -> None:
    paths = ":".join([str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-W", "ignore", "-c", END, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the next shards cannot be brought ahead of their time" in done.stderr
    assert "KeyError: 'mine'" in done.stderr


def test_what_does_not_pass_is_not_waited_for(tmp_path: Path, hub: LoopbackHub, served: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"train-07\.parquet cannot be read: HTTPError: HTTP Error 404: .*: check data"):
        opened(address(hub, "train-{06..07}.parquet"), tmp_path)
    with pytest.raises(UserError, match=r"cannot be read: HTTPError: HTTP Error 401: .*: log in"):
        opened(served.replace(hub.user, "nobody"), tmp_path)
    source = opened(served, tmp_path)
    del hub.repos["datasets", f"{hub.user}/tiles"]
    with pytest.raises(UserError, match="cannot be read: HTTPError"):
        take(source, 1)
    with pytest.raises(UserError, match=r"no_such_host\.invalid/a\.parquet cannot be read"):
        opened("https://no_such_host.invalid/a.parquet?secret", tmp_path)
    assert time.monotonic() - began < 5


def test_a_failure_in_a_worker_is_one_line(
    tmp_path: Path, hub: LoopbackHub, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.3)
    source = opened(served, tmp_path)
    training, _ = source.split(0, 0)
    take(training, 5)  # all is here
    monkeypatch.setattr(StreamedSource, "ensure", lambda *_: None)  # and goes after the training process looked
    for path in tmp_path.glob("*.images"):
        path.unlink()
    assert_as_defined(training, take(training, 1, workers=1))  # a worker brings it
    for path in tmp_path.glob("*.images"):
        path.unlink()
    hub.down = True
    with pytest.raises(UserError, match=r"^http://.* could not be read for") as error:
        take(training, 1, workers=1)
    assert (error.value.code, "\n" in str(error.value)) == (UNAVAILABLE, False)


# changes


def test_a_shard_that_changes_while_it_is_used_stops_the_run(tmp_path: Path, hub: LoopbackHub, served: str) -> None:
    source = opened(served, tmp_path, shards_at_once=1)
    batches = stream(source)
    taken = [next(batches)]
    changed = files(pictures=[picture(number, salt=1) for number in range(53)])
    hub.write(f"{hub.user}/tiles", changed, kind="datasets")
    pattern = r"^http://.*train-0\d\.parquet has changed: it had \d+ bytes, tag:\"\w+\", and has now \d+ bytes, tag:"
    with pytest.raises(UserError, match=pattern) as error:
        taken.extend(batches)
    assert (error.value.code, "\n" in str(error.value)) == (MISTAKE, False)
    assert_as_defined(source, taken)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob("*.new"))


def test_a_local_shard_that_changes_stops_the_run(tmp_path: Path) -> None:
    folder = Path(write(tmp_path / "shards", PARQUET))
    source = opened(str(folder), tmp_path / "cache")
    assert source.content(0) == PICTURES[0]
    (folder / "train-00.parquet").write_bytes(PARQUET["train-01.parquet"])
    assert source.content(1) == PICTURES[1]  # it was there before
    (folder / "train-02.parquet").write_bytes(PARQUET["train-01.parquet"])
    with pytest.raises(UserError, match=r"train-02\.parquet has changed: it had"):
        source.content(int(STARTS[2]))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="has changed"):
        source.content(0)


def test_a_fingerprint_follows_content_and_not_the_place(tmp_path: Path, hub: LoopbackHub, served: str) -> None:
    source = opened(served, tmp_path / "cache")
    hub.write(f"{hub.user}/tiles", {"README.md": b"new"}, kind="datasets")  # a commit that leaves the shards alone
    before = len(hub.requests)
    assert opened(served, tmp_path / "cache").fingerprint == source.fingerprint
    assert len(hub.requests) - before == len(SIZES) + 1  # what was counted was kept
    elsewhere = [opened(write(tmp_path / name, PARQUET), tmp_path / "cache").fingerprint for name in "ab"]
    assert elsewhere[0] == elsewhere[1] != source.fingerprint  # nobody knows a digest of local files
    hub.write(f"{hub.user}/tiles", {"train-06.parquet": CHANGED}, kind="datasets")
    assert opened(served, tmp_path / "cache").fingerprint != source.fingerprint
    save_inventory(tmp_path / "images.gz", opened(str(tmp_path / "a"), tmp_path / "cache"))
    one_less = PARQUET | {"train-03.parquet": parquet(PICTURES[28:36])}
    other = opened(write(tmp_path / "a", one_less), tmp_path / "cache")
    assert other.fingerprint != elsewhere[0]
    change = re.sub(r", [0-9a-f]{23}", "", explain_change(tmp_path / "images.gz", other))
    assert change == (
        "of 7 shards then and 7 now, 1 is new (train-03.parquet (8 rows)), 1 is gone (train-03.parquet (9 rows))"
    )
    turned = TARS["train-06.tar"].replace(PICTURES[-1], bytes(len(PICTURES[-1])))  # the size stays
    tars = [
        opened(write(tmp_path / name, TARS | {"train-06.tar": last}), tmp_path / "cache")
        for name, last in (("c", TARS["train-06.tar"]), ("d", turned))
    ]
    assert tars[0].fingerprint != tars[1].fingerprint


# the disk


def test_what_a_disk_did_to_a_cached_shard_is_brought_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = opened(write(tmp_path / "shards", PARQUET), tmp_path / "cache")
    source.content(0)
    (path,) = (tmp_path / "cache").glob("*.images")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[10] ^= 1
    for damage in (whole[:-1], b"", bytes(flipped), bytes(len(whole)), whole[:-108] + b"\xff" * 64 + whole[-44:]):
        path.write_bytes(damage)
        caplog.clear()
        assert source.content(0) == PICTURES[0]
        assert path.read_bytes() == whole
        assert ["train-00.parquet: " in record.message for record in caplog.records] == [True]
    path.unlink()
    assert source.content(0) == PICTURES[0]


def _begin_and_die(source: StreamedSource) -> None:
    with source.cache._alone():
        (source.cache.folder / f"{0:040x}.part").write_bytes(bytes(5000))
        (source.cache.folder / f"{0:040x}.new").write_bytes(bytes(5000))
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "shards", PARQUET), tmp_path / "cache")
    killed = multiprocessing.get_context("fork").Process(target=_begin_and_die, args=(source,))
    killed.start()
    killed.join()
    assert len(list((tmp_path / "cache").glob(f"{0:040x}.*"))) == 2
    assert source.content(0) == PICTURES[0]
    assert not list((tmp_path / "cache").glob(f"{0:040x}.*"))


@pytest.mark.parametrize("remote", [False, True])
def test_a_full_disk_is_one_line(tmp_path: Path, served: str, remote: bool) -> None:
    source = opened(served if remote else write(tmp_path / "shards", PARQUET), tmp_path / "cache")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # of files; the kernel says it as of a quota
    try:
        with pytest.raises(
            UserError, match=r"cannot write the cache of shards .*: lower data.cache_gb or make"
        ) as error:
            source.content(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.code == CANNOT_WRITE
    assert source.content(0) == PICTURES[0]


# rows of tars


def test_tars_elsewhere_are_counted_once_or_not_at_all(
    tmp_path: Path, hub: LoopbackHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.write(f"{hub.user}/tiles", TARS, kind="datasets")
    spec = address(hub, "train-{00..06}.tar")
    source = opened(spec, tmp_path / "cache")
    assert source.sizes == list(SIZES)
    assert "counting the rows of 7 tars by reading all of their" in caplog.text
    assert_as_defined(source, take(source, 2))
    with (tmp_path / "cache" / "rows.jsonl").open("a") as counted:
        counted.write('{"key": "cut o')
    caplog.clear()
    assert opened(spec, tmp_path / "cache").sizes == list(SIZES)
    assert opened(write(tmp_path / "here", TARS), tmp_path / "cache").sizes == list(SIZES)  # counted behind that line
    given = {f"train-{number:02}.tar": size for number, size in enumerate(SIZES)}
    hub.write(f"{hub.user}/tiles", {"sizes.json": json.dumps(given).encode()}, kind="datasets")
    assert opened(spec, tmp_path / "other").sizes == list(SIZES)
    assert not caplog.records
    hub.write(f"{hub.user}/tiles", {"sizes.json": json.dumps(given | {"train-00.tar": 9}).encode()}, kind="datasets")
    wrong = opened(spec, tmp_path / "third")
    with pytest.raises(
        UserError, match=r"^shard train-00.tar has 7 rows, and 9 were counted, or stand in the sizes.json"
    ):
        wrong.content(0)
    hub.write(f"{hub.user}/tiles", {"sizes.json": b"[1]"}, kind="datasets")
    with pytest.raises(UserError, match=r"sizes.json is no table of shards and their rows"):
        opened(spec, tmp_path / "fourth")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-01.tar", lambda whole: whole[: len(whole) // 2]),
        ("train-01.tar", lambda whole: whole[:5120] + b"x" * 512 + whole[5632:]),
        ("train-01.parquet", lambda whole: whole[:4] + b"\xff" * 20 + whole[24:]),
        ("train-01.parquet", lambda whole: whole[:-9]),
        ("train-00.parquet", lambda whole: b"PAR1"),
    ],
)
def test_a_damaged_shard_is_one_line(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    shards = dict(TARS if name.endswith("tar") else PARQUET)
    shards[name] = damage(shards[name])
    with pytest.raises(UserError, match=name) as error:
        take(opened(write(tmp_path / "shards", shards), tmp_path / "cache"), 5)
    assert "\n" not in str(error.value)


# what is refused


@pytest.mark.parametrize(
    ("shards", "settings", "message"),
    [
        ({"a.csv": b"x"}, {}, r"has 1 \.csv: what is streamed must be all"),
        (PARQUET | {"x.tar": TARS["train-00.tar"]}, {}, r"holds 7 \.parquet and 1 \.tar files: name those"),
        ({"a.parquet": b"x"}, {}, r"a\.parquet cannot be read \(ArrowInvalid"),
        (PARQUET | {"train-01.parquet": b""}, {}, "train-01.parquet is empty"),
        (PARQUET, {"split": "test"}, r"data\.split 'test' is not in .*: its splits are train"),
        (PARQUET, {"column": "nope"}, r"data\.column 'nope' is not in"),
        (PARQUET, {"column": "n"}, r"data\.column 'n' .*holds no images"),
        (
            PARQUET,
            {"cache_gb": 3 * LARGEST / 1e9},
            r"data\.cache_gb \S+ does not hold twice the data\.shards_at_once 2",
        ),
    ],
)
def test_what_cannot_be_streamed_is_one_line(
    tmp_path: Path, shards: dict[str, bytes], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        opened(write(tmp_path / "shards", shards), tmp_path / "cache", **settings)
    assert "\n" not in str(error.value)


def test_the_size_that_is_proposed_will_do(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", PARQUET)
    with pytest.raises(UserError, match="or more") as error:
        opened(folder, tmp_path / "cache", cache_gb=1e-6)
    assert len(opened(folder, tmp_path / "cache", cache_gb=float(str(error.value).split("use ")[1].split()[0]))) == 53


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./missing", "does not exist"),
        ("/a/b/*.parquet", "names no file"),
        ("http://127.0.0.1/*.parquet", "a web server cannot be asked"),
        ("nosuch://bucket/*.parquet", "nosuch:// cannot be opened"),
        ("nobody/nothing", r"'nobody/nothing' cannot be listed"),
    ],
)
def test_specs_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as error:
        opened(spec, tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_patterns_and_other_file_systems(tmp_path: Path) -> None:
    import fsspec

    folder = write(tmp_path / "shards", PARQUET)
    assert len(opened(f"{folder}/train-0[12].parquet", tmp_path / "cache")) == 17
    assert len(opened(f"{folder}/train-{{01,02}}.parquet", tmp_path / "cache")) == 17
    assert len(opened(f"file://{folder}/train-01.parquet", tmp_path / "cache")) == 12
    memory = fsspec.filesystem("memory")
    for name, content in PARQUET.items():
        memory.pipe_file(f"/bucket/{name}", content)
    source = opened("memory://bucket/*.parquet", tmp_path / "cache")
    assert_as_defined(source, take(source, 5))
    assert list(storage.expand("a-{08..11}-{x,y}.tar"))[::3] == ["a-08-x.tar", "a-09-y.tar", "a-11-x.tar"]
    assert public_url("https://me:secret@host/a.tar?X-Signature=1") == "https://host/a.tar"


def test_the_default_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    source = open_streamed(write(tmp_path / "shards", PARQUET), cache=CacheOptions(max_gb=0.01))
    assert source.cache.folder == tmp_path / "mine" / "swin_mim" / "shards"


def test_shards_of_images_of_any_channels(tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 30_000, (12, 40, 48, 4), dtype=np.uint16)
    tiles[:, :9] = 0

    def npy(tile: np.ndarray) -> bytes:
        np.save(buffer := io.BytesIO(), tile)
        return buffer.getvalue()

    shards = {f"{n}.parquet": parquet([npy(tile) for tile in tiles[3 * n : 3 * n + 3]]) for n in range(4)}
    write(tmp_path / "shards", shards)
    source = opened(str(tmp_path / "shards"), tmp_path / "cache", bands=ChannelSpec(2, ("4", "1"), nodata=0))
    assert source.channels == ("4", "1")
    training, heldout = source.split(1, seed=0)
    assert (len(training), len(heldout), training.channels) == (11, 1, ("4", "1"))
    for index in range(12):
        image = source.image(index)
        assert np.array_equal(image.values[9:], tiles[index, 9:][..., [3, 0]])
        assert not image.valid[:9].any()
    batch = take(training, 1)[0]
    assert batch.images.dtype == torch.float32
    assert batch.images.shape[1] == 2
    assert not batch.valid.all()
    with pytest.raises(UserError, match="it has no channel '5'"):
        opened(str(tmp_path / "shards"), tmp_path / "cache", bands=ChannelSpec(1, ("5",)))


def test_files_of_others_stay_in_a_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    theirs = ["movie.mkv.part", "thesis.new", "holiday.images", "notes.txt"]
    write(cache, dict.fromkeys(theirs, bytes(100_000)))
    source = opened(write(tmp_path / "shards", PARQUET), cache, cache_gb=5 * LARGEST / 1e9)
    take(source, 5)
    assert all((cache / name).stat().st_size == 100_000 for name in theirs)


def test_shards_that_are_too_large_unpacked_are_one_line(tmp_path: Path) -> None:
    flat = [bytes(20_000)] * 100
    write(tmp_path / "shards", {f"{n}.parquet": parquet(flat, compression="zstd") for n in range(3)})
    with pytest.raises(UserError, match=r"does not hold a single shard, which has \S+ GB when it is unpacked: use"):
        take(opened(str(tmp_path / "shards"), tmp_path / "cache", cache_gb=0.0005, shards_at_once=1), 1)


def test_a_failure_is_known_while_there_are_images_for_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "AHEAD", 2)
    folder = write(tmp_path / "shards", PARQUET)
    source, status = opened(folder, tmp_path / "cache"), StreamStatus()
    last = source.order(3).group(40).shards[0]
    batches = TrainingLoader(source, CROP, seed=3, global_batch=12, micro_batch=4, stream=status).batches(0)
    (Path(folder) / f"train-{last:02}.parquet").unlink()
    known = []
    with pytest.raises(UserError, match="cannot be read"):
        known.extend(status.failure is not None for _ in batches)
    assert sum(known) == 6, "two steps of three micro batches"


def _keep_lock(cache: Path, ready: Any) -> None:
    with ShardCache(cache, 1)._alone():
        ready.set()
        time.sleep(60)


def test_nobody_waits_for_a_shard_once_a_stop_was_asked_for(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "shards", PARQUET), tmp_path / "cache")
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_keep_lock, args=(tmp_path / "cache", ready), daemon=True)
    other.start()
    ready.wait()
    began = time.monotonic()
    status = StreamStatus(stopped=lambda: time.monotonic() > began + 0.3)
    batches = TrainingLoader(source, CROP, seed=3, global_batch=4, micro_batch=4, stream=status).batches(0)
    try:
        with pytest.raises(UserError, match="stopped while images were still being brought") as error:
            next(batches)
    finally:
        other.kill()
        other.join()
    assert error.value.code == STOPPED
    assert time.monotonic() - began < 20


class WrongRange(BaseHTTPRequestHandler):
    """Says truly which bytes it sends, and sends other ones than it was asked for, once."""

    content, lied = PARQUET["train-00.parquet"], False

    def do_GET(self) -> None:
        start, end = map(int, re.findall(r"\d+", self.headers["Range"]))
        if end > 0 and not type(self).lied:
            type(self).lied = True
            start += 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(self.content)}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(self.content[start : end + 1])

    def log_message(self, *_: Any) -> None: ...


def test_bytes_of_another_range_are_not_taken(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), WrongRange)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = opened(f"http://127.0.0.1:{server.server_port}/train-00.parquet", tmp_path / "cache")
    server.shutdown()
    server.server_close()
    assert WrongRange.lied
    assert len(source) == SIZES[0]
