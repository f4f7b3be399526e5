"""The heads of a masked image model besides its decoder: which stages have one, of how many outputs. Needs no torch."""

from collections.abc import Mapping
from typing import Literal

from swin_mim.architecture import SwinConfig
from swin_mim.errors import UserError

Target = Literal["pixels", "normalized", "hog"]
BINS, CELL = 9, 8
"""Orientations of a histogram of gradients, and pixels along the side of the square that has one."""
NAME = "stage_heads"
"""What the names of their tensors begin with."""
TEACHER, TEACHER_NAME = -1, "teacher_head"
"""What stands for a stage where a head predicts the features of a teacher, and what its tensors are named by."""


def hog_cell(stride: int) -> int:
    """Side in pixels of the squares whose histograms a stage of this stride predicts."""
    return min(CELL, stride)


def is_head(name: str) -> bool:
    """Whether a tensor is of such a head."""
    return name.startswith((f"{NAME}.", f"{TEACHER_NAME}."))


def head_outputs(config: SwinConfig, target: Target, every_stage: bool, teacher_width: int = 0) -> dict[int, int]:
    """Outputs for a cell of a stage's grid, by stage, of all heads besides the decoder, which predicts pixels.

    Args:
        every_stage: whether every stage predicts, or the last alone.
        teacher_width: features of a teacher that are predicted too, by the stage before the last (`TEACHER`).

    Raises:
        UserError: tokens do not fit the squares of target hog.
    """
    patch = config.patch_size
    if target == "hog" and CELL % patch and patch % CELL:
        raise UserError(
            f"target hog has squares of {CELL} pixels, which patch_size {patch} neither divides nor is a multiple of: "
            "use patch_size 4"
        )
    last = config.num_stages - 1
    stages = range(last + 1) if every_stage else (last,)
    strides = {stage: config.patch_size * 2**stage for stage in stages}
    if target == "hog":
        squares = {stage: (stride // hog_cell(stride)) ** 2 for stage, stride in strides.items()}
        outputs = {stage: config.in_channels * BINS * number for stage, number in squares.items()}
    else:
        outputs = {stage: config.in_channels * stride**2 for stage, stride in strides.items() if stage < last}
    return outputs | ({TEACHER: teacher_width} if teacher_width else {})


def taught_stage(config: SwinConfig) -> int:
    """The stage that predicts the features of a teacher."""
    return max(0, config.num_stages - 2)


def heads_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[int, int]:
    """The same, of the heads that a file has: shapes by our names."""
    found = {}
    for name, shape in shapes.items():
        if name.startswith(f"{NAME}.") and name.endswith(".proj.weight"):
            found[int(name.split(".")[1])] = shape[0]
    if f"{TEACHER_NAME}.weight" in shapes:
        found[TEACHER] = shapes[f"{TEACHER_NAME}.weight"][0]
    return found


def told_by(heads: Mapping[int, int], config: SwinConfig) -> tuple[Target, bool]:
    """Target, and whether every stage predicts it, of a network with these heads.

    Raises:
        UserError: no network has them.
    """
    targets: tuple[Target, ...] = ("pixels", "hog")
    for target in targets:
        for every_stage in (False, True):
            try:
                if head_outputs(config, target, every_stage, heads.get(TEACHER, 0)) == heads:
                    return target, every_stage
            except UserError:  # no such target with these strides
                continue
    raise UserError(f"{NAME} has outputs {dict(heads)} by stage, which are of no target: it is damaged")
