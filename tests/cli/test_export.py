"""Models as files for other runtimes: their numbers are the model's at any size, and what cannot be is one line."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from swin_mim import SimMIM, Swin, SwinClassifier, SwinConfig, SwinDetector, SwinSegmenter
from swin_mim.cli.export import command, formats
from swin_mim.cli.export.graph import load_graph
from swin_mim.cli.export.int8 import measure, open_labelled_images
from swin_mim.errors import UserError
from swin_mim.hub import repository, saved
from swin_mim.models.saving import Pretrained
from swin_mim.weights.config_json import Preprocessing

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning"),
]
SIZES = [(1, 32, 32), (5, 32, 40), (2, 36, 52), (3, 8, 12), (1, 100, 28)]
"""Grids that windows of 4 divide, that they do not divide, and that are smaller than a window."""


def config(version: int, depths: tuple[int, ...] = (2, 1), channels: int = 3) -> SwinConfig:
    heads = (1, 2)[: len(depths)]
    return SwinConfig(
        32, embed_dim=8, depths=depths, num_heads=heads, window_size=4, version=version, in_channels=channels
    )


def noisy(model: Pretrained) -> Any:
    """With weights that are large enough for every part to matter: of a new Swin V2 most are zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def exported(model: Pretrained, folder: Path, *words: str, to: str = "torchscript") -> Path:
    """The file of a model that is saved in `folder`/model."""
    model.save_pretrained(folder / "model")
    out = folder / f"file{command.SUFFIXES[to]}"
    command.main([str(folder / "model"), "--to", to, "--out", str(out), *words])
    return out


def check(file: Callable[[Tensor], Any], wanted: Callable[[Tensor], Any], sizes: list[tuple[int, int, int]]) -> None:
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width)
        with torch.inference_mode():
            theirs, ours = file(images), wanted(images)
        theirs, ours = ([each] if isinstance(each, Tensor) else list(each) for each in (theirs, ours))
        assert len(theirs) == len(ours)
        for found, right in zip(theirs, ours, strict=True):
            assert found.shape == right.shape
            assert (found - right).abs().max() <= 1e-5 * right.abs().max(), (batch, height, width)


# --- What is in a file


