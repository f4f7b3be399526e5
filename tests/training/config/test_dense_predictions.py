"""Predictions never go where data lie."""

from pathlib import Path
from typing import Any

import pytest

from swin_mim.errors import UserError
from swin_mim.training.config import finetune_checks
from swin_mim.training.config.dense import detect_checks, segment_checks
from swin_mim.training.config.dense.detect import BoxedDataConfig, DetectConfig
from swin_mim.training.config.dense.segment import MaskedDataConfig, SegmentConfig
from swin_mim.training.config.finetune import FinetuneConfig, LabelledDataConfig
from swin_mim.training.config.pretrain import RunConfig


def segmenting(predictions: Path, **data: Any) -> None:
    config = SegmentConfig(
        RunConfig("r"), MaskedDataConfig(source="photos", **data), evaluate=True, predictions=str(predictions)
    )
    segment_checks.check(config)


def detecting(predictions: Path, **data: Any) -> None:
    detect_checks.check(
        DetectConfig(RunConfig("r"), BoxedDataConfig(**data), evaluate=True, predictions=str(predictions))
    )


@pytest.mark.parametrize(
    "data",
    [
        {"masks": "{}/pngs.json"},
        {"masks": "{}/a.json", "panoptic_folder": "{}/pngs"},
        {"masks": "{}/a.json", "validation": "others", "validation_masks": "{}/pngs.JSON"},
        {
            "masks": "{}/a.json",
            "validation": "others",
            "validation_masks": "{}/b.json",
            "validation_panoptic_folder": "{}/pngs",
        },
    ],
)
def test_masks_do_not_replace_pngs_of_segments(data: dict[str, str], tmp_path: Path) -> None:
    data = {key: value.format(tmp_path) for key, value in data.items()}
    with pytest.raises(UserError, match=r"predictions '.*pngs' is a folder of images or masks"):
        segmenting(tmp_path / "x" / ".." / "pngs", **data)
    segmenting(tmp_path / "elsewhere", **data)


@pytest.mark.parametrize("key", ["source", "labels", "validation"])
def test_classes_do_not_replace_tables(key: str, tmp_path: Path) -> None:
    def tuning(predictions: Path, **data: Any) -> None:
        data = {"source": str(tmp_path / "photos"), "labels": str(tmp_path / "b.csv")} | data
        finetune_checks.check(
            FinetuneConfig(RunConfig("r"), LabelledDataConfig(**data), evaluate=True, predictions=str(predictions))
        )

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    for name in ("a.csv", "link.csv", "photos/train.csv"):
        with pytest.raises(UserError, match=r"predictions '.*csv' is a table of images or labels"):
            tuning(tmp_path / name, **{key: str(tmp_path / "a.csv")} if name[0] != "p" else {})
    tuning(tmp_path / "photos" / "new.csv")


@pytest.mark.parametrize("data", [{"source": "{}/a.json"}, {"source": "photos", "validation": "{}/a.json"}])
def test_boxes_do_not_replace_annotations(data: dict[str, str], tmp_path: Path) -> None:
    data = {key: value.format(tmp_path) for key, value in data.items()}
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    for name in ("a.json", "link.json"):
        with pytest.raises(UserError, match=r"predictions '.*json' is a file of annotations"):
            detecting(tmp_path / name, **data)
    detecting(tmp_path / "b.json", **data)
