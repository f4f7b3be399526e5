"""Checks what holds between the files: who may import whom, and a few rules of style that a machine can check."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LENGTH, PARAMETERS = 60, 8
RECIPE_LENGTH, MAIN_LENGTH = 150, 100
SIDE_BY_SIDE = 15

ROOMS = ("recipes", "cli", "evaluation", "training", "models", "hub", "weights", "data", "kernels", "")
"""A file imports from its own room and from those further down, of which "" is the lowest."""
GROUND = ("architecture", "masking", "errors", "files", "redaction", "counts", "threads", "__version__")
"""What is in "". The other names of `swin_mim` itself are for its users, so they lie above the rooms, as recipes do."""

OUTSIDE: dict[str, tuple[str, ...]] = {
    "datasets": ("swin_mim/data/", "tools/"),
    "fsspec": ("swin_mim/data/",),
    "huggingface_hub": ("swin_mim/hub/", "swin_mim/weights/"),
    "deepspeed": (),
    "timm": ("swin_mim/data/transforms/", "swin_mim/models/targets/", "swin_mim/cli/convert/", "tools/"),
    "transformers": ("swin_mim/cli/convert/", "tools/"),
    "triton": ("swin_mim/kernels/",),
}
"""Other people's package -> where it may be imported, besides the tests."""


