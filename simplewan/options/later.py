"""What is asked for and cannot act: features still to come, switches that only mean comfort, keys nobody reads.

Imports the catalogue and the sources. Only a value that was given, that is on, and that is read counts as a request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from simplewan.errors import Problem
from simplewan.options.catalogue import unmet
from simplewan.options.declare import FACTS, Condition, Declared, Group, is_on
from simplewan.options.problems import redact
from simplewan.options.sources import Findings, Given


def find_later(
    group: Group, found: Mapping[str, Given], among: Mapping[str, Declared], *, where: str, findings: Findings
) -> None:
    """Collect what a dataset entry asks for that is to come, its nested objects included; says what is not read."""
    unread = []
    for declared, value, path in _walk(group, found, among):
        values = getattr(group, path.split(".")[0]).__dict__ if "." in path else group.__dict__
        lacking = unmet(declared, values)
        if not lacking:
            findings.later.extend(requests(declared, value, path, where=where))
        elif value != declared.default and is_on(value):
            unread.append(f"{path} (needs {in_words(lacking)})")
    if unread:
        findings.inform(f"{where}: not read: {', '.join(unread)}")


def _walk(
    group: Group, found: Mapping[str, Given], among: Mapping[str, Declared]
) -> Iterator[tuple[Declared, Any, str]]:
    for key in found:
        value = getattr(group, key)
        if isinstance(value, Group):
            for name in value.model_fields_set:
                yield among[f"{key}.{name}"], getattr(value, name), f"{key}.{name}"
        else:
            yield among[key], value, key


def requests(declared: Declared, value: Any, path: str, *, where: str) -> Iterator[Problem]:
    """The requests for something to come that one value makes."""
    if not is_on(value) or value == declared.default:
        return
    if declared.later:
        off = "set it to false or leave it out" if declared.is_flag else "leave it out"
        shown = value if isinstance(value, (bool, int, float, str)) else None
        yield Problem(
            where=where,
            key=path,
            value=redact(path, shown, declared),
            message=f"is still to come: {declared.later}",
            fix=off,
        )
        return
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, str) and item in declared.later_choices:
            yield Problem(
                where=where,
                key=path,
                value=item,
                message=f"is still to come: {declared.later_choices[item]}",
                fix=f"what works now: {', '.join(declared.choices)}",
            )


def told_of(later: Iterable[Problem], keys: Collection[str] | bool) -> list[Problem]:
    """What is to come of `keys`; True stands for all of it, False for none."""
    return [problem for problem in later if (keys if isinstance(keys, bool) else problem.key in keys)]


def settle(
    values: Mapping[str, Any], found: Mapping[str, Given], among: Mapping[str, Declared], *, findings: Findings
) -> dict[str, Any]:
    """Collect the requests of config.json's keys; returns the values replaced because they only mean comfort."""
    replaced: dict[str, Any] = {}
    unread: list[str] = []
    for key, given in found.items():
        declared, value = among[key], values[key]
        asked = list(requests(declared, value, key, where=given.where))
        if asked and declared.comfort:
            replaced[key] = declared.default
            findings.inform(f"{given.where}: {key} = {value} has no effect: {declared.comfort}")
        elif lacking := unmet(declared, values):
            if value != declared.default and is_on(value):
                unread.append(f"{key} (needs {in_words(lacking)})")
        else:
            findings.later.extend(asked)
    if unread:
        findings.inform(f"not read in this run: {', '.join(unread)}")
    return replaced


def in_words(conditions: Iterable[Condition]) -> str:
    """Conditions of an option as people read them."""
    return " and ".join(
        f"{switch} {' or '.join(wanted)}" if wanted else FACTS.get(switch, switch) for switch, wanted in conditions
    )
