"""From a draw of the sampler to its batch: latents and text embeddings out of the caches."""

from __future__ import annotations

from dataclasses import dataclass

from simplewan.app.caching import Caches
from simplewan.app.gathering import Gathered
from simplewan.app.wanted import NO_CAPTION
from simplewan.batches.batch import Batch, collate
from simplewan.batches.sampler import DROPPED, BatchSpec
from simplewan.caches.remote import PlaceError
from simplewan.caches.shards import ShardError
from simplewan.errors import TrainingFailure


@dataclass(frozen=True)
class Fetch:
    """Makes the batch of a draw from the caches."""

    gathered: Gathered
    caches: Caches
    text_tokens: int
    pin_memory: bool

    def __call__(self, spec: BatchSpec) -> Batch:
        """Raises TrainingFailure when a cache elsewhere does not answer, or a record is damaged."""
        try:
            return self._batch(spec)
        except (PlaceError, ShardError) as error:
            raise TrainingFailure(f"the cache of {', '.join(spec.names)} cannot be read: {error}") from error

    def _batch(self, spec: BatchSpec) -> Batch:
        places, embeds = [], []
        for name, caption in zip(spec.names, spec.captions, strict=True):
            sample = self.gathered.samples[name]
            text = NO_CAPTION if caption == DROPPED else sample.captions[caption]
            places.append(self.caches.latents[sample.crop_name(spec.epoch)])
            embeds.append(self.caches.text(text))
        for store, key in places:
            store.will_need([key])
        latents = [store.get(key) for store, key in places]
        datasets = {self.gathered.samples[name].dataset for name in spec.names}
        return collate(
            latents,
            embeds,
            names=spec.names,
            text_tokens=self.text_tokens,
            caption_dropped=[caption == DROPPED for caption in spec.captions],
            is_regularisation=any(self.gathered.entries[dataset].is_regularisation_data for dataset in datasets),
            pin_memory=self.pin_memory,
        )
