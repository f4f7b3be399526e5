"""The page of swin-mim embed: what it shows, that it asks nobody for anything, and that its lists are of use."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import chromium
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import swin_mim
from swin_mim import SimMIM, SwinConfig
from swin_mim.cli import embed
from swin_mim.evaluation.overview import thumbnails
from swin_mim.models.saving import Preprocessing
from tools import forked

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
ODD = '<img src="x" onerror=alert(1)> & "quoted".png'
COPIES = ("b/copy.png", "b/second copy.png")
BROKEN = ("a/07.png", "a/not <b>there.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in mim/, photos/ of two classes with copies, an odd name and broken files, and page/."""
    root = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    photos = root / "photos"
    for number in range(40):
        path = photos / ("a" if number < 20 else "b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        coarse.resize((60, 50), Image.Resampling.BICUBIC).save(path)
    for name in COPIES:
        shutil.copy(photos / "a/03.png", photos / name)
    Image.open(photos / "b/30.png").point(lambda value: value * 0.97).save(photos / "b/dark.jpg", quality=80)
    shutil.copy(photos / "b/31.png", photos / "b" / ODD)
    for name in BROKEN:
        (photos / name).write_bytes(b"broken")
    torch.manual_seed(0)
    model = SimMIM(SwinConfig(32, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4))
    model.save_pretrained(root / "mim")
    (end,) = run(root, "--out", "with.parquet", "--page", "page")
    assert end.code == 0, end.said
    (root / "said").write_text(end.said)
    return root


def run(folder: Path, *words: str, processes: int = 1) -> list[forked.End]:
    command = ["-m", "swin_mim", "embed", "mim", "photos", "--batch", "8", "--workers", "0", *words]
    return forked.run(command, folder, environment=ENVIRONMENT, processes=processes, timeout=120)


class Page(HTMLParser):
    """What a browser would see of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.names: list[str] = []
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = {key: value or "" for key, value in attributes}
        self.tags.add(tag)
        assert not any(key.startswith("on") for key in known)
        self.addresses += [known[key] for key in ("src", "href", "action", "data", "srcset") if key in known]
        if "data-name" in known:
            self.names.append(known["data-name"])
            assert known["aria-label"] == f"leave out {known['data-name']}"
        if tag == "img":
            self.alts.append(known["alt"])
        if "id" in known:
            self.ids.append(known["id"])


def test_a_page_shows_what_there_is_and_asks_nobody(folder: Path) -> None:
    text = (folder / "page/index.html").read_text()
    page = Page(text)
    assert all(address.startswith(("data:image/webp;base64,", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text
    there = {path.relative_to(folder / "photos").as_posix() for path in (folder / "photos").rglob("*.*")}
    assert {*COPIES, *BROKEN, f"b/{ODD}", "b/dark.jpg"} <= set(page.names) <= there
    assert len(set(page.names)) > 30
    assert f"b/{ODD}" in page.alts
    assert '<img src="x"' not in text
    assert page.alts.count("a/07.png") == 0
    assert "img" in page.tags
    said = (folder / "said").read_text()
    assert "page/index.html: 45 images, " in said
    assert "index_equal.txt of 3 images, index_duplicates.txt of 4 images" in said
    assert len(text.encode()) < 1_000_000


def test_all_but_one_of_each_group_are_suggested_and_can_be_left_out(folder: Path) -> None:
    equal = (folder / "page/index_equal.txt").read_text().splitlines()
    duplicates = (folder / "page/index_duplicates.txt").read_text().splitlines()
    assert set(equal) == {*COPIES, f"b/{ODD}"}  # behind 31.png, by name
    assert {name for name in duplicates if name not in equal} == {"b/dark.jpg"}
    (end,) = run(folder, "--out", "fewer.parquet", "--exclude", "page/index_duplicates.txt")
    assert end.code == 0, end.said
    whole, fewer = (pq.read_table(folder / name).to_pylist() for name in ("with.parquet", "fewer.parquet"))
    assert [row["image"] for row in fewer] == [row["image"] for row in whole if row["image"] not in duplicates]
    assert [row["label"] for row in fewer] == [row["image"][0] for row in fewer]
    exclude = str(folder / "page/index_duplicates.txt")
    found = swin_mim.embed(folder / "mim", folder / "photos", batch=8, workers=0, exclude=exclude)
    assert found.names == [row["image"] for row in fewer]
    assert found.labels == [row["label"] for row in fewer]
    (end,) = run(folder, "--out", "with.parquet", "--exclude", "page/index_duplicates.txt")
    assert end.code == 2
    assert "with.parquet is of another source, or its files or --exclude have changed: name another --out" in end.said


def test_a_page_of_a_file_that_was_finished_without_is_the_same(folder: Path) -> None:
    """The hashes are columns where a page was asked for, and else made of the images; the features are the same."""
    (end,) = run(folder, "--out", "without.parquet")
    assert end.code == 0, end.said
    without, with_hashes = (pq.read_table(folder / name) for name in ("without.parquet", "with.parquet"))
    assert with_hashes.column_names == ["image", "label", "pixels", "look", "embedding", "error"]
    assert without.equals(with_hashes.drop(["pixels", "look"]))
    (end,) = run(folder, "--out", "without.parquet", "--page", "later.html")
    assert end.code == 0, end.said
    assert "without.parquet: finished before" in end.said
    first, later = ((folder / name).read_text() for name in ("page/index.html", "later.html"))
    assert later.replace("later_", "index_").replace("without", "with") == first.replace("without", "with")


def test_two_processes_write_one_page(folder: Path) -> None:
    ends = run(folder, "--out", "two.parquet", "--page", "two.html", processes=2)
    assert [end.code for end in ends] == [0, 0], ends[0].said
    assert sum("two.html: 45 images" in end.said for end in ends) == 1
    first, two = ((folder / name).read_text() for name in ("page/index.html", "two.html"))
    assert two.replace("two_", "index_").replace("of two show", "of with show").replace("two:", "with:") == first


def test_neighbours_of_images_that_are_named(folder: Path) -> None:
    (end,) = run(folder, "--out", "with.parquet", "--page", "like.html", "--like", "b/dark.jpg", "--clusters", "2")
    assert end.code == 0, end.said
    text = (folder / "like.html").read_text()
    part = text[text.index('id="neighbours"') : text.index('id="outliers"')]
    assert Page(part).names[:2] == ["b/dark.jpg", "b/30.png"]
    assert Page(text[text.index('id="clusters"') : text.index('id="neighbours"')]).tags >= {"h2", "h3"}
    for name, reason in (
        ("b/gone.png", "no image is called 'b/gone.png'"),
        ("a/07.png", "'a/07.png' cannot be read: "),
    ):
        (end,) = run(folder, "--out", "with.parquet", "--page", "like.html", "--like", name)
        assert end.code == 2
        assert reason in end.said


def test_pages_of_images_of_other_channels_are_in_false_colours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SimMIM(SwinConfig(32, in_channels=6, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4))
    names = tuple("123456")
    model.preprocessing = Preprocessing(mean=(0.0,) * 6, std=(1.0,) * 6, channels=names, scale=1.0)
    model.save_pretrained(tmp_path / "mim")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        np.save(tmp_path / f"photos/{number:02}.npy", rng.normal(size=(40, 44, 6)).astype(np.float32))
    (end,) = run(tmp_path, "--out", "bands.parquet", "--page", "bands.html", "--picture_channels", "6", "2", "1")
    assert end.code == 0, end.said
    assert Page((tmp_path / "bands.html").read_text()).alts.count("03.npy") >= 1
    (end,) = run(tmp_path, "--out", "bands.parquet", "--page", "bands.html", "--picture_channels", "7")
    assert end.code == 2
    assert end.said.count("\n") == 1
    assert "--picture_channels 7 must be one or three of the channels" in end.said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "a.parquet", "--clusters", "3"), "--clusters is of the page: name its place with --page"),
        (("--out", "a.parquet", "--page", "p", "--clusters", "0"), "--clusters 0 must be at least 1"),
        (("--out", "maps", "--maps", "--page", "p"), "--page is of pooled features: leave --maps out"),
        (("--out", "a.parquet", "--page", "pyproject.toml"), "--page pyproject.toml is a file"),
    ],
)
def test_options_that_cannot_be(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        embed.main(["model", "source", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--like", "a/00.png", "b/gone.png"), "no image is called 'b/gone.png': names are as 'a/00.png'"),
        (("--picture_channels", "1"), "--picture_channels 1: images that are read as RGB are shown so, leave it out"),
    ],
)
def test_what_the_images_do_not_have_is_said_before_they_are_embedded(
    words: tuple[str, ...], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folder / "mim"), str(folder / "photos"), "--workers", "0", "--page", str(tmp_path / "page.html")]
    with pytest.raises(SystemExit) as ended:
        embed.main([*given, "--out", str(tmp_path / "new.parquet"), *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_thumbnails_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more pictures there are, the fewer bytes each has."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 144, 144), dtype=np.uint8)
    pictures = dict.fromkeys(range(20), torch.from_numpy(noise))
    whole = thumbnails.encoded(pictures)
    monkeypatch.setattr(thumbnails, "MAX_BYTES", len(whole[0]) * 20 * 3 // 4 // 4)
    assert sum(map(len, thumbnails.encoded(pictures).values())) < sum(map(len, whole.values())) / 3


SCRIPT = """<script>
window.addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("input[data-name]")];
  const said = [];
  boxes.find(box => box.dataset.name === "b/copy.png").click();
  document.querySelector("#equal [data-mark=rest]").click();
  said.push(document.querySelector("footer output").value, JSON.stringify(document.getElementById("list").value));
  said.push(boxes.filter(box => box.dataset.name === "b/copy.png").every(box => box.checked));
  document.getElementById("clear").click();
  said.push(document.querySelector("footer output").value, boxes.some(box => box.checked));
  said.push(document.documentElement.scrollWidth <= window.innerWidth);
  said.push([...document.images].every(image => image.loading === "lazy" || image.naturalWidth));
  document.title = said.join("|");
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 500])
def test_names_are_marked_in_a_browser(folder: Path, tmp_path: Path, width: int) -> None:
    browser = chromium.browser_path()
    if browser is None:
        pytest.skip(f"there is no Chromium here: {chromium.VARIABLE} names one")
    page = tmp_path / "page.html"
    page.write_text((folder / "page/index.html").read_text().replace("</body>", SCRIPT))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        f"--window-size={width},900",
    ]
    command = [browser, *options, "--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (title,) = re.findall("<title>(.*)</title>", done.stdout)
    marked, names, together, none, left, narrow, drawn = title.split("|")
    assert marked == "2 images marked"
    assert names == '"b/copy.png\\nb/second copy.png\\n"'
    assert (together, none, left, narrow, drawn) == ("true", "None marked", "false", "true", "true")
    assert "CONSOLE" not in done.stderr
