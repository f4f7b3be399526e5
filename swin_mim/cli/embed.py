"""Write the features of every image of a source: a row for each, in the order of the source.

    swin-mim embed runs/mine photos --out features.parquet
    swin-mim embed user/name scenes --stage all --out features.parquet
    swin-mim embed runs/mine photos --maps --out maps
    swin-mim embed runs/mine photos --out features.parquet --page overview.html
    accelerate launch --multi_gpu --num_processes 8 -m swin_mim embed runs/mine photos --out features.parquet

MODEL is whatever from_pretrained loads: a run, an export, a checkpoint, a file of weights, a repository on the Hub.
SOURCE is whatever a pretraining reads, or one image. Images are cut and resized as in every evaluation.

The columns are image (its path relative to the source), label where class folders or a table say one, embedding (a
list of float32; embedding_1 and so on with --stage all) and error. An image that cannot be read has an empty row, with
the reason in error, and is named.

--page writes a page of what the images show: clusters with their typical images, nearest neighbours, outliers, equal
and nearly equal images; beside it lists of duplicates for data.exclude of a training. With it the file has two more
columns, pixels and look, hashes of what the model sees; a file that is finished without them gets its page too.

The same command goes on where one was interrupted or killed. Rows are the same on one process and on several.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swin_mim.cli.options import (
    add_job_options,
    add_source_options,
    check_numbers,
    check_out,
    given_source_settings,
    told_once,
)
from swin_mim.errors import Parser, one_line_errors

if TYPE_CHECKING:
    from swin_mim.evaluation.overview.page import Wanted

MAP_FORMATS = ("safetensors", "npy")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, an export, a checkpoint, a weight file, or user/name on the Hub")
    add("source", metavar="SOURCE", help="a folder, an image, a table, a data set, shards, blue_marble")
    add("--out", required=True, type=Path, metavar="FILE", help="ends in .parquet; with --maps a folder")
    text = "last: after the final norm, as a classifier's head gets it; 1, 2, ...: a stage's output; all of these"
    add("--stage", default="last", help=f"{text} (default: last)")
    text = "whole maps in place of their means, in files of bounded size (default: safetensors)"
    add("--maps", nargs="?", const="safetensors", choices=MAP_FORMATS, help=text)
    add("--map-mib", type=int, default=256, metavar="N", help="max size of such a file, but a batch (default: 256)")
    add("--label-column", help="of a table; without it the one that is evident")
    _add_page_options(parser)
    add_source_options(parser)
    add_job_options(parser)
    options = parser.parse_args(arguments)
    check_numbers(options, parser)
    if options.map_mib < 1:
        parser.error(f"--map-mib {options.map_mib} must be at least 1")
    _check_page(options, parser)
    if options.maps is None:
        check_out(options.out, (".parquet",), parser)
    elif options.out.is_file():
        parser.error(f"--out {options.out} is a file: --maps writes a folder")
    return options


def _add_page_options(parser: Parser) -> None:
    add = parser.add_argument_group("page").add_argument
    text = "page of what the images show: an .html file, or a folder for index.html"
    add("--page", type=Path, metavar="PLACE", help=text)
    add("--clusters", type=int, metavar="K", help="max number of clusters (default: 12)")
    text = "images whose nearest neighbours are shown, by name (default: the most typical one of each cluster)"
    add("--like", nargs="+", metavar="NAME", help=text)
    text = "to show of images of any channels: three, or one (default: the visible ones)"
    add("--picture_channels", "--picture-channels", nargs="+", metavar="NAME", help=text)


def _check_page(options: argparse.Namespace, parser: Parser) -> None:
    if options.page is None:
        for name in ("clusters", "like", "picture_channels"):
            if getattr(options, name) is not None:
                parser.error(f"--{name} is of the page: name its place with --page")
        return
    if options.maps is not None:
        parser.error("--page is of pooled features: leave --maps out")
    if options.clusters is not None and options.clusters < 1:
        parser.error(f"--clusters {options.clusters} must be at least 1")
    is_file, named = options.page.is_file(), options.page.suffix.lower() in (".html", ".htm")
    if is_file != named and options.page.exists():
        found = "is a file" if is_file else "is a folder"
        parser.error(f"--page {options.page} {found}: name an .html file, or a folder for index.html")


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
    with one_line_errors("interrupted: the same command goes on where this one ended"):
        embed(options)


def embed(options: argparse.Namespace) -> None:
    """Compute what is missing, and say how it went."""
    from swin_mim.evaluation.outputs.embeddings import embedding_job
    from swin_mim.evaluation.outputs.job import done_text, run
    from swin_mim.evaluation.outputs.start import connect
    from swin_mim.evaluation.overview.page import check_wanted, write_page
    from swin_mim.models.swin import Swin
    from swin_mim.training.distributed.processes import resolve_precision

    model = Swin.from_pretrained(options.model, pickles=True)
    settings = {"stage": options.stage, "maps": options.maps, "map_mib": options.map_mib}
    settings["hashes"] = options.page is not None
    with told_once():
        job = embedding_job(
            model,
            (options.model, options.source, options.out),
            given_source_settings(options),
            label_column=options.label_column,
            batch=options.batch,
            precision=resolve_precision(options.precision),
            **settings,
        )
    if options.page is not None:
        check_wanted(wanted(options), job.source)
    accelerator = connect(options.threads, options.batch)
    done = run(job, accelerator, overwrite=options.overwrite)
    if done:
        print(done_text(done, options.out), flush=True)
    accelerator.end_training()
    if done and options.page is not None:  # no other process waits for it
        print(write_page(options.out, job.source, job.reader(), wanted(options)))


def wanted(options: argparse.Namespace) -> "Wanted":
    """What the page is to show, by the options that were given."""
    from swin_mim.evaluation.overview.page import Wanted

    given = {name: getattr(options, name) for name in ("clusters", "like", "picture_channels")}
    return Wanted(options.page, **{name: value for name, value in given.items() if value is not None})
