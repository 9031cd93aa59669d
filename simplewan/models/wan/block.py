"""One transformer block of Wan as a plain function over diffusers' modules. Imports torch and our linears.

What every block of a forward shares (text, modulation rows, rotary table) stands in `Shared`. The arithmetic is
diffusers' own: norms, modulation and gates in float32, the rest in the dtype of the hidden states.

Legend: B batch, S tokens, L text tokens, D width, N heads, E head width, R modulation rows, P tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simplewan.models.wan.linear import linear, linears
from simplewan.models.wan.normed import normed_heads


@dataclass(frozen=True)
class Shared:
    """What all blocks read.

    `text_BLD`: projected text, with `text_bias` (B, 1, 1, L) added to the attention scores or None.
    `image_BLD`: projected image tokens of Wan 2.1 I2V or None. `rows_BR6D`: modulation, float32 or the model's dtype;
    the S tokens are R equal runs, one row each, unless `token_rows` (S,) or (B, S) names the row of every token.
    `rotary`: complex64 (1, S, 1, E/2).
    """

    text_BLD: Tensor
    text_bias: Tensor | None
    image_BLD: Tensor | None
    rows_BR6D: Tensor
    token_rows: Tensor | None
    rotary: Tensor


def block_forward(block: nn.Module, hidden_BSD: Tensor, shared: Shared) -> Tensor:
    """Self-attention, cross-attention, feed-forward; (B, S, D) -> same, dtype kept. arXiv 2503.20314."""
    rows = block.scale_shift_table.unsqueeze(0) + shared.rows_BR6D.float()
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (spread(row, shared.token_rows) for row in rows.unbind(2))
    normed = modulated_norm(block.norm1, hidden_BSD, scale, shift)
    hidden_BSD = gated_sum(hidden_BSD, self_attention(block.attn1, normed, shared.rotary), gate)
    normed = block.norm2(hidden_BSD.float()).type_as(hidden_BSD)
    hidden_BSD = hidden_BSD + cross_attention(block.attn2, normed, shared)
    normed = modulated_norm(block.norm3, hidden_BSD, ffn_scale, ffn_shift)
    return gated_sum(hidden_BSD, feed_forward(block.ffn, normed), ffn_gate)


def spread(row_BRD: Tensor, token_rows: Tensor | None) -> Tensor:
    """A modulation row set as (B, runs, 1, D): R runs, or one a token when `token_rows` is given."""
    if token_rows is None:
        return row_BRD.unsqueeze(2)
    index = token_rows.expand(row_BRD.shape[0], -1).unsqueeze(-1).expand(-1, -1, row_BRD.shape[-1])
    return row_BRD.gather(1, index).unsqueeze(2)


def modulated_norm(norm: nn.LayerNorm, hidden_BSD: Tensor, scale_BRPD: Tensor, shift_BRPD: Tensor) -> Tensor:
    """LayerNorm without weights, times 1 + scale, plus shift, in float32; back in the dtype of the hidden states."""
    shape, runs = norm.normalized_shape, scale_BRPD.shape[1]
    if scale_BRPD.shape[0] == runs == 1:
        weight, bias = (1 + scale_BRPD).flatten().float(), shift_BRPD.flatten().float()
        return F.layer_norm(hidden_BSD.float(), shape, weight, bias, norm.eps).type_as(hidden_BSD)
    normed = F.layer_norm(hidden_BSD.float(), shape, None, None, norm.eps).unflatten(1, (runs, -1))
    return torch.addcmul(shift_BRPD.float(), normed, 1 + scale_BRPD.float()).flatten(1, 2).type_as(hidden_BSD)


def gated_sum(hidden_BSD: Tensor, branch_BSD: Tensor, gate_BRPD: Tensor) -> Tensor:
    """hidden + branch * gate in float32, back in the dtype of the hidden states."""
    runs = (gate_BRPD.shape[1], -1)
    total = torch.addcmul(hidden_BSD.float().unflatten(1, runs), branch_BSD.float().unflatten(1, runs), gate_BRPD)
    return total.flatten(1, 2).type_as(hidden_BSD)


def self_attention(attn: nn.Module, hidden_BSD: Tensor, rotary: Tensor) -> Tensor:
    """Attention among the video tokens, with rotary positions. (B, S, D) -> same."""
    query, key, value = linears((attn.to_q, attn.to_k, attn.to_v), hidden_BSD)
    query = normed_heads(attn.norm_q, query, attn.heads, rotary)
    key = normed_heads(attn.norm_k, key, attn.heads, rotary)
    return _output(attn, attention(query, key, value.unflatten(2, (attn.heads, -1))).flatten(2))


def cross_attention(attn: nn.Module, hidden_BSD: Tensor, shared: Shared) -> Tensor:
    """Attention to the text, and to the image tokens where the model has them. (B, S, D) -> same."""
    heads = (attn.heads, -1)
    query = normed_heads(attn.norm_q, linear(attn.to_q, hidden_BSD), attn.heads)
    key, value = linears((attn.to_k, attn.to_v), shared.text_BLD)
    key = normed_heads(attn.norm_k, key, attn.heads)
    result = attention(query, key, value.unflatten(2, heads), bias=shared.text_bias).flatten(2)
    if shared.image_BLD is not None:
        key, value = linears((attn.add_k_proj, attn.add_v_proj), shared.image_BLD)
        key = normed_heads(attn.norm_added_k, key, attn.heads)
        result = result + attention(query, key, value.unflatten(2, heads)).flatten(2)
    return _output(attn, result)


def attention(query_BSNE: Tensor, key_BLNE: Tensor, value_BLNE: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(E) + bias) v, (B, S, N, E). `bias` broadcasts against (B, N, S, L)."""
    query, key, value = (x.transpose(1, 2) for x in (query_BSNE, key_BLNE, value_BLNE))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)


def feed_forward(ffn: nn.Module, hidden_BSD: Tensor) -> Tensor:
    """Linear, GELU (tanh form), linear. (B, S, D) -> same."""
    inner, dropout, outer = ffn.net
    return linear(outer, dropout(inner.gelu(linear(inner.proj, hidden_BSD))))


def _output(attn: nn.Module, hidden_BSD: Tensor) -> Tensor:
    projection, dropout = attn.to_out
    return dropout(linear(projection, hidden_BSD))
