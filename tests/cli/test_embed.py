"""Features of every image as a file: the same as those of a plain loop, on two processes and after a kill."""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

import swin_mim
from swin_mim import SimMIM, Swin, SwinConfig
from swin_mim.cli import embed
from swin_mim.data.transforms.crops import EvaluationTransform, normalize
from swin_mim.errors import UserError
from swin_mim.evaluation.outputs.images import is_streamed
from swin_mim.evaluation.outputs.job import part_size
from swin_mim.evaluation.outputs.parts import Parts
from swin_mim.models.saving import Preprocessing
from tools import forked

pytestmark = pytest.mark.usefixtures("one_thread", "_no_accelerator")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
COUNT, BATCH = 70, 2  # three parts
BROKEN = ("a/07.png", "b/40.png")


@pytest.fixture
def _no_accelerator() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in mim/, another one in other/, photos/ of two classes, two of them broken, and few/ of them."""
    root = tmp_path_factory.mktemp("embed")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = root / "photos" / ("a" if number < 30 else "b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20 + number % 5, 27, 3), dtype=np.uint8)).save(path)
    for name in BROKEN:
        (root / "photos" / name).write_bytes(b"broken")
    (root / "photos" / "notes.txt").write_text("of these")
    for name in names_in(root / "photos")[5:9] + names_in(root / "photos")[38:43]:
        path = root / "few" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((root / "photos" / name).read_bytes())
    for seed, name in ((0, "mim"), (1, "other")):
        torch.manual_seed(seed)
        config = SwinConfig(16, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)
        SimMIM(config).save_pretrained(root / name)
    return root


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def run(folder: Path, *words: str, processes: int = 1) -> list[forked.End]:
    command = ["-m", "swin_mim", "embed", "mim", "photos", "--batch", str(BATCH), "--workers", "0", *words]
    return forked.run(command, folder, environment=ENVIRONMENT, processes=processes, timeout=120)


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[Path, str]:
    """What one process writes and says at one go."""
    (end,) = run(folder, "--out", "whole.parquet")
    assert end.code == 0, end.said
    return folder / "whole.parquet", end.said


def plain_loop(folder: Path, names: Sequence[str], stages: Sequence[int] = ()) -> np.ndarray:
    """What anybody would write: a batch of images decoded, cut, normalised, and the mean of what the encoder gives."""
    encoder = Swin.from_pretrained(folder / "mim")
    transform, known, found = EvaluationTransform((16, 16)), encoder.preprocessing, []
    for start in range(0, len(names), BATCH):
        images = []
        for name in names[start : start + BATCH]:
            if name in BROKEN:
                images.append(torch.zeros(3, 16, 16, dtype=torch.uint8))
            else:
                images.append(transform(Image.open(folder / "photos" / name)))
        batch = normalize(torch.stack(images), known.mean, known.std, known.scale)
        with torch.no_grad():
            found.append(pooled(encoder, batch, stages))
    return torch.cat(found).numpy()


def pooled(encoder: Swin, batch: Tensor, stages: Sequence[int]) -> Tensor:
    if not stages:
        return encoder(batch).mean(dim=(1, 2))
    return torch.cat([encoder.pyramid(batch)[stage].mean(dim=(2, 3)) for stage in stages], dim=1)


def test_rows_are_those_of_a_plain_loop(folder: Path, whole: tuple[Path, str]) -> None:
    """Bit for bit, with names and labels in the order of the source; broken images have empty rows and are named."""
    path, said = whole
    table = pq.read_table(path).to_pydict()
    names = names_in(folder / "photos")
    assert list(table) == ["image", "label", "embedding", "error"]
    assert table["image"] == names
    assert table["label"] == [name[0] for name in names]
    expected = plain_loop(folder, names)
    for place, name in enumerate(names):
        if name in BROKEN:
            assert table["embedding"][place] is None
            assert f"cannot read {name} (" in said
            assert table["error"][place] in said
        else:
            np.testing.assert_array_equal(np.float32(table["embedding"][place]), expected[place])
            assert table["error"][place] is None
    assert "whole.parquet: 70 images, " in said
    assert "2 cannot be read, see the column error" in said
    assert not (folder / "whole.parquet.parts").exists()


def test_two_processes_write_the_same_file(folder: Path, whole: tuple[Path, str]) -> None:
    ends = run(folder, "--out", "two.parquet", processes=2)
    assert [end.code for end in ends] == [0, 0], ends
    assert (folder / "two.parquet").read_bytes() == whole[0].read_bytes()
    assert "two.parquet: 70 images" in ends[0].said
    assert "two.parquet" not in ends[1].said
    said = "data.source 'photos': 1 file is no image and is left out: 1 .txt"
    assert [end.said.count(said) for end in ends] == [1, 0], "what all processes see is said once"


KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
write, count = pq.write_table, 0
def killed(table, path, **options):
    global count
    count += 1
    if count == 2:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, path, **options)
pq.write_table = killed
from swin_mim.cli.main import main
main(sys.argv[1:])
"""