@pytest.mark.parametrize("version", [1, 2])
def test_torchscript_of_a_classifier_at_any_size(
    version: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = noisy(SwinClassifier(config(version), 3))
    model.labels = ("cat", "dog", "owl")
    path = exported(model, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in said[1:5]] == [
        ["1", "x", "32", "x", "32"],
        ["5", "x", "32", "x", "32"],
        ["1", "x", "28", "x", "40"],
        ["5", "x", "28", "x", "40"],
    ]
    assert all(float(line.split()[-1]) < 1e-5 for line in said[1:5])
    known = {"labels": "", "image_size": "", "side_multiple": ""}
    check(torch.jit.load(path, _extra_files=known), model, SIZES)
    assert known == {"labels": b"cat\ndog\nowl", "image_size": b"32 32", "side_multiple": b"4"}


@pytest.mark.parametrize("head", ["upernet", "fpn"])
def test_torchscript_of_a_segmenter_at_any_size(head: Any, tmp_path: Path) -> None:
    model = noisy(SwinSegmenter(config(1), 3, head=head, head_channels=8))
    check(torch.jit.load(exported(model, tmp_path)), lambda images: model(images).logits, SIZES)


@pytest.mark.parametrize(
    ("output", "of"),
    [
        ("features", lambda encoder, images: encoder(images)),
        ("embedding", lambda encoder, images: encoder(images).mean((1, 2))),
        ("pyramid", lambda encoder, images: encoder.pyramid(images)),
    ],
)
def test_outputs_of_a_masked_image_model(output: str, of: Any, tmp_path: Path) -> None:
    model = noisy(SimMIM(config(1)))
    file = torch.jit.load(exported(model, tmp_path, "--output", output))
    check(file, lambda images: of(model.encoder, images), SIZES[:3])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_preprocessing_in_the_file(layout: str, tmp_path: Path) -> None:
    model = noisy(SwinClassifier(config(1), 3))
    model.preprocessing = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    file = torch.jit.load(exported(model, tmp_path, "--preprocess", layout))
    pixels = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    found = file(pixels if layout == "nchw" else pixels.permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(found[0], model(model.preprocess(pixels)))


def test_a_file_says_statistics_to_the_last_digit_and_what_a_gap_is(tmp_path: Path) -> None:
    """A pressure of 101325.4 +- 10 has nothing but its last digits."""
    model = noisy(Swin(config(1, channels=4)))
    model.preprocessing = Preprocessing(
        (101325.4,) * 4, (0.1,) * 4, ("a", "b", "c", "d"), scale=1, nodata=-3.4028234663852886e38, mask_channel="m"
    )
    known = dict.fromkeys(("mean", "std", "nodata", "mask_channel"), "")
    torch.jit.load(exported(model, tmp_path), _extra_files=known)
    assert known == {
        "mean": b" ".join([b"101325.4"] * 4),
        "std": b" ".join([b"0.1"] * 4),
        "nodata": b"-3.4028234663852886e+38",
        "mask_channel": b"m",
    }


def test_preprocessing_of_other_channels_has_gaps(tmp_path: Path) -> None:
    model = noisy(Swin(config(1, channels=4)))
    model.preprocessing = Preprocessing((100.0,) * 4, (30.0,) * 4, ("a", "b", "c", "d"), scale=1)
    file = torch.jit.load(exported(model, tmp_path, "--preprocess", "nchw"))
    pixels = torch.randn(2, 4, 32, 32) * 30 + 100
    pixels[:, :, :5] = float("nan")
    torch.testing.assert_close(file(pixels)[0], model(model.preprocess(pixels)))


def test_onnx_with_int8_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One stage of two blocks, of which one is shifted: most of the time of such a file is torch.export's."""
    model = noisy(SwinClassifier(config(1, depths=(2,)), 2))
    model.labels = ("dark", "light")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "photos" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"no picture")
    words = ["--preprocess", "nhwc", "--int8", str(tmp_path / "photos"), "--workers", "0"]
    path = exported(model, tmp_path, *words, to="onnx")
    said = capsys.readouterr().out
    assert {each.name for each in tmp_path.iterdir()} == {"model", "photos", "file.onnx", "file_int8.onnx"}
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("images", ["batch", "height", "width", 3], "tensor(uint8)")
    assert [each.name for each in session.get_outputs()] == ["logits"]
    known = session.get_modelmeta().custom_metadata_map
    assert known["swin_mim.labels"].split("\n") == ["dark", "light"]
    small = onnxruntime.InferenceSession(path.with_name("file_int8.onnx"))
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= {
        node.op_type for node in onnx.load(path.with_name("file_int8.onnx")).graph.node
    }
    ours = model(model.preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2))).detach()
    float32, int8 = (each.run(None, {"images": pixels})[0] for each in (session, small))
    np.testing.assert_allclose(float32, ours, rtol=1e-4, atol=1e-5)
    truth = np.arange(6) % 2
    agreed = (float32.argmax(1) == int8.argmax(1)).mean()
    assert f"int8: the same class for {agreed:.2%} of 6 images (1 cannot be read)\n" in said
    accuracy = [(each.argmax(1) == truth).mean() for each in (int8, float32)]
    assert "int8: accuracy {:.2%}, fp32 {:.2%}, of 6 images with a label\n".format(*accuracy) in said
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.png").write_bytes(b"no picture")
    (bad / "y.png").write_bytes(b"no picture")
    graph = load_graph(str(tmp_path / "model"), None, "nhwc")
    none = open_labelled_images(graph, "model", str(bad), {"workers": 0}, None)
    with pytest.raises(UserError, match=f"none of the 2 images of '{bad}' can be read, the first: x.png: "):
        measure(graph, (path, path.with_name("file_int8.onnx")), none, (32, 32))
    odd = np.random.default_rng(1).integers(0, 256, (5, 36, 12, 3), dtype=np.uint8)
    (found,) = session.run(None, {"images": odd})
    right = model(model.preprocess(torch.from_numpy(odd).permute(0, 3, 1, 2))).detach()
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_int8_is_measured_at_the_size_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.effect_noise((48, 48), 60 + number).convert("RGB").save(tmp_path / "photos" / f"{number}.png")
    words = ["--int8", str(tmp_path / "photos"), "--size", "48", "64", "--workers", "0"]
    exported(noisy(SwinClassifier(config(1, depths=(1,)), 2)), tmp_path, *words, to="onnx")
    assert " of 3 images" in capsys.readouterr().out


