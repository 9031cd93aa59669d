"""Where values come from: JSON files, the environment, the command line; and what may stand in them.

What lives here: reading JSON with errors that name line and column, merging by precedence (JSON < environment <
command line), and the expansion of `{env:NAME}` and placeholders. Imports errors, events and the catalogue. A value is
kept as it was given beside its expansion, so that what is saved or shown never holds an expanded secret.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from simplewan.errors import Problem
from simplewan.events import Notice
from simplewan.options.catalogue import catalogue, dataset_catalogue, nothing_yet
from simplewan.options.foreign import FOREIGN, MUSUBI, RENAMED, SWITCHES, WITHOUT_OPTION

COMMAND_LINE = "command line"
PREFIX = "SIMPLEWAN_"
# Read by the scripts and the examples; not options.
RESERVED = ("SIMPLEWAN_VENV", "SIMPLEWAN_CACHE")
# For the guess at what was meant: how alike two spellings are (0..1), how many letters tell the word that they begin,
# and among how many words one may choose.
_ALIKE, _BEGINNING, _FEW = 0.78, 4, 3
# A variable of the environment may be another program's: as alike as this it is taken for one that is misspelt.
_MISSPELT = 0.85
_TOKEN = re.compile(r"\{([a-z_]+)(?::([A-Za-z_][A-Za-z0-9_]*))?\}")


class Override(NamedTuple):
    """A key given outside the file, and where."""

    key: str
    value: Any
    where: str = COMMAND_LINE


@dataclass(frozen=True)
class Given:
    """One key as it was given."""

    key: str
    value: Any
    where: str


@dataclass
class Findings:
    """What loading finds on its way: mistakes, announcements, features that are to come; how it knows the flavour."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    later: list[Problem] = field(default_factory=list)
    inferred: str | None = None

    def problem(self, where: str, message: str, *, key: str | None = None, value: Any = None, fix: str = "") -> None:
        self.problems.append(Problem(where=where, message=message, key=key, value=value, fix=fix or None))

    def warn(self, message: str) -> None:
        self.notices.append(Notice(message=message, severity="warning"))

    def inform(self, message: str) -> None:
        self.notices.append(Notice(message=message))


def plain_key(key: str) -> str:
    """The key as it is declared: no leading hyphens, underscores inside."""
    return key.strip().lstrip("-").replace("-", "_")


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known word that `name` most likely stands for; None rather than a far guess.

    It is one slip away, or has every word of `name` in it (or what such a word begins): max_steps gives
    max_train_steps. Where several have, the shortest is meant, unless there are too many to tell. Or it is much alike.
    """
    folded = {word.lower(): word for word in known}
    written = name.lower()
    if close := difflib.get_close_matches(written, [word for word in folded if _is_slip(word, written)], n=1, cutoff=0):
        return folded[close[0]]
    parts = set(written.split("_"))
    holding = sorted(
        (len(whole), len(parts - {*whole}), -difflib.SequenceMatcher(None, written, word).ratio(), word)
        for word in folded
        if _holds(whole := word.split("_"), parts)
    )
    if not holding:
        close = difflib.get_close_matches(written, list(folded), n=1, cutoff=_ALIKE)
        return folded[close[0]] if close else None
    shortest = [word for length, *_, word in holding if length == holding[0][0]]
    return folded[shortest[0]] if len(shortest) == 1 or len(holding) <= _FEW else None


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The known word that `name` is a misspelling of: one slip away, or spelled nearly alike; not what it may mean."""
    words, written = list(known), name.lower()
    slips = [word for word in words if _is_slip(word, written)]
    close = difflib.get_close_matches(written, slips or words, n=1, cutoff=0 if slips else _MISSPELT)
    return close[0] if close else None


def _is_slip(word: str, written: str) -> bool:
    """Whether one letter is too many, missing or another, or two are swapped. Of two letters that says nothing."""
    start = _shared(word, written)
    end = _shared(word[start:][::-1], written[start:][::-1])
    rest, other = word[start : len(word) - end], written[start : len(written) - end]
    return len(written) > 2 and (max(len(rest), len(other)) <= 1 or (len(rest) == 2 and rest == other[::-1]))


