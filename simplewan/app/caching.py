"""Filling the caches of a run. Each model is loaded only if something is missing.

Text first (captions, the empty caption, validation prompts), then the text encoder is dropped; then latents, then the
VAE is dropped. Nothing of either is in memory while training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from simplewan.app.budget import check_disk
from simplewan.app.context import Context
from simplewan.app.device import release_memory
from simplewan.app.encoders import ConditionEncoder, ImageEncoder, TextEncoder, Vae, VaeEncoder
from simplewan.app.gathering import Gathered, quarantine
from simplewan.app.pictures import ToRender
from simplewan.app.stores import Stores
from simplewan.app.wanted import (
    CONDITION,
    IMAGE,
    Wanted,
    cuts,
    shown_first_frames,
    wanted_conditions,
    wanted_images,
    wanted_latents,
    wanted_pictures,
    wanted_texts,
)
from simplewan.caches.fill import Encode, Filled, fill
from simplewan.caches.remote import PlaceError
from simplewan.caches.store import Store
from simplewan.errors import Problem, UserError

Place = tuple[Store, str]


@dataclass(frozen=True)
class Caches:
    """Where the latents of each cut and each text's embedding are, as (store, key); the samples that could not be
    encoded; for image-to-video, by the names of first frames, the conditions and what CLIP sees; and the same of the
    pictures that rendered clips begin with."""

    latents: Mapping[str, Place]
    texts: Mapping[str, Place]
    failed: Mapping[str, str]
    conditions: Mapping[str, Place] = field(default_factory=dict)
    images: Mapping[str, Place] = field(default_factory=dict)
    pictures: Mapping[str, Place] = field(default_factory=dict)

    def text(self, text: str) -> torch.Tensor:
        """The embedding (L, D) of a caption or prompt, not padded; a view of the cache where that holds it plain."""
        store, key = self.texts[text]
        return store.get(key)

    def picture(self, name: str) -> torch.Tensor:
        """What was made of a picture. Raises ValueError when that failed."""
        if name not in self.pictures:
            raise ValueError(f"{name} could not be encoded")
        store, key = self.pictures[name]
        return store.get(key).clone()


def fill_caches(context: Context, gathered: Gathered, stores: Stores, rendered: ToRender, *, epochs: int) -> Caches:
    """Encode whatever is missing for so many epochs, and for what validation renders.

    Raises UserError, before anything is encoded, when a disk has no room for the latents.
    """
    latents = wanted_latents(context, gathered, stores, epochs=epochs)
    conditions = wanted_conditions(context, gathered, stores, epochs=epochs)
    check_disk(context, [(name, part) for parts in (latents, conditions) for name, part in parts.items()])
    texts = _fill_texts(context, wanted_texts(context, gathered, stores, rendered.texts))
    images = wanted_images(context, gathered, stores, epochs=epochs)
    failed: dict[str, str] = {}
    first_frames = shown_first_frames(context, gathered, epochs=epochs) | rendered.shown
    pictures = wanted_pictures(context, stores, rendered)
    places: dict[str, Place] = {}
    see = ImageEncoder(context, first_frames)
    seen = _fill_samples(context, images, see, failed)
    places |= _fill_pictures(context, pictures.get(IMAGE), see)
    del see
    release_memory()
    vae = Vae(context)
    shown = {cut.id: cut for sample in gathered.samples.values() for cut in cuts(sample, epochs=epochs)}
    encoder = VaeEncoder(vae, shown)
    encoded = _fill_samples(context, latents, encoder, failed)
    condition = ConditionEncoder(vae, first_frames)
    conditioned = _fill_samples(context, conditions, condition, failed)
    places |= _fill_pictures(context, pictures.get(CONDITION), condition)
    owners = {name: owner for wanted in latents.values() for name, owner in wanted.owners.items()}
    _report_broken(context, gathered, {owners[name]: why for name, why in encoder.broken.items()})
    del vae, encoder, condition
    release_memory()
    return Caches(encoded, texts, failed, conditions=conditioned, images=seen, pictures=places)


def _report_broken(context: Context, gathered: Gathered, broken: Mapping[str, str]) -> None:
    """Put the samples whose files are damaged (id -> reason) on the list, or say that this can be done."""
    if broken and context.options.data.delete_problematic_images:
        quarantine(context, gathered, broken)
    elif broken:
        count = f"{len(broken)} damaged clips are" if len(broken) > 1 else "1 damaged clip is"
        context.say(f"{count} tried again at each start; delete_problematic_images = true puts them on a list instead")


def _fill_samples(
    context: Context, by_dataset: Mapping[str, Wanted], encode: Encode, failed: dict[str, str]
) -> dict[str, Place]:
    """Fill, dataset by dataset; the samples that cannot be encoded are put into `failed`, with the reason."""
    places: dict[str, Place] = {}
    for wanted in by_dataset.values():
        filled = fill_wanted(context, wanted, encode, what=wanted.label.removeprefix("Caching "))
        failed.update({wanted.owners[name]: reason for name, reason in filled.failed.items()})
        places.update({name: (wanted.store, key) for name, key in filled.keys.items()})
    release_memory()
    return places


def _fill_pictures(context: Context, wanted: Wanted | None, encode: Encode) -> dict[str, Place]:
    """What rendering needs of pictures. Those that cannot be encoded, which is announced, are not there: the clips that
    begin with them fail."""
    if wanted is None:
        return {}
    filled = fill_wanted(context, wanted, encode, what=wanted.label.removeprefix("Caching "))
    return {name: (wanted.store, key) for name, key in filled.keys.items()}


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
    try:
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
    except PlaceError as error:
        fix = "start again when it answers; what was encoded is kept here until then"
        raise UserError(Problem(wanted.label, str(error), fix=fix)) from error
    if filled.encoded:
        context.say(f"{what}: {filled.encoded} encoded, {filled.reused} already cached")
    return filled
