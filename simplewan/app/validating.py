"""The validator of a run: prompts, sizes and guidance from the options; the VAE loaded only while clips are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from simplewan.app.caching import Caches
from simplewan.app.context import DTYPES, Context
from simplewan.app.device import release_memory
from simplewan.app.roles import Expert, make_objective
from simplewan.app.samples import Gathered
from simplewan.batches.batch import Batch
from simplewan.flavours import HIGH
from simplewan.models.wan.loading import load_vae
from simplewan.models.wan.vae import decode, place
from simplewan.objectives.flow import sample_sigmas
from simplewan.objectives.supervised import SupervisedFlowMatching
from simplewan.training.seeding import derive_seed
from simplewan.validation.histogram import save_histogram
from simplewan.validation.prompts import Prompt, collect_prompts, validation_frames, validation_sizes
from simplewan.validation.runner import RenderSettings, Validator
from simplewan.validation.sampling import Predict

HISTOGRAM_DRAWS = 10_000


def collect(context: Context) -> tuple[Prompt, ...]:
    """The prompts to render; none when validation is off."""
    options = context.options.validation
    if options.validation_disable:
        return ()
    return collect_prompts(
        validation_prompt=options.validation_prompt,
        user_library=context.loaded.prompts,
        use_built_in_library=options.validation_prompt_library,
    )


def render_settings(context: Context, prompts: tuple[Prompt, ...]) -> RenderSettings:
    """What is rendered: the user's settings, else the flavour's. Announces what is rounded."""
    options, flavour = context.options.validation, context.flavour
    guidance = options.validation_guidance or flavour.guidance
    scale = guidance[0] if len(guidance) == 1 else (guidance[0], guidance[1])
    if flavour.stage is not None and not isinstance(scale, float):
        # A single expert renders all steps, with its own guidance.
        scale = scale[1] if flavour.stage == HIGH else scale[0]
    return RenderSettings(
        folder=context.output / "validation",
        flavour=flavour,
        prompts=prompts,
        sizes=validation_sizes(
            [f"{width}x{height}" for width, height in options.validation_resolution], flavour=flavour, emit=context.emit
        ),
        num_frames=validation_frames(options.validation_num_video_frames, flavour=flavour, emit=context.emit),
        num_steps=options.validation_num_inference_steps or flavour.steps,
        guidance=scale,
        shift=options.validation_shift or flavour.validation_shift,
        seed=options.validation_seed,
        negative_prompt=options.validation_negative_prompt,
        scheduler=options.validation_noise_scheduler,
    )


def make_validator(
    context: Context, settings: RenderSettings, *, experts: Mapping[str, Expert], caches: Caches
) -> Validator:
    """A validator that renders with the trained experts. With one trained, it renders all steps."""
    text_tokens = context.flavour.text_tokens

    @contextmanager
    def open_predict() -> Iterator[Predict]:
        for expert in experts.values():
            expert.transformer.eval()

        def predict(latents: Tensor, timesteps: Tensor, embeds: Tensor, name: str) -> Tensor:
            expert = experts.get(name) or next(iter(experts.values()))
            length = embeds.shape[1]
            padded = F.pad(embeds, (0, 0, 0, text_tokens - length))
            batch = Batch(latents, padded, (length,), names=("prompt",), caption_dropped=(False,))
            return expert.predict(latents, timesteps, batch).to(latents.dtype)

        try:
            yield predict
        finally:
            for expert in experts.values():
                expert.transformer.train()

    def decode_latents(latents: Tensor) -> Tensor:
        vae = load_vae(context.options.model, context.flavour, DTYPES[context.options.caches.vae_dtype])
        pixels = decode(place(vae, context.device), latents).float().cpu()
        del vae
        release_memory()
        return pixels

    return Validator(
        settings,
        open_predict=open_predict,
        embeds=lambda text: caches.text(text).clone().unsqueeze(0),
        decode=decode_latents,
        emit=context.emit,
        check=context.check,
        device=context.device,
    )


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
