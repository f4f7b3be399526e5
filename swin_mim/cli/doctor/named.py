"""Which images a command line of the doctor names: SOURCE in front, or --data.source SOURCE as a pretraining has it."""

import argparse
from collections.abc import Sequence

SOURCE = "SOURCE in front of the options of the pretraining, or --data.source SOURCE"


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the second of the two. The first is no argument of a parser: values of unknown options look alike."""
    parser.add_argument(
        "--data.source",
        nargs="+",
        action="append",
        default=[],
        dest="source",
        metavar="SOURCE",
        help="instead of SOURCE in front: a folder of images, a data set of the Hub (user/name), or blue_marble",
    )


def named_source(
    parser: argparse.ArgumentParser, own: argparse.Namespace, rest: Sequence[str]
) -> tuple[list[str], list[str]]:
    """(--data.source with its value, or nothing if no images are named; options of the pretraining).

    Args:
        own: what the parser of `add_source` knew of the command line.
        rest: what it did not know.
    """
    in_front = [[word] for word in rest[:1] if not word.startswith("-")]
    named = [*in_front, *own.source]
    if len(named) > 1:
        told = " and ".join(" ".join(words) for words in named)
        parser.error(f"say once which images to look at, not {told}: {SOURCE}")
    return [word for words in named for word in ("--data.source", *words)], list(rest[len(in_front) :])
