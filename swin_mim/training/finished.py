"""Models that are done: what a checkpoint of a run would publish, and what `model.pretrained` names, head and all."""

from pathlib import Path
from typing import Any, TypeVar

from swin_mim.errors import UserError
from swin_mim.models.saving import Pretrained
from swin_mim.models.swin import Swin
from swin_mim.training.checkpoints.state import TRAINER, published_weights
from swin_mim.training.config.finetune import ClassifierConfig
from swin_mim.training.config.finetune_checks import check_architecture, sizes

M = TypeVar("M", bound=Pretrained)


def load_published(kind: type[M], path: Path, **options: Any) -> M:
    """The model that a checkpoint would publish: with the average of the weights, if there is one.

    Raises:
        UserError: it is gone or broken.
    """
    weights = published_weights(path)
    built = kind.from_pretrained(path, **options)
    built.load_state_dict(weights)
    return built


def open_finished(kind: type[M], model: ClassifierConfig, **options: Any) -> M:
    """A finished model as it is, with the head that it has.

    Args:
        options: attention.

    Raises:
        UserError: there is none, it cannot be read, it has no such head, or another architecture than the settings say.
    """
    if model.pretrained is None:
        noun = kind.kind.removeprefix("Swin").lower()
        raise UserError(f"nothing to evaluate: the run has no checkpoint, and model.pretrained names no {noun}")
    path = Path(model.pretrained).expanduser()
    if (path / TRAINER).is_file() and not sizes(model):
        built = load_published(kind, path, **options)
    else:
        built = kind.from_pretrained(
            model.pretrained, **sizes(model), bias_tables=model.bias_tables, pickles=True, **options
        )
    encoder = built.encoder
    assert isinstance(encoder, Swin)
    check_architecture(model, encoder.config)
    return built
