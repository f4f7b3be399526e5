"""What every training with labels does to the model that it starts from."""

from collections.abc import Sequence
from dataclasses import replace

from swin_mim.models.saving import Preprocessing, Pretrained
from swin_mim.models.swin import Swin, freeze
from swin_mim.training.channels import check_channels, warn_of_other_gaps
from swin_mim.training.config.dense.detect import BoxedDataConfig
from swin_mim.training.config.dense.segment import MaskedDataConfig
from swin_mim.training.config.finetune import ClassifierConfig, LabelledDataConfig
from swin_mim.weights.config_json import Interpolation


def make_ready(
    built: Pretrained,
    model: ClassifierConfig,
    data: LabelledDataConfig | MaskedDataConfig | BoxedDataConfig,
    names: Sequence[str],
    *,
    resumed: bool,
    interpolation: Interpolation,
    crop_pct: float = 1.0,
) -> None:
    """Put a model into training mode, with these classes and what the settings say of its input; freeze what they say.

    Args:
        data: how images become its input; what is None there is as in the pretrained model.
        resumed: its weights are of a checkpoint of this run, whatever `model` says of the start.

    Raises:
        UserError: it takes other channels than the images have.
    """
    if model.pretrained is None and not resumed and data.channels is not None:
        assert data.mean is not None and data.std is not None, "checked with the settings"  # noqa: PT018
        built.preprocessing = Preprocessing(data.mean, data.std, data.channels, scale=1)
    known = built.preprocessing
    check_channels(known, data.channels, model.pretrained or "the model")
    if model.pretrained is not None and not resumed:
        warn_of_other_gaps(known, data.nodata, data.mask_channel, model.pretrained)
    built.preprocessing = replace(
        known,
        mean=data.mean or known.mean,
        std=data.std or known.std,
        interpolation=interpolation,
        crop_pct=crop_pct,
        nodata=data.nodata,
        mask_channel=data.mask_channel,
    )
    built.labels = tuple(names)
    built.train()
    assert isinstance(built.encoder, Swin)
    freeze(built.encoder, model.freeze)
