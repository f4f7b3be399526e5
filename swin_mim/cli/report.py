"""Show runs as one page: curves, reconstructions, probes, evaluations, data, settings, machine.

    swin-mim report runs/demo                       # writes runs/demo/report.html
    swin-mim report runs/a runs/b --out both.html   # side by side, with what differs in their settings
    swin-mim report --serve runs/demo               # follows a run that goes on, until Ctrl-C
    swin-mim report runs/demo --facts               # looks at the images of a pretraining first, as the doctor does

The page is one file of at most 8 MB that asks nothing of any other place. A training writes that of its own run at
every evaluation, unless log.report is false. What --serve serves is on this machine alone (127.0.0.1), at an address
with a random token. What --facts finds is kept in the run's folder (data_facts.json), and all later pages have it.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from swin_mim.errors import Parser, UserError, one_line_errors


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="folders of runs, six at most")
    add("--out", type=Path, metavar="FILE", help="default: report.html in the run, or here if there are several runs")
    add("--serve", action="store_true", help="serve it to a browser of this machine, and keep it up to date")
    add("--port", type=int, metavar="N", help="of --serve (default: a free one)")
    add("--facts", action="store_true", help="look at the images of these pretrainings first, as swin-mim doctor does")
    add("--labelled", type=int, metavar="N", help="of --facts: images that have labels, if that is known")
    options = parser.parse_args(arguments)
    options.runs = [run.expanduser() for run in options.runs]
    if options.serve and options.out:
        parser.error("--serve writes no file: leave --out out")
    if options.port is not None and not options.serve:
        parser.error("--port is of --serve")
    if options.port is not None and not 0 <= options.port < 65536:
        parser.error(f"--port {options.port} must be from 0 to 65535")
    if options.labelled is not None and not options.facts:
        parser.error("--labelled is of --facts")
    if options.labelled is not None and options.labelled < 1:
        parser.error(f"--labelled {options.labelled} must be at least 1: leave it out if there are none")
    if options.out and options.out.expanduser().is_dir():
        parser.error(f"--out {options.out} is a folder: name a file in it")
    if options.out and not options.out.expanduser().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    if options.out and options.out.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--out {options.out} must end in .html, by which a browser knows a page")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
        if options.facts:
            look(options.runs, options.labelled)
        if options.serve:
            serve(options.runs, options.port or 0)
        else:
            write(options.runs, options.out)


def look(runs: Sequence[Path], labelled: int | None) -> None:
    from swin_mim.cli.doctor.facts import keep_facts  # it brings torch, which a page does without
    from swin_mim.evaluation.report.page import render

    render(runs)  # a mistake is said before any image is looked at
    for run in runs:
        if not os.access(run, os.W_OK):
            raise UserError(f"{run} cannot be written to, where --facts keeps what it finds: leave --facts out")
    keep_facts(runs, labelled)


def write(runs: Sequence[Path], out: Path | None) -> None:
    from swin_mim.evaluation.report.page import REPORT, write_report

    path = (out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))).expanduser()
    try:
        write_report(runs, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    print(f"{path} ({os.path.getsize(path) / 1e6:.1f} MB)")


def serve(runs: Sequence[Path], port: int) -> None:
    from swin_mim.evaluation.report.page import render
    from swin_mim.evaluation.report.serve import ReportServer

    render(runs)  # a mistake is said before anything is served
    with ReportServer(runs, port) as server:
        try:
            print(f"{server.address}  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("no longer served")
