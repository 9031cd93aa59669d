"""Our own sampling loop: noise to latents with expert switch, guidance and a callback per step.

Imports torch, diffusers' schedulers and `objectives`. B batch, C channels, F frames, H height, W width, L text tokens,
D width. The network comes in as a function, so that adapters, offload and quantisation are not this file's business.
diffusers' WanPipeline and WanImageToVideoPipeline are the oracles of the tests: with UniPC on the same noise the
latents are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from simplewan.flavours import HIGH, LOW
from simplewan.models.wan.conditioning import frame_timesteps, hold_first_frame
from simplewan.objectives.distributions import Sampling, quantile
from simplewan.objectives.flow import NUM_TIMESTEPS

Predict = Callable[[Tensor, Tensor, Any, str], Tensor]
"""latents (B, C, F, H, W) float32, timesteps (B,) or (B, F), what is given, expert "high" or "low" -> velocity.

What is given (`Conditioning`, as the renderer has it) is handed on; the loop does not look into it.
"""

StepCallback = Callable[[int, float, Tensor, Tensor], "Tensor | None"]
"""step index, timestep, latents after the step, estimate of the clean latents -> other latents, or None."""


@dataclass(frozen=True)
class Conditioning:
    """What a network is given beside the noisy latents: text (B, L, D); for I2V the latents of the video that is the
    first frame and then empty (B, C, F, H, W); for Wan 2.1 I2V CLIP's embeddings of the picture (B, N, D)."""

    text_BLD: Tensor
    condition_BCFHW: Tensor | None = None
    image_embeds_BND: Tensor | None = None


Scheduler = UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler
Guidance = float | Sequence[float]

# The exponents of "Beta Sampling is All You Need", arXiv 2407.12173.
BETA_SAMPLING = Sampling("beta", beta_alpha=0.6, beta_beta=0.6)


class EulerScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler steps on the noise levels 1, 1 - 1/n, ... shifted once.

    diffusers' own `set_timesteps` shifts its smallest noise level twice and so wastes the last step; handing it the
    levels avoids that.
    """

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        super().set_timesteps(sigmas=self.levels(num_inference_steps).tolist(), device=device)

    def levels(self, num_steps: int) -> Tensor:
        """The noise levels before the shift, falling from 1, (num_steps,) float64."""
        return 1 - torch.arange(num_steps, dtype=torch.float64) / num_steps


class EulerBetaScheduler(EulerScheduler):
    """Euler steps on noise levels that crowd at both ends, as the quantiles of Beta(0.6, 0.6) do (arXiv 2407.12173)."""

    def levels(self, num_steps: int) -> Tensor:
        return quantile(BETA_SAMPLING, super().levels(num_steps))


def make_scheduler(name: str, shift: float) -> Scheduler:
    """The scheduler "unipc" (what Wan ships), "euler" or "euler-beta" at a flow shift. Raises ValueError."""
    if name == "unipc":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    if name == "euler":
        return EulerScheduler(shift=shift)
    if name == "euler-beta":
        return EulerBetaScheduler(shift=shift)
    raise ValueError(f"validation scheduler {name!r} is not one of {', '.join(SCHEDULERS)}")


SCHEDULERS = ("unipc", "euler", "euler-beta")


def initial_noise(shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Standard normal noise, float32 on the CPU, from a generator of its own: the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(
    predict: Predict,
    scheduler: Scheduler,
    latents_BCFHW: Tensor,
    given: Any,
    negative: Any | None,
    *,
    num_steps: int,
    guidance: Guidance,
    boundary: float | None = None,
    first_frame_BC1HW: Tensor | None = None,
    callback: StepCallback | None = None,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Denoises `latents_BCFHW` (float32 noise) to clean latents, (B, C, F, H, W) float32, on its device.

    At and above `boundary` (a sigma) the expert is "high", below it "low"; without one always "high". `guidance` is
    one scale or (low, high); at a scale of 1 or less the unconditional pass is skipped. Velocities are combined in the
    dtype in which `predict` returns them. `given` and `negative` are what `predict` gets in its two passes. With
    `first_frame_BC1HW` (TI2V) the network sees that as latent frame 0 in every step, at timestep 0, and it is frame 0
    of the result; the solver's own frame 0 is passed over, as in diffusers. `check` runs before each step and may
    raise. Raises ValueError when guidance needs what is negative and that is not there. Classifier-free guidance: arXiv
    2207.12598.
    """
    scales = scale_per_expert(guidance)
    if negative is None and needs_negative(guidance):
        raise ValueError(f"guidance {guidance} needs the embedding of a negative prompt")
    # Timesteps stay on the CPU: comparing them with the boundary then costs no synchronisation.
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)
    latents = latents_BCFHW

    def held(latents: Tensor) -> Tensor:
        return latents if first_frame_BC1HW is None else hold_first_frame(latents, first_frame_BC1HW)

    for index, timestep in enumerate(scheduler.timesteps):
        check()
        expert = HIGH if boundary is None or timestep >= boundary * NUM_TIMESTEPS else LOW
        timesteps = timestep.to(latents.device).expand(latents.shape[0])
        if first_frame_BC1HW is not None:
            timesteps = frame_timesteps(timesteps, latents.shape[2])
        noisy = held(latents)
        velocity = predict(noisy, timesteps, given, expert)
        if scales[expert] > 1:
            unconditional = predict(noisy, timesteps, negative, expert)
            velocity = unconditional + scales[expert] * (velocity - unconditional)
        before = latents
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if callback is not None:
            x0 = before - float(scheduler.sigmas[index]) * velocity
            replaced = callback(index, float(timestep), held(latents), held(x0))
            latents = latents if replaced is None else replaced
    return held(latents)


def needs_negative(guidance: Guidance) -> bool:
    """Whether sampling at this guidance makes unconditional passes at all."""
    return max(scale_per_expert(guidance).values()) > 1


def experts_used(scheduler: Scheduler, *, num_steps: int, boundary: float | None) -> tuple[str, ...]:
    """The expert of each step, in order: "high" ... "low" ..."""
    scheduler.set_timesteps(num_steps)
    return tuple(HIGH if boundary is None or t >= boundary * NUM_TIMESTEPS else LOW for t in scheduler.timesteps)


def scale_per_expert(guidance: Guidance) -> dict[str, float]:
    """The scale of each expert: one for both, or (low, high)."""
    if isinstance(guidance, int | float):
        return {HIGH: float(guidance), LOW: float(guidance)}
    low, high = (guidance[0], guidance[-1])
    return {HIGH: float(high), LOW: float(low)}
