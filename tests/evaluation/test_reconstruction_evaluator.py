"""What the parts of the loss are on held-out images, and what they would be with one answer for all of them."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from swin_mim import SimMIM, Swin, SwinConfig
from swin_mim.data.loading.loader import Batch, LoaderOptions
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.reconstruction_evaluator import ReconstructionEvaluator
from swin_mim.masking import BlockMasks
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.models.saving import Preprocessing
from swin_mim.models.targets.teacher import open_teacher
from swin_mim.training.teaching import NO_LESSONS, Lessons

CONFIG = SwinConfig(32, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4)
SEEN = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
COUNT = 7


@pytest.fixture
def lessons(tmp_path):
    torch.manual_seed(0)
    encoder = Swin(SwinConfig(32, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 4), window_size=4))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return Lessons(open_teacher(str(encoder.save_pretrained(tmp_path / "teacher")), SEEN, None), torch.float32)


def evaluator(lessons, pixels, sizes, reduce=lambda values: values):
    """Of the images in batches of these sizes."""
    reader = Reader(Preprocessor(SEEN, torch.device("cpu")), (32, 32), reduce, iter, 4, LoaderOptions(0, 1))
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    batches = [
        Batch(part, start, [], torch.arange(start, start + len(part)))
        for part, start in zip(pixels.split(sizes), starts, strict=True)
    ]
    return ReconstructionEvaluator(batches, reader, BlockMasks.of(CONFIG, unit=8, ratio=0.6), lessons=lessons)


@pytest.fixture
def pixels():
    coarse = torch.randint(0, 256, (COUNT, 3, 4, 4), dtype=torch.uint8)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("options", [{}, {"target": "hog"}, {"stage_weights": (0.5, 0.5)}])
def test_a_teacher_is_heard_on_whole_images_and_the_model_sees_masked_ones(lessons, pixels, options):
    model = SimMIM(CONFIG, teacher_width=lessons.width, teacher_weight=0.25, **options)
    one = evaluator(lessons, pixels, [4, 3])
    measured = one.loss(model)
    assert set(measured) >= {"heldout_loss", "heldout_teacher_loss"}
    whole = one.reader.preprocess(pixels)
    with torch.no_grad():
        model.eval()
        said = []
        for number in range(COUNT):
            mask = one.masks.draw(1, seed=0, start=number, device="cpu")
            tokens = torch.where(mask[..., None], model.mask_token, model.encoder.embed(whole[number : number + 1]))
            features = model.encoder.encode_stages(tokens)[0].mean((1, 2))
            said.append(F.cosine_similarity(model.teacher_head(features), lessons.teacher(whole[number : number + 1])))
    assert measured["heldout_teacher_loss"] == pytest.approx(1 - torch.cat(said).mean().item(), abs=1e-6)
    without = evaluator(lessons, pixels, [7]).loss(model)
    assert without == pytest.approx(measured, abs=1e-6)
    plain = SimMIM(CONFIG, **options)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "teacher" not in key})
    alone = ReconstructionEvaluator(one.batches, one.reader, one.masks).loss(plain)
    assert alone == pytest.approx({key: measured[key] for key in measured if "teacher" not in key}, abs=1e-6)
    assert len(alone) == len(measured) - 1


def test_no_constant_answer_is_better_than_the_one_that_is_measured(lessons, pixels):
    model = SimMIM(CONFIG, teacher_width=lessons.width)
    one = evaluator(lessons, pixels, [4, 3])
    measured = one.baselines(model)["constant_teacher_loss"]
    features = lessons.teacher(one.reader.preprocess(pixels))
    direction = torch.zeros(lessons.width, requires_grad=True)
    with torch.no_grad():
        direction += features[0]
    optimizer = torch.optim.LBFGS([direction], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (1 - F.cosine_similarity(direction[None], features)).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert loss().item() == pytest.approx(measured, abs=1e-5)
    assert 1e-4 < measured < 1
    same = evaluator(lessons, pixels[:1].expand(COUNT, -1, -1, -1), [4, 3])
    assert same.baselines(model)["constant_teacher_loss"] == pytest.approx(0, abs=1e-6)


def test_the_teacher_is_asked_once_and_a_process_may_have_no_image(lessons, pixels):
    model, asked = SimMIM(CONFIG, teacher_width=lessons.width), []
    handle = lessons.teacher.register_forward_hook(lambda *_: asked.append(1))
    one = evaluator(lessons, pixels, [4, 3])
    for _ in range(3):
        one.loss(model)
    one.baselines(model)
    handle.remove()
    assert len(asked) == 2, "batches"
    parts = []
    evaluator(lessons, pixels, [4, 3], reduce=lambda values: parts.append(values) or values).baselines(model)
    empty = evaluator(lessons, pixels[:0], [], reduce=lambda values: values + parts.pop(0))
    assert math.isfinite(empty.baselines(model)["constant_teacher_loss"])
    assert not parts, "as many sums as the other process"


@pytest.mark.parametrize(("options", "gaps"), [({}, True), ({"stage_weights": (0.5, 0.5)}, False)])
def test_no_constant_histogram_is_better_than_the_one_that_is_measured(pixels, options, gaps):
    model = SimMIM(CONFIG, target="hog", **options)
    one = evaluator(NO_LESSONS, pixels, [COUNT])
    if gaps:
        valid = torch.ones(COUNT, 32, 32, dtype=torch.bool)
        valid[0, :9], valid[2, :, 20:] = False, False
        one = replace(one, batches=[one.batches[0]._replace(valid=valid)])
    measured = one.baselines(model)
    names = [name for name in one.loss(model) if name.endswith("hog_loss")]
    assert [name.replace("heldout", "constant") for name in names] == [n for n in measured if n.startswith("constant")]

    def losses():
        return torch.tensor([one.loss(model)[name] for name in names])

    with torch.no_grad():
        for head in model.stage_heads.values():
            head.proj.weight.zero_()
    # the loss of a constant is a parabola in each of its numbers: its lowest point is that of three
    biases = [head.proj.bias for head in model.stage_heads.values()]
    for place in range(len(biases[0])):
        values = []
        for value in (-0.5, 0.0, 0.5):
            with torch.no_grad():
                for bias in biases:
                    bias[place] = value
            values.append(losses())
        left, middle, right = values
        lowest = 0.25 * (left - right) / (left - 2 * middle + right)
        with torch.no_grad():
            for bias, found in zip(biases, lowest, strict=True):
                bias[place] = found
    wanted = torch.tensor([measured[name.replace("heldout", "constant")] for name in names])
    torch.testing.assert_close(losses(), wanted, rtol=1e-4, atol=1e-6)
    assert (wanted > 1e-3).all()


def test_sums_of_histograms_are_those_of_all_processes(pixels):
    model = SimMIM(CONFIG, target="hog")
    whole = evaluator(NO_LESSONS, pixels, [COUNT]).baselines(model)["constant_hog_loss"]
    assert evaluator(NO_LESSONS, pixels, [3, 4]).baselines(model)["constant_hog_loss"] == pytest.approx(whole, rel=1e-6)
    parts = []
    evaluator(NO_LESSONS, pixels, [4, 3], reduce=lambda values: parts.append(values) or values).baselines(model)
    empty = evaluator(NO_LESSONS, pixels[:0], [], reduce=lambda values: values + parts.pop(0))
    assert empty.baselines(model)["constant_hog_loss"] == pytest.approx(whole, rel=1e-6)
    assert not parts, "as many sums as the other process"
