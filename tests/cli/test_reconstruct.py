"""What a masked image model makes of chosen images, as pictures: seeds, ratios, channels, and what has no head."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swin_mim import SimMIM, SwinClassifier, SwinConfig
from swin_mim.cli import reconstruct
from swin_mim.evaluation.reconstruction import HOLE, GridLayout
from swin_mim.models.saving import Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = SwinConfig(32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked image model in mim/ and in a run of other masks, a classifier in fine/, two photographs of one name."""
    root = tmp_path_factory.mktemp("reconstruct")
    rng = np.random.default_rng(0)
    for name in ("a/x.jpg", "b/x.png"):
        path = root / name
        path.parent.mkdir()
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    (root / "broken.png").write_bytes(b"broken")
    SimMIM(CONFIG).save_pretrained(root / "mim")
    SimMIM(CONFIG).save_pretrained(root / "run" / "export")
    (root / "run" / "config.yaml").write_text("mask:\n  unit: 8\n  ratio: 0.25\n")
    SwinClassifier(CONFIG, 2).save_pretrained(root / "fine")
    return root


def draw(folder: Path, *words: str) -> None:
    reconstruct.main([word.replace("@", f"{folder}/") for word in words])


def holes(path: Path, side: int) -> np.ndarray:
    """bool (units, units): which of the image are hidden in its second cell."""
    layout = GridLayout(1, 32, 32)
    with Image.open(path) as picture:
        left, top = layout.corner(0, 1)
        cell = np.asarray(picture.convert("RGB"))[top : top + layout.cell[1], left : left + layout.cell[0]]
    unit = side * layout.scale
    centres = cell[unit // 2 :: unit, unit // 2 :: unit].astype(int)
    return (abs(centres - np.array(HOLE)) <= 2).all(axis=2)


def test_four_cells_with_the_masks_that_were_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(folder, "@mim", "@a/x.jpg", "@b/x.png", "--out", str(tmp_path), "--unit", "8", "--ratio", "0.5")
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["x.png", "x_2.png"]
    masks = [holes(path, 8) for path in written]
    assert [mask.sum() for mask in masks] == [8, 8]
    assert (masks[0] != masks[1]).any()
    draw(folder, "@mim", "@a/x.jpg", "--out", str(tmp_path / "again"), "--unit", "8", "--ratio", "0.5")
    assert (tmp_path / "again" / "x.png").read_bytes() == written[0].read_bytes()
    draw(folder, "@mim", "@a/x.jpg", "--out", str(tmp_path / "again"), "--unit", "8", "--ratio", "0.5", "--seed", "1")
    assert (holes(tmp_path / "again" / "x.png", 8) != masks[0]).any()
    draw(folder, "@run", "@a/x.jpg", "--out", str(tmp_path / "run"))  # as the run's settings say
    assert holes(tmp_path / "run" / "x.png", 8).sum() == 4


def test_one_of_several_that_cannot_be_read_and_names_that_meet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(folder / "b" / "x.png", tmp_path / "x_2.png")
    images = ["@broken.png", "@a/x.jpg", "@b/x.png", f"{tmp_path}/x_2.png"]
    draw(folder, "@mim", *images, "--out", str(tmp_path / "drawn"))
    written = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert written == ["x.png", "x_2.png", "x_2_2.png"]
    assert ["broken.png cannot be read: " in message for message in caplog.messages] == [True]
    with pytest.raises(SystemExit) as left:
        draw(folder, "@mim", "@broken.png", "@broken.png", "--out", str(tmp_path / "drawn"))
    assert left.value.code == 2
    assert "none of the 2 images can be read, the first: " in capsys.readouterr().err


def test_other_channels_in_false_colours(tmp_path: Path) -> None:
    model = SimMIM(SwinConfig(32, in_channels=6, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4))
    model.preprocessing = Preprocessing((500.0,) * 6, (100.0,) * 6, tuple("123456"), scale=1)
    model.save_pretrained(tmp_path / "mim")
    values = np.random.default_rng(0).integers(300, 700, (40, 40, 6)).astype(np.uint16)
    np.save(tmp_path / "scene.npy", values)
    command = [f"{tmp_path}/mim", f"{tmp_path}/scene.npy", "--unit", "8", "--out"]
    reconstruct.main([*command, f"{tmp_path}/drawn"])
    with Image.open(tmp_path / "drawn" / "scene.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB"))[..., 0])) > 50
    reconstruct.main([*command, f"{tmp_path}/grey", "--picture_channels", "4"])
    assert (tmp_path / "grey" / "scene.png").read_bytes() != (tmp_path / "drawn" / "scene.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("@fine", "@a/x.jpg"),
            "fine is a SwinClassifier, not a SimMIM with its pixel head: swin-mim predict says the",
        ),
        (("@mim", "@none.jpg"), "none.jpg does not exist: name image files"),
        (("@mim", "@a"), "is a folder or a table: name image files"),
        (("@mim", "@broken.png"), "broken.png cannot be read: "),
        (("@mim", "@a/x.jpg", "--out", "@a"), "a/x.jpg, which a picture could replace: name another"),
        (("@mim", "@a/x.jpg", "--ratio", "2"), "--ratio 2.0 must be between 0 and 1"),
        (("@mim", "@a/x.jpg", "--unit", "12"), "--unit 12 must be a multiple of the patch size 4 and divide"),
        (("@mim", "@a/x.jpg", "--stack", "{image}_{channel}.png"), "--stack is of folders"),
    ],
)
def test_a_users_mistake_is_one_line(
    folder: Path, tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        draw(folder, "--out", str(tmp_path / "drawn"), *words)
    said = capsys.readouterr()
    assert (left.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert message in said.err
    assert not (tmp_path / "drawn").exists()


def test_a_folder_that_cannot_be(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        draw(folder, "--out", str(tmp_path / "file" / "drawn"), "@mim", "@a/x.jpg")
    said = capsys.readouterr().err
    assert f"cannot write {tmp_path}/file/drawn: Not a directory: name another folder" in said
    assert said.count("\n") == 1
