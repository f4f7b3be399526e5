"""The images that a classifier gets most wrong: which they are, and what the file holds of them."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swin_mim.data.decoding.decode_limits import BrokenImage
from swin_mim.data.decoding.raster import Raster
from swin_mim.data.labels import Labelled
from swin_mim.data.sources.base import Source
from swin_mim.evaluation.classification import Outcome
from swin_mim.evaluation.worst_images import SIDE, WORST, save_worst, worst

NAMES = ("ant", "bee")


class Pictures(Source):
    """Image k is as wide as 100 + k pixels; the third cannot be read any more."""

    def __init__(self, channels: tuple[str, ...] | None = None) -> None:
        self.channels = channels

    def __len__(self) -> int:
        return 40

    def name(self, index: int) -> str:
        return f"{index}.png"

    def image(self, index: int) -> Any:
        if index == 3:
            raise BrokenImage("it is gone")
        if self.channels is None:
            return Image.new("RGB", (2 * (100 + index), 100), (200, 10, 10))
        values = np.zeros((50, 60, len(self.channels)), np.uint16)
        values[:25, :, 2] = 4000
        valid = np.ones((50, 60), bool)
        valid[:, :6] = False
        return Raster(values, valid)


def outcome(loss: list[float], right: list[bool]) -> Outcome:
    """Of images 0, 1, ... of class "ant"."""
    top = np.array([[0, 1] if hit else [1, 0] for hit in right])
    targets, probabilities = np.zeros(len(loss), np.int64), np.tile([0.75, 0.25], (len(loss), 1))
    return Outcome(np.arange(len(loss)), targets, np.array(loss), top, probabilities, 0, 2)


def labelled(channels: tuple[str, ...] | None = None) -> Labelled:
    return Labelled(Pictures(channels), NAMES, np.zeros(40, np.int64))


def test_the_highest_losses_of_wrong_predictions_come_first() -> None:
    assert worst(outcome([0.1, 3.0, 9.0, 2.0], [False, False, True, False])) == [1, 3, 0]
    assert worst(outcome([1.0, np.nan, 2.0], [False, False, False])) == [1, 2, 0]
    assert len(worst(outcome([float(k) for k in range(40)], [False] * 40))) == WORST
    assert worst(outcome([1.0], [True])) == []


def test_of_several_labels_any_wrong_one_counts() -> None:
    targets = np.array([[True, False], [True, True], [False, False]])
    probabilities = np.array([[0.9, 0.2], [0.9, 0.4], [0.1, 0.1]])
    several = Outcome(np.arange(3), targets, np.array([0.1, 0.5, 0.9]), np.zeros((3, 2), int), probabilities, 0, 2)
    assert worst(several) == [1]


def read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["images"]
    return found


def pixels(address: str) -> np.ndarray:
    kind, _, text = address.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def test_the_file_names_labels_predictions_and_pictures(tmp_path: Path) -> None:
    save_worst(tmp_path / "worst.json", outcome([0.5, 1.0, 2.0, np.nan], [False] * 4), labelled(), step=7)
    assert json.loads((tmp_path / "worst.json").read_text())["step"] == 7
    gone, second, *_ = read(tmp_path / "worst.json")
    said = {"label": "ant", "predicted": "bee", "probability": 0.75}
    assert gone == {"image": "3.png", **said, "loss": None, "picture": None}
    assert {key: value for key, value in second.items() if key != "picture"} == {"image": "2.png", **said, "loss": 2.0}
    picture = pixels(second["picture"])
    assert picture.shape == (78, SIDE, 3)  # 204 x 100
    assert np.abs(picture - [200, 10, 10]).max() < 12


def test_other_channels_are_shown_as_colours(tmp_path: Path) -> None:
    bands = labelled(("red", "green", "blue", "nir"))
    save_worst(tmp_path / "worst.json", outcome([0.5], [False]), bands, step=None)
    picture = pixels(read(tmp_path / "worst.json")[0]["picture"])
    assert picture.shape == (50, 60, 3)
    assert np.abs(picture[5:20, 12:, :] - [0, 0, 255]).max() < 40
    assert picture[30:, 12:].max() < 40
    assert picture[:, :3].min() > 215


@pytest.mark.parametrize("right", [True, False])
def test_without_mistakes_there_are_none(tmp_path: Path, right: bool) -> None:
    save_worst(tmp_path / "worst.json", outcome([0.5], [right]), labelled(), step=1)
    assert len(read(tmp_path / "worst.json")) == (not right)
