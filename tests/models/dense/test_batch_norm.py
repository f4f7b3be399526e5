"""Batch statistics over processes: two with half of the images each against one with all of them."""

from pathlib import Path

import pytest

from tools import forked

SCRIPT = """
import os, torch
import torch.distributed as dist
from swin_mim import SwinConfig, SwinSegmenter
from swin_mim.models.dense.segmenter import segmentation_loss

torch.manual_seed(0)
torch.set_num_threads(1)
config = SwinConfig(32, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4)
alone, model = (SwinSegmenter(config, 3, head_channels=8) for _ in range(2))
model.load_state_dict(alone.state_dict())
images, labels = torch.randn(4, 3, 32, 32), torch.randint(3, (4, 32, 32))
loss = segmentation_loss(alone(images), labels)
loss.backward()

dist.init_process_group("gloo")
half = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
part = segmentation_loss(model(images[half]), labels[half])
part.backward()
for value in (part.detach_(), *(parameter.grad for parameter in model.parameters())):
    dist.all_reduce(value.div_(2))
torch.testing.assert_close(part, loss.detach(), atol=1e-6, rtol=1e-5)
for (name, own), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
    torch.testing.assert_close(own.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)
for own, theirs in zip(model.buffers(), alone.buffers(), strict=True):
    torch.testing.assert_close(own, theirs)
assert len(list(model.buffers())) > 10
os.write(1, b"the same")
dist.destroy_process_group()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """Loss, every gradient and the running statistics."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ends = forked.run([str(script)], tmp_path, environment={"OMP_NUM_THREADS": "1"}, processes=2, timeout=120)
    assert [(end.code, "the same" in end.said) for end in ends] == [(0, True)] * 2, ends
