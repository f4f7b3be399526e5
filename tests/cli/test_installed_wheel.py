"""The wheel of this tree, installed beside the present dependencies, in a folder outside any clone: every command."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
SHORT = [
    *("--train.duration", "2 steps", "--train.global_batch", "8", "--train.micro_batch", "8", "--train.threads", "1"),
    *("--train.precision", "fp32", "--optim.warmup", "1 step", "--data.workers", "0", "--log.every", "1 step"),
]
TINY = [
    *("--model.name", "swin_nano", "--model.image_size", "32", "--model.window_size", "4", "--model.embed_dim", "8"),
    *("--model.depths", "1", "1", "--model.num_heads", "1", "2", *SHORT),
]
MASKED = ["--mask.unit", "8", "--data.heldout", "4", "--probe.every", "0 steps"]

pytestmark = pytest.mark.slow


class Installed(NamedTuple):
    """An environment that has the wheel, and a folder to work in."""

    python: Path
    folder: Path

    def python_runs(self, *arguments: str, **variables: str) -> str:
        return runs([str(self.python), *arguments], self.folder, **variables)

    def swin_mim(self, *arguments: str) -> str:
        return runs([str(self.python.with_name("swin-mim")), *arguments], self.folder)


def runs(command: Sequence[str], folder: Path, expect: int = 0, **variables: str) -> str:
    """What a command says on both streams."""
    own = ("PYTHONPATH", "PYTHONHOME", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **variables}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def clean_tree(folder: Path) -> Path:
    """A copy of what git tracks, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if not (source := ROOT / name).exists():
            continue  # deleted, and not yet committed
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
    return folder


