"""The teacher that a pretraining's settings name, on the device of the run."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swin_mim.models.compilation import compile_model, is_compiled
from swin_mim.models.swin import Swin
from swin_mim.models.targets.teacher import Teacher, open_teacher
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.distributed.processes import compute_dtype
from swin_mim.training.run.run import Run
from swin_mim.weights.config_json import Preprocessing


@dataclass(frozen=True)
class Lessons:
    """What a teacher says of images; nothing without one.

    Args:
        dtype: of its products.
    """

    teacher: Teacher | None
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Features of an image; 0 without a teacher."""
        return 0 if self.teacher is None else self.teacher.width

    @property
    def facts(self) -> dict[str, Any]:
        """What a resumed run must have the same."""
        return {} if self.teacher is None else {"teacher": self.teacher.digest}

    def __call__(self, images: Tensor, **valid: Tensor) -> dict[str, Tensor]:
        """Arguments of `SimMIM.forward` for images that are normalised for it, (B, C, H, W), on the device."""
        if self.teacher is None:
            return {}
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return {"taught": self.teacher(images, **valid)}


NO_LESSONS = Lessons(None, torch.float32)


def lessons_of(config: PretrainConfig, preprocessing: Preprocessing, run: Run) -> Lessons:
    """Open teacher.model, if there is one.

    Args:
        preprocessing: how images become the input of the model that is trained.

    Raises:
        UserError: as `open_teacher`.
    """
    dtype, settings = compute_dtype(run.accelerator), config.teacher
    if settings.model is None:
        return Lessons(None, dtype)
    teacher = open_teacher(settings.model, preprocessing, settings.channels).to(run.device)
    network = teacher.network
    if isinstance(network, Swin) and is_compiled(config.train.compile, network, run.device, dtype):
        compile_model(network, run.device)
    return Lessons(teacher, dtype)
