"""The model card: README.md of a published model. Facts in, text out.

A card says only what its facts say: a section, a row or a sentence without a fact behind it is left out.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from urllib.parse import quote

from swin_mim.errors import UserError
from swin_mim.hub.about import CardFacts, Input
from swin_mim.hub.card_examples import by, examples, fenced
from swin_mim.redaction import without_paths, yaml_without_paths

SHOWN_LABELS = 20
"""A longer list of class names is cut to this."""

_HUB = "https://huggingface.co"


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
        examples(facts),
        _pictures(facts),
        _data(facts),
        _training(facts),
        _results(facts),
        _limits(facts),
        _citation(facts),
    )
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{_front_matter(facts)}\n---\n\n{body}\n"


def escaped(text: str) -> str:
    """Any text -> one line of Markdown that shows it as it is, in a heading, a sentence or a cell of a table."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    text = re.sub(r"^[-+=]", r"\\\g<0>", text)  # would open a list, or make a heading of the line above
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def _without_machine(facts: CardFacts) -> CardFacts:
    """The same facts without the folders of the machine that they come from."""
    training = facts.training and replace(
        facts.training,
        data=without_paths(facts.training.data),
        facts={key: without_paths(value) for key, value in facts.training.facts.items()},
        command=without_paths(facts.training.command),
        config_yaml=yaml_without_paths(facts.training.config_yaml),
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
    config, taken = facts.config, facts.input
    with_head = "encoder and head" if facts.kind == "SwinClassifier" else "encoder"
    rows = {
        "Parameters": f"{facts.parameters / 1e6:.3g} M ({with_head})",
        "Image size": f"{by(taken['image_size'])} pixels, height x width",
        "Patch": f"{config.patch_size} x {config.patch_size} pixels",
        "Window": _windows(facts),
        "Blocks": ", ".join(f"{depth} of {config.stage_dim(i)} channels" for i, depth in enumerate(config.depths)),
        "Input channels": escaped(", ".join(taken["channels"] or [str(len(taken["mean"]))])),
        "Normalisation": f"{_units(taken)}, mean {_numbers(taken['mean'])}, std {_numbers(taken['std'])}",
        "Classes": _classes(facts),
        "Built by timm's": f"{escaped(facts.timm_name)}, with the arguments in config.json",
        "Made from": _link(facts.base_model) if facts.base_model else "",
        "License": escaped(facts.license or ""),
    }
    return "## Details\n\n" + _table(("", ""), ((key, value) for key, value in rows.items() if value))


def _units(taken: Input) -> str:
    if taken["scale"] == 255:
        return "pixels between 0 and 1"
    gaps = "" if taken["nodata"] is None else f", {taken['nodata']:g} where there is none"
    gaps += "" if taken["mask_channel"] is None else f", none where channel {taken['mask_channel']} is 0"
    return f"values as they stand in the files{escaped(gaps)}"


def _classes(facts: CardFacts) -> str:
    if facts.kind != "SwinClassifier":
        return ""
    shown = [escaped(label) for label in (facts.labels or ())[:SHOWN_LABELS]]
    more = len(facts.labels or ()) - len(shown)
    names = ", ".join(shown) + (f" and {more} more" if more else "")
    return f"{facts.num_classes}: {names}" if names else str(facts.num_classes)


def _windows(facts: CardFacts) -> str:
    """ "8 x 8 tokens; 4 x 4 from stage 3 on, whose grid is 4 x 4"."""
    config = facts.config
    text = f"{by(config.stage_window(0))} tokens"
    for stage in range(1, config.num_stages):
        if config.stage_window(stage) != config.stage_window(stage - 1):
            grid = by(config.stage_grid(stage))
            text += f"; {by(config.stage_window(stage))} in stage {stage + 1}, whose grid is {grid}"
    return text


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
        parts.append(fenced(training.command.strip(), "bash"))
    if training.config_yaml.strip():
        recipe = fenced(training.config_yaml.strip("\n"), "yaml")
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
    size = by(facts.input["image_size"])
    sizes = f"It was trained at {size} pixels." if facts.training else f"It is made for {size} pixels."
    sizes += (
        f" swin_mim runs any size whose sides are multiples of {facts.config.patch_size}, and pads where the windows"
    )
    sizes += f" do not fit; {_timm_sizes(facts)}. At another size, test before you trust."
    lines = [sizes]
    if facts.caution:
        lines.append(f"timm, and transformers through it, computes somewhat other features: {escaped(facts.caution)}.")
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


def _timm_sizes(facts: CardFacts) -> str:
    windows = [facts.config.stage_window(stage) for stage in range(facts.config.num_stages)]
    if any(h != w for h, w in windows):
        return "timm resizes only the bias tables of square windows, and not all of these are"
    return "timm does with `img_size=(height, width)`"


def _citation(facts: CardFacts) -> str:
    entries = [*([_SIMMIM] if _is_simmim(facts) else []), _SWIN, _SWIN_MIM]
    return "## Citation\n\n" + fenced("\n\n".join(entries), "bibtex")


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _link(name: str, prefix: str = "") -> str:
    return f"[{escaped(name)}]({_HUB}/{prefix}{name})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}es"
