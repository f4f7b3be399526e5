"""Fonts of Debian's packages, unpacked without being installed: `python -m tools.pretraining_study.fonts FONTS`.

Licences: SIL OFL (noto-cjk, lxgw-wenkai), GPL-2 with font exception (wqy-zenhei), Apache-2 (wqy-microhei), Arphic's
public license (arphic-*), IPA (ipafont-*), M+, Sazanami and BSD (vlgothic), GPL-2 or later (cwtex-kai). 150 MB come
from the archive that apt is set up for; nothing is kept but the folder.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from swin_mim.errors import Parser, UserError, one_line_errors

PACKAGES = (
    "fonts-arphic-ukai",
    "fonts-arphic-uming",
    "fonts-cwtex-kai",
    "fonts-ipafont-gothic",
    "fonts-ipafont-mincho",
    "fonts-lxgw-wenkai",
    "fonts-noto-cjk",
    "fonts-vlgothic",
    "fonts-wqy-microhei",
    "fonts-wqy-zenhei",
)


def unpack(out: Path) -> None:
    """Download the packages and unpack them into a new folder, which is there as a whole or not at all.

    Raises:
        UserError: apt-get or dpkg is missing or fails, or the folder is there.
    """
    if out.exists():
        raise UserError(f"{out} is there already: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.part") as part:
        archives, unpacked = Path(part, "archives"), Path(part, "unpacked")
        archives.mkdir()
        _run(["apt-get", "download", *PACKAGES], archives)
        for archive in sorted(archives.glob("*.deb")):
            _run(["dpkg", "-x", str(archive), str(unpacked)], archives)
        shutil.move(unpacked, out)


def _run(words: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is not there: the fonts come from Debian's packages") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [done.stderr.strip()]
        raise UserError(f"{' '.join(words[:2])} failed ({said[0]}): does apt-get update help?")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.pretraining_study.fonts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fonts", metavar="FONTS", type=Path, help="a new folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        unpack(parse(arguments).fonts)


if __name__ == "__main__":
    main()
