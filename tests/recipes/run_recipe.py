"""Runs recipes as the tests do: by `tools.forked`, on the CPU."""

from pathlib import Path

from tools import forked

RECIPES = Path(__file__).parents[2] / "recipes"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def run(script: Path, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Exit code, and what was written to both outputs. `folder` is the working directory."""
    (end,) = forked.run([str(script), *arguments], folder, environment=ENVIRONMENT, timeout=240)
    return end


def command(*words: str, folder: Path, variables: dict[str, str] | None = None) -> tuple[int, str]:
    """Run swin-mim -> exit code, and what was written to both outputs."""
    words = ("-m", "swin_mim", *words)
    (end,) = forked.run(words, folder, environment=ENVIRONMENT, variables=variables, timeout=240)
    return end


def start(script: Path, arguments: list[str], folder: Path, variables: dict[str, str] | None = None) -> forked.Started:
    """Leave it running."""
    return forked.start([str(script), *arguments], folder, environment=ENVIRONMENT, variables=variables)
