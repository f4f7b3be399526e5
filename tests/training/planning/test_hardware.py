"""What `--on` names: GPUs by name, nodes of them, and files of others."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from swin_mim.errors import UserError
from swin_mim.training.config.parsing import from_mapping
from swin_mim.training.planning.hardware import GPUS, Gpu, cluster_of

FILE = "memory_gb: 192\nhalf_tflops: 1307\nfp32_tflops: 163.4\nmemory_gb_s: 5300\nlink_gb_s: 448\nnetwork_gb_s: 400\n"


@pytest.mark.parametrize(("text", "shape", "said"), [
    ("h100", (1, 1), "h100"),
    ("1xh100", (1, 1), "h100"),
    ("8xH100", (1, 8), "8 x h100"),
    ("16xh100", (2, 8), "2 x 8 x h100"),
    ("3x4xrtx4090", (3, 4), "3 x 4 x rtx4090"),
    ("1024xa100-80", (128, 8), "128 x 8 x a100-80"),
    ("1x8xh100", (1, 8), "8 x h100"),
])  # fmt: skip
def test_names_and_numbers(text: str, shape: tuple[int, int], said: str) -> None:
    cluster = cluster_of(text)
    assert (cluster.nodes, cluster.gpus) == shape
    assert cluster.processes == shape[0] * shape[1]
    assert cluster.text == said


@pytest.mark.parametrize(("text", "message"), [
    ("8xh1000", "no GPU is named 'h1000': the names are a100-40, a100-80, h100, "),
    ("8x", "no GPU is named '8x'"),
    ("", "no GPU is named ''"),
    ("0xh100", "a number of GPUs is at least 1"),
    ("8x0xh100", "a number of GPUs is at least 1"),
    ("12xh100", "12 GPUs are not whole nodes of 8: use 8xh100, 16xh100, or NODESxGPUSxh100"),
    ("2048xh100", "is 2,048 GPUs: a plan is for up to 1,024"),
    ("nowhere.yaml", "cannot read the config nowhere.yaml: No such file"),
])  # fmt: skip
def test_what_is_none(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        cluster_of(text)
    assert "\n" not in str(caught.value)


def test_a_file_has_the_same_fields(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE + "gpus_a_node: 4\nproduct_share: 0.5\n")
    cluster = cluster_of(f"8x{file}")
    assert (cluster.nodes, cluster.gpus, cluster.name) == (2, 4, "mine.yaml")
    assert (cluster.gpu.memory_gb, cluster.gpu.product_share, cluster.gpu.usable) == (192, 0.5, 0.9)


@pytest.mark.parametrize(("text", "message"), [
    ("memory_gb: many\n", "memory_gb in {file} is 'many': expected a number"),
    ("memory: 80\n", "unknown key memory in {file}"),
    ("memory_gb: 80\n", "half_tflops is missing in {file}: it has no default"),
    (FILE + "gpus_a_node: 2.5\n", "gpus_a_node in {file} is 2.5: expected a whole number"),
    (FILE + "bf16: 1\n", "bf16 in {file} is 1: expected true or false"),
    (FILE + "link_share: 80\n", "link_share in {file} is 80.0: it must be above 0 and at most 1"),
    (FILE.replace("1307", "0"), "half_tflops in {file} is 0.0: it must be positive and finite"),
    (FILE.replace("1307", ".nan"), "half_tflops in {file} is nan: it must be positive and finite"),
    (FILE.replace("1307", ".inf"), "half_tflops in {file} is inf: it must be positive and finite"),
    ("- 80\n", "holds [80]"),
])  # fmt: skip
def test_a_mistake_in_a_file_names_key_and_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message.format(file=file))):
        cluster_of(f"8x{file}")


@pytest.mark.parametrize("name", GPUS)
def test_the_table_is_plausible(name: str) -> None:
    """A slip of a digit is found: GPUs balance arithmetic and memory alike."""
    gpu = GPUS[name]
    assert name == name.lower()
    assert 2 < gpu.half_tflops / gpu.fp32_tflops * (1 if gpu.half_tflops > 200 else 2) < 40
    assert 80 < 1000 * gpu.half_tflops / gpu.memory_gb_s < 450, "FLOPs a byte"
    assert gpu.link_gb_s < gpu.memory_gb_s / 4
    shares = [getattr(gpu, field.name) for field in fields(Gpu) if field.name.endswith("share")]
    assert all(0 < share <= 1 for share in shares)


def test_the_page_has_the_table_and_every_field() -> None:
    page = (Path(__file__).parents[3] / "docs" / "planner.md").read_text()
    for name, gpu in GPUS.items():
        numbers = (
            *(gpu.memory_gb, gpu.half_tflops, gpu.fp32_tflops),
            *(gpu.memory_gb_s, gpu.link_gb_s, gpu.network_gb_s),
        )
        assert f"| {name} | {' | '.join(f'{number:g}' for number in numbers)} |" in page
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert from_mapping(Gpu, yaml.safe_load(example), "docs/planner.md") == GPUS["h100"]
