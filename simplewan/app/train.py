"""`simpletuner train`: from loaded options to trained weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from simplewan.app.boundaries import boundary_remark
from simplewan.app.context import Context
from simplewan.app.device import make_accelerator
from simplewan.app.hooks import EvalHook, FinishHook, NoValidationHook, Recorded, SaveHook, ValidationHook
from simplewan.app.idle import IdleExperts
from simplewan.app.preparing import Prepared, announce, eval_batches, prepare
from simplewan.app.reports import Reports
from simplewan.app.resume import Resume, find_resume, finished_step, forget_finished
from simplewan.app.rises import watch_rises
from simplewan.app.roles import Expert, load_expert, make_role
from simplewan.app.scaling import LossScales
from simplewan.app.settled import FILE as SETTLED_FILE
from simplewan.app.settled import settled
from simplewan.app.starts import check_adapters
from simplewan.app.validating import draw_histogram, make_validator
from simplewan.checkpoints import CheckpointStore, OutputLock
from simplewan.checkpoints.files import remove_leftovers, write_json
from simplewan.errors import EXIT_DONE, EXIT_FAILURE, Interrupted, TrainingFailure
from simplewan.events import ErrorHappened, Notice, Stage
from simplewan.flavours import EXPERT_SUBFOLDER
from simplewan.models.wan.loading import check_files, size_remark
from simplewan.options import Loaded
from simplewan.plan import TrainingTurns
from simplewan.reporting.quiet import quiet_loading_bars
from simplewan.training.loop import Hook, LoopSettings
from simplewan.training.loop import train as run_loop
from simplewan.training.roles import Role
from simplewan.training.signals import SignalWatch

OUT_OF_MEMORY = (
    "the GPU has too little memory: gradient_checkpointing, or a smaller batch, resolution or num_frames, helps"
)


def train(loaded: Loaded) -> int:
    """Train as `loaded` says; returns the exit code. Raises UserError for a mistake that only the files could show."""
    started = time.monotonic()
    quiet_loading_bars()
    options = loaded.options
    output = Path(options.run.output_dir)
    check_files(options.model, loaded.flavour, with_other_stage=options.validation.loads_other_stage)
    check_adapters(options, loaded.flavour)
    with (
        OutputLock(output),
        SignalWatch(max_seconds=options.run.max_train_seconds, started=started) as signals,
        Reports(loaded, output) as reports,
    ):
        remove_leftovers(output)
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
    """One attempt of a run, from where the last one stopped to its end."""
    options, emit = loaded.options, reports.emit
    for notice in loaded.notices:
        emit(notice)
    if remark := size_remark(options.model, loaded.flavour):
        emit(Notice(remark, severity="warning"))
    if remark := boundary_remark(loaded):
        emit(Notice(remark, severity="warning"))
    checkpoints = CheckpointStore(output, limit=options.checkpoints.checkpoints_total_limit or 0, emit=emit)
    resume = find_resume(checkpoints, loaded, output=output, emit=emit)
    start = resume.step if resume else 0
    # Before the log is cut: a kill in between must not leave the log of one run beside the checkpoints of another.
    checkpoints.set_aside_after(start)
    recorded = reports.begin(step=start)
    context = Context(loaded, output, emit, signals, make_accelerator(options, emit))
    prepared = prepare(context, resume.taken(checkpoints) if resume else None)
    total = prepared.plan.total_steps
    reports.set_total(max(total, start))
    if start >= total and finished_step(output) == start:
        context.say(
            f"this run is finished: {start} steps; raise max_train_steps to go on, or start anew in another output_dir"
        )
        return
    announce(context, prepared, start=start)
    forget_finished(output)
    checkpoints.rotate(start)
    with IdleExperts(context, before=resume.idle_place(checkpoints) if resume else None) as idle:
        scales = LossScales(context.accelerator.scaler, context.flavour.trained_experts)
        experts, roles = build_roles(context, prepared, idle, scales, checkpoints=checkpoints, resume=resume)
        base = settled(loaded, checkpoint=resume.path if resume else None)
        write_json(output / SETTLED_FILE, base)
        draw_histogram(context, experts, prepared.fetch.gathered, step=start)
        saving = SaveHook(
            context,
            checkpoints,
            roles=roles,
            experts=experts,
            planned=prepared.plan.checkpoint_steps,
            saved=start,
            recorded=recorded,
            idle=idle,
            scales=scales,
            settled=base,
        )
        watching = watching_hooks(context, prepared, idle, experts=experts, recorded=recorded)
        hooks = [saving, *watching, FinishHook(context, experts=experts)]
        try:
            _run(context, roles, turns=prepared.turns, hooks=hooks, start=start, total=total)
        finally:
            for role in roles.values():
                role.loader.close()


def watching_hooks(
    context: Context, prepared: Prepared, idle: IdleExperts, *, experts: Mapping[str, Expert], recorded: Recorded
) -> list[Hook]:
    """The hooks that look at what is trained: the loss on fixed samples, and the validation clips."""
    plan = prepared.plan
    measuring = EvalHook(
        context,
        experts=experts,
        batches=eval_batches(context, prepared.fetch),
        planned=plan.eval_steps,
        recorded=recorded,
        idle=idle,
        rises=watch_rises(context.output, context.flavour, experts),
    )
    hooks: list[Hook] = [measuring]
    if prepared.rendering is not None:
        validator = make_validator(context, prepared.rendering, experts=experts, caches=prepared.caches, idle=idle)
        benchmark = not context.options.run.disable_benchmark
        hooks.append(
            ValidationHook(context, validator, planned=plan.validation_steps, benchmark=benchmark, recorded=recorded)
        )
    elif context.options.validation.validation_disable:
        hooks.append(NoValidationHook(context))
    return hooks


def _run(
    context: Context,
    roles: Mapping[str, Role],
    *,
    turns: TrainingTurns,
    hooks: Sequence[Hook],
    start: int,
    total: int,
) -> None:
    """The loop, with what the options say."""
    options = context.options

    def due(_step: int) -> tuple[str, ...]:
        name = turns.next({name: role.step for name, role in roles.items()})
        assert name is not None, "the run is no longer than what the budgets allow"
        return (name,)

    context.emit(Stage("training", "Training"))
    run_loop(
        roles,
        due=due,
        settings=LoopSettings(
            seed=options.run.seed,
            total_steps=total,
            accumulation=options.optimizer.gradient_accumulation_steps,
            clip=options.optimizer.max_grad_norm,
            clip_method=options.optimizer.grad_clip_method,
        ),
        accelerator=context.accelerator,
        hooks=hooks,
        signals=context.signals,
        emit=context.emit,
        start=start,
    )
    context.emit(Stage("training", "Training", status="completed"))


def build_roles(
    context: Context,
    prepared: Prepared,
    idle: IdleExperts,
    scales: LossScales,
    *,
    checkpoints: CheckpointStore,
    resume: Resume | None,
) -> tuple[dict[str, Expert], dict[str, Role]]:
    """The trained experts and a role for each, put back to where the checkpoint left it; all but one are put away."""
    names = context.flavour.trained_experts
    first = prepared.turns.next(resume.taken(checkpoints) if resume else dict.fromkeys(names, 0))
    experts: dict[str, Expert] = {}
    roles: dict[str, Role] = {}

    def activate(name: str) -> None:
        idle.activate(name)
        scales.activate(name)

    for name in sorted(names, key=lambda name: name == first):  # who trains first is loaded last, and stays
        context.check()
        context.emit(Stage("model", f"Loading {EXPERT_SUBFOLDER[name]}"))
        expert = experts[name] = load_expert(context, name)
        position = checkpoints.read(resume.path, f"{name}.position") if resume else None
        role = roles[name] = make_role(
            context,
            expert,
            fetch=prepared.fetch,
            total_steps=prepared.steps[name],
            state=position["sampler"] if position else None,
            activate=partial(activate, name),
        )
        if resume is not None:
            role.load_states(lambda part: checkpoints.read(resume.path, part))
        idle.take_in(expert, role, more_to_come=len(roles) < len(names))
    if resume is not None:
        scales.load(partial(checkpoints.read, resume.path))
    return {name: experts[name] for name in names}, {name: roles[name] for name in names}
