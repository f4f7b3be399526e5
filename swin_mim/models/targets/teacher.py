"""A frozen network whose features are predicted besides the pixels (GFM, arXiv 2302.04476)."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_mim.counts import counted
from swin_mim.errors import UserError
from swin_mim.files import sha256
from swin_mim.models.swin import Swin
from swin_mim.weights.config_json import Preprocessing
from swin_mim.weights.heads import taught_stage

TIMM = "timm:"
"""What a teacher's name begins with that timm is to build."""
RGB = ("red", "green", "blue")


class Teacher(nn.Module):
    """Features of whole images, from the stage before the last of a network that never changes.

    Args:
        network: a `Swin`, or what timm's `create_model(..., features_only=True)` gives, with one stage.
        width: channels of that stage.
        theirs: how images become its input.
        ours: how they became the input of the model that is taught.
        places: of its channels among ours.
        digest: SHA-256 in hex of its weights; None computes it.
    """

    def __init__(
        self,
        network: Any,
        width: int,
        theirs: Preprocessing,
        ours: Preprocessing,
        places: Sequence[int],
        digest: str | None = None,
    ) -> None:
        super().__init__()
        self.network, self.width = network, width
        self.digest = digest_of(network) if digest is None else digest
        scale, shift = _renormalized(theirs, ours, places)
        self.places = nn.Buffer(torch.tensor(places))
        self.scale, self.shift = nn.Buffer(scale.view(-1, 1, 1)), nn.Buffer(shift.view(-1, 1, 1))
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, valid: Tensor | None = None) -> Tensor:
        """Means of the features over each image: fp32 (B, width).

        Args:
            images: float (B, C, H, W), normalised for the model that is taught, nothing masked.
            valid: bool (B, H, W), the pixels that are there; the others are seen as the mean. None: all.
        """
        seen = images.index_select(1, self.places) * self.scale + self.shift
        if valid is not None:
            seen = seen.where(valid[:, None], 0)
        if isinstance(self.network, Swin):
            stages = islice(self.network.stage_outputs(self.network.embed(seen)), taught_stage(self.network.config) + 1)
            *_, features = stages
            return features.float().mean((1, 2))
        fixed = self.network.pretrained_cfg
        size = tuple(fixed["input_size"][1:])
        if fixed.get("fixed_input_size") and seen.shape[2:] != size:
            seen = F.interpolate(seen, size, mode="bilinear", antialias=True)
        (features,) = self.network(seen)
        channels = features.ndim - 1 if str(getattr(self.network, "output_fmt", "NCHW")).endswith("NHWC") else 1
        return features.float().mean([axis for axis in range(1, features.ndim) if axis != channels])


def open_teacher(source: str, ours: Preprocessing, channels: Sequence[str] | None) -> Teacher:
    """Open a frozen network, on the CPU.

    Args:
        source: as of `from_pretrained`, of any Swin; or "timm:" and a name for timm's `create_model`.
        ours: how images become the input of the model that is taught.
        channels: which of our channels are the teacher's, in its order; None: those that it names, or the same ones.

    Raises:
        UserError: it cannot be opened, or it is not told which channels it is to see.
    """
    if not source.startswith(TIMM):
        swin = Swin.from_pretrained(source, pickles=True)
        theirs, width = swin.preprocessing, swin.config.stage_dim(taught_stage(swin.config))
        return Teacher(swin, width, theirs, ours, _places(source, theirs, ours, channels))
    network = timm_features(source.removeprefix(TIMM))
    cfg = network.pretrained_cfg
    theirs = Preprocessing(tuple(cfg["mean"]), tuple(cfg["std"]), RGB if len(cfg["mean"]) == 3 else None)
    (width,) = network.feature_info.channels()
    return Teacher(network, width, theirs, ours, _places(source, theirs, ours, channels))


def digest_of(network: nn.Module) -> str:
    """SHA-256 in hex of the names and values of a network's weights."""
    state = network.state_dict()
    return sha256(part for name, value in state.items() for part in (name.encode(), value.cpu().numpy().tobytes()))


def timm_features(name: str, *, pretrained: bool = True) -> Any:
    """What timm's `create_model` gives for features of the stage before the last.

    Raises:
        UserError: it does not know the name, has no features of it, or no weights.
    """
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-2,))
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        # what it is that timm, torch and the Hub's client do not like, they say in errors of all kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"teacher.model {TIMM}{name}: timm cannot give features of it ({reason})") from None


def _places(source: str, theirs: Preprocessing, ours: Preprocessing, channels: Sequence[str] | None) -> Sequence[int]:
    """Where among our channels those of a teacher are."""
    count, known = len(theirs.mean), ours.channels or tuple(map(str, range(1, len(ours.mean) + 1)))
    if channels is None:
        if theirs.channels is not None and set(theirs.channels) <= set(known):
            channels = theirs.channels
        elif count == len(known) and None in (theirs.channels, ours.channels):
            channels = known
        else:
            seen = f"{counted(count, 'channel')} ({', '.join(theirs.channels or ('without names',))})"
            raise UserError(
                f"teacher.model {source} sees {seen}, and images have {', '.join(known)}: name as many of these with "
                "teacher.channels"
            )
    if len(channels) != count:
        raise UserError(
            f"teacher.channels has {counted(len(channels), 'entry', 'entries')}, and teacher.model {source} sees "
            f"{counted(count, 'channel')}: name as many"
        )
    for name in channels:
        if name not in known:
            raise UserError(f"teacher.channels names {name!r}, and images have {', '.join(known)}: name some of these")
    return [known.index(name) for name in channels]


def _renormalized(theirs: Preprocessing, ours: Preprocessing, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel that turn our input into a teacher's.

    A teacher of 8-bit images cannot know the units of others: it gets them as they are for us, of mean 0 and std 1, as
    its own images were.
    """
    if theirs.scale != ours.scale:
        return torch.ones(len(places)), torch.zeros(len(places))
    mean, std = (torch.tensor(values, dtype=torch.float64)[list(places)] for values in (ours.mean, ours.std))
    their_mean, their_std = (torch.tensor(values, dtype=torch.float64) for values in (theirs.mean, theirs.std))
    return (std / their_std).float(), ((mean - their_mean) / their_std).float()
