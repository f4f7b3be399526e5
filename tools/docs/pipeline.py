"""Draw docs/pipeline.png: from an image to the loss, and from a run to everything that loads its result.

    python -m tools.docs.pipeline

The four pictures are cut out of docs/demo.png, so they are what the demo made and not an artist's idea of it.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

DOCS = Path(__file__).parents[2] / "docs"
WIDTH, HEIGHT = 160.0, 75.0  # the units of the drawing; 1 is 1/10 inch
INK, GREY, LINE = "#1f2933", "#5b6770", "#9aa5b1"
BLUE, SAND, GREEN, ROSE = "#dbe9f6", "#f6ead2", "#dff0df", "#f4dfe2"
MASK_TOKEN, TOKEN = "#5b6770", "#8fb8de"
TILE, FIRST_COLUMN, ROW = 128, 16, 304  # pixels of docs/demo.png: a tile's side, its first column, the row of a coast
UNITS = 8
SIDE = 17.0
TOP = 44.0
FILES = ("checkpoints/", "metrics.jsonl", "samples/", "export/")
STAGES = ("stage 1   1/4", "stage 2   1/8", "stage 3   1/16", "stage 4   1/32")


def main() -> None:
    figure = draw()
    figure.savefig(DOCS / "pipeline.png", dpi=120)
    plt.close(figure)


def draw() -> Figure:
    figure = plt.figure(figsize=(WIDTH / 10, HEIGHT / 10), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    image, masked, predicted, composite = demo_tiles()
    title(axes, 71, "Pretraining: from an image to its loss")
    picture(axes, 3, image, "image", "random crop and flip")
    picture(axes, 26, masked, "mask", "60 % of the units hidden")
    tokens(axes, 49, hidden_units(masked))
    stages(axes, 72)
    decoder(axes, 98)
    picture(axes, 117, predicted, "prediction", "every cell → its pixels")
    picture(axes, 140, composite, "L1 loss", "on hidden pixels only")
    for left, right in ((20, 26), (43, 49), (66, 72), (93, 98), (112, 117), (134, 140)):
        arrow(axes, (left + 0.6, TOP + SIDE / 2), (right - 0.6, TOP + SIDE / 2))
    title(axes, 31.5, "After it: from the run to your task")
    after(axes)
    return figure


def demo_tiles() -> list[np.ndarray]:
    """The four pictures of one tile in docs/demo.png, (128, 128, 3) each: image, masked, prediction, composite."""
    sheet = imread(DOCS / "demo.png")[..., :3]
    starts = [FIRST_COLUMN + number * (TILE + 4) for number in range(4)]
    return [sheet[ROW : ROW + TILE, start : start + TILE] for start in starts]


def hidden_units(masked: np.ndarray) -> np.ndarray:
    """bool (8, 8): the units that are the grey of a hidden one in the picture."""
    side = TILE // UNITS
    centres = masked[side // 2 :: side, side // 2 :: side]
    return (np.ptp(centres, axis=2) < 0.02) & (np.abs(centres.mean(axis=2) - 0.83) < 0.04)


def title(axes: Axes, height: float, text: str) -> None:
    axes.text(3, height, text, fontsize=15, color=INK, weight="bold", va="center")


def caption(axes: Axes, centre: float, head: str, foot: str) -> None:
    axes.text(centre, TOP + SIDE + 3.2, head, fontsize=12.5, color=INK, ha="center", va="center", weight="bold")
    axes.text(centre, TOP - 2.8, foot, fontsize=10, color=GREY, ha="center", va="center")


def picture(axes: Axes, left: float, pixels: np.ndarray, head: str, foot: str) -> None:
    axes.imshow(pixels, extent=(left, left + SIDE, TOP, TOP + SIDE), interpolation="nearest", aspect="auto", zorder=2)
    axes.add_patch(Rectangle((left, TOP), SIDE, SIDE, fill=False, edgecolor=LINE, linewidth=1, zorder=3))
    caption(axes, left + SIDE / 2, head, foot)


def tokens(axes: Axes, left: float, hidden: np.ndarray) -> None:
    """Two tokens along the side of a unit, as in the demo: those of hidden units are the learned mask token."""
    cells = np.kron(hidden, np.ones((2, 2), bool))
    side = SIDE / len(cells)
    for row, column in np.ndindex(cells.shape):
        corner = (left + column * side, TOP + SIDE - (row + 1) * side)
        colour = MASK_TOKEN if cells[row, column] else TOKEN
        axes.add_patch(Rectangle(corner, side, side, facecolor=colour, edgecolor="white", linewidth=0.5))
    caption(axes, left + SIDE / 2, "tokens", "patch embedding + mask token")


def stages(axes: Axes, left: float) -> None:
    height = SIDE / len(STAGES)
    for number, text in enumerate(STAGES):
        width = 21 - 3 * number
        bottom = TOP + SIDE - (number + 1) * height
        box(
            axes, left + (21 - width) / 2, bottom + 0.25, width, height - 0.5, text, BLUE, size=9.5 if number < 3 else 9
        )
    caption(axes, left + 10.5, "Swin Transformer", "all tokens, shifted windows")


def decoder(axes: Axes, left: float) -> None:
    box(axes, left, TOP + 3.5, 14, 10, "1×1 conv\n+\nPixelShuffle", SAND, size=10.5)
    caption(axes, left + 7, "decoder", "one linear layer")


def after(axes: Axes) -> None:
    bottom, height = 5.0, 22.0
    box(axes, 3, bottom, 29, height, "", SAND)
    axes.text(
        17.5, bottom + height - 3.2, "runs/mine/", fontsize=12.5, color=INK, ha="center", va="center", weight="bold"
    )
    for number, name in enumerate(FILES):
        axes.text(
            6, bottom + height - 7.6 - 3.6 * number, name, fontsize=10.5, color=INK, va="center", family="monospace"
        )
    box(axes, 43, bottom, 33, height, "", BLUE)
    axes.text(59.5, bottom + height - 3.2, "export/", fontsize=12.5, color=INK, ha="center", va="center", weight="bold")
    names = ("model.safetensors", "mim_head.safetensors", "config.json", "README.md, the card")
    for number, name in enumerate(names):
        axes.text(
            46, bottom + height - 7.6 - 3.6 * number, name, fontsize=10.5, color=INK, va="center", family="monospace"
        )
    targets = (
        ("swin_mim, timm, transformers", "features, maps of every stage, a new head", GREEN),
        ("Hugging Face Hub", "one commit, checked before it is pushed", GREEN),
        ("swin-mim finetune", "your labels → classifier, with an export of its own", ROSE),
    )
    for number, (head, foot, colour) in enumerate(targets):
        low = bottom + height - 6.6 - number * 7.7
        box(axes, 93, low, 64, 6.6, "", colour)
        axes.text(96, low + 4.45, head, fontsize=11.5, color=INK, va="center", weight="bold")
        axes.text(96, low + 1.95, foot, fontsize=10, color=GREY, va="center")
        arrow(axes, (77, bottom + height / 2), (92.4, low + 3.3))
    arrow(axes, (33, bottom + height / 2), (42.4, bottom + height / 2))


def box(
    axes: Axes, left: float, bottom: float, width: float, height: float, text: str, colour: str, size: float = 11
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.9", facecolor=colour, edgecolor=LINE
        )
    )
    axes.text(left + width / 2, bottom + height / 2, text, fontsize=size, color=INK, ha="center", va="center")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=GREY, linewidth=1.4))


if __name__ == "__main__":
    main()
