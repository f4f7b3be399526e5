"""Push the folder of a model to the Hugging Face Hub, as one commit.

    swin-mim push runs/demo/export user/name

FOLDER is what `save_pretrained` wrote, or a run whose export is meant. It is loaded first, strictly, and not pushed if
something is missing or too much. A new repository is private. Log in with `hf auth login`, or set HF_TOKEN.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from swin_mim.errors import Parser, UserError, one_line_errors


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", metavar="FOLDER", type=Path, help="of a published model, or of a run")
    add("repo", metavar="REPO", help="user/name")
    add("--public", action="store_true", help="make a new repository public, or agree that an existing one is")
    add("--revision", metavar="R", help="a branch that exists, in place of the default one")
    add("--message", metavar="M", help="of the commit")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors("interrupted: nothing was pushed"):
        options = parse(arguments)
        if not options.folder.is_dir():
            raise UserError(f"{options.folder} is not a folder: name the one that save_pretrained wrote")
        from swin_mim.hub import pretrained, repository

        if not repository.is_valid_name(options.repo):
            raise UserError(f"{options.repo!r} is not the name of a Hub repository: expected user/name")
        folder = pretrained.locate(options.folder)
        weights = pretrained.read(folder)
        if not pretrained.is_saved_model(folder) or weights.keys.format not in ("swin_mim", "timm"):
            raise UserError(
                f"{folder} is not a published model of swin_mim: write one to push with "
                f"swin-mim convert {folder} NEW --to swin_mim"
            )
        if not (folder / pretrained.CARD).is_file():
            raise UserError(f"{folder} has no {pretrained.CARD}, the card: save the model again")
        print(
            repository.push(
                folder,
                options.repo,
                private=not options.public,
                message=options.message or f"Upload {weights.description.kind}",
                revision=options.revision,
            )
        )
