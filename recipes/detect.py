"""Train a Swin Transformer to find objects, boxes and shapes, or measure one: Faster R-CNN or Mask R-CNN.

    accelerate launch -m swin_mim.recipes.detect --config detect_swin_base_3x \
        --model.pretrained runs/NAME --data.source annotations/train.json --data.image_folder train
    swin-mim detect --evaluate --model.pretrained FOLDER --data.source FILE.json --predictions found.json

The same command again continues the run. `--help` lists every setting. `swin-mim copy detect.py .` gives you this file
to change; start it with python or accelerate launch.
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
from swin_mim.data.dense.boxes import PicturesWithObjects
from swin_mim.data.loading.loader import Batch, TrainingLoader
from swin_mim.errors import one_line_errors
from swin_mim.evaluation.classification_evaluator import last_report
from swin_mim.evaluation.dense.detection import metrics
from swin_mim.evaluation.dense.measure_detection import evaluator_of, measure
from swin_mim.evaluation.finished import metrics_text
from swin_mim.evaluation.report.keep import report_kept
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.training.checkpoints.state import Best, better, published_step
from swin_mim.training.config.commands import detect_config
from swin_mim.training.config.dense.detect import DetectConfig
from swin_mim.training.config.dense.detect_checks import best_by
from swin_mim.training.dense.detection_batches import images_and_targets
from swin_mim.training.dense.detectors import build_detector, finds_shapes
from swin_mim.training.dense.exports import export_detector
from swin_mim.training.dense.images_with_objects import detection_transform, to_train_and_evaluate
from swin_mim.training.dense.small_objects import warn_of_small_objects
from swin_mim.training.loop.optim import adamw
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.trainer import Evaluation, fit
from swin_mim.training.run.export import Exporter, check_export, take_published
from swin_mim.training.run.folder import reported
from swin_mim.training.run.jsonl import disk_may_fail
from swin_mim.training.run.run import open_run


def main(config: DetectConfig, fit: Callable[..., bool] = fit) -> int:
    """Run one training of a detector, or what is left of it -> exit code.

    Args:
        fit: the training loop.
    """
    optim, train = config.optim, config.train
    if config.evaluate:
        return measure(config)
    with open_run(config) as run, report_kept(run) as page:
        # Images with objects: to train on, and to evaluate on.
        images, evaluated = to_train_and_evaluate(config.data)
        pictures, names, masks = PicturesWithObjects(images), images.names, finds_shapes(config, images)
        schedule = TrainingSchedule.from_config(run.config, images=len(images), accumulation=run.accumulation)

        # Model: new weights, those of model.pretrained, or the run's own newest checkpoint.
        torch.manual_seed(config.run.seed)
        options = {"attention": train.attention, "activation_checkpointing": train.activation_checkpointing}
        model = build_detector(config.model, config.data, names, masks=masks, checkpoint=run.newest, **options)
        warn_of_small_objects(images, model)
        origin = check_export(run, model, pictures)
        optimizer = partial(
            adamw, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps, layer_decay=optim.layer_decay
        )
        trained = run.prepare(model, optimizer, ema=train.ema)
        checkpoints = run.begin(model, trained, schedule, pictures, **{"evaluation images": evaluated.fingerprint})
        state = checkpoints.state

        # Task: jittered in the workers, normalised on the device -> the losses of proposals and of objects, by name.
        # What these draw is decided by the run's seed and the position of the micro batch, as the loop seeds them.
        preprocess, size = Preprocessor(model.preprocessing, run.device), as_pair(model.encoder.config.image_size)

        def loss_of(batch: Batch) -> dict[str, torch.Tensor]:
            return trained.model(*images_and_targets(preprocess(batch.images), batch.targets))

        loader = TrainingLoader(
            pictures,
            detection_transform(config, model.preprocessing, size, pictures, masks=masks),
            seed=config.run.seed,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            options=run.loader_options(preprocess.pixel_bytes),
        )

        # Evaluator: every evaluation image once, by whatever process; the best step is published.
        evaluator, reports = evaluator_of(config, run, model, evaluated), run.folder / "evaluation"

        def evaluate(step: int) -> dict[str, float]:
            with trained.average.in_place() if trained.average else nullcontext():
                outcome = evaluator.outcome(trained.full.gather())
            measured = metrics(outcome)
            state.best = better(state.best, Best(step, measured[best_by(config.save)]), smaller=False)
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
            write=lambda: export_detector(run, state, origin, images, last_report(reports)),
        )

        # Loop.
        counts = f"{size[0]}x{size[1]} px, {counted(len(images), 'image')} and {len(evaluated)} to evaluate on"
        kind = "boxes and shapes" if masks else "boxes"
        run.announce(
            (f"{kind} of {counted(len(names), 'class', 'classes')}", counts),
            model.encoder,
            trained,
            schedule,
            state.step,
        )
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
        sys.exit(main(detect_config()))
