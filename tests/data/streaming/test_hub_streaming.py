"""Shards of a data set on the Hub, by the true clients, from a server in a process of its own that is killed."""

import subprocess
import sys
from pathlib import Path

import test_streaming
from loopback_hub import LoopbackHub

CODE = """
import atexit, subprocess, sys, time
from itertools import islice
from pathlib import Path
import test_streaming
from swin_mim.data.streaming import storage as stores
from swin_mim.data.streaming.source import CacheOptions, open_streamed
from swin_mim.errors import UserError

port, root = sys.argv[1], Path(sys.argv[2])
stores.FIRST_WAIT, stores.LONGEST_WAIT, stores.PATIENCE = 0.01, 0.05, 20.0
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.02))  # the client of the Hub waits by itself, for half a minute

def serve():
    command = [sys.executable, test_streaming.SERVER, port, str(root / "served")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    assert server.stdout.readline().startswith("HF_ENDPOINT")
    return server

def end(server):
    server.kill()
    server.wait()

def opened(spec, **settings):
    return open_streamed(spec, cache=CacheOptions(str(root / "cache"), 0.01), **{"shards_at_once": 1} | settings)

def refused(spec, **settings):
    try:
        source = opened(spec, **settings)
        source.content(len(source) - 1)
    except UserError as error:
        print("refused:", error)

tiles = root / "served" / "ada" / "tiles"
test_streaming.write(tiles / "data", test_streaming.PARQUET)
(tiles / "data" / "test-00.parquet").write_bytes(test_streaming.PARQUET["train-00.parquet"])
test_streaming.write(root / "served" / "ada" / "tars", test_streaming.TARS)
test_streaming.write(root / "served" / "ada" / "text", {"a.csv": b"x,y\\n1,2\\n"})

server = serve()
source = opened("ada/tiles")
assert source.sizes == list(test_streaming.SIZES), source.sizes
assert all("sha256" in name for name, _ in source.inventory())
batches = test_streaming.stream(source, workers=2)
taken = list(islice(batches, 2))
end(server)
batches_later = iter(batches)
sleep(0.2)
restarted = serve()
taken += list(islice(batches_later, 20))
batches.close()
test_streaming.assert_as_defined(source, taken)
print("through a restart:", len(taken), "batches")

files = len(list((root / "cache").glob("*.images")))
end(restarted)
(tiles / "README.md").write_text("a new commit that leaves the shards alone")
server = serve()
again = opened("ada/tiles")
assert again.fingerprint == source.fingerprint
assert opened("hf://datasets/ada/tiles/data/train-{00..06}.parquet").fingerprint == source.fingerprint
assert opened("hf://datasets/ada/tiles@main/data/train-*.parquet").fingerprint == source.fingerprint
assert len(opened("ada/tiles", split="test")) == test_streaming.SIZES[0]
test_streaming.assert_as_defined(again, test_streaming.take(again, 2))
assert len(list((root / "cache").glob("*.images"))) == files
for path in (root / "cache").glob("*.images"):
    path.unlink()
there = test_streaming.StreamedSource.ensure
test_streaming.StreamedSource.ensure = lambda *_: None  # so that the workers, which were forked, have to bring them
test_streaming.assert_as_defined(again, test_streaming.take(again, 2, workers=2))
test_streaming.StreamedSource.ensure = there
tars = opened("ada/tars")
test_streaming.assert_as_defined(tars, test_streaming.take(tars, 2, workers=1))
print("the same by other names")

refused("ada/tiles", split="validation")
refused("ada/tiles", config="large")
refused("ada/text")
refused("ada/nothing")
end(server)
test_streaming.write(tiles / "data", {"train-06.parquet": test_streaming.CHANGED})
server = serve()
for path in (root / "cache").glob("*.images"):
    path.unlink()
try:
    source.content(len(source) - 1)
except UserError as error:
    print("refused:", error)
end(server)
stores.PATIENCE = 0.2
refused("ada/tiles")
"""


def test_a_data_set_of_the_hub_is_streamed(hub: LoopbackHub, tmp_path: Path) -> None:
    port = test_streaming.free_port()
    environment = hub.environment(tmp_path / "hf_home") | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "PYTHONPATH": ":".join([str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path]),
    }
    command = [sys.executable, "-W", "ignore", "-c", CODE, str(port), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["through a restart: 22 batches", "the same by other names"]
    refused = [line.removeprefix("refused: ") for line in lines[2:]]
    assert len(refused) == 6, refused
    assert "data.split 'validation' is not in data.source 'ada/tiles': its splits are" in refused[0]
    assert "'ada/tiles' cannot be listed: ValueError: BuilderConfig 'large' not found" in refused[1]
    assert "data.source 'ada/text' has 1 .csv: what is streamed must be all .parquet" in refused[2]
    assert "'ada/nothing' cannot be listed: DatasetNotFoundError" in refused[3]
    assert "train-06.parquet has changed: it had" in refused[4]
    assert refused[4].count("sha256:") == 2
    assert "could not be read for" in refused[5] or "cannot be listed" in refused[5]
    assert hub.token not in done.stdout + done.stderr
