"""What README promises exists."""

import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split(" #")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
]


def test_the_tree_is_the_tree():
    """Every module of the package is in README's tree, and everything in the tree exists."""
    tree = next(block for _, block in BLOCKS if block.startswith("swin_mim/\n"))
    folder, named = "", set()
    for line in tree.splitlines():
        path = line.split()[0]
        indent = len(line) - len(line.lstrip())
        if indent == 0 and path == "swin_mim/":
            folder = "swin_mim/"
        elif indent == 2 and path.endswith("/"):
            folder = f"swin_mim/{path}"
        else:
            named.add(path if indent == 0 else f"{'swin_mim/' if indent == 2 else folder}{path}")
    assert all((ROOT / path).exists() for path in named), sorted(path for path in named if not (ROOT / path).exists())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "swin_mim").rglob("*.py")}
    assert {path for path in modules if not path.endswith("__init__.py")} <= named


def test_every_file_it_names_exists():
    names = re.findall(r"(?:tests/)?(?:recipes|docs|tools)/[-\w/.]+\.\w+", README) + re.findall(
        r"`((?:simmim|finetune)_\w+\.yaml)`", README
    )
    assert len(names) > 10
    for name in names:
        path = name if "/" in name else f"recipes/configs/{name}"
        assert (ROOT / path).is_file(), name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(COMMANDS), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


RECIPE_COMMANDS = [command for command in COMMANDS if re.search(r"recipes/\w+\.py", command)]


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
def test_recipe_commands_parse(command, tmp_path):
    """The recipe accepts every command line in README, with a real config where it says CONFIG."""
    words = shlex.split(command.replace("...", ""))
    start = next(number for number, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py"))
    recipe, *flags = words[start:]
    flags = ["recipes/configs/simmim_swin_base_192_100ep.yaml" if word == "CONFIG" else word for word in flags]
    subprocess.run(
        [sys.executable, recipe, *flags, "--print-config"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def test_launch_files_are_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    for path in (ROOT / "recipes" / "launch").glob("*.yaml"):
        config = load_config_from_file(str(path))
        assert config.num_processes % 8 == 0, path
        if path.name.startswith("zero"):
            assert (ROOT / config.deepspeed_config["deepspeed_config_file"]).is_file()


def python_examples():
    return [block for language, block in BLOCKS if language == "python"]


def test_the_python_examples_run(tmp_path, monkeypatch):
    """All of them, in a folder that holds what README says a demo and a conversion leave."""
    import torch

    from swin_mim import SimMIM, SwinConfig, block_mask

    monkeypatch.chdir(tmp_path)
    config = SwinConfig(64, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4)
    for folder in ("runs/demo/export", "weights/simmim"):
        SimMIM(config).save_pretrained(folder)
    scope = {"images": torch.randn(1, 3, 64, 64), "mask": block_mask(1, (16, 16), 2, 0.6, seed=0)}
    assert len(python_examples()) == 4
    shapes = []
    for example in python_examples():
        exec(example, scope)
        shapes.append(
            tuple(scope["classifier"](torch.randn(1, 4 if "nir" in example else 3, *SIZES[len(shapes)])).shape)
        )
    assert scope["features"].shape == (1, 8, 8, 32)
    assert len(scope["maps"]) == 2
    assert scope["loss"] > 0
    assert shapes == [(1, 10)] * 4


SIZES = [(64, 64), (64, 64), (64, 64), (224, 224)]
"""Of the images that the classifier of each example takes; the third one has none of its own."""


def test_tool_commands_parse(tmp_path, monkeypatch):
    """Every command line of tools/ in README, up to where it would need its files."""
    commands = [shlex.split(command) for command in COMMANDS if re.search(r"tools/\w+\.py|hub\.push", command)]
    commands = [words for words in commands if not {"python -m tools.bench", "python -m tools.chaos"} & set(words)]
    assert len(commands) == 12

    def run(words):
        words = [str(ROOT / word) if word.startswith(("tools/", "recipes/")) else word for word in words[1:]]
        return subprocess.run([sys.executable, *words], cwd=tmp_path, text=True, capture_output=True)

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(run, commands))
    for done in ended:
        assert done.returncode == 2
        assert re.search("does not exist|is not a folder|there is no file or folder", done.stderr), done.stderr
