"""Which class is taken for which, as a picture."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = 40
"""Classes in a picture; of more, those that are confused most."""
NUMBERS = 20
"""Classes up to which every cell has its number."""
LONGEST = 24
"""Characters of a name."""


def save_confusion(path: Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """A square for each pair of classes: the darker, the larger the part of the row's images that it holds.

    Args:
        counts: int64 (classes, classes): images of the class of the row for which that of the column was predicted.
    """
    from matplotlib.figure import Figure

    shown = most_confused(counts)
    share = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(shown, shown)]
    counts = counts[np.ix_(shown, shown)]
    size = len(shown)
    side = max(2.4, min(0.42 * size, 9.0))
    figure = Figure(figsize=(side + 2.2, side + 1.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    labels = [_short(names[number]) for number in shown]
    font = 9 if size <= NUMBERS else 7
    style: dict[str, Any] = {"fontsize": font, "parse_math": False}
    axes.set_xticks(range(size), labels, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(range(size), labels, **style)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if size <= NUMBERS:
        for row, column in np.argwhere(counts):
            color = "white" if share[row, column] > 0.55 else "#303040"
            text = f"{share[row, column]:.0%}" if share[row, column] >= 0.005 else "<1%"
            axes.text(column, row, text, ha="center", va="center", fontsize=min(9, 150 // size), color=color)
    if size < len(names):
        axes.set_title(f"the {size} of {len(names)} classes that are confused most", fontsize=10)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e4ea", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # shown as a box
        figure.savefig(path, dpi=120)


def most_confused(counts: np.ndarray) -> np.ndarray:
    """The classes of a picture, in the order of their numbers: those with the most mistakes from or to them."""
    mistakes = counts - np.diag(np.diag(counts))
    weight = mistakes.sum(axis=0) + mistakes.sum(axis=1)
    return np.sort(np.argsort(-weight, kind="stable")[:SHOWN])


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
