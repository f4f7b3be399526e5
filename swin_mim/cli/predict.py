"""Let a finished model predict for every image of a source: classes, masks or objects, by what the model is.

    swin-mim predict runs/mine_fine new_photos --out predictions.csv     # a classifier
    swin-mim predict runs/mine_segment scenes --out masks                # a segmenter: a folder
    swin-mim predict runs/mine_detect photo.jpg --out objects.json       # a detector
    accelerate launch --multi_gpu --num_processes 8 -m swin_mim predict runs/mine_fine photos --out predictions.parquet

MODEL is the run or the export of a fine-tuning, a segmentation or a detection, a file of weights, or a repository on
the Hub. SOURCE is whatever a training reads, with labels or without, or one image.

Classes (.csv, .parquet): the columns are image, predicted, probability, "probability of NAME" for each class, and
error. Images are cut and resized as in every evaluation.

Masks (a folder): class numbers of every pixel at the image's own size, under the image's path; PNG with a palette, of
TIFF a TIFF that keeps its georeference; 255 where a pixel is not there, or 65535 in the 16-bit files that are written
where a class has the number 255. images.parquet lists them with the pixels of each class. Images of more than 2048 x
2048 pixels go through the model by windows of its own size, which overlap.

Objects (.json): boxes, and shapes of a detector that finds them, with scores, as a file of COCO's instances.

An image that cannot be read has an empty row, with the reason in error, and is named; a file of objects lists it as
unreadable. Nothing is measured: swin-mim finetune, segment or detect do, with --evaluate.

The same command goes on where one was interrupted or killed. Results are the same on one process and on several,
masks and objects on a CPU only with the same --threads, by which convolutions round.
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
    from swin_mim.evaluation.outputs.job import Job

_COMMAND = "swin-mim predict"
_OF = {"multi_label": "SwinClassifier", "window": "SwinSegmenter", "resize": "SwinSegmenter"}
_OF |= {"first_class": "SwinSegmenter", "min_score": "SwinDetector"}
_FILES = (".csv", ".parquet", ".json", ".png", ".tif", ".tiff")
_NOUNS = {"SwinClassifier": "a classifier", "SwinSegmenter": "a segmenter", "SwinDetector": "a detector"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog=_COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, an export, a checkpoint, a weight file, or user/name on the Hub")
    add("source", metavar="SOURCE", help="a folder, an image, a table, a data set, shards, blue_marble")
    text = "a file that ends in .csv or .parquet, of a detector in .json; of a segmenter a folder"
    add("--out", required=True, type=Path, metavar="PLACE", help=text)
    text = "any number of classes an image, as data.multi_label"
    parser.add_argument_group("classifiers").add_argument("--multi-label", action="store_true", default=None, help=text)
    add = parser.add_argument_group("segmenters").add_argument
    text = "images whole, or window by window; auto: the latter above 2048 x 2048 pixels (default: auto)"
    add("--window", choices=("auto", "whole", "slide"), help=text)
    text = "shorter side at which images are seen, as data.resize of the training (default: their own)"
    add("--resize", type=int, metavar="N", help=text)
    text = "number of the first class in the masks (default: 0)"
    add("--first_class", "--first-class", type=int, metavar="N", help=text)
    add = parser.add_argument_group("detectors").add_argument
    text = "leave out what is found less surely, from 0 to 1 (default: 0.05, below which detectors look at nothing)"
    add("--min_score", "--min-score", type=float, metavar="P", help=text)
    add_source_options(parser)
    add_job_options(
        parser, batch=None, usual="64 of a classifier, 1 of a detector; a segmenter has one image at a time"
    )
    options = parser.parse_args(arguments)
    check_numbers(options, parser)
    if options.resize is not None and options.resize < 1:
        parser.error(f"--resize {options.resize} must be at least 1")
    if options.min_score is not None and not 0 <= options.min_score <= 1:
        parser.error(f"--min_score {options.min_score} must be 0 to 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
    with one_line_errors("interrupted: the same command goes on where this one ended"):
        predict(options)


def predict(options: argparse.Namespace) -> None:
    """Compute what is missing, and say how it went."""
    from swin_mim.evaluation.outputs.job import done_text, run
    from swin_mim.evaluation.outputs.start import connect, kind_of

    kind = kind_of(options.model)
    kind = kind if kind in _NOUNS else "SwinClassifier"  # whose loading explains what the model is
    check_options(options, kind)
    with told_once():
        job = job_of(options, kind)
    accelerator = connect(options.threads, job.batch)
    done = run(job, accelerator, overwrite=options.overwrite)
    if done:
        print(done_text(done, options.out))
    accelerator.end_training()


def check_options(options: argparse.Namespace, kind: str) -> None:
    """Raise a `UserError` for what this kind of model does not do."""
    parser = Parser(prog=_COMMAND)
    for name, of in _OF.items():
        if getattr(options, name) is not None and of != kind:
            flag = "multi-label" if name == "multi_label" else name
            parser.error(f"--{flag} is of {_NOUNS[of].removeprefix('a ')}s, and {options.model} is {_NOUNS[kind]}")
    if kind == "SwinSegmenter":
        if options.batch is not None:
            parser.error(f"--batch {options.batch}: a segmenter takes one image at a time, leave it out")
        if options.out.suffix.lower() in _FILES or options.out.is_file():
            parser.error(f"--out {options.out} must be a folder: {options.model} is a segmenter, which writes masks")
    else:
        check_out(options.out, (".json",) if kind == "SwinDetector" else (".csv", ".parquet"), parser)


def job_of(options: argparse.Namespace, kind: str) -> "Job":
    """What a model of this kind is to do."""
    from swin_mim.evaluation.outputs.predictions import load_classifier, prediction_job
    from swin_mim.training.config.finetune import ClassifierConfig
    from swin_mim.training.distributed.processes import resolve_precision
    from swin_mim.training.finished import open_finished

    places, given = (options.model, options.source, options.out), given_source_settings(options)
    precision, config = resolve_precision(options.precision), ClassifierConfig(pretrained=options.model)
    if kind == "SwinSegmenter":
        from swin_mim.evaluation.outputs.masks import MaskOptions, mask_job
        from swin_mim.models.dense.segmenter import SwinSegmenter

        wanted = MaskOptions(options.window or "auto", options.resize, options.first_class or 0)
        return mask_job(open_finished(SwinSegmenter, config), places, given, options=wanted, precision=precision)
    if kind == "SwinDetector":
        from swin_mim.evaluation.outputs.objects import object_job
        from swin_mim.models.dense.detector import SwinDetector

        detector, batch = open_finished(SwinDetector, config), options.batch or 1
        return object_job(detector, places, given, min_score=options.min_score or 0.0, batch=batch, precision=precision)
    classifier, multi_label, batch = load_classifier(options.model), bool(options.multi_label), options.batch or 64
    return prediction_job(classifier, places, given, multi_label=multi_label, batch=batch, precision=precision)
