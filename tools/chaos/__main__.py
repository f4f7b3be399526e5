"""Break runs in every way that this machine can, and count what was lost.

    python -m tools.chaos --json chaos.json
    python -m tools.chaos saves damage

    saves       kill the process at 500 places in the files of a save and before each of its system calls, and let the
                disk be full at those places
    damage      flip bits in a published checkpoint, and cut its files
    stops       SIGTERM in the middle of every step of a run, in one process and in two; and from one to two to one
    strategies  DDP, FSDP2 and DeepSpeed's ZeRO-1, 2 and 3 in two processes: stopped and continued, a NaN in one of
                them; FSDP2 continued by one process and by three
    numbers     NaN in input, activation and gradient, in one process of two; and swin-mim replay, which has to find it
    overhead    a plain training loop and a guarded run of the demo in turn: what all this costs

Everything is real: processes, signals, files. The models are tiny. All of it takes half an hour on 2 cores.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from swin_mim.cli.options import add_json_option, text_stream, write_json
from swin_mim.errors import Parser, UserError, one_line_errors

PARTS = ("saves", "damage", "stops", "strategies", "numbers", "overhead")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m tools.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
        figures = {}
        for part in options.parts or PARTS:
            start = time.monotonic()
            with TemporaryDirectory(prefix="chaos_") as folder:
                figures[part] = run(part, Path(folder)) | {"seconds": round(time.monotonic() - start, 1)}
            print(json.dumps({part: figures[part]}, indent=1), file=text_stream(options.json), flush=True)
        write_json(figures, options.json)
        lost = [f"{part}.{name}" for part, values in figures.items() for name in BAD if values.get(name)]
        if lost:
            raise UserError(f"not as promised: {', '.join(lost)}")


BAD = ("unloadable", "silently_wrong", "different", "nans_applied", "non_finite_weights", "wrong_step", "wrong_module")
"""Figures that have to be 0."""


def run(part: str, folder: Path) -> dict[str, object]:
    """One part, in a new folder -> its figures."""
    if part in ("saves", "damage"):
        from tools.chaos import saves as chaos_saves

        return chaos_saves.saves(folder) if part == "saves" else chaos_saves.damage(folder)
    if part == "overhead":
        from tools.chaos import overhead as chaos_overhead

        return chaos_overhead.overhead(folder)
    from tools.chaos import runs as chaos_runs

    of_runs = {"stops": chaos_runs.stops, "strategies": chaos_runs.strategies, "numbers": chaos_runs.numbers}
    return of_runs[part](folder)


if __name__ == "__main__":
    main()
