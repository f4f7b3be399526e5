"""Fine-tune a Swin Transformer as a classifier, or measure one.

    accelerate launch recipes/finetune.py --config recipes/configs/finetune_swin_base_224.yaml \
        --model.pretrained runs/NAME --data.source DIR/train --data.validation DIR/val
    python recipes/finetune.py --evaluate --model.pretrained FOLDER --data.source DIR --predictions predictions.csv

The same command again continues the run. `--help` lists every setting.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swin_mim.errors import STOPPED, one_line_errors
from swin_mim.training.config.finetune_checks import best_by, check, mixes
from swin_mim.training.config.pretrain_checks import FinetuneConfig, load_config

if TYPE_CHECKING:
    from swin_mim.training.checkpoints.manager import Best, RunState
    from swin_mim.training.run.launch import Launch

DEMO = Path(__file__).parent / "configs" / "finetune_demo.yaml"


def main(config: FinetuneConfig, fit: Callable[..., bool] | None = None) -> int:
    """Run one fine-tuning, or what is left of it -> exit code.

    Args:
        fit: the training loop, if not `engine.fit`.
    """
    # The imports wait until the command line is known to be right: torch and accelerate take seconds.
    import torch
    from torch import Tensor

    from swin_mim.architecture import as_pair
    from swin_mim.data.labels import class_weights
    from swin_mim.data.loading.loader import Batch, LoaderOptions, TrainingLoader
    from swin_mim.data.sampling import BalancedOrder
    from swin_mim.data.sources.inventory import explain_change, save_inventory
    from swin_mim.data.transforms.crops import FinetuneTransform
    from swin_mim.data.transforms.mixup import Mixing, multi_hot, soft_targets
    from swin_mim.evaluation.classification import metrics
    from swin_mim.evaluation.evaluators import ClassificationEvaluator, last_report
    from swin_mim.evaluation.reader import Reader
    from swin_mim.hub import repository
    from swin_mim.models.classifier import classification_loss
    from swin_mim.models.swin import attention_text, compile_blocks
    from swin_mim.training import classifiers, labelled_images
    from swin_mim.training.checkpoints.manager import Best, Checkpoints, RunState, newest_checkpoint, published_weights
    from swin_mim.training.checkpoints.store import path_of
    from swin_mim.training.config.schedule import due
    from swin_mim.training.distributed import processes
    from swin_mim.training.distributed.sharding import prepare
    from swin_mim.training.distributed.weight_average import WeightAverage
    from swin_mim.training.loop import trainer as engine
    from swin_mim.training.loop.optim import adamw
    from swin_mim.training.loop.plan import plan_of, rate_of
    from swin_mim.training.run import folder as run_folder
    from swin_mim.training.run import publishing as export
    from swin_mim.training.run.jsonl import disk_may_fail
    from swin_mim.training.run.launch import launch
    from swin_mim.training.run.tracking import RunLog
    from swin_mim.weights import config_json

    run, data, augment, optim, train = config.run, config.data, config.augment, config.optim, config.train
    hub, metric = config.hub, best_by(config.save, multi_label=data.multi_label)
    job = launch(config, trains=not config.evaluate)
    accelerator, device, folder, say = job.accelerator, job.device, job.folder, job.say
    newest = newest_checkpoint(folder / "checkpoints")
    if config.evaluate:
        return measure(config, job, newest)

    # Images with labels: those to train on, and those to evaluate on.
    training, judged = labelled_images.to_train_and_evaluate(data)
    names, targets = training.names, torch.from_numpy(training.targets).to(device)
    plan = plan_of(config, images=len(training), accumulation=job.accumulation)
    rate = rate_of(config, plan)

    # Model, optimizer and learning rate. Where the run starts:
    # 1. from its own newest whole checkpoint
    # 2. from pretrained weights
    # 3. from new weights
    torch.manual_seed(run.seed)
    options: dict[str, Any] = {"attention": train.attention, "activation_checkpointing": train.activation_checkpointing}
    model = classifiers.to_train(config.model, data, names, checkpoint=newest, **options)
    swin, seen = model.encoder.config, model.preprocessing
    size = as_pair(swin.image_size)
    listing = folder / "images.gz"
    if job.is_main:
        if newest is None:
            save_inventory(listing, training.images)
        origin = export.Origin.of(folder, config, base_is_simmim=model.from_simmim, resumed=newest is not None)
        export.check(folder, config, model.description())
        if hub.repo:
            repository.check_write_access(hub.repo, private=hub.private)
    if train.compile:
        compile_blocks(model.encoder, device)
    optimizer_of = partial(
        adamw, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps, layer_decay=optim.layer_decay
    )
    prepared, optimizer, whole = prepare(accelerator, model, optimizer_of, fsdp=train.fsdp)
    average = WeightAverage(model, train.ema) if train.ema else None
    facts = {"images": training.fingerprint, "evaluation images": judged.fingerprint}
    checkpoints = Checkpoints(
        folder / "checkpoints",
        accelerator,
        model,
        prepared,
        optimizer,
        keep=config.save.keep,
        keep_every=config.save.keep_every * plan.save_every,
        facts=facts | {"seed": run.seed, "global_batch": train.global_batch},
        documents={"config.json": config_json.document(model.description())},
        average=average,
        changes={"images": partial(explain_change, listing, training.images)},
    )
    state = checkpoints.restore(newest) if newest else RunState()
    processes.start_trackers(accelerator, run.name, step=state.step)

    # From images to a loss: augmented in the workers, normalised and mixed on the device.
    share: dict[str, Any] = {"rank": job.rank, "world": job.world, "workers": data.workers}
    broken = run_folder.BrokenImages(folder / "broken_images.jsonl")
    reader = Reader(seen, size, device, reduce=job.reduce, watch=broken.watch, batch=train.micro_batch, **share)
    weights = torch.from_numpy(class_weights(training)).to(device) if data.balance == "weights" else None
    mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_probability, augment.mix_switch, seed=run.seed)

    def loss_of(batch: Batch) -> Tensor:
        labels = targets[batch.indices.to(device, non_blocking=True)]
        encode = multi_hot if data.multi_label else soft_targets
        images, wanted = reader.prepare(batch.images), encode(labels, len(names), augment.label_smoothing)
        if mixes(augment):
            images, wanted = mixing(images, wanted, batch.start)
        return classification_loss(prepared(images), wanted, weights, multi_label=data.multi_label)

    transform = FinetuneTransform(
        size,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        interpolation=seen.interpolation,
        flips=augment.flips,
        auto=augment.auto,
        color_jitter=augment.color_jitter,
        random_erasing=augment.random_erasing,
        mean=seen.mean,
        std=seen.std,
    )

    loader = TrainingLoader(
        training.images,
        transform,
        seed=run.seed,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        options=LoaderOptions(pin_memory=device.type == "cuda", pixel_bytes=reader.pixel_bytes, **share),
        order=BalancedOrder(training.targets, run.seed) if data.balance == "sampling" else None,
    )

    def batches(samples_seen: int) -> Iterator[Batch]:
        return broken.watch(loader.batches(samples_seen))

    skips = run_folder.SkippedSteps(
        folder / "skipped_steps.jsonl", seed=run.seed, rank=job.rank, name_of=training.images.name
    )

    # What is measured: every evaluation image once, by whatever process.
    judge = ClassificationEvaluator(judged, reader)
    run_log = RunLog(folder, total_steps=plan.total_steps, step=state.step, accelerator=accelerator)

    def evaluate(step: int) -> dict[str, float]:
        with average.in_place() if average else nullcontext():
            outcome = judge.outcome(whole.gather())
        measured = metrics(outcome)
        state.best = better(state.best, Best(step, measured[metric]), least=metric == "heldout_loss")
        if job.is_main and step == published_step(config, state):
            with disk_may_fail("the report of an evaluation"):
                judge.write(folder / "evaluation", outcome, step=step)
        say(f"step {step:>6}/{plan.total_steps}  {listed(measured)}")
        return measured

    # What it publishes: export/ of its folder, whole at any time, and the same on the Hub.
    def write_export() -> None:
        step = published_step(config, state, folder / "checkpoints")
        about = export.about_finetuning(
            folder,
            config,
            state,
            origin=origin,
            images=len(training),
            classes=len(names),
            report=last_report(folder / "evaluation"),
            step=step,
            devices=export.devices_text(device, job.world),
            precision=processes.precision_text(accelerator),
        )
        final = classifiers.of_checkpoint(path_of(folder / "checkpoints", step))
        final.save_pretrained(folder / "export", about=about, transformers=hub.transformers)

    publisher = None
    if hub.repo and job.is_main:
        publisher = export.Publisher(folder / "export", write_export, hub.repo, private=hub.private)

    def saved() -> None:
        if publisher and state.step < plan.total_steps and due(state.step, plan.save_every * hub.every, 0):
            checkpoints.writer.wait()  # what is published is read from it
            publisher.offer(f"{run.name}, step {state.step} of {plan.total_steps}")

    # The run.
    start = f"resumed at step {state.step}" if newest else f"from {config.model.pretrained or 'new weights'}"
    say(
        f"{run.name}: {len(names)} classes, {sum(p.numel() for p in whole.model.parameters()) / 1e6:.3g} M parameters, "
        f"{size[0]}x{size[1]} px, {len(training)} images and {len(judged)} to evaluate on; "
        f"{plan.total_steps} steps of {train.global_batch} = {job.world} x {train.micro_batch} x {job.accumulation}; "
        f"{device.type}, {processes.strategy_text(accelerator, fsdp=train.fsdp)}, {job.threads} threads, "
        f"precision {processes.precision_text(accelerator)}, "
        f"attention {attention_text(model.encoder, device)}; {start} in {folder}"
    )
    with run_folder.reported(folder, state, plan.total_steps, main=job.is_main):
        finished = (fit or engine.fit)(
            accelerator,
            prepared,
            optimizer,
            plan=plan,
            state=state,
            batches=batches,
            loss_of=loss_of,
            learning_rate=rate,
            evaluations=[(plan.steps(config.log.evaluate_every), evaluate)],
            saving=checkpoints,
            saved=saved,
            skipped=skips.add,
            stop=job.stop,
            log=run_log,
            average=average,
        )
        if finished:
            job.stop.leave()
            step = published_step(config, state, folder / "checkpoints")
            if step != published_step(config, state):
                say("the checkpoint of the best step could not be written: the last one is published")
            whole.model.load_state_dict(published_weights(path_of(folder / "checkpoints", step)))
            outcome = judge.outcome(whole.model)
            if job.is_main:
                judge.write(folder / "evaluation", outcome, step=step)
                if config.predictions:
                    judge.write_predictions(Path(config.predictions), outcome)
            say(f"published: the weights after step {step}  {listed(metrics(outcome))}")
    job.stop.leave()
    if not finished:
        say(
            f"stopped at step {state.step} of {plan.total_steps}, with a checkpoint: the same command continues the run"
        )
        if publisher:
            publisher.leave()
    elif job.is_main:
        if publisher:
            say(f"published: {publisher.finish(f'{run.name}, {plan.total_steps} steps')}")
        else:
            write_export()
        say(f"finished; see {folder}: export/, evaluation/, plots/")
    accelerator.end_training()
    return 0 if finished or plan.ends_early_at(state.step) else STOPPED


def measure(config: FinetuneConfig, job: "Launch", newest: Path | None) -> int:
    """Evaluate the run's published weights, or another model's, without training -> exit code."""
    from swin_mim.architecture import as_pair
    from swin_mim.data.labels import with_classes
    from swin_mim.evaluation.classification import metrics
    from swin_mim.evaluation.evaluators import ClassificationEvaluator
    from swin_mim.evaluation.reader import Reader
    from swin_mim.training import classifiers, labelled_images
    from swin_mim.training.channels import check_channels, warn_of_other_gaps
    from swin_mim.training.checkpoints.manager import read_state
    from swin_mim.training.checkpoints.store import path_of
    from swin_mim.training.run import folder as run_folder

    data, attention = config.data, config.train.attention
    step = None if newest is None else published_step(config, read_state(newest), newest.parent)
    if step is None:
        model = classifiers.to_measure(config.model, attention=attention)
        check_channels(model.preprocessing, data.channels, str(config.model.pretrained))
        warn_of_other_gaps(model.preprocessing, data.nodata, data.mask_channel, str(config.model.pretrained))
        images = labelled_images.to_evaluate(data)
        images = with_classes(images, classifiers.class_names(model, images.names))
    else:
        model = classifiers.of_checkpoint(path_of(job.folder / "checkpoints", step), attention=attention)
        _, images = labelled_images.to_train_and_evaluate(data)
    seen, size = model.preprocessing, as_pair(model.encoder.config.image_size)
    watch = run_folder.BrokenImages(job.folder / "broken_images.jsonl").watch
    share = {"batch": config.train.micro_batch, "rank": job.rank, "world": job.world, "workers": data.workers}
    judge = ClassificationEvaluator(images, Reader(seen, size, job.device, reduce=job.reduce, watch=watch, **share))
    outcome = judge.outcome(job.accelerator.prepare_model(model, evaluation_mode=True))
    if job.is_main:
        judge.write(job.folder / "evaluation", outcome, step=step)
        if config.predictions:
            judge.write_predictions(Path(config.predictions), outcome)
    where = config.model.pretrained if step is None else f"step {step} of {config.run.name}"
    job.say(f"{where}: {listed(metrics(outcome))}  {len(outcome.images)} images; see {job.folder / 'evaluation'}")
    job.accelerator.end_training()
    return 0


def published_step(config: FinetuneConfig, state: "RunState", checkpoints: Path | None = None) -> int:
    """The step whose weights are published: the best one or the last one.

    Args:
        checkpoints: where the best one has to be by now. If it could not be written, it is the last one.
    """
    from swin_mim.training.checkpoints.store import path_of

    if not state.best or config.save.export != "best":
        return state.step
    best = state.best.step
    return best if checkpoints is None or path_of(checkpoints, best).exists() else state.step


def better(best: "Best | None", new: "Best", *, least: bool) -> "Best | None":
    """The better step, of equally good ones the later; what is not a number never is."""
    if math.isnan(new.value):
        return best
    sign = -1 if least else 1
    return new if best is None or sign * new.value >= sign * best.value else best


def listed(measured: dict[str, float]) -> str:
    """ "accuracy 0.8123  heldout_loss 0.6420" """
    return "  ".join(f"{key} {value:.4f}" for key, value in measured.items())


if __name__ == "__main__":
    with one_line_errors():
        settings = load_config(
            FinetuneConfig,
            default_config=DEMO,
            prog="recipes/finetune.py",
            description="Fine-tune a Swin Transformer as a classifier, or measure one.",
            check=check,
        )
        sys.exit(main(settings))
