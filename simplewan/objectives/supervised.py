"""Supervised flow matching: the loss of one role on one batch, and the loss on fixed samples for evaluation.

Imports torch, this room, and what it is to hold a first frame. B batch, C channels, F frames, H height, W width.

What it needs of a role and a batch stands in two small protocols, so that it knows neither the loop nor the loader.
Everything random is drawn on the CPU by the generator handed in and then moved: a seed gives the same noise on every
device, for the price of moving the noise (the size of the latents, 8.4 MB for 81 frames at 480p). Nothing in a loss
waits for the device: what is moved there does not block, the noise comes from pinned memory (CUDA may wait before it
copies much from memory that is not), and what the device makes is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from simplewan.models.wan.conditioning import frame_timesteps, hold_first_frame
from simplewan.objectives.distributions import Sampling
from simplewan.objectives.flow import (
    NUM_TIMESTEPS,
    add_noise,
    loss_weights,
    mse_per_sample,
    resolution_shift,
    sample_sigmas,
    velocity_target,
)
from simplewan.objectives.strata import slices_of

MOST_DIGITS = 12  # in the names of bands
Predict = Callable[[Tensor, Tensor, Any], Tensor]
"""noisy latents (B, C, F, H, W) float32, timesteps (B,) or (B, F) float32 in 0..1000, the batch -> velocity.

The batch is what carries the conditioning (text, first frames); the objective hands it on and does not look into it.
"""


class RoleLike(Protocol):
    """What the objective needs of a role: its name, its bounds in sigma, its network as a function, and that of the
    base model without what is trained, if there is one: the target on regularisation data."""

    @property
    def name(self) -> str: ...

    @property
    def sigma_bounds(self) -> tuple[float, float]: ...

    @property
    def predict(self) -> Predict: ...

    @property
    def base_predict(self) -> Predict | None: ...


@dataclass(frozen=True)
class FlowRole:
    """A `RoleLike` for those who have nothing else to carry."""

    name: str
    sigma_bounds: tuple[float, float]
    predict: Predict
    base_predict: Predict | None = None


class BatchLike(Protocol):
    """What the objective needs of a batch: clean latents, on the device of the network, whether the base model's own
    prediction is their target, and for each sample the probability that its first latent frame is given (or none)."""

    @property
    def latents_BCFHW(self) -> Tensor: ...

    @property
    def is_regularisation(self) -> bool: ...

    @property
    def first_frame_probabilities(self) -> Sequence[float]: ...


@dataclass(frozen=True)
class Loss:
    """`value` is the scalar to differentiate. Metrics that the device makes are left there, as tensors."""

    value: Tensor
    metrics: dict[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SupervisedFlowMatching:
    """The objective of LoRA and full fine-tunes. With `auto_shift` the shift follows the batch's latent size and
    `shift` is not used; `patch` is the edge of a token in latent pixels. With `num_buckets` the timesteps of a role are
    stratified over its consecutive draws (strata.py), in an order that `seed` decides; 0 draws each by itself."""

    sampling: Sampling = field(default_factory=Sampling)
    shift: float = 1.0
    auto_shift: bool = False
    weighting: str = "none"
    num_buckets: int = 0
    seed: int = 0
    patch: int = 2

    def shift_for(self, height: int, width: int) -> float:
        """The shift of latents of this size: the fixed one, or that of their token grid."""
        if not self.auto_shift:
            return self.shift
        return resolution_shift((height // self.patch) * (width // self.patch))

    def sigmas(self, role: RoleLike, n: int, *, shift: float, generator: torch.Generator, first: int) -> Tensor:
        """The noise levels of the role's draws number `first` (from 0) to `first + n - 1`: (n,) float32 on the CPU."""
        slices = None
        if self.num_buckets:
            slices = slices_of(first, n, num_slices=self.num_buckets, seed=self.seed, role=role.name)
        return sample_sigmas(
            n,
            sampling=self.sampling,
            shift=shift,
            bounds=role.sigma_bounds,
            generator=generator,
            slices=slices,
            num_slices=self.num_buckets,
        )

    def loss(self, role: RoleLike, batch: BatchLike, generator: torch.Generator, micro_batch: int = 0) -> Loss:
        """The weighted velocity loss of `role` on `batch`; `generator` is a CPU generator: sigmas first, then noise,
        then, where that is not certain, whose first frames are given.

        `micro_batch` numbers the role's batches from 0. Its number and its size alone number its draws, so that nothing
        has to be remembered: where batches differ in size, a cycle of strata may miss one, without any bias.

        On regularisation data the target is what the base model predicts for the same noisy latents (prior
        preservation by distillation), so that only what training changed is corrected.
        Metrics: "timestep", the mean of the batch in 0..1000, and "unweighted_loss" where weights act.
        """
        latents = batch.latents_BCFHW.float()
        n, shift = len(latents), self.shift_for(*latents.shape[-2:])
        sigmas_B = self.sigmas(role, n, shift=shift, generator=generator, first=micro_batch * n)
        noise = _noise(latents, generator)
        teacher = role.base_predict if batch.is_regularisation else None
        assert teacher is not None or not batch.is_regularisation, "regularisation needs the base model"
        held_B = draw_held(batch.first_frame_probabilities, latents.shape[2], generator)
        errors_B = velocity_errors(role.predict, batch, noise, sigmas_B, held_B=held_B, teacher=teacher)
        losses_B = errors_B * loss_weights(sigmas_B, self.weighting).to(errors_B.device, non_blocking=True)
        metrics: dict[str, float | Tensor] = {"timestep": float(sigmas_B.mean()) * NUM_TIMESTEPS}
        if self.weighting != "none":
            metrics["unweighted_loss"] = errors_B.detach().mean()
        return Loss(value=losses_B.mean(), metrics=metrics)


