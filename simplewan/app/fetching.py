"""From a draw of the sampler to its batch: latents, text embeddings and first frames out of the caches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from simplewan.app.caching import Caches
from simplewan.app.gathering import Gathered
from simplewan.app.wanted import FIRST_FRAME, NO_CAPTION
from simplewan.batches.batch import Batch, collate
from simplewan.batches.sampler import DROPPED, BatchSpec
from simplewan.caches.remote import PlaceError
from simplewan.caches.shards import ShardError
from simplewan.data.samples import Sample
from simplewan.errors import TrainingFailure
from simplewan.flavours import Flavour
from simplewan.options import DatasetOptions


@dataclass(frozen=True)
class Fetch:
    """Makes the batch of a draw from the caches. `i2v_probability` is for models that may hold a first frame."""

    gathered: Gathered
    caches: Caches
    flavour: Flavour
    i2v_probability: float = 0.0
    pin_memory: bool = False

    def __call__(self, spec: BatchSpec) -> Batch:
        """Raises TrainingFailure when a cache elsewhere does not answer, or a record is damaged."""
        try:
            return self._batch(spec)
        except (PlaceError, ShardError) as error:
            raise TrainingFailure(f"the cache of {', '.join(spec.names)} cannot be read: {error}") from error

    def _batch(self, spec: BatchSpec) -> Batch:
        samples = [self.gathered.samples[name] for name in spec.names]
        cuts = [sample.crop_name(spec.epoch) for sample in samples]
        places = [
            *(self.caches.latents[cut] for cut in cuts),
            *(self.caches.conditions[cut + FIRST_FRAME] for cut in cuts if self.caches.conditions),
            *(self.caches.images[cut + FIRST_FRAME] for cut in cuts if self.caches.images),
        ]
        for store, key in places:
            store.will_need([key])
        records = iter([store.get(key) for store, key in places])
        entries = [self.gathered.entries[sample.dataset] for sample in samples]
        return collate(
            list(islice(records, len(cuts))),
            [self._text(sample, caption) for sample, caption in zip(samples, spec.captions, strict=True)],
            names=spec.names,
            text_tokens=self.flavour.text_tokens,
            caption_dropped=[caption == DROPPED for caption in spec.captions],
            is_regularisation=any(entry.is_regularisation_data for entry in entries),
            conditions=list(islice(records, len(cuts))) if self.caches.conditions else (),
            image_embeds=list(islice(records, len(cuts))) if self.caches.images else (),
            first_frame_probabilities=[self._first_frame_probability(entry) for entry in entries]
            if self.flavour.holds_first_frame
            else (),
            pin_memory=self.pin_memory,
        )

    def _text(self, sample: Sample, caption: int) -> Tensor:
        return self.caches.text(NO_CAPTION if caption == DROPPED else sample.captions[caption])

    def _first_frame_probability(self, entry: DatasetOptions) -> float:
        """How likely a sample of the dataset is trained with its first latent frame given: is_i2v, else the run's."""
        return self.i2v_probability if entry.video.is_i2v is None else float(entry.video.is_i2v)
