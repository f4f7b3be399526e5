"""The start of a command that runs a finished model: its processes, and the model itself."""

import os
from pathlib import Path

from accelerate import Accelerator

from swin_mim.errors import UserError
from swin_mim.hub import pretrained
from swin_mim.training.distributed.processes import set_threads, start_accelerator

USES = {
    "Swin": "swin-mim embed writes its features, and swin-mim finetune makes a classifier of it",
    "SimMIM": "swin-mim reconstruct draws what it predicts, swin-mim embed writes its features, and swin-mim finetune "
    "makes a classifier of it",
    "SwinSegmenter": "swin-mim predict writes its masks, and swin-mim embed its features",
    "SwinDetector": "swin-mim predict writes what it finds, and swin-mim embed its features",
    "SwinClassifier": "swin-mim predict says the classes of images, and swin-mim embed writes its features",
}
"""What a model of each kind is for."""


def connect(threads: int, batch: int) -> Accelerator:
    """Connect the processes of this launch, which share their cores; `threads` as `set_threads` takes it."""
    set_threads(threads)
    return start_accelerator(
        Path(os.curdir),
        precision="fp32",  # what is computed under autocast says so itself
        accumulation=1,
        micro_batch=batch,
        clip_norm=0.0,
        fsdp=False,
        trackers=(),
    )


def kind_of(source: str) -> str:
    """What kind of model a source is: "SwinClassifier", "SwinSegmenter", ...

    Raises:
        UserError: there is none, or it cannot be read.
    """
    return pretrained.read(pretrained.locate(source, pickles=True), pickles=True).description.kind


def explained(error: UserError, source: str, wanted: str) -> UserError:
    """Say what a model is that could not be loaded, and which command is for it, where it is another than is wanted.

    Args:
        error: why it could not be loaded.
        wanted: a kind of model.
    """
    if " has no " not in str(error):  # it is not there, or damaged
        return error
    kind = kind_of(source)
    if kind == wanted:
        return error
    named = {"SimMIM": "a SimMIM with its pixel head", "SwinClassifier": "a classifier, segmenter or detector"}[wanted]
    use = USES.get(kind)
    return UserError(f"{source} is a {kind}, not {named}: {use}" if use else f"{source} is a {kind}, not {named}")
