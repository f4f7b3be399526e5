"""What the benchmark needs where nothing of ours is installed: torch, numpy, triton, and what these bring."""

import subprocess
import sys

import pytest

from tools.bench.commands.loader import SYSTEMS as OPENERS
from tools.bench.peers import BUILDERS
from tools.bench.settings import LOADERS, SYSTEMS
from tools.clone import ROOT, environment

LACKING = ("PIL", "safetensors", "huggingface_hub", "datasets", "yaml", "tqdm", "accelerate", "timm", "transformers")
CODE = f"""
import importlib, sys
for name in {LACKING}:
    sys.modules[name] = None  # as if it were not installed
for command in ("step", "attention", "curves"):
    importlib.import_module("tools.bench.commands." + command)
from tools.bench.__main__ import parse
parse(["step", "--device", "cpu"])
"""


@pytest.mark.slow
def test_step_attention_and_curves_need_torch_alone():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_names_of_the_systems_are_those_that_are_built():
    assert set(SYSTEMS) == set(BUILDERS)
    assert set(LOADERS) == set(OPENERS)
