"""`simpletuner train`: from loaded options to trained weights."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from simplewan.app.caching import Fetch, fill_caches
from simplewan.app.context import Context
from simplewan.app.device import make_accelerator
from simplewan.app.hooks import EvalHook, FinishHook, SaveHook, ValidationHook
from simplewan.app.reports import Reports
from simplewan.app.resume import Resume, find_resume, finished_step
from simplewan.app.roles import Expert, load_expert, make_objective, make_role, make_sampler
from simplewan.app.samples import Gathered, gather
from simplewan.app.validating import collect, make_validator, render_settings
from simplewan.batches.batch import Batch
from simplewan.checkpoints import CheckpointStore, OutputLock
from simplewan.errors import EXIT_DONE, EXIT_FAILURE, Interrupted, TrainingFailure
from simplewan.events import ErrorHappened, Stage
from simplewan.models.wan.loading import check_files
from simplewan.objectives.flow import sample_sigmas
from simplewan.objectives.supervised import SupervisedFlowMatching
from simplewan.options import Loaded
from simplewan.plan import RunPlan, plan_run
from simplewan.reporting.quiet import quiet_loading_bars
from simplewan.training.loop import LoopSettings
from simplewan.training.loop import train as run_loop
from simplewan.training.roles import Role
from simplewan.training.seeding import derive_seed
from simplewan.training.signals import SignalWatch
from simplewan.validation.histogram import save_histogram

HISTOGRAM_DRAWS = 10_000
OUT_OF_MEMORY = (
    "the GPU has too little memory: gradient_checkpointing, or a smaller batch, resolution or num_frames, helps"
)


def train(loaded: Loaded) -> int:
    """Train as `loaded` says; returns the exit code. Raises UserError for a mistake that only the files could show."""
    started = time.monotonic()
    quiet_loading_bars()
    output = Path(loaded.options.run.output_dir)
    check_files(loaded.options.model, loaded.flavour)
    with (
        OutputLock(output),
        SignalWatch(max_seconds=loaded.options.run.max_train_seconds, started=started) as signals,
        Reports(loaded, output) as reports,
    ):
        try:
            _train(loaded, output, signals, reports)
        except Interrupted as stop:
            reports.summarise(stop.signal_name, seconds=time.monotonic() - started)
            return stop.exit_code
        except (TrainingFailure, torch.OutOfMemoryError) as failure:
            reason = OUT_OF_MEMORY if isinstance(failure, torch.OutOfMemoryError) else str(failure)
            reports.emit(ErrorHappened(f"{reason}; {_last_good(output)}", where="training", fatal=True))
            reports.summarise("failed", seconds=time.monotonic() - started)
            return EXIT_FAILURE
        reports.summarise("finished", seconds=time.monotonic() - started)
        return EXIT_DONE


def _last_good(output: Path) -> str:
    steps = CheckpointStore(output, limit=0, emit=lambda _event: None).steps()
    return f"the last good checkpoint is checkpoint-{steps[-1]}" if steps else "there is no checkpoint yet"


def _train(loaded: Loaded, output: Path, signals: SignalWatch, reports: Reports) -> None:
    options = loaded.options
    emit = reports.emit
    for notice in loaded.notices:
        emit(notice)
    checkpoints = CheckpointStore(output, limit=options.checkpoints.checkpoints_total_limit or 0, emit=emit)
    resume = find_resume(
        checkpoints, wanted=options.run.resume_from_checkpoint, resolved=loaded.resolved, output=output, emit=emit
    )
    start = resume.step if resume else 0
    reports.begin(step=start)
    context = Context(loaded, output, emit, signals, make_accelerator(options, emit))
    gathered = gather(context)
    prompts = collect(context)
    texts = [prompt.text for prompt in prompts]
    settings = render_settings(context, prompts) if prompts else None
    if settings is not None:
        texts.append(settings.negative_prompt)
    caches = fill_caches(context, gathered, texts)
    fetch = Fetch(gathered, caches, context.flavour.text_tokens, pin_memory=context.device.type == "cuda")
    plan = make_plan(context, fetch, renders=settings is not None)
    reports.set_total(max(plan.total_steps, start))
    if resume is not None and resume.step >= plan.total_steps and finished_step(output) == resume.step:
        context.say(f"this run is finished: {resume.step} steps; raise max_train_steps to go on")
        return
    announce(context, plan)
    checkpoints.set_aside_after(start)
    emit(Stage("model", "Loading the transformer"))
    experts = {name: load_expert(context, name) for name in context.flavour.trained_experts}
    roles = build_roles(context, experts, fetch=fetch, plan=plan, checkpoints=checkpoints, resume=resume)
    draw_histogram(context, experts, gathered)
    hooks = [
        SaveHook(
            context,
            checkpoints,
            roles=roles,
            experts=experts,
            planned=plan.checkpoint_steps,
            saved=start,
        ),
        EvalHook(context, experts=experts, batches=eval_batches(context, fetch), planned=plan.eval_steps),
    ]
    if settings is not None:
        validator = make_validator(context, settings, experts=experts, caches=caches)
        benchmark = not options.run.disable_benchmark
        hooks.append(ValidationHook(context, validator, planned=plan.validation_steps, benchmark=benchmark))
    hooks.append(FinishHook(context, experts=experts))
    objective = make_objective(context)
    emit(Stage("training", "Training"))
    try:
        run_loop(
            roles,
            due=lambda step: objective.roles_due(step, tuple(roles)),
            settings=LoopSettings(
                seed=options.run.seed,
                total_steps=plan.total_steps,
                accumulation=options.optimizer.gradient_accumulation_steps,
                clip=options.optimizer.max_grad_norm,
                clip_method=options.optimizer.grad_clip_method,
            ),
            accelerator=context.accelerator,
            hooks=hooks,
            signals=signals,
            emit=emit,
            start=start,
        )
    finally:
        for role in roles.values():
            role.loader.close()
    emit(Stage("training", "Training", status="completed"))


def make_plan(context: Context, fetch: Fetch, *, renders: bool) -> RunPlan:
    """When the run ends, saves, validates (if it `renders` anything) and measures; announces buckets left out."""
    options = context.options
    experts = context.flavour.trained_experts
    sampler = make_sampler(context, fetch, experts[0])
    for pruned in sampler.pruned:
        context.say(f"{pruned}", warning=True)
    return plan_run(
        max_train_steps=options.run.max_train_steps,
        num_train_epochs=options.run.num_train_epochs,
        ignore_final_epochs=options.run.ignore_final_epochs,
        micro_batches_in_epochs=sampler.batches_in_epochs,
        accumulation=options.optimizer.gradient_accumulation_steps,
        roles=len(experts),
        checkpoint_step_interval=options.checkpoints.checkpoint_step_interval,
        checkpoint_epoch_interval=options.checkpoints.checkpoint_epoch_interval,
        validation_step_interval=options.validation.validation_step_interval if renders else 0,
        eval_steps_interval=options.validation.eval_steps_interval,
    )


def announce(context: Context, plan: RunPlan) -> None:
    """Say in one line what is going to happen."""
    context.say(
        f"{plan.total_steps} steps, {plan.epochs:.1f} epochs of {plan.steps_per_epoch:.1f} steps; "
        f"{len(plan.checkpoint_steps)} checkpoints, {len(plan.validation_steps)} validations"
    )


def build_roles(
    context: Context,
    experts: Mapping[str, Expert],
    *,
    fetch: Fetch,
    plan: RunPlan,
    checkpoints: CheckpointStore,
    resume: Resume | None,
) -> dict[str, Role]:
    """A role per expert, put back to where the checkpoint left it."""
    roles = {}
    for name, expert in experts.items():
        position = checkpoints.read(resume.path, f"{name}.position") if resume else None
        state = position["sampler"] if position else None
        role = make_role(context, expert, fetch=fetch, total_steps=plan.total_steps, state=state)
        if resume is not None:
            role.load_states(lambda part: checkpoints.read(resume.path, part))
        roles[name] = role
    if resume is not None and context.accelerator.scaler is not None:
        context.accelerator.scaler.load_state_dict(dict(checkpoints.read(resume.path, "scaler")))
    return roles


def draw_histogram(context: Context, experts: Mapping[str, Expert], gathered: Gathered) -> None:
    """The picture of the timesteps that each role draws, saved before the first step."""
    objective = make_objective(context)
    counts = count_shifts(context, objective, gathered)
    draws = {}
    for name, expert in experts.items():
        generator = torch.Generator().manual_seed(derive_seed(context.options.run.seed, name, "histogram"))
        sigmas = [
            sample_sigmas(
                -(-HISTOGRAM_DRAWS * count // sum(counts.values())),
                sampling=objective.sampling,
                shift=shift,
                bounds=expert.sigma_bounds,
                generator=generator,
            )
            for shift, count in counts.items()
        ]
        draws[name] = torch.cat(sigmas)
    save_histogram(context.output / "timesteps.png", draws, boundary=context.flavour.boundary)


def count_shifts(context: Context, objective: SupervisedFlowMatching, gathered: Gathered) -> dict[float, int]:
    """How many samples are trained at each shift."""
    stride = context.flavour.vae.spatial_stride
    clips = (sample.clip for sample in gathered.samples.values())
    return dict(Counter(objective.shift_for(clip.height // stride, clip.width // stride) for clip in clips))


def eval_batches(context: Context, fetch: Fetch) -> list[Batch]:
    """The fixed samples of the evaluation: the first few by name, each alone, with its first caption."""
    from simplewan.batches.sampler import BatchSpec

    if not context.options.validation.eval_steps_interval:
        return []
    usable = [sample for sample in fetch.gathered.samples.values() if sample.id not in fetch.caches.failed]
    chosen = usable[: context.options.validation.num_eval_images]
    return [fetch(BatchSpec((sample.id,), (0,), epoch=0, bucket=sample.clip.bucket)) for sample in chosen]
