"""The page as HTML: what it holds, that names stay names, and that it stays small. A browser opens it elsewhere."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import made_runs
import pytest

from swin_mim.errors import UserError
from swin_mim.evaluation.report import page
from swin_mim.evaluation.report.page import LARGEST, REPORT, body, render, write_report


class Elements(HTMLParser):
    """What elements a page has, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without five megabytes of a library."""
    monkeypatch.setattr(page, "plotly_js", lambda: "")


def data_of(html: str) -> dict[str, object]:
    (text,) = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', html, flags=re.DOTALL)
    found: dict[str, object] = json.loads(text)
    return found


def test_a_pretraining_has_all_of_its_sections(tmp_path: Path, short: None) -> None:
    elements = Elements(render([made_runs.pretraining(tmp_path / "demo")]))
    ids = [about.get("id") for tag, about in elements.tags if tag == "section"]
    assert ids == ["overview", "curves", "reconstructions", "probes", "data", "settings", "machine"]
    links = [about["href"] for tag, about in elements.tags if tag == "a"]
    assert links == [f"#{each}" for each in ids]
    assert "torch 2.11.0" in elements.text
    assert "Those of demo." in elements.text


def test_an_evaluation_shows_confusions_worst_images_and_drawings(tmp_path: Path, short: None) -> None:
    elements = Elements(render([made_runs.finetuning(tmp_path / "fine")]))
    pictures = [about for tag, about in elements.tags if tag == "img"]
    assert [about["alt"] for about in pictures] == [
        f"{made_runs.NASTY}.jpg",
        "Segmentation, a row for each image",
        "Detections, row 1 of 2",
        "Detections, row 2 of 2",
    ]
    assert "On the left the objects that are there, on the right what was found" in elements.text
    assert all(str(about["src"]).startswith("data:image/") for about in pictures)
    assert "cat 97.0 %" in elements.text


def test_names_stay_names(tmp_path: Path, short: None) -> None:
    runs = [made_runs.pretraining(tmp_path / "demo"), made_runs.finetuning(tmp_path / "fine")]
    config = (runs[0] / "config.yaml").read_text().replace("name: demo", f"name: '{made_runs.NASTY}'")
    (runs[0] / "config.yaml").write_text(config)
    html = render(runs)
    elements = Elements(html)
    scripts = [about for tag, about in elements.tags if tag == "script"]
    assert scripts == [{}, {"type": "application/json", "id": "report-data"}, {}]
    assert "alert(1)</script>" not in html
    assert elements.text.count("alert(1)") > 6  # the run, its broken and skipped images, the class, the worst images
    lines = data_of(html)["charts"]["loss"]["lines"]  # type: ignore[index]
    assert lines[0]["name"] == f"{made_runs.NASTY}: training"


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    html = render([made_runs.pretraining(tmp_path / "demo")])
    elements = Elements(html)
    outside = [
        about for _, about in elements.tags for key in ("src", "href") if str(about.get(key, "data:"))[0] not in "d#"
    ]
    assert outside == []
    (policy,) = [about["content"] for tag, about in elements.tags if about.get("http-equiv")]
    assert str(policy).startswith("default-src 'none'; img-src data: blob:;")
    assert "connect-src" not in str(policy)
    assert "script-src 'sha256-" in str(policy)


def test_headings_are_in_order(tmp_path: Path, short: None) -> None:
    for runs in (["a"], ["a", "b"]):
        made = [made_runs.pretraining(tmp_path / f"{len(runs)}{name}") for name in runs]
        fine = made_runs.finetuning(tmp_path / f"{len(runs)}fine")
        levels = [
            int(tag[1]) for tag, _ in Elements(render([*made, fine][-len(runs) :])).tags if re.fullmatch(r"h\d", tag)
        ]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_several_runs_say_what_differs(tmp_path: Path, short: None) -> None:
    runs = [made_runs.pretraining(tmp_path / "a"), made_runs.pretraining(tmp_path / "b", seed=1, mask__ratio=0.4)]
    html = render(runs)
    (table,) = re.findall(r'aria-label="Settings that differ between the runs">(.*?)</table>', html, flags=re.DOTALL)
    assert re.sub(r"<[^>]*>", " ", table.replace("<wbr>", "")).split() == [
        "setting",
        "a",
        "b",
        "mask.ratio",
        "0.6",
        "0.4",
    ]
    frames = data_of(html)["frames"]
    assert set(frames) == {"run0", "run1"}  # type: ignore[call-overload]


def test_a_large_run_stays_below_the_limit(tmp_path: Path) -> None:
    """Whole, with the library: 30,000 lines of metrics, and pictures that do not compress."""
    import numpy as np
    from PIL import Image

    folder = made_runs.pretraining(tmp_path / "large", steps=300_000, pictures=0)
    draw = np.random.default_rng(0)
    (folder / "samples").mkdir()
    for step in range(0, 3000, 300):
        noise = draw.integers(0, 255, (700, 1300, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "samples" / f"step_{step:07d}.png", compress_level=0)
    made_runs.lines(folder / "broken_images.jsonl", [{"name": f"{k}" * 50, "reason": "x" * 100} for k in range(5000)])
    write_report([folder], tmp_path / REPORT)
    assert (tmp_path / REPORT).stat().st_size < LARGEST
    assert len(data_of((tmp_path / REPORT).read_text())["frames"]["run0"]) > 1  # type: ignore[index]


def test_a_page_that_would_be_too_large_is_refused(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(UserError, match="more than 1,000: take fewer runs"):
        render([made_runs.pretraining(tmp_path / "demo")])
    with pytest.raises(UserError, match="7 runs are too many to tell apart: name 6 at most"):
        render([tmp_path] * 7)


def test_what_changes_is_a_part_of_the_page(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.time, "strftime", lambda *_: "now")
    folder = made_runs.pretraining(tmp_path / "demo")
    html = render([folder], live="1")
    assert body([folder]) in html
    (policy,) = [about["content"] for _, about in Elements(html).tags if about.get("http-equiv")]
    assert str(policy).endswith("; connect-src 'self'")


def test_a_page_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    folder = made_runs.pretraining(tmp_path / "demo")
    (folder / REPORT).write_text("before")
    (folder / "config.yaml").write_text("run: [")
    with pytest.raises(UserError, match="damaged"):
        write_report([folder], folder / REPORT)
    assert (folder / REPORT).read_text() == "before"


def test_changed_settings_hold_no_secrets(tmp_path: Path, short: None) -> None:
    folder = made_runs.pretraining(tmp_path / "demo")
    line = "data.source: https://me:pass@host/a.tar -> https://host/b.tar?X-Amz-Signature=secret"
    (folder / "config_changes.jsonl").write_text(json.dumps({"step": 7, "changes": [line, "data.workers: 1 -> 2"]}))
    html = render([folder])
    text = Elements(html).text
    assert "at step 7: data.source: https://***@host/a.tar -> https://host/b.tar; data.workers: 1 -> 2" in text
    assert "secret" not in html
    assert "pass@" not in html
