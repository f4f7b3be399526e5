"""`python -m tools.characters` with the fonts that matplotlib ships."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from swin_mim.data.labels import open_labelled
from tools import characters

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SMALL = ["--classes", "4", "--unlabelled", "30", "--each", "5", "--size", "32", "--block", "41-5A"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("characters") / "out"
    characters.main([str(FONTS), str(out), *SMALL])
    return out


def test_folders_are_classes_and_typefaces_are_apart(made):
    told = json.loads((made / "made.json").read_text())
    assert told["pictures"] == {"unlabelled": 30, "train": 20, "validation": 20, "test": 20}
    assert told["characters"] == 26
    for part in ("train", "validation", "test"):
        assert [len(list(folder.iterdir())) for folder in sorted((made / part).iterdir())] == [5] * 4
        assert len(open_labelled(str(made / part)).names) == 4
    families = [name for part in told["families"].values() for name in part]
    assert len(families) == len(set(families)) >= 3
    for path in made.rglob("*.png"):
        with Image.open(path) as picture:
            values = np.asarray(picture)
        assert values.shape == (32, 32, 3)
        assert len(np.unique(values.reshape(-1, 3), axis=0)) > 2, f"{path} is empty"


def test_the_same_again_gives_the_same_bytes(made, tmp_path):
    characters.main([str(FONTS), str(tmp_path / "again"), *SMALL])
    files = [path.relative_to(made) for path in sorted(made.rglob("*.*"))]
    assert all((made / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


@pytest.mark.parametrize(("words", "text"), [
    ([str(FONTS), "OUT", *SMALL, "--classes", "27"], "typefaces share 26 characters, and --classes is 27"),
    ([".", "OUT", *SMALL], "has no font with characters from U+0041 to U+005A"),
    ([str(FONTS), "OUT", *SMALL, "--block", "A"], "two code points in hex"),
    ([str(FONTS), str(FONTS), *SMALL], "is not empty: name a new folder"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        characters.main(words)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_validation_may_have_another_number_of_pictures(tmp_path, made):
    out = tmp_path / "out"
    characters.main([str(FONTS), str(out), *SMALL, "--validation-each", "2"])
    assert json.loads((out / "made.json").read_text())["pictures"]["validation"] == 8
    for part, count in (("validation", 2), ("test", 5)):
        for folder in (made / part).iterdir():
            same = [path.name for path in sorted((out / part / folder.name).iterdir())]
            assert len(same) == count
    names = [path.relative_to(made) for part in ("train", "test") for path in (made / part).rglob("*.png")]
    assert all((out / name).read_bytes() == (made / name).read_bytes() for name in names)
