"""All that a report says, as records, and the same as a JSON document.

Imports the room, flavours and this package. `page` makes the HTML of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simplewan.data.buckets import Clip
from simplewan.data.notices import remedy
from simplewan.data.report.distributions import Distribution, distributions
from simplewan.data.report.duplicates import Alike, File, SameCaption, files_of, find_alike, same_captions
from simplewan.data.report.findings import Finding, find_all
from simplewan.data.report.looking import Seen
from simplewan.data.samples import Dropped, Scan
from simplewan.flavours import Flavour


@dataclass(frozen=True)
class DroppedGroup:
    """The files of one dataset that are left out for reasons of one kind, and what would bring most of them back."""

    dataset: str
    kind: str
    files: tuple[Dropped, ...]
    remedy: str | None


@dataclass(frozen=True)
class Survey:
    """What was found. `remarks` are warnings from elsewhere; `files` those that are trained on, each once."""

    flavour: Flavour
    scans: tuple[Scan, ...]
    seen: Seen
    files: tuple[File, ...]
    findings: tuple[Finding, ...]
    alike: tuple[Alike, ...]
    captions: tuple[SameCaption, ...]
    dropped: tuple[DroppedGroup, ...]
    distributions: tuple[Distribution, ...]
    remarks: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        return sum(len(scan.samples) for scan in self.scans)

    @property
    def num_dropped(self) -> int:
        return sum(len(scan.dropped) for scan in self.scans)

    @property
    def seconds_used(self) -> float:
        """Seconds of video that clips cover; what several clips of a file share counts once."""
        spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for scan in self.scans:
            for sample in scan.samples:
                start = sample.clip.start_seconds
                spans[sample.path].append((start, start + used_seconds(sample.clip)))
        return sum(map(covered, spans.values()))

    @property
    def seconds_in_files(self) -> float:
        """Seconds of video in the files that are used."""
        lengths = {s.path: scan.sources[s.source.path].seconds for scan in self.scans for s in scan.samples}
        return sum(lengths.values())


def survey(
    scans: Sequence[Scan],
    seen: Seen,
    flavour: Flavour,
    *,
    more_findings: Sequence[Finding] = (),
    remarks: Sequence[str] = (),
    captions_by_design: Collection[str] = (),
    check: Callable[[], None] = lambda: None,
) -> Survey:
    """Put everything together; what `captions_by_design` names are datasets whose captions are meant to be the same or
    empty, so that nothing is said of it. Whatever `check` raises passes through."""
    captioned = [scan for scan in scans if scan.dataset not in captions_by_design]
    files = files_of(scans)
    return Survey(
        flavour=flavour,
        scans=tuple(scans),
        seen=seen,
        files=tuple(files),
        findings=(*find_all(scans, seen, flavour, captioned=captioned), *more_findings),
        alike=tuple(find_alike(files, seen.looks, check=check)),
        captions=tuple(same_captions(captioned)),
        dropped=tuple(group for scan in scans for group in _dropped(scan)),
        distributions=tuple(distributions(scans)),
        remarks=tuple(remarks),
    )


def used_seconds(clip: Clip) -> float:
    """How long a clip is; 0 for a picture."""
    return clip.num_frames / clip.fps if clip.fps and clip.num_frames > 1 else 0.0


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _dropped(scan: Scan) -> Iterator[DroppedGroup]:
    groups: dict[str, list[Dropped]] = defaultdict(list)
    for item in scan.dropped:
        groups[item.kind].append(item)
    for kind, items in sorted(groups.items(), key=lambda group: -len(group[1])):
        yield DroppedGroup(scan.dataset, kind, tuple(items), remedy(items))


def as_document(survey: Survey, *, page: str) -> dict[str, Any]:
    """What the page says, for programs; `page` is where it lies. Seconds are rounded to milliseconds."""
    flavour, seen = survey.flavour, survey.seen
    return {
        "page": page,
        "model": {
            "flavour": flavour.name,
            "fps": flavour.fps,
            "pixel_multiple": flavour.pixel_multiple,
            "frames": "4n+1",
            "caption_tokens": flavour.text_tokens,
        },
        "totals": {
            "datasets": len(survey.scans),
            "samples": survey.num_samples,
            "files": len(survey.files),
            "seconds_used": round(survey.seconds_used, 3),
            "seconds_in_files": round(survey.seconds_in_files, 3),
            "dropped": survey.num_dropped,
            "warnings": len(survey.findings) + len(survey.remarks),
            "files_looked_at": len(seen.looks) + len(seen.failures),
            "files_not_looked_at": seen.not_looked_at,
        },
        "datasets": [_dataset(survey, scan) for scan in survey.scans],
        "warnings": [
            *({"kind": "remark", "message": text, "advice": "", "about": []} for text in survey.remarks),
            *(_finding(finding) for finding in survey.findings),
        ],
        "duplicates": [
            {"same_bytes": group.same_bytes, "files": [_file(file) for file in group.files]} for group in survey.alike
        ],
        "same_captions": [
            {"caption": same.caption, "files": [_file(file) for file in same.files]} for same in survey.captions
        ],
        "distributions": {item.title: [list(row) for row in item.rows] for item in survey.distributions},
    }


def _dataset(survey: Survey, scan: Scan) -> dict[str, Any]:
    return {
        "id": scan.dataset,
        "folder": scan.folder,
        "samples": len(scan.samples),
        "files": len(scan.sources),
        "buckets": scan.buckets,
        "notices": list(scan.notices),
        "dropped": [
            {"kind": group.kind, "name": item.name, "reason": item.reason, "remedy": group.remedy}
            for group in survey.dropped
            if group.dataset == scan.dataset
            for item in group.files
        ],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "message": finding.title,
        "advice": finding.advice,
        "about": [{"dataset": mark.dataset, "name": mark.name, "detail": mark.detail} for mark in finding.marks],
    }


def _file(file: File) -> dict[str, str]:
    return {"dataset": file.dataset, "name": file.name, "path": file.path}
