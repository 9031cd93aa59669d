"""Trains the miniature's VAEs from nothing on drawn clips: `python -m simplewan.mini.train_vae FOLDER`.

Imports `draw` and `model`, torch and diffusers. Wan's VAE never has to be trained by those who train Wan, so this is a
script beside the trainer and no part of it. The one of kind "2.1" learns from single frames; its encoder looks at one
frame in four, so what it makes of a frame it makes of a clip. The one of kind "2.2" goes on with 17 frames.
The loss counts the objects' pixels several times, for they are a tenth of the picture and all of what is scored.

With `--refine VAE` the decoder alone goes on learning, on clips: the latents stay what they are, so that transformers
can be trained on them meanwhile. Same seed, same number of threads, same weights. A stopped training goes on from its
last snapshot.
Shapes: B batch, C channels, F frames, H height, W width.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplewan.data.atomic import atomic_folder, atomic_path
from simplewan.mini.draw import GROUNDS, HELD_BACK, Scene, draw_frames, random_scene
from simplewan.mini.initial import CHANNELS, carry_small_picture, look_at_one_frame
from simplewan.mini.model import fit_latent_statistics, make_vae
from simplewan.training.optimizers import Joined

SIZES = ((64, 64), (80, 48), (48, 80), (64, 64))
OBJECT_WEIGHT = 4.0
# The first channels are taught to be the picture itself, small: the last frame that a latent frame stands for, two by
# two averages of a latent pixel, three colours. Left to itself the encoder finds a code that transformers of this size
# learn badly (docs/miniature.md).
SMALL_PICTURE_SCALE, SMALL_PICTURE_WEIGHT = 2.0, 1.0
ENCODER_RATE = {"2.1": 0.1, "2.2": 1.0}  # shares of the learning rate: what begins right needs little
# Noise on the latents, as a share of each channel's spread, takes the place of a learned posterior: near latents are
# near pictures, and the decoder forgives what a transformer gets wrong.
LATENT_NOISE = 0.2
SIZE_WEIGHT = 1e-4  # keeps the latents' scale, which nothing else does
SNAPSHOT_SECONDS = 120.0
HELD_OUT_SEED, HELD_OUT_CLIPS = 1_000_003, 48


@dataclass(frozen=True)
class Stage:
    """Steps on clips of so many frames, with a learning rate that warms up and falls to zero along a cosine.

    `window`, in pixels, cuts the clips to a square around an object; None leaves them whole. `kernel_rate` is that of
    kernels and norms' gains, which Muon then trains as matrices; None, in all stages or in none, leaves them to AdamW.
    """

    steps: int
    batch: int
    frames: int
    learning_rate: float
    window: int | None = None
    kernel_rate: float | None = None


# In the end as many frames as the causal convolutions look back: trained on fewer, they drift on longer clips.
STAGES = {
    "2.1": (Stage(2400, 16, 1, 2e-3),),
    "2.2": (Stage(2000, 16, 1, 2e-3, kernel_rate=3e-3), Stage(1600, 4, 17, 1.5e-3, window=48, kernel_rate=2e-3)),
}
REFINING = {
    "2.1": (Stage(4000, 4, 17, 1.5e-3, window=40),),
    "2.2": (Stage(4000, 4, 17, 1.5e-3, window=48),),
}


def train(kind: str, folder: Path, *, seed: int, shorten: float = 1.0) -> float:
    """Trains and writes the VAE into `folder`; returns its PSNR on held-out clips, dB. `shorten` is a share."""
    torch.manual_seed(seed)
    vae = make_vae(kind)
    look_at_one_frame(vae)
    if kind == "2.1":
        carry_small_picture(vae, SMALL_PICTURE_SCALE)
    encoder = [vae.encoder, vae.quant_conv]
    decoder = [vae.post_quant_conv, vae.decoder]
    _run(vae, [(encoder, ENCODER_RATE[kind]), (decoder, 1.0)], _shortened(STAGES[kind], shorten), seed, folder)
    fit_latent_statistics(vae, [clip for clip, _ in _held_out(16)])
    return _save(vae, folder)


def refine(kind: str, start: Path, folder: Path, *, seed: int, shorten: float = 1.0) -> float:
    """Trains the decoder of the VAE in `start` and writes the whole into `folder`; returns its PSNR, dB."""
    vae = make_vae(kind).from_pretrained(start)
    vae.requires_grad_(False)
    decoder = [vae.post_quant_conv, vae.decoder]
    for part in decoder:
        part.requires_grad_(True)
    _run(vae, [(decoder, 1.0)], _shortened(REFINING[kind], shorten), seed + 1, folder)
    return _save(vae, folder)


def _shortened(stages: tuple[Stage, ...], share: float) -> list[Stage]:
    return [replace(stage, steps=max(1, round(stage.steps * share))) for stage in stages]


def _save(vae: Any, folder: Path) -> float:
    """Writes the weights in bfloat16, and returns the PSNR with those."""
    with atomic_folder(folder) as temporary:
        vae.to(torch.bfloat16).save_pretrained(temporary)
    _snapshot(folder).unlink(missing_ok=True)
    return psnr(vae.float())


def _snapshot(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.training.pt")


def _run(vae: Any, trained: list[tuple[list[Any], float]], stages: list[Stage], seed: int, folder: Path) -> None:
    """All stages, from the last snapshot on. `trained`: modules with their share of the learning rate."""
    vae.train()
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    snapshot = _snapshot(folder)
    shares = [share for _, share in trained]
    begun = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in vae.state_dict().values())).hexdigest()
    weights = (LATENT_NOISE, SIZE_WEIGHT, OBJECT_WEIGHT, SMALL_PICTURE_WEIGHT, SMALL_PICTURE_SCALE)
    recipe = repr((begun, stages, shares, seed, SIZES, weights))
    state: dict[str, Any] = torch.load(snapshot, weights_only=True) if snapshot.exists() else {}
    if state.get("recipe") == recipe:
        vae.load_state_dict(state["vae"])
    else:
        if state:
            print(f"{snapshot} belongs to another training: beginning anew", flush=True)
        state = {"stage": 0, "step": 0}
    assert len({stage.kernel_rate is None for stage in stages}) == 1, "gradients go to the matrices in all stages"
    matrices = _matrices(trained) if stages[0].kernel_rate is not None else {}
    for index, stage in enumerate(stages[state["stage"] :], start=state["stage"]):
        optimizer = _optimizer(trained, stage, matrices)
        resumed = index == state["stage"] and "optimizer" in state
        if resumed:
            optimizer.load_state_dict(state["optimizer"])
        first = state["step"] if resumed else 0
        for step in _run_stage(vae, optimizer, stage, (seed, index), first):
            training = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_path(snapshot) as path:
                torch.save({**training, "stage": index, "step": step, "recipe": recipe}, path)
    vae.eval()


def _optimizer(
    trained: list[tuple[list[Any], float]], stage: Stage, matrices: Mapping[Tensor, nn.Parameter]
) -> torch.optim.Optimizer:
    """Groups with the rate at the stage's height (`peak`), which `_run_stage` follows. `matrices`: see `_matrices`."""
    kernels, others = [], []
    for modules, share in trained:
        parameters = [p for module in modules for p in module.parameters()]
        rest = [p for p in parameters if p not in matrices]
        others.append({"params": rest, "peak": share * stage.learning_rate})
        if stage.kernel_rate is not None:
            chosen = [matrices[p] for p in parameters if p in matrices]
            kernels.append({"params": chosen, "peak": share * stage.kernel_rate})
    adam = torch.optim.AdamW(others, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    if not kernels:
        return adam
    # Muon, arXiv 2502.16982; what it gains here stands in docs/miniature.md.
    return Joined(torch.optim.Muon(kernels, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), adam)


def _matrices(trained: list[tuple[list[Any], float]]) -> dict[Tensor, nn.Parameter]:
    """Each convolution's kernel as a matrix (outputs, rest) over the same memory, each norm's gain as one (size, 1).

    From now on gradients go to the matrix.
    """
    found: dict[Tensor, nn.Parameter] = {}

    def matrix(tensor: Tensor) -> Tensor:
        return tensor.permute(0, *range(2, tensor.ndim), 1).reshape(len(tensor), -1)

    def hand_over(kernel: Tensor) -> None:
        assert kernel.grad is not None
        assert found[kernel].grad is None
        found[kernel].grad, kernel.grad = matrix(kernel.grad), None

    for kernel in [p for modules, _ in trained for module in modules for p in module.parameters()]:
        if kernel.ndim < 4:
            continue
        if kernel.ndim == 4:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        found[kernel] = nn.Parameter(matrix(kernel.data))
        assert found[kernel].data_ptr() == kernel.data_ptr()
        kernel.register_post_accumulate_grad_hook(hand_over)
    return found


def _run_stage(
    vae: Any, optimizer: torch.optim.Optimizer, stage: Stage, key: tuple[int, int], first: int
) -> Iterator[int]:
    """Trains; yields the number of finished steps whenever it is time for a snapshot."""
    saved = shown = time.monotonic()
    smoothed = math.nan
    for step in range(first, stage.steps):
        pixels, weight = draw_batch((*key, step), stage.batch, stage.frames, stage.window)
        torch.manual_seed(hash((*key, step)) % 2**31)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(step, stage.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = vae.encode(pixels).latent_dist.mode()  # without a graph when the encoder is frozen
            spread = latents.std(dim=(0, 2, 3, 4), keepdim=True)
            decoded = vae.decode(latents + LATENT_NOISE * spread * torch.randn_like(latents)).sample
        error = decoded.float() - pixels
        squared = (weight * error.square()).mean()
        away = latents[:, :CHANNELS].float() - SMALL_PICTURE_SCALE * small_picture(pixels, latents.shape[-1])
        loss = squared + 0.3 * (weight * error.abs()).mean() + SMALL_PICTURE_WEIGHT * away.square().mean()
        loss = loss + SIZE_WEIGHT * latents.float().square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = error.detach().square().mean().item()
        smoothed = value if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * value
        now = time.monotonic()
        if now - shown > 20:
            shown = now
            print(f"stage {key[1]}, step {step} of {stage.steps}: {_decibels(smoothed):.2f} dB", flush=True)
        if now - saved > SNAPSHOT_SECONDS:
            saved = now
            yield step + 1


def small_picture(pixels_BCFHW: Tensor, width: int) -> Tensor:
    """Every fourth frame, averaged to twice the latents' `width` and folded two by two: (B, 12, n+1, h, width)."""
    frames = pixels_BCFHW[:, :, ::4]
    edge = frames.shape[-1] // (2 * width)
    small = F.avg_pool3d(frames, (1, edge, edge))
    return F.pixel_unshuffle(small.transpose(1, 2), 2).transpose(1, 2)


def _schedule(step: int, steps: int) -> float:
    """Warms up over 50 steps, then a cosine to zero."""
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))


