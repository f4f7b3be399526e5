"""How to load a model, for its card: complete programs for swin_mim, timm and transformers."""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from swin_mim.hub.about import CardFacts

FOLDER = "path/to/this/folder"
"""What the programs load when the model has no repository."""


def examples(facts: CardFacts) -> str:
    """The section of the card that shows how to load the model, in three libraries."""
    size = by(facts.input["image_size"])
    note = f"`image.png` is any picture: its middle is cut out and resized to {size} pixels." if _is_rgb(facts) else ""
    native = ". The native classes load a second copy, in the folder `transformers`" * facts.has_transformers_copy
    parts = [
        "## Use it",
        note,
        "With swin_mim:",
        _python(_swin_mim_snippet(facts)),
        "With timm:",
        _python(_timm_snippet(facts)),
        f"With transformers, through its wrapper of timm (install both){native}:",
        _python(_transformers_snippet(facts)),
    ]
    return "\n\n".join(part for part in parts if part)


def _swin_mim_snippet(facts: CardFacts) -> list[str]:
    taken, repo, last = facts.input, facts.repo or FOLDER, _stage(facts, -1)
    classifies = facts.kind == "SwinClassifier"
    names = [facts.kind] if classifies else [facts.kind, "SwinClassifier"]
    open_image, readers = [f"images = {_random(facts)}"], []
    if _is_rgb(facts):
        readers = ["from swin_mim.data.transforms.crops import EvaluationTransform, normalize"]
        open_image = [
            'image = Image.open("image.png").convert("RGB")',
            f"images = EvaluationTransform({_resizing(facts)})(image)[None]",
            f"images = normalize(images, {taken['mean']}, {taken['std']})  # {_shape(facts)}",
        ]
    elif taken["scale"] == 1:  # channels and values as they stand in the files, which this package can read
        readers = [
            "from swin_mim.data.decoding.raster import ChannelSpec",
            "from swin_mim.data.sources.open import open_source",
            "from swin_mim.data.transforms.crops import EvaluationTransform, normalize",
        ]
        open_image = [
            f"bands = ChannelSpec({', '.join(_bands(facts))})",
            'image = open_source("images", bands=bands).image(0)  # the first of a folder',
            f"images = EvaluationTransform({_resizing(facts)})(image)[None]",
            f"images = normalize(images, {taken['mean']}, {taken['std']}, scale=1)  # {_shape(facts)}",
            "images = images.nan_to_num(0)  # where there is no pixel",
        ]
    return [
        *_imports(facts, f"from swin_mim import {', '.join(names)}"),
        *readers,
        "",
        *open_image,
        "",
        f'model = {facts.kind}.from_pretrained("{repo}").eval()',
        *([] if facts.kind == "Swin" else ["encoder = model.encoder"]),
        "with torch.inference_mode():",
        *([f"    logits = model(images)  # (1, {facts.num_classes})"] if classifies else []),
        f"    features = {'model' if facts.kind == 'Swin' else 'encoder'}(images)  # {(1, *last.grid, last.dim)}",
        f"    maps = {'model' if facts.kind == 'Swin' else 'encoder'}.pyramid(images)  # {_maps(facts, 'first')}",
        *([] if classifies else ["", "# To fine-tune: a new head on this encoder."]),
        *([] if classifies else [f'classifier = SwinClassifier.from_pretrained("{repo}", num_classes=10)']),
    ]


def _resizing(facts: CardFacts) -> str:
    """The arguments of EvaluationTransform; what is as its defaults are is left out."""
    taken = facts.input
    other = "" if taken["interpolation"] == "bilinear" else f', interpolation="{taken["interpolation"]}"'
    return f"{taken['image_size']}{other}" + ("" if taken["crop_pct"] == 1 else f", share={taken['crop_pct']}")


def _timm_snippet(facts: CardFacts) -> list[str]:
    name, last = f"hf-hub:{facts.repo}" if facts.repo else f"local-dir:{FOLDER}", _stage(facts, -1)
    prepare = [f"images = {_random(facts)}"]
    if _is_rgb(facts):
        prepare = [
            'image = Image.open("image.png").convert("RGB")',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f"images = transform(image)[None]  # {_shape(facts)}",
        ]
    result = [f"    embedding = model(images)  # (1, {last.dim}), the mean over the grid"]
    if facts.kind == "SwinClassifier":
        result = [f"    logits = model(images)  # (1, {facts.num_classes})"]
    return [
        *_imports(facts, others="import timm"),
        "",
        f'model = timm.create_model("{name}", pretrained=True).eval()',
        *prepare,
        "with torch.inference_mode():",
        *result,
        f"    features = model.forward_features(images)  # {(1, *last.grid, last.dim)}",
        *(['label = model.pretrained_cfg["label_names"][int(logits.argmax())]'] if facts.labels else []),
        "",
        "# A map for each stage, for detection and segmentation:",
        f'pyramid = timm.create_model("{name}", pretrained=True, features_only=True).eval()',
        "with torch.inference_mode():",
        f"    maps = pyramid(images)  # {_maps(facts, 'last')}",
        "",
        "# To fine-tune: the same encoder under a new head.",
        f'classifier = timm.create_model("{name}", pretrained=True, num_classes=10)',
    ]