def _shared(first: str, second: str) -> int:
    """How many letters both begin with."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _holds(whole: Sequence[str], parts: Collection[str]) -> bool:
    """Whether each of the parts is, or begins, a part of the whole; one alone must be half of it."""
    return (len(parts) > 1 or len(whole) <= 2) and all(
        part in whole or (len(part) >= _BEGINNING and any(each.startswith(part) for each in whole)) for part in parts
    )


def read_json(path: Path, findings: Findings) -> Any:
    """The content of a JSON file, or None with a problem that says what is wrong and where."""
    shown = str(path)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for key, value in pairs:
            if key in read and read[key] != value:
                findings.problem(shown, "is given twice, with different values", key=key, fix="keep one of them")
            read[key] = value
        return read

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        findings.problem(shown, "there is no such file")
    except UnicodeDecodeError as error:
        findings.problem(shown, f"is not UTF-8 text (byte {error.start})", fix="save it as UTF-8")
    except OSError as error:
        findings.problem(shown, f"cannot be read: {error.strerror}")
    else:
        try:
            return json.loads(text, object_pairs_hook=once)
        except json.JSONDecodeError as error:
            findings.problem(
                f"{shown}, line {error.lineno}, column {error.colno}",
                f"is not valid JSON: {error.msg}",
                fix=_json_fix(text, error),
            )
    return None


def _json_fix(text: str, error: json.JSONDecodeError) -> str:
    """What to do about the usual mistakes in JSON; "" for the others."""
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    if after.startswith(("//", "/*", "#")):
        return "remove the comment: JSON has none"
    if before.endswith(",") and after[:1] in ("]", "}"):
        return "remove the comma before it"
    if not after:
        return "the file ends too early: a ] or } is missing"
    if error.msg.startswith("Expecting ',' delimiter") and after[:1] in ('"', "{"):
        return f"put a comma at the end of line {before.count(chr(10)) + 1}"
    return ""


def gather(
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, Any] | Override],
    *,
    environ: Mapping[str, str],
    config_name: str,
    findings: Findings,
) -> dict[str, Given]:
    """Every known key that was given, the strongest source last; unknown ones become problems or notices."""
    found: dict[str, Given] = {}
    for source in (
        [Given(key, value, config_name) for key, value in config.items()],
        list(_from_environment(environ, findings)),
        [Given(*Override(*item)) for item in overrides],
    ):
        seen: dict[str, Given] = {}
        for given in source:
            known = _known(given, findings)
            if known is None:
                continue
            earlier = seen.get(known.key)
            if earlier is not None and known.where == config_name and earlier.value != known.value:
                findings.problem(
                    config_name, "is given twice, with different values", key=known.key, fix="keep one of them"
                )
            seen[known.key] = known
        found.update(seen)
    return found


def _known(given: Given, findings: Findings) -> Given | None:
    key = plain_key(given.key)
    if key in catalogue():
        return Given(key, given.value, given.where)
    if key in RENAMED:
        findings.inform(f"{given.where}: {key} is read as {RENAMED[key]}, its present name")
        return Given(RENAMED[key], given.value, given.where)
    if key in SWITCHES:
        option, value = SWITCHES[key]
        findings.inform(f"{given.where}: {key} is read as {option} = {value}")
        return Given(option, value, given.where) if str(given.value).lower() in ("true", "1", "yes", "on") else None
    if key in FOREIGN:
        findings.warn(f"{given.where}: {key} is not used: {FOREIGN[key]}")
        return None
    findings.problems.append(unknown_key(given, key))
    return None


def unknown_key(given: Given, key: str) -> Problem:
    """The problem of a key that nobody knows, with the key that was meant if that can be told."""
    if key.lower() in WITHOUT_OPTION:  # variables of the environment are written large
        fix = WITHOUT_OPTION[key.lower()]
    elif key in MUSUBI:
        fix = _meaning(MUSUBI[key])
    elif key in dataset_catalogue() or f"video.{key}" in dataset_catalogue():
        fix = "it is a key of a dataset: put it in the dataset file (data_backend_config)"
    elif meant := did_you_mean(key, (*catalogue(), *RENAMED, *MUSUBI)):
        fix = _meaning(RENAMED.get(meant, MUSUBI.get(meant, meant)))
    else:
        fix = "`simpletuner options WORD` searches the list"
    return Problem(where=given.where, key=key, message="is not an option", fix=fix)


def _meaning(name: str) -> str:
    """The question for an option, which says so where nothing of it works yet."""
    declared = catalogue().get(name)
    return f"did you mean {name}?" + (" It is still to come" if declared and nothing_yet(declared, catalogue()) else "")


def _from_environment(environ: Mapping[str, str], findings: Findings) -> Iterable[Given]:
    if number := environ.get("TRAINING_NUM_PROCESSES"):
        yield Given("num_processes", number, "environment TRAINING_NUM_PROCESSES")
    if size := environ.get("WAN_FEED_FORWARD_CHUNK_SIZE"):
        yield Given("feed_forward_chunk_size", size, "environment WAN_FEED_FORWARD_CHUNK_SIZE")
        yield Given("enable_chunked_feed_forward", True, "environment WAN_FEED_FORWARD_CHUNK_SIZE")
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in RESERVED:
            continue
        key = name.removeprefix(PREFIX).lower()
        if key in catalogue():
            yield Given(key, environ[name], f"environment {name}")
        elif meant := misspelt(key, catalogue()):
            findings.problem("environment", "names no option", key=name, fix=f"did you mean {PREFIX}{meant.upper()}?")
        else:
            findings.warn(f"environment: {name} names no option and is not read")


@dataclass(frozen=True)
class Expander:
    """Expands `{env:NAME}` and the given placeholders in every string of a value."""

    environ: Mapping[str, str]
    placeholders: Mapping[str, str]
    findings: Findings

    def __call__(self, value: Any, *, where: str, key: str, **further: str) -> Any:
        if isinstance(value, str):
            return _TOKEN.sub(lambda match: self._one(match, where=where, key=key, further=further), value)
        if isinstance(value, Mapping):
            return {name: self(item, where=where, key=key, **further) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(item, where=where, key=key, **further) for item in value]
        return value

    def _one(self, match: re.Match[str], *, where: str, key: str, further: Mapping[str, str]) -> str:
        kind, name = match.groups()
        if kind == "env" and name:
            if name not in self.environ:
                self.findings.problem(where, f"names the environment variable {name}, which is not set", key=key)
            return self.environ.get(name, "")
        if name is None and kind in further:
            return further[kind]
        return self.placeholders.get(kind, match[0]) if name is None else match[0]


def holds_token(value: Any) -> bool:
    """Whether a string was written with a placeholder or an environment variable in it."""
    return isinstance(value, str) and bool(_TOKEN.search(value))


def is_variable(value: str) -> bool:
    """Whether text is one `{env:NAME}` and nothing else."""
    match = _TOKEN.fullmatch(value)
    return match is not None and match[1] == "env" and match[2] is not None


def below_placeholder(value: Any, names: Iterable[str]) -> bool:
    """Whether a path lies below one of the named placeholders: what is there may still have to be made."""
    return isinstance(value, str) and any(f"{{{name}}}" in value for name in names)
