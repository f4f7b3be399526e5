"""What a GPU machine is to show, part by part, in the order of what is wanted first."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.bench.settings import PLACES, Mode
from tools.clone import ROOT

KERNEL_TESTS = ROOT / "tests" / "kernels"
MODULES = {"timm": "timm", "transformers": "transformers", "torchvision": "torchvision", "microsoft": "timm"}
"""What each other system is imported as, or needs."""


class Model(NamedTuple):
    name: str
    image_size: int
    window_size: int

    @property
    def label(self) -> str:
        return f"{self.name}_{self.image_size}_w{self.window_size}"

    @property
    def options(self) -> list[str]:
        return ["--model", self.name, "--image-size", str(self.image_size), "--window-size", str(self.window_size)]


class Plan(NamedTuple):
    """What is measured: in earnest, or dry."""

    models: tuple[Model, ...]
    """The first one also has the breakdown, the other backends and the curves."""
    batches: tuple[int, ...]
    """All of the first one come before the others."""
    options: list[str]
    """Arguments of every call of `python -m tools.bench` that has a model."""
    repeats: list[str]
    attention: str
    """Backend of ours."""
    modes: tuple[Mode, ...]
    """Of ours."""
    peer_modes: tuple[Mode, ...]
    backends: str
    """Those whose loss curves are compared."""
    curve: list[str]
    tests: str
    """Pattern of the kernels' tests."""
    test_options: list[str]
    loader: list[str]
    train: list[str]


GPU = Plan(
    models=(
        Model("swin_base", 192, 6),
        Model("swin_tiny", 192, 6),
        Model("swin_base", 192, 12),
        Model("swin_base", 224, 7),
        Model("swin_large", 192, 12),
        Model("swin_small", 192, 6),
    ),
    batches=(256, 512, 128, 1024),
    options=["--device", "cuda", "--precision", "bf16"],
    repeats=["--repeats", "5"],
    attention="triton",
    modes=("compiled", "eager"),
    peer_modes=("eager", "compiled"),
    backends="reference,triton",
    curve=["--steps", "200", "--batch", "64"],
    tests="test_triton*.py",
    # what is slow in the interpreter is not on a GPU; the tests named test_kernels compile for GPUs that are not there
    test_options=["-m", "slow or not slow", "-k", "not test_kernels"],
    loader=["--device", "cuda", "--images", "4096", "--batch", "256", "--workers", "1,8,15", "--repeats", "2"],
    train=[*("--device", "cuda", "--images", "8192", "--steps", "20", "--warmup", "10", "--repeats", "2", "--")]
    + ["--config", "simmim_swin_base_192_100ep"],
)
DRY = Plan(
    models=(Model("swin_nano", 64, 2),),
    batches=(2,),
    options=["--device", "cpu", "--precision", "fp32", "--threads", "1"],
    repeats=["--repeats", "1", "--warmup", "1", "--no-ceilings"],
    attention="chunked",
    modes=("compiled", "eager"),
    peer_modes=("eager",),
    backends="reference,sdpa",
    curve=["--steps", "3", "--batch", "2"],
    tests="test_chunked*.py",
    test_options=[],
    loader=[*("--device", "cpu", "--threads", "1", "--images", "12", "--batch", "4", "--workers", "0,1")]
    + ["--image-size", "32", "--repeats", "1"],
    train=[*("--device", "cpu", "--threads", "1", "--images", "24", "--steps", "2", "--warmup", "1", "--repeats", "1")]
    + ["--", "--train.global-batch", "4", "--train.micro-batch", "2", "--data.heldout", "8"],
)


class Part(NamedTuple):
    name: str
    arguments: list[str]
    """Those of `python -m tools.bench`; of pytest where there are tests."""
    needs: tuple[str, ...] = ()
    """Modules that are looked for before anything is started."""
    tests: Path | None = None


