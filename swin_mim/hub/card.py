"""The model card: README.md of a published model. Facts in, text out.

A card says only what its facts say: a section, a row or a sentence without a fact behind it is left out.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypedDict
from urllib.parse import quote

from swin_mim.errors import UserError

FOLDER = "path/to/this/folder"
"""What the snippets load when the model has no repository."""
SHOWN_LABELS = 20
"""A longer list of class names is cut to this."""

_HUB = "https://huggingface.co"


class Input(TypedDict):
    """What the model takes."""

    image_size: tuple[int, int]
    """(H, W) in pixels."""
    channels: tuple[str, ...] | None
    """Their names, in order; None: not known."""
    mean: tuple[float, ...]
    """One per channel, of pixels between 0 and 1; `std` likewise."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """One measured number."""

    dataset: str
    metric: str
    """Its name: "masked L1, held-out images"."""
    type: str
    """Its identifier: "l1", "accuracy"."""
    value: float
    split: str | None = None


@dataclass(frozen=True)
class Training:
    """How the weights came to be: measured, never assumed."""

    data: str
    """One or two sentences in plain words: "1862 tiles of ..."."""
    steps: int
    images: int
    """Images seen, each time counted."""
    facts: dict[str, str]
    """More rows of the table: batch, learning rate, duration, hardware, precision, versions."""
    config_yaml: str
    """The exact recipe."""
    command: str


@dataclass(frozen=True)
class CardFacts:
    """All that a card can say."""

    kind: Literal["SimMIM", "Swin", "SwinClassifier"]
    name: str
    """The title."""
    repo: str | None
    """ "user/name"; None: the snippets load a local folder."""
    architecture: dict[str, Any]
    """The fields of SwinConfig."""
    parameters: int
    """Of the encoder, and of a classifier's head."""
    input: Input
    timm_name: str
    """timm's registry name, as in config.json."""
    num_classes: int
    labels: tuple[str, ...] | None
    has_transformers_copy: bool
    """Whether the folder `transformers` holds the native copy."""
    license: str | None
    """The Hub's identifier, such as "apache-2.0"; None: not known."""
    base_model: str | None
    """The Hub's name of the model that this one was fine-tuned from."""
    datasets: tuple[str, ...]
    """The Hub's names of the data, if it is there."""
    training: Training | None
    results: tuple[Result, ...]
    pictures: tuple[tuple[str, str], ...]
    """(file name in the repository, caption)"""
    tags: tuple[str, ...] = ()


def card(facts: CardFacts) -> str:
    """README.md: front matter and Markdown, ending in a newline.

    Raises:
        UserError: repo, license, base_model or datasets hold what the Hub would refuse.
    """
    _check(facts)
    facts = _without_machine(facts)
    sections = (
        _opening(facts),
        _details(facts),
        _use(facts),
        _pictures(facts),
        _data(facts),
        _training(facts),
        _results(facts),
        _limits(facts),
        _citation(facts),
    )
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{_front_matter(facts)}\n---\n\n{body}\n"


def without_paths(text: str) -> str:
    """Absolute paths -> their last part, whoever's they are: "/home/x/images" -> "images".

    Paths of Linux, macOS and Windows, under ~ and after file://; one with spaces only in quotes or after "key: " to
    the end of a line. A home folder itself becomes ~. URLs, names of the Hub and relative paths stay.
    """
    return _PATH.sub(lambda match: _last_part(match[0]), text)


