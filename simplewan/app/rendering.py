"""What renders clips, in validation as in `sample`: settings from the options, experts in turns, text, the VAE.

The trade-off with two experts: only the one that acts is on the device, the other waits in the machine's memory. A
clip therefore costs two moves of an expert, and no more device memory than one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simplewan.app.context import DTYPES, Context
from simplewan.app.device import release_memory
from simplewan.app.encoders import TextEncoder
from simplewan.app.roles import Expert, boundary
from simplewan.batches.batch import Batch
from simplewan.errors import TrainingFailure
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, LOW
from simplewan.models.wan.loading import load_vae
from simplewan.models.wan.vae import decode, place
from simplewan.validation.prompts import Prompt, validation_frames, validation_sizes
from simplewan.validation.runner import RenderSettings
from simplewan.validation.sampling import Predict, scale_per_expert

SINGLE_EXPERT = "single expert"
Load = Callable[[], Expert]


def render_settings(
    context: Context, prompts: tuple[Prompt, ...], *, folder: Path, experts: Collection[str]
) -> RenderSettings:
    """What is rendered by `experts`: the user's settings, else the flavour's. Announces what is rounded."""
    options, flavour = context.options.validation, context.flavour
    guidance = options.validation_guidance or flavour.guidance
    both = flavour.boundary is not None and {HIGH, LOW} <= set(experts)
    # A single expert renders all steps, with its own guidance.
    scale = guidance if both else scale_per_expert(guidance)[HIGH if HIGH in experts else LOW]
    return RenderSettings(
        folder=folder,
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
        boundary=boundary(context) if both else None,
    )


def expert_note(context: Context, settings: RenderSettings) -> str | None:
    """What must be said of clips of a model with two experts that one of them rendered alone."""
    return SINGLE_EXPERT if context.flavour.boundary is not None and settings.boundary is None else None


class Turns:
    """The experts that render, taking turns on the device.

    `loads` makes an expert, frozen, in eval mode and on the CPU, when its turn first comes; it is kept. The experts
    named `resident` are on the device outside of rendering too, and `rest` puts them back there. With one expert, it
    makes all steps, whichever is asked for. `activate` is called with each that acts: where several are trained, they
    may take turns on the device by themselves, and none of that is undone here.
    """

    def __init__(
        self,
        loads: Mapping[str, Load],
        *,
        device: torch.device,
        text_tokens: int,
        resident: Collection[str] = (),
        activate: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._loads, self._activate = dict(loads), activate
        self._device, self._text_tokens = device, text_tokens
        self._resident = frozenset(resident)
        self._on_device = set(self._resident)
        self._loaded: dict[str, Expert] = {}

    def predict(self, latents_BCFHW: Tensor, timesteps_B: Tensor, embeds_BLD: Tensor, name: str) -> Tensor:
        """The velocity by the expert `name`; a `validation.sampling.Predict`."""
        length = embeds_BLD.shape[1]
        padded = F.pad(embeds_BLD, (0, 0, 0, self._text_tokens - length))
        batch = Batch(latents_BCFHW, padded, (length,), names=("prompt",), caption_dropped=(False,))
        expert = self.take(name if name in self._loads else next(iter(self._loads)))
        return expert.predict(latents_BCFHW, timesteps_B, batch).to(latents_BCFHW.dtype)

    @contextmanager
    def rendering(self) -> Iterator[Predict]:
        """`predict` for the time of the block; afterwards everything is where it rests."""
        try:
            yield self.predict
        finally:
            self.rest()

    def take(self, name: str) -> Expert:
        """The expert, on the device; the others are moved off it."""
        expert = self._expert(name)
        self._activate(name)
        if name not in self._on_device:
            self._move_off(keep=())
            self._move_on(name)
        return expert

    def load_all(self) -> None:
        """Load every expert now, the first onto the device before the next is loaded."""
        first, *others = self._loads
        self.take(first)
        for name in others:
            self._expert(name)

    def rest(self) -> None:
        """Residents on the device, all others off it. Raises TrainingFailure when a resident cannot be put back."""
        try:
            self._move_off(keep=self._resident)
            for name in sorted(self._resident - self._on_device):
                self._move_on(name)
        except RuntimeError as error:
            lost = sorted(self._resident - self._on_device)
            if not lost:
                raise
            names = " and ".join(EXPERT_SUBFOLDER[name] for name in lost)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise TrainingFailure(f"{names}, which is trained, cannot be put back on the device: {reason}") from error

    def _expert(self, name: str) -> Expert:
        if name not in self._loaded:
            self._loaded[name] = self._loads[name]()
        return self._loaded[name]

    def _move_on(self, name: str) -> None:
        """Onto the device; an expert of which only a part got there is moved off again."""
        self._on_device.add(name)
        try:
            self._expert(name).transformer.to(self._device)
        except RuntimeError:
            self._move_off(keep=self._on_device - {name})
            raise

    def _move_off(self, *, keep: Collection[str]) -> None:
        leaving = sorted(self._on_device - set(keep))
        for name in leaving:
            self._expert(name).transformer.to("cpu")
        self._on_device -= set(leaving)
        if leaving:
            release_memory()


def at_hand(expert: Expert) -> Load:
    """The `Load` of an expert that is loaded."""
    return lambda: expert


class Decoder:
    """Latents (1, C, F, H, W) to pixels on the CPU. The VAE is loaded once, and on the device while it decodes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._vae: Any = None

    def load(self) -> None:
        """Load the VAE, onto the CPU, unless it is. Whoever calls this early learns early what it lacks."""
        options = self._context.options
        if self._vae is None:
            self._vae = load_vae(options.model, self._context.flavour, DTYPES[options.caches.vae_dtype])

    def __call__(self, latents_BCFHW: Tensor) -> Tensor:
        context = self._context
        self.load()
        try:
            return decode(place(self._vae, context.device), latents_BCFHW).float().cpu()
        finally:
            self._vae.to("cpu")
            release_memory()

    def close(self) -> None:
        """Drop the VAE."""
        self._vae = None


def encode_texts(context: Context, texts: Sequence[str]) -> dict[str, Tensor]:
    """The embedding (1, L, D) of each text, on the CPU; the text encoder is dropped before this returns.

    Texts go through the encoder one by one, so that none changes the bits of another.
    """
    encoder = TextEncoder(context)
    embeds = {}
    for text in dict.fromkeys(texts):
        context.check()
        embeds[text] = encoder.encode([text])[0].unsqueeze(0).cpu()
    del encoder
    release_memory()
    return embeds
