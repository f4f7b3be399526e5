"""Micro batches that the model of memory lets a GPU hold."""

from dataclasses import replace

import pytest

from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.planning.memory import (
    Network,
    Training,
    fitting_micro_batches,
    memory_of,
    micro_batches,
    storage_on,
)

GB = 1e9


@pytest.fixture(scope="module")
def config():
    return pretrain_config(["--config", "simmim_swin_base_192_100ep", "--data.source", "."])


def largest(config, memory: float, training: Training) -> int:
    fitting = fitting_micro_batches(Network.of(config), training, config.train.global_batch, memory)
    return next(fitting, 0)


@pytest.mark.parametrize(("strategy", "processes"), [("one process", 1), ("DDP", 8), ("ZeRO-1", 8), ("FSDP2", 8)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_that_fit_are_found_and_no_other(config, strategy, processes, checkpointing) -> None:
    memory, network, together = 22 * GB, Network.of(config), config.train.global_batch
    training = Training(strategy, processes, checkpointing)

    def total(batch: int) -> float:
        accumulates = batch * processes < together
        return memory_of(network, replace(training, accumulates=accumulates), batch).total

    legal = [*micro_batches(together, processes)]
    fitting = [*fitting_micro_batches(network, training, together, memory)]
    assert fitting == [batch for batch in legal if total(batch) <= memory]
    assert 0 < len(fitting) <= len(legal)


def test_more_memory_and_checkpointing_let_it_grow(config) -> None:
    small, large = (largest(config, memory * GB, Training()) for memory in (14, 72))
    assert 0 < small < large
    assert largest(config, 14 * GB, Training(checkpointing=True)) > small


def test_nothing_fits_a_gpu_that_is_too_small_and_no_batch_is_shared_unevenly(config) -> None:
    assert largest(config, 2 * GB, Training()) == 0
    assert largest(config, 72 * GB, Training("DDP", 7)) == 0
    assert [*micro_batches(12, 2)] == [6, 3, 2, 1]


def test_torchs_attention_keeps_its_bias_for_every_window(config) -> None:
    """As on GPUs for which our kernel is not made."""
    network, ours = Network.of(config), Training()
    theirs = replace(ours, storage=storage_on(ours, fused_attention=False))
    assert storage_on(ours, fused_attention=True) == ours.kept
    assert memory_of(network, theirs, 64).activations > 1.02 * memory_of(network, ours, 64).activations
