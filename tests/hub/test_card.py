"""The card is valid for the Hub, its snippets run, it says nothing without a fact, and no name breaks it."""

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import markdown_it
import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from swin_mim import SimMIM, Swin, SwinConfig
from swin_mim.architecture import as_pair
from swin_mim.errors import UserError
from swin_mim.hub.about import About, Picture, Result, Training
from swin_mim.hub.card import card as model_card
from swin_mim.hub.card import escaped
from swin_mim.weights.config_json import Description, Preprocessing

TINY = SwinConfig(64, embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
TWO_STAGES = SwinConfig(64, embed_dim=16, depths=(1, 2), num_heads=(2, 4), window_size=8)
NATIVE = SwinConfig(64, embed_dim=16, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=4)
"""Its windows fit every stage, as transformers' own classes want it."""
V2 = SwinConfig(
    64, embed_dim=16, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=4, version=2, pretrained_window_sizes=(8, 8, 4)
)
OBLONG = SwinConfig((64, 96), embed_dim=16, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=(4, 4))
ODD = SwinConfig((60, 96), embed_dim=16, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=(4, 4))
FIVE = SwinConfig(64, in_channels=5, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)
CUT = SwinConfig(56, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=7)
"""Of images resized to 64, as 224 is cut out of 256: everybody cuts at the same whole pixels."""
CUT_OBLONG = SwinConfig((56, 112), embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=7)
FOLDER = "path/to/this/folder"
ARCHITECTURE = "swin_tiny_patch4_window7_224"
NASTY = ["<script>alert(1)</script>", "a|b", "*bold* _it_ `code`", "[x](http://e.org)", "R&D &lt;", "no", "1e3", "€ 🛰"]

TRAINING = Training(
    data="1862 tiles of NASA's Blue Marble, under /home/jane/blue_marble, split by longitude.",
    steps=1200,
    images=38400,
    facts={"batch": "32", "learning rate": "3e-3, cosine", "hardware": "2 CPU cores", "empty": ""},
    config_yaml="run:\n  name: demo\n  root: /home/jane doherty/my runs\ndata:\n  source: blue_marble\n",
    command="swin-mim pretrain --run.root '/home/jane doherty/my runs'",
)
RESULTS = (
    Result("Blue Marble", "masked L1", "l1", 0.18012345, "held-out longitudes"),
    Result("Blue Marble", "masked L2", "l2", 0.05, "held-out longitudes"),
    Result("Other: tiles #2", "masked L1", "l1", 3.0),
)


@dataclasses.dataclass(frozen=True)
class Known:
    """A model, and what its maker tells of it."""

    description: Description
    about: About
    native: bool = False

    @property
    def kind(self) -> str:
        return self.description.kind

    @property
    def config(self) -> SwinConfig:
        return self.description.config

    @property
    def size(self) -> tuple[int, int]:
        return as_pair(self.config.image_size)


def card(known: Known) -> str:
    return model_card(known.description, known.about, folder="Tiny tiles", parameters=123456, native=known.native)


def preprocessing(config: SwinConfig = TINY, interpolation: Any = "bilinear", crop_pct: float = 1.0) -> Preprocessing:
    """How images become the input of such a model."""
    channels = ("red", "green", "blue", "nir", "swir")[: config.in_channels]
    return Preprocessing((0.5,) * len(channels), (0.25,) * len(channels), channels, interpolation, crop_pct)


def facts(config: SwinConfig = TINY, *, native: bool = False, **changes: Any) -> Known:
    """All that can be known of a SimMIM, with some of it changed."""
    of_model = {"kind": "SimMIM", "config": config, "preprocessing": preprocessing(changes.get("config", config))}
    told = {
        "name": "Tiny tiles",
        "repo": "jane/tiny-tiles",
        "license": "apache-2.0",
        "datasets": ("jane/tiles",),
        "tags": ("satellite", "swin"),
        "training": TRAINING,
        "results": RESULTS,
        "pictures": (
            Picture(Path("a.png"), "reconstruction.png", "Image, masked, prediction."),
            Picture(Path("b.png"), "loss.png", "The loss."),
        ),
    }
    fields = {field.name for field in dataclasses.fields(Description)}
    of_model |= {key: value for key, value in changes.items() if key in fields}
    told |= {key: value for key, value in changes.items() if key not in fields}
    return Known(Description(**of_model), About(**told), native)


def classifier(**changes: Any) -> Known:
    labels = ("forest", "sea", "town")
    return facts(**{"kind": "SwinClassifier", "num_classes": 3, "labels": labels, "results": (), **changes})


def bare(**changes: Any) -> Known:
    """No more than the model itself tells."""
    nothing = dict.fromkeys(("repo", "license", "training")) | dict.fromkeys(
        ("datasets", "tags", "results", "pictures"), ()
    )
    return facts(**{**nothing, **changes})


def front_matter(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


# The front matter.


def hub_data(text: str) -> ModelCardData:
    """As the Hub's own client reads it."""
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def test_the_hubs_client_reads_the_front_matter_and_the_results_come_back() -> None:
    data = hub_data(card(facts()))
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-feature-extraction", "apache-2.0")
    assert data.datasets == ["jane/tiles"]
    assert data.model_name == "Tiny tiles"
    assert data.tags is not None
    assert data.tags[:4] == ["timm", "transformers", "swin", "simmim"]
    assert data.tags.count("swin") == 1
    assert "satellite" in data.tags
    assert data.eval_results is not None
    came_back = [
        (r.dataset_name, r.metric_name, r.metric_type, r.metric_value, r.dataset_split) for r in data.eval_results
    ]
    assert came_back == [dataclasses.astuple(result) for result in RESULTS]


def test_what_is_not_known_is_not_in_the_front_matter() -> None:
    assert set(front_matter(card(bare()))) == {"library_name", "pipeline_tag", "tags"}


def test_a_classifier_says_what_it_does_and_where_it_comes_from() -> None:
    text = card(classifier(base_model="jane/tiny-tiles"))
    matter = front_matter(text)
    assert matter["pipeline_tag"] == "image-classification"
    assert matter["base_model"] == "jane/tiny-tiles"
    assert "simmim" not in matter["tags"]  # nobody said that its encoder came from there
    assert "2111.09886" not in text
    assert "2111.09886" in card(classifier(tags=("simmim",)))


@pytest.mark.parametrize("name", [*NASTY, "a: b # c", "---", "'\"", "- x", "{a: 1}", "null", "@x", "% y", "end\\"])
def test_names_that_yaml_would_misread_survive(name: str) -> None:
    result = Result(name, name, "l1", 1e-7, name)
    data = hub_data(card(facts(name=name, results=(result,))))
    assert data.model_name == name
    assert data.eval_results is not None
    (read,) = data.eval_results
    assert (read.dataset_name, read.metric_name, read.dataset_split) == (name, name, name)
    assert read.metric_value == 1e-7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("license", "Apache 2.0"),
        ("repo", "a/b/c"),
        ("repo", 'x"); import os; ("'),
        ("base_model", "/home/jane/runs/demo"),
        ("datasets", ("ok/fine", "my images/x")),
    ],
)
def test_what_the_hub_would_refuse_is_refused_in_one_line(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{key} .*Hub") as caught:
        card(facts(**{key: value}))
    assert "\n" not in str(caught.value)


# The snippets.


def timm_arguments(config: SwinConfig) -> dict[str, Any]:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.in_channels,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
        "window_size": config.window_size,
    }