def _noise(latents_BCFHW: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of that size, float32, drawn on the CPU, on the latents' device."""
    noise = torch.randn(latents_BCFHW.shape, generator=generator, pin_memory=latents_BCFHW.is_cuda)
    return noise.to(latents_BCFHW.device, non_blocking=True)


def draw_held(probabilities: Sequence[float], num_frames: int, generator: torch.Generator) -> Tensor | None:
    """Whose first latent frame is given, (B,) bool on the CPU; None where nobody's can be: a single frame is all there
    is to learn. Nothing is drawn where all probabilities are 0 or 1."""
    if num_frames == 1 or not any(probabilities):
        return None
    probabilities_B = torch.tensor(probabilities, dtype=torch.float64)
    if bool(((probabilities_B == 0) | (probabilities_B == 1)).all()):
        return probabilities_B == 1
    return torch.rand(len(probabilities_B), dtype=torch.float64, generator=generator) < probabilities_B


def velocity_errors(
    predict: Predict,
    batch: BatchLike,
    noise_BCFHW: Tensor,
    sigmas_B: Tensor,
    *,
    held_B: Tensor | None = None,
    teacher: Predict | None = None,
) -> Tensor:
    """Mean squared velocity error of each sample at given noise and sigmas, (B,) float32 with its graph.

    The target is `noise - latents`, or, where there is a `teacher`, what it predicts (without a graph). Samples that
    are `held_B` have their own clean latent frame 0, at timestep 0, and no error there.
    """
    latents = batch.latents_BCFHW.float()
    sigmas_B = sigmas_B.to(latents.device, non_blocking=True)
    noisy = add_noise(latents, noise_BCFHW, sigmas_B)
    timesteps = sigmas_B * NUM_TIMESTEPS
    if held_B is not None:
        held_B = held_B.to(latents.device, non_blocking=True)
        noisy = torch.where(held_B.view(-1, 1, 1, 1, 1), hold_first_frame(noisy, latents[:, :, :1]), noisy)
        timesteps = torch.where(held_B[:, None], frame_timesteps(timesteps, latents.shape[2]), timesteps[:, None])
    target = velocity_target(latents, noise_BCFHW)
    if teacher is not None:
        with torch.no_grad():
            target = teacher(noisy, timesteps, batch).float()
    return mse_per_sample(predict(noisy, timesteps, batch), target, held_B)


@dataclass(frozen=True)
class EvalResult:
    """The mean loss over samples and timesteps, and over the samples of each band."""

    loss: float
    bands: dict[str, float]


def timestep_bands(count: int, bounds: tuple[float, float] = (0.0, 1.0)) -> dict[str, float]:
    """`count` equal bands of the sigmas within `bounds`: the name "0-250" (timesteps) -> the timestep in its middle.

    The names have as many digits as tell the bands apart.
    """
    low, high = (bound * NUM_TIMESTEPS for bound in bounds)
    edges = [low + (high - low) * index / count for index in range(count + 1)]
    digits = next(digits for digits in range(MOST_DIGITS) if len({f"{edge:.{digits}f}" for edge in edges}) > count)
    return {f"{a:.{digits}f}-{b:.{digits}f}": (a + b) / 2 for a, b in pairwise(edges)}


@torch.no_grad()
def eval_loss(
    predict: Predict,
    batches: Iterable[BatchLike],
    timesteps: Mapping[str, float],
    seed: int,
    *,
    check: Callable[[], None] = lambda: None,
) -> EvalResult:
    """The unweighted loss at fixed timesteps (band -> timestep in 0..1000) and fixed noise; no gradient.

    The noise depends on the seed and the batch's place only, and is the same at every timestep, so that two
    evaluations differ by nothing but the network. A first frame that is as likely given as not is given. Raises
    ValueError when there is no batch or no timestep.
    """
    sums = dict.fromkeys(timesteps, 0.0)
    num_samples = 0
    for index, batch in enumerate(batches):
        latents = batch.latents_BCFHW
        generator = torch.Generator().manual_seed(seed + index)
        noise = _noise(latents, generator)
        num_samples += latents.shape[0]
        usual = [float(probability >= 0.5) for probability in batch.first_frame_probabilities]
        held_B = draw_held(usual, latents.shape[2], generator)
        for band, timestep in timesteps.items():
            check()
            sigmas_B = torch.full((latents.shape[0],), timestep / NUM_TIMESTEPS)
            sums[band] += float(velocity_errors(predict, batch, noise, sigmas_B, held_B=held_B).sum())
    if not num_samples or not sums:
        raise ValueError("an evaluation needs at least one batch and one timestep")
    bands = {band: total / num_samples for band, total in sums.items()}
    return EvalResult(loss=sum(bands.values()) / len(bands), bands=bands)