def test_a_killed_command_goes_on(folder: Path, whole: tuple[Path, str]) -> None:
    """SIGKILL in the middle of the second part: the first stays, half a file is not taken, others are refused."""
    (folder / "killed.py").write_text(KILLED)
    words = ["embed", "mim", "photos", "--batch", str(BATCH), "--workers", "0", "--out", "cut.parquet"]
    (end,) = forked.run([str(folder / "killed.py"), *words], folder, environment=ENVIRONMENT, timeout=120)
    assert end.code == -signal.SIGKILL
    parts = folder / "cut.parquet.parts"
    first = (parts / "000000.parquet").stat()
    assert not (folder / "cut.parquet").exists()
    assert len(list(parts.glob(".*.tmp"))) == 1
    (end,) = run(folder, "--out", "cut.parquet", "--stage", "1")
    assert end.code == 2
    assert "holds parts of another stage 'last' in place of '1': name another --out, or give --overwrite" in end.said
    # killed again, a part later, by the same program
    (end,) = forked.run([str(folder / "killed.py"), *words], folder, environment=ENVIRONMENT, timeout=120)
    assert end.code == -signal.SIGKILL
    assert (parts / "000001.parquet").exists()
    assert (parts / "000000.parquet").stat().st_mtime_ns == first.st_mtime_ns
    (folder / ".cut.parquet.99999.tmp").touch()  # as if killed while the parts became one
    (end,) = run(folder, "--out", "cut.parquet")
    assert end.code == 0, end.said
    assert not (folder / ".cut.parquet.99999.tmp").exists()
    assert "70 images, 64 of them before" in end.said
    assert (folder / "cut.parquet").read_bytes() == whole[0].read_bytes()
    (end,) = run(folder, "--out", "cut.parquet")
    assert end.said.endswith("\ncut.parquet: finished before, 70 images\n")


def embed_here(folder: Path, *words: str) -> None:
    embed.main([str(folder / words[0]), *words[1:], "--batch", str(BATCH), "--workers", "0"])


