"""Our own forward over diffusers' WanTransformer3DModel: embed, blocks, head, as separate functions. No patching.

Whatever a feature needs from the inside is an argument: layers to skip, layers to tap, modulation rows, recomputation.
The modules stay diffusers' (and PEFT's), so checkpoints, adapters and quantisation act on them as everywhere else.
Imports torch and the block functions. Tier: tolerance; equal to diffusers' forward to 1e-5 in float32.

Legend: B batch, C channels, F latent frames, H, W latent height and width, S tokens, L text tokens, D width,
R modulation rows.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from simplewan.models.wan.block import Shared, block_forward, modulated_norm, spread
from simplewan.models.wan.linear import product_dtype
from simplewan.models.wan.padding import merge_padding
from simplewan.models.wan.rotary import Rotary

Recompute = Literal["none", "keep_attention", "full"]


class WanForward:
    """`velocity` of one transformer, with the rotary tables of the shapes it has seen. Holds nothing else."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self._rotary = Rotary(transformer.rope)

    def __call__(
        self, hidden_states_BCFHW: Tensor, timestep: Tensor, encoder_hidden_states_BLD: Tensor, **how: Any
    ) -> Tensor:
        """See `velocity`."""
        arguments = (hidden_states_BCFHW, timestep, encoder_hidden_states_BLD)
        return velocity(self.transformer, *arguments, rotary=self._rotary, **how)


def velocity(
    transformer: nn.Module,
    hidden_states_BCFHW: Tensor,
    timestep: Tensor,
    encoder_hidden_states_BLD: Tensor,
    *,
    encoder_hidden_states_image: Tensor | None = None,
    token_rows: Tensor | None = None,
    text_lengths: Sequence[int] | None = None,
    skip_layers: Collection[int] = (),
    taps: MutableMapping[int, Tensor | None] | None = None,
    recompute: Recompute = "none",
    rotary: Rotary | None = None,
) -> Tensor:
    """The predicted velocity, (B, C, F, H, W) -> (B, out channels, F, H, W), in the dtype of the transformer.

    `timestep`: 0..1000, float, (B,); or (B, R) for R modulation rows: one a latent frame when R = F, else
    `token_rows` (S,) or (B, S), int64, names the row of every token. `encoder_hidden_states_BLD`: text embeddings
    padded with zeros to 512 tokens; with `text_lengths` (tokens of each prompt) the padding is merged (`padding.py`).
    `encoder_hidden_states_image`: CLIP tokens of Wan 2.1 I2V, (B, 257, 1280). Latents and embeddings are cast to the
    transformer's dtype; timesteps stay float32 up to their sinusoids.
    `skip_layers` are left out. `taps` receives, for each of its keys, the hidden states (B, S, D) behind that layer.
    `recompute` says what backward computes again, block by block: nothing, all but attention, or all.
    """
    rotary = rotary or Rotary(transformer.rope)
    hidden_BSD, temb_BRD, shared = embed(
        transformer,
        hidden_states_BCFHW,
        timestep,
        encoder_hidden_states_BLD,
        encoder_hidden_states_image,
        token_rows=token_rows,
        text_lengths=text_lengths,
        rotary=rotary,
    )
    hidden_BSD = run_blocks(
        transformer.blocks, hidden_BSD, shared, skip_layers=skip_layers, taps=taps, recompute=recompute
    )
    return head(transformer, hidden_BSD, temb_BRD, token_rows, shape=hidden_states_BCFHW.shape)


def embed(
    transformer: nn.Module,
    hidden_states_BCFHW: Tensor,
    timestep: Tensor,
    text_BLD: Tensor,
    image_BLD: Tensor | None,
    *,
    token_rows: Tensor | None,
    text_lengths: Sequence[int] | None,
    rotary: Rotary,
) -> tuple[Tensor, Tensor, Shared]:
    """The tokens (B, S, D), the time embedding (B, R, D), and what all blocks share."""
    dtype = transformer.patch_embedding.weight.dtype
    conditions = transformer.condition_embedder
    text_BLD, text_bias = merge_padding(text_BLD.to(dtype), text_lengths, dtype=product_dtype(text_BLD.device, dtype))
    temb_BRD, rows_BR6D = modulation_rows(conditions, timestep, dtype)
    hidden_BSD = embed_patches(transformer.patch_embedding, hidden_states_BCFHW.to(dtype))
    text_BLD = conditions.text_embedder(text_BLD)
    if image_BLD is not None:
        image_BLD = conditions.image_embedder(image_BLD.to(dtype))
    table = rotary.table(hidden_states_BCFHW)
    return hidden_BSD, temb_BRD, Shared(text_BLD, text_bias, image_BLD, rows_BR6D, token_rows, table)


