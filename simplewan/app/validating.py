"""The validator of a run, and the picture of the timesteps that it trains on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from simplewan.app.caching import Caches
from simplewan.app.context import Context
from simplewan.app.drawing import sample_refs
from simplewan.app.gathering import Gathered
from simplewan.app.idle import IdleExperts
from simplewan.app.pictures import Rendering, first_frames
from simplewan.app.rendering import Decoder, Load, Turns, at_hand, expert_note
from simplewan.app.roles import Expert, boundary, load_base, make_objective
from simplewan.errors import some
from simplewan.events import PictureDrawn
from simplewan.models.wan.loading import locate_transformer
from simplewan.objectives.supervised import SupervisedFlowMatching
from simplewan.training.seeding import derive_seed
from simplewan.validation.histogram import save_histogram
from simplewan.validation.prompts import Prompt, collect_prompts
from simplewan.validation.runner import Renderer, Validator
from simplewan.validation.sampling import Predict

HISTOGRAM_DRAWS = 10_000


def collect(context: Context, *, even_if_disabled: bool = False) -> tuple[Prompt, ...]:
    """The prompts to render; none when validation is off."""
    options = context.options.validation
    if options.validation_disable and not even_if_disabled:
        return ()
    return collect_prompts(
        validation_prompt=options.validation_prompt,
        user_library=context.loaded.prompts,
        use_built_in_library=options.validation_prompt_library,
        images={name: str(path) for name, path in context.loaded.prompt_images.items()},
    )


def without_pictures(context: Context, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts for a model that takes no pictures; says whose are not used."""
    names = [prompt.name for prompt in prompts if prompt.image]
    if names:
        message = f"{context.flavour.name} takes no picture: those of the prompts {some(names)} are not used"
        context.say(message, warning=True)
    return [replace(prompt, image=None) for prompt in prompts]


def rendering_experts(context: Context) -> tuple[str, ...]:
    """The experts that render: those that are trained, and the other stage's if the options ask for it."""
    trained = context.flavour.trained_experts
    other = context.flavour.other_stage if context.options.validation.loads_other_stage else None
    return trained if other is None else (*trained, other)


def make_validator(
    context: Context,
    rendering: Rendering,
    *,
    experts: Mapping[str, Expert],
    caches: Caches,
    idle: IdleExperts,
) -> Validator:
    """A validator that renders with the trained experts, and with the other stage's bare base where that is asked for.

    The other stage is loaded when it first renders, and waits on the CPU between validations.
    """
    loads: dict[str, Load] = {name: at_hand(expert) for name, expert in experts.items()}
    for name in rendering_experts(context):
        if name not in loads:
            locate_transformer(context.options.model, context.flavour, name)  # downloaded now, not in mid-training
            loads[name] = partial(load_base, context, name)
    turns = Turns(
        loads,
        device=context.device,
        text_tokens=context.flavour.text_tokens,
        resident=context.flavour.trained_experts,
        activate=idle.activate,
    )
    decoder = Decoder(context)
    settings = rendering.settings

    @contextmanager
    def open_predict() -> Iterator[Predict]:
        for expert in experts.values():
            expert.transformer.eval()
        try:
            with turns.rendering() as predict:
                yield predict
        finally:
            decoder.close()
            for expert in experts.values():
                expert.transformer.train()

    renderer = Renderer(
        settings,
        open_predict=open_predict,
        embeds=lambda text: caches.text(text).clone().unsqueeze(0),
        decode=decoder,
        first_frame=first_frames(context.flavour, rendering.needs, caches.picture),
        emit=context.emit,
        check=context.check,
        device=context.device,
    )
    return Validator(settings, renderer, emit=context.emit, note=expert_note(context, settings))


def draw_histogram(context: Context, experts: Mapping[str, Expert], gathered: Gathered, *, step: int) -> None:
    """The picture of the timesteps that each role draws, saved and announced before the attempt's first step; `step` is
    the number of finished ones."""
    objective = make_objective(context)
    counts = count_shifts(context, objective, gathered)
    draws = {name: torch.zeros(0) for name in experts}
    for name, expert in experts.items():
        generator = torch.Generator().manual_seed(derive_seed(context.options.run.seed, name, "histogram"))
        for shift, count in counts.items():
            n, first = math.ceil(HISTOGRAM_DRAWS * count / sum(counts.values())), len(draws[name])
            sigmas = objective.sigmas(expert, n, shift=shift, generator=generator, first=first)
            draws[name] = torch.cat([draws[name], sigmas])
    path = context.output / "timesteps.png"
    save_histogram(path, draws, boundary=boundary(context))
    context.emit(PictureDrawn(step, "timesteps", str(path)))


def count_shifts(context: Context, objective: SupervisedFlowMatching, gathered: Gathered) -> dict[float, float]:
    """How many draws an epoch has at each shift."""
    stride = context.flavour.vae.spatial_stride
    samples = gathered.training
    counts: dict[float, float] = {}
    for sample, ref in zip(samples, sample_refs(context.loaded, gathered, samples), strict=True):
        shift = objective.shift_for(sample.clip.height // stride, sample.clip.width // stride)
        counts[shift] = counts.get(shift, 0.0) + ref.rate
    return {shift: count for shift, count in counts.items() if count > 0}
