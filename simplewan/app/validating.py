"""The validator of a run, and the picture of the timesteps that it trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from simplewan.app.caching import Caches
from simplewan.app.context import Context
from simplewan.app.gathering import Gathered
from simplewan.app.rendering import Decoder, Load, Turns, at_hand, expert_note
from simplewan.app.roles import Expert, boundary, load_base, make_objective
from simplewan.events import PictureDrawn
from simplewan.models.wan.loading import locate_transformer
from simplewan.objectives.supervised import SupervisedFlowMatching
from simplewan.training.seeding import derive_seed
from simplewan.validation.histogram import save_histogram
from simplewan.validation.prompts import Prompt, collect_prompts
from simplewan.validation.runner import Renderer, RenderSettings, Validator
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
    )


def rendering_experts(context: Context) -> tuple[str, ...]:
    """The experts that render: those that are trained, and the other stage's if the options ask for it."""
    trained = context.flavour.trained_experts
    other = context.flavour.other_stage if context.options.validation.loads_other_stage else None
    return trained if other is None else (*trained, other)


def make_validator(
    context: Context, settings: RenderSettings, *, experts: Mapping[str, Expert], caches: Caches
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
        loads, device=context.device, text_tokens=context.flavour.text_tokens, resident=context.flavour.trained_experts
    )
    decoder = Decoder(context)

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
            n, first = -(-HISTOGRAM_DRAWS * count // sum(counts.values())), len(draws[name])
            sigmas = objective.sigmas(expert, n, shift=shift, generator=generator, first=first)
            draws[name] = torch.cat([draws[name], sigmas])
    path = context.output / "timesteps.png"
    save_histogram(path, draws, boundary=boundary(context))
    context.emit(PictureDrawn(step, "timesteps", str(path)))


def count_shifts(context: Context, objective: SupervisedFlowMatching, gathered: Gathered) -> dict[float, int]:
    """How many samples are trained at each shift."""
    stride = context.flavour.vae.spatial_stride
    clips = (sample.clip for sample in gathered.training)
    return dict(Counter(objective.shift_for(clip.height // stride, clip.width // stride) for clip in clips))
