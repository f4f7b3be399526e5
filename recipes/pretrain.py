"""Pretrain a Swin Transformer with SimMIM on images without labels.

    swin-mim pretrain                                     # the demo: satellite tiles, any machine
    accelerate launch -m swin_mim.recipes.pretrain --config simmim_swin_base_192_100ep --data.source DIR

The same command again continues the run. `--help` lists every setting. `swin-mim copy pretrain.py .` gives you this
file to change; start it with python or accelerate launch.
"""

import sys
from collections.abc import Callable
from functools import partial

import swin_mim  # noqa: F401  before torch, whose threads it tells how to wait

# isort: split
from torch import Tensor

from swin_mim.architecture import as_pair
from swin_mim.data.loading.loader import Batch, TrainingLoader
from swin_mim.data.transforms.crops import PretrainTransform
from swin_mim.errors import one_line_errors
from swin_mim.evaluation.probes import Prober, as_metrics, probe_text
from swin_mim.evaluation.reader import Reader
from swin_mim.evaluation.reconstruction_evaluator import EVALUATION_SEED, ReconstructionEvaluator
from swin_mim.evaluation.report.keep import report_kept
from swin_mim.masking import BlockMasks
from swin_mim.models.preprocessing import Preprocessor
from swin_mim.models.swin import Swin
from swin_mim.training.config.commands import pretrain_config
from swin_mim.training.config.pretrain import PretrainConfig
from swin_mim.training.images import open_pretraining_images
from swin_mim.training.loop.optim import adamw
from swin_mim.training.loop.schedule import TrainingSchedule
from swin_mim.training.loop.trainer import Evaluation, fit
from swin_mim.training.models import build_simmim
from swin_mim.training.run.export import Exporter, check_export, export_pretrained
from swin_mim.training.run.folder import reported
from swin_mim.training.run.run import open_run
from swin_mim.training.run.tracking import baselines, heldout_text, summary
from swin_mim.training.teaching import lessons_of


def main(config: PretrainConfig, fit: Callable[..., bool] = fit) -> int:
    """Run one pretraining, or what is left of it -> exit code.

    Args:
        fit: the training loop.
    """
    data, optim, train, log = config.data, config.optim, config.train, config.log
    with open_run(config) as run, report_kept(run) as page:
        # Images: to train on, and held out to measure on.
        images = open_pretraining_images(config)
        schedule = TrainingSchedule.from_config(run.config, images=len(images.training), accumulation=run.accumulation)

        # Model: new weights, those of model.pretrained, or the run's own newest checkpoint.
        lessons = lessons_of(config, images.preprocessing, run)
        model = build_simmim(config, images.preprocessing, resuming=run.newest is not None, teacher_width=lessons.width)
        origin = check_export(run, model, images.training)
        optimizer = partial(adamw, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps)
        trained = run.prepare(model, optimizer)
        checkpoints = run.begin(model, trained, schedule, images.training, **lessons.facts)

        # Task: normalised and masked on the device, the mask a function of seed and position -> loss.
        swin, size = model.encoder.config, as_pair(model.encoder.config.image_size)
        preprocess = Preprocessor(images.preprocessing, run.device)
        masks = BlockMasks.of(swin, unit=config.mask.unit, ratio=config.mask.ratio)

        def loss_of(batch: Batch) -> Tensor:
            valid = batch.valid_on(run.device)
            mask = masks.draw(len(batch.images), seed=config.run.seed, start=batch.start, device=run.device, **valid)
            pixels = preprocess(batch.images)
            return trained.model(pixels, mask, masks.cells, **valid, **lessons(pixels, **valid)).loss

        loader = TrainingLoader(
            images.training,
            PretrainTransform(size, scale=data.crop_scale, ratio=data.crop_ratio, flips=data.flips),
            seed=config.run.seed,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            options=run.loader_options(preprocess.pixel_bytes),
            stream=run.stream,
        )

        # Evaluators: always the same held-out images under the same masks; and images with labels, if there are any.
        batch = max(train.micro_batch, log.pictures)
        reader = Reader(preprocess, size, run.reduce, run.watch, batch, run.loader_options())
        heldout = ReconstructionEvaluator.open(images, reader, masks, log.picture_channels, lessons)
        probe_every, first_probe = (schedule.steps(length) for length in (config.probe.every, config.probe.first))
        prober = Prober.open(config, images.channels, reader, EVALUATION_SEED) if probe_every or first_probe else None

        def reconstruct(step: int) -> dict[str, float]:
            return heldout.loss(trained.full.gather())

        def heldout_said(measured: dict[str, float]) -> str:
            late = checkpoints.state.step > schedule.steps(optim.warmup) + schedule.end(1) / 10
            return heldout_text(measured, levels, late=late)

        def draw(step: int) -> dict[str, float]:
            picture = run.folder / "samples" / f"step_{step:07d}.png"
            return heldout.picture(trained.full.gather(), picture, log.pictures)

        def probe(step: int) -> dict[str, float]:
            assert prober is not None
            return as_metrics(prober.stages(trained.full.gather().encoder))

        evaluations = [
            Evaluation(schedule.steps(log.evaluate_every), reconstruct, heldout_said),
            Evaluation(schedule.steps(log.pictures_every) if log.pictures else 0, draw),
            Evaluation(probe_every, probe, probe_text, first_probe),
            Evaluation(schedule.steps(log.evaluate_every), page),
        ]

        # Publishing: export/ of the run's folder, and the same on the Hub if hub.repo names a repository.
        exporter = Exporter(
            run,
            schedule,
            checkpoints,
            ready=trained.full.gather,
            write=lambda: export_pretrained(run, trained.full.model, checkpoints.state, origin, images),
        )

        # Loop.
        run.announce((config.model.name, images.text(size)), model.encoder, trained, schedule, checkpoints.state.step)
        levels = baselines(run.folder)
        with reported(run.folder, checkpoints.state, schedule.total_steps, main=run.is_main):
            if not len(images.heldout):
                run.log_info(
                    "no image is held out (under 10 images, or data.heldout 0): no reconstruction is evaluated"
                )
                evaluations = evaluations[2:]
            elif not checkpoints.state.step:
                run.log.metrics(0, levels := heldout.baselines(model))
            if prober and not checkpoints.state.step:
                untrained = Swin(swin, attention=train.attention).to(run.device)
                run.log.metrics(0, as_metrics(prober.stages(untrained), "random_"))
            if fit(run, trained, loss_of, loader, schedule, checkpoints, evaluations, exporter):
                trained.full.gather()
        exporter.conclude(
            lambda: f"{summary(run.folder)}\nfinished; see {run.folder}: export/, samples/, plots/".strip()
        )
        return run.exit_code(checkpoints, schedule)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(pretrain_config()))
