"""Scanning a dataset: from its files to samples, dropped files with their reasons, and announcements.

Imports errors, events, flavours, options for their types alone, and this room; no torch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from simplewan.data.atomic import atomic_path
from simplewan.data.backends.base import Backend, Captioned, Entry, Source
from simplewan.data.caption_edits import Edits
from simplewan.data.captions import CaptionError, Captions, always, caption_files, from_names, stem, text_files
from simplewan.data.descriptions import TABLES, Descriptions, read_descriptions
from simplewan.data.index import Index
from simplewan.data.inspection import Inspector
from simplewan.data.media import MediaInfo, is_media_name
from simplewan.data.notices import make_notices
from simplewan.data.rules import Fitted, Found, Rules, fit, make_rules
from simplewan.data.samples import Dropped, Sample, Scan
from simplewan.errors import Problem, UserError
from simplewan.events import Emit
from simplewan.flavours import Flavour

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

# Strategies for which a place that brings captions is asked; its own table wins over text files.
FROM_THE_PLACE = ("textfile", "csv", "huggingface")
PROBLEMATIC = "problematic_files.txt"


def scan(
    dataset: DatasetOptions,
    backend: Backend,
    *,
    flavour: Flavour,
    index_folder: Path,
    emit: Emit,
    check: Callable[[], None],
) -> Scan:
    """The samples of a dataset, whose files are in `backend`; those that did not change since the last scan are not
    opened.

    Raises UserError when the files cannot be listed or the index cannot be used. Whatever `check` raises passes
    through; what was found until then is kept in the index.
    """
    rules = make_rules(dataset, flavour)
    try:
        with Index(index_folder, dataset=dataset.id, root=backend.root) as index:
            inspector = Inspector(dataset.id, backend, index, emit, check)
            return _Scanner(dataset, backend, index, inspector, check, _listed(index_folder)).run(rules)
    except sqlite3.OperationalError as error:
        raise UserError(
            Problem(
                f'dataset "{dataset.id}"',
                f"the index of its files in {index_folder} cannot be used: {error}",
                fix="is the disk full or read-only, or another program using the file?",
            )
        ) from None


def put_on_list(index_folder: Path, *, dataset: str, root: str, reasons: Mapping[str, str]) -> Path:
    """Leave files (path -> reason) out of every scan until they change, or their line is taken out of the list.

    The list is a text file: path, tab, reason.
    """
    target = index_folder / PROBLEMATIC
    with Index(index_folder, dataset=dataset, root=root) as index:
        for path, reason in reasons.items():
            index.put_problem(path, reason)
        known = index.problems()
    listed = {path: reason for path, reason in known.items() if path in reasons or path in _listed(index_folder)}
    with atomic_path(target) as temporary:
        temporary.write_text("".join(f"{path}\t{reason}\n" for path, reason in listed.items()), encoding="utf-8")
    return target


def _listed(index_folder: Path) -> set[str]:
    """The files on the list of those that failed."""
    try:
        text = (index_folder / PROBLEMATIC).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    return {line.partition("\t")[0] for line in text.splitlines()}


@dataclass(frozen=True)
class _Scanner:
    """One scan, step by step; each step takes what the one before it has left."""

    dataset: DatasetOptions
    backend: Backend
    index: Index
    inspector: Inspector
    check: Callable[[], None]
    listed: Collection[str]

    def run(self, rules: Rules) -> Scan:
        edits = Edits(self.dataset)
        listed = self._list()
        described = read_descriptions(self.dataset, [entry.path for entry in listed if is_media_name(entry.path)])
        entries = [entry for entry in listed if _is_text(entry.path)]
        media = [entry for entry in entries if is_media_name(entry.path)]
        dropped = [_odd_name(entry.path) for entry in listed if not _is_text(entry.path) and is_media_name(entry.path)]
        dropped += [Dropped(*refused) for refused in self.backend.refused]
        self.index.update(entries)
        left_alone = {path: why for path, why in self.index.problems().items() if path in self.listed}
        dropped += [Dropped(path, f"{why}; listed in {PROBLEMATIC}", "broken file") for path, why in left_alone.items()]
        media = [entry for entry in media if entry.path not in left_alone]
        infos = self._usable(media, described, dropped)
        fitted = self._fitted({path: Found(info) for path, info in infos.items()}, rules, dropped)
        wanted = [entry for entry in media if entry.path in fitted]
        captions = self._captioned(wanted, entries, described, edits, dropped)
        kept = [entry for entry in media if entry.path in captions]
        if rules.finds_cuts or rules.finds_faces:
            fitted = self._fitted(self._look_closer(kept, infos, rules, dropped), rules, dropped)
        else:
            fitted = {path: found for path, found in fitted.items() if path in captions}
        kept = [entry for entry in media if entry.path in fitted]
        digests = self.inspector.digests(kept)
        dropped += [
            Dropped(entry.path, "cannot be read to its end", "broken file")
            for entry in kept
            if entry.path not in digests
        ]
        fitted = {path: found for path, found in fitted.items() if path in digests}
        from_table = self.dataset.metadata_backend in TABLES and described is not None
        samples = [
            sample
            for path, found in fitted.items()
            for sample in self._samples(
                path,
                found,
                digests[path],
                captions[path],
                named_by_file=rules.one_clip,
                described=described.media(path) if described is not None and from_table else None,
            )
        ]
        return Scan(
            samples=tuple(sorted(samples, key=lambda sample: sample.id)),
            dropped=tuple(sorted(dropped, key=lambda item: item.name)),
            notices=(
                *self.backend.remarks,
                *(described.remarks if described is not None else ()),
                *make_notices(self.dataset, rules, fitted, [entry.path for entry in entries]),
            ),
            dataset=self.dataset.id,
            folder=self.backend.root,
            sources={path: found.info for path, found in fitted.items()},
        )

    def _list(self) -> list[Entry]:
        try:
            return list(self.backend.list())
        except OSError as error:
            raise UserError(
                Problem(
                    f'dataset "{self.dataset.id}"',
                    f"{error.filename or self.backend.root} cannot be read: {error.strerror}",
                    fix="make it readable, or move it out of the dataset's folder",
                )
            ) from None

    def _usable(
        self, media: Sequence[Entry], described: Descriptions | None, dropped: list[Dropped]
    ) -> dict[str, MediaInfo]:
        """What is in the files that decode, by the table where that is asked for and says it."""
        infos: dict[str, MediaInfo] = {}
        if described is not None and self.dataset.metadata_backend in TABLES:
            infos = {entry.path: said for entry in media if (said := described.media(entry.path)) is not None}
        for path, found in self.inspector.media([entry for entry in media if entry.path not in infos]).items():
            if isinstance(found, str):
                dropped.append(Dropped(path, found, "broken file"))
            else:
                infos[path] = found
        return infos

    def _captioned(
        self,
        media: Sequence[Entry],
        entries: Sequence[Entry],
        described: Descriptions | None,
        edits: Edits,
        dropped: list[Dropped],
    ) -> dict[str, tuple[str, ...]]:
        read = self._caption_reader(media, entries, described)
        captions = {}
        for entry in media:
            self.check()
            try:
                captions[entry.path] = edits(entry.path, read(entry))
            except CaptionError as error:
                dropped.append(Dropped(entry.path, str(error), error.kind))
        return captions

    def _text_files(self, media: Sequence[Entry], entries: Sequence[Entry]) -> Captions:
        files = caption_files(entries)
        wanted = {file.path: file for entry in media if (file := files.get(stem(entry.path))) is not None}
        return text_files(files, self.inspector.contents(list(wanted.values())))

    def _caption_reader(
        self, media: Sequence[Entry], entries: Sequence[Entry], described: Descriptions | None
    ) -> Captions:
        dataset, backend = self.dataset, self.backend
        strategy = "instanceprompt" if dataset.only_instance_prompt else dataset.caption_strategy
        if strategy in FROM_THE_PLACE and isinstance(backend, Captioned) and dataset.parquet.path is None:
            return partial(self._own_caption, backend)
        if strategy in TABLES and described is not None:
            return described.captions
        readers: dict[str, Callable[[], Captions]] = {
            "textfile": lambda: self._text_files(media, entries),
            "filename": lambda: from_names,
            "instanceprompt": lambda: always(dataset.instance_prompt or ""),
            "none": lambda: always(""),
        }
        if strategy not in readers:
            what = f"takes captions from a place that brings them; type {dataset.type} brings none"
            raise UserError(Problem(f'dataset "{dataset.id}"', what, "caption_strategy", strategy))
        return readers[strategy]()

    def _own_caption(self, backend: Captioned, entry: Entry) -> tuple[str, ...]:
        captions = backend.captions(entry.path)
        if not captions:
            raise CaptionError("empty caption", "the table has no caption for it")
        return captions

    def _fitted(self, known: Mapping[str, Found], rules: Rules, dropped: list[Dropped]) -> dict[str, Fitted]:
        fitted = {}
        for path, found in known.items():
            result = fit(path, found, rules)
            if isinstance(result, Dropped):
                dropped.append(result)
            else:
                fitted[path] = result
        return fitted

    def _look_closer(
        self, media: Sequence[Entry], infos: Mapping[str, MediaInfo], rules: Rules, dropped: list[Dropped]
    ) -> dict[str, Found]:
        """Scene cuts and faces, of the files that are used: finding them takes long."""
        cuts = self.inspector.cuts([e for e in media if not infos[e.path].is_image]) if rules.finds_cuts else {}
        faces = self.inspector.faces(media) if rules.finds_faces else {}
        known = {}
        for entry in media:
            scenes = cuts.get(entry.path, ())
            if isinstance(scenes, str):
                dropped.append(Dropped(entry.path, scenes, "broken file"))
            else:
                known[entry.path] = Found(infos[entry.path], scenes, faces.get(entry.path))
        return known

    def _samples(
        self,
        path: str,
        found: Fitted,
        digest: str,
        captions: tuple[str, ...],
        *,
        named_by_file: bool,
        described: MediaInfo | None,
    ) -> list[Sample]:
        """A sample for each clip; where a file may give several, the name says which."""
        name, source = f"{self.dataset.id}/{path}", Source(self.backend, path)
        return [
            Sample(
                id=name if named_by_file else f"{name}#{clip.bucket}+{clip.start_seconds:.3f}s",
                dataset=self.dataset.id,
                source=source,
                content=digest,
                captions=captions,
                clip=clip,
                crops=found.crops[clip],
                described=described,
            )
            for clip in found.clips
        ]


def _is_text(name: str) -> bool:
    """Whether a file's name is valid text (names from other systems may hold stray bytes)."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _odd_name(path: str) -> Dropped:
    name = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Dropped(name, "its name is not valid UTF-8; rename it", "unreadable name")
