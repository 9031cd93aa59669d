"""The samples of a run: every dataset scanned, what was dropped, and how the datasets are mixed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from simplewan.app.first_frames import Linked, link_pictures, own_first_frame
from simplewan.data.backends.opening import open_backend
from simplewan.data.notices import datasets_problem, dropped_notice
from simplewan.data.samples import Dropped, Sample, Scan
from simplewan.data.scan import put_on_list, scan
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Stage
from simplewan.options import DatasetOptions, Loaded

if TYPE_CHECKING:  # it brings torch, which not every command needs
    from simplewan.app.context import Context

SCANNED = ("video", "image", "eval")
CACHES = ("text_embeds", "image_embeds", "conditioning_image_embeds")
_PICTURES = {"caption_strategy": "none", "minimum_image_size": None, "maximum_image_size": None}


@dataclass(frozen=True)
class Gathered:
    """All usable samples by id, in order; the datasets (by id) they come from, those for evaluation among them; the
    entries that are caches; what was dropped; and, for image-to-video, the pictures that stand for the first frames of
    samples."""

    samples: Mapping[str, Sample]
    entries: Mapping[str, DatasetOptions]
    cache_entries: Mapping[str, DatasetOptions]
    dropped: Sequence[Dropped]
    pictures: Mapping[str, Linked] = field(default_factory=dict)

    def first_frame(self, sample: Sample, cut: Sample) -> Sample:
        """The first frame of a sample as it is cut: the picture that stands for it, else its own, as a sample."""
        linked = self.pictures.get(sample.id)
        return own_first_frame(cut) if linked is None else linked.cut_as(cut)

    @property
    def training(self) -> list[Sample]:
        """The samples to train on."""
        return [sample for sample in self.samples.values() if self.entries[sample.dataset].is_training]

    def evaluation(self, dataset: str | None) -> list[Sample]:
        """The samples to measure the loss on: those of a dataset, of the eval datasets, else those trained on."""
        if dataset is not None:
            return self.of(dataset)
        own = [sample for sample in self.samples.values() if not self.entries[sample.dataset].is_training]
        return own or self.training

    @property
    def measures_apart(self) -> bool:
        """Whether there are samples for evaluation alone."""
        return any(not self.entries[sample.dataset].is_training for sample in self.samples.values())

    def only(self, names: Collection[str]) -> Gathered:
        """The same with no other samples than these (ids)."""
        return replace(self, samples={name: sample for name, sample in self.samples.items() if name in names})

    def of(self, dataset: str) -> list[Sample]:
        """The samples of one dataset."""
        return [sample for sample in self.samples.values() if sample.dataset == dataset]


def index_folder(entry: DatasetOptions, cache_dir: Path) -> Path:
    """Where the index of a dataset's files is, and its latents unless an image_embeds entry holds them."""
    return entry.cache_dir_vae or cache_dir / "vae" / entry.id


def scan_entry(loaded: Loaded, entry: DatasetOptions, *, emit: Emit, check: Callable[[], None]) -> Scan:
    """The samples of one entry. Raises UserError when its cache folder cannot be made."""
    folder = index_folder(entry, loaded.options.caches.cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "put the caches elsewhere with cache_dir or cache_dir_vae"
        message = f"its cache cannot be made: {error.strerror}"
        problem = Problem(f'dataset "{entry.id}"', message, "cache_dir_vae", str(folder), fix)
        raise UserError(problem) from None
    backend = open_backend(entry, cache=folder, emit=emit, check=check)
    return scan(entry, backend, flavour=loaded.flavour, index_folder=folder, emit=emit, check=check)


def quarantine(context: Context, gathered: Gathered, failed: Mapping[str, str]) -> None:
    """Remember that files failed while they were encoded (sample id -> reason), so that they are left alone."""
    for dataset in {gathered.samples[name].dataset for name in failed}:
        samples = {name: gathered.samples[name] for name in failed if gathered.samples[name].dataset == dataset}
        folder = index_folder(gathered.entries[dataset], context.options.caches.cache_dir)
        reasons = {sample.source.path: failed[name] for name, sample in samples.items()}
        root = next(iter(samples.values())).source.backend.root
        path = put_on_list(folder, dataset=dataset, root=root, reasons=reasons)
        context.say(
            f"{dataset}: left alone from now on, until they change: {len(reasons)}; listed in {path}", warning=True
        )


def gather(context: Context) -> Gathered:
    """Scan every dataset. Raises UserError, with what was dropped and why, when nothing is left."""
    context.emit(Stage("scan", "Looking at the data"))
    entries = {entry.id: entry for entry in context.loaded.datasets if entry.dataset_type in SCANNED}
    caches = {entry.id: entry for entry in context.loaded.datasets if entry.dataset_type in CACHES}
    samples: dict[str, Sample] = {}
    dropped: list[Dropped] = []
    scans: dict[str, Scan] = {}
    for entry in entries.values():
        found = scan_entry(context.loaded, entry, emit=context.emit, check=context.check)
        scans[entry.id] = found
        for notice in found.notices:
            context.say(notice)
        if (lost := dropped_notice(found)) is not None:
            context.say(lost, warning=True)
        samples.update({sample.id: sample for sample in found.samples})
        dropped.extend(found.dropped)
    problem = datasets_problem(scans.values())
    if problem is not None:
        raise problem
    return Gathered(samples, entries, caches, dropped, _linked_pictures(context, entries, scans))


def _linked_pictures(
    context: Context, entries: Mapping[str, DatasetOptions], scans: Mapping[str, Scan]
) -> dict[str, Linked]:
    """By sample, the picture that a linked dataset has for its first frame; what is not usable is said. Datasets are
    only linked for models that take pictures: for others that is refused when the options are loaded."""
    found: dict[str, Linked] = {}
    by_id = {entry.id: entry for entry in context.loaded.datasets}
    scanned: dict[str, Scan] = {}
    for entry in entries.values():
        for name in entry.conditioning_data:
            if name in scanned:
                continue
            # Pictures need no caption, and their size does not matter: they are cut as the clips are.
            linked_entry = by_id[name].model_copy(update=_PICTURES)
            scanned[name] = scan_entry(context.loaded, linked_entry, emit=context.emit, check=context.check)
            if (lost := dropped_notice(scanned[name])) is not None:
                context.say(lost, warning=True)
        if entry.conditioning_data:
            links = link_pictures(scans[entry.id], [scanned[name] for name in entry.conditioning_data])
            found.update(links.found)
            for warning in links.warnings(entry.id, entry.conditioning_data):
                context.say(warning, warning=True)
    return found
