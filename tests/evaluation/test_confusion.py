import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from PIL import Image

from swin_mim.evaluation.confusion import LONGEST, SHOWN, most_confused, save_confusion


def random_counts(classes, seed=0):
    """Confusions of a fair classifier; the last class but one has no images."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(4, size=(classes, classes)) * (rng.random((classes, classes)) < 0.3)
    counts += np.diag(rng.integers(1, 30, size=classes))
    counts[-2 if classes > 2 else 0] = 0
    return counts


def figure_of(monkeypatch, folder, counts, names):
    """The figure of which the picture would be made."""
    saved = []
    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
        save_confusion(folder / "c.png", counts, names)
    (figure,) = saved
    return figure


def texts(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# ---- which classes are shown ----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 10**6))
def test_the_most_confused_have_the_most_mistakes_from_and_to_them(classes, seed):
    counts = np.random.default_rng(seed).integers(3, size=(classes, classes))
    mistakes = []
    for k in range(classes):
        others = [j for j in range(classes) if j != k]
        mistakes.append(sum(counts[k, j] for j in others) + sum(counts[j, k] for j in others))
    expected = sorted(range(classes), key=lambda k: (-mistakes[k], k))[:SHOWN]
    assert most_confused(counts).tolist() == sorted(expected)


def test_right_predictions_do_not_make_a_class_confused():
    counts = np.diag(np.arange(50) * 1000)
    counts[7, 3] = 1
    counts[49, 48] = 2
    assert most_confused(counts).tolist() == [*range(38), 48, 49]


def test_up_to_the_limit_every_class_is_shown():
    assert most_confused(np.zeros((SHOWN, SHOWN), dtype=np.int64)).tolist() == list(range(SHOWN))


# ---- the picture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 20, 21, 45])
def test_the_picture_is_a_png_and_no_figure_is_left_open(tmp_path, classes):
    path = tmp_path / "new" / "confusion.png"
    save_confusion(path, random_counts(classes), [f"class {k}" for k in range(classes)])
    assert plt.get_fignums() == []
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()
        assert 400 <= min(picture.size) <= max(picture.size) <= 1400
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10, "it is blank"


def test_the_size_depends_on_the_number_of_classes_alone(tmp_path):
    sizes = set()
    for seed, names in enumerate((["a"] * 4, ["a very long name that needs much space"] * 4)):
        save_confusion(tmp_path / "c.png", random_counts(4, seed), names)
        with Image.open(tmp_path / "c.png") as picture:
            sizes.add(picture.size)
    assert len(sizes) == 1


def test_the_same_counts_make_the_same_picture(tmp_path):
    for name in ("first", "again"):
        save_confusion(tmp_path / name / "c.png", random_counts(4), ["a", "b", "c", "d"])
    assert (tmp_path / "first" / "c.png").read_bytes() == (tmp_path / "again" / "c.png").read_bytes()


def test_a_cell_is_the_share_of_the_images_of_its_row(tmp_path, monkeypatch):
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 998, 0]])
    figure = figure_of(monkeypatch, tmp_path, counts, ["a", "b", "c"])
    (axes,) = figure.axes
    (cells,) = axes.images
    assert cells.get_array().tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0.002, 0.998, 0]]
    assert cells.get_clim() == (0, 1)
    numbers = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "75%", (0, 1): "25%", (2, 0): "<1%", (2, 1): "100%"}
    assert texts(axes.xaxis) == texts(axes.yaxis) == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted", "true", "")


@pytest.mark.parametrize(("classes", "numbered"), [(20, True), (21, False)])
def test_many_cells_have_no_numbers(tmp_path, monkeypatch, classes, numbered):
    counts = random_counts(classes)
    figure = figure_of(monkeypatch, tmp_path, counts, [str(k) for k in range(classes)])
    assert len(figure.axes[0].texts) == (np.count_nonzero(counts) if numbered else 0)


def test_of_more_classes_the_most_confused_are_shown_under_their_names(tmp_path, monkeypatch):
    counts = np.diag(np.full(45, 10))
    counts[44, 5] = 30
    counts[9, 8] = 30
    figure = figure_of(monkeypatch, tmp_path, counts, [f"class {k}" for k in range(45)])
    shown = [*range(39), 44]
    axes = figure.axes[0]
    assert texts(axes.xaxis) == texts(axes.yaxis) == [f"class {k}" for k in shown]
    assert axes.get_title() == "the 40 of 45 classes that are confused most"
    share = axes.images[0].get_array()
    assert share.shape == (40, 40)
    assert (share[39, 5], share[39, 39], share[9, 8]) == (0.75, 0.25, 0.75)


def test_images_that_went_to_a_class_outside_the_picture_count_too(tmp_path, monkeypatch):
    counts = np.diag(np.full(45, 100))
    counts[np.arange(40), (np.arange(40) + 1) % 40] = 100
    counts[0, 40:] = 40
    figure = figure_of(monkeypatch, tmp_path, counts, [f"class {k}" for k in range(45)])
    share = figure.axes[0].images[0].get_array()
    assert share.shape == (40, 40)
    assert share[0, :3].tolist() == [0.25, 0.25, 0]


def test_long_names_are_cut(tmp_path, monkeypatch):
    names = ["x" * LONGEST, "y" * (LONGEST + 1)]
    figure = figure_of(monkeypatch, tmp_path, np.eye(2, dtype=np.int64), names)
    first, second = texts(figure.axes[0].xaxis)
    assert first == names[0]
    assert second == "y" * (LONGEST - 3) + "..."


@pytest.mark.parametrize("counts", [np.zeros((3, 3), dtype=np.int64), np.diag([4, 0, 1])], ids=["none", "one"])
def test_a_class_without_images_is_an_empty_row(tmp_path, monkeypatch, counts):
    figure = figure_of(monkeypatch, tmp_path, counts, ["a", "b", "c"])
    share = figure.axes[0].images[0].get_array()
    assert np.array_equal(share.sum(axis=1), np.diag(counts) > 0)


ODD = ["_hidden", "__", "snake_case", "a^b_c", "\\alpha", "50 %", "#1", "{x}", "US$", "", " ", "Straße Ж é", "a\nb"]


def test_odd_names_stand_in_the_picture_as_they_are(tmp_path, monkeypatch):
    counts = random_counts(len(ODD))
    assert texts(figure_of(monkeypatch, tmp_path, counts, ODD).axes[0].yaxis) == ODD
    save_confusion(tmp_path / "c.png", counts, ODD)


@pytest.mark.parametrize("name", ["$5 to $10", "$\\frac$", "US$ and A$_{", "$x$", "$$"])
def test_dollars_are_dollars(tmp_path, monkeypatch, name):
    def mathematics(self, text, *_, **__):
        raise AssertionError(f"{text} is no formula")

    monkeypatch.setattr(MathTextParser, "parse", mathematics)
    try:
        save_confusion(tmp_path / "c.png", np.eye(2, dtype=np.int64), [name, "b"])
    finally:
        plt.close("all")


def test_a_script_that_the_font_lacks_is_no_warning(tmp_path):
    try:
        save_confusion(tmp_path / "c.png", np.eye(2, dtype=np.int64), ["雪", "b"])
    finally:
        plt.close("all")


def test_after_an_error_no_figure_is_left_open(tmp_path):
    (tmp_path / "file").write_text("no folder")
    try:
        with pytest.raises(OSError, match="file"):
            save_confusion(tmp_path / "file" / "c.png", np.eye(2, dtype=np.int64), ["a", "b"])
        assert plt.get_fignums() == []
    finally:
        plt.close("all")
