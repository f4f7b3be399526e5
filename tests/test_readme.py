"""What README promises exists."""

import re
import shlex
import subprocess
import sys
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
    names = re.findall(r"(?:recipes|docs|tools)/[\w/.]+\.\w+", README) + re.findall(r"`(simmim_\w+\.yaml)`", README)
    assert len(names) > 10
    for name in names:
        path = name if "/" in name else f"recipes/configs/{name}"
        assert (ROOT / path).is_file(), name


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(COMMANDS), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


RECIPE_COMMANDS = [command for command in COMMANDS if "recipes/pretrain.py" in command]


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
def test_recipe_commands_parse(command, tmp_path):
    """The recipe accepts every command line in README, with a real config where it says CONFIG."""
    words = shlex.split(command.replace("...", ""))
    flags = words[words.index("recipes/pretrain.py") + 1 :]
    flags = ["recipes/configs/simmim_swin_base_192_100ep.yaml" if word == "CONFIG" else word for word in flags]
    subprocess.run(
        [sys.executable, "recipes/pretrain.py", *flags, "--print-config"],
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


def test_the_python_example_runs(tmp_path):
    import torch
    from safetensors.torch import save_file

    from swin_mim import SimMIM, SwinConfig

    example = next(block for language, block in BLOCKS if language == "python")
    model = SimMIM(SwinConfig.named("swin_tiny", image_size=192, window_size=6))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    example = re.sub(r'"runs/.*?"', repr(str(tmp_path / "model.safetensors")), example)
    scope = {"images": torch.randn(1, 3, 192, 192)}
    exec(example, scope)
    assert scope["features"].shape == (1, 6, 6, 768)
    assert len(scope["maps"]) == 4
