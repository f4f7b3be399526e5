"""Micro batches that the model of memory lets a GPU hold."""

from dataclasses import replace

import pytest

from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.planning.memory import USABLE, Network, Training, largest_micro_batch, memory_of, micro_batches

GB = 1e9


@pytest.fixture(scope="module")
def config():
    return pretrain_config(["--config", "simmim_swin_base_192_100ep", "--data.source", "."])


@pytest.mark.parametrize(("strategy", "processes"), [("one process", 1), ("DDP", 8), ("ZeRO-1", 8), ("FSDP2", 8)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_largest_fits_and_the_next_one_does_not(config, strategy, processes, checkpointing) -> None:
    memory, network = 24 * GB, Network.of(config)
    largest = largest_micro_batch(config, memory, strategy=strategy, processes=processes, checkpointing=checkpointing)
    legal = [*micro_batches(config.train.global_batch, processes)]
    assert largest in legal
    training = Training(strategy, processes, checkpointing)

    def total(batch: int) -> float:
        accumulates = batch * processes < config.train.global_batch
        return memory_of(network, replace(training, accumulates=accumulates), batch).total

    assert total(largest) <= USABLE * memory
    assert all(total(batch) > USABLE * memory for batch in legal if batch > largest)


def test_more_memory_and_checkpointing_let_it_grow(config) -> None:
    small, large = (largest_micro_batch(config, memory * GB, checkpointing=False) for memory in (16, 80))
    assert 0 < small < large
    assert largest_micro_batch(config, 16 * GB, checkpointing=True) > small


def test_nothing_fits_a_gpu_that_is_too_small_and_no_batch_is_shared_unevenly(config) -> None:
    assert largest_micro_batch(config, 2 * GB) == 0
    assert largest_micro_batch(config, 80 * GB, strategy="DDP", processes=7) == 0
    assert [*micro_batches(12, 2)] == [6, 3, 2, 1]
