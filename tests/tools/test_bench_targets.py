"""`python -m tools.bench.targets`, at a tiny size."""

import json

from tools.bench import targets


def test_every_target_is_measured_beside_the_others(tmp_path, capsys):
    small = ["--model", "swin_nano", "--image-size", "64", "--window-size", "4", "--batch", "2", "--device", "cpu"]
    targets.main([*small, "--threads", "1", "--repeats", "2", "--json", str(tmp_path / "targets.json")])
    found = json.loads((tmp_path / "targets.json").read_text())["targets"]
    assert list(found) == ["pixels", "normalized", "hog", "stages", "hog, stages", "teacher"]
    assert all(row["seconds"] > 0 for row in found.values())
    assert found["pixels"]["ratio"] == 1
    plain = found["pixels"]
    assert found["normalized"]["parameters"] == plain["parameters"]
    for name in ("hog", "stages", "hog, stages", "teacher"):
        assert found[name]["parameters"] > plain["parameters"]
        assert found[name]["kept_gb"] > plain["kept_gb"]
    assert found["teacher"]["held_gb"] * 1e9 == (
        16 * found["teacher"]["parameters"] + 4 * found["teacher"]["frozen_parameters"]
    )
    assert found["teacher"]["frozen_parameters"] > 0 == found["stages"]["frozen_parameters"]
    output = capsys.readouterr().out
    assert "hog, stages" in output


def test_the_device_need_not_be_named():
    assert targets.check(targets.parse([])).type in ("cpu", "cuda")
