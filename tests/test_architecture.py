"""What holds between the files: who may import whom, and a few rules of style that a machine can check."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 60

PUBLISHED = {
    f"hub.{name}"
    for name in (
        *("about", "adapt", "card", "card_examples", "config_json", "expressible", "formats", "network"),
        *("pickled_file", "pretrained", "redaction", "repository", "weights_file"),
    )
}
INSIDE: dict[str, set[str]] = {
    "errors": set(),
    "masking": {"errors"},
    "kernels": {"errors", "kernels"},
    "data": {"errors", "data"},
    # A published model is files and dicts, which the models save themselves as and load themselves from.
    "models": {"errors", "masking", "kernels", "models", *PUBLISHED},
    "models.swin_config": {"errors"},
    "evaluation": {"errors", "data", "masking", "models", "evaluation"},
    "training": {"errors", "data", "masking", "kernels", "models", "training"},
    "hub": {"errors", "models.swin_config", *PUBLISHED},
    "hub.export": {"errors", "data.stores", "training", *PUBLISHED},
}
"""Part of the package -> parts that it may import."""

OUTSIDE: dict[str, tuple[str, ...]] = {
    "datasets": ("swin_mim/data/", "tools/bench_loader.py"),
    "fsspec": ("swin_mim/data/",),
    "huggingface_hub": ("swin_mim/hub/",),
    "deepspeed": ("swin_mim/training/sharding.py",),
    "timm": ("swin_mim/data/transforms.py", "swin_mim/data/rand_augment.py", "tools/peers.py"),
    "transformers": ("tools/peers.py",),
    "triton": ("swin_mim/kernels/",),
}
"""Other people's package -> where it may be imported, besides the tests."""


def files(*tops: str) -> list[str]:
    """Paths of all Python files below, relative to the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py"))


PACKAGE = files("swin_mim")
SHIPPED = files("swin_mim", "recipes", "tools")


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def imports(module: ast.Module) -> Iterator[str]:
    """Every imported module, at the top, in a function or for type checking; `from a import b` gives a.b."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where they go"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def part_of(path: str) -> str:
    """The longest key of INSIDE that a file belongs to: "swin_mim/data/loader.py" -> "data"."""
    dotted = path.removeprefix("swin_mim/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return max((part for part in INSIDE if within(dotted, part)), key=len, default=dotted)


def uphill(path: str, module: ast.Module) -> list[str]:
    """Imports of the package's own modules that its direction forbids."""
    allowed = INSIDE[part_of(path)]
    own = [name.removeprefix("swin_mim.") for name in imports(module) if within(name, "swin_mim")]
    return [name for name in own if not any(within(name, part) for part in allowed)]


def misplaced(path: str, module: ast.Module) -> list[str]:
    """Imports of other packages that belong elsewhere."""
    names = [name for name in imports(module) if name.split(".")[0] in OUTSIDE]
    return [name for name in names if not path.startswith(OUTSIDE[name.split(".")[0]])]


def test_there_is_something_to_check() -> None:
    assert {"swin_mim/training/engine.py", "recipes/pretrain.py"} <= set(SHIPPED)
    assert len(PACKAGE) > 20


@pytest.mark.parametrize("path", [path for path in PACKAGE if path != "swin_mim/__init__.py"])
def test_data_flows_down(path: str) -> None:
    assert part_of(path) in INSIDE, f"{path} belongs to no wing"
    assert uphill(path, tree(path)) == []


@pytest.mark.parametrize("path", SHIPPED)
def test_other_packages_stay_in_their_place(path: str) -> None:
    assert misplaced(path, tree(path)) == []
    if path.startswith("swin_mim/"):
        assert not [name for name in imports(tree(path)) if name.split(".")[0] in ("recipes", "tools", "tests")]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("swin_mim/models/swin.py", "import swin_mim.training.loop.trainer"),
        ("swin_mim/models/swin.py", "from swin_mim.data import loader"),
        ("swin_mim/models/swin.py", "from swin_mim.hub import export"),
        ("swin_mim/models/swin.py", "from swin_mim import evaluation"),
        ("swin_mim/data/new.py", "def f():\n    from swin_mim.models.swin import Swin"),
        ("swin_mim/data/new.py", "from swin_mim import masking"),
        ("swin_mim/evaluation/new.py", "from swin_mim.training.config.pretrain_checks import check"),
        ("swin_mim/training/new.py", "if TYPE_CHECKING:\n    from swin_mim.evaluation import validation"),
        ("swin_mim/masking.py", "import importlib\nimportlib.import_module('swin_mim.data.loading.loader')"),
        ("swin_mim/hub/formats.py", "from swin_mim.models.swin import Swin"),
        ("swin_mim/hub/pretrained.py", "from swin_mim.training.config.pretrain_checks import check"),
        ("swin_mim/data/new.py", "from swin_mim import SwinConfig"),
    ],
)
def test_the_check_of_directions_finds_them(path: str, line: str) -> None:
    assert len(uphill(path, ast.parse(line))) == 1


def test_the_check_of_directions_lets_pass_what_may() -> None:
    line = "from swin_mim.weights.formats import rename\nfrom swin_mim.errors import UserError\nimport torch"
    assert uphill("swin_mim/models/swin.py", ast.parse(line)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("swin_mim/training/engine.py", "from datasets import load_dataset"),
        ("swin_mim/models/swin.py", "import huggingface_hub.utils"),
        ("recipes/pretrain.py", "def f():\n    import deepspeed"),
        ("swin_mim/models/swin.py", "import timm"),
        ("tools/reconstruct.py", "from transformers import SwinModel"),
    ],
)
def test_the_check_of_places_finds_them(path: str, line: str) -> None:
    assert len(misplaced(path, ast.parse(line))) == 1


@pytest.mark.parametrize("module", ["swin_mim", "swin_mim.training.config.pretrain_checks"])
def test_what_the_command_line_needs_does_not_wait_for_torch(module: str) -> None:
    heavy = "{'torch', 'torchvision', 'accelerate', 'datasets', 'matplotlib', 'PIL'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_called_utils() -> None:
    assert [path for path in files("swin_mim", "recipes", "tools", "tests") if Path(path).stem == "utils"] == []


@pytest.mark.parametrize("path", SHIPPED)
def test_every_module_says_what_it_is(path: str) -> None:
    if Path(path).name != "__init__.py" or tree(path).body:
        assert ast.get_docstring(tree(path)), f"{path} opens without a docstring"


@pytest.mark.parametrize("path", PACKAGE)
def test_functions_are_short(path: str) -> None:
    long = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > LONGEST:
                long[f"{node.name}, line {node.lineno}"] = length
    assert long == {}


@pytest.mark.parametrize("path", SHIPPED)
def test_nothing_is_loaded_or_caught_loosely(path: str) -> None:
    loose = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            loose.append(f"line {node.lineno}: except:")
        if isinstance(node, ast.Call) and ast.unparse(node.func) != "zip":
            values = [keyword.value for keyword in node.keywords if keyword.arg == "strict"]
            if any(isinstance(value, ast.Constant) and value.value is False for value in values):
                loose.append(f"line {node.lineno}: strict=False")
    assert loose == []
