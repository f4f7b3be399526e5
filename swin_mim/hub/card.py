"""The model card: README.md of a published model. What is known goes in, text comes out.

A card says only what is known: a section, a row or a sentence without a fact behind it is left out. Its text is in
card.md.jinja.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from swin_mim.architecture import SwinConfig, as_pair
from swin_mim.errors import UserError
from swin_mim.hub.about import About
from swin_mim.redaction import without_paths, yaml_without_paths
from swin_mim.weights.compatibility import unsupported_reason
from swin_mim.weights.config_json import Description, timm_name
from swin_mim.weights.library_configs import TRANSFORMERS_NAMES, transformers_class

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_TASKS = {
    "SwinClassifier": "image-classification",
    "SwinSegmenter": "image-segmentation",
    "SwinDetector": "object-detection",
}
"""The Hub's word for what a model does."""


def card(description: Description, about: About, *, folder: str, parameters: int, native: bool = False) -> str:
    """README.md: front matter and Markdown, ending in a newline.

    Args:
        folder: name of the model's folder, the title where nothing else is.
        parameters: of the encoder, and of a classifier's head.
        native: whether the folder `transformers` holds a copy for transformers' own classes.

    Raises:
        UserError: repo, license, base_model or datasets hold what the Hub would refuse.
    """
    from huggingface_hub import ModelCard

    _check(description, about)
    about = _without_machine(about)
    title = without_paths(about.name or about.repo or folder)
    text = ModelCard.from_template(
        _front_matter(description, about, title),
        template_path=str(_TEMPLATE),
        description=description,
        about=about,
        title=title,
        parameters=parameters,
        native=native,
        simmim="simmim" in _tags(description, about),
        caution=unsupported_reason("timm", description),
        timm_name=timm_name(description.config),
        theirs=transformers_class(description),
        **_FUNCTIONS,
        **_sizes(description.config),
        **_reading(description),
    )
    return f"{text}\n"


def escaped(text: str) -> str:
    """Any text -> one line of Markdown that shows it as it is, in a heading, a sentence or a cell of a table."""
    text = html.escape(" ".join(text.split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    text = re.sub(r"^[-+=]", r"\\\g<0>", text)  # would open a list, or make a heading of the line above
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _without_machine(about: About) -> About:
    """The same without the folders of the machine that it comes from."""
    training = about.training and replace(
        about.training,
        data=without_paths(about.training.data),
        facts={key: without_paths(value) for key, value in about.training.facts.items()},
        command=without_paths(about.training.command),
        config_yaml=yaml_without_paths(about.training.config_yaml),
    )
    return replace(
        about,
        training=training,
        results=tuple(replace(result, dataset=without_paths(result.dataset)) for result in about.results),
        pictures=tuple(picture._replace(caption=without_paths(picture.caption)) for picture in about.pictures),
    )


def _check(description: Description, about: About) -> None:
    """Refuse what the Hub would refuse at the end of a push; and facts that contradict each other are our own bug."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    names = [("repo", about.repo), ("base_model", about.base_model), *(("datasets", name) for name in about.datasets)]
    for key, name in names:
        try:
            if name is not None:
                validate_repo_id(name)
        except HFValidationError:
            raise UserError(f"{key} {name!r} is no name of the Hub: it is user/name, letters, digits, - _ .") from None
    if about.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", about.license):
        raise UserError(
            f"license {about.license!r} is no identifier of the Hub: use one of its list, "
            "such as apache-2.0, mit, cc-by-4.0 or other"
        )
    assert description.labels is None or len(description.labels) == description.num_classes
    assert len(description.preprocessing.mean) == description.config.in_channels
    assert all(math.isfinite(result.value) for result in about.results)
    assert not any(picture.name.startswith("/") or ".." in picture.name for picture in about.pictures)


def _front_matter(description: Description, about: About, title: str) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    task = _TASKS.get(description.kind, "image-feature-extraction")
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
        for result in about.results
    ]
    return ModelCardData(
        library_name="timm",
        pipeline_tag=task,
        tags=_tags(description, about),
        license=about.license,
        base_model=about.base_model,
        datasets=list(about.datasets) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _tags(description: Description, about: About) -> list[str]:
    own = ["simmim", "masked-image-modeling", "self-supervised"] if description.kind == "SimMIM" else []
    model_type, _ = TRANSFORMERS_NAMES[description.config.version]
    return list(dict.fromkeys(["timm", "transformers", model_type, *own, *about.tags]))


def _sizes(config: SwinConfig) -> dict[str, Any]:
    """The shapes that the examples promise, and what is said of windows."""
    stages = [(config.stage_grid(stage), config.stage_dim(stage)) for stage in range(config.num_stages)]
    grid, channels = stages[-1]
    measures = config.pretrained_window_sizes if any(config.pretrained_window_sizes) else ()
    return {
        "size": _by(as_pair(config.image_size)),
        "shape": (1, config.in_channels, *as_pair(config.image_size)),
        "features": (1, *grid, channels),
        "maps": ", ".join(str((1, dim, *grid)) for grid, dim in stages),
        "timm_maps": ", ".join(str((1, *grid, dim)) for grid, dim in stages),
        "tokens": math.prod(stages[0][0]),
        "last_tokens": (1, math.prod(grid), channels),
        "square": config.version > 1 or all(h == w for h, w in map(config.stage_window, range(config.num_stages))),
        "measures": ", ".join(_by(as_pair(size)) for size in measures),
    }


def _reading(description: Description) -> dict[str, str]:
    """How the examples read an image, and what its values are."""
    taken, size = description.preprocessing, as_pair(description.config.image_size)
    interpolation = "" if taken.interpolation == "bilinear" else f', interpolation="{taken.interpolation}"'
    given = {"channels": taken.channels, "nodata": taken.nodata, "mask": taken.mask_channel}
    names = " ".join(", ".join(taken.channels or ()).split())
    yours = f"put yours here: {names}; " if names else "put yours here, "
    return {
        "resizing": f"{size}{interpolation}" + ("" if taken.crop_pct == 1 else f", crop_pct={taken.crop_pct}"),
        "bands": ", ".join(
            [str(len(taken.mean)), *(f"{key}={value!r}" for key, value in given.items() if value is not None)]
        ),
        "random": f"torch.rand{(1, len(taken.mean), *size)}  # {yours}normalised as above",
    }


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


_FUNCTIONS: dict[str, Any] = {"escaped": escaped, "fenced": fenced, "quote": quote, "by": _by, "number": _number}
"""What the template calls."""
