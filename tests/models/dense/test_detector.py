"""A detector is torchvision's, with our backbone in it."""

import json
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from swin_mim import SimMIM, Swin, SwinConfig
from swin_mim.errors import UserError
from swin_mim.hub.saved import to_theirs
from swin_mim.models.dense.detector import SwinDetector

CONFIG = SwinConfig(64, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4)


def detector(**options) -> SwinDetector:
    """With heads that say something: new ones give every class about the same score."""
    model = SwinDetector(CONFIG, 3, head_channels=8, **options)
    for norm in model.norms:
        nn.init.normal_(norm.weight)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.5)
    return model


class Features(nn.Module):
    """torchvision's Swin, its maps through the norms and the pyramid of a detector."""

    out_channels = 8

    def __init__(self, model: SwinDetector) -> None:
        super().__init__()
        self.swin = SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], stochastic_depth_prob=0.0)
        encoder = model.encoder
        loaded = self.swin.load_state_dict(
            to_theirs("torchvision", encoder.description(), encoder.state_dict()), strict=False
        )
        assert (loaded.missing_keys, loaded.unexpected_keys) == (["head.weight", "head.bias"], [])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in (8, 16))
        for mine, theirs in zip((*model.norms, encoder.norm), self.norms, strict=True):
            theirs.load_state_dict(mine.state_dict())
        self.fpn = FeaturePyramidNetwork([8, 16], 8, LastLevelMaxPool())
        self.fpn.load_state_dict(model.fpn.state_dict())

    def forward(self, images):
        maps, x = OrderedDict(), images
        for number, layer in enumerate(self.swin.features):
            x = layer(x)
            if number % 2:
                maps[str(number // 2)] = self.norms[number // 2](x).permute(0, 3, 1, 2)
        return self.fpn(maps)


def reference(model: SwinDetector) -> MaskRCNN:
    anchors = AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3)
    theirs = MaskRCNN(
        Features(model),
        box_head=TwoMLPHead(8 * 49, 32),
        box_predictor=FastRCNNPredictor(32, 4),
        mask_head=MaskRCNNHeads(8, (8,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(8, 8, 4),
        min_size=64,
        max_size=64,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], output_size=7, sampling_ratio=2),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1"], output_size=14, sampling_ratio=2),
        size_divisible=8,
        _skip_resize=True,  # in training, where it would draw a size
    )
    theirs.rpn.load_state_dict(model.rpn.state_dict())
    theirs.roi_heads.load_state_dict(model.roi_heads.state_dict())
    return theirs


def some_targets():
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 10:40, 8:30] = masks[1, 20:60, 30:60] = 1
    boxes = torch.tensor([[8.0, 10, 30, 40], [30, 20, 60, 60]])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [
        {"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks},
        {**nothing, "masks": torch.zeros(0, 64, 64, dtype=torch.uint8)},
    ]


def test_losses_gradients_and_detections_are_torchvisions(one_thread):
    model = detector()
    theirs, images, targets = reference(model), torch.randn(2, 3, 64, 64), some_targets()
    model.train(), theirs.train()
    torch.manual_seed(1)
    losses = model(images, targets)
    torch.manual_seed(1)
    expected = theirs(list(images), [{**each, "labels": each["labels"] + 1} for each in targets])
    assert losses.keys() == expected.keys()
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(expected[key].item(), abs=1e-4), key
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    ours = {name: each.grad for name, each in model.named_parameters()}
    assert all(grad is not None for grad in ours.values()), [name for name, grad in ours.items() if grad is None]
    for mine, other in (
        ("encoder.patch_embed.proj.weight", theirs.backbone.swin.features[0][0].weight),
        ("encoder.layers.1.blocks.1.mlp.fc1.weight", theirs.backbone.swin.features[3][1].mlp[0].weight),
        ("norms.0.weight", theirs.backbone.norms[0].weight),
        ("fpn.inner_blocks.0.0.weight", theirs.backbone.fpn.inner_blocks[0][0].weight),
    ):
        torch.testing.assert_close(ours[mine], other.grad, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        found, wanted = model.eval()(images), theirs.eval()(list(images))
    assert sum(len(each["boxes"]) for each in found) > 0
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a["masks"], b["masks"][:, 0], atol=1e-3, rtol=1e-3)
        assert torch.equal(a["labels"], b["labels"] - 1)


def test_heads_are_torchvisions_own(one_thread):
    """Names and shapes of a Mask R-CNN as torchvision builds it, with 256 channels."""
    with torch.device("meta"):
        ours = SwinDetector(SwinConfig(224), 80)
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
    for part in ("rpn", "roi_heads"):
        found, wanted = (getattr(model, part).state_dict() for model in (ours, theirs))
        assert {key: value.shape for key, value in found.items()} == {key: each.shape for key, each in wanted.items()}
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes


def test_images_of_any_sizes_and_detections_at_others(one_thread):
    """An image alone finds what it finds beside a larger one; boxes and masks come at the size that was asked for."""
    model = detector().eval()
    small, large = torch.randn(3, 37, 1), torch.randn(3, 50, 70)
    with torch.no_grad():
        found = model([small, large], sizes=[(37, 1), (100, 140)])
        alone = model([large])
    assert found[0]["masks"].shape[1:] == (37, 1)
    assert found[1]["masks"].shape[1:] == (100, 140)
    assert found[1]["boxes"][:, 2].max() <= 140
    assert len(alone[0]["boxes"]) > 0
    torch.testing.assert_close(found[1]["boxes"][:, :2], alone[0]["boxes"][:, :2] * 2, atol=1e-2, rtol=1e-3)


def test_saved_and_loaded_and_started_from_a_pretraining(tmp_path, one_thread):
    SimMIM(CONFIG).save_pretrained(tmp_path / "simmim")
    model = SwinDetector.from_pretrained(tmp_path / "simmim", num_classes=2, head_channels=8)
    assert model.from_simmim
    assert (model.num_classes, model.masks, model.head_channels) == (2, True, 8)
    model.labels = ("island", "lake")
    folder = model.save_pretrained(tmp_path / "detector")
    again = SwinDetector.from_pretrained(folder)
    assert again.labels == ("island", "lake")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    encoder = Swin.from_pretrained(folder)
    assert torch.equal(encoder.norm.weight, model.encoder.norm.weight)
    boxes_alone = SwinDetector.from_pretrained(folder, num_classes=5, masks=False)
    assert (boxes_alone.num_classes, boxes_alone.masks, boxes_alone.labels) == (5, False, None)
    assert torch.equal(boxes_alone.fpn.inner_blocks[0][0].weight, model.fpn.inner_blocks[0][0].weight)
    with pytest.raises(UserError, match="no detector yet"):
        SwinDetector.from_pretrained(tmp_path / "simmim")


def test_smaller_anchors_are_torchvisions_of_that_size_and_go_with_the_weights(tmp_path, one_thread, caplog):
    model = detector(smallest_anchor=12).eval()
    theirs, images = reference(model).eval(), torch.randn(1, 3, 64, 64)
    theirs.rpn.anchor_generator = AnchorGenerator(((12,), (24,), (48,)), ((0.5, 1.0, 2.0),) * 3)
    with torch.no_grad():
        found, wanted = model(images)[0], theirs(list(images))[0]
    assert len(found["boxes"]) > 0
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=1e-4)
    folder = model.save_pretrained(tmp_path / "small")
    again = SwinDetector.from_pretrained(folder)
    assert (again.smallest_anchor, again.anchors()) == (12, (12, 24, 48))
    assert "| Smallest anchors | 12 pixels |" in (folder / "README.md").read_text()
    assert not caplog.records
    other = SwinDetector.from_pretrained(folder, smallest_anchor=32)
    assert other.anchors() == (32, 64, 128)
    assert "proposes objects by anchors of 12 pixels and more, now of 32: that has to learn" in caplog.text
    with pytest.raises(UserError, match="smallest_anchor is 3: an anchor has a side of 4 pixels or more"):
        SwinDetector(CONFIG, 1, smallest_anchor=3)


