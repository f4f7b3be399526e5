"""The report of `python -m tools.bench step --breakdown` as a picture: the systems, and where a step of ours goes.

python -m tools.bench.picture step.json docs/step.png
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swin_mim.errors import Parser, UserError, one_line_errors

OURS, OTHERS, FLOOR = "#1f5fa8", "#b9c2cc", "#e07b39"


def draw(report: dict[str, Any], file: Path) -> None:
    """Bars of images/s with the peak memory in words; bars of the parts with the minimum that the machine allows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", width_ratios=(1, 1.25))
    draw_systems(left, report["batches"][0]["results"])
    draw_parts(right, report["breakdown"][0]["parts"])
    machine, settings = report["machine"], report["settings"]
    figure.suptitle(
        f"{settings['model']}, {settings['image_size']} px, {report['batches'][0]['batch']} images, "
        f"{settings['precision']}: {machine['name']}, {machine['threads']} threads",
        fontsize=10,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_systems(axes: Any, results: dict[str, dict[str, Any]]) -> None:
    names = list(results)
    speeds = [results[name]["images_per_second"] for name in names]
    colours = [OURS if name.startswith("ours") else OTHERS for name in names]
    axes.barh([name.replace("ours", "swin_mim") for name in names], speeds, color=colours)
    for y, name in enumerate(names):
        memory = results[name]["peak_memory_gb"]
        words = f" {speeds[y]:.1f}" + (f", {memory:.1f} GB" if memory else "")
        axes.text(speeds[y], y, words, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(speeds) * 1.3)
    axes.set_xlabel("images/s")
    tidy(axes)


def draw_parts(axes: Any, parts: dict[str, dict[str, Any]]) -> None:
    shown = {name: part for name, part in parts.items() if part["share_of_step"] > 0.002}
    names = list(shown)
    axes.barh(names, [1e3 * shown[name]["seconds"] for name in names], color=OURS, label="measured")
    floors = [1e3 * shown[name]["roofline_seconds"] for name in names]
    axes.barh(names, floors, color=FLOOR, height=0.35, label="minimum, by this machine's products and copies")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of a step of swin_mim")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    tidy(axes)


def tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m tools.bench.picture", description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    try:
        report = json.loads(options.report.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{options.report} is not a report of tools.bench: {error}") from None
    if not isinstance(report, dict) or not report.get("breakdown"):
        raise UserError(
            f"{options.report} has no breakdown: make it with python -m tools.bench step --breakdown --json"
        )
    draw(report, options.picture)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
