"""SimMIM of Swin V2 against microsoft's own code: loss and every gradient, at the size and target of its recipes.

It needs a checkout of github.com/microsoft/Swin-Transformer, whose folder the environment variable SWIN_MIM_MICROSOFT
names. With -s the differences are printed.
"""

import os
from types import SimpleNamespace

import pytest
import torch

from swin_mim import SimMIM, SwinConfig, block_mask
from swin_mim.cli.convert import libraries
from swin_mim.hub import saved
from swin_mim.weights.config_json import Description
from swin_mim.weights.formats import key_map

CHECKOUT = os.environ.get("SWIN_MIM_MICROSOFT")


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="SWIN_MIM_MICROSOFT names no checkout of microsoft/Swin-Transformer")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["swinv2_tiny", "swinv2_base"])
def test_loss_and_gradients_are_microsofts(name, dtype, tolerance):
    config = SwinConfig.named(name, image_size=192, window_size=12)
    ours = SimMIM(config, target="normalized")
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if parameter.ndim == 1 or any(part in key for part in ("logit_scale", "cpb_mlp", "mask_token")):
                parameter += 0.3 * torch.randn_like(parameter)
    published = {key.removeprefix("encoder."): value for key, value in ours.state_dict().items()}
    description = Description("SimMIM", config)
    state = saved.to_theirs("microsoft", description, published)
    theirs = libraries.build("microsoft", description, state, microsoft=CHECKOUT).model
    theirs.config = SimpleNamespace(NORM_TARGET=SimpleNamespace(ENABLE=True, PATCH_SIZE=47))
    ours.to(dtype), theirs.to(dtype)
    images, mask = torch.randn(2, 3, 192, 192, dtype=dtype), block_mask(2, (48, 48), 8, 0.6, seed=0)
    loss, expected = ours(images, mask).loss, theirs(images, mask.to(dtype))
    assert abs(loss - expected) < 1e-6  # ours is fp32 in any case
    found, wanted = gradients(ours, loss), gradients(theirs, expected)
    sources = key_map(state).sources
    apart = {}
    for key, gradient in found.items():
        other = wanted.pop(sources[key.removeprefix("encoder.")][0])
        apart[key] = ((gradient - other).abs().max() / other.abs().max()).item()
    worst = max(apart, key=lambda key: apart[key])
    print(f"{name} {dtype}: loss {abs(loss - expected).item():.1e} apart, gradients {apart[worst]:.1e} of the largest")
    assert not wanted
    assert apart[worst] < tolerance, worst
