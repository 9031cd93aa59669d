"""Filling the caches of a run. Each model is loaded only if something is missing.

Text first (captions, the empty caption, validation prompts), then the text encoder is dropped; then latents, then the
VAE is dropped. Nothing of either is in memory while training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from simplewan.app.budget import check_disk
from simplewan.app.context import Context
from simplewan.app.device import release_memory
from simplewan.app.encoders import TextEncoder, VaeEncoder
from simplewan.app.gathering import Gathered, quarantine
from simplewan.app.stores import Stores
from simplewan.app.wanted import Wanted, bytes_missing, wanted_latents, wanted_texts
from simplewan.caches.fill import Encode, Filled, fill
from simplewan.caches.store import Store
from simplewan.errors import Problem, UserError

Place = tuple[Store, str]


@dataclass(frozen=True)
class Caches:
    """Where each sample's latents and each text's embedding are, as (store, key); and what could not be encoded."""

    latents: Mapping[str, Place]
    texts: Mapping[str, Place]
    failed: Mapping[str, str]

    def text(self, text: str) -> torch.Tensor:
        """The embedding (L, D) of a caption or prompt, not padded; a view of the cache where that holds it plain."""
        store, key = self.texts[text]
        return store.get(key)


def fill_caches(context: Context, gathered: Gathered, prompts: Sequence[str]) -> Caches:
    """Encode whatever is missing; `prompts` are the validation prompts, the negative one among them.

    Raises UserError, before anything is encoded, when a disk has no room for the latents.
    """
    stores = Stores(context, gathered)
    latents = wanted_latents(context, gathered, stores)
    check_disk(
        context,
        {dataset: (wanted.store, bytes_missing(context, wanted, gathered)) for dataset, wanted in latents.items()},
    )
    texts = _fill_texts(context, wanted_texts(context, gathered, stores, prompts))
    places: dict[str, Place] = {}
    failed: dict[str, str] = {}
    encoder = VaeEncoder(context, gathered.samples)
    for dataset, wanted in latents.items():
        filled = fill_wanted(context, wanted, encoder, what=f"latents of {dataset}")
        failed.update(filled.failed)
        places.update({name: (wanted.store, key) for name, key in filled.keys.items()})
    del encoder
    release_memory()
    if failed and context.options.data.delete_problematic_images:
        quarantine(context, gathered, failed)
    return Caches(latents=places, texts=texts, failed=failed)


def _fill_texts(context: Context, texts: Sequence[Wanted]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    encoder = TextEncoder(context)
    for wanted in texts:
        filled = fill_wanted(context, wanted, encoder, what="text")
        if filled.failed:
            raise UserError(*(Problem(name, f"cannot be encoded: {why}") for name, why in filled.failed.items()))
        places.update({text: (wanted.store, filled.keys[name]) for name, text in wanted.texts.items()})
    del encoder
    release_memory()
    return places


def fill_wanted(context: Context, wanted: Wanted, encode: Encode, *, what: str) -> Filled:
    """Encode what a store lacks, and say how much that was."""
    filled = fill(
        wanted.store,
        wanted.items,
        encode,
        batch_size=wanted.batch_size,
        label=wanted.label,
        key=wanted.key,
        flush_records=wanted.flush_records,
        emit=context.emit,
        check=context.check,
    )
    if filled.encoded:
        context.say(f"{what}: {filled.encoded} encoded, {filled.reused} already cached")
    return filled
