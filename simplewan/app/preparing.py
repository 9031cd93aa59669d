"""Everything before the transformer is loaded: samples, caches, and the plan of the run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from simplewan.app.caching import Caches, fill_caches
from simplewan.app.context import Context
from simplewan.app.drawing import drawn_names, longest, make_sampler, step_limits, turns_of, unused_sizes
from simplewan.app.fetching import Fetch
from simplewan.app.gathering import Gathered, gather
from simplewan.app.pictures import Rendering, ToRender
from simplewan.app.rendered import plan_rendering
from simplewan.app.stores import Stores
from simplewan.app.turns import announce_turns, natural_share
from simplewan.batches.batch import Batch
from simplewan.batches.sampler import BatchSpec, Sampler
from simplewan.errors import counted
from simplewan.plan import RunPlan, TrainingTurns, plan_run


@dataclass(frozen=True)
class Prepared:
    """What training is made from. `rendering` is None when nothing is rendered; `steps` are those of each role."""

    caches: Caches
    fetch: Fetch
    rendering: Rendering | None
    plan: RunPlan
    turns: TrainingTurns
    steps: dict[str, int]


def prepare(context: Context, taken: Mapping[str, int] | None = None) -> Prepared:
    """Scan the data, fill the caches, plan the run. Raises UserError for what only the files could show.

    `taken` are the steps that each role has taken already.
    """
    gathered = gather(context)
    rendering = plan_rendering(context, gathered)
    drawn = look_ahead(context, gathered, taken)
    tell_undrawn(context, gathered, drawn.sampler)
    tell_copies(context, gathered)
    stores = Stores(context, gathered)
    caches = fill_caches(
        context, drawn.gathered, stores, rendering.needs if rendering else ToRender(), epochs=drawn.epochs
    )
    # It draws from everything: a longer run, which comes to more, goes on with the draws of this one.
    fetch = Fetch(
        gathered,
        caches,
        context.flavour,
        i2v_probability=context.options.data.i2v_probability,
        pin_memory=context.device.type == "cuda",
    )
    sampler = drawn.sampler
    if caches.failed:
        sampler = _samplers(context, gathered, drawn.limits, failed=caches.failed)[drawn.role]
        for pruned in set(map(str, sampler.pruned)) - set(map(str, drawn.sampler.pruned)):
            context.say(pruned, warning=True)
    plan = make_plan(context, sampler, drawn.turns, validates=rendering is not None, taken=taken)
    return Prepared(caches, fetch, rendering, plan, drawn.turns, drawn.turns.until(plan.total_steps, taken))


@dataclass(frozen=True)
class Drawn:
    """What a run draws from and measures, so that nothing else is encoded; the epochs that it may look at.

    `sampler` is that of `role`, which takes most steps; `limits` are the last steps of all.
    """

    gathered: Gathered
    role: str
    sampler: Sampler
    epochs: int
    turns: TrainingTurns
    limits: dict[str, int | None]


def look_ahead(context: Context, gathered: Gathered, taken: Mapping[str, int] | None = None) -> Drawn:
    """What a run will need, after each role has `taken` some steps. Raises UserError when there is too little, before
    anything is encoded."""
    turns = turns_of(context.loaded, partial(natural_share, context, gathered))
    limits = step_limits(context.loaded, turns, taken)
    role = longest(limits)
    sampler = _samplers(context, gathered, limits)[role]
    plan, data = make_plan(context, sampler, turns, validates=False, taken=taken), context.options.data
    ahead = data.dataloader_prefetch_qlen if data.dataloader_prefetch else 0
    names = drawn_names(context.loaded, gathered, sampler, max_steps=limits[role])
    return Drawn(gathered.only(names), role, sampler, math.ceil(plan.epochs) + 1 + ahead, turns, limits)


def _samplers(
    context: Context, gathered: Gathered, limits: Mapping[str, int | None], failed: Collection[str] = ()
) -> dict[str, Sampler]:
    """The sampler of each role. Raises UserError when there is too little for one of them."""
    return {
        name: make_sampler(context.loaded, gathered, name, max_steps=limits[name], failed=failed) for name in limits
    }


def tell_copies(context: Context, gathered: Gathered) -> None:
    """Say which pictures teach an image-to-video model nothing but to copy."""
    own = [sample for sample in gathered.training if sample.clip.num_frames == 1 and sample.id not in gathered.pictures]
    if own and context.flavour.extra_channels:
        many = "1 picture is its" if len(own) == 1 else f"{len(own)} pictures are their"
        context.say(
            f"{many} own first frame: {context.flavour.name} learns to copy them, and no motion; conditioning_data "
            "links others",
            warning=True,
        )


def tell_undrawn(context: Context, gathered: Gathered, sampler: Sampler) -> None:
    """Say what is not drawn from."""
    for pruned in sampler.pruned:
        context.say(f"{pruned}", warning=True)
    for bucket in unused_sizes(context.loaded, gathered):
        there = ", ".join(sorted({sample.bucket for sample in gathered.training}))
        context.say(f'bucket_batch_sizes: there is no bucket "{bucket}"; there are {there}', warning=True)


def make_plan(
    context: Context,
    sampler: Sampler,
    turns: TrainingTurns,
    *,
    validates: bool,
    taken: Mapping[str, int] | None = None,
) -> RunPlan:
    """When the run ends, saves, validates (if there is anything to render) and measures."""
    options = context.options
    return plan_run(
        max_train_steps=options.run.max_train_steps,
        num_train_epochs=options.run.num_train_epochs,
        ignore_final_epochs=options.run.ignore_final_epochs,
        micro_batches_in_epochs=sampler.batches_in_epochs,
        accumulation=options.optimizer.gradient_accumulation_steps,
        budget_steps=turns.most_steps(taken),
        checkpoint_step_interval=options.checkpoints.checkpoint_step_interval,
        checkpoint_epoch_interval=options.checkpoints.checkpoint_epoch_interval,
        validation_step_interval=options.validation.validation_step_interval if validates else 0,
        eval_steps_interval=options.validation.eval_steps_interval,
    )


def announce(context: Context, prepared: Prepared, *, start: int) -> None:
    """Say in a line or two what is going to happen from step `start` on."""
    plan = prepared.plan
    shown, clips = len(plan.validation_steps), ""
    if prepared.rendering is not None and plan.validation_steps:
        settings = prepared.rendering.settings
        clips = f" of {counted(len(settings.prompts) * len(settings.sizes), 'clip')} ({settings.clips})"
        if start == 0 and not context.options.run.disable_benchmark:
            shown, clips = shown + 1, f" (one before the first step){clips}"
    context.say(
        f"{counted(plan.total_steps, 'step')}, {plan.epochs:.1f} epochs of {plan.steps_per_epoch:.1f} steps; "
        f"{counted(len(plan.checkpoint_steps), 'checkpoint')}, {counted(shown, 'validation')}{clips}"
    )
    announce_turns(context, prepared.turns, prepared.steps)


def eval_batches(context: Context, fetch: Fetch) -> list[Batch]:
    """The fixed samples of the evaluation: the first few by name, each alone, with its first caption."""
    if not context.options.validation.eval_steps_interval:
        return []
    named = context.options.validation.eval_dataset_id
    caches = fetch.caches
    usable = [
        sample
        for sample in fetch.gathered.evaluation(named)
        if sample.id in caches.latents and sample.id not in caches.failed
    ]
    chosen = usable[: context.options.validation.num_eval_images]
    return [fetch(BatchSpec((sample.id,), (0,), epoch=0, bucket=sample.clip.bucket)) for sample in chosen]
