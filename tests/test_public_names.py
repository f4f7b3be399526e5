import inspect

import pytest

import swin_mim

NAMES = [
    "SimMIM",
    "Swin",
    "SwinClassifier",
    "SwinConfig",
    "SwinDetector",
    "SwinSegmenter",
    "block_mask",
    "embed",
    "pretrain",
]


def test_the_public_names_are_those_that_the_design_fixes() -> None:
    assert sorted(swin_mim.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(swin_mim, name)
    assert value.__name__ == name
    assert value.__module__.startswith("swin_mim.")
    assert inspect.getdoc(value)


def test_a_star_import_takes_them_all() -> None:
    names: dict[str, object] = {}
    exec("from swin_mim import *", names)
    assert set(NAMES) <= set(names)


def test_dir_lists_them() -> None:
    assert set(NAMES) <= set(dir(swin_mim))


@pytest.mark.parametrize("name", ["SwinV3", "simmim_", "__path_of_nothing__"])
def test_another_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(swin_mim, name)
    assert not hasattr(swin_mim, name)