def files(*tops: str) -> list[str]:
    """Paths of all Python files below, relative to the repository."""
    found = sorted(path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py"))
    return [path for path in found if not path.startswith("swin_mim/recipes/")]  # the same files as recipes/


PACKAGE = files("swin_mim")
RECIPES = files("recipes")
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


def functions(path: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def room_of(dotted: str) -> str:
    """ "swin_mim.data.loading.loader" -> "data", "swin_mim.errors" -> "", and what is for the outside -> "recipes"."""
    rest = dotted.split(".")[1:]
    if rest and rest[0] in ROOMS:
        return rest[0]
    return "" if rest and rest[0] in GROUND else "recipes"


def dotted(path: str) -> str:
    """ "swin_mim/data/__init__.py" -> "swin_mim.data.__init__" """
    return path.removesuffix(".py").replace("/", ".")


def uphill(path: str, module: ast.Module) -> list[str]:
    """Imports of the package's own modules that lie further up."""
    allowed = ROOMS[ROOMS.index(room_of(dotted(path))) :]
    own = [name for name in imports(module) if name.split(".")[0] in ("swin_mim", "recipes")]
    return [name for name in own if room_of(name) not in allowed]


def misplaced(path: str, module: ast.Module) -> list[str]:
    """Imports of other packages that belong elsewhere."""
    names = [name for name in imports(module) if name.split(".")[0] in OUTSIDE]
    return [name for name in names if not path.startswith(OUTSIDE[name.split(".")[0]])]


def imported_files(path: str, module: ast.Module) -> set[str]:
    """Paths of the package's files that a file imports, its own not among them."""
    found = set()
    for name in imports(module):
        steps = name.split(".")
        while steps:
            place = "/".join(steps) + ".py"
            if place in PACKAGE:
                found.add(place)
                break
            steps.pop()
    return found - {path}


def mutual(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Pairs of files that import each other."""
    return [(a, b) for a in graph for b in graph[a] if a < b and a in graph.get(b, ())]


def test_there_is_something_to_check() -> None:
    assert {"swin_mim/training/loop/trainer.py", "recipes/pretrain.py", "tools/bench/commands/step.py"} <= set(SHIPPED)
    assert len(PACKAGE) > 20
    assert {room_of(dotted(path)) for path in SHIPPED if not path.startswith("tools/")} == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in SHIPPED if not path.startswith("tools/")])
def test_imports_go_down(path: str) -> None:
    assert path.count("/") < 2 or path.split("/")[1] in ROOMS, f"{path} is in no room"
    assert uphill(path, tree(path)) == []


def test_no_two_files_import_each_other() -> None:
    assert mutual({path: imported_files(path, tree(path)) for path in PACKAGE}) == []


@pytest.mark.parametrize(
    "path", [path for path in PACKAGE if path.startswith(("swin_mim/data/sources/", "swin_mim/data/loading/"))]
)
def test_what_is_not_streamed_does_not_pass_through_streaming(path: str) -> None:
    """Where a data set is opened, streaming may be imported, in the function that opens a streamed one."""
    assert [name for name in at_the_top(tree(path)) if name.startswith("swin_mim.data.streaming")] == []
    if path != "swin_mim/data/sources/open.py":
        assert [name for name in imports(tree(path)) if name.startswith("swin_mim.data.streaming")] == []


def at_the_top(module: ast.Module) -> list[str]:
    """What is imported as soon as a module is."""
    loaded = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return list(imports(ast.Module(loaded, [])))


@pytest.mark.parametrize("path", SHIPPED)
def test_other_packages_stay_in_their_place(path: str) -> None:
    assert misplaced(path, tree(path)) == []
    if path.startswith("swin_mim/"):
        assert not [name for name in imports(tree(path)) if name.split(".")[0] in ("recipes", "tools", "tests")]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("swin_mim/models/swin.py", "import swin_mim.training.loop.trainer"),
        ("swin_mim/models/swin.py", "from swin_mim.training.run import publishing"),
        ("swin_mim/models/swin.py", "from swin_mim import evaluation"),
        ("swin_mim/hub/new.py", "from swin_mim.models import simmim"),
        ("swin_mim/data/new.py", "def f():\n    from swin_mim.models.swin import Swin"),
        ("swin_mim/data/loading/new.py", "from swin_mim.weights import formats"),
        ("swin_mim/training/new.py", "from swin_mim.evaluation.probes import score"),
        ("swin_mim/training/new.py", "if TYPE_CHECKING:\n    from swin_mim.evaluation import validation"),
        ("swin_mim/evaluation/new.py", "from swin_mim.cli.main import main"),
        ("swin_mim/cli/new.py", "from swin_mim.recipes import pretrain"),
        ("swin_mim/masking.py", "import importlib\nimportlib.import_module('swin_mim.data.loading.loader')"),
        ("swin_mim/weights/formats.py", "from swin_mim.hub.card import card"),
        ("swin_mim/data/new.py", "from swin_mim import SwinConfig"),
        ("swin_mim/data/new.py", "import swin_mim"),
    ],
)
def test_the_check_of_directions_finds_them(path: str, line: str) -> None:
    assert len(uphill(path, ast.parse(line))) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "swin_mim/models/swin.py",
            "from swin_mim.weights.formats import rename\nfrom swin_mim.errors import UserError",
        ),
        ("swin_mim/data/new.py", "from swin_mim import masking\nfrom swin_mim.data import loading\nimport torch"),
        ("swin_mim/evaluation/new.py", "from swin_mim.training.config.parsing import from_mapping"),
        ("recipes/pretrain.py", "from swin_mim.cli import main\nfrom swin_mim import Swin"),
    ],
)
def test_the_check_of_directions_lets_pass_what_may(path: str, line: str) -> None:
    assert uphill(path, ast.parse(line)) == []


def test_the_check_of_circles_finds_them() -> None:
    a, b, c = "swin_mim/errors.py", "swin_mim/masking.py", "swin_mim/files.py"
    lines = {
        a: "def f():\n    from swin_mim.masking import block_mask",
        b: "import swin_mim.errors",
        c: "from swin_mim import errors",
    }
    graph = {path: imported_files(path, ast.parse(line)) for path, line in lines.items()}
    assert graph == {a: {b}, b: {a}, c: {a}}
    assert mutual(graph) == [(a, b)]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("swin_mim/training/run/run.py", "from datasets import load_dataset"),
        ("swin_mim/models/swin.py", "import huggingface_hub.utils"),
        ("recipes/pretrain.py", "def f():\n    import deepspeed"),
        ("swin_mim/models/swin.py", "import timm"),
        ("swin_mim/cli/probe.py", "from transformers import SwinModel"),
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


def test_no_folder_is_a_heap() -> None:
    folders = Counter(Path(path).parent.as_posix() for path in SHIPPED if Path(path).name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > SIDE_BY_SIDE} == {}


@pytest.mark.parametrize("path", SHIPPED)
def test_every_module_says_what_it_is(path: str) -> None:
    if Path(path).name != "__init__.py" or tree(path).body:
        assert ast.get_docstring(tree(path)), f"{path} opens without a docstring"


@pytest.mark.parametrize("path", SHIPPED)
def test_functions_are_short(path: str) -> None:
    lengths = {f"{node.name}, line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)}
    limits = {name: MAIN_LENGTH - 1 if path in RECIPES and name.startswith("main,") else LENGTH for name in lengths}
    assert {name: length for name, length in lengths.items() if length > limits[name]} == {}


@pytest.mark.parametrize("path", RECIPES)
def test_recipes_are_a_page(path: str) -> None:
    assert len((ROOT / path).read_text().splitlines()) < RECIPE_LENGTH


@pytest.mark.parametrize("path", [path for path in SHIPPED if not path.startswith("swin_mim/kernels/")])
def test_functions_take_few_arguments(path: str) -> None:
    many = {}
    for node in functions(path):
        if node.name == "from_pretrained":  # its arguments are those of the ecosystem, and the settings of the model
            continue
        signature = node.args
        names = [each.arg for each in (*signature.posonlyargs, *signature.args, *signature.kwonlyargs)]
        names += [each.arg for each in (signature.vararg, signature.kwarg) if each]
        if len([name for name in names if name not in ("self", "cls")]) > PARAMETERS:
            many[f"{node.name}, line {node.lineno}"] = names
    assert many == {}


@pytest.mark.parametrize("path", SHIPPED)
def test_nothing_is_loaded_or_caught_loosely(path: str) -> None:
    loose = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            loose.append(f"line {node.lineno}: except:")
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            loose.append(f"line {node.lineno}: sys.path")
        if isinstance(node, ast.Call) and ast.unparse(node.func) != "zip":
            values = [keyword.value for keyword in node.keywords if keyword.arg == "strict"]
            if any(isinstance(value, ast.Constant) and value.value is False for value in values):
                loose.append(f"line {node.lineno}: strict=False")
    assert loose == []
