"""The part of the page that shows clips: for each dataset its buckets, for each bucket some of its clips.

Imports the room and this package. A clip is shown as the whole source frame with the cut drawn in, and as frames from
all over its length after resizing and cropping; clips that are not shown are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from simplewan.data.buckets import Clip, Size, enlargement
from simplewan.data.mediainfo import MediaInfo
from simplewan.data.report.bars import bars
from simplewan.data.report.distributions import first_rows
from simplewan.data.report.looking import by_bucket, spread
from simplewan.data.report.markup import counted, esc, fold, jpeg, listed, name, seconds_text, size_text
from simplewan.data.report.pictures import Strip
from simplewan.data.report.survey import Survey, used_seconds
from simplewan.data.samples import Sample, Scan
from simplewan.errors import shorten

HOW_TO_READ = (
    "Each clip: the whole source frame with what is cut off darkened, and below it which part of the source's time is "
    "used; then frames from all over its length after resizing and cropping, as they are trained on."
)
LONG_CAPTION = 480
MOST_ROWS = 300  # clips of a bucket that are listed besides those shown
MOST_BUCKETS = 24
CAPTION_IN_ROW = 110
TIME_BAR = 3


@dataclass(frozen=True)
class Shown:
    """How many clips of a bucket the page shows, and the anchor of each by its id, and by where its file lies."""

    pictures: int
    anchors: Mapping[str, str]

    def anchor(self, sample: str | None) -> str | None:
        return None if sample is None else self.anchors.get(sample)


def shown_of(survey: Survey, *, pictures: int) -> Shown:
    """Which clips the page shows: those that were looked at for it."""
    groups = [group for scan in survey.scans for group in by_bucket(scan).values()]
    samples = [sample for group in groups for sample in spread(group, pictures)]
    anchors = {sample.id: f"clip-{number}" for number, sample in enumerate(samples, start=1)}
    # What is about a file is found at the first of its clips.
    anchors.update({sample.path: anchors[sample.id] for sample in reversed(samples)})
    return Shown(pictures, anchors)


def dataset_sections(survey: Survey, shown: Shown) -> Iterator[str]:
    """A section for each dataset."""
    badges = _badges(survey)
    for number, scan in enumerate(survey.scans, start=1):
        used = counted(len(scan.samples), "clip") + f" from {counted(len(scan.sources), 'file')}"
        yield f'<section id="dataset-{number}"><h2>Dataset {esc(scan.dataset)}<small>{used}</small></h2>'
        yield f'<p class="faint">{name(scan.folder)}</p><div class="halves">'
        if scan.buckets:
            rows = bars("Clips in each bucket", first_rows(tuple(scan.buckets.items()), MOST_BUCKETS), width=380)
            yield f'<div class="card half"><h3>Buckets<small>width x height @ frames</small></h3>{rows}</div>'
        if scan.notices:
            yield f'<div class="card half"><h3>What the scan says</h3>{listed(map(esc, scan.notices))}</div>'
        yield "</div>"
        if number == 1:
            yield f'<p class="lead">{HOW_TO_READ}</p>'
        for samples in by_bucket(scan).values():
            yield from _bucket(survey, scan, samples, shown, badges)
        yield "</section>"


def _badges(survey: Survey) -> dict[str, list[str]]:
    """The short forms of findings by sample id or by file."""
    badges: dict[str, list[str]] = {}
    for finding in survey.findings:
        for mark in finding.marks:
            if (key := mark.sample or mark.path) is not None:
                badges.setdefault(key, []).append(finding.badge)
    for group in survey.alike:
        for file in group.files:
            badges.setdefault(file.path, []).append("duplicate")
    return badges


def _bucket(
    survey: Survey, scan: Scan, everything: Sequence[Sample], shown: Shown, badges: Mapping[str, list[str]]
) -> Iterator[str]:
    samples, clip = spread(everything, shown.pictures), everything[0].clip
    title = size_text((clip.width, clip.height))
    title += f", {counted(clip.num_frames, 'frame')}" if clip.num_frames > 1 else ", pictures"
    yield f"<h3>{title}<small>{counted(len(everything), 'clip')}</small></h3>"
    if clip.num_frames == 1:  # pictures are narrow
        yield '<div class="halves">'
    for sample in samples:
        about = [*badges.get(sample.id, ()), *badges.get(sample.path, ())]
        yield _card(survey, scan, sample, shown.anchors[sample.id], about)
    if clip.num_frames == 1:
        yield "</div>"
    chosen = {sample.id for sample in samples}
    rest = [sample for sample in everything if sample.id not in chosen]
    if rest:
        yield fold(f"{counted(len(rest), 'more clip')} in this bucket", _table(scan, rest))


def _table(scan: Scan, samples: Sequence[Sample]) -> str:
    rows = []
    for sample in samples[:MOST_ROWS]:
        facts = _facts(sample.clip, scan.sources[sample.source.path])
        caption = esc(shorten(sample.captions[0] if sample.captions else "", CAPTION_IN_ROW))
        cells = f'<td>{name(sample.name)}</td><td class="facts">{facts}</td><td dir="auto">{caption}</td>'
        rows.append(f"<tr>{cells}</tr>")
    more = len(samples) - len(rows)
    rows += [f'<tr><td class="faint" colspan="3">and {more:,} more</td></tr>'] if more else []
    head = "<tr><th>clip</th><th>what becomes of it</th><th>caption</th></tr>"
    return f'<div class="table"><table>{head}{"".join(rows)}</table></div>'


def _card(survey: Survey, scan: Scan, sample: Sample, anchor: str, badges: Sequence[str]) -> str:
    info = scan.sources[sample.source.path]
    marks = "".join(f'<span class="badge">{esc(badge)}</span>' for badge in dict.fromkeys(badges))
    strip = survey.seen.strips.get(sample.id)
    if strip is None:
        why = survey.seen.failures.get(sample.path, "not looked at")
        pictures = f'<div class="missing">{esc(why)}</div>'
    else:
        # Of a still picture of which nothing is cut off there is only one thing to show.
        alone = info.is_image and not _cuts(sample.clip, strip.source_size)
        pictures = ("" if alone else _source(strip, sample.clip, info)) + _frames(strip, sample)
    return (
        f'<article class="card clip" id="{anchor}"><header><h4>{name(sample.name)}</h4>'
        f'<span class="facts">{_facts(sample.clip, info)}</span>{marks}</header>'
        f'<div class="body"><div class="pictures">{pictures}</div>{_words(sample.captions)}</div></article>'
    )


def _facts(clip: Clip, info: MediaInfo) -> str:
    """What the source is, and what becomes of it."""
    after = [size_text((clip.width, clip.height))]
    after += [] if info.is_image else [counted(clip.num_frames, "frame")]
    if clip.fps and clip.num_frames > 1:
        after[-1] += f" at {clip.fps:.4g} fps ({seconds_text(used_seconds(clip))}"
        after[-1] += f" from {clip.start_seconds:.4g} s)" if clip.start_seconds else ")"
    factor = enlargement(info.width, info.height, clip)
    after += [f"enlarged {factor:.2f} times"] if factor > 1 else []
    return f"{source_facts(info)} → {', '.join(after)}"


def source_facts(info: MediaInfo) -> str:
    """The size of a source, and its rate and length."""
    size = size_text((info.width, info.height))
    return size if info.is_image else f"{size}, {info.fps:.4g} fps, {seconds_text(info.seconds)}"


def crop_in_source(clip: Clip, size: Size) -> tuple[float, float, float, float]:
    """(left, top, width, height) of the cut in a picture of the whole source of this size."""
    across, down = size[0] / clip.resize_width, size[1] / clip.resize_height
    return clip.crop_left * across, clip.crop_top * down, clip.width * across, clip.height * down


def _cuts(clip: Clip, size: Size) -> bool:
    """Whether enough is cut off to be seen in a picture of this size."""
    _, _, across, down = crop_in_source(clip, size)
    return size[0] - across > 1 or size[1] - down > 1


def _source(strip: Strip, clip: Clip, info: MediaInfo) -> str:
    """The whole source frame, what is cut off darkened; below it, which part of the source's time is used."""
    width, height = strip.source_size
    cut = crop_in_source(clip, strip.source_size)
    _, _, across, down = cut
    used = used_seconds(clip)
    tall = height + (2 * TIME_BAR if used else 0)
    about = f"The source; used is {across / width:.0%} of its width and {down / height:.0%} of its height"
    parts = [
        f'<svg viewBox="0 0 {width} {tall}" width="{width}" height="{tall}" role="img" aria-label="{about}">',
        f'<image href="{jpeg(strip.source)}" width="{width}" height="{height}" preserveAspectRatio="none"/>',
    ]
    if _cuts(clip, strip.source_size):
        left, top, across, down = (round(number, 1) for number in cut)
        parts.append(
            f'<path class="outside" fill-rule="evenodd" d="M0 0h{width}v{height}h-{width}z'
            f'M{left} {top}h{across}v{down}h-{across}z"/>'
            f'<rect class="crop" x="{left}" y="{top}" width="{across}" height="{down}"/>'
        )
    if used:
        whole = max(info.seconds, clip.start_seconds + used)
        start, length = clip.start_seconds / whole * width, used / whole * width
        parts.append(f'<rect class="whole" y="{height + TIME_BAR}" width="{width}" height="{TIME_BAR}"/>')
        parts.append(
            f'<rect class="used" x="{start:.1f}" y="{height + TIME_BAR}" width="{length:.1f}" height="{TIME_BAR}"/>'
        )
    return f"{''.join(parts)}</svg>"


