"""The report of `python -m tools.bench step --breakdown` as a picture: the systems, and where a step of ours goes.
That of `scaling` too: time and memory against the size of the image.

python -m tools.bench.picture step.json docs/step.png
python -m tools.bench.picture scaling.json docs/scaling.png
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swin_mim.counts import counted
from swin_mim.errors import Parser, UserError, one_line_errors
from tools.bench.settings import FIT_FROM

OURS, OTHERS, FLOOR = "#1f5fa8", "#b9c2cc", "#e07b39"
LINES = {
    "window": ("in windows, swin_mim", OURS),
    "global": ("over all tokens, timm", FLOOR),
    "global-plain": ("over all tokens, timm without the fused kernel", OTHERS),
}
"""Of the picture of `scaling`: the layers, as whole networks are of other widths."""


def draw(report: dict[str, Any], file: Path) -> None:
    """Bars of images/s with the peak memory in words; bars of the parts with the minimum that the machine allows."""
    plt = pyplot()
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


def draw_scaling(report: dict[str, Any], file: Path) -> None:
    """Seconds and memory of the layers against the size of the image, both logarithmic, with the formulas."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, quantity, label in ((left, "seconds", "seconds"), (right, "memory_gb", "GB")):
        for series in LINES:
            draw_line(axes, [p for p in report["points"] if p["series"] == series], report["exponents"], quantity)
        sizes = report["settings"]["image_sizes"]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, sizes)
        axes.minorticks_off()
        axes.set_xlabel("pixels along the side of the image")
        axes.set_ylabel(f"{label} of a forward and backward", fontsize=8)
        axes.set_xlim(0.88 * min(sizes), 1.45 * max(sizes))  # words stand at the ends of the lines
        tidy(axes)
    left.plot([], [], "--", color="black", linewidth=1, label=f"the formula, through {FIT_FROM} px")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    machine, settings = report["machine"], report["settings"]
    figure.suptitle(
        f"one attention layer at the width of {settings['model']}, tokens of 4 px, {settings['precision']}: "
        f"{machine['name']}, {counted(machine['threads'], 'thread')}",
        fontsize=10,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_line(axes: Any, points: Sequence[dict[str, Any]], exponents: dict[str, Any], quantity: str) -> None:
    """The measured points of a series; of its time the formula besides, through the first point that is fitted.

    It goes on where nothing was measured.
    """
    measured = [p for p in points if "seconds" in p]
    if not measured:
        return
    name, colour = LINES[points[0]["series"]]
    grown = exponents[points[0]["series"]]
    sizes, values = [p["image_size"] for p in measured], [p[quantity] for p in measured]
    axes.plot(sizes, values, "o-", color=colour, markersize=4, label=name)
    if grown:
        text = f"tokens$^{{{grown[quantity]:.2f}}}$"
        offset, side = ((-7, 1), "right") if points[0]["series"] == "global-plain" else ((7, -5), "left")
        axes.annotate(
            text, (sizes[-1], values[-1]), offset, textcoords="offset points", ha=side, fontsize=9, color=colour
        )
    if quantity == "seconds" and points[0]["series"] != "global-plain":  # its formula is that of the fused one
        first = next((p for p in measured if p["image_size"] >= FIT_FROM), measured[-1])
        rate = first["seconds"] / first["multiply_adds"]
        formula = [rate * p["multiply_adds"] for p in points]
        axes.plot([p["image_size"] for p in points], formula, "--", color=colour, linewidth=1, alpha=0.6)


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


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
    if isinstance(report, dict) and report.get("exponents"):
        draw_scaling(report, options.picture)
        return
    if not isinstance(report, dict) or not report.get("breakdown"):
        raise UserError(
            f"{options.report} has no breakdown: make it with python -m tools.bench step --breakdown --json"
        )
    draw(report, options.picture)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