def _transformers_snippet(facts: CardFacts) -> list[str]:
    repo, last, classifies = facts.repo or FOLDER, _stage(facts, -1), facts.kind == "SwinClassifier"
    auto, native = _transformers_classes(facts)
    processor, prepare = "", [f"images = {_random(facts)}"]
    if _is_rgb(facts):
        processor = "AutoImageProcessor, "
        prepare = [
            f'processor = AutoImageProcessor.from_pretrained("{repo}")',
            'image = Image.open("image.png").convert("RGB")',
            f'images = processor(image, return_tensors="pt")["pixel_values"]  # {_shape(facts)}',
        ]
    result = [
        f"    features = outputs.last_hidden_state  # {(1, *last.grid, last.dim)}",
        f"    embedding = outputs.pooler_output  # (1, {last.dim})",
    ]
    if classifies:
        result = [f"    logits = outputs.logits  # (1, {facts.num_classes})"]
    natives = f", {native}" if facts.has_transformers_copy else ""
    return [
        *_imports(facts, others=f"from transformers import {processor}{auto}{natives}"),
        "",
        *prepare,
        f'model = {auto}.from_pretrained("{repo}").eval()',
        "with torch.inference_mode():",
        "    outputs = model(pixel_values=images)",
        *result,
        *(["label = model.config.id2label[int(logits.argmax())]"] if facts.labels else []),
        *(_native_lines(facts, native, repo) if facts.has_transformers_copy else []),
    ]


def _transformers_classes(facts: CardFacts) -> tuple[str, str]:
    if facts.kind == "SwinClassifier":
        return "AutoModelForImageClassification", "SwinForImageClassification"
    return "AutoModel", "SwinForMaskedImageModeling" if facts.kind == "SimMIM" else "SwinModel"


def _native_lines(facts: CardFacts, native: str, repo: str) -> list[str]:
    first, last = _stage(facts, 0), _stage(facts, -1)
    call = f"    tokens = native(images).last_hidden_state  # {(1, math.prod(last.grid), last.dim)}"
    if facts.kind == "SimMIM":
        call = f"    pixels = native(images, bool_masked_pos=mask).reconstruction  # {_shape(facts)}"
    elif facts.kind == "SwinClassifier":
        call = f"    native_logits = native(images).logits  # (1, {facts.num_classes})"
    mask = f"mask = torch.rand(1, {math.prod(first.grid)}) < 0.6  # of the {by(first.grid)} tokens, True = masked"
    return [
        "",
        f'native = {native}.from_pretrained("{repo}", subfolder="transformers").eval()',
        *([mask] if facts.kind == "SimMIM" else []),
        "with torch.inference_mode():",
        call,
    ]


def _imports(facts: CardFacts, own: str = "", others: str = "") -> list[str]:
    lines = [others] * others.startswith("import") + ["import torch"]
    lines += ["from PIL import Image"] * _is_rgb(facts) + [others] * others.startswith("from")
    return lines + (["", own] if own else [])


def _python(lines: list[str]) -> str:
    return fenced("\n".join(lines), "python")


def _is_rgb(facts: CardFacts) -> bool:
    """Whether a picture file can be what the model takes; of other channels, nobody knows how they are stored."""
    return len(facts.input["mean"]) == 3 and facts.input["scale"] == 255


def _bands(facts: CardFacts) -> list[str]:
    """The arguments of ChannelSpec."""
    taken = facts.input
    given = {"channels": taken["channels"], "nodata": taken["nodata"], "mask": taken["mask_channel"]}
    named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    return [str(len(taken["mean"])), *named]


def _shape(facts: CardFacts) -> tuple[int, ...]:
    return (1, len(facts.input["mean"]), *facts.input["image_size"])


def _random(facts: CardFacts) -> str:
    names = " ".join(", ".join(facts.input["channels"] or ()).split())
    what = f"put yours here: {names}; " if names else "put yours here, "
    return f"torch.rand{_shape(facts)}  # {what}normalised as above"


def _maps(facts: CardFacts, channels: Literal["first", "last"]) -> str:
    """The shapes of a pyramid as a comment."""
    stages = [_stage(facts, stage) for stage in range(facts.config.num_stages)]
    shapes = [(1, s.dim, *s.grid) if channels == "first" else (1, *s.grid, s.dim) for s in stages]
    return ", ".join(map(str, shapes))


class _Stage(NamedTuple):
    dim: int
    grid: tuple[int, int]
    """Tokens, (h, w)."""


def _stage(facts: CardFacts, stage: int) -> _Stage:
    stage %= facts.config.num_stages
    return _Stage(facts.config.stage_dim(stage), facts.config.stage_grid(stage))


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def by(size: Sequence[int]) -> str:
    """ "64 x 96" """
    return " x ".join(map(str, size))
