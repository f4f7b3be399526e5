"""Replicas with the same weights, and with one flipped bit, in real processes."""

from pathlib import Path

from tools import forked

SCRIPT = """
import os, torch
from accelerate import Accelerator
from swin_mim.errors import UserError
from swin_mim.training.distributed.replicas import check_replicas

accelerator = Accelerator(cpu=True)
for dtype, process, bit in ((torch.float32, 2, 0), (torch.bfloat16, 0, 14)):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).to(dtype)
    prepared = accelerator.prepare(model) if dtype == torch.float32 else model
    check_replicas(accelerator, prepared)
    if accelerator.process_index == process:
        weight = model[1].weight.data
        weight.view({2: torch.int16, 4: torch.int32}[weight.element_size()])[1, 2] ^= 1 << bit
    try:
        check_replicas(accelerator, prepared)
    except UserError as error:  # in one write, so that lines do not mix
        os.write(1, f"{process}, seen by {accelerator.process_index}: {error} code {error.code}\\n".encode())
accelerator.end_training()
os._exit(0)  # without the ways of start_accelerator gloo's threads may outlive the interpreter and abort
"""


def test_one_flipped_bit_is_seen_by_all(tmp_path: Path) -> None:
    """The lowest bit of fp32 in the last of three processes, and one of an exponent of bf16 in the first."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ends = forked.run([str(script)], tmp_path, environment=environment, processes=3, timeout=120)
    assert [end.code for end in ends] == [0] * 3, ends
    said = sorted(line for end in ends for line in end.said.splitlines() if ", seen by " in line)
    cases = [(process, rank) for process in (0, 2) for rank in range(3)]
    for line, (process, rank) in zip(said, cases, strict=True):
        expected = f"the weights of process {process} are not those of the others (1.weight is the first that differs)"
        assert line.startswith(f"{process}, seen by {rank}: {expected}")
        assert line.endswith("code 70")
