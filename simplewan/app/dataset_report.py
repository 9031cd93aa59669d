"""`simpletuner dataset report`: every dataset scanned and looked at; what was found as a page. No model, no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simplewan.app.drawing import longest, make_sampler, sample_refs, step_limits, turns_of
from simplewan.app.gathering import SCANNED, Gathered, index_folder, scan_entry
from simplewan.batches.sizes import prune
from simplewan.data.atomic import atomic_path
from simplewan.data.notices import datasets_problem
from simplewan.data.report.cache import cache_path
from simplewan.data.report.findings import Finding, Mark, counted
from simplewan.data.report.looking import Seen, look_at, pictures_for
from simplewan.data.report.page import page_of
from simplewan.data.report.survey import Survey, as_document, survey
from simplewan.data.samples import Scan
from simplewan.errors import EXIT_DONE, Interrupted, Problem, UserError
from simplewan.events import Emit, ErrorHappened, Notice, Stage
from simplewan.options import DatasetOptions, Loaded
from simplewan.reporting.console import Console
from simplewan.training.signals import SignalWatch

PAGE_NAME = "dataset_report.html"
MAX_FILES = 10_000
ONE_CAPTION = ("instanceprompt", "none")


@dataclass(frozen=True)
class Outcome:
    """The exit code; where the page is and what it says, unless the report was interrupted."""

    exit_code: int
    page: Path | None = None
    document: Mapping[str, Any] = field(default_factory=dict)


def dataset_report(
    loaded: Loaded, *, output: Path | None = None, pictures: int | None = None, max_files: int = MAX_FILES
) -> Outcome:
    """Scan the datasets, look at their files and write the page (None: into output_dir).

    Of each bucket `pictures` clips are shown (None: 12, fewer where there are many buckets); at most `max_files` files
    are decoded to be compared. Raises UserError when files are missing or the page cannot be written; datasets of which
    nothing is left are no error: the page says why. What was looked at until an interruption is kept, and no page is
    written.
    """
    page = output or loaded.options.run.output_dir / PAGE_NAME
    _require_place(page)
    entries = {entry.id: entry for entry in loaded.datasets if entry.dataset_type in SCANNED}
    with SignalWatch() as signals, closing(Console()) as emit:
        try:
            for notice in loaded.notices:
                emit(notice)
            scans, caches = _scan(loaded, entries, emit, signals.check)
            shown = pictures_for(scans) if pictures is None else pictures
            seen = look_at(scans, caches, pictures=shown, max_files=max_files, emit=emit, check=signals.check)
            found = _survey(loaded, entries, scans, seen, signals.check)
            emit(Stage("page", "Writing the page"))
            title = str(loaded.config_file or loaded.data_file)
            text = page_of(found, title=title, made=time.strftime("%Y-%m-%d %H:%M"), pictures=shown)
            signals.check()
        except Interrupted as stop:
            what = f"stopped by {stop.signal_name}; what was looked at is kept, the same command goes on"
            emit(ErrorHappened(what, where="dataset report"))
            return Outcome(stop.exit_code)
        _write(page, text)
        emit(Notice(_summary(found)))
    return Outcome(EXIT_DONE, page, as_document(found, page=str(page)))


def _scan(
    loaded: Loaded, entries: Mapping[str, DatasetOptions], emit: Emit, check: Callable[[], None]
) -> tuple[list[Scan], dict[str, Path]]:
    """Every dataset scanned, and the file in which what is seen of it is kept."""
    emit(Stage("scan", "Looking at the data"))
    scans, caches = [], {}
    for name, entry in entries.items():
        scans.append(scan_entry(loaded, entry, emit=emit, check=check))
        caches[name] = cache_path(index_folder(entry, loaded.options.caches.cache_dir), name)
    return scans, caches


def _survey(
    loaded: Loaded,
    entries: Mapping[str, DatasetOptions],
    scans: Sequence[Scan],
    seen: Seen,
    check: Callable[[], None],
) -> Survey:
    problem = datasets_problem(scans)
    empty = [str(item) for item in problem.problems] if problem else []
    findings, too_few = _batches(loaded, entries, scans)
    return survey(
        scans,
        seen,
        loaded.flavour,
        more_findings=findings,
        remarks=[*empty, *too_few],
        captions_by_design=[name for name, entry in entries.items() if _one_caption(entry)],
        check=check,
    )


def _one_caption(entry: DatasetOptions) -> bool:
    return entry.only_instance_prompt or entry.caption_strategy in ONE_CAPTION


def _batches(
    loaded: Loaded, entries: Mapping[str, DatasetOptions], scans: Sequence[Scan]
) -> tuple[list[Finding], list[str]]:
    """Buckets that do not fill a batch, and whether an epoch has enough for a step."""
    data = loaded.options.data
    samples = {sample.id: sample for found in scans for sample in found.samples}
    gathered = Gathered(samples, entries, cache_entries={}, dropped=())
    _, small = prune(
        sample_refs(loaded, gathered, gathered.training),
        batch_size=data.train_batch_size,
        keep_small_buckets=False,
        bucket_batch_sizes=data.bucket_batch_sizes or {},
    )
    marks = tuple(
        Mark("", item.bucket, f"{counted(item.num_samples, 'clip', 'clips')}, {item.draws_per_epoch:g} an epoch")
        for item in small
    )
    holds = counted(len(marks), "bucket is smaller than a batch", "buckets are smaller than a batch")
    advice = (
        "disable_bucket_pruning keeps it: there is a batch every few epochs."
        if data.disable_bucket_pruning
        else "Left out of training: with repeats there are fewer samples an epoch than "
        f"train_batch_size = {data.train_batch_size} asks for. "
        "Raise repeats, add clips, lower train_batch_size, or set disable_bucket_pruning."
    )
    findings = [Finding("small buckets", holds, advice, "small bucket", marks)] if marks else []
    try:
        if gathered.training:
            limits = step_limits(loaded, turns_of(loaded))  # an even share will do here, and needs no torch
            make_sampler(loaded, gathered, name := longest(limits), max_steps=limits[name])
    except UserError as error:
        return findings, [str(problem) for problem in error.problems]
    return findings, []


def _require_place(page: Path) -> None:
    """Make the folder of the page. Raises UserError when it cannot be written there."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(page, error.strerror or str(error)) from None
    if page.is_dir():
        raise _unwritable(page, "it is a folder")


def _write(page: Path, text: str) -> None:
    try:
        with atomic_path(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(page, error.strerror or str(error)) from None


def _unwritable(page: Path, why: str) -> UserError:
    return UserError(Problem(str(page), f"the page cannot be written: {why}", fix="name another file with output=FILE"))


def _summary(found: Survey) -> str:
    kinds = Counter(group.kind for group in found.dropped for _ in group.files)
    left_out = f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})" if kinds else ""
    parts = [
        f"{counted(found.num_samples, 'clip', 'clips')} from {counted(len(found.files), 'file', 'files')}",
        f"{counted(found.num_dropped, 'file', 'files')} left out{left_out}",
        counted(len(found.findings) + len(found.remarks), "warning", "warnings"),
        counted(len(found.alike), "group of duplicates", "groups of duplicates"),
    ]
    return "; ".join(parts)
