"""A small residual network trained from new weights: what somebody with few labels would take instead.

It is trained by the settings of a fine-tuning, of which all count but those of the encoder: the same labelled pictures
in the same order under the same augmentation, the same optimizer, schedule, loss and evaluation.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from swin_mim.architecture import as_pair
from swin_mim.data.loading.loader import LoaderOptions, TrainingLoader
from swin_mim.data.transforms.mixup import Mixing, soft_targets
from swin_mim.evaluation.classification import metrics
from swin_mim.evaluation.classification_evaluator import ClassificationEvaluator
from swin_mim.evaluation.reader import Reader
from swin_mim.models.classifier import classification_loss
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.finetune_checks import mixes
from swin_mim.training.labelled_images import finetune_transform, to_train_and_evaluate
from swin_mim.training.loop.optim import adamw
from swin_mim.training.loop.schedule import TrainingSchedule, due
from swin_mim.training.run.jsonl import append_line
from swin_mim.weights.config_json import Preprocessing

WIDTHS, BLOCKS = (32, 64, 128), (1, 1, 2)
"""Channels and blocks of the stages; each but the first halves the grid."""


class Block(nn.Module):
    """Two convolutions of 3x3 with batch norms, and what came in added (ResNet's basic block, arXiv 1512.03385)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            *convolution(before, width, stride), nn.ReLU(inplace=True), *convolution(width, width)
        )
        same = before == width and stride == 1
        self.keep = nn.Identity() if same else nn.Sequential(*convolution(before, width, stride, size=1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, width, H / stride, W / stride)."""
        return (self.change(images) + self.keep(images)).relu()


def convolution(before: int, width: int, stride: int = 1, size: int = 3) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, width, size, stride, size // 2, bias=False), nn.BatchNorm2d(width)


def convnet(classes: int, side: int) -> nn.Sequential:
    """Build the network, in training mode: normalised images (B, 3, side, side) -> logits (B, classes).

    The first stage has a grid of 32 x 32, so that larger images cost the same.
    """
    layers: list[nn.Module] = [*convolution(3, WIDTHS[0], max(1, side // 32)), nn.ReLU(inplace=True)]
    before = WIDTHS[0]
    for stage, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
        for block in range(blocks):
            layers.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    whole = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    return whole.to(memory_format=torch.channels_last)  # 1.2 times as fast on a CPU


def train(config: FinetuneConfig, folder: Path) -> None:
    """Train the network by these settings, and write what `swin-mim finetune` writes of it: metrics, evaluation.

    Raises:
        UserError: the images cannot be opened.
    """
    optim, augment, size = config.optim, config.augment, as_pair(config.model.image_size or 0)
    images, evaluated = to_train_and_evaluate(config.data)
    schedule = TrainingSchedule.from_config(config, images=len(images), accumulation=1)
    torch.manual_seed(config.run.seed)
    model = convnet(len(images.names), size[0])
    optimizer = adamw(model, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps)
    known = Preprocessing(interpolation=config.data.interpolation, crop_pct=config.data.crop_pct)
    preprocess, targets = Preprocessor(known, torch.device("cpu")), torch.from_numpy(images.targets)
    loader = TrainingLoader(
        images.images,
        finetune_transform(config, known, size),
        seed=config.run.seed,
        global_batch=config.train.global_batch,
        micro_batch=config.train.global_batch,
    )
    reader = Reader(preprocess, size, lambda sums: sums, lambda read: read, config.train.micro_batch, LoaderOptions())
    evaluator, every = ClassificationEvaluator(evaluated, reader), schedule.steps(config.log.evaluate_every)
    mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_probability, augment.mix_switch, config.run.seed)
    losses, batches = [], loader.batches(0)
    for step in range(1, schedule.total_steps + 1):
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step - 1, 1.0)
        wanted = soft_targets(targets[batch.indices], len(images.names), augment.label_smoothing)
        pictures = preprocess(batch.images)
        if mixes(augment):
            pictures, wanted = mixing(pictures, wanted, batch.start)
        loss = classification_loss(model(pictures), wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        losses.append(loss.item())
        if due(step, schedule.log_every, schedule.total_steps):
            append_line(folder / "metrics.jsonl", {"step": step, "loss": sum(losses) / len(losses)})
            losses = []
        if due(step, every, schedule.total_steps):
            append_line(folder / "metrics.jsonl", {"step": step, **metrics(evaluator.outcome(model))})
    evaluator.write(folder / "evaluation", evaluator.outcome(model), step=schedule.total_steps)
