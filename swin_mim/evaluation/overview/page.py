"""A page of what a data set holds: clusters, nearest neighbours, outliers, duplicates, and what cannot be read.

It is one file without a request to anywhere. Beside it two lists for data.exclude: all but one image of each group of
equal ones, and of each group of equal and nearly equal ones.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from swin_mim.counts import counted
from swin_mim.data.sources.base import Source
from swin_mim.errors import UserError
from swin_mim.evaluation.false_colours import shown_channels
from swin_mim.evaluation.outputs.images import image_name
from swin_mim.evaluation.overview.duplicates import Group, duplicates, to_leave_out
from swin_mim.evaluation.overview.hashes import hashes_of_source
from swin_mim.evaluation.overview.rows import FeatureRows, check_names, listed_names, read_rows
from swin_mim.evaluation.overview.similar import clusters, distance_to_others, neighbours, normalised
from swin_mim.evaluation.overview.thumbnails import PICTURE_CHANNELS, thumbnails
from swin_mim.evaluation.pages import template
from swin_mim.evaluation.reader import Reader
from swin_mim.files import replace_text, writing

TYPICAL, NEIGHBOURS, OUTLIERS, GROUPS, MEMBERS, BROKEN = 9, 8, 36, 24, 9, 200
"""Images that are shown: of a cluster, beside a chosen one, far from others; groups of duplicates of each kind, and
images of one; broken ones that are named."""
_LABELS = 3  # most frequent ones of a cluster


@dataclass(frozen=True)
class Wanted:
    """What a page is to show.

    Args:
        place: the .html file, or a folder that gets index.html.
        clusters: at most so many.
        like: names of images whose nearest neighbours are shown; empty: the most typical one of each cluster.
        picture_channels: shown of images of any channels; None: the visible ones, or the first.
        seed: of the clusters.
    """

    place: Path
    clusters: int = 12
    like: Sequence[str] = ()
    picture_channels: Sequence[str] | None = None
    seed: int = 0

    @property
    def file(self) -> Path:
        return self.place if self.place.suffix.lower() in (".html", ".htm") else self.place / "index.html"


@dataclass(frozen=True)
class Shown:
    """Images side by side."""

    title: str
    rows: Sequence[int]
    notes: Sequence[str] = ()
    """Under each image."""
    total: int = 0
    """How many there are; more than `rows` has."""
    about: str = ""


@dataclass(frozen=True)
class Part:
    """A heading of the page, and what is under it."""

    key: str
    title: str
    text: str
    groups: list[Shown] = field(default_factory=list)


def check_wanted(wanted: Wanted, source: Source) -> None:
    """Raise a `UserError` for names of images or channels that a source does not have; no image is read for it."""
    if wanted.like:
        check_names(wanted.like, [image_name(source, index) for index in range(len(source))])
    if wanted.picture_channels is not None:
        if not source.channels:
            given = " ".join(wanted.picture_channels)
            raise UserError(f"{PICTURE_CHANNELS} {given}: images that are read as RGB are shown so, leave it out")
        shown_channels(wanted.picture_channels, source.channels, PICTURE_CHANNELS)


def write_page(features: Path, source: Source, reader: Reader, wanted: Wanted) -> str:
    """Write the page of a finished file of features, and its two lists; how it went, as a line.

    Args:
        features: as `swin-mim embed` writes it, of all images of `source`. Without hashes, every image is decoded
            once more for them.
        reader: how images reach the model; replaces none.

    Raises:
        UserError: an image or channel is not there, features are not finite, images cannot be loaded, or a file cannot
            be written.
    """
    rows = read_rows(features)
    if len(rows) != len(source):
        raise UserError(f"{features} has {counted(len(rows), 'row')} and the source {counted(len(source), 'image')}")
    rows.check_finite()
    like = [rows.row_of(name) for name in wanted.like]
    hashes = rows.hashes if rows.hashes is not None else hashes_of_source(source, reader)
    values = normalised(rows.features, rows.widths)
    groups = duplicates(hashes, values, rows.read)
    parts = _parts(rows, values, groups, wanted, like)
    shown = [row for part in parts for group in part.groups for row in group.rows]
    pictures = thumbnails(source, reader, shown, wanted.picture_channels)
    names = listed_names(rows.names, source)
    lists = _lists(wanted.file, groups, names)
    text = template(Path(__file__).parent, "page.html.jinja").render(
        title=features.stem,
        count=len(rows),
        broken=[(names[row], reason) for row, reason in list(rows.errors.items())[:BROKEN]],
        broken_total=len(rows.errors),
        parts=parts,
        names=names,
        labels=rows.labels,
        pictures=pictures,
        lists=[(path.name, count) for path, count in lists],
    )
    _write(wanted.file, text)
    suggested = ", ".join(f"{path.name} of {counted(count, 'image')}" for path, count in lists)
    return f"{wanted.file}: {counted(len(rows), 'image')}, {len(text.encode()) / 1e6:.1f} MB; beside it {suggested}"


def _parts(
    rows: FeatureRows, values: Tensor, groups: Sequence[Group], wanted: Wanted, like: Sequence[int]
) -> list[Part]:
    found = clusters(values, wanted.clusters, wanted.seed)
    members = [rows.read[each] for each in found.members]
    if not like:
        like = [int(each[0]) for each in members]
    return [
        Part(
            "clusters",
            "Clusters",
            "Images that the model finds alike, the most typical ones of each cluster.",
            [_cluster(number, each, rows) for number, each in enumerate(members, 1)],
        ),
        Part(
            "neighbours",
            "Nearest neighbours",
            "The first image of each row, and those that are most like it; 1 is the same direction from the mean.",
            _neighbours(rows, values, like),
        ),
        Part(
            "outliers",
            "Outliers",
            "Images that are farthest from all others, the farthest first: 1 less the mean cosine to the nearest ones.",
            _outliers(rows, values, wanted.seed),
        ),
        _duplicate_part("equal", "Equal images", "The model sees the same pixels.", [g for g in groups if g.exact]),
        _duplicate_part(
            "alike",
            "Nearly equal images",
            "Perceptual hash and features agree: encoded anew, resized, or slightly changed.",
            [g for g in groups if not g.exact],
        ),
    ]


def _cluster(number: int, members: np.ndarray, rows: FeatureRows) -> Shown:
    about = ""
    if rows.labels is not None:
        often = Counter(rows.labels[row] or "no label" for row in members.tolist()).most_common(_LABELS)
        about = ", ".join(f"{label} {count / len(members):.0%}" for label, count in often)
    return Shown(f"Cluster {number}", members[:TYPICAL].tolist(), total=len(members), about=about)


def _neighbours(rows: FeatureRows, values: Tensor, like: Sequence[int]) -> list[Shown]:
    places = np.searchsorted(rows.read, like)
    found, cosines = neighbours(values, places, NEIGHBOURS)
    return [
        Shown(
            rows.names[row],
            [row, *rows.read[others].tolist()],
            ["this one", *(f"{cosine:.2f}" for cosine in near.tolist())],
        )
        for row, others, near in zip(like, found, cosines, strict=True)
    ]


def _outliers(rows: FeatureRows, values: Tensor, seed: int) -> list[Shown]:
    distance = distance_to_others(values, seed)
    order = np.argsort(-distance, kind="stable")[: min(OUTLIERS, max(1, len(distance) // 4))]
    return [Shown("", rows.read[order].tolist(), [f"{value:.2f}" for value in distance[order].tolist()])]


def _duplicate_part(key: str, title: str, text: str, groups: Sequence[Group]) -> Part:
    if not groups:
        return Part(key, title, "There are none.")
    images = sum(len(group.rows) for group in groups)
    text = f"{text} {counted(len(groups), 'group')} of {counted(images, 'image')}"
    more = f"; the first {GROUPS} groups are shown, the lists beside this page have all" if len(groups) > GROUPS else ""
    shown = [
        Shown(f"{title}, group {number}", group.rows[:MEMBERS].tolist(), total=len(group.rows))
        for number, group in enumerate(groups[:GROUPS], 1)
    ]
    return Part(key, title, f"{text}{more}.", shown)


def _lists(page: Path, groups: list[Group], names: Sequence[str]) -> list[tuple[Path, int]]:
    """Write both lists; (file, names in it)."""
    chosen = {"equal": [group for group in groups if group.exact], "duplicates": groups}
    found = []
    for kind, several in chosen.items():
        path = page.with_name(f"{page.stem}_{kind}.txt")
        out = to_leave_out(several)
        _write(path, "".join(f"{names[row]}\n" for row in out.tolist()))
        found.append((path, len(out)))
    return found


def _write(path: Path, text: str) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
