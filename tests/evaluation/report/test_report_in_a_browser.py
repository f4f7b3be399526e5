"""The page in Chromium: no fault, no request, all works with mouse and keys, and everybody can read it."""

import json
import math
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import chromium
import made_runs
import pytest

from swin_mim.evaluation.report.page import write_report
from swin_mim.evaluation.report.serve import ReportServer

pytestmark = pytest.mark.slow
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    if chromium.browser_path() is None:
        pytest.skip(f"there is no Chromium here: {chromium.VARIABLE} names one")
    with chromium.tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of pages: of a pretraining, a fine-tuning, two runs side by side, and one of a single line."""
    folder = tmp_path_factory.mktemp("pages")
    first = made_runs.pretraining(folder / "first")
    second = made_runs.pretraining(folder / "second", seed=1, mask__ratio=0.4)
    fine = made_runs.finetuning(folder / "fine")
    short = folder / "short"
    made_runs.lines(short / "metrics.jsonl", [{"step": 20, "loss": 0.5, "lr": 1e-5, "AP": 0.0, "AP50": 0.0}])
    found = {}
    shown = {"pretraining": [first], "fine-tuning": [fine], "both": [first, second], "short": [short]}
    for name, runs in shown.items():
        write_report(runs, folder / f"{name}.html")
        found[name] = (folder / f"{name}.html").as_uri()
    return found


@pytest.fixture
def opened(tab: chromium.Tab, pages: dict[str, str]) -> chromium.Tab:
    """The pretraining, as it is when one opens it."""
    tab.look(**DESK)
    tab.open(pages["pretraining"])
    return tab


@pytest.mark.parametrize("name", ["pretraining", "fine-tuning", "both"])
def test_it_opens_without_a_fault_and_without_a_request(tab: chromium.Tab, pages: dict[str, str], name: str) -> None:
    tab.requests.clear()
    tab.faults.clear()
    tab.look(**DESK)
    tab.open(pages[name])
    plots = "document.querySelectorAll('.plot')"
    assert tab.run(f"[...{plots}].filter(each => each.querySelector('.scatterlayer .trace')).length === {plots}.length")
    assert tab.faults == []
    assert [address for address in tab.requests if not address.startswith("data:")] == [pages[name]]


def test_every_curve_is_drawn(opened: chromium.Tab) -> None:
    traces = "[...document.querySelectorAll('.plot')].map(each => each.querySelectorAll('.scatterlayer .trace').length)"
    assert opened.run(traces) == [4, 1, 1, 1, 1, 1, 4]


def test_the_policy_stops_what_is_not_ours(opened: chromium.Tab) -> None:
    """The check above can fail: a picture of another place and a script in a name are refused, and that is heard."""
    opened.faults.clear()
    opened.run(
        "new Promise(done => { const image = new Image(); image.onerror = () => done(1);"
        " image.src = 'https://example.invalid/x.png'; })"
    )
    opened.run("document.body.insertAdjacentHTML('beforeend', '<i onclick=\"window.hit = 1\">x</i>')")
    opened.run("document.body.lastChild.click()")
    assert opened.run("window.hit === undefined")
    assert len(opened.faults) >= 2
    assert all("Content Security Policy" in fault for fault in opened.faults)


# --- zoom


def ranges(tab: chromium.Tab) -> list[list[float]]:
    """First and last step of every curve."""
    found: list[list[float]] = tab.run(
        "[...document.querySelectorAll('.plot')].map(each => each._fullLayout.xaxis.range)"
    )
    return found


def test_dragging_zooms_all_curves_and_a_button_shows_all_again(opened: chromium.Tab) -> None:
    before = ranges(opened)
    box = opened.run(
        "(() => { const box = document.querySelector('.plot .nsewdrag').getBoundingClientRect();"
        " return [box.left, box.top, box.width, box.height]; })()"
    )
    left, top, width, height = box
    opened.drag((left + 0.25 * width, top + height / 2), (left + 0.5 * width, top + height / 2))
    after = ranges(opened)
    assert all(each == pytest.approx(after[0]) for each in after)
    (first, last), (zoomed_first, zoomed_last) = before[0], after[0]
    assert zoomed_first == pytest.approx(first + 0.25 * (last - first), abs=0.02 * (last - first))
    assert zoomed_last == pytest.approx(first + 0.5 * (last - first), abs=0.02 * (last - first))
    opened.run("document.getElementById('zoom-all').click()")
    assert ranges(opened) == before


def test_the_vertical_axis_follows(opened: chromium.Tab) -> None:
    high = "document.getElementById('plot-norm')._fullLayout.yaxis.range[1]"
    before = opened.run(high)
    opened.run("document.getElementById('plot-norm').focus()")
    for key in "++":
        opened.press(key)
    opened.press("ArrowRight")
    assert opened.run(high) < before


def test_keys_zoom_and_move(opened: chromium.Tab) -> None:
    before = ranges(opened)[0]
    opened.run("document.getElementById('plot-loss').focus()")
    opened.press("+")
    near = ranges(opened)[0]
    assert near[1] - near[0] < 0.6 * (before[1] - before[0])
    opened.press("ArrowLeft")
    assert ranges(opened)[0][0] < near[0]
    opened.press("-")
    opened.press("Home")
    assert ranges(opened)[0] == before


def test_a_logarithmic_axis(opened: chromium.Tab) -> None:
    opened.run("document.getElementById('logarithmic').click()")
    kinds = "[...document.querySelectorAll('.plot')].map(each => [each.dataset.chart, each._fullLayout.yaxis.type])"
    assert {name for name, kind in opened.run(kinds) if kind == "log"} == {"loss", "rate", "norm"}


def test_one_step_has_one_tick(tab: chromium.Tab, pages: dict[str, str]) -> None:
    tab.look(**DESK)
    tab.open(pages["short"])
    ticks = "[...document.querySelectorAll('#plot-loss .xtick text')].map(each => each.textContent)"
    assert tab.run(ticks) == ["19", "20", "21"]


def test_few_steps_have_a_tick_each(opened: chromium.Tab) -> None:
    opened.run("document.getElementById('plot-loss').focus()")
    for _ in range(7):
        opened.press("+")
    first, last = ranges(opened)[0]
    assert 2 < last - first < 8
    ticks = opened.run("[...document.querySelectorAll('#plot-loss .xtick text')].map(each => Number(each.textContent))")
    assert ticks == list(range(math.ceil(first), math.floor(last) + 1))


# --- reconstructions


def test_the_slider_goes_through_the_steps_by_keys(opened: chromium.Tab) -> None:
    state = "[document.querySelector('.slide output').textContent, document.querySelector('.parts img').alt]"
    whole = "[...document.querySelectorAll('.parts img')].map(each => each.src).join()"
    last, picture = opened.run(state), opened.run(whole)
    assert last[0] == "400"
    opened.run("document.getElementById('frame-run0').focus()")
    opened.press("ArrowLeft")
    before, other = opened.run(state), opened.run(whole)
    assert before[0] == "300"
    assert other != picture
    assert "after step 300, part 1 of 2" in before[1]
    assert opened.run("document.getElementById('frame-run0').getAttribute('aria-valuetext')") == "step 300"
    opened.press("ArrowRight")
    assert opened.run(whole) == picture
    assert opened.run(state) == last


# --- reading


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["pretraining", "fine-tuning", "both"])
def test_no_accessibility_fault(tab: chromium.Tab, pages: dict[str, str], name: str, dark: bool) -> None:
    for size in (DESK, PHONE):
        tab.look(**size, dark=dark)
        tab.open(pages[name])
        tab.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert axe(tab) == []


def axe(tab: chromium.Tab) -> list[tuple[str, str, str]]:
    """(impact, rule, element) of everything that axe-core finds."""
    tab.run(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8") + "; true")
    found: list[dict[str, Any]] = tab.run("axe.run(document).then(found => found.violations)")
    return [(rule["impact"], rule["id"], node["html"][:200]) for rule in found for node in rule["nodes"]]


def test_axe_finds_what_is_wrong(opened: chromium.Tab) -> None:
    opened.run("document.querySelector('.parts img').removeAttribute('alt')")
    assert [rule for _, rule, _ in axe(opened)] == ["image-alt"]


@pytest.mark.parametrize("name", ["pretraining", "fine-tuning", "both"])
def test_a_phone_shows_it_without_scrolling_sideways(tab: chromium.Tab, pages: dict[str, str], name: str) -> None:
    tab.look(**PHONE)
    tab.open(pages[name])
    assert tab.run("document.documentElement.scrollWidth") == 390
    wide = tab.run("[...document.querySelectorAll('.plot')].map(each => each.getBoundingClientRect().width)")
    assert all(width > 300 for width in wide)
    high = tab.run("[...document.querySelectorAll('.plot .nsewdrag')].map(each => each.getBoundingClientRect().height)")
    assert all(height > 140 for height in high)  # whatever the legend takes


def test_it_is_dark_in_the_dark(tab: chromium.Tab, pages: dict[str, str]) -> None:
    brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    ink = "document.querySelector('.plot .xtick text').style.fill"
    tab.look(**DESK)
    tab.open(pages["pretraining"])
    light = tab.run(brightness), tab.run(ink)
    tab.look(**DESK, dark=True)  # while it is open
    dark = tab.run(brightness), tab.run(ink)
    assert min(light[0]) > 200
    assert max(dark[0]) < 60
    assert light[1] != dark[1]


def test_what_has_the_focus_is_seen(opened: chromium.Tab) -> None:
    opened.run("document.getElementById('zoom-in').focus({ focusVisible: true })")
    outline = opened.run(
        "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    )
    assert outline == "solid2px"


# --- a run that goes on


def test_a_served_page_follows_the_run(tab: chromium.Tab, tmp_path: Path) -> None:
    folder = made_runs.pretraining(tmp_path / "live")
    with ReportServer([folder]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            tab.requests.clear()
            tab.faults.clear()
            tab.look(**DESK)
            tab.open(server.address)
            tab.run("document.getElementById('all-run0').open = true")
            tab.run("document.getElementById('frame-run0').focus()")
            tab.press("ArrowLeft")
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 500, "loss": 0.25, "samples_seen": 16_000}) + "\n")
            tab.run(
                "new Promise(done => {"
                " const seen = new MutationObserver(() => done(true));"
                " seen.observe(document.getElementById('content'), { childList: true });"
                " window.dispatchEvent(new Event('focus')); })"
            )
            tab.settle()
            assert "16,000 images seen" in tab.run("document.querySelector('.standing').textContent")
            assert tab.run("document.getElementById('plot-loss').data[0].x.at(-1)") == 500
            assert tab.run("document.getElementById('all-run0').open")
            assert tab.run("[document.activeElement.id, document.querySelector('.slide output').textContent]") == [
                "frame-run0",
                "300",
            ]
            assert tab.faults == []
            asked = {address for address in tab.requests if not address.startswith("data:")}
            assert asked == {server.address, f"{server.address}body"}
        finally:
            server.shutdown()
            thread.join()