def write_model(folder: Path, known: Known) -> None:
    """A published model with random weights: what timm and transformers read written with their own code."""
    config, classes, taken = known.config, known.description.num_classes, known.description.preprocessing
    model = timm.create_model(ARCHITECTURE, num_classes=classes, **timm_arguments(config))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    if known.kind == "SimMIM":
        mim = {k: v for k, v in SimMIM(config).state_dict().items() if not k.startswith("encoder.")}
        save_file(mim, folder / "mim_head.safetensors", metadata={"format": "pt"})
    document = {
        "architecture": ARCHITECTURE,
        "num_classes": classes,
        "model_args": timm_arguments(config),
        "pretrained_cfg": {
            "input_size": (config.in_channels, *known.size),
            "mean": taken.mean,
            "std": taken.std,
            "interpolation": taken.interpolation,
            "crop_pct": taken.crop_pct,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
            "num_classes": classes,
        },
    }
    (folder / "config.json").write_text(
        json.dumps(document | ({"label_names": known.description.labels} if known.description.labels else {}))
    )
    if known.native:
        write_native(folder / "transformers", config, classes)


def write_native(folder: Path, config: SwinConfig, num_classes: int) -> None:
    """The copy for transformers' own classes, as they save it."""
    arguments: dict[str, Any] = dataclasses.asdict(config) | {"encoder_stride": config.stride}
    for name in ("in_channels", "drop_rate"):
        arguments.pop(name)
    if num_classes:
        arguments["num_labels"] = num_classes
    cls = transformers.SwinForImageClassification if num_classes else transformers.SwinForMaskedImageModeling
    cls(transformers.SwinConfig(**arguments)).save_pretrained(folder)


