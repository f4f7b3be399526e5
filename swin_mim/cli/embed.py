"""Write the features of every image of a source: a row for each, in the order of the source.

    swin-mim embed runs/mine photos --out features.parquet
    swin-mim embed user/name scenes --stage all --out features.parquet
    swin-mim embed runs/mine photos --maps --out maps
    accelerate launch --multi_gpu --num_processes 8 -m swin_mim embed runs/mine photos --out features.parquet

MODEL is whatever from_pretrained loads: a run, an export, a checkpoint, a file of weights, a repository on the Hub.
SOURCE is whatever a pretraining reads, or one image. Images are cut and resized as in every evaluation.

The columns are image (its path relative to the source), label where class folders or a table say one, embedding (a
list of float32; embedding_1 and so on with --stage all) and error. An image that cannot be read has an empty row, with
the reason in error, and is named.

The same command goes on where one was interrupted or killed. Rows are the same on one process and on several.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from swin_mim.cli.options import (
    add_job_options,
    add_source_options,
    check_numbers,
    check_out,
    given_source_settings,
)
from swin_mim.errors import Parser, one_line_errors

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
    add_source_options(parser)
    add_job_options(parser)
    options = parser.parse_args(arguments)
    check_numbers(options, parser)
    if options.map_mib < 1:
        parser.error(f"--map-mib {options.map_mib} must be at least 1")
    if options.maps is None:
        check_out(options.out, (".parquet",), parser)
    elif options.out.is_file():
        parser.error(f"--out {options.out} is a file: --maps writes a folder")
    return options


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
    from swin_mim.models.swin import Swin
    from swin_mim.training.distributed.processes import resolve_precision

    model = Swin.from_pretrained(options.model, pickles=True)
    settings = {"stage": options.stage, "maps": options.maps, "map_mib": options.map_mib}
    job = embedding_job(
        model,
        (options.model, options.source, options.out),
        given_source_settings(options),
        label_column=options.label_column,
        batch=options.batch,
        precision=resolve_precision(options.precision),
        **settings,
    )
    accelerator = connect(options.threads, options.batch)
    done = run(job, accelerator, overwrite=options.overwrite)
    if done:
        print(done_text(done, options.out))
    accelerator.end_training()
