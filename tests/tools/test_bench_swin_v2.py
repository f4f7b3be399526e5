"""`python -m tools.bench` with a Swin V2, at a tiny size."""

import pytest
import torch

from swin_mim import SimMIM, SwinConfig

TINY = ["--model", "swinv2_nano", "--image-size", "64", "--window-size", "2", "--batch", "2", "--device", "cpu"]
ONCE = ["--threads", "1", "--warmup", "1", "--repeats", "1"]
OTHERS = {"timm", "transformers", "torchvision"}


def test_the_parts_of_a_breakdown_hold_every_parameter(bench):
    # padded, shifted, and with a third norm in the first stage
    config = SwinConfig(
        32, embed_dim=16, depths=(2, 1), num_heads=(1, 2), window_size=3, version=2, extra_norm_period=2
    )
    model = SimMIM(config)
    batch = bench.training.random_batch(config, 2, 0, torch.device("cpu"))
    parts = list(bench.breakdown.parts_of(model, batch))
    held = sum(part.count * sum(p.numel() for p in part.module.parameters()) for part in parts)
    assert held == sum(p.numel() for p in model.parameters())
    flops = sum(bench.breakdown.flops_of(part) for part in bench.breakdown.meta_parts(model, batch))
    assert flops == bench.training.flops_per_step(config, 2)


def test_attention_without_projections_is_the_middle_of_the_module(bench):
    attention = SimMIM(SwinConfig.named("swinv2_nano", image_size=64, window_size=3)).encoder.layers[0].blocks[1].attn
    torch.nn.init.normal_(attention.q_bias)
    middle = bench.breakdown.without_projections(attention)
    x = torch.randn(2, 16, 16, 48)
    projected = attention.qkv(x) + attention._bias()
    torch.testing.assert_close(attention.proj(middle(projected)), attention(x))
    assert isinstance(attention.qkv, torch.nn.Linear)  # the module itself is as it was


@pytest.mark.slow
def test_the_step_and_the_attention_of_every_library_are_measured(report_of):
    report, _ = report_of("step", *TINY, *ONCE, "--breakdown")
    (table,) = report["batches"]
    assert set(table["results"]) == {"ours", *OTHERS}
    assert "Swin-Transformer with --microsoft" in table["not_measured"]["microsoft"]
    assert {"norms", "window attention", "MLP"} <= set(report["breakdown"][0]["parts"])
    report, _ = report_of("attention", *TINY, *ONCE)
    for place in report["batches"][0]["places"]:
        assert {"ours native", "ours native, alone", *OTHERS} <= set(place["results"]), place["not_measured"]
