"""Probe the features of an encoder on labelled images: k-NN and a linear probe of every stage, nothing is trained.

    swin-mim probe runs/demo --source blue_marble --validation-split validation
    swin-mim probe user/name --source photos/train --validation photos/val --images 5000 --json probe.json

MODEL is whatever `from_pretrained` loads. Beside it stand the same encoder with random weights, and the colours of the
images alone (or the values of their channels): what these reach too is no merit of the pretraining.

How to read it: the k-NN of the last stage under-rates masked image models, which do not arrange their features by
similarity (a ViT-B of MAE has 11 % there, and 81 % when it is fine-tuned). Look at the linear probe of the best stage,
and how far it is above random weights. What counts is fine-tuning with few labels: swin-mim transfer.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from swin_mim.cli.options import (
    add_json_option,
    add_raster_options_beside_a_model,
    given_channels,
    text_stream,
    write_json,
)
from swin_mim.counts import counted
from swin_mim.errors import Parser, UserError, one_line_errors

if TYPE_CHECKING:
    import numpy as np

    from swin_mim.data.loading.loader import Batch


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="swin-mim probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, cores = parser.add_argument, len(os.sched_getaffinity(0))
    add("model", metavar="MODEL", help="a run, an export, a checkpoint, a weight file, or user/name on the Hub")
    add("--source", required=True, metavar="DIR", help="images with labels: class folders, a data set, blue_marble")
    add("--split", default="train", help="of a data set (default: train)")
    add("--column", help="of the images")
    add("--label-column", help="of the labels")
    add("--validation", metavar="DIR", help="other images to test on (default: a tenth of the source)")
    add("--validation-split", help="of a data set to test on")
    add("--images", type=int, default=2000, metavar="N", help="to learn from, at most (default: 2000)")
    add("--seed", type=int, default=0, help="of the choice of images and of the random weights")
    add("--batch", type=int, default=64, metavar="N", help="images of one forward (default: 64)")
    add("--workers", type=int, default=cores, metavar="N", help="processes that decode images (default: each core)")
    add_json_option(parser)
    add_raster_options_beside_a_model(parser)
    options = parser.parse_args(arguments)
    for name, minimum in (("images", 1), ("seed", 0), ("batch", 1), ("workers", 0)):
        if getattr(options, name) < minimum:
            parser.error(f"--{name} {getattr(options, name)} must be at least {minimum}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with one_line_errors():
        options = parse(arguments)
        report = measure(options)
        print(text(report), file=text_stream(options.json))
        write_json(report, options.json)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All scores, as JSON."""
    import torch

    from swin_mim.architecture import as_pair
    from swin_mim.data.loading.loader import LoaderOptions
    from swin_mim.evaluation.probes import Prober, colours_of, score
    from swin_mim.evaluation.reader import Reader
    from swin_mim.models.preprocessing import Preprocessor
    from swin_mim.models.swin import Swin
    from swin_mim.training.channels import channels_to_read
    from swin_mim.training.config.finetune import LabelledDataConfig
    from swin_mim.training.labelled_images import to_probe

    encoder = Swin.from_pretrained(options.model, pickles=True)
    data = LabelledDataConfig(
        **channels_to_read(encoder.preprocessing, options.model, **given_channels(options)),
        source=options.source,
        split=options.split,
        column=options.column,
        label_column=options.label_column and (options.label_column,),
        validation=options.validation,
        validation_split=options.validation_split,
    )
    training, heldout = to_probe(data, options.images, options.seed)
    broken: dict[str, str] = {}

    def watch(batches: Iterator["Batch"]) -> Iterator["Batch"]:
        for batch in batches:
            broken.update(batch.broken)
            yield batch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reader = Reader(
        Preprocessor(encoder.preprocessing, device),
        as_pair(encoder.config.image_size),
        reduce=lambda values: values,
        watch=watch,
        batch=options.batch,
        options=LoaderOptions(workers=options.workers),
    )
    (colours, labels), (other_colours, truth) = (colours_of(images, reader) for images in (training, heldout))
    check_unreadable(broken, len(training) + len(heldout), training.names, labels)
    prober = Prober(training, heldout, reader)
    torch.manual_seed(options.seed)
    return {
        "model": options.model,
        "learnt_from": len(labels),
        "tested_on": len(truth),
        "classes": list(training.names),
        "beside": "colours alone" if encoder.preprocessing.scale == 255 else "values alone",
        "colours": score(colours, labels, other_colours, truth, len(training.names))._asdict(),
        "stages": [each._asdict() for each in prober.stages(encoder.to(device))],
        "random_weights": [each._asdict() for each in prober.stages(Swin(encoder.config).to(device))],
    }


def check_unreadable(broken: dict[str, str], count: int, names: Sequence[str], labels: "np.ndarray") -> None:
    """`broken` are the reasons by image, of `count` images; `labels` of those to learn from that could be read.

    Raises:
        UserError: there are none of a class.
    """
    if not broken:
        return
    image, reason = next(iter(broken.items()))
    text = f"{len(broken)} of {counted(count, 'image')} cannot be read, the first: {image}: {reason}"
    if missing := sorted(set(range(len(names))) - set(labels.tolist())):
        raise UserError(f"{text}: there are none of {names[missing[0]]!r} to learn from")
    print(text, file=sys.stderr)


def text(report: dict[str, Any]) -> str:
    """The report as a table; accuracies in percent."""
    images, classes = counted(report["learnt_from"], "image"), counted(len(report["classes"]), "class", "classes")
    head = f"{report['model']}: learnt from {images} of {classes}, "
    lines = [
        f"{head}tested on {report['tested_on']} others; accuracy in %, in brackets the mean over the classes",
        f"{'':<18}{'linear probe':^34}{'k-NN':^34}",
        f"{'features':<18}" + f"{'this model':<17}{'random weights':<17}" * 2,
    ]
    rows = [(report["beside"], report["colours"], None)]
    for stage, pair in enumerate(zip(report["stages"], report["random_weights"], strict=True), start=1):
        rows.append((f"stage {stage}", *pair))
    for name, own, other in rows:
        cells = [cell(scores, kind) for kind in ("linear", "knn") for scores in (own, other)]
        lines.append(f"{name:<18}" + "".join(f"{each:<17}" for each in cells))
    return "\n".join(line.rstrip() for line in lines)


def cell(scores: dict[str, float] | None, kind: str) -> str:
    return "-" if scores is None else f"{scores[kind]:5.1%} ({scores[f'{kind}_balanced']:.1%})".replace("%", "")