def test_torch_export_of_one_size_and_a_model_that_is_used_afterwards(tmp_path: Path) -> None:
    """What a Swin V2 keeps of its coordinates must not be what a graph was made with."""
    from swin_mim.models.blocks import v2

    v2._coordinates_on.cache_clear()
    model = noisy(Swin(config(2, depths=(2,))))
    torch.export.export(model, (torch.randn(1, 3, 32, 32),))
    with torch.inference_mode():
        assert type(model(torch.randn(1, 3, 32, 32))) is Tensor
    path = exported(model, tmp_path, "--size", "36", "20", to="torch-export")
    file = torch.export.load(path).module()
    check(file, model, [(1, 36, 20), (4, 36, 20)])
    with pytest.raises(Exception, match=r"Guard failed|shape"):
        file(torch.randn(1, 3, 32, 32))


# --- What is refused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    SimMIM(config(1)).save_pretrained(folder / "mim")
    SwinClassifier(config(1), 2).save_pretrained(folder / "fine")
    SwinDetector(config(1), 2).save_pretrained(folder / "det")
    return folder


def refused(models: Path, model: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that it says, nothing being left."""
    before = sorted(models.rglob("*"))
    with pytest.raises(SystemExit) as left:
        command.main([str(models / model), *words])
    said = capsys.readouterr()
    assert (left.value.code, said.err.count("\n")) == (2, 1)
    assert sorted(models.rglob("*")) == before
    return said.err


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("det", ["--to", "onnx"], "is a SwinDetector, whose boxes are not exported"),
        ("mim", ["--to", "onnx", "--output", "logits"], "is a SimMIM, which has no logits: --output features"),
        ("none", ["--to", "onnx"], "does not exist"),
        ("fine", ["--to", "onnx", "--out", "x.pt2"], "--out x.pt2 must end in .onnx, with --to onnx"),
        ("fine", ["--to", "onnx", "--out", "no/x.onnx"], "--out no/x.onnx: there is no folder no"),
        ("fine", ["--to", "onnx", "--size", "30", "32"], "--size 30 is not a multiple of the patch, which is 4"),
        ("fine", ["--to", "torchscript", "--size", "32", "32"], "a TorchScript file takes any size"),
        ("fine", ["--to", "torchscript", "--int8", "photos"], "--int8 is of ONNX files: --to onnx, not torchscript"),
        ("fine", ["--to", "onnx", "--split", "test"], "--split says how the images of --int8 are read"),
        ("fine", ["--to", "onnx", "--int8", "nowhere"], "nowhere"),
        ("fine/model.safetensors", ["--to", "onnx"], "is not a folder that the file could go into: say where with"),
    ],
)
def test_mistakes_are_one_line(
    models: Path, model: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(models, model, words, capsys)


@pytest.mark.parametrize("suffix", ["torchscript", "pt2", "onnx"])
def test_a_place_that_takes_no_files(
    suffix: str, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """/proc is a folder, also for root, and takes none: said before minutes are spent."""
    monkeypatch.setattr(formats, "write", lambda *_: pytest.fail("the model was traced"))
    kind = {"pt2": "torch-export"}.get(suffix, suffix)
    said = refused(models, "fine", ["--to", kind, "--out", f"/proc/x.{suffix}"], capsys)
    assert f"/proc/x.{suffix} could not be written: " in said


def test_a_kill_while_a_model_is_traced_leaves_no_file(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        assert [*(tmp_path / "out").iterdir()] == []
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(formats, "write", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        command.main([str(models / "fine"), "--to", "torchscript", "--out", str(tmp_path / "out" / "x.torchscript")])


def test_what_is_there_stays_without_overwrite(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.torchscript"
    out.write_text("mine")
    words = ["--to", "torchscript", "--out", str(out)]
    assert f"{out} is there already: --overwrite replaces it" in refused(models, "fine", words, capsys)
    assert out.read_text() == "mine"
    command.main([str(models / "fine"), *words, "--overwrite"])
    torch.jit.load(out)


@pytest.mark.parametrize("how", ["values", "nan", "nan of several", "shape"])
def test_a_file_that_differs_is_not_written(
    models: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = formats.KINDS["torchscript"]

    def off(path: Path) -> Any:
        changes = {
            "values": lambda x: x * 1.002,
            "nan": lambda x: x * float("nan"),
            "nan of several": lambda x: x * (1 if len(x) == 1 else float("nan")),
            "shape": lambda x: x[:, :1],
        }
        return lambda images: [changes[how](each) for each in kind.open(path)(images)]

    monkeypatch.setitem(formats.KINDS, "torchscript", kind._replace(open=off))
    said = refused(models, "fine", ["--to", "torchscript"], capsys)
    assert "nothing was written" in said
    wanted = {"values": "logits differs from the model's by 2.0e-03", "nan": "by nan", "shape": "is (1, 1) where"}
    assert wanted[how.removesuffix(" of several")] in said


def test_without_onnxruntime_it_says_what_to_install(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = refused(models, "fine", ["--to", "onnx"], capsys)
    assert "--to onnx needs onnxruntime, which is not installed: pip install 'swin-mim[onnx]'" in said


# --- The card


def test_the_card_of_a_published_model_lists_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = noisy(SimMIM(config(1)))
    model.save_pretrained(folder)
    plain = (folder / "README.md").read_text()
    for output in ("pyramid", "features", "features"):
        command.main([str(folder), "--to", "torchscript", "--output", output, "--overwrite"])
    card = (folder / "README.md").read_text()
    start, end = card.index("## Exported files"), card.index("## Limits")
    rows = [line for line in card[start:end].splitlines() if line.startswith("| [")]
    takes = "any number of images, sides that are multiples of 4, from 8 on, normalised float32 NCHW"
    assert rows == [f"| [{name}.torchscript]({name}.torchscript) | {takes} |" for name in ("features", "pyramid")]
    assert card[:start] + card[end:] == plain
    assert set(repository._files_of(folder)) >= {"features.torchscript", "pyramid.torchscript"}
    saved.check_replaceable(folder)
    (folder / "pyramid.torchscript").unlink()
    command.main([str(folder), "--to", "torchscript", "--output", "embedding"])
    assert "pyramid" not in (folder / "README.md").read_text()[start:end]
    model.save_pretrained(folder)  # of other weights these files would be wrong
    assert not list(folder.glob("*.torchscript"))
    assert (folder / "README.md").read_text() == plain


def test_other_names_are_refused_in_a_published_model(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--to", "torchscript", "--out", str(models / "fine" / "mine.torchscript")]
    assert "files are named after their output: logits.torchscript" in refused(models, "fine", words, capsys)
    words = ["--to", "torchscript", "--output", "pyramid", "--out", str(models / "fine" / "logits.torchscript")]
    assert "files are named after their output: pyramid.torchscript" in refused(models, "fine", words, capsys)


# --- Every kind of output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "version", "to"),
    [
        *((what, version, "onnx") for what in ("logits", "pyramid", "upernet") for version in (1, 2)),
        ("fpn", 2, "onnx"),
        ("pyramid", 1, "torch-export"),  # of which those of ONNX are made
        ("upernet", 2, "torch-export"),
    ],
)
def test_files_of_every_kind_at_any_size(to: Any, version: int, what: Any, tmp_path: Path) -> None:
    def wanted(images: Tensor) -> Any:
        if what == "pyramid":
            return model.encoder.pyramid(images)
        found = model(images)
        return found if isinstance(found, Tensor) else found.logits

    if what in ("upernet", "fpn"):
        model = noisy(SwinSegmenter(config(version), 3, head=what, head_channels=8))
    else:
        model = noisy(SwinClassifier(config(version), 3))
    words = ["--output", "pyramid"] if what == "pyramid" else []
    check(formats.KINDS[to].open(exported(model, tmp_path, *words, to=to)), wanted, SIZES)


ALONE = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession("file.onnx")
(logits,) = session.run(None, {"images": np.load("images.npy")})
np.save("logits.npy", logits)
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "swin_mim", "onnx", "transformers", "timm"}))
"""


@pytest.mark.slow
def test_a_file_runs_where_there_is_only_onnxruntime_and_numpy(tmp_path: Path) -> None:
    model = noisy(SwinClassifier(config(2), 3))
    exported(model, tmp_path, to="onnx")
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name.split("-")[0].split(".")[0] in ("numpy", "onnxruntime"):
            (packages / path.name).symlink_to(path)
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    places = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    Path(sysconfig.get_path("purelib", "venv", places), "packages.pth").write_text(f"{packages}\n")
    images = torch.randn(5, 3, 36, 52)
    np.save(tmp_path / "images.npy", images.numpy())
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, "-c", ALONE], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    failed = subprocess.run([python, "-c", "import torch"], env=clean, capture_output=True, text=True, timeout=120)
    assert "No module named 'torch'" in failed.stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(images).detach(), rtol=1e-4, atol=1e-5)
