"""docs/configuration.md: every setting of the recipes, its type, default and meaning, from the settings' code."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.config.fields import kinds, texts
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.values import in_words

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

*This page is generated from the settings' code by `python -m tools.docs`.*

Settings are plain values in sections. They come from three places, the later one wins: the defaults below, a YAML file
(`--config`), flags. `--config` takes a path or the name of a shipped file, and without it the recipe runs its demo.

```bash
swin-mim pretrain --config simmim_swin_tiny_192_100ep --data.source photos --train.micro-batch 64
swin-mim pretrain --help                                                  # every setting with its present value
swin-mim pretrain --config simmim_swin_base_192_100ep --print-config      # the result as YAML, nothing is run
swin-mim copy pretrain.py .                                               # the recipe and its configs, to change them
```

* Flags are `--section.key value`; `-` and `_` mean the same in a key. Several values stand one after the other
  (`--model.image_size 192 640`), nothing is written `None` (in YAML `null`).
* Durations are texts: `"100 epochs"`, `"500 steps"`, `"2e6 images"`.
* An unknown key or flag, or a value of another type, ends the command with exit code 2 and the nearest key.
* When a run is continued, only the settings marked ↻ may differ from before; what changed is written to
  `config_changes.jsonl`. Any other difference is refused: it would be another run.
"""
SHIPPED = """\
## Shipped files

The files are those of SimMIM's authors where a published number is given; the number is theirs
([microsoft/SimMIM](https://github.com/microsoft/SimMIM), for V2
[microsoft/Swin-Transformer](https://github.com/microsoft/Swin-Transformer), top-1 on ImageNet-1k after fine-tuning).
Nobody has yet run them to their end with this code.

| pretraining | encoder | published |
|---|---|---|
| `simmim_swin_base_192_100ep` | Swin-B, 192 px, window 6 | 82.8 at 192 px, 83.5 at 224 px |
| `simmim_swin_base_192_800ep` | Swin-B, 192 px, window 6 | 84.0 at 224 px |
| `simmim_swin_large_192_800ep` | Swin-L, 192 px, window 12 | 85.4 at 224 px |
| `simmim_swin_tiny_192_100ep` | Swin-T, 192 px, window 6 | none (ours, for one GPU) |
| `continued_swin_base_192` | Swin-B, 192 px, from ImageNet-22k, with a teacher | see its head (GFM, on aerial images) |
| `simmim_swinv2_small_192_800ep` | SwinV2-S, 192 px, window 12 | 84.08 at 224 px |
| `simmim_swinv2_base_192_800ep` | SwinV2-B, 192 px, window 12 | 85.04 at 224 px |
| `simmim_swinv2_large_192_800ep` | SwinV2-L, 192 px, window 12 | 85.91 at 224 px |
| `demo`, `blue_marble_20min` | two stages, 64 px | none (ours, for a CPU) |

| fine-tuning | from | published |
|---|---|---|
| `finetune_swin_base_192` | `simmim_swin_base_192_100ep` | 82.8 |
| `finetune_swin_base_224` | `simmim_swin_base_192_100ep` | 83.5 |
| `finetune_swin_base_224_800ep` | `simmim_swin_base_192_800ep` | 84.0 |
| `finetune_swin_large_224_800ep` | `simmim_swin_large_192_800ep` | 85.4 |
| `finetune_swin_tiny_192` | `simmim_swin_tiny_192_100ep` | none (ours, for one GPU) |
| `finetune_swinv2_base_224_800ep` | `simmim_swinv2_base_192_800ep` | 85.04 |
| `finetune_images` | any, on images of your own | none (ours, for some thousand images) |
| `finetune_demo`, `finetune_blue_marble` | `demo`, `blue_marble_20min` | none (ours, for a CPU) |

| segmentation | from | published mean IoU |
|---|---|---|
| `segment_swin_tiny_512_160k` | any Swin-T | 44.51 on ADE20K, from supervised weights |
| `segment_swin_base_512_160k` | any Swin-B | 48.13 on ADE20K, from supervised weights |
| `segment_images` | any, on images of your own | none (ours, for 200 to 5,000 images) |
| `segment_demo` | `demo` | none (ours, for a CPU) |

| detection | from | published AP of boxes, of shapes on COCO |
|---|---|---|
| `detect_swin_tiny_1x` | any Swin-T | 43.7, 39.8, from supervised weights |
| `detect_swin_tiny_3x` | any Swin-T | 46.0, 41.6, from supervised weights |
| `detect_swin_base_3x` | any Swin-B | none for this network |
| `detect_swin_base_lsj_1024` | any Swin-B | 52.3, 46.4, from weights fine-tuned after SimMIM, with larger heads |
| `detect_images` | any, on images of your own | none (ours, for 200 to 5,000 images) |
| `detect_demo` | `demo` | none (ours, for a CPU) |

Each file opens with its command, its hardware, its published number, its learning rate in words, and what differs from
the official code.
"""


def page() -> str:
    pretraining = dict.fromkeys((kind for _, kind in sections(PretrainConfig)), "pretraining")
    finetuning = dict.fromkeys((kind for _, kind in sections(FinetuneConfig)), "fine-tuning")
    return "\n".join(
        [
            INTRODUCTION,
            SHIPPED,
            *recipe("Pretraining: `swin-mim pretrain`", PretrainConfig, {}),
            *recipe("Fine-tuning: `swin-mim finetune`", FinetuneConfig, pretraining),
            *recipe("Segmentation: `swin-mim segment`", SegmentConfig, finetuning | pretraining),
            *recipe("Detection: `swin-mim detect`", DetectConfig, finetuning | pretraining),
        ]
    )


def recipe(title: str, config: type, known: Mapping[type, str]) -> Iterator[str]:
    """A table for each section; one that was shown before, which `known` says, only names where."""
    mutable = frozenset(config.mutable)  # type: ignore[attr-defined]
    yield f"## {title}\n"
    for name, section in sections(config):
        if section in known:
            yield f"### {name}\n\nAs in a {known[section]}.\n"
        else:
            text = textwrap.fill(" ".join((section.__doc__ or "").split()), 120)
            yield f"### {name}\n\n{text}\n\n{table(section, f'{name}.', mutable)}\n"
    if own := table(config, "", mutable):
        yield f"### Outside a section\n\n{own}\n"


def sections(config: type) -> Iterator[tuple[str, type]]:
    return (
        (name, kind)
        for name, kind in kinds(config).items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    )


def table(section: type, prefix: str, mutable: frozenset[str]) -> str:
    types, said = kinds(section), texts(section)
    rows = [
        f"| `{prefix}{field.name}`{' ↻' if prefix + field.name in mutable else ''} "
        f"| {in_words(types[field.name])} | {default(field)} | {said[field.name]} |"
        for field in dataclasses.fields(section)
        if not dataclasses.is_dataclass(types[field.name])
    ]
    return "\n".join(["| setting | type | default | |", "|---|---|---|---|", *rows]) if rows else ""


def default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "*from the file*"
    value = field.default
    if isinstance(value, tuple):
        return " ".join(f"`{part}`" for part in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
