"""Everything before the transformer is loaded: samples, caches, and the plan of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simplewan.app.caching import Caches, fill_caches
from simplewan.app.context import Context
from simplewan.app.drawing import drawn_names, make_sampler, unused_sizes
from simplewan.app.fetching import Fetch
from simplewan.app.gathering import Gathered, gather
from simplewan.app.rendering import render_settings
from simplewan.app.stores import Stores
from simplewan.app.validating import collect, rendering_experts
from simplewan.batches.batch import Batch
from simplewan.batches.sampler import BatchSpec, Sampler
from simplewan.plan import RunPlan, plan_run
from simplewan.validation.runner import RenderSettings


@dataclass(frozen=True)
class Prepared:
    """What training is made from. `render` is None when nothing is to be rendered."""

    caches: Caches
    fetch: Fetch
    render: RenderSettings | None
    plan: RunPlan


def prepare(context: Context) -> Prepared:
    """Scan the data, fill the caches, plan the run. Raises UserError for what only the files could show."""
    gathered, render = gather(context), _render_settings(context)
    drawn = look_ahead(context, gathered)
    tell_undrawn(context, gathered, drawn.sampler)
    tell_copies(context, gathered)
    stores = Stores(context, gathered)
    caches = fill_caches(context, drawn.gathered, stores, _texts(render), epochs=drawn.epochs)
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
        sampler = make_sampler(context.loaded, gathered, context.flavour.trained_experts[0], failed=caches.failed)
        for pruned in set(map(str, sampler.pruned)) - set(map(str, drawn.sampler.pruned)):
            context.say(pruned, warning=True)
    return Prepared(caches, fetch, render, make_plan(context, sampler, validates=render is not None))


@dataclass(frozen=True)
class Drawn:
    """What a run draws from and measures, so that nothing else is encoded; the epochs that it may look at."""

    gathered: Gathered
    sampler: Sampler
    epochs: int


def look_ahead(context: Context, gathered: Gathered) -> Drawn:
    """What a run will need. Raises UserError when there is too little, before anything is encoded."""
    sampler = make_sampler(context.loaded, gathered, context.flavour.trained_experts[0])
    plan, data = make_plan(context, sampler, validates=False), context.options.data
    ahead = data.dataloader_prefetch_qlen if data.dataloader_prefetch else 0
    names = drawn_names(context.loaded, gathered, sampler)
    return Drawn(gathered.only(names), sampler, math.ceil(plan.epochs) + 1 + ahead)


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


def rendered_texts(context: Context) -> list[str]:
    """The prompts that the validation of a run renders, the negative one among them."""
    return _texts(_render_settings(context))


def _render_settings(context: Context) -> RenderSettings | None:
    prompts = collect(context)
    folder, experts = context.output / "validation", rendering_experts(context)
    return render_settings(context, prompts, folder=folder, experts=experts) if prompts else None


def _texts(render: RenderSettings | None) -> list[str]:
    return [*(prompt.text for prompt in render.prompts), render.negative_prompt] if render else []


def make_plan(context: Context, sampler: Sampler, *, validates: bool) -> RunPlan:
    """When the run ends, saves, validates (if there is anything to render) and measures."""
    options = context.options
    return plan_run(
        max_train_steps=options.run.max_train_steps,
        num_train_epochs=options.run.num_train_epochs,
        ignore_final_epochs=options.run.ignore_final_epochs,
        micro_batches_in_epochs=sampler.batches_in_epochs,
        accumulation=options.optimizer.gradient_accumulation_steps,
        roles=len(context.flavour.trained_experts),
        checkpoint_step_interval=options.checkpoints.checkpoint_step_interval,
        checkpoint_epoch_interval=options.checkpoints.checkpoint_epoch_interval,
        validation_step_interval=options.validation.validation_step_interval if validates else 0,
        eval_steps_interval=options.validation.eval_steps_interval,
    )


def announce(context: Context, plan: RunPlan) -> None:
    """Say in one line what is going to happen."""

    def counted(number: int, name: str) -> str:
        return f"{number} {name}" if number == 1 else f"{number} {name}s"

    context.say(
        f"{counted(plan.total_steps, 'step')}, {plan.epochs:.1f} epochs of {plan.steps_per_epoch:.1f} steps; "
        f"{counted(len(plan.checkpoint_steps), 'checkpoint')}, {counted(len(plan.validation_steps), 'validation')}"
    )


def eval_batches(context: Context, fetch: Fetch) -> list[Batch]:
    """The fixed samples of the evaluation: the first few by name, each alone, with its first caption."""
    if not context.options.validation.eval_steps_interval:
        return []
    usable = [sample for sample in fetch.gathered.evaluation if sample.id in fetch.caches.latents]
    chosen = usable[: context.options.validation.num_eval_images]
    return [fetch(BatchSpec((sample.id,), (0,), epoch=0, bucket=sample.clip.bucket)) for sample in chosen]
