"""What `swin-mim doctor` found in a run's images, as rows and a table of its page."""

from collections.abc import Iterator, Mapping
from typing import Any

from swin_mim.evaluation.report.numbers_text import moment, number
from swin_mim.evaluation.report.run_files import RunFiles

COLUMNS = ("mean", "std", "min", "max")
"""What is known of each channel."""

_FORETOLD = {"entropy": "entropy", "holes": "filling holes", "labels": "labels", "expect": "to expect"}
"""What the doctor says that is of a run under way too, with its names here."""


def rows(run: RunFiles) -> Iterator[tuple[str, str]]:
    """(name, text) of what was found; without it what the run has measured itself, and how it is found.

    Of other runs than pretrainings there is none.
    """
    if run.kind != "pretraining":
        return
    if run.facts:
        yield from _images(run.facts, run.facts["images"])
        yield from ((_FORETOLD[name], text) for name, text in run.facts["expected"] if name in _FORETOLD)
        return
    mean_fill, interpolation = run.first("mean_fill_error"), run.first("interpolation_error")
    if mean_fill and interpolation is not None:
        left = f"{interpolation / mean_fill:.2f} with units of {run.setting('mask.unit')} px, on the held-out images"
        of = " of normalised pixels" if run.setting("model.target") == "normalized" else ""
        yield "filling holes", f"interpolation leaves of a mean fill's error{of}: {left}"
    yield "looked at", "not yet: swin-mim report --facts looks at these images as swin-mim doctor does"


def channels(run: RunFiles) -> list[tuple[str, list[str]]]:
    """(name, values of `COLUMNS`) of each channel in the units of the files; none of images that are read as RGB."""
    found = (run.facts.get("images") or {}).get("channels")
    if not found:
        return []
    values = zip(*(found[column] for column in COLUMNS), strict=True)
    return [(name, [f"{value:.6g}" for value in each]) for name, each in zip(found["names"], values, strict=True)]


def _images(facts: Mapping[str, Any], images: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    looked_at, total = images["looked_at"], images["total"]

    def of(count: int) -> str:
        return f"{number(count)} ({count / looked_at:.1%})"

    several = f"{number(looked_at)} of " if looked_at < total else "all "
    where = " of one shard" if facts["of_a_shard"] else ""
    yield "looked at", f"{several}{number(total)} images{where}, on {moment(facts['time'])}"
    yield "formats", _counts(images["formats"])
    yield "pixels", _counts(images["pixels"])
    sizes = ["{} x {}".format(*images[name]) for name in ("smallest", "median", "largest")]
    text = f"all {sizes[0]}" if len(set(sizes)) == 1 else "smallest {}, median {}, largest {}".format(*sizes)
    small = f"; {of(images['too_small'])} smaller than in training" if images["too_small"] else ""
    yield "width x height", text + small
    if found := images["channels"]:
        gaps = 1 - found["valid_share"]
        yield "missing pixels", f"{gaps:.2%}" if gaps else "none"
    first = "; ".join(f"{each['name']}: {each['reason']}" for each in images["first_broken"][:1])
    yield "cannot be read", f"{of(images['broken'])}, the first {first}" if images["broken"] else "none"
    flat = ", ".join(images["first_near_empty"][:3])
    yield "near-empty", f"{of(images['near_empty'])}, as {flat}" if images["near_empty"] else "none"
    same = "; ".join(" = ".join(group[:2]) for group in images["first_copies"][:2])
    yield "duplicates", f"{of(images['copies'])}, byte for byte, as {same}" if images["copies"] else "none"


def _counts(counts: Mapping[str, int]) -> str:
    """ "3 JPEG, 1 PNG"."""
    return ", ".join(f"{number(count)} {name}" for name, count in counts.items())
