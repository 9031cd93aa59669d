"""Latents that are encoded anew in each epoch, because their crops are random (vae_cache_clear_each_epoch).

The crops of an epoch follow from its number, so a resumed run makes the same ones. At the beginning of an epoch the
loader's thread decodes and encodes all clips of such datasets, with the VAE loaded for as long as that takes, and
removes what no running epoch needs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from simplewan.app.caching import Caches, Place, fill_wanted
from simplewan.app.context import Context
from simplewan.app.device import release_memory
from simplewan.app.encoders import Vae, VaeEncoder
from simplewan.app.gathering import Gathered, scan_entry
from simplewan.app.wanted import wanted_latents_of
from simplewan.caches import house
from simplewan.caches.store import Store
from simplewan.errors import TrainingFailure, UserError

KEPT_EPOCHS = 2  # two roles may stand in neighbouring epochs


class Renewal:
    """The places of renewed latents by epoch; `caches` hold those of `epoch`, the one that the run starts in."""

    def __init__(self, context: Context, gathered: Gathered, caches: Caches, *, epoch: int) -> None:
        self._context = context
        self._stores = caches.stores
        self._entries = [entry for entry in gathered.entries.values() if entry.renews_crops]
        self._datasets = frozenset(entry.id for entry in self._entries)
        self._gathered = gathered
        self._places: dict[int, Mapping[str, Place]] = {epoch: caches.latents}
        self._turn = threading.Lock()

    def place(self, name: str, epoch: int) -> Place | None:
        """Where the latents of a sample are in an epoch; None for a sample that is not renewed.

        Raises TrainingFailure when the file cannot be encoded any more.
        """
        if self._gathered.samples[name].dataset not in self._datasets:
            return None
        with self._turn:
            if epoch not in self._places:
                self._places[epoch] = self._renew(epoch)
                self._forget()
            if name not in self._places[epoch]:
                raise TrainingFailure(f"{name} cannot be encoded again for epoch {epoch + 1}")
            return self._places[epoch][name]

    def _renew(self, epoch: int) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for entry in self._entries:
            context = self._context
            found = scan_entry(context.loaded, entry, emit=context.emit, check=context.check, epoch=epoch)
            wanted = wanted_latents_of(self._context, entry, self._stores.latents(entry.id), found.samples)
            encoder = VaeEncoder(Vae(self._context), {sample.id: sample for sample in found.samples})
            filled = fill_wanted(self._context, wanted, encoder, what=f"latents of {entry.id} for epoch {epoch + 1}")
            places.update({name: (wanted.store, key) for name, key in filled.keys.items()})
            del encoder
            release_memory()
        return places

    def _forget(self) -> None:
        """Drop the epochs that are over, and their records."""
        for epoch in sorted(self._places)[:-KEPT_EPOCHS]:
            del self._places[epoch]
        needed = {key for places in self._places.values() for _store, key in places.values()}
        stores: set[Store] = {store for places in self._places.values() for store, _key in places.values()}
        for store in stores:
            over = {key for key in store.keys() - needed if self._is_ours(store, key)}
            try:
                house.prune(store, store.keys() - over)
            except UserError:  # another process reads them
                continue

    def _is_ours(self, store: Store, key: str) -> bool:
        return any(name.partition("/")[0] in self._datasets for name in store.record(key).names)