def draw_batch(key: tuple[int, ...], batch: int, frames: int, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Drawn clips (B, 3, F, H, W) in [-1, 1], and the weight of each pixel (B, 1, F, H, W)."""
    generator = np.random.default_rng(key)
    width, height = SIZES[int(generator.integers(len(SIZES)))]
    scenes = [_scene(generator, width, height, frames) for _ in range(batch)]
    clips = np.stack([_cut(draw_frames(scene)[-frames:], scene, window, generator) for scene in scenes])
    clips = clips.astype(np.float32)
    grounds = np.array([GROUNDS[scene.ground] for scene in scenes], np.float32)[:, None, None, None, :]
    objects = np.abs(clips - grounds).max(axis=-1) > 6
    weight = torch.from_numpy(1.0 + (OBJECT_WEIGHT - 1.0) * objects.astype(np.float32))[:, None]
    pixels = torch.from_numpy(clips / 127.5 - 1).permute(0, 4, 1, 2, 3)
    return pixels.contiguous(memory_format=torch.channels_last_3d), weight


def _cut(frames_FHWC: np.ndarray, scene: Scene, window: int | None, generator: np.random.Generator) -> np.ndarray:
    """The clip, or a square of `window` pixels near where one of its objects is half way."""
    if window is None:
        return frames_FHWC
    item = scene.objects[int(generator.integers(len(scene.objects)))]
    edge = min(scene.width, scene.height)
    centre = item.centre((scene.num_frames - 1) / 2 / scene.fps)
    left, top = (
        int(np.clip(share * edge - window / 2 + generator.integers(-8, 9), 0, length - window))
        for share, length in zip(centre, (scene.width, scene.height), strict=True)
    )
    return frames_FHWC[:, top : top + window, left : left + window]


def _scene(generator: np.random.Generator, width: int, height: int, frames: int) -> Scene:
    concept = HELD_BACK[int(generator.integers(len(HELD_BACK)))] if generator.random() < 0.3 else None
    length = max(frames, 9)
    return random_scene(generator, width=width, height=height, num_frames=length, concept=concept, anywhere=True)


def _held_out(count: int, frames: int = 17) -> list[tuple[Tensor, Tensor]]:
    """Clips that no training step draws."""
    return [draw_batch((HELD_OUT_SEED, index), 1, frames) for index in range(count)]


@torch.no_grad()
def psnr(vae: Any) -> float:
    """The PSNR of held-out clips of 17 frames after encoding and decoding, dB; the mean over clips."""
    values = []
    for pixels, _ in _held_out(HELD_OUT_CLIPS):
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(_decibels((decoded - pixels).square().mean().item()))
    return sum(values) / len(values)


def _decibels(squared_error: float) -> float:
    """PSNR for a mean squared error of values in [-1, 1]."""
    return 10 * math.log10(4.0 / max(squared_error, 1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one of the miniature's VAEs.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=sorted(STAGES), default="2.1")
    parser.add_argument("--refine", type=Path, metavar="VAE", help="train only the decoder of this one")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shorten", type=float, default=1.0, help="a share of the steps, for trials")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    how = {"seed": arguments.seed, "shorten": arguments.shorten}
    if arguments.refine is None:
        score = train(arguments.kind, arguments.folder, **how)
    else:
        score = refine(arguments.kind, arguments.refine, arguments.folder, **how)
    print(f"{score:.2f} dB on {HELD_OUT_CLIPS} held-out clips after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
