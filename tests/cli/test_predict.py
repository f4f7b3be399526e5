"""Classes of every image as a file: the numbers of finetune --evaluate --predictions, and what is no classifier."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig
from swin_mim.cli import predict
from tools import forked

pytestmark = pytest.mark.usefixtures("one_thread", "_no_accelerator")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
CONFIG = SwinConfig(16, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)


@pytest.fixture
def _no_accelerator() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes in fine/, a SimMIM in mim/, an encoder in swin/, and photos/ without labels."""
    root = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    for number in range(9):
        path = root / "photos" / f"{number % 2}" / "deep" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 31, 3), dtype=np.uint8)).save(path)
    (root / "photos" / "0" / "deep" / "4.png").write_bytes(b"broken")
    torch.manual_seed(0)
    classifier = SwinClassifier(CONFIG, 3)
    classifier.get_parameter("head.fc.weight").data *= 100  # so that the classes differ
    classifier.labels = ("cat", "dog", "owl")
    classifier.save_pretrained(root / "fine")
    SimMIM(CONFIG).save_pretrained(root / "mim")
    Swin(CONFIG).save_pretrained(root / "swin")
    return root


def predict_here(folder: Path, model: str, *words: str) -> None:
    predict.main([str(folder / model), str(folder / "photos"), "--batch", "4", "--workers", "0", *words])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_of_the_evaluation(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--evaluate", "--model.pretrained", "fine", "--data.source", "photos", "--data.workers", "0"]
    words += ["--train.micro_batch", "4", "--train.threads", "1", "--predictions", "evaluated.csv", "--run.name", "e"]
    (end,) = forked.run(["-m", "swin_mim", "finetune", *words], folder, environment=ENVIRONMENT, timeout=120)
    assert end.code == 0, end.said
    predict_here(folder, "fine", "--out", str(tmp_path / "predicted.csv"))
    assert "predicted.csv: 9 images, " in capsys.readouterr().out
    found, evaluated = rows_of(tmp_path / "predicted.csv"), rows_of(folder / "evaluated.csv")
    assert list(found[0]) == [
        "image",
        "predicted",
        "probability",
        *(f"probability of {n}" for n in ("cat", "dog", "owl")),
        "error",
    ]
    read = [row for row in found if not row["error"]]
    assert [row["image"] for row in found if row["error"]] == ["0/deep/4.png"]
    assert len(read) == len(evaluated) == 8
    assert len({row["predicted"] for row in read}) > 1
    for mine, theirs in zip(read, evaluated, strict=True):
        assert (mine["image"], mine["predicted"]) == (theirs["image"], theirs["predicted"])
        assert mine["probability"] == theirs["probability_1"]
        for rank in (1, 2, 3):
            assert mine[f"probability of {theirs[f'class_{rank}']}"] == theirs[f"probability_{rank}"]


def test_parquet_several_labels_and_single_files(folder: Path, tmp_path: Path) -> None:
    predict_here(folder, "fine", "--out", str(tmp_path / "several.parquet"), "--multi-label")
    table = pq.read_table(tmp_path / "several.parquet").to_pydict()
    assert list(table)[:2] == ["image", "predicted"]
    assert table["predicted"][2] is table["probability of cat"][2] is None
    for place in (0, 1, 3):
        named = [name for name in ("cat", "dog", "owl") if table[f"probability of {name}"][place] > 0.5]
        assert table["predicted"][place] == ";".join(named)
    one = folder / "photos" / "0" / "deep" / "0.png"
    predict.main([str(folder / "fine"), str(one), "--out", str(tmp_path / "one.csv")])
    assert [row["image"] for row in rows_of(tmp_path / "one.csv")] == ["0.png"]


def test_a_list_of_images_to_leave_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "list.txt").write_text("0/deep/4.png\n1/deep/7.png\n")
    predict_here(folder, "fine", "--out", str(tmp_path / "some.parquet"), "--exclude", str(tmp_path / "list.txt"))
    assert "list.txt' leaves out 2 of 9 images" in caplog.text
    left = [f"{number % 2}/deep/{number}.png" for number in (0, 2, 6, 8, 1, 3, 5)]
    assert pq.read_table(tmp_path / "some.parquet")["image"].to_pylist() == left
    with pytest.raises(SystemExit) as end:
        predict_here(folder, "fine", "--out", str(tmp_path / "some.parquet"))
    assert end.value.code == 2
    assert "some.parquet is of another source, or its files or --exclude have changed: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "mim",
            "mim is a SimMIM, not a classifier, segmenter or detector: swin-mim reconstruct draws what",
        ),
        ("swin", "swin is a Swin, not a classifier, segmenter or detector: swin-mim embed writes its "),
        ("none", "does not exist"),
    ],
)
def test_what_is_no_classifier_is_one_line(
    folder: Path, tmp_path: Path, model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        predict_here(folder, model, "--out", str(tmp_path / "x.csv"))
    said = capsys.readouterr()
    assert (left.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert message in said.err