def parts_of(plan: Plan, microsoft: str | None, systems: tuple[str, ...]) -> list[Part]:
    """All parts, ours first; of the other systems those in `systems`, and microsoft's with a checkout alone."""
    first, batch = plan.models[0], plan.batches[0]
    peers = [system for system in MODULES if system in systems and (system != "microsoft" or microsoft)]
    found = [*tests(plan), parity(plan)]
    found += [part for model in plan.models for part in ours(plan, model, batch)]
    found += others(plan, first, batch, peers, microsoft)
    found += [Part("train", ["train", *plan.train]), Part("loader", ["loader", *plan.loader])]
    found += [*backends(plan, first, batch), *breakdown(plan, first, batch)]
    found += [part for model in plan.models[1:] for part in others(plan, model, batch, peers, microsoft)]
    found += [attention(plan, model, batch, peers, microsoft) for model in plan.models]
    for further in plan.batches[1:]:
        found += [part for model in plan.models for part in ours(plan, model, further)]
        found += [part for model in plan.models for part in others(plan, model, further, peers, microsoft)]
    return [*found, Part(f"curves_{first.label}", [*curves(plan), *plan.curve])]


def tests(plan: Plan) -> Iterator[Part]:
    """The kernels' tests, a part a file: none where the tests were not copied."""
    for file in sorted(KERNEL_TESTS.glob(plan.tests)):
        yield Part(f"kernels_{file.stem.removeprefix('test_')}", plan.test_options, ("pytest", "hypothesis"), file)


def curves(plan: Plan) -> list[str]:
    return ["curves", *plan.models[0].options, *plan.options, "--backends", plan.backends]


def parity(plan: Plan) -> Part:
    return Part("parity", [*curves(plan), "--precision", "fp32", "--steps", "3", "--batch", "2"])


def step(plan: Plan, model: Model, batch: int, systems: str, mode: Mode, attention: str) -> list[str]:
    own = ["--batch", str(batch), "--systems", systems, "--modes", mode, "--attention", attention]
    return ["step", *model.options, *plan.options, *plan.repeats, *own]


def ours(plan: Plan, model: Model, batch: int) -> Iterator[Part]:
    for mode in plan.modes:
        arguments = step(plan, model, batch, "ours", mode, plan.attention)
        yield Part(f"step_{model.label}_b{batch}_ours_{mode}", arguments)


def others(plan: Plan, model: Model, batch: int, peers: list[str], microsoft: str | None) -> Iterator[Part]:
    """Each of the others in turn with ours in the same mode."""
    checkout = ["--microsoft", microsoft] if microsoft else []
    for mode in plan.peer_modes:
        for peer in peers:
            arguments = [*step(plan, model, batch, f"ours,{peer}", mode, plan.attention), *checkout]
            yield Part(f"step_{model.label}_b{batch}_{peer}_{mode}", arguments, (MODULES[peer],))


def backends(plan: Plan, model: Model, batch: int) -> Iterator[Part]:
    """Ours with what `auto` picks, and with torch's own fused attention."""
    for backend, modes in (("auto", plan.modes), ("sdpa", plan.peer_modes)):
        for mode in modes:
            arguments = step(plan, model, batch, "ours", mode, backend)
            yield Part(f"{backend}_{model.label}_b{batch}_{mode}", arguments)


def breakdown(plan: Plan, model: Model, batch: int) -> Iterator[Part]:
    for mode in plan.modes:
        for place in PLACES:
            arguments = step(plan, model, batch, "ours", mode, plan.attention)
            arguments += ["--ceilings", "--breakdown", "--places", place]
            yield Part(f"breakdown_{model.label}_b{batch}_{mode}_{place}", arguments)


def attention(plan: Plan, model: Model, batch: int, peers: list[str], microsoft: str | None) -> Part:
    """Those of the others that are not there are named in its report."""
    arguments = ["attention", *model.options, *plan.options, *plan.repeats, "--batch", str(batch)]
    arguments += ["--systems", ",".join(["ours", *peers])] + (["--microsoft", microsoft] if microsoft else [])
    return Part(f"attention_{model.label}", arguments)
