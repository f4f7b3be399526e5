"""Windows over images, against a loop over pixels' windows that keeps everything."""

import pytest
import torch

from swin_mim import SwinConfig, SwinSegmenter
from swin_mim.errors import UserError
from swin_mim.models.dense.sliding import bands, predict, predict_classes

CONFIG = SwinConfig(16, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=2, in_channels=6, version=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SwinSegmenter(CONFIG, 3, head="fpn", head_channels=8).eval()


def reference(model, images, window, stride):
    """The mean of all windows that see a pixel; the last of a row or column ends where the image does."""
    height, width = images.shape[2:]
    total, count = torch.zeros(len(images), 3, height, width), torch.zeros(height, width)
    tops = sorted({min(top, max(height - window[0], 0)) for top in range(0, height, stride[0])})
    lefts = sorted({min(left, max(width - window[1], 0)) for left in range(0, width, stride[1])})
    for top in tops:
        for left in lefts:
            part = torch.zeros(len(images), 6, *window)
            seen = images[:, :, top : top + window[0], left : left + window[1]]
            part[:, :, : seen.shape[2], : seen.shape[3]] = seen
            with torch.no_grad():
                logits = model(part).logits[:, :, : seen.shape[2], : seen.shape[3]]
            total[:, :, top : top + window[0], left : left + window[1]] += logits
            count[top : top + window[0], left : left + window[1]] += 1
    assert count.min() > 0
    return total / count


@pytest.mark.parametrize("size", [(1, 37), (29, 50), (16, 8), (5, 3)])
@pytest.mark.parametrize(("window", "stride"), [((16, 8), (10, 8)), ((8, 8), (3, 7))])
def test_windows_are_averaged_where_they_overlap(model, size, window, stride):
    images = torch.randn(2, 6, *size)
    found = predict(model, images, window, stride)
    torch.testing.assert_close(found, reference(model, images, window, stride), atol=1e-5, rtol=0)
    classes = predict_classes(model, images, window, stride)
    assert classes.dtype == torch.uint8
    assert torch.equal(classes, found.argmax(1).to(torch.uint8))
    assert torch.equal(predict(model, images[1:], window, stride), found[1:]), "it depends on the others of its batch"


def test_an_image_may_be_whole(model):
    images = torch.randn(2, 6, 21, 34)
    with torch.no_grad():
        assert torch.equal(predict(model, images), model(images).logits)
        assert torch.equal(predict_classes(model, images).long(), model(images).logits.argmax(1))


def test_a_scene_is_read_in_parts_and_given_in_bands(model):
    scene, read = torch.randn(6, 41, 30), []

    def part(top, left, height, width):
        assert top + height <= 41
        assert left + width <= 30
        read.append((height, width))
        return scene[:, top : top + height, left : left + width]

    found = list(bands(model, part, (41, 30), 16, 12))
    assert set(read) == {(16, 16)}
    assert [band.top for band in found] == [0, 12, 24, 25]
    assert max(band.logits.shape[1] for band in found) <= 16
    whole = predict(model, scene[None], 16, 12)[0]
    assert torch.equal(torch.cat([band.logits for band in found], dim=1), whole)
    default = predict(model, scene[None], 16)
    assert torch.equal(default, predict(model, scene[None], 16, 10))


def test_what_would_be_wrong_is_refused(model):
    for stride in (17, 0, (4, 20)):
        with pytest.raises(UserError, match="at most the window 16"):
            predict(model, torch.randn(1, 6, 20, 20), 16, stride)
    training = SwinSegmenter(CONFIG, 3, head="fpn", head_channels=8)
    for window in (None, 16):
        with pytest.raises(UserError, match="in training mode"):
            predict(training, torch.randn(1, 6, 20, 20), window)
