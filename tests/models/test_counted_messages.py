"""Numbers in the messages of models, with their nouns."""

import pytest
import torch

from swin_mim import Swin, SwinClassifier, SwinConfig
from swin_mim.errors import UserError
from swin_mim.models.preprocessing import Preprocessing

TINY = SwinConfig(image_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1))


def test_one_value_is_counted_in_the_singular() -> None:
    with torch.device("meta"):
        model = Swin(TINY)
    model.preprocessing = Preprocessing((0.5,), (0.5,), ("grey",))
    with pytest.raises(UserError, match="mean has 1 value and the model 3 channels: set"):
        model.description()


def test_one_name_is_counted_in_the_singular() -> None:
    with torch.device("meta"):
        model = SwinClassifier(TINY, num_classes=2)
    model.labels = ("one",)
    with pytest.raises(UserError, match="labels has 1 name and the head 2 classes: give"):
        model.description()


@pytest.mark.parametrize("field", ["depths", "num_heads"])
def test_one_number_where_a_stage_has_one_each_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"^{field} is 4: expected one number per stage"):
        SwinConfig.named("swin_tiny", **{field: 4})
