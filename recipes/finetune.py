"""Fine-tune a Swin Transformer as a classifier, or measure one.

    accelerate launch -m swin_mim.recipes.finetune --config finetune_swin_base_224 \
        --model.pretrained runs/NAME --data.source DIR/train --data.validation DIR/val
    swin-mim finetune --evaluate --model.pretrained FOLDER --data.source DIR --predictions predictions.csv

The same command again continues the run. `--help` lists every setting. `swin-mim copy finetune.py .` gives you this
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
from swin_mim.data.labels import class_weights
from swin_mim.data.loading.loader import Batch, TrainingLoader
from swin_mim.data.sampling import BalancedOrder
from swin_mim.data.transforms.mixup import Mixing, multi_hot, soft_targets
from swin_mim.errors import one_line_errors
from swin_mim.evaluation.classification import metrics
from swin_mim.evaluation.classification_evaluator import ClassificationEvaluator, last_report
from swin_mim.evaluation.finished import metrics_text
from swin_mim.evaluation.measure import measure
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.report.keep import report_kept
from swin_mim.models.classifier import classification_loss
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.checkpoints.state import Best, better, published_step
from swin_mim.training.config.commands import finetune_config
from swin_mim.training.config.finetune import FinetuneConfig
from swin_mim.training.config.finetune_checks import best_by, mixes
from swin_mim.training.labelled_images import finetune_transform, to_train_and_evaluate
from swin_mim.training.loop.optim import adamw
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.trainer import Evaluation, fit
from swin_mim.training.models import build_classifier
from swin_mim.training.run.export import Exporter, check_export, export_classifier, take_published
from swin_mim.training.run.folder import reported
from swin_mim.training.run.jsonl import disk_may_fail
from swin_mim.training.run.run import open_run


def main(config: FinetuneConfig, fit: Callable[..., bool] = fit) -> int:
    """Run one fine-tuning, or what is left of it -> exit code.

    Args:
        fit: the training loop.
    """
    data, augment, optim, train = config.data, config.augment, config.optim, config.train
    if config.evaluate:
        return measure(config)
    with open_run(config) as run, report_kept(run) as page:
        # Images with labels: to train on, and to evaluate on.
        images, evaluated = to_train_and_evaluate(data)
        names, targets = images.names, torch.from_numpy(images.targets).to(run.device)
        schedule = TrainingSchedule.from_config(run.config, images=len(images), accumulation=run.accumulation)

        # Model: new weights, those of model.pretrained, or the run's own newest checkpoint.
        torch.manual_seed(config.run.seed)
        options = {"attention": train.attention, "activation_checkpointing": train.activation_checkpointing}
        model = build_classifier(config.model, data, names, checkpoint=run.newest, **options)
        origin = check_export(run, model, images)
        optimizer = partial(
            adamw, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps, layer_decay=optim.layer_decay
        )
        trained = run.prepare(model, optimizer, ema=train.ema)
        checkpoints = run.begin(model, trained, schedule, images, **{"evaluation images": evaluated.fingerprint})
        state = checkpoints.state

        # Task: augmented in the workers, normalised and mixed on the device -> loss.
        preprocess, size = Preprocessor(model.preprocessing, run.device), as_pair(model.encoder.config.image_size)
        weights = torch.from_numpy(class_weights(images)).to(run.device) if data.balance == "weights" else None
        mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_probability, augment.mix_switch, config.run.seed)
        encode = multi_hot if data.multi_label else soft_targets

        def loss_of(batch: Batch) -> torch.Tensor:
            labels = targets[batch.indices.to(run.device, non_blocking=True)]
            pixels, wanted = preprocess(batch.images), encode(labels, len(names), augment.label_smoothing)
            if mixes(augment):
                pixels, wanted = mixing(pixels, wanted, batch.start)
            return classification_loss(trained.model(pixels), wanted, weights, multi_label=data.multi_label)

        loader = TrainingLoader(
            images.images,
            finetune_transform(config, model.preprocessing, size),
            seed=config.run.seed,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            options=run.loader_options(preprocess.pixel_bytes),
            order=BalancedOrder(images.targets, config.run.seed) if data.balance == "sampling" else None,
        )

        # Evaluator: every evaluation image once, by whatever process; the best step is published.
        reader = Reader(preprocess, size, run.reduce, run.watch, train.micro_batch, run.loader_options())
        evaluator = ClassificationEvaluator(evaluated, reader)
        metric, reports = best_by(config.save, multi_label=data.multi_label), run.folder / "evaluation"

        def evaluate(step: int) -> dict[str, float]:
            with trained.average.in_place() if trained.average else nullcontext():
                outcome = evaluator.outcome(trained.full.gather())
            measured = metrics(outcome)
            state.best = better(state.best, Best(step, measured[metric]), smaller=metric == "heldout_loss")
            if run.is_main and step == published_step(state, config.save.export):
                with disk_may_fail("the report of an evaluation"):
                    evaluator.write(reports, outcome, step=step)
            return measured

        every = schedule.steps(config.log.evaluate_every)
        evaluations = [Evaluation(every, evaluate, metrics_text), Evaluation(every, page)]

        # Publishing: export/ of the run's folder, and the same on the Hub if hub.repo names a repository.
        exporter = Exporter(
            run,
            schedule,
            checkpoints,
            ready=checkpoints.writer.wait,  # what is published is read from the newest checkpoint or the best one
            write=lambda: export_classifier(run, state, origin, images, last_report(reports)),
        )

        # Loop.
        counts = f"{size[0]}x{size[1]} px, {counted(len(images), 'image')} and {len(evaluated)} to evaluate on"
        run.announce((counted(len(names), "class", "classes"), counts), model.encoder, trained, schedule, state.step)
        with reported(run.folder, state, schedule.total_steps, main=run.is_main):
            if fit(run, trained, loss_of, loader, schedule, checkpoints, evaluations, exporter):
                run.stop.leave()
                step = take_published(run, trained.full.model, state, config.save.export)
                outcome = evaluator.outcome(trained.full.model)
                if run.is_main:
                    evaluator.write(reports, outcome, step=step)
                    if config.predictions:
                        evaluator.write_predictions(Path(config.predictions), outcome)
                run.log_info(f"published: the weights after step {step}  {metrics_text(metrics(outcome))}")
        exporter.conclude(lambda: f"finished; see {run.folder}: export/, evaluation/, plots/")
        return run.exit_code(checkpoints, schedule)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(finetune_config()))
