"""The page of one run, or of several side by side: one HTML file that needs nothing else."""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from swin_mim import __version__
from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.evaluation.pages import template
from swin_mim.evaluation.report import findings, looked_at
from swin_mim.evaluation.report.curves import CHARTS, PROBES, drawn
from swin_mim.evaluation.report.numbers_text import number, share
from swin_mim.evaluation.report.pictures import Frame, picture, series
from swin_mim.evaluation.report.run_files import RunFiles
from swin_mim.evaluation.report.settings import DEFAULTS, compared, read_settings
from swin_mim.files import replace_text
from swin_mim.redaction import with_public_urls

REPORT = "report.html"
LARGEST = 8_000_000
"""Max bytes of a page."""
MOST_RUNS = 6
"""Runs on one page: as many as there are colours that are told apart."""

_HERE = Path(__file__).parent
_FRAMES = 2_000_000
"""Characters for the reconstructions of all runs."""
_PICTURES = 900_000
"""Characters for the other pictures of all runs."""


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page of these runs as one file, whole or not at all.

    Raises:
        UserError: as `render`.
        OSError: it cannot be written.
    """
    replace_text(out, render(folders))


def render(folders: Sequence[Path], *, live: str = "") -> str:
    """The page of these runs as HTML.

    Args:
        live: the version of what it shows, where the page is served and follows the runs; see `body`.

    Raises:
        UserError: a folder is no run, or there are too many of them.
    """
    content, title = _body(folders)
    script, plotly = (_HERE / "page.js").read_text(encoding="utf-8"), plotly_js()
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (plotly, script))
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    page = template(_HERE, "page.html.jinja").render(
        title=title,
        content=Markup(content),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        plotly=Markup(plotly),
        policy=f"{policy}; connect-src 'self'" if live else policy,
        live=live,
    )
    if len(page.encode()) > LARGEST:
        raise UserError(f"the report would have {len(page.encode()):,} bytes, more than {LARGEST:,}: take fewer runs")
    return page


def body(folders: Sequence[Path]) -> str:
    """What of a page changes while a run goes on, its data with it."""
    return _body(folders)[0]


@cache
def plotly_js() -> str:
    """The library that draws the curves.

    Raises:
        UserError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("a report is drawn by plotly, which is not installed: pip install plotly") from None
    return get_plotlyjs().replace("</script", "<\\/script")


def _body(folders: Sequence[Path]) -> tuple[str, str]:
    """(HTML, title)"""
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs are too many to tell apart: name {MOST_RUNS} at most")
    runs = [RunFiles.read(folder) for folder in folders]
    settings = [read_settings(run.settings) for run in runs]
    charts = [chart for each in CHARTS if (chart := drawn(each, runs))]
    probe = drawn(PROBES, runs)
    views = [_view(run, place, len(runs)) | {"settings": settings[place]} for place, run in enumerate(runs)]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    told: dict[str, Any] = {
        "title": title,
        "runs": views,
        "charts": charts,
        "probe": probe,
        "between": compared(settings),
        "level": 3 if len(runs) == 1 else 4,
        "defaults": DEFAULTS,
        "version": __version__,
        "made": time.strftime("%d %b %Y, %H:%M").lstrip("0"),
        "data": _json(
            {
                "runs": len(runs),
                "charts": {chart["key"]: chart for chart in [*charts, *([probe] if probe else [])]},
                "frames": {view["key"]: _moving(view["frames"]) for view in views},
            }
        ),
    }
    told["sections"] = _sections(told)
    functions = {"share": share, "number": number, "counted": counted, "channel_columns": looked_at.COLUMNS}
    return template(_HERE, "body.html.jinja").render(**told, **functions), title


def _view(run: RunFiles, place: int, runs: int) -> dict[str, Any]:
    """What the template says of one run; `place` of how many `runs`."""
    columns, rows = findings.classes(run)
    skipped = findings.skipped_steps(run)
    return {
        "key": f"run{place}",
        "name": run.name,
        "standing": findings.standing(run),
        "troubles": findings.troubles(run),
        "figures": findings.figures(run),
        "frames": series(run.pictures, _FRAMES // runs),
        "probes": findings.probes(run),
        "evaluation": _evaluation(run),
        "confusions": findings.confusions(run),
        "class_columns": columns,
        "class_rows": rows,
        "worst": run.worst,
        "pictures": _pictures(run, _PICTURES // runs),
        "data": findings.data_facts(run),
        "channels": looked_at.channels(run),
        "broken": run.broken[: findings.MOST_NAMES],
        "broken_count": len(run.broken),
        "skipped": skipped[: findings.MOST_NAMES],
        "skipped_count": len(skipped),
        "changes": [each | {"changes": [*map(with_public_urls, each["changes"])]} for each in run.changes],
        "starts": findings.starts(run),
    }


def _evaluation(run: RunFiles) -> str:
    if not run.evaluation:
        return ""
    step, seen = run.evaluation.get("step"), run.evaluation.get("evaluated", 0)
    return f"The weights after step {step:,}, on {number(seen)} images." if step else f"On {number(seen)} images."


def _pictures(run: RunFiles, budget: int) -> list[tuple[str, tuple[str, ...], str]]:
    """(title, data: addresses, text) of the drawings of an evaluation."""
    folder, found = run.folder / "evaluation", []
    for file, title, text in (
        ("overlays.png", "Segmentation", "The image, its mask over it, and the prediction over it."),
        (
            "detections.png",
            "Detections",
            "On the left the objects that are there, on the right what was found, if it is more likely than not.",
        ),
    ):
        addresses = picture(folder / file)
        length = sum(map(len, addresses))
        if addresses and length <= budget:
            found.append((title, addresses, text))
            budget -= length
    return found


def _sections(told: dict[str, Any]) -> list[tuple[str, str]]:
    runs = told["runs"]
    there = {
        "overview": True,
        "curves": told["charts"],
        "reconstructions": any(run["frames"] for run in runs),
        "probes": told["probe"] or any(run["probes"] for run in runs),
        "evaluation": any(run["evaluation"] for run in runs),
        "data": True,
        "settings": True,
        "machine": any(run["starts"] for run in runs),
    }
    return [(name, name.capitalize()) for name, present in there.items() if present]


def _moving(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """The frames for the slider; the last one is in the page already."""
    return [{"step": frame.step} | ({"parts": frame.parts} if frame is not frames[-1] else {}) for frame in frames]


def _json(value: Any) -> Markup:
    """JSON that may stand in a script element, whatever names are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