def _frames(strip: Strip, sample: Sample) -> str:
    """The frames after resizing and cropping, side by side."""
    (width, height), count = strip.frame_size, strip.num_frames
    about = esc(f"{counted(count, 'frame')} of {sample.name} as trained on")
    lines = "".join(f"M{width * number} 0V{height}" for number in range(1, count))
    return (
        f'<svg viewBox="0 0 {width * count} {height}" width="{width * count}" height="{height}" role="img"'
        f' aria-label="{about}"><image href="{jpeg(strip.frames)}" width="{width * count}" height="{height}"/>'
        f'<path class="between" d="{lines}"/></svg>'
    )


def _words(captions: Sequence[str]) -> str:
    if not any(caption.strip() for caption in captions):
        return '<div class="words faint">no caption</div>'
    first = captions[0]
    long = fold("all of it", f'<p dir="auto">{esc(first)}</p>') if len(first) > LONG_CAPTION else ""
    more = "".join(f'<li dir="auto">{esc(caption)}</li>' for caption in captions[1:])
    others = fold(counted(len(captions) - 1, "more caption"), f'<ol start="2">{more}</ol>') if more else ""
    return f'<div class="words"><p dir="auto">{esc(shorten(first, LONG_CAPTION))}</p>{long}{others}</div>'
