"""Pretrain a Swin Transformer with SimMIM.

    python recipes/pretrain.py                                               # the demo: satellite tiles, any machine
    accelerate launch recipes/pretrain.py --config recipes/configs/simmim_swin_base_192_100ep.yaml --data.source DIR

The same command again continues the run. `--help` lists every setting.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from swin_mim.errors import STOPPED, one_line_errors
from swin_mim.training.config.pretrain_checks import (
    PretrainConfig,
    check,
    load_config,
    swin_config,
    with_packed_channels,
)

DEMO = Path(__file__).parent / "configs" / "demo.yaml"
EVALUATION_SEED = 0
"""Of the masks on held-out images, and of the choice of images to probe on: the same in every run, so that losses and
scores can be compared."""


def main(config: PretrainConfig, fit: Callable[..., bool] | None = None) -> int:
    """Run one pretraining, or what is left of it -> exit code.

    Args:
        fit: the training loop, if not `engine.fit`.
    """
    # The imports wait until the command line is known to be right: torch and accelerate take seconds.
    import torch
    from torch import Tensor

    from swin_mim.data.decoding.rgb import decoder_text
    from swin_mim.data.loading.loader import Batch, LoaderOptions, TrainingLoader, owned
    from swin_mim.data.sources.base import StreamStatus
    from swin_mim.data.sources.inventory import explain_change, save_inventory
    from swin_mim.data.transforms.crops import PretrainTransform, denormalize
    from swin_mim.evaluation.false_colours import shown_channels
    from swin_mim.evaluation.heldout import ReconstructionEvaluator
    from swin_mim.evaluation.probes import Prober, by_name
    from swin_mim.evaluation.reader import Reader
    from swin_mim.hub import repository
    from swin_mim.masking import block_mask, masked_cells
    from swin_mim.models.simmim import SimMIM
    from swin_mim.models.swin import Swin, attention_text, compile_blocks
    from swin_mim.training import images, labelled_images
    from swin_mim.training.channels import preprocessing_of, warn_of_other_channels
    from swin_mim.training.checkpoints.manager import Checkpoints, RunState, newest_checkpoint
    from swin_mim.training.config.schedule import due
    from swin_mim.training.distributed import processes
    from swin_mim.training.distributed.sharding import prepare
    from swin_mim.training.loop import trainer as engine
    from swin_mim.training.loop.optim import adamw
    from swin_mim.training.loop.plan import plan_of, rate_of
    from swin_mim.training.run import folder as run_folder
    from swin_mim.training.run import publishing as export
    from swin_mim.training.run.jsonl import disk_may_fail
    from swin_mim.training.run.launch import launch
    from swin_mim.training.run.tracking import RunLog, summary
    from swin_mim.weights import config_json

    run, data, mim, optim, train, log = config.run, config.data, config.model, config.optim, config.train, config.log
    hub = config.hub
    job = launch(config)
    accelerator, device, folder, say = job.accelerator, job.device, job.folder, job.say

    # Images: those to train on, and those held out to measure on.
    training, heldout, channels = images.open_pretraining_images(config)
    plan = plan_of(config, images=len(training), accumulation=job.accumulation)
    rate = rate_of(config, plan)

    # Model, optimizer and learning rate.
    torch.manual_seed(run.seed)
    swin = swin_config(mim)
    options: dict[str, Any] = {"attention": train.attention, "activation_checkpointing": train.activation_checkpointing}
    newest = newest_checkpoint(folder / "checkpoints")
    if mim.pretrained and newest is None:
        model = SimMIM.from_pretrained(
            mim.pretrained, config=swin, new_decoder=True, target=mim.target, pickles=True, **options
        ).train()
    else:
        model = SimMIM(swin, target=mim.target, **options)
    seen = preprocessing_of(data, channels)
    if mim.pretrained and newest is None:
        warn_of_other_channels(model.preprocessing, seen, mim.pretrained)
    model.preprocessing = seen
    listing = folder / "images.gz"
    if job.is_main:
        if newest is None:
            save_inventory(listing, training)
        origin = export.Origin.of(folder, config, base_is_simmim=model.from_simmim, resumed=newest is not None)
        export.check(folder, config, model.description())
        if hub.repo:
            repository.check_write_access(hub.repo, private=hub.private)
    if train.compile:
        compile_blocks(model.encoder, device)
    optimizer_of = partial(adamw, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps)
    prepared, optimizer, whole = prepare(accelerator, model, optimizer_of, fsdp=train.fsdp)

    # Where the run starts:
    # 1. from its own newest whole checkpoint
    # 2. from pretrained weights, which were loaded above: DeepSpeed copies them in `prepare`
    # 3. from new weights
    checkpoints = Checkpoints(
        folder / "checkpoints",
        accelerator,
        model,
        prepared,
        optimizer,
        keep=config.save.keep,
        keep_every=config.save.keep_every * plan.save_every,
        facts={"images": training.fingerprint, "seed": run.seed, "global_batch": train.global_batch},
        documents={"config.json": config_json.document(model.description())},
        changes={"images": partial(explain_change, listing, training)},
    )
    state = checkpoints.restore(newest) if newest else RunState()
    processes.start_trackers(accelerator, run.name, step=state.step)

    # From images to a loss: normalised and masked on the device, the mask a function of seed and position.
    grid = swin.stage_grid(0)
    size = (grid[0] * swin.patch_size, grid[1] * swin.patch_size)
    share: dict[str, Any] = {"rank": job.rank, "world": job.world, "workers": data.workers}
    broken = run_folder.BrokenImages(folder / "broken_images.jsonl")
    most = max(train.micro_batch, log.pictures)
    reader = Reader(model.preprocessing, size, device, reduce=job.reduce, watch=broken.watch, batch=most, **share)

    unit = config.mask.unit // swin.patch_size
    cells = masked_cells(grid, unit, config.mask.ratio, swin.stride // swin.patch_size)

    def draw_mask(batch: Batch, seed: int) -> Tensor:
        place: dict[str, Any] = {"seed": seed, "start": batch.start, "device": device, **batch.valid_on(device)}
        return block_mask(len(batch.images), grid, unit, config.mask.ratio, **place)

    def loss_of(batch: Batch) -> Tensor:
        valid: dict[str, Any] = batch.valid_on(device)  # moved once, for both
        mask = draw_mask(batch._replace(**valid), run.seed)
        return prepared(reader.prepare(batch.images), mask, cells, **valid).loss

    supply = StreamStatus(stopped=lambda: job.stop.received)

    loader = TrainingLoader(
        training,
        PretrainTransform(size, scale=data.crop_scale, ratio=data.crop_ratio, flips=data.flips),
        seed=run.seed,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        options=LoaderOptions(pin_memory=device.type == "cuda", pixel_bytes=reader.pixel_bytes, **share),
        stream=supply,
    )

    def batches(samples_seen: int) -> Iterator[Batch]:
        return broken.watch(loader.batches(samples_seen))

    skips = run_folder.SkippedSteps(folder / "skipped_steps.jsonl", seed=run.seed, rank=job.rank, name_of=training.name)

    # What is measured: always the same held-out images, under the same masks; and images with labels, if there are any.
    measured = ReconstructionEvaluator(
        [owned(batch) for batch in reader.batches(heldout)],
        prepare=reader.prepare,
        restore=partial(denormalize, mean=data.mean, std=data.std, scale=seen.scale),
        draw_mask=partial(draw_mask, seed=EVALUATION_SEED),
        reduce=job.reduce,
        shown=shown_channels(log.picture_channels, channels) if channels else None,
    )
    probe_every = plan.steps(config.probe.every)
    prober = None
    if probe_every:
        prober = Prober(*labelled_images.to_probe_in(config, channels, EVALUATION_SEED), reader)
    run_log = RunLog(folder, total_steps=plan.total_steps, step=state.step, accelerator=accelerator)

    def evaluate(step: int) -> dict[str, float]:
        loss = measured.loss(whole.gather())
        say(f"step {step:>6}/{plan.total_steps}  held-out loss {loss['heldout_loss']:.4f}")
        return loss

    def draw(step: int) -> dict[str, float]:
        drawn = whole.gather()
        if job.is_main:
            with disk_may_fail("the picture of held-out images"):
                measured.picture(drawn, folder / "samples" / f"step_{step:07d}.png", log.pictures)
        return {}

    def probe(step: int) -> dict[str, float]:
        assert prober is not None
        scores = prober.stages(whole.gather().encoder)
        say(f"step {step:>6}/{plan.total_steps}  linear probe {', '.join(f'{score.linear:.3f}' for score in scores)}")
        return by_name(scores)

    evaluations = [
        (plan.steps(log.evaluate_every), evaluate),
        (plan.steps(log.pictures_every) if log.pictures else 0, draw),
        (probe_every, probe),
    ]

    # The run.
    say(
        f"{run.name}: {mim.name}, {sum(p.numel() for p in whole.model.parameters()) / 1e6:.3g} M parameters, "
        f"{size[0]}x{size[1]} px{f' of {mim.in_channels} channels' if channels else ''}, "
        f"{len(training)} images and {len(heldout)} held out{'' if channels else f', decoded by {decoder_text()}'}; "
        f"{plan.total_steps} steps of {train.global_batch} = {job.world} x {train.micro_batch} x {job.accumulation}; "
        f"{device.type}, {processes.strategy_text(accelerator, fsdp=train.fsdp)}, {job.threads} threads, "
        f"precision {processes.precision_text(accelerator)}, "
        f"attention {attention_text(model.encoder, device)}; "
        f"{'resumed at step ' + str(state.step) if newest else 'from ' + (mim.pretrained or 'new weights')} in {folder}"
    )

    # What it publishes: export/ of its folder, whole at any time, and the same on the Hub.
    def write_export() -> None:
        about = export.about_run(
            folder,
            config,
            state,
            origin=origin,
            images=len(training),
            heldout=len(heldout),
            devices=export.devices_text(device, job.world),
            precision=processes.precision_text(accelerator),
        )
        whole.model.save_pretrained(folder / "export", about=about, transformers=hub.transformers)

    publisher = None
    if hub.repo and job.is_main:
        publisher = export.Publisher(folder / "export", write_export, hub.repo, private=hub.private)

    def saved() -> None:
        if hub.repo and state.step < plan.total_steps and due(state.step, plan.save_every * hub.every, 0):
            whole.gather()
            if publisher:
                publisher.offer(f"{run.name}, step {state.step} of {plan.total_steps}")

    with run_folder.reported(folder, state, plan.total_steps, main=job.is_main):
        if not len(heldout):
            say("no image is held out (a source of under 10, or data.heldout 0): nothing will be evaluated")
            evaluations = []
        elif not state.step:
            run_log.metrics(0, measured.inpainting_baselines(model))
        if prober and not state.step:
            run_log.metrics(0, by_name(prober.stages(Swin(swin, attention=train.attention).to(device)), "random_"))
        finished = (fit or engine.fit)(
            accelerator,
            prepared,
            optimizer,
            plan=plan,
            state=state,
            batches=batches,
            loss_of=loss_of,
            learning_rate=rate,
            evaluations=evaluations,
            saving=checkpoints,
            saved=saved,
            skipped=skips.add,
            stop=job.stop,
            log=run_log,
            supply=supply,
        )
        if finished:
            whole.gather()
            job.stop.leave()
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
        say("\n".join(part for part in (summary(folder), f"finished; see {folder}: export/, samples/, plots/") if part))
    accelerator.end_training()
    return 0 if finished or plan.ends_early_at(state.step) else STOPPED


if __name__ == "__main__":
    with one_line_errors():
        settings = load_config(
            PretrainConfig,
            default_config=DEMO,
            prog="recipes/pretrain.py",
            description="Pretrain a Swin Transformer with SimMIM on images without labels.",
            complete=with_packed_channels,
            check=check,
        )
        sys.exit(main(settings))
