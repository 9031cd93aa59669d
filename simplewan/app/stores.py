"""Where the records of a run's caches lie: folders, or places elsewhere with a mirror here. Each is opened once."""

from __future__ import annotations

from pathlib import Path

from simplewan.app.context import Context
from simplewan.app.gathering import Gathered, index_folder
from simplewan.caches.remote import PlaceError, RemoteShelf
from simplewan.caches.store import Store
from simplewan.data.backends.opening import open_cache_backend
from simplewan.errors import Problem, UserError
from simplewan.options import DatasetOptions


class Stores:
    """The stores by what they hold. Entries that name one place share its store."""

    def __init__(self, context: Context, gathered: Gathered) -> None:
        self._compress = context.options.caches.compress_disk_cache
        self._root = context.options.caches.cache_dir
        self._gathered = gathered
        self._opened: dict[str, Store] = {}
        self._sizes: dict[Store, int] = {}
        self._default_size = context.options.caches.write_batch_size

    def latents(self, dataset: str) -> Store:
        """The latents of a dataset: in the image_embeds entry that it names, else in its own folder."""
        entry = self._gathered.entries[dataset]
        if entry.image_embeds is not None:
            return self._entry(self._gathered.cache_entries[entry.image_embeds], self._root / entry.image_embeds)
        return self._at(index_folder(entry, self._root))

    def texts(self, dataset: str | None) -> Store:
        """The text embeddings of a dataset: in the entry that it names, else in the default one. None: the default."""
        entries = [entry for entry in self._gathered.cache_entries.values() if entry.dataset_type == "text_embeds"]
        named = self._gathered.entries[dataset].text_embeds if dataset is not None else None
        entry = next((entry for entry in entries if entry.id == named), None)
        entry = entry or next((entry for entry in entries if entry.default), entries[0] if entries else None)
        return self._at(self._root / "text") if entry is None else self._entry(entry, self._root / "text")

    def images(self, dataset: str) -> Store:
        """The CLIP embeddings of a dataset's first frames."""
        entry = self._gathered.entries[dataset]
        own = entry.cache_dir_conditioning_image_embeds
        if own is None and entry.conditioning_image_embeds is not None:
            named = self._gathered.cache_entries[entry.conditioning_image_embeds]
            return self._entry(named, self._root / named.id)
        return self._at(own or self._root / "conditioning_image_embeds" / dataset)

    def pictures(self) -> Store:
        """What rendering needs of the pictures that clips begin with."""
        return self._at(self._root / "validation")

    def flush_records(self, store: Store) -> int:
        """Most records of one file of a store: what the entry that names it asks for, else what the config does."""
        return self._sizes.get(store, self._default_size)

    def _entry(self, entry: DatasetOptions, default: Path) -> Store:
        backend = open_cache_backend(entry)
        if backend is None:
            store = self._at(entry.cache_dir or default)
        elif backend.root in self._opened:
            store = self._opened[backend.root]
        else:
            try:
                store = Store(RemoteShelf(backend, self._root / "mirror"), compress=self._compress)
            except PlaceError as error:
                message = f"its cache does not answer: {error}"
                raise UserError(Problem(f'dataset "{entry.id}"', message, fix="start again when it does")) from error
            self._opened[backend.root] = store
        if entry.write_batch_size:
            self._sizes[store] = entry.write_batch_size
        return store

    def _at(self, folder: Path) -> Store:
        place = str(folder.absolute())
        if place not in self._opened:
            self._opened[place] = Store(folder, compress=self._compress)
        return self._opened[place]