def snippets(text: str) -> list[str]:
    """Snippets of swin_mim, timm and transformers, in this order."""
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert ["swin_mim" in found[0], "import timm" in found[1], "transformers" in found[2]] == [True] * 3
    assert len(found) == 3
    return found


def promised_shapes(snippet: str) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Variable and shapes of every comment: "maps = f(x)  # (1, 16, 8, 8), (1, 32, 4, 4)"."""
    for name, comment in re.findall(r"^ *(\w+) = .*# (\(1, .*)$", snippet, re.MULTILINE):
        yield name, [tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"\([^)]*\)", comment)]


def execute(snippet: str) -> dict[str, Any]:
    """Run a snippet as it stands; every shape that it promises must be what came out."""
    names: dict[str, Any] = {}
    exec(compile(snippet, "card", "exec"), names)
    promises = list(promised_shapes(snippet))
    assert {"features", "maps"} & {name for name, _ in promises} or "logits" in names
    for name, shapes in promises:
        value = names[name]
        assert [tuple(x.shape) for x in (value if isinstance(value, list | tuple) else [value])] == shapes, name
    return names


LABELS = ("forest", "sea", "<town>")
CASES = {
    "SimMIM": facts(),
    "SimMIM with a native copy": facts(NATIVE, native=True),
    "Swin of a local folder, with a native copy": facts(NATIVE, kind="Swin", repo=None, native=True),
    "classifier": classifier(labels=LABELS),
    "classifier with a native copy": classifier(config=NATIVE, labels=LABELS, native=True),
    "classifier without labels": classifier(labels=None),
    "two stages": facts(TWO_STAGES),
    "not square": facts(OBLONG),
    "five channels": facts(FIVE),
    "classifier of five channels": classifier(config=FIVE, preprocessing=preprocessing(FIVE), labels=LABELS),
    "classifier, bicubic and cut out": classifier(
        config=CUT, preprocessing=preprocessing(CUT, "bicubic", 0.875), labels=LABELS
    ),
    "cut out, not square": facts(CUT_OBLONG, preprocessing=preprocessing(CUT_OBLONG, "bilinear", 0.875)),
    "bicubic": facts(preprocessing=preprocessing(TINY, "bicubic", 1.0)),
    "SimMIM of V2 with a native copy": facts(V2, native=True),
    "classifier of V2": classifier(config=V2, labels=LABELS),
}


def test_images_of_other_channels_are_read_from_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = dataclasses.replace(preprocessing(FIVE), scale=1, mean=(100, 200, 300, 400, 500), nodata=-9.0)
    known = facts(FIVE, preprocessing=taken)
    write_model(tmp_path / "model", known)
    height, width = known.size
    pixels = np.random.default_rng(0).random((5, height, width)).astype(np.float32)
    pixels[:, 0, 0], pixels[2, 3, 3] = np.nan, -9
    (tmp_path / "images").mkdir()
    names = dict(zip(taken.channels or (), pixels, strict=True))
    np.savez(tmp_path / "images" / "a.npz", **names)
    monkeypatch.chdir(tmp_path)

    ours = execute(snippets(card(known).replace(known.about.repo or FOLDER, "model"))[0])
    mean, std = (np.array(values)[:, None, None] for values in (taken.mean, taken.std))
    pixels[:, 3, 3] = np.nan
    expected = np.nan_to_num((pixels - mean) / std)
    torch.testing.assert_close(ours["images"][0], torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_three_snippets_run_and_agree(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = CASES[case]
    write_model(tmp_path / "model", known)
    height, width = known.size
    noise = np.random.default_rng(0).integers(0, 256, (2 * height, 2 * width, 4), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)

    text = card(known).replace("hf-hub:", "local-dir:").replace(known.about.repo or FOLDER, "model")
    monkeypatch.setattr(torch, "rand", lambda *size: torch.linspace(-1, 1, int(np.prod(size))).reshape(size))
    ours, of_timm, of_transformers = map(execute, snippets(text))

    what = "logits" if known.kind == "SwinClassifier" else "features"
    for theirs in (of_timm, of_transformers):
        torch.testing.assert_close(ours["images"], theirs["images"], rtol=0, atol=1e-6)
        torch.testing.assert_close(ours[what], theirs[what], rtol=0, atol=1e-5)
    assert of_timm["classifier"](of_timm["images"]).shape == (1, 10)
    if known.description.labels:
        assert of_timm["label"] == of_transformers["label"] == LABELS[int(ours["logits"].argmax())]


@pytest.mark.parametrize("known", [*CASES.values(), bare(), bare(kind="Swin"), classifier(training=None)])
def test_every_snippet_is_whole_python_without_what_it_does_not_use(known: Known) -> None:
    for snippet in snippets(card(known)):
        code = compile(snippet, "card", "exec")
        assert isinstance(code, CodeType)
        imported = re.findall(r"^(?:from \S+ )?import (.*)$", snippet, re.MULTILINE)
        for name in ", ".join(imported).split(", "):
            assert len(re.findall(rf"\b{name}\b", snippet)) > 1, name


@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "arguments"),
    [
        ("bilinear", 1.0, "(56, 56)"),
        ("bicubic", 1.0, '(56, 56), interpolation="bicubic"'),
        ("bilinear", 0.875, "(56, 56), crop_pct=0.875"),
        ("bicubic", 0.875, '(56, 56), interpolation="bicubic", crop_pct=0.875'),
    ],
)
def test_the_snippet_says_how_images_are_resized(interpolation: str, crop_pct: float, arguments: str) -> None:
    ours, *_ = snippets(card(classifier(config=CUT, preprocessing=preprocessing(CUT, interpolation, crop_pct))))
    assert f"images = EvaluationTransform({arguments})(image)[None]" in ours.splitlines()


@pytest.mark.parametrize("config", [TINY, TWO_STAGES, OBLONG, ODD, dataclasses.replace(TINY, image_size=48)])
def test_the_card_says_where_timm_computes_something_else(config: SwinConfig) -> None:
    height, width = as_pair(config.image_size)
    theirs = timm.create_model(ARCHITECTURE, num_classes=0, global_pool="", **timm_arguments(config)).eval()
    ours = Swin(config).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, height, width)
    difference = (ours(images) - theirs(images)).abs().max().item()
    text = card(facts(config))
    if "computes somewhat other features" in text:
        assert "a grid of 15x24" in text
        assert 1e-4 < difference < 0.1
    else:
        assert config is not ODD
        assert difference < 1e-5


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")  # timm's resizing
def test_what_the_limits_say_of_other_sizes_is_so(tmp_path: Path) -> None:
    write_model(tmp_path / "model", facts())
    text = card(facts())
    assert "multiples of 4" in text
    assert "timm does with `img_size=(height, width)`" in text
    other = torch.rand(1, 3, 68, 92)
    assert Swin(TINY)(other).shape == (1, 3, 3, 128)
    with pytest.raises(AssertionError):
        timm.create_model(f"local-dir:{tmp_path}/model", pretrained=True)(other)
    resized = timm.create_model(f"local-dir:{tmp_path}/model", pretrained=True, img_size=(60, 92))
    assert resized(other[:, :, :60]).shape == (1, 128)

    assert "only the bias tables of square windows" not in card(facts(ODD)) + text
    flat = SwinConfig((32, 64), embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=(8, 16))
    write_model(tmp_path / "flat", facts(flat))
    assert "timm resizes only the bias tables of square windows" in card(facts(flat))
    with pytest.raises(ValueError, match="non-square"):
        timm.create_model(f"local-dir:{tmp_path}/flat", pretrained=True, img_size=(64, 64))


def test_the_card_of_a_v2_says_what_is_its_own() -> None:
    text = card(facts(V2, native=True))
    assert "# A Swin Transformer V2 pretrained with [SimMIM]" in text.replace("\nA Swin", "# A Swin")
    assert "4 x 4 tokens; positions are measured by windows of 8 x 8, 8 x 8, 4 x 4, stage by stage |" in text
    assert "Swinv2ForMaskedImageModeling" in text
    assert "liu2022swinv2" in text
    assert hub_data(text).tags[:3] == ["timm", "transformers", "swinv2"]
    assert "cannot load it: timm has no extra norms" in card(facts(dataclasses.replace(V2, extra_norm_period=2)))
    plain = card(facts())
    assert not [words for words in ("V2", "measured", "swinv2", "2111.09883") if words in plain]


# The text.


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_a_full_card_has_every_section_and_a_bare_one_only_those_with_facts() -> None:
    full = ["Details", "Use it", "Pictures", "Data", "Training", "Results", "Limits", "Citation"]
    assert headings(card(facts())) == full
    assert headings(card(bare())) == ["Details", "Use it", "Limits", "Citation"]
    assert headings(card(bare(datasets=("jane/tiles",)))) == ["Details", "Use it", "Data", "Limits", "Citation"]


@pytest.mark.parametrize("known", [facts(), bare(), classifier(), classifier(labels=None), bare(kind="Swin")])
def test_nothing_is_empty(known: Known) -> None:
    text = card(known)
    for row in re.findall(r"^\| .* \|$", text, re.MULTILINE):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert all(cells) or not any(cells), row
    assert "More Information" not in text
    assert not re.search(r"^#.*\n+(#|\Z)", text, re.MULTILINE)
    assert not re.search(r"None|\n\n\n|\(\)", text.split("```python")[0])
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_the_numbers_are_there() -> None:
    text = card(facts())
    for row in (
        "| Parameters | 0.123 M (encoder) |",
        "| Window | 4 x 4 tokens; 2 x 2 in stage 4, whose grid is 2 x 2 |",
        "| Blocks | 2 of 16 channels, 2 of 32 channels, 1 of 64 channels, 1 of 128 channels |",
        "| Steps | 1,200 |",
        "| Images seen | 38,400 |",
        "| learning rate | 3e-3, cosine |",
        "| Blue Marble, held-out longitudes | masked L1 | 0.1801 |",
        "| Other: tiles \\#2 | masked L1 | 3 |",
    ):
        assert row in text.splitlines(), row
    assert "![The loss.](loss.png)\n\n*The loss.*" in text


@pytest.mark.parametrize("config", [TINY, TWO_STAGES, OBLONG, ODD, FIVE])
def test_the_geometry_is_that_of_the_config(config: SwinConfig) -> None:
    text = card(facts(config))
    h, w = config.stage_grid(config.num_stages - 1)
    assert f"features = encoder(images)  # (1, {h}, {w}, {config.num_features})" in text
    (row,) = re.findall(r"^\| Window \| (.*) \|$", text, re.MULTILINE)
    windows = {config.stage_window(stage) for stage in range(config.num_stages)}
    assert all(f"{h} x {w}" in row for h, w in windows)


def test_long_lists_of_classes_are_cut() -> None:
    text = card(classifier(num_classes=1000, labels=tuple(f"class-{i}" for i in range(1000))))
    assert "| Classes | 1000: class-0, class-1," in text
    assert "class-19 and 980 more |" in text


def rendered(text: str) -> str:
    """The body as HTML, by an independent implementation of CommonMark with tables."""
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text.split("---\n", 2)[2])


def test_the_card_renders() -> None:
    html = rendered(card(facts()))
    assert html.count("<h1>") == 1
    assert html.count("<table>") == 3
    assert '<img src="reconstruction.png" alt="Image, masked, prediction." />' in html
    assert "<details>\n<summary>The exact recipe</summary>" in html
    assert html.index("</code></pre>\n</details>") < html.index("<h2>Results</h2>")


@pytest.mark.parametrize("name", [*NASTY, "# x #", "a~~b~~c", "1. first", "- x", "a\\|b", "x\ny", "<!--", "![i](j)"])
def test_no_name_breaks_the_page(name: str) -> None:
    known = classifier(
        name=name,
        labels=(name, "sea", "town"),
        training=dataclasses.replace(TRAINING, data=name, facts={name: name}),
        results=(Result(name, name, "accuracy", 0.5, name),),
        pictures=(Picture(Path("a.png"), "a b(1).png", name),),
    )
    html, plain = rendered(card(known)), rendered(card(classifier(results=RESULTS[:1], pictures=known.about.pictures)))
    shown = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<h1>{shown}</h1>" in html
    assert f"<td>3: {shown}, sea, town</td>" in html
    assert f"<td>{shown}, {shown}</td>\n<td>{shown}</td>\n<td>0.5</td>" in html
    assert f"<td>{shown}</td>\n<td>{shown}</td>\n</tr>" in html
    assert f"<em>{shown}</em>" in html
    assert f"<p>{shown}</p>" in html
    assert 'src="a%20b%281%29.png"' in html
    for tag in ("<h2>", "<table>", "<ul>", "<ol>", "<details>", "<em>", "<strong>", "<code", "<a ", "<script"):
        assert html.count(tag) == plain.count(tag), tag


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1))
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    html = rendered(f"---\n---\nx {escaped(text)} x\n\n| a |\n| --- |\n| {escaped(text)} |\n\n# {escaped(text)}")
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    assert f"<p>x {shown} x</p>" in html
    assert f"<td>{shown}</td>" in html
    assert f"<h1>{shown}</h1>" in html


def test_a_recipe_with_fences_stays_inside_its_own() -> None:
    recipe = "a: |\n  ```\n  </details>\n  ````\nb: 1"
    html = rendered(card(facts(training=dataclasses.replace(TRAINING, config_yaml=recipe))))
    assert "&lt;/details&gt;" in html
    assert html.count("</details>") == 1


# Paths.


def test_no_folder_of_the_machine_gets_into_a_card() -> None:
    secret = "/home/jane doherty/secret project"
    settings = {
        "data": {"source": f"{secret}/my images", "list": ["/mnt/secret/a", "~/secret/b"], "more": "C:\\secret\\c d"},
        "run": {"root": "/secret/runs"},
    }
    recipe = yaml.safe_dump(settings) + f"quoted: '{secret}/d e'  # from /secret/f\nbare: {secret}/g h  # a comment\n"
    training = Training(
        data="Tiles from /mnt/secret/tiles.",
        steps=1,
        images=1,
        facts={"data": "/mnt/secret/tiles"},
        config_yaml=recipe,
        command=f"python /secret/pretrain.py --data.source '{secret}/my images' --run.root=/secret/runs",
    )
    text = card(
        facts(
            name="/mnt/secret/name",
            training=training,
            results=(Result("/mnt/secret/tiles", "L1", "l1", 1.0),),
            pictures=(Picture(Path("a.png"), "a.png", "of /mnt/secret/tiles"),),
        )
    )
    assert "secret" not in text
    assert "doherty" not in text
    (shown,) = re.findall(r"```yaml\n(.*?)\n```", text, re.DOTALL)
    assert yaml.safe_load(shown) == {
        "data": {"source": "my images", "list": ["a", "b"], "more": "c d"},
        "run": {"root": "runs"},
        "quoted": "d e",
        "bare": "g h",
    }
    assert "# a comment" in shown
    assert textwrap.dedent(shown) == shown
