"""`python -m tools.bench embed` on a few images."""

import pytest

from swin_mim.errors import UserError
from tools.bench.commands.embed import SYSTEMS, embed
from tools.bench.settings import EMBEDDERS

TINY = [
    *("embed", "--model", "swin_nano", "--image-size", "32", "--window-size", "4", "--batch", "4", "--images", "10"),
    *("--sizes", "60x50", "--device", "cpu", "--threads", "1", "--repeats", "1", "--precision", "fp32"),
]


@pytest.fixture(autouse=True)
def _no_accelerator():
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
def test_all_systems_give_the_same_features(report_of):
    """Ours the bits of the plain loop; timm's differ by its own transforms, which the page says."""
    report, tables = report_of(*TINY, "--workers", "0")
    assert report["images"] == 10
    rows = {row["system"]: row for row in report["results"]}
    assert set(rows) == set(EMBEDDERS) == set(SYSTEMS)
    assert rows["ours"]["difference"] == rows["page"]["difference"] == rows["loop"]["difference"] == 0
    assert 0 <= rows["timm"]["difference"] < 1
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"][0])
        assert row["of_first"] == pytest.approx(row["images_per_second"] / rows["loop"]["images_per_second"])
    assert "of loop" in tables


def test_sizes_that_cannot_be_are_refused(bench):
    _, settings = bench.parse([*TINY, "--image-size", "33"])
    with pytest.raises(UserError, match="image_size 33 is not a multiple of patch_size 4"):
        embed(settings)