def test_other_results_are_not_replaced_unasked(
    folder: Path, whole: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = whole[0].read_bytes()
    with pytest.raises(SystemExit):
        embed_here(folder, "other", str(folder / "few"), "--out", str(whole[0]))
    assert "is of another model: name another --out, or give --overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        embed_here(folder, "mim", str(folder / "few" / "a"), "--out", str(whole[0]))
    assert "is of another labels" not in (said := capsys.readouterr().err)
    assert "is of another source" in said
    assert whole[0].read_bytes() == before
    mine = tmp_path / "mine.parquet"
    mine.write_bytes(before)
    embed_here(folder, "other", str(folder / "few"), "--out", str(mine), "--overwrite")
    assert mine.read_bytes() != before


@pytest.mark.parametrize("first", [[], ["--page", "page.html"]])
def test_parts_go_on_with_or_without_hashes_as_they_were_begun(
    first: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whoever wants a page of what was begun without gets it, from hashes that are made afterwards."""
    monkeypatch.chdir(tmp_path)
    write, then = Parts.write, [] if first else ["--page", "page.html"]

    def stopped(parts: Parts, number: int, table: Any) -> None:
        if number:
            raise KeyboardInterrupt
        write(parts, number, table)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", stopped)
        with pytest.raises(SystemExit):
            embed_here(folder, "mim", str(folder / "photos"), "--out", "x.parquet", *first)
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    embed_here(folder, "mim", str(folder / "photos"), "--out", "x.parquet", *then)
    assert "70 images, 32 of them before" in capsys.readouterr().out
    assert ("look" in pq.read_schema("x.parquet").names) == bool(first)
    assert Path("page.html").exists() == bool(then)


def test_all_stages_and_the_function(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed_here(folder, "mim", str(folder / "few"), "--out", str(tmp_path / "all.parquet"), "--stage", "all")
    table = pq.read_table(tmp_path / "all.parquet").to_pydict()
    assert list(table) == ["image", "label", "embedding_1", "embedding_2", "error"]
    found = swin_mim.embed(SimMIM.from_pretrained(folder / "mim"), folder / "few", stage="all", batch=BATCH, workers=0)
    names = names_in(folder / "few")
    expected = plain_loop(folder, names, (0, 1))
    assert (found.names, found.labels, found.widths) == (table["image"], table["label"], (8, 16))
    assert found.features.dtype == np.float32
    assert sorted(found.broken) == sorted(BROKEN)
    for place, name in enumerate(names):
        if name in BROKEN:
            assert np.isnan(found.features[place]).all()
            continue
        np.testing.assert_array_equal(found.features[place], expected[place])
        row = [*table["embedding_1"][place], *table["embedding_2"][place]]
        np.testing.assert_array_equal(np.float32(row), expected[place])
    last = swin_mim.embed(str(folder / "mim"), folder / "few", batch=BATCH, workers=0)
    np.testing.assert_array_equal(last.features[0], plain_loop(folder, names)[0])
    one = swin_mim.embed(str(folder / "mim"), folder / "few" / names[0], stage=2)
    assert (one.names, one.labels, one.features.shape) == (["05.png"], None, (1, 16))


@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_maps(folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In files of bounded size, each image found by the file and the row that images.parquet says."""
    monkeypatch.setattr("swin_mim.evaluation.outputs.embeddings.part_size", lambda *_, **__: 4)
    photos = folder / "few"
    embed_here(folder, "mim", str(photos), "--out", str(tmp_path / "maps"), "--maps", kind, "--stage", "all")
    table = pq.read_table(tmp_path / "maps" / "images.parquet").to_pydict()
    names = names_in(photos)
    assert table["image"] == names
    assert table["row"] == [*range(4), *range(4), 0]
    expected = plain_loop(folder, names, (0, 1))
    for place, name in enumerate(names):
        file, row = table["file"][place], table["row"][place]
        for stage, dims in ((1, (8, 4, 4)), (2, (16, 2, 2))):
            if kind == "npy":
                maps = np.load(tmp_path / "maps" / file.replace("*", f"embedding_{stage}"))
            else:
                maps = load_file(tmp_path / "maps" / file)[f"embedding_{stage}"]
            assert maps.shape[1:] == dims
            if name in BROKEN:
                assert np.isnan(maps[row]).all()
            else:
                mean = torch.from_numpy(maps[row]).mean(dim=(1, 2)).numpy()
                np.testing.assert_allclose(mean, expected[place][:8] if stage == 1 else expected[place][8:], atol=1e-6)
    assert sorted(path.suffix for path in (tmp_path / "maps").iterdir()).count(".parquet") == 1


def test_what_lies_in_the_folder_of_maps_is_replaced_if_it_is_ours_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["mim", str(folder / "few"), "--out", str(tmp_path / "maps"), "--maps", "npy", "--overwrite"]
    mine = {"2024.parquet": b"1", "manifest.json": b"{}", "000000.parquet": b"2", "keep.txt": b"3"}
    for count in range(1, len(mine) + 1):
        (tmp_path / "maps").mkdir(exist_ok=True)
        for name in list(mine)[:count]:
            (tmp_path / "maps" / name).write_bytes(mine[name])
        with pytest.raises(SystemExit):
            embed_here(folder, *words)
        assert "holds something else, such as" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in (tmp_path / "maps").iterdir()} == dict(
            list(mine.items())[:count]
        )
    shutil.rmtree(tmp_path / "maps")
    embed_here(folder, *words)
    (tmp_path / "maps" / "2024.parquet").write_bytes(b"1")  # beside ours
    embed_here(folder, *words, "--stage", "1")
    assert {"2024.parquet", "images.parquet"} <= {path.name for path in (tmp_path / "maps").iterdir()}


def test_a_part_is_whole_batches_of_bounded_size() -> None:
    assert part_size(64, 4 * 1024, 2**26) == 1024
    assert part_size(64, 2**20, 2**26) == 64
    assert part_size(64, 2**20, 2**20) == 64
    assert part_size(2, 100, 1000, batches=2**30) == 10


def test_images_of_other_channels_with_gaps(tmp_path: Path) -> None:
    """They are read as the model says, its value of missing pixels included."""
    rng = np.random.default_rng(0)
    model = SimMIM(SwinConfig(16, in_channels=6, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4))
    model.preprocessing = Preprocessing((500.0,) * 6, (100.0,) * 6, scale=1, channels=None, nodata=-9.0)
    model.save_pretrained(tmp_path / "mim")
    (tmp_path / "scenes").mkdir()
    encoder, expected = model.encoder.eval(), []
    for number in range(5):
        values = rng.integers(300, 700, (16, 16, 6)).astype(np.int16)
        values[:3, :number] = -9
        np.save(tmp_path / "scenes" / f"{number}.npy", values)
        pixels = (torch.from_numpy(values).permute(2, 0, 1).float() - 500) / 100
        pixels[:, torch.from_numpy((values == -9).all(axis=2))] = 0
        with torch.no_grad():
            expected.append(encoder(pixels[None]).mean(dim=(1, 2))[0].numpy())
    (tmp_path / "scenes" / "5.npy").write_bytes(b"broken")
    found = swin_mim.embed(str(tmp_path / "mim"), tmp_path / "scenes", batch=1, workers=0)
    np.testing.assert_allclose(found.features[:5], np.stack(expected), atol=1e-5)
    assert list(found.broken) == ["5.npy"]


def test_streamed_shards_and_tables(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows from tar files, a table of images, and a table of names with labels."""
    import tarfile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos, names = folder / "few", [name for name in names_in(folder / "few") if name not in BROKEN]
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for name in names[5 * shard : 5 * shard + 5]:
                tar.add(photos / name, arcname=name.replace("/", "_"))
    assert [is_streamed(spec) for spec in ("a/*.parquet", "a/{0..3}.parquet", "a/?.parquet", "a/[0-3].parquet")] == [
        True
    ] * 4
    assert [is_streamed(spec) for spec in ("a/b.parquet", "a")] == [False] * 2
    streamed = swin_mim.embed(
        str(folder / "mim"), f"{tmp_path}/shards/{{0..1}}.tar", batch=BATCH, workers=0, cache_gb=0.01
    )
    lines = ["file,label", *(f"{name},{'even' if place % 2 == 0 else 'odd'}" for place, name in enumerate(names))]
    (photos / "names.csv").write_text("\n".join(lines))
    listed = swin_mim.embed(str(folder / "mim"), photos / "names.csv", batch=BATCH, workers=0)
    (photos / "names.csv").unlink()
    np.testing.assert_array_equal(streamed.features, listed.features)
    assert streamed.labels is None
    assert listed.names == names
    assert listed.labels == ["even", "odd", "even", "odd", "even", "odd", "even"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere/at/all",), "data.source 'nowhere/at/all' does not exist"),
        (("{folder}/empty",), "holds no "),
        (("{folder}/text.txt",), "the image text.txt cannot be read: "),
        (("{folder}/bad",), "none of the 3 images of '{folder}/bad' can be read, the first: 0.png: "),
        (("{folder}/photos", "--stage", "3"), "stage '3' must be last, all, or a number from 1 to 2"),
        (("{folder}/photos", "--out", "x.csv"), "--out x.csv must end in .parquet"),
        (("{folder}/photos", "--batch", "0"), "--batch 0 must be at least 1"),
        (("{folder}/photos", "--label-column", "kind"), "data.label_column 'kind' belongs to tables"),
        (("{folder}/photos", "--channels", "1", "2"), "takes 3 channels (red, green, blue)"),
        (("{folder}/shards",), "add --streaming"),
    ],
)
def test_a_users_mistake_is_one_line(
    folder: Path, tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty", "bad", "shards"):
        (folder / name).mkdir(exist_ok=True)
    for number in range(3):
        (folder / "bad" / f"{number}.png").write_bytes(b"broken")
    (folder / "text.txt").write_text("no image")
    (folder / "shards" / "a.tar").write_bytes(b"")
    given = [word.format(folder=folder) for word in words]
    with pytest.raises(SystemExit) as left:
        embed.main([str(folder / "mim"), given[0], "--out", str(tmp_path / "x.parquet"), "--workers", "0", *given[1:]])
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message.format(folder=folder) in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "batch 0 must be at least 1"),
        ({"precision": "fp8"}, "precision 'fp8' must be one of auto, fp32, bf16, fp16"),
        ({"workers": -1}, "workers -1 must be at least 0"),
        ({"device": "cuda"}, "device 'cuda' is of a model that is loaded here"),
        ({"source": "broken.png"}, "the image broken.png cannot be read: "),
        ({"source": "same_names"}, "none of the 2 images of .*same_names' can be read, the first: "),
    ],
)
def test_mistakes_in_a_call(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    same = {"image": [{"bytes": b"broken", "path": "x.png"}] * 2}
    (tmp_path / "same_names").mkdir()
    pq.write_table(pa.table(same), tmp_path / "same_names" / "train.parquet")
    with pytest.raises(UserError, match=message):
        swin_mim.embed(
            Swin(SwinConfig(16, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)),
            tmp_path / given.pop("source", "none"),
            **given,
        )


def test_ctrl_c_says_how_to_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swin_mim.evaluation.outputs.job.collect", interrupted)
    with pytest.raises(SystemExit) as left:
        embed_here(folder, "mim", str(folder / "few"), "--out", str(tmp_path / "x.parquet"))
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on where this one ended\n"
    manifest = json.loads((tmp_path / "x.parquet.parts" / "manifest.json").read_text())
    assert manifest["images"] == 9
    assert os.listdir(tmp_path) == ["x.parquet.parts"]
