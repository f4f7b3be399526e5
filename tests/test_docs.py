"""What README and docs/ promise exists: commands parse, examples run, names, links and messages are there."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

import swin_mim
from swin_mim import SimMIM, SwinClassifier, SwinConfig, block_mask, errors
from swin_mim.cli.main import COMMANDS
from swin_mim.training.config.fields import RENAMED
from swin_mim.training.config.shipped import config_path
from tools.docs import architecture, configuration

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
BLOCKS = [
    (name, language, block)
    for name, text in TEXTS.items()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
]
COMMANDS_OF_DOCS = sorted(
    {
        command
        for _, language, block in BLOCKS
        if language == "bash"
        for line in block.replace("\\\n", " ").splitlines()
        if (command := " ".join(re.split(r"\s#", line)[0].split()))
    }
)
RECIPES = ("pretrain", "finetune", "segment", "detect")


def commands(pattern: str) -> list[str]:
    return [command for command in COMMANDS_OF_DOCS if re.match(pattern, command)]


LAUNCHED_TOOLS = commands("accelerate launch .*-m swin_mim ")
RECIPE_COMMANDS = commands(
    rf"swin-mim ({'|'.join(RECIPES)})\b|accelerate launch (?!.*-m swin_mim )|(\w+=\w+ )?torchrun"
)
TOOL_COMMANDS = [command for command in commands("swin-mim ") if command not in RECIPE_COMMANDS] + LAUNCHED_TOOLS
DEVELOPERS = commands(r"python -m tools\.")
PLAIN = commands(r"make \w|pip install |pytest |export \w+=|python -m venv ")


def test_readme_is_short():
    assert len(TEXTS["README.md"]) < 10_000


def test_every_command_is_of_a_kind_that_is_tested():
    assert len(RECIPE_COMMANDS) > 15
    assert len(TOOL_COMMANDS) > 15
    assert set(COMMANDS_OF_DOCS) == {*RECIPE_COMMANDS, *TOOL_COMMANDS, *DEVELOPERS, *PLAIN}
    assert {"make demo", "make test"} <= set(commands("make")) <= set(COMMANDS_OF_DOCS)
    assert {command.split()[1] for command in [*RECIPE_COMMANDS, *TOOL_COMMANDS]} >= set(COMMANDS)


# --- names, links, targets


def test_every_file_that_they_name_exists():
    names = {
        (page, name)
        for page, text in TEXTS.items()
        for name in re.findall(r"(?<![\w/.])(?:recipes|docs|tools|tests|swin_mim)/[-\w/]*\w\.\w+", text)
    }
    assert len(names) > 10
    assert [(page, name) for page, name in sorted(names) if not (ROOT / name).is_file()] == []


def test_every_config_that_they_name_is_shipped():
    names = {name for text in TEXTS.values() for name in re.findall(r"\b(?:simmim_swin|finetune_swin)_\w+", text)}
    assert len(names) == 9
    for name in names:
        assert config_path(name).is_file()
    shipped = {path.stem for path in (ROOT / "recipes" / "configs").glob("*.yaml")}
    assert [name for name in shipped if f"`{name}`" not in TEXTS["docs/configuration.md"]] == []


def test_links_lead_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append((page.name, target))
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Anchors of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_index_names_every_page():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in TEXTS["docs/README.md"]} == set()
    assert {name for name in pages if f"](docs/{name})" not in TEXTS["README.md"]} <= {
        "dense-protocol.md",
        "performance-log.md",
        "pretraining-gain.md",
        "pretraining-protocol.md",
        "transfer-protocol.md",
    }


def test_the_former_commands_are_named_where_they_belong():
    old = re.compile(r"python (?:tools|recipes)/\w+|accelerate launch recipes/")
    assert {page for page, text in TEXTS.items() if old.search(text)} == {"CONTRIBUTING.md", "docs/quickstart.md"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in commands("make "):
        assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE), command


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        extra for text in TEXTS.values() for names in re.findall(r"\[([\w,]+)\]'", text) for extra in names.split(",")
    }
    assert {"demo", "raster", "fast"} <= named <= set(extras)


def test_the_changelog_names_every_renamed_setting():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert RENAMED
    assert [old for old, new in RENAMED.items() if f"| setting `{old}` | `{new}`" not in changelog] == []


def test_the_citation_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors", "type"} <= set(citation)
    assert "2111.09886" in citation["references"][0]["identifiers"][0]["value"]


# --- generated or copied from the code


@pytest.mark.parametrize("page", [architecture, configuration])
def test_pages_made_from_the_code_are_up_to_date(page):
    """That of the settings, and that of the tree: every module is in it, and everything in it exists."""
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run python -m tools.docs"


def test_every_folder_of_the_tree_exists():
    assert [folder for folder in architecture.FOLDERS if not (ROOT / folder).is_dir()] == []


def test_the_exit_codes_are_those_of_the_code():
    table = re.findall(r"^\| (\d+) \|", TEXTS["docs/reliability.md"], flags=re.MULTILINE)
    codes = [value for name, value in vars(errors).items() if name.isupper() and isinstance(value, int)]
    assert sorted(map(int, table)) == sorted([0, *codes])


def test_the_messages_of_troubleshooting_are_those_of_the_code():
    page = TEXTS["docs/troubleshooting.md"]
    rows = [row.split(" | ")[0] for row in re.findall(r"^\| (`.*)$", page, flags=re.MULTILINE)]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 40
    said = "\n".join(texts_of_the_code())
    parts = {part.strip() for message in messages for part in message.split("…") if len(part.strip()) > 1}
    assert sorted(part for part in parts if part not in said) == []


def texts_of_the_code() -> Iterator[str]:
    """Every string of the package, the parts that are filled in as "…"."""
    for path in (ROOT / "swin_mim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[.\w]*[sdgf]", "…", node.value)


# --- commands


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
def test_recipe_commands_parse(command, tmp_path, monkeypatch, capsys):
    """The recipe accepts every command line, and so does the launcher before it."""
    monkeypatch.chdir(tmp_path)
    recipe, flags = recipe_and_flags(command)
    assert exit_code(recipe, [*flags, "--print-config"]) == 0
    said = capsys.readouterr().out
    assert "--run.name" in said if "--help" in flags else yaml.safe_load(said)["run"]["name"]


def recipe_and_flags(command: str) -> tuple[str, list[str]]:
    """The words of a command -> ("pretrain", the recipe's own flags), through the launcher's own parser."""
    launcher, *words = shlex.split(command.removeprefix("ACCELERATE_USE_CPU=true "))
    if launcher == "swin-mim":
        return words[0], words[1:]
    if launcher == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launched = launch_command_parser().parse_args(words[1:])
    else:
        from torch.distributed.run import get_args_parser

        launched = get_args_parser().parse_args(words)
    assert launched.module
    package, _, recipe = launched.training_script.rpartition(".")
    assert package == "swin_mim.recipes"
    return recipe, launched.training_script_args


def exit_code(name: str, words: list[str]) -> int:
    """Run a subcommand of swin-mim in this process."""
    command = COMMANDS[name]
    try:
        return getattr(import_module(command.module), command.function)(words) or 0
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize("command", TOOL_COMMANDS)
def test_other_commands_parse(command, tmp_path, monkeypatch, capsys):
    """Up to where they would need their files; what needs none runs."""
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(re.sub("^accelerate launch .*-m swin_mim", "swin-mim", command))[1:]
    words = ["1e-3" if word in ("R", "N") else word for word in words]
    code = exit_code(name, words)
    if name == "copy":
        assert code == 0
        assert all(Path(file).is_file() for file in capsys.readouterr().out.split())
        return
    if "--on" in words:
        assert code == 0
        return
    assert code == 2
    said = capsys.readouterr()
    assert re.search(
        r"does not exist|is not a folder|there is no file or folder|data.source '\w+' cannot be loaded",
        said.err + said.out,
    )


@pytest.mark.parametrize("command", DEVELOPERS)
def test_commands_for_developers_parse(command):
    from tools import dense_study
    from tools.bench import __main__ as bench
    from tools.bench import planned, targets
    from tools.bench.gpu import __main__ as gpu
    from tools.chaos import __main__ as chaos
    from tools.pretraining_study import __main__ as pretraining_study
    from tools.pretraining_study import pictures

    module, *words = shlex.split(command)[2:]
    if module == "tools.docs":
        assert not words
        return
    modules = {"tools.bench": bench, "tools.bench.gpu": gpu, "tools.bench.planned": planned, "tools.chaos": chaos}
    modules |= {"tools.dense_study": dense_study, "tools.bench.targets": targets}
    modules |= {"tools.pretraining_study": pretraining_study, "tools.pretraining_study.pictures": pictures}
    assert modules[module].parse(words)


def test_launch_files_are_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    for path in (ROOT / "recipes" / "launch").glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert config.num_processes % 8 == 0, path
        if path.name.startswith("zero"):
            assert (ROOT / config.deepspeed_config["deepspeed_config_file"]).is_file()


# --- Python


EXAMPLES = {
    "README.md": 1,
    "docs/dense-tasks.md": 1,
    "docs/embed-and-predict.md": 1,
    "docs/export.md": 1,
    "docs/python-api.md": 4,
    "docs/quickstart.md": 1,
    "docs/weights-and-hub.md": 4,
}


def python_examples() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, language, block in BLOCKS:
        if language == "python":
            found.setdefault(name, []).append(block)
    return found


def test_every_page_with_python_is_known():
    assert {name: len(blocks) for name, blocks in python_examples().items()} == EXAMPLES


@pytest.fixture
def left_by_a_demo(tmp_path, monkeypatch):
    """The names that the examples use, in a folder that holds what the pages say a demo and a conversion leave."""
    monkeypatch.chdir(tmp_path)
    config = SwinConfig(64, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4)
    for folder in ("runs/demo/export", "runs/mine/export", "weights/simmim"):
        SimMIM(config).save_pretrained(folder)
    Path("photos").mkdir()
    Image.new("RGB", (90, 70), "green").save("photos/a.jpg")
    return {"mask": block_mask(1, (16, 16), 2, 0.6, seed=0)}


def test_the_python_of_weights_and_hub_runs(left_by_a_demo):
    import torch

    scope, shapes = left_by_a_demo, []
    sizes = [(64, 64), (64, 64), (64, 64), (224, 224)]  # the third example has no classifier of its own
    for example, size in zip(python_examples()["docs/weights-and-hub.md"], sizes, strict=True):
        exec(example, scope)
        images = torch.randn(1, 4 if "nir" in example else 3, *size)
        shapes.append(tuple(scope["classifier"](images).shape))
    assert scope["features"].shape == (1, 8, 8, 32)
    assert len(scope["maps"]) == 2
    assert scope["out"].loss > 0
    assert shapes == [(1, 10)] * 4


@pytest.mark.parametrize("page", [name for name in EXAMPLES if name != "docs/weights-and-hub.md"])
def test_the_python_of_other_pages_runs(page, left_by_a_demo, monkeypatch):
    monkeypatch.setattr(swin_mim, "pretrain", pretrain_in_name)
    if page == "docs/export.md":
        export_a_classifier()
    for example in python_examples()[page]:
        exec(example, left_by_a_demo)
    if page == "docs/python-api.md":
        check_the_comments(left_by_a_demo)
    elif page == "docs/dense-tasks.md":
        assert [tuple(level.shape) for level in left_by_a_demo["maps"]] == [(1, 16, 16, 16), (1, 32, 8, 8)]
    elif page == "docs/export.md":
        assert left_by_a_demo["logits"].shape == (2, 2)
        assert left_by_a_demo["labels"] == ["cat", "dog"]
    elif page == "docs/embed-and-predict.md":
        assert left_by_a_demo["found"].features.shape == (1, 32)
    else:
        assert left_by_a_demo["features"].shape == (1, 8, 8, 32)


def export_a_classifier() -> None:
    """As the page's second command does."""
    model = SwinClassifier(SwinConfig(32, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4), 2)
    model.labels = ("cat", "dog")
    model.save_pretrained("runs/mine_fine/export")
    words = ["runs/mine_fine", "--to", "onnx", "--preprocess", "nhwc", "--out", "classifier.onnx"]
    assert exit_code("export", words) == 0


def check_the_comments(scope: dict[str, Any]) -> None:
    """The shapes that the page says."""
    assert scope["features"].shape == (2, 6, 6, 768)
    assert scope["images"].shape == (2, 3, 96, 160)
    assert [tuple(level.shape) for level in scope["maps"][:2]] == [(2, 96, 48, 40), (2, 192, 24, 20)]
    assert scope["out"].pixels.shape == (2, 3, 192, 192)
    assert scope["out"].loss.shape == ()


def pretrain_in_name(source: str, *, config: str, **settings: Any) -> SimpleNamespace:
    """The settings are those of a pretraining; the run itself is the notebook's to show."""
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert exit_code("pretrain", ["--config", config, "--data.source", source, *flags, "--print-config"]) == 0
    run = Path("runs") / settings["run.name"]
    return SimpleNamespace(run=run, export=run / "export", finished=True, metrics=[], pictures=[])
