import subprocess
import sys
from pathlib import Path

import pytest

from swin_mim.errors import UserError
from swin_mim.training.config.shipped import config_path, recipes_folder


def test_the_recipes_are_found_without_importing_them() -> None:
    code = (
        "import sys; from swin_mim.training.config.shipped import recipes_folder; print(recipes_folder())\n"
        "assert not {'torch', 'swin_mim.recipes'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == recipes_folder()
    assert {"pretrain.py", "finetune.py", "configs", "launch"} <= {path.name for path in recipes_folder().iterdir()}


def test_a_file_or_the_name_of_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = recipes_folder() / "configs" / "demo.yaml"
    assert config_path("demo") == config_path("demo.yaml") == shipped
    assert config_path(shipped) == config_path(str(shipped)) == shipped
    Path("demo").mkdir()
    assert config_path("demo") == shipped
    Path("demo.yaml").touch()
    assert config_path("demo.yaml") == Path("demo.yaml")
    assert config_path("demo") == shipped
    assert config_path("sub/none.yaml") == Path("sub/none.yaml")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("simmim_swin_tiny", "simmim_swin_tiny_192_100ep"),
        ("finetune_demmo.yaml", "finetune_demo"),
        ("qqq", "the shipped ones are blue_marble_20min, continued_swin_base_192, demo, "),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        config_path(name)
    assert str(caught.value).startswith(f"there is no config file {name} and no shipped config of this name: ")
    assert near in str(caught.value)
