"""`python -m tools.bench attention` at a tiny size."""

import pytest
import torch

from swin_mim.errors import UserError

TINY = [
    *("attention", "--model", "swin_nano", "--image-size", "64", "--window-size", "2", "--batch", "1"),
    *("--device", "cpu", "--threads", "1", "--warmup", "1", "--repeats", "1"),
]


@pytest.mark.slow
def test_every_stage_and_the_sum_over_all_blocks(report_of):
    report, tables = report_of(*TINY, "--systems", "ours,timm,transformers,torchvision")
    assert not [name for name in report["not_measured"] if not name.startswith("ours")]  # a GPU's backend is none here
    (table,) = report["batches"]
    assert [(place["stage"], place["shift"], place["count"]) for place in table["places"]] == [
        *[(0, [0, 0], 1), (0, [1, 1], 1), (1, [0, 0], 1), (1, [1, 1], 1), (2, [0, 0], 2), (2, [1, 1], 2)],
        *[(3, [0, 0], 1), (3, [0, 0], 1)],  # one window holds the grid of 2 x 2
    ]
    rows = {"ours reference", "ours reference, alone", "ours sdpa", "ours sdpa, alone"}
    for place in table["places"]:
        measured = set(place["results"])
        assert rows | {"timm", "transformers", "torchvision"} <= measured, place["not_measured"]
        assert place["results"]["ours reference"]["relative_to_reference"] == 1
    total = table["total"]["timm"]["seconds_per_call"]
    assert total == pytest.approx(
        sum(place["count"] * place["results"]["timm"]["seconds_per_call"] for place in table["places"])
    )
    result = table["total"]["ours reference, alone"]
    assert result["share_of_copy_ceiling"] == pytest.approx(
        result["gb_per_second"] / report["ceilings"]["copy_gb_per_second"]
    )
    assert "stage 4, grid 2 x 2" in tables


def test_work_is_counted_by_hand(bench):
    from tools.bench.commands.attention import Place

    config = bench.settings.check_model(bench.parse(TINY)[1])
    settings = bench.parse([*TINY, "--systems", "ours"])[1]
    weights = bench.peers.random_weights(config)
    systems, _ = bench.peers.build(config, weights, settings, torch.device("cpu"))
    alone = bench.attention.work_of("ours reference, alone", Place(0, 0, 1), 1, config, "fp32", systems)
    tokens, dim, area, table = 256, 48, 4, 9 * 2
    assert alone.flops == 3 * 2 * 2 * tokens * area * dim
    assert alone.bytes == 4 * (3 * tokens * 3 * dim + 2 * tokens * dim + 3 * table)
    whole = bench.attention.work_of("timm", Place(0, 0, 1), 1, config, "fp32", systems)
    assert whole.flops == alone.flops + 3 * 2 * 4 * tokens * dim * dim


@pytest.mark.slow
def test_attention_that_differs_or_fails_is_not_timed(bench, report_of, monkeypatch):
    def refuse(model, stage, block):
        def call(x):
            raise ValueError("not on this device")

        return bench.peers.Attention(call, bench.peers.torchvision_attention(model, stage, block).module)

    def scaled(model, stage, block):
        call, module = bench.peers.timm_attention(model, stage, block)
        return bench.peers.Attention(lambda x: 1.01 * call(x), module)

    monkeypatch.setitem(bench.peers.ATTENTION, "torchvision", refuse)
    monkeypatch.setitem(bench.peers.ATTENTION, "timm", scaled)
    report, tables = report_of(*TINY, "--systems", "ours,timm,torchvision", "--no-ceilings")
    (table,) = report["batches"]
    for place in table["places"]:
        assert "not the same work" in place["not_measured"]["timm"]
        assert place["not_measured"]["torchvision"] == "fails: ValueError: not on this device"
    assert not {"timm", "torchvision"} & set(table["total"])
    assert "not on this device" in tables


def test_a_backend_that_refuses_the_device_is_named_once(bench, monkeypatch):
    def resolve(backend, device):
        if backend == "sdpa":
            raise UserError(f"attention sdpa does not run on {device.type}")

    monkeypatch.setattr(bench.attention, "resolve_backend", resolve)
    backends, refused = bench.attention.backends_on(torch.device("cpu"))
    assert "reference" in backends
    assert not {"auto", "sdpa"} & set(backends)
    assert refused["ours sdpa"].reason == "attention sdpa does not run on cpu"


@pytest.mark.slow
def test_a_peer_without_such_a_network_is_named_once(report_of):
    report, tables = report_of(*TINY, "--window-size", "3", "--systems", "ours,torchvision", "--no-ceilings")
    assert "one window for all stages" in report["not_measured"]["torchvision"]
    assert tables.count("one window for all stages") == 1
    (table,) = report["batches"]
    assert table["places"][0]["grid"] == [16, 16]  # 3 does not divide it: padded
    assert "ours sdpa" in table["total"]