def test_files_say_nothing_of_the_usual_anchors(tmp_path, one_thread):
    """As those written before there were others, so that they are read by what knows no others."""
    folder = detector().save_pretrained(tmp_path / "usual")
    document = json.loads((folder / "config.json").read_text())
    assert document["swin_mim"]["head"] == {"masks": True, "channels": 8}
    assert "anchors" not in (folder / "README.md").read_text()
    assert SwinDetector.from_pretrained(folder).anchors() == (32, 64, 128)


@pytest.mark.parametrize("value", [0, 3, 12.0, "12", None, 1 << 20])
def test_a_file_with_anchors_that_no_detector_has(value, tmp_path, one_thread):
    folder = detector(smallest_anchor=12).save_pretrained(tmp_path / "small")
    document = json.loads((folder / "config.json").read_text())
    document["swin_mim"]["head"]["smallest_anchor"] = value
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="smallest_anchor"):
        SwinDetector.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda target: target.update(boxes=torch.tensor([[8.0, 10, 8, 40], [30, 20, 60, 60]])), "without area"),
        (lambda target: target.update(labels=torch.tensor([0, 3])), "outside of 0 to 2"),
        (lambda target: target.pop("masks"), "no mask for each"),
        (lambda target: target.update(labels=torch.tensor([0])), r"labels \(1,\)"),
    ],
)
def test_targets_that_do_not_fit(change, message):
    targets = some_targets()
    change(targets[0])
    with pytest.raises(UserError, match=message):
        detector().train()(torch.randn(2, 3, 64, 64), targets)


def test_training_needs_targets():
    with pytest.raises(UserError, match="of none of the 2 images"):
        detector().train()(torch.randn(2, 3, 64, 64))
    with pytest.raises(UserError, match="at least 1"):
        SwinDetector(CONFIG, 0)
