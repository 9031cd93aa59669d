"""The picture of the timesteps that each role is going to be trained on, drawn before the first step.

Imports Pillow, torch and this room's clips. A wrong range or a cut on the wrong side shows at one glance, which is the
whole point; so it is drawn from real draws of the sampler, not from its formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from simplewan.objectives.flow import NUM_TIMESTEPS
from simplewan.validation.clips import BACKGROUND, FAINT, INK, font_for, save_png

# 25 timesteps each, so that Wan's boundaries, 875 and 900, are edges of bins.
NUM_BINS = 40
BIN_WIDTH, PLOT_HEIGHT = 18, 150
LEFT, TOP, RIGHT, BOTTOM = 56, 34, 24, 40
BAR_COLOURS = ((92, 158, 255), (255, 158, 74), (120, 200, 120), (210, 130, 220))
BOUNDARY_COLOUR = (255, 92, 92)


def save_histogram(path: Path, draws: Mapping[str, Tensor], *, boundary: float | None = None) -> None:
    """Draws and saves `timestep_histogram` as a PNG, whole or not at all."""
    save_png(timestep_histogram(draws, boundary=boundary), path)


def timestep_histogram(draws: Mapping[str, Tensor], *, boundary: float | None = None) -> Image.Image:
    """A panel per role: how many of its `draws` (sigmas 0..1, 1-D) fall into each bin of timesteps 0..1000.

    `boundary` (a sigma) is marked with a line. Raises ValueError without draws.
    """
    if not draws or any(sigmas.numel() == 0 for sigmas in draws.values()):
        raise ValueError("a histogram needs at least one role, and draws of each")
    panel_height = TOP + PLOT_HEIGHT + BOTTOM
    picture = Image.new("RGB", (LEFT + NUM_BINS * BIN_WIDTH + RIGHT, panel_height * len(draws)), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for place, (role, sigmas) in enumerate(draws.items()):
        colour = BAR_COLOURS[place % len(BAR_COLOURS)]
        _panel(draw, place * panel_height, role, sigmas.double().cpu(), colour, boundary)
    return picture


def bin_counts(sigmas: Tensor) -> list[int]:
    """How many of `sigmas` (0..1) fall into each of NUM_BINS equal bins; 1 counts in the last."""
    bins = (sigmas.double() * NUM_BINS).floor().long().clamp(0, NUM_BINS - 1)
    return torch.bincount(bins, minlength=NUM_BINS).tolist()


def _panel(
    draw: ImageDraw.ImageDraw, top: int, role: str, sigmas: Tensor, colour: tuple[int, int, int], boundary: float | None
) -> None:
    counts = bin_counts(sigmas)
    base = top + TOP + PLOT_HEIGHT
    right = LEFT + NUM_BINS * BIN_WIDTH
    small = font_for("0", 12)
    low, mean, high = (float(value) * NUM_TIMESTEPS for value in (sigmas.min(), sigmas.mean(), sigmas.max()))
    title = f"{role}: {len(sigmas):,} sampled timesteps, {low:.1f} to {high:.1f}, mean {mean:.0f}"
    draw.text((LEFT, top + 8), title, fill=INK, font=font_for(title, 15))
    for index, count in enumerate(counts):
        height = round(PLOT_HEIGHT * count / max(counts))
        x = LEFT + index * BIN_WIDTH
        if height:
            draw.rectangle((x + 1, base - height, x + BIN_WIDTH - 2, base - 1), fill=colour)
    draw.line((LEFT, base, right, base), fill=FAINT)
    for timestep in range(0, NUM_TIMESTEPS + 1, 100):
        x = LEFT + round(timestep / NUM_TIMESTEPS * NUM_BINS * BIN_WIDTH)
        draw.line((x, base, x, base + 4), fill=FAINT)
        draw.text((x, base + 6), str(timestep), fill=FAINT, font=small, anchor="ma")
    share = f"{100 * max(counts) / len(sigmas):.1f}%"
    draw.text((LEFT - 6, base - PLOT_HEIGHT), share, fill=FAINT, font=small, anchor="ra")
    draw.text((LEFT - 6, base), "0", fill=FAINT, font=small, anchor="rs")
    if boundary is not None:
        x = LEFT + round(boundary * NUM_BINS * BIN_WIDTH)
        draw.line((x, base - PLOT_HEIGHT - 4, x, base + 4), fill=BOUNDARY_COLOUR, width=2)
        mark = f"boundary {boundary * NUM_TIMESTEPS:.0f}"
        draw.text((x, base + 20), mark, fill=BOUNDARY_COLOUR, font=small, anchor="ma")
