"""A warning when the loss jumps: the first sign of a run that diverges, or of images that are not like the others."""

import logging
from collections import deque
from statistics import median

WINDOW = 100
"""Steps that a loss is compared with."""
ENOUGH = 50
"""Steps that have to be known first."""
DEVIATIONS = 10
"""Median absolute deviations above the median that make a spike..."""
RATIO = 1.5
"""...if it is this many times the median too: a loss that hardly moves has hardly any."""

_LOG = logging.getLogger(__name__)


class LossSpikes:
    """Compares each loss with those before it; says so once in `WINDOW` steps."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._said_at = -WINDOW

    def add(self, step: int, loss: float) -> None:
        """The finite loss of one step."""
        if len(self._recent) >= ENOUGH:
            middle = median(self._recent)
            mad = median(abs(value - middle) for value in self._recent)
            high = loss > max(middle + DEVIATIONS * mad, RATIO * middle)
            if high and step - self._said_at >= WINDOW:
                self._said_at = step
                _LOG.warning(
                    "step %d: the loss %.4g is %.1f times the median of the %d steps before it",
                    *(step, loss, loss / max(middle, 1e-12), len(self._recent)),
                )
        self._recent.append(loss)
