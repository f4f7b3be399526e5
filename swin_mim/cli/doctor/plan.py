"""`swin-mim doctor --on 8xh100`: how a pretraining would go on GPUs that are not here. Looks at no image.

    swin-mim doctor --on 8xh100 --config simmim_swin_base_192_100ep
    swin-mim doctor --on 2x8xh200 --training_images 5000000 --train.global_batch 4096
    swin-mim doctor photos --on 4xmine.yaml

What is printed is a model's answer: memory, images/s, hours and traffic of every way to share a run out (DDP, ZeRO-1,
FSDP2, each with and without activation checkpointing), the best first, the assumptions, and the command that runs it.
SOURCE is only counted, for durations in epochs; in its place --training_images tells how many images there are.
Options of swin-mim pretrain are taken as without --on, --data.source too. Exit code: 0, or 2 if no way fits.
"""

import argparse
import shlex
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from swin_mim.cli.doctor.named import add_source, named_source
from swin_mim.cli.options import add_json_option, text_stream, write_json
from swin_mim.errors import Parser, UserError, one_line_errors
from swin_mim.training.config.parsing import load_config
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.config.pretrain_checks import check, with_packed_channels
from swin_mim.training.planning.hardware import Cluster, cluster_of

if TYPE_CHECKING:
    from swin_mim.training.planning.plan import Candidate, Plan

IMAGENET = 1_281_167
"""Images of ImageNet-1K's training split, which the shipped configs are written for."""
PORT = "29500"


class Job(NamedTuple):
    """The command line."""

    source: str | None
    cluster: Cluster
    config: PretrainConfig
    file: str
    """The config, or the name of a shipped one."""
    flags: list[str]
    """Options of the pretraining that were given."""
    images: int | None
    json: str | None


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line of the doctor is for a plan."""
    return any(word == "--on" or word.startswith("--on=") for word in arguments)


def parse(arguments: Sequence[str], default_config: str) -> Job:
    parser = Parser(
        prog="swin-mim doctor --on",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="swin-mim doctor [SOURCE] --on GPUS [--config FILE] [--training_images N] [--json FILE] "
        "[--section.option VALUE ...]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--on", required=True, metavar="GPUS", help="NAME, 8xNAME or NODESx8xNAME of a known GPU, or of a YAML file")
    add("--config", default=default_config, metavar="FILE", help=f"of a pretraining (default: {default_config})")
    add("--training_images", "--training-images", type=int, metavar="N", help="in an epoch")
    add_source(parser)
    add_json_option(parser)
    own, rest = parser.parse_known_args(arguments)
    source, flags = named_source(parser, own, rest)
    if own.training_images is not None and own.training_images < 1:
        parser.error(f"--training_images {own.training_images} must be at least 1")
    config = load_config(
        PretrainConfig,
        ["--config", own.config, *source, *flags],
        default_config=default_config,
        prog="swin-mim doctor --on",
        description="The options of a pretraining.",
        complete=with_packed_channels,
        check=check,
    )
    named = config.data.source if source else None
    return Job(named, cluster_of(own.on), config, own.config, flags, own.training_images, own.json)


def main(arguments: Sequence[str], default_config: str) -> int:
    """-> exit code."""
    with one_line_errors():
        job = parse(arguments, default_config)
        from swin_mim.cli.doctor.plan_page import as_text, assumptions
        from swin_mim.training.planning.plan import plan_of

        images, origin = _images(job)
        plan = plan_of(job.config, job.cluster, images)
        lines = list(command(job, plan.candidates[0])) if plan.candidates else []
        assumed = list(assumptions(plan, job.config, images, origin))
        print(as_text(plan, job.file, assumed, lines), file=text_stream(job.json))
        write_json(_report(plan, job.file, images, assumed, lines), job.json)
        if not plan.candidates:
            nothing = f"no way of training fits a {job.cluster.name} by the model of memory"
            raise UserError(f"{nothing}: use a smaller model, or GPUs with more memory")
    return 0


def command(job: Job, best: "Candidate") -> Iterator[list[str]]:
    """Words of the commands that run the best candidate, one after the other."""
    cluster, several = job.cluster, job.cluster.processes > 1
    launch = ["swin-mim", "pretrain"]
    if several:
        launch = ["accelerate", "launch"]
        if best.strategy == "ZeRO-1":
            yield ["swin-mim", "copy", "zero1.yaml", "."]
            launch += ["--config_file", "zero1.yaml"]
            launch += ["--deepspeed_multinode_launcher", "standard"] if cluster.nodes > 1 else []
        else:
            launch += ["--multi_gpu"]
        launch += ["--num_processes", str(cluster.processes)]
        if cluster.nodes > 1:  # RANK, ADDRESS and DIR are for the reader to fill in
            launch += ["--num_machines", str(cluster.nodes), "--machine_rank", "RANK"]
            launch += ["--main_process_ip", "ADDRESS", "--main_process_port", PORT]
        launch += ["-m", "swin_mim.recipes.pretrain"]
    changed = _changed(job.config, best)
    yield [
        *launch,
        *("--config", shlex.quote(job.file)),
        *("--data.source", shlex.quote(job.source or "DIR")),
        *(shlex.quote(word) for word in without(job.flags, changed)),
        *(word for key, value in changed.items() for word in (f"--{key}", value)),
    ]


def _changed(config: PretrainConfig, best: "Candidate") -> dict[str, str]:
    """Settings that the best candidate has and the config has not."""
    wanted = {
        "train.micro_batch": best.micro_batch,
        "train.activation_checkpointing": best.checkpointing,
        "train.fsdp": best.strategy == "FSDP2",
    }
    own = {key: getattr(config.train, key.partition(".")[2]) for key in wanted}
    return {key: str(value).lower() for key, value in wanted.items() if value != own[key]}


def without(flags: Sequence[str], keys: Container[str]) -> Iterator[str]:
    """The words of a command line, less the options of these keys with their values."""
    kept = True
    for word in flags:
        if word.startswith("--"):
            kept = word[2:].partition("=")[0].replace("-", "_") not in keys
        if kept:
            yield word


def _images(job: Job) -> tuple[int, str]:
    """(images of an epoch, where the number is from)."""
    if job.images is not None:
        return job.images, "--training_images"
    if job.source is None:
        return IMAGENET, "those of ImageNet-1K, as neither SOURCE nor --training_images is given"
    if "epoch" not in job.config.train.duration:
        return IMAGENET, "of no account, as train.duration is not in epochs"
    if job.config.data.streaming:
        raise UserError(
            "data.streaming: a streamed source is not counted for a plan: give --training_images N, the images of an "
            "epoch"
        )
    from swin_mim.cli.doctor.opened import open_images

    return len(open_images(job.config).training), f"counted in {job.source}"


def _report(
    plan: "Plan", config: str, images: int, assumed: Sequence[str], commands: Sequence[Sequence[str]]
) -> dict[str, Any]:
    return {
        "measured_on_a_gpu": False,
        "config": config,
        "training_images": images,
        **asdict(plan),
        "assumptions": list(assumed),
        "commands": [list(words) for words in commands],
    }
