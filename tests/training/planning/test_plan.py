"""Which way to train is proposed."""

from dataclasses import replace

import pytest

from swin_mim.errors import UserError
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.planning.hardware import Cluster, cluster_of
from swin_mim.training.planning.plan import CLOSE, Plan, plan_of

EPOCH = 1_281_167


def plan(on: str, *flags: str, config: str = "simmim_swin_base_192_100ep") -> Plan:
    return plan_of(pretrain_config(["--config", config, "--data.source", ".", *flags]), cluster_of(on), EPOCH)


def test_everything_adds_up() -> None:
    made = plan("8xh100")
    assert made.steps == 62557
    assert len(made.candidates) == 6
    for candidate in made.candidates:
        assert candidate.micro_batch * candidate.accumulation * 8 == made.global_batch == 2048
        assert candidate.images_per_second == pytest.approx(2048 / candidate.step.total)
        assert candidate.run_seconds == pytest.approx(made.steps * candidate.step.total)
        assert candidate.memory.total <= 0.9 * 80e9


def test_the_best_is_first_and_the_simplest_of_the_equally_fast() -> None:
    made = plan("8xh100")
    best, *others = made.candidates
    assert (best.strategy, best.checkpointing) == ("DDP", False)
    rates = [candidate.images_per_second for candidate in others]
    assert rates == sorted(rates, reverse=True)
    assert best.images_per_second >= (1 - CLOSE) * max(rates)


def test_one_gpu_shares_nothing_out() -> None:
    assert [candidate.strategy for candidate in plan("h100").candidates] == ["one process"] * 2


def test_a_large_network_on_small_gpus_is_shared_out_and_the_rest_says_why_not() -> None:
    """Over a thousand million parameters: 16 bytes of each do not fit 24 GB."""
    wide = ("--model.embed_dim", "512", "--model.num_heads", "16", "32", "64", "128", "--train.compile", "true")
    made = plan("8xrtx4090", *wide)
    assert made.candidates[0].strategy in ("ZeRO-1", "FSDP2")
    assert {way.strategy for way in made.left_out} >= {"DDP"}
    assert all("one image takes" in way.reason for way in made.left_out)


def test_nothing_fits_a_gpu_without_memory() -> None:
    cluster = cluster_of("8xh100")
    config = pretrain_config(["--config", "simmim_swin_base_192_100ep", "--data.source", "."])
    made = plan_of(config, Cluster("tiny", 1, 8, replace(cluster.gpu, memory_gb=2)), EPOCH)
    assert made.candidates == ()
    assert len(made.left_out) == 6


def test_the_precision_is_that_of_the_run() -> None:
    assert plan("8xh100").precision == "bf16"
    assert plan("t4").precision == "fp32"
    assert plan("8xt4", "--train.precision", "fp16").precision == "fp16"
    assert {way.strategy for way in plan("8xt4", "--train.precision", "fp16").left_out} == {"FSDP2"}
    with pytest.raises(UserError, match="bf16 is emulated on t4, which is slow: use fp16 or fp32"):
        plan("t4", "--train.precision", "bf16")
    bf16, fp32 = plan("h100").candidates[0], plan("h100", "--train.precision", "fp32").candidates[0]
    assert bf16.images_per_second > 3 * fp32.images_per_second


def test_gpus_that_do_not_divide_the_global_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"2048 is not a multiple of 3 GPUs: use --train\.global_batch 2049"):
        plan("3xh100")


def test_compiling_is_faster() -> None:
    eager, compiled = (plan("h100", "--train.compile", word).candidates[0] for word in ("false", "true"))
    assert plan("h100").compiled
    assert not plan("t4").compiled
    assert 1.1 < compiled.images_per_second / eager.images_per_second < 2


def test_the_attention_is_that_of_the_run() -> None:
    ours, theirs = plan("h100"), plan("h100", "--train.attention", "sdpa")
    assert ours.fused_attention
    assert not theirs.fused_attention
    assert not plan("t4").fused_attention
    assert theirs.candidates[0].images_per_second < ours.candidates[0].images_per_second
    with pytest.raises(UserError, match=r"train\.attention reference is not planned for"):
        plan("h100", "--train.attention", "reference")


def test_a_thousand_gpus_are_faster_and_not_a_thousand_times() -> None:
    one, many = plan("h100").candidates[0], plan("1024xh100").candidates[0]
    assert 20 < many.images_per_second / one.images_per_second < 512, "2 images a GPU do not fill it"
