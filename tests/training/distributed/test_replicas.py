"""Replicas with the same weights, and with one flipped bit, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, torch
from accelerate import Accelerator
from swin_mim.errors import UserError
from swin_mim.training.distributed.replicas import check_replicas

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).to(getattr(torch, sys.argv[1]))
prepared = accelerator.prepare(model) if sys.argv[1] == "float32" else model
check_replicas(accelerator, prepared)
if accelerator.process_index == int(sys.argv[2]):
    weight = model[1].weight.data
    weight.view({2: torch.int16, 4: torch.int32}[weight.element_size()])[1, 2] ^= 1 << int(sys.argv[3])
try:
    check_replicas(accelerator, prepared)
except UserError as error:
    os.write(1, f"{accelerator.process_index}: {error} code {error.code}\\n".encode())  # lines do not mix
accelerator.end_training()
os._exit(0)  # without the ways of start_accelerator gloo's threads may outlive the interpreter and abort
"""


@pytest.mark.parametrize(("dtype", "process", "bit"), [("float32", 2, 0), ("bfloat16", 0, 14)])
def test_one_flipped_bit_is_seen_by_all(tmp_path: Path, dtype: str, process: int, bit: int) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(tmp_path / "script.py"), dtype, str(process), str(bit)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = sorted(done.stdout.splitlines())
    expected = f"the weights of process {process} are not those of the others (1.weight is the first that differs)"
    assert len(said) == 3
    for rank, line in enumerate(said):
        assert line.startswith(f"{rank}: {expected}")
        assert line.endswith("code 70")
