"""The weights a miniature VAE begins with: it already knows what a small picture is, and that time goes on.

Imports diffusers' VAE classes. Chance would do, but an hour later (docs/miniature.md).

`look_at_one_frame`: every kernel sees the present frame alone, and resampling in time drops or holds frames. What was
learned on single frames then holds for clips at once, and frames before are taken into account as far as that helps.
`carry_small_picture`: the encoder's first latent channels are the clip, every fourth frame, four times smaller. A
linear map through a network full of norms and SiLUs: reserved channels that no residual branch writes to; before the
last norm a constant so large that the norm is one, and an offset that keeps SiLU on its straight side.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, WanResidualBlock
from torch import nn

COLOURS = 3
CHANNELS = 12  # 2 x 2 pixels of the small picture in each latent pixel, times three colours
CONSTANT, CONSTANTS, OFFSET, GAIN = 40.0, 2, 2.0, 4.0


@torch.no_grad()
def look_at_one_frame(vae: Any) -> None:
    """Lets no kernel look back in time, in place."""
    for name, module in vae.named_modules():
        if not isinstance(module, WanCausalConv3d) or module.kernel_size[0] == 1:
            continue
        weight = module.weight
        if name.endswith("time_conv"):
            repeats = module.out_channels // module.in_channels
            weight.zero_()
            weight[:, :, -1, 0, 0] = torch.eye(module.in_channels).repeat(repeats, 1)
            nn.init.zeros_(module.bias)
        else:
            weight *= weight.shape[2] ** 0.5  # a third of the inputs, the variance of all
            weight[:, :, :-1] = 0


@torch.no_grad()
def carry_small_picture(vae: Any, scale: float) -> None:
    """Makes the encoder's first `CHANNELS` the small picture (`train_vae.small_picture`) times `scale`, in place.

    For a VAE of kind "2.1" after `look_at_one_frame`; error about 1/1000 of the variance.
    """
    encoder = vae.encoder
    _pass_through(encoder.conv_in, COLOURS)
    *earlier, last = [block for block in encoder.down_blocks if isinstance(block, WanResample)]
    for resample in earlier:
        _silence(resample.resample[1], COLOURS)
        for colour in range(COLOURS):
            resample.resample[1].weight[colour, colour, :2, :2] = 0.25
    _silence(last.resample[1], CHANNELS)
    for channel in range(CHANNELS):
        colour, row, column = channel // 4, channel // 2 % 2, channel % 2
        last.resample[1].weight[channel, colour, row, column] = 1.0

    width = COLOURS
    for block in [*encoder.down_blocks, *encoder.mid_block.resnets]:
        if isinstance(block, WanResidualBlock):
            _silence(block.conv2, width)
            if isinstance(block.conv_shortcut, nn.Conv3d):
                _pass_through(block.conv_shortcut, width)
        elif block is last:
            width = CHANNELS
    for attention in encoder.mid_block.attentions:
        _silence(attention.proj, width)

    size = encoder.mid_block.dim
    constants = slice(size - CONSTANTS, size)
    final = encoder.mid_block.resnets[-1].conv2
    final.bias[:CHANNELS] = OFFSET
    final.bias[constants] = CONSTANT
    norm = ((CONSTANTS * CONSTANT**2 + CHANNELS * OFFSET**2) / size) ** 0.5
    gamma = encoder.norm_out.gamma.view(-1)
    gamma[:] = norm
    gamma[:CHANNELS] = GAIN * norm
    gamma[constants] = norm / CONSTANT
    head = encoder.conv_out
    head.weight[:, :CHANNELS] = 0
    head.weight[:, constants] = 0
    _pass_through(head, CHANNELS)
    head.weight[:CHANNELS] *= scale / GAIN
    head.bias[:CHANNELS] = -scale * OFFSET
    _pass_through(vae.quant_conv, CHANNELS)


def _silence(conv: Any, width: int) -> None:
    """Lets a convolution write nothing to the first `width` channels."""
    conv.weight[:width] = 0
    conv.bias[:width] = 0


def _pass_through(conv: Any, width: int) -> None:
    """Lets a 3D convolution copy the first `width` channels of the present frame."""
    _silence(conv, width)
    row, column = conv.kernel_size[1] // 2, conv.kernel_size[2] // 2
    for channel in range(width):
        conv.weight[channel, channel, -1, row, column] = 1.0
