"""A data set on the Hub, by the true client, from a server on loopback."""

import subprocess
import sys

CODE = """
import sys
from pathlib import Path
import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as Pillow
from swin_mim.data.sources.open import open_source
from swin_mim.errors import UserError

repo, folder = sys.argv[1], Path(sys.argv[2])
files = [str(folder / f"{i}.png") for i in range(5)]
for i, file in enumerate(files):
    Pillow.fromarray(np.full((6, 8, 3), 40 * i, np.uint8)).save(file)
Dataset.from_dict({"image": files}, features=Features({"image": Image()})).push_to_hub(repo, private=True)
source = open_source(repo)
assert len(source) == 5, len(source)
for name in (repo + "-not", "nothere"):
    try:
        open_source(name)
    except UserError as error:
        print("refused:", error)
print("found:", [source.image(i).getpixel((0, 0))[0] for i in range(5)])
"""


def test_a_data_set_of_the_hub_is_opened(hub, client_environment, tmp_path):
    command = [sys.executable, "-c", CODE, f"{hub.user}/tiles", str(tmp_path)]
    done = subprocess.run(command, env=client_environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "found: [0, 40, 80, 120, 160]" in lines
    assert len([line for line in lines if line.startswith("refused: ")]) == 2
    assert hub.token not in done.stdout + done.stderr
