"""The samples of a run: every dataset scanned, what was dropped, and where each dataset's caches live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simplewan.batches.sizes import SampleRef
from simplewan.data.notices import datasets_problem, dropped_notice
from simplewan.data.samples import Dropped, Sample
from simplewan.data.scan import scan
from simplewan.errors import Problem, UserError
from simplewan.events import Stage
from simplewan.options import DatasetOptions

if TYPE_CHECKING:  # it brings torch, which not every command needs
    from simplewan.app.context import Context

MEDIA = ("video", "image")


@dataclass(frozen=True)
class Gathered:
    """All usable samples by id, in order; the datasets (ids) they come from; and what was dropped."""

    samples: Mapping[str, Sample]
    entries: Mapping[str, DatasetOptions]
    text_entries: Mapping[str, DatasetOptions]
    dropped: Sequence[Dropped]
    cache_dir: Path

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def of(self, dataset: str) -> list[Sample]:
        """The samples of one dataset."""
        return [sample for sample in self.samples.values() if sample.dataset == dataset]

    def latents_folder(self, dataset: str) -> Path:
        """Where a dataset's latents, and its index, are kept."""
        return self.entries[dataset].cache_dir_vae or self.cache_dir / "vae" / dataset

    def records_per_file(self, folder: Path) -> int | None:
        """The write_batch_size that the text_embeds entry of `folder` asks for."""
        sizes = [entry.write_batch_size for entry in self.text_entries.values() if entry.cache_dir == folder]
        return next((size for size in sizes if size), None)

    def text_folder(self, dataset: str | None) -> Path:
        """Where a dataset's text embeddings are kept: the entry it names, else the default one. None: the default."""
        named = self.entries[dataset].text_embeds if dataset is not None else None
        entry = self.text_entries.get(named) if named else None
        if entry is None:
            entry = next((item for item in self.text_entries.values() if item.default), None)
        if entry is None:
            entry = next(iter(self.text_entries.values()), None)
        return (entry.cache_dir if entry else None) or self.cache_dir / "text"

    def refs(self, *, failed: Mapping[str, str]) -> list[SampleRef]:
        """What the sampler draws from: all samples but those whose encoding failed."""
        return [
            SampleRef(
                name=sample.id,
                bucket=sample.clip.bucket,
                repeats=self.entries[sample.dataset].repeats,
                num_captions=len(sample.captions),
            )
            for sample in self.samples.values()
            if sample.id not in failed
        ]


def require_folder(folder: Path, *, dataset: str) -> None:
    """Make the folder of a cache. Raises UserError when that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "put the caches elsewhere with cache_dir or cache_dir_vae"
        problem = Problem(
            f'dataset "{dataset}"', f"its cache cannot be made: {error.strerror}", "cache_dir_vae", str(folder), fix
        )
        raise UserError(problem) from None


def gather(context: Context) -> Gathered:
    """Scan every dataset. Raises UserError, with what was dropped and why, when nothing is left."""
    context.emit(Stage("scan", "Looking at the data"))
    cache_dir = context.options.caches.cache_dir
    entries = {entry.id: entry for entry in context.loaded.datasets if entry.dataset_type in MEDIA}
    texts = {entry.id: entry for entry in context.loaded.datasets if entry.dataset_type == "text_embeds"}
    samples: dict[str, Sample] = {}
    dropped: list[Dropped] = []
    scans = []
    for name, entry in entries.items():
        folder = entry.cache_dir_vae or cache_dir / "vae" / name
        require_folder(folder, dataset=name)
        found = scan(entry, flavour=context.flavour, index_folder=folder, emit=context.emit, check=context.check)
        scans.append(found)
        for notice in found.notices:
            context.say(notice)
        if (lost := dropped_notice(found)) is not None:
            context.say(lost, warning=True)
        samples.update({sample.id: sample for sample in found.samples})
        dropped.extend(found.dropped)
    problem = datasets_problem(scans)
    if problem is not None:
        raise problem
    return Gathered(samples=samples, entries=entries, text_entries=texts, dropped=dropped, cache_dir=cache_dir)
