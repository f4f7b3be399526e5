"""Pictures of characters of installed fonts, for a study of pretraining: `python -m tools.characters`.

    python -m tools.characters FONTS OUT --classes 100 --unlabelled 60000

FONTS is a folder with font files at any depth, such as /usr/share/fonts. Each picture is one character in random
colours, size and place. OUT gets unlabelled/ (all characters, typefaces of the training), and train/, validation/ and
test/ with a folder for each of the chosen characters; no typeface is in two of the three. OUT/made.json says what was
made of what.
The same fonts, options and Pillow give the same bytes. Needs fonttools, which matplotlib brings.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTCollection, TTFont  # type: ignore[import-untyped]
from PIL import Image, ImageDraw, ImageFont

from swin_mim.errors import Parser, UserError, one_line_errors
from swin_mim.files import sha256

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
CONTRAST = 60
"""Least difference of the grey of ink and paper."""
SHARES = {"validation": 0.2, "test": 0.25}
"""Of the families; the rest is trained on."""


@dataclass(frozen=True)
class Face:
    """A typeface of a file that may hold several."""

    path: Path
    index: int
    family: str
    characters: frozenset[int]


def faces_in(folder: Path, first: int, last: int) -> list[Face]:
    """All typefaces with characters of this block, in the order of their files.

    Raises:
        UserError: there is none.
    """
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES):
        for index in range(typefaces_of(path)):
            with TTFont(path, fontNumber=index, lazy=True) as font:
                has = frozenset(code for code in font.getBestCmap() or () if first <= code <= last)
                if has:
                    found.append(Face(path, index, family_of(font, path), has))
    if not found:
        raise UserError(f"{folder} has no font with characters from U+{first:04X} to U+{last:04X}")
    return found


def typefaces_of(path: Path) -> int:
    if path.suffix.lower() not in (".ttc", ".otc"):
        return 1
    with TTCollection(path, lazy=True) as collection:
        return len(collection)


def family_of(font: TTFont, path: Path) -> str:
    """What its languages, weights and spacings share, which are one design: "Noto Sans" of "Noto Sans Mono CJK JP"."""
    words = (font["name"].getDebugName(1) or path.stem).replace("IPAP", "IPA").split("-")[0].split()
    return " ".join(words[:2]) if words[0] == "Noto" else words[0]


def split_families(faces: Sequence[Face], seed: int) -> dict[str, list[Face]]:
    """Typefaces to train on, to choose by and to test on; a family is in one of them.

    Raises:
        UserError: there are fewer than three families.
    """
    families = sorted({face.family for face in faces})
    if len(families) < 3:
        raise UserError(f"there are {len(families)} families of fonts ({', '.join(families)}), and three are needed")
    order = np.random.default_rng([seed, 1]).permutation(families).tolist()
    parts, taken = {}, 0
    for name, share in SHARES.items():
        count = max(1, int(share * len(families)))
        parts[name] = [face for face in faces if face.family in order[taken : taken + count]]
        taken += count
    return {"train": [face for face in faces if face.family in order[taken:]], **parts}


def draw(face: Face, code: int, size: int, rng: np.random.Generator) -> Image.Image:
    """One character in colours that differ in grey, turned by nothing, at a place and size of its own."""
    while True:
        ink, paper = rng.integers(0, 256, (2, 3))
        if abs(float((ink - paper) @ (0.299, 0.587, 0.114))) >= CONTRAST:
            break
    points = int(size * rng.uniform(0.6, 0.85))
    picture = Image.new("RGB", (size, size), tuple(map(int, paper)))
    font = ImageFont.truetype(str(face.path), points, index=face.index)
    left, top, right, bottom = font.getbbox(chr(code))
    room = size - (right - left), size - (bottom - top)
    place = [rng.uniform(0.2, 0.8) * max(0, free) for free in room]
    ImageDraw.Draw(picture).text((place[0] - left, place[1] - top), chr(code), tuple(map(int, ink)), font)
    return picture


def pictures(
    faces: Sequence[Face], codes: Sequence[int], number: int, size: int, seed: Sequence[int]
) -> Iterator[tuple[int, Image.Image]]:
    """(code, picture): so many, round after round of all characters, each in another family than in the round before.

    The typeface is drawn from those of the family, so that a family with many does not count for more.
    """
    families: dict[str, list[Face]] = defaultdict(list)
    for face in faces:
        families[face.family].append(face)
    kinds, first = list(families.values()), np.random.default_rng(seed).integers(0, len(families), len(codes))
    for place in range(number):
        turn, at = divmod(place, len(codes))
        if not at:
            order = np.random.default_rng([*seed, turn]).permutation(len(codes))
        rng = np.random.default_rng([*seed, turn, 1 + at])
        of = kinds[(first[order[at]] + turn) % len(kinds)]
        yield codes[order[at]], draw(of[rng.integers(len(of))], codes[order[at]], size, rng)


def make(options: argparse.Namespace) -> dict[str, object]:
    """Write all pictures -> what OUT/made.json holds.

    Raises:
        UserError: there are too few fonts or characters, or OUT has something in it.
    """
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"{options.out} is not empty: name a new folder")
    faces = faces_in(options.fonts, *options.block)
    parts = split_families(faces, options.seed)
    common = sorted(set.intersection(*(set(face.characters) for face in faces)))
    if len(common) < options.classes:
        raise UserError(
            f"all {len(faces)} typefaces share {len(common)} characters, and --classes is {options.classes}"
        )
    classes = sorted(np.random.default_rng([options.seed, 2]).choice(common, options.classes, replace=False).tolist())
    counts: dict[str, int] = defaultdict(int)
    for number, (part, of) in enumerate((("unlabelled", "train"), *((name, name) for name in parts))):
        codes = common if part == "unlabelled" else classes
        each = options.validation_each or options.each if part == "validation" else options.each
        wanted = options.unlabelled if part == "unlabelled" else each * len(classes)
        for place, (code, picture) in enumerate(
            pictures(parts[of], codes, wanted, options.size, [options.seed, 3, number])
        ):
            folder = options.out / part / ("" if part == "unlabelled" else f"U{code:04X}")
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{place:06d}.png")
            counts[part] += 1
    made = {
        "pictures": dict(counts),
        "characters": len(common),
        "classes": [f"U+{code:04X}" for code in classes],
        "families": {part: sorted({face.family for face in of}) for part, of in parts.items()},
        "fonts": {path.name: sha256([path.read_bytes()]) for path in sorted({face.path for face in faces})},
        "size": options.size,
        "seed": options.seed,
    }
    (options.out / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    return made


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.characters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("fonts", metavar="FONTS", type=Path, help="a folder of font files")
    add("out", metavar="OUT", type=Path, help="a new folder")
    add("--classes", type=int, default=100, help="characters with labels")
    add("--unlabelled", type=int, default=60_000, help="pictures without labels")
    add("--each", type=int, default=40, help="pictures of a class in each of train, validation and test")
    add("--validation-each", type=int, metavar="N", help="of validation, if not EACH")
    add("--size", type=int, default=64, help="pixels of a side")
    add("--block", type=block, default=(0x4E00, 0x9FFF), metavar="FIRST-LAST", help="code points in hex: 4E00-9FFF")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name in ("classes", "unlabelled", "each", "validation_each", "size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be at least 1")
    return options


def block(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        return int(first, 16), int(last, 16)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST-LAST, two code points in hex") from None


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
        made = make(options)
        print(json.dumps({key: made[key] for key in ("pictures", "characters", "families")}, indent=1))


if __name__ == "__main__":
    main()
