"""What a pretraining can be worth on these images and what to take: as far as something was measured, and on what."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from swin_mim.cli.doctor.images.forecast import Forecast
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import reads_rasters


class Measured(NamedTuple):
    """Images on which pretrained encoders were compared with new weights that had enough steps."""

    share: float
    """Interpolation error over mean-fill error at the units of that pretraining."""
    like: str
    """What images of about this share are told."""
    gains: Mapping[float, str]
    """Unlabelled images for a labelled one -> what pretraining won."""
    target: str
    """What is told of model.target."""


TILES = Measured(
    0.45,
    "as smooth as the embedded tiles (0.45), where pretraining won steps, and nothing once new weights had enough of "
    "them; a short run stayed behind interpolation",
    {
        23: "+1.4 points there (± 4.6)",
        7.8: "-1.3 points there (± 1.7)",
        2.3: "-0.8 points there (± 0.5)",
        0.8: "-1.2 points there (± 0.5)",
    },
    "which --model.target is better for such images no figure of ours tells: try pixels and normalized",
)
"""docs/results.md; the standard deviation is that of the pretrained ones over the seeds."""
CLOTHES = Measured(
    0.72,
    "nearer to small grey pictures of clothes (0.72) than to smooth tiles: there pretraining won accuracy",
    {
        1830: "+5.6 points there (validation pictures, one run each)",
        183: "+3.3 points there (validation pictures, one run each)",
    },
    "--model.target hog, which was the best of three with few labels there; try pixels where colour is what counts",
)
"""docs/pretraining-gain.md."""


def lines(forecast: Forecast, config: PretrainConfig) -> Iterator[tuple[str, str]]:
    """(name, text) of each line of the page."""
    kind = "grey levels" if not reads_rasters(config.data, config.model) else "values of a channel"
    yield "entropy", f"{forecast.entropy:.1f} of 8 bits in the {kind} of an image (median of {forecast.looked_at})"
    yield from _holes(forecast)
    if (share := forecast.per_label) is None:
        yield "labels", f"{forecast.unlabelled:,} images to pretrain on; --labelled N tells how many have labels"
    else:
        yield "labels", f"{share:,.1f} images to pretrain on for each of the {forecast.labelled:,} with labels"
    yield from _verdict(forecast, config)


def _holes(forecast: Forecast) -> Iterator[tuple[str, str]]:
    if forecast.filled[0].share is None:
        yield "holes", "there is nothing to predict: images are of one value"
        return
    told = [f"{each.share:.2f} with units of {each.unit} px" for each in forecast.filled if each.share is not None]
    yield "holes", f"interpolation leaves of the error of a mean fill: {', '.join(told)}"


def _verdict(forecast: Forecast, config: PretrainConfig) -> Iterator[tuple[str, str]]:
    """What is to be expected, and what to take: from the two kinds of images on which we measured."""
    share, more = forecast.filled[0].share, forecast.per_label
    if share is None:
        yield "expect", "nothing: there is no structure to learn"
        return
    kind = min((TILES, CLOTHES), key=lambda known: abs(known.share - share))
    text = kind.like
    if more is not None:
        near = min(kind.gains, key=lambda known: abs(math.log(known / more)))
        text += f"; with {near:,g} unlabelled images for a labelled one it won {kind.gains[near]}"
    yield "expect", f"{text}. Two kinds of images are all that we measured: only a trial tells of yours"
    unit = next((each.unit for each in forecast.filled if each.share is not None and each.share > 0.5), None)
    unit = forecast.filled[-1].unit if unit is None else unit
    why = "as set" if unit == config.mask.unit else "where interpolation leaves more of the error, or the largest"
    taken = (
        f"--mask.unit {unit} ({why}) and --mask.ratio {config.mask.ratio:g}: a rule of thumb, not measured; "
        f"{kind.target}, and look at the early probes on images with labels (--probe.first '50 steps')"
    )
    yield "take", taken
