"""Pretrain a Swin Transformer with SimMIM.

    python recipes/pretrain.py                                               # the demo: satellite tiles, any machine
    accelerate launch recipes/pretrain.py --config recipes/configs/simmim_swin_base_192_100ep.yaml --data.source DIR

The same command again continues the run. `--help` lists every setting.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from swin_mim.errors import one_line_errors
from swin_mim.training.config import PretrainConfig, accumulation, check, load_config, swin_config

DEMO = Path(__file__).parent / "configs" / "demo.yaml"
EVALUATION_SEED = 0
"""Of the masks on held-out images: the same in every run, so that losses can be compared."""
CHANNELS = ("red", "green", "blue")
"""What images are read as."""
STOPPED = 75
"""Exit code of a run that was asked to stop and can be continued (EX_TEMPFAIL)."""


def main(config: PretrainConfig) -> int:
    """Run one pretraining, or what is left of it -> exit code."""
    # The imports wait until the command line is known to be right: torch and accelerate take seconds.
    import torch
    from torch import Tensor

    from swin_mim.data.blue_marble import open_blue_marble
    from swin_mim.data.loader import Batch, heldout_batches, training_batches
    from swin_mim.data.sources import open_source, split_heldout
    from swin_mim.data.transforms import EvaluationTransform, PretrainTransform, denormalize, normalize
    from swin_mim.evaluation.heldout import HeldOut
    from swin_mim.hub import config_json, export, repository
    from swin_mim.masking import block_mask
    from swin_mim.models.saving import Preprocessing
    from swin_mim.models.simmim import SimMIM
    from swin_mim.models.swin import compile_blocks
    from swin_mim.models.window_attention import resolve_backend
    from swin_mim.training import checkpoint, engine, processes, run_folder
    from swin_mim.training.optim import adamw
    from swin_mim.training.run_state import Checkpoints, RunState
    from swin_mim.training.schedule import checked_warmup, due, learning_rate, scaled, to_steps
    from swin_mim.training.tracking import RunLog, start_log, summary

    run, data, mim, optim, train, log = config.run, config.data, config.model, config.optim, config.train, config.log
    hub = config.hub
    folder, world = Path(run.root).expanduser() / run.name, processes.world_size()
    accumulated, threads = accumulation(train, world), processes.set_threads(train.threads)
    accelerator = processes.start_accelerator(
        folder,
        precision=train.precision,
        accumulation=accumulated,
        micro_batch=train.micro_batch,
        clip_norm=optim.clip_norm,
        trackers=log.trackers,
    )
    device, rank, is_main = accelerator.device, accelerator.process_index, accelerator.is_main_process
    say = start_log(folder, main=is_main)
    run_folder.claim(folder, config, main=is_main)

    # Images: those to train on, and those held out to measure on.
    if data.source == "blue_marble":
        training, heldout = open_blue_marble()
    else:
        source = open_source(data.source, config=data.config, split=data.split, column=data.column)
        training, heldout = split_heldout(source, data.heldout, run.seed)
    steps = partial(to_steps, dataset_size=len(training), global_batch=train.global_batch)
    plan = engine.Plan(
        total_steps=steps(train.duration),
        stop_after=steps(train.stop_after),
        log_every=steps(log.every),
        save_every=steps(config.save.every),
        global_batch=train.global_batch,
        accumulation=accumulated,
        clip_norm=optim.clip_norm,
        seed=run.seed,
        dataset_size=len(training),
        max_broken=data.max_broken,
    )

    # Model, optimizer and learning rate.
    torch.manual_seed(run.seed)
    swin = swin_config(mim)
    options: dict[str, Any] = {"attention": train.attention, "activation_checkpointing": train.activation_checkpointing}
    if mim.pretrained and not checkpoint.steps_on_disk(folder / "checkpoints"):
        model = SimMIM.from_pretrained(
            mim.pretrained, config=swin, new_decoder=True, target=mim.target, **options
        ).train()
    else:
        model = SimMIM(swin, target=mim.target, **options)
    model.preprocessing = Preprocessing(data.mean, data.std, CHANNELS if swin.in_channels == len(CHANNELS) else None)
    origin = export.Origin.of(config)
    if is_main:
        export.check(folder, config, model.description())
        if hub.repo:
            repository.check_write_access(hub.repo, private=hub.private)
    if train.compile:
        compile_blocks(model.encoder)
    prepared, optimizer = accelerator.prepare(
        model, adamw(model, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps)
    )
    rate = partial(
        learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=checked_warmup(optim.warmup, steps(optim.warmup), plan.total_steps),
        base=scaled(optim.base_lr, train.global_batch),
        warmup_start=scaled(optim.warmup_lr, train.global_batch),
        minimum=scaled(optim.min_lr, train.global_batch),
        schedule=optim.schedule,
        milestones=[steps(milestone) for milestone in optim.milestones],
        gamma=optim.gamma,
    )

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
        facts={"images": training.fingerprint, "seed": run.seed, "global_batch": train.global_batch},
        documents={"config.json": config_json.document(model.description())},
    )
    newest = checkpoints.newest()
    state = checkpoints.restore(newest) if newest else RunState()
    processes.start_trackers(accelerator, run.name, step=state.step)

    # From images to a loss: normalised and masked on the device, the mask a function of seed and position.
    grid = swin.stage_grid(0)
    size = (grid[0] * swin.patch_size, grid[1] * swin.patch_size)
    mean, std = (torch.tensor(values, device=device) for values in (data.mean, data.std))

    def prepare(images: Tensor) -> Tensor:
        return normalize(images.to(device, non_blocking=True), mean, std)

    def draw_mask(batch: int, start: int, seed: int) -> Tensor:
        unit = config.mask.unit // swin.patch_size
        return block_mask(batch, grid, unit, config.mask.ratio, seed=seed, start=start, device=device)

    def loss_of(batch: Batch) -> Tensor:
        return prepared(prepare(batch.images), draw_mask(len(batch.images), batch.start, run.seed)).loss

    share = {"rank": rank, "world": world, "workers": data.workers}
    broken = run_folder.BrokenImages(folder / "broken_images.jsonl")
    batches = training_batches(
        training,
        PretrainTransform(size, scale=data.crop_scale, ratio=data.crop_ratio),
        seed=run.seed,
        samples_seen=state.samples_seen,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        pin_memory=device.type == "cuda",
        **share,
    )

    # What is measured: always the same held-out images, under the same masks.
    examples = heldout_batches(
        heldout, EvaluationTransform(size), batch_size=max(train.micro_batch, log.pictures), **share
    )
    measured = HeldOut(
        list(broken.watch(examples)),
        prepare=prepare,
        restore=partial(denormalize, mean=mean, std=std),
        draw_mask=partial(draw_mask, seed=EVALUATION_SEED),
        reduce=lambda sums: accelerator.reduce(sums.to(device), "sum").cpu() if world > 1 else sums,
    )
    run_log = RunLog(folder, total_steps=plan.total_steps, step=state.step, accelerator=accelerator)

    def evaluate(step: int) -> dict[str, float]:
        loss = measured.loss(model)
        say(f"step {step:>6}/{plan.total_steps}  held-out loss {loss['heldout_loss']:.4f}")
        return loss

    def draw(step: int) -> dict[str, float]:
        if is_main:
            measured.picture(model, folder / "samples" / f"step_{step:07d}.png", log.pictures)
        return {}

    evaluations = [(steps(log.evaluate_every), evaluate), (steps(log.pictures_every) if log.pictures else 0, draw)]

    # The run.
    say(
        f"{run.name}: {mim.name}, {sum(p.numel() for p in model.parameters()) / 1e6:.3g} M parameters, "
        f"{size[0]}x{size[1]} px, {len(training)} images and {len(heldout)} held out; "
        f"{plan.total_steps} steps of {train.global_batch} = {world} x {train.micro_batch} x {accumulated}; "
        f"{device.type}, {threads} threads, precision {processes.precision_text(accelerator)}, "
        f"attention {resolve_backend(train.attention, device)}; "
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
            devices=export.devices_text(device, world),
            precision=processes.precision_text(accelerator),
        )
        model.save_pretrained(folder / "export", about=about, transformers=hub.transformers)

    publisher = None
    if hub.repo and is_main:
        publisher = export.Publisher(folder / "export", write_export, hub.repo, private=hub.private)

    def save(state: RunState) -> None:
        checkpoints.save(state)
        if publisher and state.step < plan.total_steps and due(state.step, plan.save_every * hub.every, 0):
            publisher.offer(f"{run.name}, step {state.step} of {plan.total_steps}")

    with run_folder.reported(folder, state, plan.total_steps, main=is_main):
        if not len(heldout):
            say("no image is held out (a source of under 10, or data.heldout 0): nothing will be evaluated")
            evaluations = []
        elif not state.step:
            run_log.metrics(0, measured.errors_of_filling(model))
        finished = engine.fit(
            accelerator,
            prepared,
            optimizer,
            plan=plan,
            state=state,
            batches=broken.watch(batches),
            loss_of=loss_of,
            learning_rate=rate,
            evaluations=evaluations,
            save=save,
            log=run_log,
        )
    if not finished:
        say(
            f"stopped at step {state.step} of {plan.total_steps}, with a checkpoint: the same command continues the run"
        )
        if publisher:
            publisher.leave()
    elif is_main:
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
            check=check,
        )
        sys.exit(main(settings))