def escaped(text: str) -> str:
    """Any text -> one line of Markdown that shows it as it is, in a heading, a sentence or a cell of a table."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    text = re.sub(r"^[-+=]", r"\\\g<0>", text)  # would open a list, or make a heading of the line above
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


_START = r"(?:(?:file://)?(?:~(?:[A-Za-z_][\w.-]*)?/|(?<!:)/+|(?<=:)/|(?<=file://)/)|[A-Za-z]:[\\/]+|\\\\)(?=[^\s/\\])"
_PATH = re.compile(
    rf"""(?<=["']){_START}[^"'\n]*(?=["'])"""  # in quotes a path may hold spaces
    # elsewhere it ends at a space without a backslash, or where the next path of a list starts
    rf"""|(?<![^\s"'`=(\[{{,;:|]){_START}(?:\\[ ]|[^\s"'`:,;]|[:,;](?![/~]))*"""
)
_HOME = re.compile(r"(?:[A-Za-z]:)?[\\/]+(?:home|Users)[\\/]+[^\\/]+[\\/]*")
_YAML_VALUE = re.compile(
    r"""^([ \t]*(?:- +)*(?:[\w.-]+: +)?)([~/]|[A-Za-z]:[\\/])([^"'#\n]*?)(?=[ \t]*(?:#|$))""", re.MULTILINE
)


def _last_part(path: str) -> str:
    path = path.removeprefix("file://")
    if _HOME.fullmatch(path):
        return "~"
    windows = not path.startswith(("/", "~"))
    parts = re.split(r"[\\/]+" if windows else "/+", path)
    return next(part for part in reversed(parts) if part)


def _yaml_without_paths(text: str) -> str:
    """`without_paths`, where a value without quotes may hold spaces: "source: /home/x/my images"."""
    text = _YAML_VALUE.sub(lambda match: match[1] + without_paths(f'"{match[2]}{match[3]}"')[1:-1], text)
    return without_paths(text)


def _without_machine(facts: CardFacts) -> CardFacts:
    """The same facts without the folders of the machine that they come from."""
    training = facts.training and replace(
        facts.training,
        data=without_paths(facts.training.data),
        facts={key: without_paths(value) for key, value in facts.training.facts.items()},
        command=without_paths(facts.training.command),
        config_yaml=_yaml_without_paths(facts.training.config_yaml),
    )
    results = (replace(result, dataset=without_paths(result.dataset)) for result in facts.results)
    return replace(
        facts,
        name=without_paths(facts.name),
        training=training,
        results=tuple(results),
        pictures=tuple((name, without_paths(caption)) for name, caption in facts.pictures),
    )


def _check(facts: CardFacts) -> None:
    """Refuse what the Hub would refuse at the end of a push; and facts that contradict each other are our own bug."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    names = [("repo", facts.repo), ("base_model", facts.base_model), *(("datasets", name) for name in facts.datasets)]
    for key, name in names:
        try:
            if name is not None:
                validate_repo_id(name)
        except HFValidationError:
            raise UserError(f"{key} {name!r} is no name of the Hub: it is user/name, letters, digits, - _ .") from None
    if facts.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", facts.license):
        raise UserError(
            f"license {facts.license!r} is no identifier of the Hub: use one of its list, "
            "such as apache-2.0, mit, cc-by-4.0 or other"
        )
    assert facts.labels is None or len(facts.labels) == facts.num_classes
    taken = facts.input
    assert {len(taken["mean"]), len(taken["std"]), len(taken["channels"] or taken["mean"])} == {len(taken["mean"])}
    assert all(math.isfinite(result.value) for result in facts.results)
    assert not any(name.startswith("/") or ".." in name for name, _ in facts.pictures)


def _front_matter(facts: CardFacts) -> str:
    """The YAML that the Hub reads, without its fences."""
    from huggingface_hub import EvalResult, ModelCardData

    classifies = facts.kind == "SwinClassifier"
    task = "image-classification" if classifies else "image-feature-extraction"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^\w/.]+", "-", result.dataset.lower()).strip("-") or "data",
            dataset_name=result.dataset,
            dataset_split=result.split,
            metric_type=result.type,
            metric_name=result.metric,
            metric_value=float(result.value),
        )
        for result in facts.results
    ]
    data = ModelCardData(
        library_name="timm",
        pipeline_tag=task,
        tags=_tags(facts),
        license=facts.license,
        base_model=facts.base_model,
        datasets=list(facts.datasets) or None,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _tags(facts: CardFacts) -> list[str]:
    own = ["simmim", "masked-image-modeling", "self-supervised"] if facts.kind == "SimMIM" else []
    return list(dict.fromkeys(["timm", "transformers", "swin", *own, *facts.tags]))


def _is_simmim(facts: CardFacts) -> bool:
    """Whether the encoder is known to come from SimMIM."""
    return "simmim" in _tags(facts)


def _opening(facts: CardFacts) -> str:
    simmim = "[SimMIM](https://arxiv.org/abs/2111.09886)"
    if facts.kind == "SimMIM" and facts.training:
        text = f"A Swin Transformer pretrained with {simmim}: it learned from images without labels, by filling in"
        text += " what was hidden of them. The encoder, the mask token and the pixel decoder."
    elif facts.kind == "SimMIM":
        text = f"A Swin Transformer encoder with the mask token and the pixel decoder of {simmim}."
    elif facts.kind == "SwinClassifier":
        text = f"An image classifier: a Swin Transformer with a linear head for {_count(facts.num_classes, 'class')}."
    else:
        text = "A Swin Transformer encoder: an image in, a grid of features out."
    if facts.kind != "SimMIM" and _is_simmim(facts):
        text += f" Its encoder was pretrained with {simmim}."
    return f"# {escaped(facts.name)}\n\n{text}"


def _details(facts: CardFacts) -> str:
    swin, taken = facts.architecture, facts.input
    stages = zip(swin["depths"], _stages(facts), strict=True)
    with_head = "encoder and head" if facts.kind == "SwinClassifier" else "encoder"
    rows = {
        "Parameters": f"{facts.parameters / 1e6:.3g} M ({with_head})",
        "Image size": f"{_by(taken['image_size'])} pixels, height x width",
        "Patch": f"{swin['patch_size']} x {swin['patch_size']} pixels",
        "Window": _windows(facts),
        "Blocks": ", ".join(f"{depth} of {stage.dim} channels" for depth, stage in stages),
        "Input channels": escaped(", ".join(taken["channels"] or [str(len(taken["mean"]))])),
        "Normalisation": f"pixels between 0 and 1, mean {_numbers(taken['mean'])}, std {_numbers(taken['std'])}",
        "Classes": _classes(facts),
        "Built by timm's": f"{escaped(facts.timm_name)}, with the arguments in config.json",
        "Made from": _link(facts.base_model) if facts.base_model else "",
        "License": escaped(facts.license or ""),
    }
    return "## Details\n\n" + _table(("", ""), ((key, value) for key, value in rows.items() if value))


def _classes(facts: CardFacts) -> str:
    if facts.kind != "SwinClassifier":
        return ""
    shown = [escaped(label) for label in (facts.labels or ())[:SHOWN_LABELS]]
    more = len(facts.labels or ()) - len(shown)
    names = ", ".join(shown) + (f" and {more} more" if more else "")
    return f"{facts.num_classes}: {names}" if names else str(facts.num_classes)


def _windows(facts: CardFacts) -> str:
    """ "8 x 8 tokens; 4 x 4 from stage 3 on, whose grid is 4 x 4"."""
    stages = list(enumerate(_stages(facts), start=1))
    text = f"{_by(stages[0][1].window)} tokens"
    for (_, before), (number, stage) in pairwise(stages):
        if stage.window != before.window:
            text += f"; {_by(stage.window)} in stage {number}, whose grid is {_by(stage.grid)}"
    return text


def _use(facts: CardFacts) -> str:
    size = _by(facts.input["image_size"])
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
    taken, repo, last = facts.input, facts.repo or FOLDER, _stages(facts)[-1]
    classifies = facts.kind == "SwinClassifier"
    names = [facts.kind] if classifies else [facts.kind, "SwinClassifier"]
    open_image = [f"images = {_random(facts)}"]
    if _is_rgb(facts):
        open_image = [
            'image = Image.open("image.png").convert("RGB")',
            f"images = EvaluationTransform({taken['image_size']})(image)[None]",
            f"images = normalize(images, {taken['mean']}, {taken['std']})  # {_shape(facts)}",
        ]
    return [
        *_imports(facts, f"from swin_mim import {', '.join(names)}"),
        *(["from swin_mim.data.transforms import EvaluationTransform, normalize"] if _is_rgb(facts) else []),
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


def _timm_snippet(facts: CardFacts) -> list[str]:
    name, last = f"hf-hub:{facts.repo}" if facts.repo else f"local-dir:{FOLDER}", _stages(facts)[-1]
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
    repo, last, classifies = facts.repo or FOLDER, _stages(facts)[-1], facts.kind == "SwinClassifier"
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
    first, last = _stages(facts)[0], _stages(facts)[-1]
    call = f"    tokens = native(images).last_hidden_state  # {(1, math.prod(last.grid), last.dim)}"
    if facts.kind == "SimMIM":
        call = f"    pixels = native(images, bool_masked_pos=mask).reconstruction  # {_shape(facts)}"
    elif facts.kind == "SwinClassifier":
        call = f"    native_logits = native(images).logits  # (1, {facts.num_classes})"
    mask = f"mask = torch.rand(1, {math.prod(first.grid)}) < 0.6  # of the {_by(first.grid)} tokens, True = masked"
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
    return _fenced("\n".join(lines), "python")


def _is_rgb(facts: CardFacts) -> bool:
    """Whether a picture file can be what the model takes; of other channels, nobody knows how they are stored."""
    return len(facts.input["mean"]) == 3


def _shape(facts: CardFacts) -> tuple[int, ...]:
    return (1, len(facts.input["mean"]), *facts.input["image_size"])


def _random(facts: CardFacts) -> str:
    names = " ".join(", ".join(facts.input["channels"] or ()).split())
    what = f"put yours here: {names}; " if names else "put yours here, "
    return f"torch.rand{_shape(facts)}  # {what}normalised as above"


def _maps(facts: CardFacts, channels: Literal["first", "last"]) -> str:
    """The shapes of a pyramid as a comment."""
    shapes = [(1, s.dim, *s.grid) if channels == "first" else (1, *s.grid, s.dim) for s in _stages(facts)]
    return ", ".join(map(str, shapes))


def _pictures(facts: CardFacts) -> str:
    if not facts.pictures:
        return ""
    shown = ((quote(name), escaped(caption)) for name, caption in facts.pictures)
    return "\n\n".join(["## Pictures", *(f"![{caption}]({name})\n\n*{caption}*" for name, caption in shown)])


def _data(facts: CardFacts) -> str:
    parts = [escaped(facts.training.data)] if facts.training and facts.training.data.strip() else []
    if facts.datasets:
        parts.append("On the Hub: " + ", ".join(_link(name, "datasets/") for name in facts.datasets) + ".")
    return "\n\n".join(["## Data", *parts]) if parts else ""


def _training(facts: CardFacts) -> str:
    training = facts.training
    if training is None:
        return ""
    rows = {"Steps": f"{training.steps:,}", "Images seen": f"{training.images:,}"} | training.facts
    table = ((escaped(key), escaped(value)) for key, value in rows.items())
    parts = ["## Training", _table(("", ""), ((key, value) for key, value in table if value))]
    if training.command.strip():
        parts.append(_fenced(training.command.strip(), "bash"))
    if training.config_yaml.strip():
        recipe = _fenced(training.config_yaml.strip("\n"), "yaml")
        parts.append(f"<details>\n<summary>The exact recipe</summary>\n\n{recipe}\n\n</details>")
    return "\n\n".join(parts)


def _results(facts: CardFacts) -> str:
    if not facts.results:
        return ""
    rows = (
        (", ".join(filter(None, (result.dataset, result.split))), result.metric, _number(result.value))
        for result in facts.results
    )
    head = ("data", "metric", "value")
    return "## Results\n\n" + _table(head, ([escaped(cell) for cell in row] for row in rows))


def _limits(facts: CardFacts) -> str:
    size, swin = _by(facts.input["image_size"]), facts.architecture
    sizes = f"It was trained at {size} pixels." if facts.training else f"It is made for {size} pixels."
    sizes += f" swin_mim runs any size whose sides are multiples of {swin['patch_size']}, and pads where the windows"
    sizes += f" do not fit; {_timm_sizes(facts)}. At another size, test before you trust."
    lines = [sizes]
    if untiled := _untiled(facts):
        lines.append(
            f"The windows do not tile the grid of {untiled}. There timm, and transformers through it, pad after"
        )
        lines[-1] += " they shift and swin_mim before, so that their features differ somewhat from those of swin_mim."
    lines.append(_seen(facts))
    if facts.kind == "SwinClassifier":
        lines.append("It gives one of its classes to every image, also to one that shows none of them.")
    elif _is_simmim(facts):
        lines.append("Features of SimMIM are made to be fine-tuned. k-NN and linear probes under-rate them.")
    if facts.kind == "SimMIM":
        lines.append("The pixel decoder is one layer that serves pretraining; what it fills in is blurred. timm and")
        lines[-1] += " transformers' wrapper do not load it (`mim_head.safetensors`)."
    return "## Limits\n\n" + "\n".join(f"* {line}" for line in lines)


def _seen(facts: CardFacts) -> str:
    """What the model knows of the world."""
    if not facts.training or not facts.training.data.strip():
        return "What data it was trained on, if any, is not recorded here."
    first = "It saw only the data named above."
    if facts.base_model:
        first = f"Besides what {_link(facts.base_model)} was trained on, it saw only the data named above."
    return f"{first} Expect less of images of another kind; what is one-sided in the data is one-sided in the model."


def _untiled(facts: CardFacts) -> str:
    """ "stage 1 (15 x 24)": the stages whose shifted windows need padding, where timm computes something else."""
    stages = zip(facts.architecture["depths"], _stages(facts), strict=True)
    found = [
        f"stage {number} ({_by(stage.grid)})"
        for number, (depth, stage) in enumerate(stages, start=1)
        if depth > 1 and any(cells % window for cells, window in zip(stage.grid, stage.window, strict=True))
    ]
    return " and ".join(found)


def _timm_sizes(facts: CardFacts) -> str:
    if any(h != w for h, w in (stage.window for stage in _stages(facts))):
        return "timm resizes only the bias tables of square windows, and not all of these are"
    return "timm does with `img_size=(height, width)`"


def _citation(facts: CardFacts) -> str:
    entries = [*([_SIMMIM] if _is_simmim(facts) else []), _SWIN, _SWIN_MIM]
    return "## Citation\n\n" + _fenced("\n\n".join(entries), "bibtex")


_SIMMIM = """@inproceedings{xie2022simmim,
  title = {{SimMIM}: A Simple Framework for Masked Image Modeling},
  author = {Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and
            Dai, Qi and Hu, Han},
  booktitle = {CVPR},
  year = {2022},
  eprint = {2111.09886},
  archivePrefix = {arXiv}
}"""
_SWIN = """@inproceedings{liu2021swin,
  title = {Swin Transformer: Hierarchical Vision Transformer using Shifted Windows},
  author = {Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and Zhang, Zheng and Lin, Stephen and
            Guo, Baining},
  booktitle = {ICCV},
  year = {2021},
  eprint = {2103.14030},
  archivePrefix = {arXiv}
}"""
_SWIN_MIM = """@software{swin_mim,
  title = {swin\\_mim: SimMIM pretraining of Swin Transformers}
}"""


class _Stage(NamedTuple):
    dim: int
    grid: tuple[int, int]
    """Tokens, (h, w)."""
    window: tuple[int, int]


def _stages(facts: CardFacts) -> list[_Stage]:
    """The geometry of every stage at the model's image size, by the rules of SwinConfig."""
    swin, (height, width) = facts.architecture, facts.input["image_size"]
    window = _pair(swin["window_size"])
    stages = []
    for stage in range(len(swin["depths"])):
        halved = swin["patch_size"] * 2**stage
        grid = -(-height // halved), -(-width // halved)
        fitting = min(grid[0], window[0]), min(grid[1], window[1])
        stages.append(_Stage(swin["embed_dim"] * 2**stage, grid, fitting))
    return stages


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _link(name: str, prefix: str = "") -> str:
    return f"[{escaped(name)}]({_HUB}/{prefix}{name})"


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"
