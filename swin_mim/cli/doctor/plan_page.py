"""The page of `swin-mim doctor --on`: a plan as a person reads it."""

from collections.abc import Iterator, Sequence

from swin_mim.cli.doctor.page import command_text, fact, plural, rate, time_text
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.planning.memory import GPU_FIXED
from swin_mim.training.planning.plan import CLOSE, Candidate, Plan
from swin_mim.training.planning.step_time import GAP, HOP, HOST_SECONDS, OVERLAP, ROUND

COLUMNS = (
    "strategy",
    "checkpointing",
    "micro batch",
    "accumulation",
    "memory GB",
    "images/s",
    "hours",
    "sends MB",
    "for ms",
    "waits ms",
)
NEVER_MEASURED = "A model's answer: no figure of this page was compared with a GPU, nor with several machines."


def as_text(plan: Plan, config: str, assumed: Sequence[str], commands: Sequence[Sequence[str]]) -> str:
    """The whole page.

    Args:
        config: its file or name.
        assumed: a line for each assumption.
        commands: words of the commands at the end.
    """
    head = f"{plan.cluster.text}, planned for {config}\n{NEVER_MEASURED}"
    parts: list[tuple[str, list[str]]] = [("WAYS TO TRAIN", list(_table(plan)))]
    if plan.candidates:
        parts += [("THE FIRST OF THEM", list(_best(plan))), ("ASSUMED", [*assumed])]
        parts += [("START", [command_text(words) for words in commands])]
    return "\n\n".join([head, *("\n".join([title, *lines]) for title, lines in parts)])


def _table(plan: Plan) -> Iterator[str]:
    if plan.candidates:
        rows = [COLUMNS, *map(_row, plan.candidates)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *values in rows:
            cells = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
            yield "  ".join(["", f"{name:<{widths[0]}}", *cells])
        yield f"  first the simplest within {CLOSE:.0%} of the fastest, a difference that the model cannot tell"
    if plan.precision != "fp32" and any(each.strategy == "ZeRO-1" for each in plan.candidates):
        yield f"  ZeRO-1 keeps what passes from block to block in {plan.precision}, the others in fp32"
    for way in plan.left_out:
        again = " with checkpointing" if way.checkpointing else ""
        yield f"  left out: {way.strategy}{again}, as {way.reason}"


def _row(candidate: Candidate) -> tuple[str, ...]:
    sent = candidate.step.communication
    return (
        candidate.strategy,
        "yes" if candidate.checkpointing else "no",
        str(candidate.micro_batch),
        str(candidate.accumulation),
        f"{candidate.memory.total / 1e9:.1f}",
        f"{candidate.images_per_second:,.0f}",
        f"{candidate.run_seconds / 3600:,.1f}",
        f"{sent.megabytes:,.0f}" if sent.megabytes else "-",
        f"{1000 * sent.seconds:.1f}" if sent.megabytes else "-",
        f"{1000 * sent.exposed:.1f}" if sent.megabytes else "-",
    )


def _best(plan: Plan) -> Iterator[str]:
    best, memory = plan.candidates[0], plan.candidates[0].memory
    step = best.step
    yield fact(
        "the run",
        f"{plural(plan.steps, 'step')} of {plan.global_batch:,} images: {time_text(best.run_seconds)} at "
        f"{rate(best.images_per_second)}, of which a GPU does {rate(best.images_per_second / plan.cluster.processes)}",
    )
    yield fact(
        "a step",
        f"{1000 * step.total:.1f} ms: computing {1000 * step.compute:.1f}, waiting for others "
        f"{1000 * step.communication.exposed:.1f}, the update {1000 * step.update:.1f}",
    )
    parts = {
        "activations": memory.activations,
        "weights": memory.weights,
        "gradients": memory.gradients,
        "moments": memory.moments,
        "workspace": memory.workspace,
    }
    text = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    yield fact("memory", f"{memory.total / 1e9:.1f} of {plan.cluster.gpu.memory_gb:g} GB: {text}")
    if plan.cluster.processes > 1:
        yield fact("traffic", _traffic(plan, best))


def _traffic(plan: Plan, best: Candidate) -> str:
    sent, size = best.step.communication, 4 * plan.parameters / 1e6
    what = {
        "DDP": f"the gradients in fp32, {size:,.0f} MB, once a step",
        "ZeRO-1": "the gradients and then the new weights, once a step",
        "FSDP2": f"weights twice and gradients in fp32 once in each of {plural(best.accumulation, 'micro batch')}",
    }[best.strategy].replace("batchs", "batches")
    share = sent.exposed / best.step.total
    verdict = f"communication is {share:.0%} of the step" if share > 0.05 else "communication does not limit the step"
    hidden = 1000 * (sent.seconds - sent.exposed)
    return (
        f"{best.strategy} sends {what}: {sent.megabytes:,.0f} MB from each GPU in {1000 * sent.seconds:.1f} ms, of "
        f"which {hidden:.1f} hide behind computing (there is room for {1000 * sent.hideable:.1f}): {verdict}"
    )


def assumptions(plan: Plan, config: PretrainConfig, images: int, origin: str) -> Iterator[str]:
    """A line for each thing that was taken for granted.

    Args:
        images: of an epoch.
        origin: where that number is from.
    """
    gpu, cluster = plan.cluster.gpu, plan.cluster
    half = plan.precision != "fp32"
    peak, kind = (gpu.half_tflops, plan.precision) if half else (gpu.fp32_tflops, "fp32")
    yield fact(
        "peak",
        f"{peak:g} TFLOP/s in {kind}; matrix products reach {gpu.product_share:.0%} of it, window attention "
        f"{gpu.attention_share:.0%} on its tiles",
    )
    reach = f"kernels reach {gpu.memory_share:.0%} of it; a plan fills {gpu.usable:.0%} of {gpu.memory_gb:g} GB"
    yield fact("memory", f"{gpu.memory_gb_s:g} GB/s; {reach}, {GPU_FIXED / 1e9:g} GB of it for libraries")
    way = "compiled (train.compile)" if plan.compiled else "not compiled: --train.compile true is faster"
    attention = "our fused kernel" if plan.fused_attention else "torch's fused attention"
    yield fact(
        "kernels", f"{way}, with {attention}; {GAP * 1e6:g} us between two, and {_host(plan)} to start a block's"
    )
    if cluster.processes > 1:
        text = f"{gpu.link_gb_s:g} GB/s from GPU to GPU in a node of {cluster.gpus}, {gpu.link_share:.0%} of it reached"
        if cluster.nodes > 1:
            text += f"; {gpu.network_gb_s:g} GB/s from node to node, {gpu.network_share:.0%} of it reached"
        hops = f"a message takes {HOP * 1e6:g} us to the next GPU" + f", {ROUND * 1e6:g} to a node" * (
            cluster.nodes > 1
        )
        yield fact("links", f"{text}; {hops}; {OVERLAP:.0%} of a pass can hide communication")
    if config.teacher.model:
        yield fact(
            "teacher",
            "its weights in fp32 on every GPU, and the products of its forward passes alone, at the same share of the "
            "peak; not what it reads and writes between them",
        )
    if "epoch" in config.train.duration:
        yield fact("images", f"{images:,} in an epoch: {origin}")
    yield fact(
        "left out", "loading, evaluations, checkpoints, the first steps, and GPUs that are slower when they are hot"
    )
    yield fact("", "figures of GPUs are from public data sheets; for others write a YAML file: docs/planner.md")


def _host(plan: Plan) -> str:
    return f"{1000 * HOST_SECONDS[plan.compiled]:g} ms"
