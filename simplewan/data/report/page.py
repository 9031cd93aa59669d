"""The report as one HTML page: no script, nothing from elsewhere, pictures inside it.

Imports this package. A policy in its head forbids whatever is not in the page, so that a caption could not fetch or run
anything even if it slipped through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simplewan import __version__
from simplewan.data.report.bars import bars
from simplewan.data.report.clips import Shown, dataset_sections, shown_of, source_facts
from simplewan.data.report.duplicates import Alike, File, SameCaption
from simplewan.data.report.findings import Finding, Mark
from simplewan.data.report.markup import counted, esc, fold, listed, name, picture, seconds_text
from simplewan.data.report.style import STYLE
from simplewan.data.report.survey import DroppedGroup, Survey
from simplewan.errors import shorten

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MARKS = 6  # of a finding, before the others are folded away
ROWS = 20  # of dropped files
TWINS, GROUPS = 8, 40  # files of a group and groups, in pictures
NAMES = 500
CAPTIONS = 12  # that several files have, likewise
LONG_CAPTION = 300


def page_of(survey: Survey, *, title: str, made: str, pictures: int) -> str:
    """The page. `title` says what it is about, `made` when; of each bucket `pictures` clips are shown."""
    shown = shown_of(survey, pictures=pictures)
    sections = [
        ("warnings", "Worth a second look", "".join(_warnings(survey, shown))),
        ("duplicates", "Duplicates", "".join(_duplicates(survey, shown))),
        ("dropped", "Left out", "".join(_dropped(survey))),
        ("distributions", "Distributions", _distributions(survey)),
    ]
    sections = [section for section in sections if section[2]]
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{esc(title)}: dataset report</title><style>{STYLE}</style></head>\n<body><main>",
            _head(survey, title, made),
            _navigation(survey, [(key, heading) for key, heading, _ in sections]),
            *(f'\n<section id="{key}"><h2>{heading}</h2>{inside}</section>' for key, heading, inside in sections),
            *(f"\n{part}" for part in dataset_sections(survey, shown)),
            f"\n{_foot(survey)}</main></body></html>\n",
        )
    )


def _head(survey: Survey, title: str, made: str) -> str:
    flavour = survey.flavour
    left_out, warnings = survey.num_dropped, len(survey.findings) + len(survey.remarks)
    in_files = seconds_text(survey.seconds_in_files)
    tiles = [
        (f"{len(survey.scans):,}", "dataset" if len(survey.scans) == 1 else "datasets", False),
        (f"{survey.num_samples:,}", f"clips from {counted(len(survey.files), 'file')}", False),
        (seconds_text(survey.seconds_used), f"of video used of {in_files}", False),
        (f"{len({sample.bucket for scan in survey.scans for sample in scan.samples}):,}", "buckets", False),
        (f"{left_out:,}", "file left out" if left_out == 1 else "files left out", left_out > 0),
        (f"{warnings:,}", "warning" if warnings == 1 else "warnings", warnings > 0),
    ]
    shown = "".join(
        f'<div class="tile{" warn" if warns else ""}"><b>{esc(number)}</b><span>{esc(words)}</span></div>'
        for number, words, warns in tiles
    )
    wants = (
        f"{flavour.name} takes {flavour.fps:g} frames a second, clips of 4n+1 frames (17, 33, 49, 81 ...), widths and "
        f"heights that divide by {flavour.pixel_multiple}, and captions of up to {flavour.text_tokens} tokens."
    )
    return (
        f'<header><h1>Dataset report</h1><p class="faint">{name(title)}, {esc(made)}</p>'
        f'<div class="tiles">{shown}</div><p class="lead" style="margin-top:16px">{esc(wants)}</p></header>'
    )


def _navigation(survey: Survey, sections: Sequence[tuple[str, str]]) -> str:
    links = [*sections, *((f"dataset-{number}", scan.dataset) for number, scan in enumerate(survey.scans, start=1))]
    inside = "".join(f'<a href="#{key}">{esc(text)}</a>' for key, text in links)
    return f"<nav>{inside}</nav>"


def _warnings(survey: Survey, shown: Shown) -> Iterator[str]:
    for remark in survey.remarks:
        yield f'<div class="card warn"><p>{esc(remark)}</p></div>'
    if survey.findings:
        cards = "".join(_finding(finding, survey, shown) for finding in survey.findings)
        yield f'<div class="halves">{cards}</div>'


def _finding(finding: Finding, survey: Survey, shown: Shown) -> str:
    several = len({scan.dataset for scan in survey.scans}) > 1
    items = [_mark(mark, shown, several) for mark in finding.marks[:NAMES]]
    if len(finding.marks) > NAMES:
        items.append(f"and {len(finding.marks) - NAMES:,} more")
    more = fold(f"{len(items) - MARKS} more", listed(items[MARKS:])) if len(items) > MARKS + 1 else ""
    first = listed(items[:MARKS] if more else items)
    return (
        f'<div class="card"><h3>{esc(finding.title)}</h3><p class="faint">{esc(finding.advice)}</p>{first}{more}</div>'
    )


def _mark(mark: Mark, shown: Shown, several: bool) -> str:
    anchor = shown.anchor(mark.sample) or shown.anchor(mark.path)
    text = _named(mark.name, mark.dataset if several else "", anchor)
    return text + (f' <span class="faint">{esc(mark.detail)}</span>' if mark.detail else "")


def _named(label: str, dataset: str, anchor: str | None) -> str:
    """The name of something of a dataset, and a link to where it is shown."""
    text = name(f"{dataset}/{label}" if dataset else label)
    return f'<a href="#{anchor}">{text}</a>' if anchor else text


def _duplicates(survey: Survey, shown: Shown) -> Iterator[str]:
    if survey.alike:
        groups = "".join(_group(group, survey, shown) for group in survey.alike[:GROUPS])
        yield f'<div class="groups">{groups}</div>'
    rest = survey.alike[GROUPS:]
    if rest:
        items = (", ".join(name(file.name) for file in group.files[:TWINS]) for group in rest[:NAMES])
        yield fold(counted(len(rest), "more group"), listed(items))
    if survey.captions:
        yield _same_captions(survey.captions)


def _same_captions(captions: Sequence[SameCaption]) -> str:
    rows = []
    for same in captions[:NAMES]:
        names = ", ".join(name(file.name) for file in same.files[:MARKS])
        more = f" and {len(same.files) - MARKS:,} more" if len(same.files) > MARKS else ""
        caption = f'<td dir="auto">{esc(shorten(same.caption, LONG_CAPTION))}</td>'
        rows.append(
            f'<tr><td class="number">{len(same.files):,}</td>{caption}<td class="faint">{names}{more}</td></tr>'
        )
    head = '<tr><th class="number">files</th><th>caption</th><th>which</th></tr>'

    def table(some: Sequence[str]) -> str:
        return f'<div class="table"><table class="captions">{head}{"".join(some)}</table></div>'

    more = fold(f"{len(rows) - CAPTIONS} more", table(rows[CAPTIONS:])) if len(rows) > CAPTIONS + 1 else ""
    shown = table(rows[:CAPTIONS] if more else rows)
    title = counted(len(captions), "caption belongs to several files", "captions belong to several files")
    return f'<div class="card"><h3>{title}</h3>{shown}{more}</div>'


def _group(group: Alike, survey: Survey, shown: Shown) -> str:
    count = len(group.files)
    title = "have the same bytes" if group.same_bytes else "look the same"
    several = len(survey.scans) > 1
    figures = "".join(_twin(file, group, survey, shown, several) for file in group.files[:TWINS])
    more = ", ".join(name(file.name) for file in group.files[TWINS : TWINS + NAMES])
    others = fold(counted(count - TWINS, "more file"), f"<p>{more}</p>") if more else ""
    return f'<div class="card"><h3>{count} files {title}</h3><div class="twins">{figures}</div>{others}</div>'


def _twin(file: File, group: Alike, survey: Survey, shown: Shown, several: bool) -> str:
    looks = survey.seen.looks
    copies = [other for other in group.files if other.content == file.content]
    look = next((looks[other.path] for other in copies if other.path in looks), None)
    image = picture(look.picture, look.picture_size, file.name) if look else '<div class="missing">not looked at</div>'
    label = _named(file.name, file.dataset if several else "", shown.anchor(file.path))
    info = next(scan.sources[file.name] for scan in survey.scans if scan.dataset == file.dataset)
    facts = f'<br><span class="faint">{source_facts(info)}</span>'
    copied = len(copies) > 1 and not group.same_bytes
    note = '<br><span class="faint">has a copy with the same bytes</span>' if copied else ""
    return f'<figure class="twin">{image}<figcaption>{label}{facts}{note}</figcaption></figure>'


def _dropped(survey: Survey) -> Iterator[str]:
    several = len(survey.scans) > 1
    for group in survey.dropped:
        yield _dropped_group(group, several)


def _dropped_group(group: DroppedGroup, several: bool) -> str:
    rows = [f"<tr><td>{name(item.name)}</td><td>{esc(item.reason)}</td></tr>" for item in group.files]
    table = f'<div class="table"><table><tr><th>file</th><th>why</th></tr>{"".join(rows)}</table></div>'
    if len(rows) > ROWS:
        table = fold(f"all {len(rows):,}", table)
    where = f"<small>in {esc(group.dataset)}</small>" if several else ""
    remedy = f'<p class="remedy">{esc(group.remedy)}</p>' if group.remedy else ""
    return f'<div class="card"><h3>{esc(group.kind)}: {len(rows):,}{where}</h3>{remedy}{table}</div>'


def _distributions(survey: Survey) -> str:
    charts = "".join(
        f'<div class="card"><h3>{esc(item.title)}</h3>{bars(item.title, item.rows)}</div>'
        for item in survey.distributions
    )
    return f'<div class="charts">{charts}</div>' if charts else ""


def _foot(survey: Survey) -> str:
    seen = survey.seen
    looked = counted(len(seen.looks) + len(seen.failures), "file was", "files were")
    lines = [
        f"Made by simplewan {__version__}. {looked} looked at: duplicates are judged by two frames, stillness and "
        "blackness by three, all from the first half of what is used. Of a file of several clips the first is compared "
        "and those shown are looked at. Copies that begin elsewhere, or are mirrored or cropped, are not found."
    ]
    if seen.not_looked_at:
        more = counted(seen.not_looked_at, "file was", "files were")
        lines.append(f"{more} not looked at (max_files): of those only copies with the same bytes are known.")
    return f"<footer>{''.join(f'<p>{esc(line)}</p>' for line in lines)}</footer>"
