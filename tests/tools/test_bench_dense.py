"""`python -m tools.bench dense` at a tiny size: the same work on both sides, and what it reports."""

import json

import pytest
import torch

from swin_mim import SwinConfig
from swin_mim.models.dense import segmenter
from tools.bench import __main__ as bench
from tools.bench.commands import dense
from tools.bench.commands.step import Probe, probe
from tools.bench.settings import DENSE, DenseSettings

CONFIG = SwinConfig(64, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=2)
"""Grids 16, 8, 4."""


def test_every_task_has_its_network():
    assert set(DENSE) == set(dense.TASKS) == set(dense.CLASSES)


@pytest.mark.parametrize("task", DENSE)
def test_both_compute_the_same(task, one_thread, monkeypatch):
    """Loss and gradient from the same weights; with other weights of the peer it would be left out."""
    monkeypatch.setattr(dense, "CLASSES", {"segment": 3, "detect": 3})
    monkeypatch.setitem(segmenter.CHANNELS, "upernet", 16)
    build, name, batch_of = dense.TASKS[task]
    ours, build_peer = build(CONFIG)
    peer, batch = build_peer(), batch_of(CONFIG, 2, 0)
    seen, theirs = (probe(dense.System(model.train(), loss), batch) for model, loss in (ours, peer))
    assert dense.other_work(theirs, seen) is None
    mine, others = (sum(p.numel() for p in each.model.parameters()) for each in (ours, peer))
    assert others - mine in (0, 2 * CONFIG.stage_dim(2))  # transformers' backbone has a last norm that it does not use
    with torch.no_grad():
        next(peer.model.parameters()).mul_(1.5)  # of the embedding
    assert "not the same work" in dense.other_work(probe(peer, batch), seen)
    assert type(peer.model).__module__.split(".")[0] == name


def test_a_difference_is_told_by_its_first_quantity():
    assert dense.other_work(Probe(1.0, 2.0), Probe(1.00001, 2.001)) is None
    assert "gradient_norm 2.1" in dense.other_work(Probe(1.0, 2.1), Probe(1.0, 2.0))
    assert "loss nan" in dense.other_work(Probe(float("nan"), 2.0), Probe(1.0, 2.0))


def test_objects_fill_their_boxes():
    images, boxes = dense.boxed_images(CONFIG, 2, 0)
    assert images.shape == (2, 3, 64, 64)
    assert boxes.shape == (2, dense.OBJECTS, 4)
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert 0 <= boxes.min() <= boxes.max() <= 64
    for target, each in zip(dense.objects(boxes, images, first_class=1), boxes, strict=True):
        assert target["labels"].min() == 1
        found = target["masks"].nonzero()
        for number, (left, top, right, bottom) in enumerate(each.tolist()):
            rows, columns = found[found[:, 0] == number][:, 1:].unbind(1)
            assert rows.min() + 0.5 >= top > rows.min() - 0.5
            assert columns.max() + 0.5 < right <= columns.max() + 1.5
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert bottom > rows.max() + 0.5
            assert columns.min() + 0.5 >= left


def test_command_reads_its_options():
    command, settings = bench.parse(["dense", "--tasks", "detect", "--batch", "2,4", "--threads", "2"])
    assert command == "dense"
    assert isinstance(settings, DenseSettings)
    assert (settings.tasks, settings.batch, settings.image_size, settings.window_size) == (("detect",), (2, 4), 256, 7)


@pytest.mark.slow
def test_whole_command(report_of):
    tiny = ["--model", "swin_nano", "--image-size", "128", "--window-size", "2", "--threads", "1", "--repeats", "2"]
    report, said = report_of("dense", "--device", "cpu", *tiny)
    assert [(each["task"], each["batch"]) for each in report["tasks"]] == [("segment", 2), ("detect", 2)]
    for table in report["tasks"]:
        assert table["not_measured"] == {}
        assert len(table["results"]) == len(table["parity"]) == 2
        for seen in table["results"].values():
            assert seen["images_per_second"] == pytest.approx(2 / seen["seconds_per_step"])
            assert len(seen["seconds"]) == 2
        assert table["results"]["ours"]["times_as_fast_as_ours"] == 1
    assert "images/s" in said
    assert json.dumps(report)
