"""What a pretraining can be worth on these images and what to take: as far as something was measured, and on what."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from swin_mim.cli.doctor.images.forecast import Forecast
from swin_mim.errors import UserError
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import check, reads_rasters
from swin_mim.weights.heads import Target

NEAR = 0.1
"""Difference in share from all that was measured beyond which images are said to be others."""
NEAR_RATIO = 4.0
"""Factor in unlabelled images for a labelled one beyond which no gain is told."""


class Measured(NamedTuple):
    """Images on which pretrained encoders were compared with new weights that had enough steps."""

    share: float
    """Interpolation error over mean-fill error that the doctor finds there, at the unit of that pretraining."""
    name: str
    what: str
    """What pretraining won there, against what."""
    gains: Mapping[float, str]
    """Unlabelled images for a labelled one -> points of accuracy won."""
    targets: tuple[Target, ...]
    """Values of model.target, the best first, as far as they can be told apart."""
    why: str
    """What of these was measured."""


TILES = Measured(
    0.45,
    "the embedded tiles",
    "pretraining on pixels won steps, and nothing once new weights had enough of them; a short run stayed behind "
    "interpolation",
    {23: "+1.4 (± 4.6)", 7.8: "-1.3 (± 1.7)", 2.3: "-0.8 (± 0.5)", 0.8: "-1.2 (± 0.5)"},
    ("pixels", "normalized"),
    "no figure of ours tells which is better",
)
"""docs/results.md; the standard deviation is that of the pretrained ones over the seeds."""
CLOTHES = Measured(
    0.72,
    "small grey pictures of clothes",
    "pretraining won accuracy over new weights with four times the steps (validation pictures, one run each)",
    {1825: "+1.9 to +5.6, by target", 182: "+1.1 to +3.4, by target"},
    ("hog", "pixels", "normalized"),
    "in this order, by less than another seed may change",
)
"""docs/pretraining-gain.md, at the rates chosen there."""
CHARACTERS = Measured(
    0.96,
    "drawn characters in random colours",
    "new weights learned nothing from 30 labels for each of 100 classes, whatever their steps, pretrained ones 22 to "
    "24 % (validation pictures, one run each)",
    {20: "+21 and +23, by target"},
    ("normalized", "pixels"),
    "about alike; hog learned nothing in a short pretraining",
)
"""docs/pretraining-protocol.md."""
KINDS = (TILES, CLOTHES, CHARACTERS)


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
    """What is to be expected, and what to take: from the kinds of images on which we measured."""
    share = forecast.filled[0].share
    if share is None:
        yield "expect", "nothing: there is no structure to learn"
        return
    kind = min(KINDS, key=lambda known: abs(known.share - share))
    text = f"of what we measured the nearest are {kind.name} ({kind.share:.2f}), where {kind.what}"
    yield "expect", f"{text}{_gain(kind, forecast.per_label)}. {_likeness(share)}"
    unit = next((each.unit for each in forecast.filled if each.share is not None and each.share > 0.5), None)
    unit = forecast.filled[-1].unit if unit is None else unit
    why = "as set" if unit == config.mask.unit else "where interpolation leaves more of the error, or the largest"
    targets = [target for target in kind.targets if _takes(config, unit, target)]
    taken = (
        f"--mask.unit {unit} ({why}) and --mask.ratio {config.mask.ratio:g}: a rule of thumb, not measured; "
        f"--model.target {' or '.join(targets)} ({kind.why}), by the early probes on images with labels "
        "(--probe.first '50 steps')"
    )
    yield "take", taken


def _gain(kind: Measured, per_label: float | None) -> str:
    if per_label is None:
        return ""
    near = min(kind.gains, key=lambda known: abs(math.log(known / per_label)))
    if abs(math.log(near / per_label)) > math.log(NEAR_RATIO):
        measured = " and ".join(f"{known:,g}" for known in kind.gains)
        return f"; how many points, was measured with {measured} unlabelled images for a labelled one, far from yours"
    return f"; with {near:,g} unlabelled images for a labelled one it won {kind.gains[near]} points"


def _likeness(share: float) -> str:
    shares = [kind.share for kind in KINDS]
    if share < min(shares) - NEAR:
        return "Yours are smoother than all of these: only a trial tells"
    if share > max(shares) + NEAR:
        return "Yours are rougher than all of these, a mean fills their holes better: only a trial tells"
    return "Only a trial tells of yours"


def _takes(config: PretrainConfig, unit: int, target: Target) -> bool:
    """Whether a pretraining with this config would take the target."""
    wanted = replace(config, mask=replace(config.mask, unit=unit), model=replace(config.model, target=target))
    try:
        check(wanted)
    except UserError:
        return False
    return True
