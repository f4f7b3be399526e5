"""Train a Swin Transformer to give every pixel a class (semantic segmentation), or measure one.

    accelerate launch -m swin_mim.recipes.segment --config segment_images \
        --model.pretrained runs/NAME --model.image_size 512 --data.source DIR   # DIR/images and DIR/masks
    swin-mim segment --evaluate --model.pretrained FOLDER --data.source DIR --predictions masks

The same command again continues the run. `--help` lists every setting. `swin-mim copy segment.py .` gives you this
file to change; start it with python or accelerate launch.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import swin_mim  # noqa: F401  before torch, whose threads it tells how to wait

# isort: split
import torch

from swin_mim.architecture import as_pair
from swin_mim.counts import counted
from swin_mim.data.dense.class_counts import class_pixels, pixel_weights
from swin_mim.data.dense.joint import unpack
from swin_mim.data.loading.loader import Batch, TrainingLoader
from swin_mim.errors import one_line_errors
from swin_mim.evaluation.classification_evaluator import last_report
from swin_mim.evaluation.dense.measure_segmentation import evaluator_of, measure
from swin_mim.evaluation.dense.segmentation import metrics
from swin_mim.evaluation.finished import metrics_text
from swin_mim.evaluation.report.keep import report_kept
from swin_mim.models.dense.segmenter import segmentation_loss
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.checkpoints.state import Best, better, published_step
from swin_mim.training.config.commands import segment_config
from swin_mim.training.config.dense.segment import SegmentConfig
from swin_mim.training.config.dense.segment_checks import best_by
from swin_mim.training.dense.exports import export_segmenter
from swin_mim.training.dense.pairs import joint_transform, to_train_and_evaluate
from swin_mim.training.dense.segmenter import build_segmenter
from swin_mim.training.loop.optim import adamw
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.trainer import Evaluation, fit
from swin_mim.training.run.export import Exporter, check_export, take_published
from swin_mim.training.run.folder import MASK_COUNTS, reported
from swin_mim.training.run.jsonl import disk_may_fail
from swin_mim.training.run.run import open_run


def main(config: SegmentConfig, fit: Callable[..., bool] = fit) -> int:
    """Run one segmentation, or what is left of it -> exit code.

    Args:
        fit: the training loop.
    """
    data, optim, train = config.data, config.optim, config.train
    if config.evaluate:
        return measure(config)
    with open_run(config) as run, report_kept(run) as page:
        # Images with masks: to train on, and to evaluate on.
        counts = run.folder / MASK_COUNTS
        pairs, evaluated = to_train_and_evaluate(data, counts)
        schedule = TrainingSchedule.from_config(run.config, images=len(pairs), accumulation=run.accumulation)

        # Model: new weights, those of model.pretrained, or the run's own newest checkpoint.
        torch.manual_seed(config.run.seed)
        options = {"attention": train.attention, "activation_checkpointing": train.activation_checkpointing}
        model = build_segmenter(config.model, data, pairs.names, checkpoint=run.newest, **options)
        origin = check_export(run, model, pairs.images)
        optimizer = partial(
            adamw, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps, layer_decay=optim.layer_decay
        )
        trained = run.prepare(model, optimizer, ema=train.ema)
        facts = {"evaluation images": evaluated.images.fingerprint}
        checkpoints = run.begin(model, trained, schedule, pairs.images, **facts)
        state = checkpoints.state

        # Task: image and labels are cropped in the workers as one, and part on the device -> loss.
        preprocess, size = Preprocessor(model.preprocessing, run.device), as_pair(model.encoder.config.image_size)
        weights = torch.from_numpy(pixel_weights(class_pixels(pairs, counts))) if data.balance == "weights" else None
        weights = weights if weights is None else weights.to(run.device)
        unlabelled, auxiliary = pairs.numbers.unlabelled, config.model.auxiliary_weight

        def loss_of(batch: Batch) -> torch.Tensor:
            images, labels = unpack(batch.images, model.encoder.config.in_channels)
            output, labels = trained.model(preprocess(images)), labels.to(run.device)
            return segmentation_loss(output, labels, weights, ignore_index=unlabelled, auxiliary_weight=auxiliary)

        loader = TrainingLoader(
            pairs.images,
            joint_transform(config, model.preprocessing, size, pairs),
            seed=config.run.seed,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            options=run.loader_options(preprocess.pixel_bytes + 4),
        )

        # Evaluator: every evaluation image once, by whatever process; the best step is published.
        evaluator = evaluator_of(config, run, model, evaluated)
        metric, reports = best_by(config.save), run.folder / "evaluation"

        def evaluate(step: int) -> dict[str, float]:
            with trained.average.in_place() if trained.average else nullcontext():
                whole = trained.full.gather()
                outcome = evaluator.outcome(whole)
                measured = metrics(outcome)
                state.best = better(state.best, Best(step, measured[metric]), smaller=metric == "heldout_loss")
                if run.is_main and step == published_step(state, config.save.export):
                    with disk_may_fail("the report of an evaluation"):
                        evaluator.write(reports, outcome, whole, step=step)
            return measured

        every = schedule.steps(config.log.evaluate_every)
        evaluations = [Evaluation(every, evaluate, metrics_text), Evaluation(every, page)]

        # Publishing: export/ of the run's folder, and the same on the Hub if hub.repo names a repository.
        exporter = Exporter(
            run,
            schedule,
            checkpoints,
            ready=checkpoints.writer.wait,  # what is published is read from the newest checkpoint or the best one
            write=lambda: export_segmenter(run, state, origin, pairs, last_report(reports)),
        )

        # Loop.
        text = f"{size[0]}x{size[1]} px, {counted(len(pairs), 'image')} and {len(evaluated)} to evaluate on"
        subject = counted(len(pairs.names), "class", "classes") + f" of pixels, {config.model.head}", text
        run.announce(subject, model.encoder, trained, schedule, state.step)
        with reported(run.folder, state, schedule.total_steps, main=run.is_main):
            if fit(run, trained, loss_of, loader, schedule, checkpoints, evaluations, exporter):
                run.stop.leave()
                step = take_published(run, trained.full.model, state, config.save.export)
                folder = Path(config.predictions) if config.predictions else None
                outcome = evaluator.outcome(trained.full.model, folder)
                if run.is_main:
                    evaluator.write(reports, outcome, trained.full.model, step=step)
                run.log_info(f"published: the weights after step {step}  {metrics_text(metrics(outcome))}")
        exporter.conclude(lambda: f"finished; see {run.folder}: export/, evaluation/, plots/")
        return run.exit_code(checkpoints, schedule)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(segment_config()))
