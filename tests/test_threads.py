"""swin_mim says how torch's CPU threads wait, before torch is loaded and where nobody else did."""

import json
import os
import subprocess
import sys

import pytest

from swin_mim.threads import VARIABLES

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def after(statements: str, **variables: str) -> dict[str, str]:
    """The variables of a new process in which these statements ran."""
    plain = {key: value for key, value in os.environ.items() if key not in NAMES}
    program = f"{statements}\nimport json, os\nprint(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain | variables, capture_output=True, text=True, check=True
    )
    return {key: value for key, value in json.loads(done.stdout).items() if key in NAMES}


def test_importing_the_package_says_it() -> None:
    assert after("import swin_mim") == VARIABLES


@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_a_recipe_says_it_before_torch_is_loaded(recipe: str) -> None:
    stop_at_torch = "import sys\nclass Stop:\n def find_spec(self, name, *_):\n  if name == 'torch': raise KeyError\n"
    begin = f"{stop_at_torch}sys.meta_path.insert(0, Stop())\nimport runpy\n"
    run = f"try: runpy.run_path('recipes/{recipe}.py')\n"
    assert after(f"{begin}{run}except KeyError: pass\nelse: raise SystemExit('no torch')") == VARIABLES


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
def test_what_the_user_chose_stays(given: dict[str, str]) -> None:
    assert after("import swin_mim", **given) == given


def test_it_claims_nothing_when_torch_is_there_already() -> None:
    assert after("import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\nimport swin_mim") == {}
