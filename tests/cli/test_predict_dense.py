"""Masks of every image, and objects: those of a plain loop, whatever interrupts it and however many compute it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from pycocotools.coco import COCO

from swin_mim import SwinConfig, SwinDetector, SwinSegmenter
from swin_mim.cli import predict
from swin_mim.data.dense.coco import open_coco
from swin_mim.evaluation.outputs import masks
from swin_mim.models.dense.sliding import predict_classes
from swin_mim.models.saving import Preprocessing
from tools import forked

pytestmark = [
    pytest.mark.usefixtures("one_thread", "_no_accelerator"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of numpy 2, in pycocotools
]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
CONFIG = SwinConfig(32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)
NAMES = ("cat", "dog", "owl")
PLACE = [(33550, 12, 3, (10.0, 10.0, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 500.0, 900.0, 0.0), True)]


@pytest.fixture
def _no_accelerator() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


def varied(model: Any) -> Any:
    """Weights with which images differ in what is said of them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "classifier" in name or "cls_score" in name:
                value.mul_(30)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ of seven sizes, one broken, two of one name; a segmenter, a detector; scenes/ of four channels."""
    root, rng = tmp_path_factory.mktemp("dense"), np.random.default_rng(0)
    for number, name in enumerate(["0.png", "deep/1.jpg", "deep/1.png", "2.png", "3.png", "4.png", "5.png"]):
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((30 + 9 * number, 70 - 7 * number)).save(path)
    (root / "photos" / "3.png").write_bytes(b"broken")
    torch.manual_seed(0)
    segmenter = varied(SwinSegmenter(CONFIG, 3, head="fpn", head_channels=16, head_norm="group"))
    segmenter.labels = NAMES
    segmenter.save_pretrained(root / "seg")
    detector = varied(SwinDetector(CONFIG, 3, masks=True, head_channels=16))
    detector.labels = NAMES
    detector.save_pretrained(root / "det")
    config = SwinConfig(32, in_channels=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)
    bands = varied(SwinSegmenter(config, 3, head="fpn", head_channels=16, head_norm="group"))
    bands.preprocessing = Preprocessing((900.0,) * 4, (400.0,) * 4, ("1", "2", "3", "4"), scale=1, nodata=0.0)
    bands.save_pretrained(root / "bands")
    (root / "scenes").mkdir()
    for number in range(2):
        values = np.kron(rng.integers(1, 2000, (10, 8, 4)), np.ones((6, 6, 1))).astype(np.uint16)
        values[:5, :7] = 0
        options: dict[str, Any] = {
            "photometric": "minisblack",
            "planarconfig": "contig",
            "extratags": PLACE,
            "metadata": None,
        }
        tifffile.imwrite(root / "scenes" / f"{number}.tif", values, **options)
    return root


def run(folder: Path, model: str, source: str, out: Path, *words: str) -> None:
    predict.main([str(folder / model), str(folder / source), "--out", str(out), "--workers", "0", *words])


def refusal(capsys: pytest.CaptureFixture[str], run_it: Callable[[], None]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run_it()
    said = capsys.readouterr()
    assert (left.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]


def test_masks_are_those_of_a_plain_loop(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "seg", "photos", tmp_path / "masks")
    assert "masks: 7 images, " in capsys.readouterr().out
    table = pq.read_table(tmp_path / "masks" / "images.parquet").to_pydict()
    expected = ["0.png", "2.png", None, "4.png", "5.png", "deep/1.jpg.png", "deep/1.png.png"]
    assert (table["image"][2], table["mask"]) == ("3.png", expected)
    assert [error is not None for error in table["error"]] == [False, False, True, *[False] * 4]
    model = SwinSegmenter.from_pretrained(folder / "seg").eval()
    seen = set()
    for place, name in enumerate(expected):
        if name is None:
            assert table["height"][place] is table["pixels of cat"][place] is None
            continue
        image = pixels_of(folder / "photos" / table["image"][place])
        with torch.no_grad():
            classes = model(model.preprocess(image)).logits[0].argmax(dim=0).numpy()
        mask = Image.open(tmp_path / "masks" / name)
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), classes)
        assert (table["height"][place], table["width"][place]) == classes.shape
        counts = [table[f"pixels of {each}"][place] for each in NAMES]
        assert counts == np.bincount(classes.ravel(), minlength=3).tolist()
        seen |= set(np.unique(classes).tolist())
    assert len(seen) > 1
    assert not list(tmp_path.glob("*.parts"))
    run(folder, "seg", "photos", tmp_path / "masks")
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "source", "flags"),
    [
        ("seg", "photos", []),
        pytest.param("bands", "scenes", ["--data.channels", *"1234", "--data.nodata", "0"], marks=pytest.mark.slow),
    ],
)
def test_masks_are_those_of_the_evaluation(
    model: str, source: str, flags: list[str], folder: Path, tmp_path: Path
) -> None:
    words = ["segment", "--evaluate", "--model.pretrained", str(folder / model), "--data.source", str(folder / source)]
    words += ["--data.workers", "0", "--train.threads", "1", "--predictions", "evaluated", "--run.name", "e", *flags]
    (end,) = forked.run(["-m", "swin_mim", *words], tmp_path, environment=ENVIRONMENT, timeout=120)
    assert end.code == 0, end.said
    run(folder, model, source, tmp_path / "masks")
    found = contents(tmp_path / "masks")
    assert found.pop("images.parquet")
    assert found == contents(tmp_path / "evaluated")


def test_large_images_go_through_by_windows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "seg", "photos", tmp_path / "slid", "--window", "slide")
    run(folder, "seg", "photos", tmp_path / "whole", "--window", "whole")
    model = SwinSegmenter.from_pretrained(folder / "seg").eval()
    for name in ("0.png", "5.png"):
        expected = predict_classes(model, model.preprocess(pixels_of(folder / "photos" / name)), window=32)[0].numpy()
        assert np.array_equal(np.asarray(Image.open(tmp_path / "slid" / name)), expected)
        assert not np.array_equal(np.asarray(Image.open(tmp_path / "whole" / name)), expected)
    monkeypatch.setattr(masks, "WHOLE_PIXELS", 40 * 50)
    run(folder, "seg", "photos", tmp_path / "auto")
    for name, (width, height) in {"0.png": (30, 70), "5.png": (84, 28)}.items():
        way = "slid" if width * height > 40 * 50 else "whole"
        assert (tmp_path / "auto" / name).read_bytes() == (tmp_path / way / name).read_bytes()
    run(folder, "seg", "photos/0.png", tmp_path / "one", "--resize", "32", "--first_class", "7")
    assert set(np.unique(np.asarray(Image.open(tmp_path / "one" / "0.png")))) <= {7, 8, 9}
    assert "another window 'slide'" in refusal(capsys, lambda: run(folder, "seg", "photos", tmp_path / "slid"))


@pytest.mark.parametrize(
    ("count", "first", "missing", "dtype"),
    [(255, 0, 255, "uint8"), (256, 0, 65535, "uint16"), (60, 200, 65535, "uint16"), (3, 300, 255, "uint16")],
)
def test_missing_pixels_have_255_unless_a_class_has(count: int, first: int, missing: int, dtype: str) -> None:
    numbers = masks.numbers_of(count, first)
    written = numbers.numbers(np.array([count - 1, numbers.unlabelled], numbers.dtype))
    assert (written.tolist(), written.dtype) == ([first + count - 1, missing], np.dtype(dtype))


def test_scenes_keep_their_place_and_their_gaps(folder: Path, tmp_path: Path) -> None:
    run(folder, "bands", "scenes", tmp_path / "masks", "--window", "slide")
    model = SwinSegmenter.from_pretrained(folder / "bands").eval()
    for number in range(2):
        with tifffile.TiffFile(tmp_path / "masks" / f"{number}.tif") as file:
            page: Any = file.pages[0]
            mask, tags = file.asarray(), page.tags
            assert tags.valueof(33922) == PLACE[1][3]
            assert tags.valueof(33550) == PLACE[0][3]
        values = torch.from_numpy(tifffile.imread(folder / "scenes" / f"{number}.tif").astype(np.float32))
        values[:5, :7] = torch.nan
        expected = predict_classes(model, model.preprocess(values.permute(2, 0, 1)), window=32)[0].numpy()
        expected[:5, :7] = 255
        assert np.array_equal(mask, expected)
    table = pq.read_table(tmp_path / "masks" / "images.parquet").to_pydict()
    assert sum(table[f"pixels of class_{number}"][0] for number in range(3)) == 60 * 48 - 35


def test_scenes_that_are_not_decoded_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "bands", "scenes", tmp_path / "decoded", "--window", "slide")
    said = refusal(capsys, lambda: run(folder, "bands", "scenes", tmp_path / "refused", "--max_pixels", "2000"))
    assert "none of the 2 images" in said, "a file of few bytes is not looked into"
    monkeypatch.setattr(masks, "SMALL", 0)
    run(folder, "bands", "scenes", tmp_path / "parts", "--max_pixels", "2000")
    mine, theirs = (contents(tmp_path / name) for name in ("parts", "decoded"))
    assert [mine[f"{number}.tif"] for number in range(2)] == [theirs[f"{number}.tif"] for number in range(2)]
    rows = [pq.read_table(tmp_path / name / "images.parquet").to_pydict() for name in ("parts", "decoded")]
    assert rows[0] == rows[1]
    (tmp_path / "rgb").mkdir()
    image = np.kron(np.random.default_rng(3).integers(0, 255, (9, 7, 3)), np.ones((9, 9, 1))).astype(np.uint8)
    tifffile.imwrite(tmp_path / "rgb" / "a.tif", image, photometric="rgb", extratags=PLACE, metadata=None)
    tifffile.imwrite(tmp_path / "rgb" / "b.tif", image.astype(np.uint16), photometric="rgb", metadata=None)
    for name, words in (("rgb_whole", ["--window", "slide"]), ("rgb_parts", ["--max_pixels", "4000"])):
        predict.main(
            [str(folder / "seg"), str(tmp_path / "rgb"), "--out", str(tmp_path / name), "--workers", "0", *words]
        )
    assert (tmp_path / "rgb_whole" / "a.tif").read_bytes() == (tmp_path / "rgb_parts" / "a.tif").read_bytes()
    said = pq.read_table(tmp_path / "rgb_parts" / "images.parquet")["error"].to_pylist()
    assert said[0] is None
    assert "too many to be decoded whole" in said[1]
    assert "prepare SOURCE TILES --tile" in said[1]


@pytest.mark.parametrize(("model", "out"), [("seg", "masks"), ("det", "objects.json")])
def test_it_goes_on_where_it_was_interrupted(
    model: str, out: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "whole").mkdir()
    run(folder, model, "photos", tmp_path / "whole" / out)
    kind: Any = {"seg": SwinSegmenter, "det": SwinDetector}[model]
    calls: list[int] = []
    forward = kind.forward

    def stopped(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*given, **more)

    monkeypatch.setattr(kind, "forward", stopped)
    (tmp_path / "stopped").mkdir()
    with pytest.raises(SystemExit) as left:
        run(folder, model, "photos", tmp_path / "stopped" / out)
    assert left.value.code == 130
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    if model == "seg":
        other = refusal(capsys, lambda: run(folder, "seg", "photos/deep", tmp_path / "stopped" / out))
        assert "holds parts of another source" in other
    run(folder, model, "photos", tmp_path / "stopped" / out)
    assert "7 images, 4 of them before" in capsys.readouterr().out
    assert len(calls) == 4 + 3, "of six that can be read, three were done"
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("model", "out"), [("seg", "masks"), ("det", "objects.json")])
def test_two_processes_give_the_same(model: str, out: str, folder: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        words = [
            "predict",
            str(folder / model),
            str(folder / "photos"),
            "--out",
            f"{processes}/{out}",
            "--workers",
            "0",
        ]
        words += ["--window", "slide"] if model == "seg" else ["--batch", "2"]
        words += ["--threads", "1"]  # by which convolutions round
        ends = forked.run(
            ["-m", "swin_mim", *words], tmp_path, environment=ENVIRONMENT, processes=processes, timeout=120
        )
        assert [end.code for end in ends] == [0] * processes, ends
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_objects_are_what_the_detector_finds(folder: Path, tmp_path: Path) -> None:
    run(folder, "det", "photos", tmp_path / "objects.json")
    found = json.loads((tmp_path / "objects.json").read_text())
    assert found["categories"] == [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    assert [each["file_name"] for each in found["unreadable"]] == ["3.png"]
    assert [each["id"] for each in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
    (image,) = [each for each in found["images"] if each["file_name"] == "deep/1.png"]
    picture = Image.open(folder / "photos" / "deep/1.png")
    assert (image["width"], image["height"]) == picture.size
    model = SwinDetector.from_pretrained(folder / "det").eval()
    factor = 32 / max(picture.size)
    size = [max(1, round(side * factor)) for side in picture.size]
    pixels = torch.from_numpy(np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        (expected,) = model(model.preprocess(pixels), sizes=[picture.size[::-1]])
    mine = [each for each in found["annotations"] if each["image_id"] == image["id"]]
    assert len(mine) == len(expected["scores"]) > 0
    assert [each["category_id"] - 1 for each in mine] == expected["labels"].tolist()
    assert np.allclose([each["score"] for each in mine], expected["scores"], atol=1e-6)
    boxes = np.array([each["bbox"] for each in mine])
    assert np.allclose(boxes[:, :2] + boxes[:, 2:], expected["boxes"][:, 2:], atol=2e-3)
    coco = COCO(str(tmp_path / "objects.json"))
    assert coco.loadRes(found["annotations"]).anns.keys() == coco.anns.keys()
    for entry, soft in zip(mine, expected["masks"], strict=True):
        assert np.array_equal(coco.annToMask(entry), (soft >= 0.5).numpy())


def test_what_was_found_can_be_learned_from(folder: Path, tmp_path: Path) -> None:
    run(folder, "det", "photos", tmp_path / "objects.json", "--min_score", "0.3", "--batch", "3")
    found = json.loads((tmp_path / "objects.json").read_text())
    assert len(found["annotations"]) > 0
    assert min(each["score"] for each in found["annotations"]) >= 0.3
    found["annotations"] = [each for each in found["annotations"] if min(each["bbox"][2:]) > 0]
    (tmp_path / "objects.json").write_text(json.dumps(found))
    read = open_coco(str(tmp_path / "objects.json"), str(folder / "photos"))
    assert (len(read), read.names) == (6, NAMES)


def test_overwriting_leaves_no_mask_of_before(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "masks"
    run(folder, "seg", "photos", out)
    (out / "mine.txt").write_text("note")
    assert "another source" in refusal(capsys, lambda: run(folder, "seg", "photos/deep", out))
    run(folder, "seg", "photos/deep", out, "--overwrite")
    assert sorted(contents(out)) == ["1.jpg.png", "1.png.png", "images.parquet", "mine.txt"]


@pytest.mark.parametrize("part", [1, 64])
def test_overwriting_leaves_no_mask_of_an_interrupted_command(
    part: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "part_of", lambda *_: part)
    out, wrote = tmp_path / "masks", masks.write_mask

    def stopped(where: Path, stem: str, *given: Any) -> Path:
        if stem == "5":
            raise KeyboardInterrupt
        return wrote(where, stem, *given)

    with monkeypatch.context() as patch:
        patch.setattr(masks, "write_mask", stopped)
        with pytest.raises(SystemExit):
            run(folder, "seg", "photos", out)
    assert {"0.png", "2.png", "4.png"} <= contents(out).keys()
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    run(folder, "seg", "photos/deep", out, "--overwrite")
    assert sorted(contents(tmp_path)) == ["masks/1.jpg.png", "masks/1.png.png", "masks/images.parquet"]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("mask", ["{outside}", "../precious.png", "mine.png", None])
def test_overwriting_removes_nothing_that_it_did_not_write(
    ours: bool, mask: str | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list of masks names files anywhere: only those below the folder go, and only if the list is of a prediction."""
    outside, out = tmp_path / "precious.png", tmp_path / "masks"
    out.mkdir()
    for path in (outside, out / "mine.png"):
        path.write_bytes(b"mine")
    columns = {"image": ["0.png"]} if mask is None else {"image": ["0.png"], "mask": [mask.format(outside=outside)]}
    held = {"swin_mim": json.dumps({"first_class": 0} if ours else {"maps": "npy"})}
    pq.write_table(pa.table(columns).replace_schema_metadata(held), out / "images.parquet")
    before = contents(tmp_path)
    if ours and mask == "mine.png":
        run(folder, "seg", "photos/deep", out, "--overwrite")
        assert "masks/mine.png" not in contents(tmp_path)
        return
    said = refusal(capsys, lambda: run(folder, "seg", "photos/deep", out, "--overwrite"))
    assert ("holds something else" if not ours else "no column mask" if mask is None else "that is not in") in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("model", "out", "words", "message"),
    [
        ("seg", "masks.csv", [], "masks.csv must be a folder: "),
        ("seg", "x", ["--batch", "2"], "--batch 2: a segmenter takes one image at a time"),
        ("seg", "x", ["--multi-label"], "--multi-label is of classifiers, and "),
        ("seg", "x", ["--resize", "0"], "--resize 0 must be at least 1"),
        ("seg", "x", ["--first_class", "65534"], "--first_class 65534 must be 0 to 65532"),
        ("det", "x", [], "must end in .json"),
        ("det", "x.json", ["--window", "slide"], "--window is of segmenters, and "),
        ("det", "x.json", ["--min_score", "2"], "--min_score 2.0 must be 0 to 1"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    model: str, out: str, words: list[str], message: str, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert message in refusal(capsys, lambda: run(folder, model, "photos", tmp_path / out, *words))


def test_masks_do_not_lie_among_other_things(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, lambda: run(folder, "seg", "photos", folder / "photos" / "masks"))
    assert "lie inside each other" in said
    (tmp_path / "thesis.txt").write_text("x")
    said = refusal(capsys, lambda: run(folder, "seg", "photos", tmp_path, "--overwrite"))
    assert "holds something else, such as thesis.txt" in said
    said = refusal(capsys, lambda: run(folder, "seg", "photos/3.png", tmp_path / "new"))
    assert "the image 3.png cannot be read" in said
