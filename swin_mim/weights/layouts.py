"""How the files of others name a Swin's tensors, and how we do: a table for each kind of file.

What is done with them is in `formats.py`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

Format = Literal["swin_mim", "timm", "checkpoint", "microsoft", "torchvision", "transformers", "mmpretrain"]
Kind = Literal["SimMIM", "Swin", "SwinClassifier", "SwinSegmenter", "SwinDetector"]

PARTS = ("head", "mask_token", "decoder")
"""What a network may have besides the encoder."""
PARTS_OF: dict[Kind, set[str]] = {
    "SimMIM": {"mask_token", "decoder"},
    "Swin": set(),
    "SwinClassifier": {"head"},
    "SwinSegmenter": set(),
    "SwinDetector": set(),
}
"""The heads of the last two are in `dense_heads.py`."""


@dataclass(frozen=True)
class Layout:
    """How one kind of file names the tensors; the defaults are our names of a Swin V1.

    Fields of the templates: {prefix}, {stage}, {block}, {next} = stage + 1, {odd} = 2 stage + 1, {even} = 2 stage + 2,
    {last} = the last stage, {stages} = last + 1. In `merging` the stage is the one before the halving. None: the format
    has no such tensor.
    """

    format: Format
    kinds: tuple[Kind, ...] = ()
    """What is written in this layout."""
    version: int = 1
    """Of the Swin."""
    prefix: str = ""
    patch: str = "{prefix}patch_embed.proj"
    patch_norm: str = "{prefix}patch_embed.norm"
    block: str = "{prefix}layers.{stage}.blocks.{block}."
    norm1: str = "norm1"
    qkv: tuple[str, ...] = ("attn.qkv.weight",)
    qkv_bias: tuple[str, ...] = ("attn.qkv.bias",)
    q_bias: str | None = None
    """Of V2, as the next; one of V1 has `qkv_bias` and `bias_table`."""
    v_bias: str | None = None
    """V2 has no bias on keys. Where a file has one name for both, it is (queries, zeros, values): see `third`."""
    bias_table: str | None = "attn.relative_position_bias_table"
    logit_scale: str | None = None
    position_mlp: str | None = None
    """The network of the position bias, of V2."""
    proj: str = "attn.proj"
    norm2: str = "norm2"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"
    norm3: str | None = None
    """What some blocks of large V2 end with."""
    merging: str = "{prefix}layers.{next}.downsample."
    norm: str = "{prefix}norm"
    head: str | None = "head.fc"
    mask_token: str | None = "mask_token"
    decoder: str | None = "decoder.0"
    stage_heads: str | None = None
    """Of a masked image model of ours: what each stage may have for its predictions."""
    teacher_head: str | None = None
    """What it may have to predict the features of a teacher."""
    position_index: str | None = None
    """Buffer of a block that its window decides."""
    flat_index: bool = False
    shift_mask: str | None = None
    """Buffer of a shifted block that its window and grid decide."""
    coordinates: str | None = None
    """Buffer of a block of V2 that its window and that of its pretraining decide."""
    writes_buffers: bool = True


OURS = Layout(
    "swin_mim",
    ("SimMIM", "Swin", "SwinClassifier", "SwinSegmenter", "SwinDetector"),
    stage_heads="stage_heads.{stage}.",
    teacher_head="teacher_head",
)
MICROSOFT = Layout(
    "microsoft",
    ("Swin", "SwinClassifier"),
    merging="{prefix}layers.{stage}.downsample.",
    head="head",
    mask_token=None,
    decoder=None,
    position_index="attn.relative_position_index",
    shift_mask="attn_mask",
)
TRANSFORMERS = Layout(
    "transformers",
    ("SimMIM", "SwinClassifier"),
    prefix="swin.",
    patch="{prefix}embeddings.patch_embeddings.projection",
    patch_norm="{prefix}embeddings.norm",
    block="{prefix}encoder.layers.{stage}.blocks.{block}.",
    norm1="layernorm_before",
    qkv=("attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"),
    qkv_bias=("attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias"),
    bias_table="attention.self.relative_position_bias_table",
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
    merging="{prefix}encoder.layers.{stage}.downsample.",
    norm="{prefix}layernorm",
    head="classifier",
    mask_token="{prefix}embeddings.mask_token",
    # Version 4 has it in its files and reports it missing where it is not; version 5 ignores it.
    position_index="attention.self.relative_position_index",
)
MMPRETRAIN = Layout(
    "mmpretrain",
    prefix="backbone.",
    patch="{prefix}patch_embed.projection",
    block="{prefix}stages.{stage}.blocks.{block}.",
    qkv=("attn.w_msa.qkv.weight",),
    qkv_bias=("attn.w_msa.qkv.bias",),
    bias_table="attn.w_msa.relative_position_bias_table",
    proj="attn.w_msa.proj",
    fc1="ffn.layers.0.0",
    fc2="ffn.layers.1",
    merging="{prefix}stages.{stage}.downsample.",
    norm="{prefix}norm{last}",
    mask_token="{prefix}mask_token",
    decoder="neck.decoder.0",
    position_index="attn.w_msa.relative_position_index",
    shift_mask="attn.attn_mask",
)

_OF_V1 = (
    replace(OURS, format="timm", mask_token=None, decoder=None, stage_heads=None, teacher_head=None),
    OURS,
    replace(OURS, format="checkpoint", kinds=tuple(kind for kind in OURS.kinds if kind != "Swin"), prefix="encoder."),
    replace(
        OURS,
        format="checkpoint",
        kinds=("Swin",),
        head=None,
        mask_token=None,
        decoder=None,
        stage_heads=None,
        teacher_head=None,
    ),
    replace(
        MICROSOFT,
        kinds=("SimMIM",),
        prefix="encoder.",
        head=None,
        mask_token="{prefix}mask_token",
        decoder="decoder.0",
    ),
    MICROSOFT,
    Layout(
        "torchvision",
        ("SimMIM", "Swin", "SwinClassifier"),
        patch="features.0.0",
        patch_norm="features.0.2",
        block="features.{odd}.{block}.",
        fc1="mlp.0",
        fc2="mlp.3",
        merging="features.{even}.",
        head="head",
        mask_token=None,
        decoder=None,
        position_index="attn.relative_position_index",
        flat_index=True,
    ),
    TRANSFORMERS,
    replace(TRANSFORMERS, kinds=("Swin",), prefix="", head=None, decoder=None),
    # A backbone with an output norm for each stage, in detection and segmentation: the last one is the final norm.
    replace(
        TRANSFORMERS,
        kinds=("SwinSegmenter",),
        prefix="",
        norm="hidden_states_norms.stage{stages}",
        head=None,
        decoder=None,
    ),
    replace(MICROSOFT, kinds=(), norm="{prefix}norm{last}", head=None),
    MMPRETRAIN,
    replace(MMPRETRAIN, norm="{prefix}norm"),
    replace(MMPRETRAIN, prefix="", head=None, decoder=None),
    replace(MMPRETRAIN, prefix="", norm="norm", head=None, decoder=None),
)

_V2: dict[str, Any] = {
    "version": 2,
    "qkv_bias": (),
    "q_bias": "attn.q_bias",
    "v_bias": "attn.v_bias",
    "bias_table": None,
    "logit_scale": "attn.logit_scale",
    "position_mlp": "attn.cpb_mlp",
}
_V2_OF: dict[Format, dict[str, Any]] = {
    "swin_mim": {"norm3": "norm3"},
    "checkpoint": {"norm3": "norm3"},
    "microsoft": {"coordinates": "attn.relative_coords_table"},
    "torchvision": {
        "q_bias": "attn.qkv.bias",
        "v_bias": "attn.qkv.bias",
        "coordinates": "attn.relative_coords_table",
    },
    "transformers": {
        "q_bias": "attention.self.query.bias",
        "v_bias": "attention.self.value.bias",
        "logit_scale": "attention.self.logit_scale",
        "position_mlp": "attention.self.continuous_position_bias_mlp",
        "coordinates": "attention.self.relative_coords_table",
        "writes_buffers": False,  # old files have them, and to the version of today they are unexpected
    },
    "mmpretrain": {
        "q_bias": "attn.w_msa.q_bias",
        "v_bias": "attn.w_msa.v_bias",
        "logit_scale": "attn.w_msa.logit_scale",
        "position_mlp": "attn.w_msa.cpb_mlp",
        "coordinates": "attn.w_msa.relative_coords_table",
        "norm3": "norm3",
        "merging": "{prefix}stages.{next}.downsample.",
    },
}


def _of_v2(layout: Layout) -> Layout:
    """The same file with a Swin V2 in it."""
    prefix = layout.prefix.replace("swin.", "swinv2.")
    return replace(layout, prefix=prefix, **(_V2 | _V2_OF.get(layout.format, {})))


def _before_the_rename(layout: Layout) -> Layout:
    """The files that microsoft's V2 code renames as it loads them, as its own pretraining with SimMIM."""
    return replace(layout, kinds=(), position_mlp="attn.rpe_mlp")


_ALL_OF_V2 = tuple(map(_of_v2, _OF_V1))
_RENAMED = tuple(_before_the_rename(layout) for layout in _ALL_OF_V2 if layout.format == "microsoft")
LAYOUTS = (*_OF_V1, *_ALL_OF_V2, *_RENAMED)
"""All that is read, the more usual one first where the names of a file fit two."""
OURS_OF = {1: OURS, 2: _of_v2(OURS)}
"""Version of the Swin -> our own names."""

REFUSED = {
    "timm's swinv2_cr, whose position bias is another network than Swin V2's": (".attn.meta_mlp.",),
    "a Vision Transformer, not a Swin": ("cls_token", "class_token"),
    "a network with absolute position embeddings; only a Swin without them (ape: false) is known here": (
        "absolute_pos_embed",
        "position_embeddings",
    ),
    "the names that transformers 5 has in memory: write the file with model.save_pretrained(folder)": (
        ".attention.q_proj.",
        ".attention.relative_position_bias.",
    ),
    "timm's features_only model, which has no final norm: save the one of create_model(...) without it": (
        "layers_0.blocks.",
    ),
}
"""What it is -> parts of names that say so."""