def embed_patches(convolution: nn.Conv3d, latents_BCFHW: Tensor) -> Tensor:
    """The patch embedding as one matrix product: its kernel is its stride. (B, C, F, H, W) -> (B, S, D)."""
    patches = latents_BCFHW
    for axis, step in zip((2, 4, 6), convolution.kernel_size, strict=True):
        patches = patches.unflatten(axis, (-1, step))
    patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias)


def modulation_rows(conditions: nn.Module, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The time embedding (B, R, D) and the modulation (B, R, 6, D) of timesteps (B,) or (B, R), in `dtype`.

    TI2V has two timesteps a sample, and a row a latent frame says so: blocks spread rows over frames by broadcasting.
    Two rows and `token_rows` would be fewer, but each block would gather six (B, S, D) of them.
    """
    temb_BRD = _embed_time(conditions, timestep).to(dtype)
    return temb_BRD, conditions.time_proj(conditions.act_fn(temb_BRD)).unflatten(-1, (6, -1))


def _embed_time(conditions: nn.Module, timestep: Tensor) -> Tensor:
    """The time embedding (B, R, D) of timesteps (B,) or (B, R), in the embedder's own dtype, autocast or not."""
    with torch.autocast(timestep.device.type, enabled=False):
        sinusoids = conditions.timesteps_proj(timestep.float().flatten())
        dtype = next(conditions.time_embedder.parameters()).dtype
        return conditions.time_embedder(sinusoids.to(dtype)).unflatten(0, (timestep.shape[0], -1))


def run_blocks(
    blocks: nn.ModuleList,
    hidden_BSD: Tensor,
    shared: Shared,
    *,
    skip_layers: Collection[int] = (),
    taps: MutableMapping[int, Tensor | None] | None = None,
    recompute: Recompute = "none",
) -> Tensor:
    """All blocks in turn; (B, S, D) -> same. See `velocity`."""
    assert taps is None or all(0 <= layer < len(blocks) for layer in taps), "a tap names a layer that is not there"
    run = block_forward if recompute == "none" or not torch.is_grad_enabled() else RECOMPUTING[recompute]
    for layer, block in enumerate(blocks):
        if layer not in skip_layers:
            hidden_BSD = run(block, hidden_BSD, shared)
        if taps is not None and layer in taps:
            taps[layer] = hidden_BSD
    return hidden_BSD


def head(
    transformer: nn.Module, hidden_BSD: Tensor, temb_BRD: Tensor, token_rows: Tensor | None, *, shape: Sequence[int]
) -> Tensor:
    """Output norm, projection, and patches put back: (B, S, D) -> (B, C, F, H, W) for latents of `shape`."""
    rows = transformer.scale_shift_table.unsqueeze(0) + temb_BRD.unsqueeze(2)
    shift, scale = (spread(row, token_rows) for row in rows.unbind(2))
    patches = transformer.proj_out(modulated_norm(transformer.norm_out, hidden_BSD, scale, shift))
    patch = transformer.config.patch_size
    grid = [size // step for size, step in zip(shape[2:], patch, strict=True)]
    patches = patches.unflatten(1, grid).unflatten(-1, (*patch, -1))
    return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _recompute_all(block: nn.Module, hidden_BSD: Tensor, shared: Shared) -> Tensor:
    return checkpoint(block_forward, block, hidden_BSD, shared, use_reentrant=False)


def _recompute_but_attention(block: nn.Module, hidden_BSD: Tensor, shared: Shared) -> Tensor:
    return checkpoint(
        block_forward, block, hidden_BSD, shared, use_reentrant=False, context_fn=_keep_attention_contexts
    )


def _keep_attention_contexts() -> Any:
    return create_selective_checkpoint_contexts(_keep_attention)


def _keep_attention(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in ATTENTION_OPERATIONS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


ATTENTION_OPERATIONS = frozenset(
    {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    }
)
RECOMPUTING = {"keep_attention": _recompute_but_attention, "full": _recompute_all}