def environment_without_us(folder: Path) -> Path:
    """A new environment with all installed packages but swin_mim, and nothing downloaded -> its interpreter."""
    present, packages = (
        Path(sysconfig.get_path("purelib")),
        folder / "site-packages",
    )  # by this name dill knows what is installed
    packages.mkdir(parents=True)
    for path in present.iterdir():
        # as links, since a .pth to the whole folder would bring our metadata too
        if "swin_mim" not in path.name:
            (packages / path.name).symlink_to(path)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    variables = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    Path(sysconfig.get_path("purelib", "venv", variables), "packages.pth").write_text(f"{packages}\n")
    return python


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with every dependency, and without swin_mim."""
    return environment_without_us(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def installed(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    work = tmp_path_factory.mktemp("wheel")
    built = clean_tree(work / "tree")  # a build leaves its metadata in the tree
    runs([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(work), str(built)], work)
    python = environment_without_us(work / "environment")
    (wheel,) = work.glob("*.whl")
    runs([*pip, "--python", str(python), "install", *offline, str(wheel)], work)
    return Installed(python, tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def photos(installed: Installed) -> Path:
    """Two classes of 16 images."""
    draw = np.random.default_rng(0)
    for number in range(32):
        picture = Image.fromarray(draw.integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize((50, 40))
        path = installed.folder / "photos" / ("cats", "dogs")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return installed.folder / "photos"


@pytest.fixture(scope="module")
def run(installed: Installed, photos: Path) -> Path:
    """A pretraining on the photos."""
    said = installed.swin_mim("pretrain", "--data.source", "photos", "--run.name", "mine", *TINY, *MASKED)
    assert "finished; see runs/mine" in said
    return installed.folder / "runs" / "mine"


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_wheel_holds_what_a_recipe_needs(installed: Installed) -> None:
    code = "import swin_mim.recipes; print(swin_mim.recipes.__file__)"
    folder = Path(installed.python_runs("-c", code).strip()).parent
    assert installed.python.parents[1] in folder.parents
    shipped = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    ours = {path.relative_to(ROOT / "recipes").as_posix() for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    without_compiled = {name for name in ours if "__pycache__" not in name}
    assert without_compiled <= shipped
    assert (folder.parent / "py.typed").is_file()
    templates = {path.name for path in (ROOT / "swin_mim" / "hub").rglob("*.jinja")}
    assert templates == {path.name for path in (folder.parent / "hub").rglob("*.jinja")}
    for pattern in ("*.cpp", "*.h"):
        sources = {path.name for path in (ROOT / "swin_mim" / "kernels").rglob(pattern)}
        assert sources == {path.name for path in (folder.parent / "kernels").rglob(pattern)} != set()


def test_help_is_quick_and_the_version_is_that_of_the_wheel(installed: Installed) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert "pretrain" in installed.swin_mim("--help")
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 0.5
    said = installed.python_runs("-m", "swin_mim", "--version")
    assert said == installed.swin_mim("--version")
    assert said.startswith("swin-mim 0.")


def test_the_demo_runs_without_any_file(installed: Installed) -> None:
    said = installed.swin_mim("pretrain", *SHORT, "--train.global_batch", "16", "--train.micro_batch", "16")
    assert "finished; see runs/demo" in said
    assert (installed.folder / "runs/demo/export/model.safetensors").is_file()


def test_what_comes_before_a_run(installed: Installed, photos: Path) -> None:
    page = installed.swin_mim("doctor", "photos", "--config", "simmim_swin_tiny_192_100ep", *TINY, *MASKED[:4])
    assert "A run can start" in page
    assert "  swin-mim pretrain --config simmim_swin_tiny_192_100ep --data.source photos" in page
    assert "--data.std" in installed.swin_mim("stats", "photos", "--workers", "0")
    assert "--data.source packed" in installed.swin_mim("prepare", "photos", "packed", "--size", "40", "--workers", "0")


def test_what_comes_after_a_run(installed: Installed, run: Path) -> None:
    said = installed.swin_mim("probe", "runs/mine", "--source", "photos", "--workers", "0")
    assert "stage 2" in said
    said = installed.swin_mim("convert", "runs/mine", "native", "--to", "timm")
    assert "differ by" in said
    assert (run / "report.html").is_file()
    assert installed.swin_mim("report", "runs/mine").startswith("runs/mine/report.html (")
    assert "step 2 of runs/mine" in installed.swin_mim("replay", "runs/mine", "2")
    assert "usage: swin-mim transfer" in installed.swin_mim("transfer", "--help")
    labelled = ["--model.pretrained", "runs/mine", "--data.source", "photos", "--data.validation", "photos"]
    size = ["--model.image_size", "32", "--model.window_size", "4"]
    said = installed.swin_mim("finetune", *labelled, *size, *SHORT)
    assert "finished; see" in said


def test_a_copied_recipe_runs_with_another_loss(installed: Installed, run: Path) -> None:
    installed.swin_mim("copy", "pretrain.py", "mine")
    recipe = installed.folder / "mine" / "pretrain.py"
    text = recipe.read_text()
    assert text.count(LOSS) == 1
    recipe.write_text(text.replace(LOSS, f"2 * {LOSS}"))
    flags = ["--data.source", "../photos", "--run.name", "twice", *TINY, *MASKED]
    runs([str(installed.python), "pretrain.py", "--config", "demo.yaml", *flags], recipe.parent)
    plain, changed = (metrics(path) for path in (run, recipe.parent / "runs" / "twice"))
    first = [next(row["loss"] for row in rows if "loss" in row) for rows in (plain, changed)]
    assert first[1] == pytest.approx(2 * first[0])


LOSS = "trained.model("
"""Where the loss begins in recipes/pretrain.py."""


def test_accelerate_starts_a_shipped_recipe_with_a_shipped_config(installed: Installed, photos: Path) -> None:
    said = installed.python_runs(
        *("-m", "accelerate.commands.launch", "-m", "swin_mim.recipes.pretrain"),
        *("--config", "simmim_swin_tiny_192_100ep", "--data.source", "photos", "--run.name", "launched"),
        *(*TINY, *MASKED, "--train.duration", "1 step", "--optim.warmup", "0 steps"),
    )
    assert "finished; see runs/launched" in said


def test_from_python(installed: Installed, photos: Path) -> None:
    names, values = [flag.removeprefix("--") for flag in TINY if flag.startswith("--")], dict[str, Any]()
    for name, value in zip(names, groups(TINY), strict=True):
        values[name] = value
    values |= {"mask.unit": 8, "data.heldout": 4, "run.name": "called"}
    code = f"import swin_mim\nprint(swin_mim.pretrain('photos', config='simmim_swin_tiny_192_100ep', **{values!r}))"
    installed.python_runs("-c", code)
    assert (installed.folder / "runs/called/export/model.safetensors").is_file()


def groups(flags: Sequence[str]) -> list[Any]:
    """The values of each flag as Python has them: "1 step", 8, [1, 2]."""
    found: list[list[Any]] = []
    for word in flags:
        if word.startswith("--"):
            found.append([])
        else:
            found[-1].append(yaml.safe_load(word))
    return [values[0] if len(values) == 1 else values for values in found]


def test_a_checkout_on_pythonpath_ends_with_its_export(bare: Path, tree: Path, tmp_path: Path) -> None:
    """Nothing installed, and so no metadata of the package anywhere."""
    path = {"PYTHONPATH": str(tree)}
    assert runs([str(bare), "-m", "swin_mim", "--version"], tmp_path, **path) == "swin-mim 0+unknown\n"
    runs([str(bare), str(tree / "recipes" / "pretrain.py"), *SHORT, "--run.name", "bare"], tmp_path, **path)
    assert (tmp_path / "runs/bare/export/model.safetensors").is_file()
    assert "swin_mim 0+unknown" in (tmp_path / "runs/bare/export/README.md").read_text()
