"""Flow matching (rectified flow, arXiv 2209.03003; Wan, arXiv 2503.20314) as pure functions.

Imports torch and this room's distributions. B batch, C channels, F frames, H height, W width.

A noise level `sigma` is 0..1 (0 clean, 1 noise); a `timestep` is 1000 times that, a float: it is never rounded.
x_sigma = (1 - sigma) * latents + sigma * noise, and the network predicts the velocity noise - latents.
Noise levels are drawn by inverting the distribution in float64, first shifted and then cut at the bounds: a cut costs
nothing, rejects nothing and gives the conditional distribution exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simplewan.objectives.distributions import Sampling, mass, truncated_quantile

NUM_TIMESTEPS = 1000
WEIGHTINGS = ("none", "sigma_sqrt", "cosmap")


def shift_sigma(sigma, shift: float):
    """s * sigma / (1 + (s - 1) * sigma), a number or a tensor of any shape -> same; s > 1 moves towards noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma, shift: float):
    """The inverse of `shift_sigma` at the same shift."""
    return sigma / (shift - (shift - 1) * sigma)


def resolution_shift(tokens_per_frame: int) -> float:
    """The shift exp(mu), mu linear in the tokens of one frame: 256 -> 0.5, 4,096 -> 1.15 (as Flux does)."""
    mu = 0.5 + (tokens_per_frame - 256) * (1.15 - 0.5) / (4096 - 256)
    return math.exp(mu)


def sample_sigmas(
    n: int,
    *,
    sampling: Sampling,
    shift: float = 1.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    generator: torch.Generator,
    slices: Tensor | None = None,
    num_slices: int = 1,
) -> Tensor:
    """`n` noise levels, (n,) float32 on the generator's device, never outside `bounds`.

    `bounds` are sigmas after the shift. `slices` (n,) names for each draw the slice that it comes from, of `num_slices`
    of equal probability. Raises ValueError for bounds or a shift that make none.
    """
    low, high = bounds
    if not 0 <= low <= high <= 1:
        raise ValueError(f"sigma bounds {bounds} are not ordered within 0 and 1")
    if not shift > 0:
        raise ValueError(f"shift = {shift} is not above 0")
    p = torch.rand(n, dtype=torch.float64, generator=generator, device=generator.device)
    if slices is not None:
        p = (slices.to(p.device) + p) / num_slices
    # 0 is a possible draw of rand; sigma = 0 has no noise and an infinite sigma_sqrt weight.
    p = p.clamp(min=2.0**-54)
    sigmas = truncated_quantile(sampling, p, unshift_sigma(low, shift), unshift_sigma(high, shift))
    return _clamp_to_float32(shift_sigma(sigmas, shift), low, high)


def share_within(low: float, high: float, *, sampling: Sampling, shift: float = 1.0) -> float:
    """P(low <= sigma <= high) of the whole, uncut distribution; far out in a tail it keeps its digits."""
    return mass(sampling, unshift_sigma(low, shift), unshift_sigma(high, shift))


def add_noise(latents_BCFHW: Tensor, noise_BCFHW: Tensor, sigmas_B: Tensor) -> Tensor:
    """(1 - sigma) * latents + sigma * noise, (B, C, F, H, W) -> same, in the latents' dtype; one sigma a sample."""
    sigmas = _per_sample(sigmas_B, latents_BCFHW)
    return (1 - sigmas) * latents_BCFHW + sigmas * noise_BCFHW


def velocity_target(latents_BCFHW: Tensor, noise_BCFHW: Tensor) -> Tensor:
    """Velocity target `noise - latents`, (B, C, F, H, W) -> same. Rectified flow, arXiv 2209.03003."""
    return noise_BCFHW - latents_BCFHW


def loss_weights(sigmas_B: Tensor, weighting: str) -> Tensor:
    """The weight of each sample's loss, (B,) -> (B,) float32. "sigma_sqrt" is sigma^-2, "cosmap" is
    2 / (pi * (1 - 2 sigma + 2 sigma^2)) (arXiv 2403.03206); "none" is 1. Raises ValueError for another name."""
    sigmas = sigmas_B.float()
    if weighting == "none":
        return torch.ones_like(sigmas)
    if weighting == "sigma_sqrt":
        return sigmas**-2
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
    raise ValueError(f"weighting {weighting!r} is not one of {', '.join(WEIGHTINGS)}")


def mse_per_sample(prediction_BCFHW: Tensor, target_BCFHW: Tensor, held_B: Tensor | None = None) -> Tensor:
    """The mean squared error of each sample, (B, C, F, H, W) -> (B,) float32, whatever the inputs' dtype.

    Of samples that are `held_B` (bool), whose latent frame 0 was given, it is that of the other frames.
    """
    squares = (prediction_BCFHW.float() - target_BCFHW.float()).square()
    if held_B is None:
        return squares.flatten(1).mean(dim=1)
    return torch.where(held_B, squares[:, :, 1:].flatten(1).mean(dim=1), squares.flatten(1).mean(dim=1))


def _per_sample(sigmas_B: Tensor, like_BCFHW: Tensor) -> Tensor:
    return sigmas_B.to(like_BCFHW).view(-1, *[1] * (like_BCFHW.ndim - 1))


def _clamp_to_float32(sigmas: Tensor, low: float, high: float) -> Tensor:
    """float64 -> float32 without leaving [low, high], whose ends need not be float32 numbers."""
    ends = torch.tensor([low, high], dtype=torch.float64, device=sigmas.device)
    inner = ends.float()
    if inner[0].double() < ends[0]:
        inner[0] = torch.nextafter(inner[0], torch.tensor(2.0))
    if inner[1].double() > ends[1]:
        inner[1] = torch.nextafter(inner[1], torch.tensor(-1.0))
    return sigmas.float().clamp(inner[0], inner[1])
