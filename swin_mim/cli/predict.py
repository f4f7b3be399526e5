"""Let a classifier predict the class of every image of a source: a row for each, in the order of the source.

    swin-mim predict runs/mine_fine new_photos --out predictions.csv
    swin-mim predict user/name photo.jpg --out predictions.csv
    accelerate launch --multi_gpu --num_processes 8 -m swin_mim predict runs/mine_fine photos --out predictions.parquet

MODEL is the run or the export of a fine-tuning, a file of weights, or a repository on the Hub. SOURCE is whatever a
training reads, with labels or without, or one image. Images are cut and resized as in every evaluation.

The columns are image, predicted, probability, "probability of NAME" for each class, and error. An image that cannot be
read has an empty row, with the reason in error, and is named. Nothing is measured: swin-mim finetune --evaluate does.

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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, an export, a checkpoint, a weight file, or user/name on the Hub")
    add("source", metavar="SOURCE", help="a folder, an image, a table, a data set, shards, blue_marble")
    add("--out", required=True, type=Path, metavar="FILE", help="ends in .csv or .parquet")
    add("--multi-label", action="store_true", help="any number of classes an image, as data.multi_label")
    add_source_options(parser)
    add_job_options(parser)
    options = parser.parse_args(arguments)
    check_numbers(options, parser)
    check_out(options.out, (".csv", ".parquet"), parser)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
    with one_line_errors("interrupted: the same command goes on where this one ended"):
        predict(options)


def predict(options: argparse.Namespace) -> None:
    """Compute what is missing, and say how it went."""
    from swin_mim.evaluation.outputs.job import done_text, run
    from swin_mim.evaluation.outputs.predictions import load_classifier, prediction_job
    from swin_mim.evaluation.outputs.start import connect
    from swin_mim.training.distributed.processes import resolve_precision

    job = prediction_job(
        load_classifier(options.model),
        (options.model, options.source, options.out),
        given_source_settings(options),
        multi_label=options.multi_label,
        batch=options.batch,
        precision=resolve_precision(options.precision),
    )
    accelerator = connect(options.threads, options.batch)
    done = run(job, accelerator, overwrite=options.overwrite)
    if done:
        print(done_text(done, options.out))
    accelerator.end_training()
