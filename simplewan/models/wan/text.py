"""Prompts to UMT5 embeddings, equal to WanPipeline's. Imports torch, ftfy and html.

Embeddings are kept trimmed to the prompt's length; the model wants them padded with zeros (`pad_embeds`).

Legend: B batch, L text tokens, D width.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from torch import Tensor


def clean_prompt(text: str) -> str:
    """The prompt as Wan was trained on it: Unicode mended, HTML entities resolved (twice), white space single."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


@torch.no_grad()
def encode_prompts(tokenizer: Any, encoder: Any, prompts: Sequence[str], max_tokens: int = 512) -> list[Tensor]:
    """The last hidden states of each prompt, (L, D) with L its own length, in the encoder's dtype and on its device.

    Longer prompts are cut at `max_tokens`. The prompts go through the encoder together, padded to `max_tokens` as
    WanPipeline does, so that padded with zeros they are its embeddings bit for bit.
    """
    tokens = tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        padding="max_length",
        max_length=max_tokens,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    device = next(encoder.parameters()).device
    mask = tokens.attention_mask.to(device)
    hidden_BLD = encoder(tokens.input_ids.to(device), mask).last_hidden_state
    lengths = tokens.attention_mask.sum(dim=1).tolist()
    return [embeds[:length].clone() for embeds, length in zip(hidden_BLD, lengths, strict=True)]


def pad_embeds(embeds: Sequence[Tensor], max_tokens: int = 512) -> Tensor:
    """Stack trimmed embeddings (L, D) into (B, max_tokens, D), zeros behind. Raises ValueError if one is longer."""
    longest = max(len(each) for each in embeds)
    if longest > max_tokens:
        raise ValueError(f"an embedding of {longest} tokens does not fit into {max_tokens}")
    padded = embeds[0].new_zeros(len(embeds), max_tokens, embeds[0].shape[-1])
    for row, each in zip(padded, embeds, strict=True):
        row[: len(each)] = each
    return padded
