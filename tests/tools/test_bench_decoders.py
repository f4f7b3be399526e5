"""`python -m tools.bench decoders` on a few images and steps."""

import pytest

TINY = ["decoders", "--image-size", "32", "--window-size", "2", "--batch", "2", "--images", "20", "--workers", "0"]
HERE = ["--device", "cpu", "--threads", "1"]


def test_decoders_are_compared_with_each_other_and_with_seeds(report_of, bench, monkeypatch):
    monkeypatch.setattr(bench.decoders, "SMOOTH", 2)
    report, tables = report_of(*TINY, *HERE, "--steps", "3", "--seeds", "0,5")
    runs = {(run["decoder"], run["seed"]): run for run in report["runs"]}
    assert set(runs) == {(decoder, seed) for decoder in ("smaller", "whole") for seed in (0, 5)}
    assert all(len(run["losses"]) == 3 and run["heldout"] > 0 for run in runs.values())
    apart = {(entry["of"], entry["and"]): entry for entry in report["differences"]}
    assert len(apart) == 4
    decoders = apart["smaller, seed 0", "whole, seed 0"]
    assert 0 < decoders["mean"] < apart["whole, seed 0", "whole, seed 5"]["mean"]
    assert "between" in tables


def test_whole_means_whole(bench, tmp_path):
    source = bench.decoders.open_source(str(bench.images.make_images(tmp_path, 2)))
    whole = bench.decoders.Whole(source)
    sizes = [each.open(0).decode(8).image.size for each in (source, whole)]
    assert sizes == [(63, 47), (500, 375)]
    assert (len(whole), whole.name(1), whole.fingerprint) == (2, source.name(1), source.fingerprint)


def test_losses_are_smoothed_before_they_are_compared(bench, monkeypatch):
    monkeypatch.setattr(bench.decoders, "SMOOTH", 2)
    one, other = bench.decoders.Run([3.0, 1.0, 3.0], 0.5), bench.decoders.Run([1.0, 1.0, 5.0], 0.25)
    assert bench.decoders.difference(one, other) == {"mean": 1, "max": 1, "signed_mean": 0, "heldout": 0.25}


def test_fewer_steps_than_are_averaged_are_refused(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main([*TINY, *HERE, "--steps", "3"])
    assert "--steps 3" in capsys.readouterr().err
