"""What the doctor says of GPUs that are not here."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from swin_mim.cli.doctor import command as doctor
from swin_mim.cli.doctor import plan as planner
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.planning.plan import plan_of

BASE = ("--config", "simmim_swin_base_192_100ep")
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs the tool in a folder of its own -> exit code, and both outputs."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = doctor.main(words)
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    return run


def started(page: str) -> list[str]:
    """The commands at the end of a page, each on one line."""
    lines = page[page.index("\nSTART\n") + len("\nSTART\n") :].replace("\\\n", " ").strip().splitlines()
    return [" ".join(line.split()) for line in lines]


def accepted(command: str) -> bool:
    """Whether launcher and recipe take it: their parsers leave on a mistake."""
    from accelerate.commands.launch import launch_command_parser

    words = shlex.split(command)
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args([word.replace("RANK", "0") for word in words[2:]])
        assert launched.training_script == "swin_mim.recipes.pretrain"
        words = ["swin-mim", "pretrain", *launched.training_script_args]
    assert words[:2] == ["swin-mim", "pretrain"]
    pretrain_config(words[2:])
    return True


def test_a_plan_needs_no_images(ask: Ask) -> None:
    code, page, errors = ask("--on", "8xh100", *BASE)
    assert (code, errors) == (0, "")
    assert "8 x h100, planned for simmim_swin_base_192_100ep" in page
    assert "no figure of this page was compared with a GPU" in page
    title, *rows = page[page.index("  strategy ") :].splitlines()[:7]
    columns = (
        "strategy  checkpointing  micro batch  accumulation  memory GB  images/s  hours  sends MB  for ms  waits ms"
    )
    assert title.strip() == columns
    assert rows[0].split()[0] == "DDP"
    assert sorted(row.split()[0] for row in rows) == ["DDP"] * 2 + ["FSDP2"] * 2 + ["ZeRO-1"] * 2
    for assumed in (
        "989 TFLOP/s in bf16",
        "3350 GB/s",
        "450 GB/s from GPU to GPU",
        "60% of it",
        "1,281,167 in an epoch",
    ):
        assert assumed in " ".join(page.split())
    assert "DDP sends the gradients in fp32, 359 MB, once a step: 629 MB from each GPU" in " ".join(page.split())
    assert max(map(len, page.splitlines())) <= 125


def test_it_is_the_same_plan_in_json(ask: Ask) -> None:
    code, report, page = ask("--on", "2x8xh200", *BASE, "--training_images", "500000", "--json", "-")
    found = json.loads(report)
    assert code == 0
    assert "WAYS TO TRAIN" in page
    assert found["measured_on_a_gpu"] is False
    assert found["training_images"] == 500_000
    assert found["cluster"]["nodes"] == 2
    config = pretrain_config([*BASE, "--data.source", "."])
    made = plan_of(config, planner.cluster_of("2x8xh200"), 500_000)
    assert [each["images_per_second"] for each in found["candidates"]] == [
        each.images_per_second for each in made.candidates
    ]
    assert found["steps"] == made.steps == 24415
    assert any("--training_images" in line for line in found["assumptions"])


@pytest.mark.parametrize(("on", "flags", "parts"), [
    ("h100", (), ["swin-mim pretrain --config"]),
    ("8xh100", (), ["accelerate launch --multi_gpu --num_processes 8 -m swin_mim.recipes.pretrain --config"]),
    ("2x8xh100", (), ["--num_processes 16 --num_machines 2 --machine_rank RANK --main_process_ip ADDRESS"]),
    ("8xh100", ("--train.micro_batch", "32", "--optim.base_lr=1e-4"), ["--optim.base_lr=1e-4 --train.micro_batch 256"]),
])  # fmt: skip
def test_the_command_at_the_end_is_one(on: str, flags: Sequence[str], parts: Sequence[str], ask: Ask) -> None:
    _, page, _ = ask("--on", on, *BASE, *flags)
    (command,) = started(page)
    assert all(part in command for part in parts)
    assert "micro_batch 32" not in command
    assert "--data.source DIR" in command
    assert accepted(command)


HUGE = ("--model.embed_dim", "1024", "--model.num_heads", "32", "64", "128", "256")
LARGE = ("--model.embed_dim", "512", "--model.num_heads", "16", "32", "64", "128")


@pytest.mark.parametrize(("name", "nodes", "strategy"), [("rtx4090", 1, "FSDP2"), ("a100-40", 2, "ZeRO-1")])
def test_shared_out_weights_have_their_own_commands(name: str, nodes: int, strategy: str, ask: Ask) -> None:
    on = f"{nodes}x8x{name}"
    config = pretrain_config([*BASE, "--data.source", ".", *LARGE])
    cluster = planner.cluster_of(on)
    best = next(each for each in plan_of(config, cluster, 10**6).candidates if each.strategy == strategy)
    job = planner.Job("my photos", cluster, config, BASE[1], list(LARGE), None, None)
    *before, command = [" ".join(words) for words in planner.command(job, best)]
    assert accepted(command)
    assert "--data.source 'my photos'" in command
    if strategy == "FSDP2":
        assert not before
        assert "--train.fsdp true" in command
    else:
        assert before == ["swin-mim copy zero1.yaml ."]
        assert "--config_file zero1.yaml --deepspeed_multinode_launcher standard --num_processes 16" in command


def test_a_file_of_a_gpu(ask: Ask) -> None:
    Path("mine.yaml").write_text(
        "memory_gb: 192\nhalf_tflops: 1307\nfp32_tflops: 163\nmemory_gb_s: 5300\nlink_gb_s: 448\nnetwork_gb_s: 400\n"
    )
    code, page, _ = ask("--on", "8xmine.yaml", *BASE)
    assert code == 0
    assert page.startswith("8 x mine.yaml, planned for")
    assert "1307 TFLOP/s in bf16" in " ".join(page.split())


def test_a_source_is_counted(ask: Ask) -> None:
    for number in range(40):
        Path("photos").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(f"photos/{number}.png")
    code, page, _ = ask("photos", "--on", "h100", *BASE, "--train.global_batch", "32", "--train.micro_batch", "32")
    assert code == 0
    assert "images 36 in an epoch: counted in photos" in " ".join(page.split())
    assert ask("--on", "h100", "photos", *BASE)[0] == 0, "behind the GPUs too"
    code, page, _ = ask("--on", "h100", *BASE, "--data.source", "photos")
    assert code == 0
    assert "counted in photos" in " ".join(page.split()), "named as for a pretraining"
    (command,) = started(page)
    assert command.count("--data.source photos") == 1


def test_steps_need_no_number_of_images(ask: Ask) -> None:
    code, page, _ = ask("nowhere", "--on", "h100", *BASE, "--train.duration", "5000 steps", "--optim.warmup", "5 steps")
    assert code == 0
    assert "in an epoch" not in page
    assert "5,000 steps of 2,048 images" in page


@pytest.mark.parametrize(("words", "text"), [
    (("--on", "8xh101"), "no GPU is named 'h101': the names are a100-40, a100-80, h100"),
    (("--on",), "argument --on: expected one argument"),
    (("--on", "12xh100"), "12 GPUs are not whole nodes of 8"),
    (("--on", "3xh100"), "train.global_batch 2048 is not a multiple of 3 GPUs: use --train.global_batch 2049"),
    (("--on", "missing.yaml"), "cannot read the config missing.yaml: No such file"),
    (("--on", "h100", "--training_images", "0"), "--training_images 0 must be at least 1"),
    (("--on", "h100", "--train.micro_batc", "3"), "did you mean --train.micro-batch?"),
    (("nowhere", "--on", "h100"), "nowhere"),
    (("photos", "--on", "h100", "--data.source", "other"), "say once which images to look at, not photos and other"),
    (("a", "--on", "h100", "--data.streaming", "true"), "is not counted for a plan: give --training_images N"),
    (("--on", "t4", "--train.precision", "bf16"), "bf16 is emulated on t4"),
    (("--on", "rtx4090", *HUGE), "no way of training fits a rtx4090 by the model of memory"),
])  # fmt: skip
def test_a_mistake_is_one_line(words: Sequence[str], text: str, ask: Ask) -> None:
    code, _, errors = ask(*words)
    assert code == 2
    assert text in errors
    assert errors.strip().count("\n") == 0


def test_the_help_of_a_plan(ask: Ask) -> None:
    code, page, _ = ask("--on", "h100", "--help")
    assert code == 0
    assert "--training_images" in page
