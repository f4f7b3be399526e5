"""The geometry of a Swin Transformer, and the table of named sizes. Needs no torch."""

import difflib
from dataclasses import dataclass
from typing import Any

from swin_mim.errors import UserError

NAMED: dict[str, dict[str, Any]] = {
    "swin_nano": {"embed_dim": 48, "depths": (2, 2, 4, 2), "num_heads": (2, 4, 8, 16)},
    "swin_tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "swin_large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
"""Sizes of the Swin paper (arXiv 2103.14030, section 3.3); nano is ours, small enough to train on a CPU."""
NAMED |= {name.replace("swin", "swinv2"): {**size, "version": 2} for name, size in NAMED.items()}
NAMED |= {
    "swinv2_huge": {"version": 2, "embed_dim": 352, "depths": (2, 2, 18, 2), "num_heads": (11, 22, 44, 88)},
    "swinv2_giant": {
        "version": 2,
        "embed_dim": 512,
        "depths": (2, 2, 42, 4),
        "num_heads": (16, 32, 64, 128),
        "extra_norm_period": 6,
    },
}
"""And of the Swin V2 paper (arXiv 2111.09883, section 3.6)."""


POSITION_HIDDEN = 512
"""Channels inside the network of V2's position bias."""


def as_pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """`6`, `(6,)` -> (6, 6); `(4, 8)` -> (4, 8): height before width."""
    values = (size,) if isinstance(size, int) else tuple(size)
    if len(values) not in (1, 2):
        raise UserError(f"a size is one number or (height, width), not {size!r}")
    return values[0], values[-1]


@dataclass(frozen=True)
class SwinConfig:
    """Architecture of one Swin Transformer.

    Raises:
        UserError (a ValueError): a value that no Swin can have; the message names the field, the values and the
            relation that fails.
    """

    image_size: int | tuple[int, int]
    """Pixels, one number or (H, W). Other sizes work at run time; this one decides the sizes of the bias tables."""
    patch_size: int = 4
    """Pixels along the side of one token."""
    in_channels: int = 3
    embed_dim: int = 96
    """Channels of the first stage; each later stage doubles them."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks in each stage; any number of stages."""
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads in each stage."""
    window_size: int | tuple[int, int] = 7
    """Tokens along the side of an attention window, one number or (h, w)."""
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_rate: float = 0.0
    """Dropout after the embedding, the attention projection and in the MLP."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; earlier blocks have linearly less."""
    version: int = 1
    """1 or 2: Swin V1 (arXiv 2103.14030) or V2 (arXiv 2111.09883)."""
    pretrained_window_sizes: tuple[int | tuple[int, int], ...] = ()
    """V2: of each stage the window, one number or (h, w), that measures positions; 0: the stage's own. What is given
    another window keeps that of its pretraining here."""
    extra_norm_period: int = 0
    """V2: after every so many blocks of a stage there is one more norm; 0 for none."""

    @classmethod
    def named(cls, name: str, **overrides: Any) -> "SwinConfig":
        """A size of the table: swin_nano, swin_tiny, swin_small, swin_base and swin_large; the same of swinv2, and
        swinv2_huge and swinv2_giant. Any field overrides it."""
        if name not in NAMED:
            close = difflib.get_close_matches(name, NAMED, n=1, cutoff=0.3)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"no Swin is named {name!r}: {hint}the names are {', '.join(NAMED)}")
        return cls(**({"image_size": 224} | NAMED[name] | overrides))

    def __post_init__(self) -> None:
        for field in ("image_size", "window_size"):
            size = getattr(self, field)
            if not isinstance(size, int | list | tuple):
                raise UserError(f"{field} is {size!r}: expected one number or (height, width)")
            object.__setattr__(self, field, size if isinstance(size, int) else tuple(size))
        for field in ("depths", "num_heads"):
            values = getattr(self, field)
            if not isinstance(values, list | tuple):
                raise UserError(f"{field} is {values!r}: expected one number per stage, as (2, 2, 6, 2)")
            object.__setattr__(self, field, tuple(values))
        self._check_values()
        self._check_stages()
        self._check_version()

    def _check_values(self) -> None:
        positive = {
            "image_size": min(as_pair(self.image_size)),
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "embed_dim": self.embed_dim,
            "window_size": min(as_pair(self.window_size)),
            "mlp_ratio": self.mlp_ratio,
        }
        for field, value in positive.items():
            if value <= 0:
                raise UserError(f"{field} {getattr(self, field)} must be positive")
        for field in ("drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field} {getattr(self, field)} must be at least 0 and less than 1")
        for side in as_pair(self.image_size):
            if side % self.patch_size:
                raise UserError(
                    f"image_size {side} is not a multiple of patch_size {self.patch_size}: "
                    f"use {nearest_multiple(side, self.patch_size)}"
                )

    def _check_stages(self) -> None:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise UserError(
                f"depths {self.depths} and num_heads {self.num_heads} must name the same stages, at least one: "
                f"they have {len(self.depths)} and {len(self.num_heads)} entries"
            )
        for stage, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if depth < 1 or heads < 1:
                raise UserError(f"stage {stage} has depth {depth} and {heads} heads: both must be positive")
            if self.stage_dim(stage) % heads:
                raise UserError(
                    f"stage {stage} has {self.stage_dim(stage)} channels, which {heads} heads do not divide: "
                    f"choose num_heads[{stage}] among the divisors of {self.stage_dim(stage)}"
                )

    def _check_version(self) -> None:
        if self.version not in (1, 2):
            raise UserError(f"version {self.version!r} is no Swin Transformer: there are 1 and 2")
        sizes = tuple(size if isinstance(size, int) else tuple(size) for size in self.pretrained_window_sizes)
        if self.version == 1 and (any(sizes) or self.extra_norm_period):
            raise UserError("pretrained_window_sizes and extra_norm_period belong to version 2, and this is version 1")
        if self.version == 2 and not sizes:
            sizes = (0,) * self.num_stages
        if self.version == 2 and len(sizes) != self.num_stages:
            raise UserError(f"pretrained_window_sizes {sizes} must name the {self.num_stages} stages of depths")
        if self.extra_norm_period < 0 or any(min(as_pair(size)) < 0 for size in sizes):
            raise UserError(
                f"pretrained_window_sizes {sizes} and extra_norm_period {self.extra_norm_period} must not be negative"
            )
        object.__setattr__(self, "pretrained_window_sizes", sizes)

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def stride(self) -> int:
        """Pixels along the side of one cell of the last stage."""
        return self.patch_size * 2 ** (self.num_stages - 1)

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.stage_dim(self.num_stages - 1)

    def stage_dim(self, stage: int) -> int:
        return self.embed_dim * 2**stage

    def stage_grid(self, stage: int) -> tuple[int, int]:
        """Cells (h, w) of a stage at the configured image size; odd grids are padded before they are halved."""
        height, width = (side // self.patch_size for side in as_pair(self.image_size))
        return -(-height // 2**stage), -(-width // 2**stage)

    def stage_window(self, stage: int) -> tuple[int, int]:
        """The window of a stage: the configured one, or the whole grid where that is smaller."""
        (h, w), (window_h, window_w) = self.stage_grid(stage), as_pair(self.window_size)
        return min(h, window_h), min(w, window_w)

    def stage_padding(self, stage: int) -> tuple[int, int]:
        """Rows and columns of cells that a stage adds at the bottom and right, so that whole windows cover its grid."""
        (h, w), (window_h, window_w) = self.stage_grid(stage), self.stage_window(stage)
        return -h % window_h, -w % window_w


def nearest_multiple(value: int, of: int) -> int:
    """The positive multiple of `of` that is nearest to `value`; the smaller of two equally near ones."""
    below = value // of * of
    return below if below and value - below <= below + of - value else below + of
