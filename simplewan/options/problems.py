"""From pydantic's errors to the problems that people read, and the reading of text where another type is wanted.

Imports errors and the declarations. Values are shown as they were given, never expanded, and secrets not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from pydantic import ValidationError

from simplewan.errors import Problem
from simplewan.options.declare import ChoiceError, Declared, Mistake, describe_type, members
from simplewan.options.sources import Findings, Given, did_you_mean, is_variable, plain_key

REDACTED = "(redacted)"
_SECRET_NAME = re.compile(
    r"(^|_)(token|secret|password|access_key|api_key|webhook_url|callback_url)($|_)", re.IGNORECASE
)
_PASSWORD = re.compile(r"(://[^/@:\s]*:)[^/@\s]+@")  # of "https://name:password@host"
_LIMITS = {
    "greater_than_equal": ("must be at least", "ge"),
    "greater_than": ("must be greater than", "gt"),
    "less_than_equal": ("must be at most", "le"),
    "less_than": ("must be less than", "lt"),
}


def redact(key: str, value: Any, declared: Declared | None = None) -> Any:
    """`value` without what nobody may read: secrets by declaration or by name, and the password of an address.

    One `{env:NAME}` alone stays as it is written, and so does the name of a JSON file where a path may stand.
    """
    if isinstance(value, Mapping):
        return {name: redact(plain_key(str(name)), item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(key, item, declared) for item in value]
    hidden = isinstance(value, str) and bool(value) and ((declared and declared.secret) or _SECRET_NAME.search(key))
    if hidden and not is_variable(value) and not (declared and _names_file(value, declared)):
        return REDACTED
    return _PASSWORD.sub(rf"\1{REDACTED}@", value) if isinstance(value, str) else value


def shown(key: str, value: Any, declared: Declared | None = None) -> Any:
    """`value` as a problem shows it: of a secret option nothing of an object, a list, or text that may be one."""
    if declared and declared.secret and isinstance(value, (Mapping, list, tuple)):
        return REDACTED
    told = redact(key, value, declared)
    return told if not isinstance(told, (dict, list)) or len(str(told)) < 60 else None


def is_address(value: Any) -> bool:
    """Whether text begins as an address does, http://... or another."""
    return isinstance(value, str) and "://" in value


def _names_file(value: str, declared: Declared) -> bool:
    may = Path in members(declared.annotation) and not value.lstrip().startswith(("[", "{"))
    return may and value.endswith(".json") and not is_address(value)


def from_text(value: Any, declared: Declared) -> Any:
    """Text as the type wants it: lists and objects are JSON, "none" is none where none is the default.

    Raises ValueError when text that begins like a list or an object is not JSON.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    kinds = set(members(declared.annotation))
    if text == "null" or (declared.default is None and (not text or (text.lower() == "none" and str not in kinds))):
        return None
    if declared.takes_text or not text.startswith(("[", "{")):
        return value
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at character {error.pos + 1}") from None


def read_values(
    found: Mapping[str, Given], expanded: Mapping[str, Any], among: Mapping[str, Declared], findings: Findings
) -> dict[str, Any]:
    """Expanded values with their text read by type; null leaves a key at its default."""
    values: dict[str, Any] = {}
    for key, given in found.items():
        try:
            value = from_text(expanded[key], among[key])
        except ValueError as error:
            findings.problem(given.where, str(error), key=key, value=shown(key, given.value, among[key]))
            continue
        if value is not None:
            values[key] = value
    return values


def translate(
    error: ValidationError,
    *,
    found: Mapping[str, Given],
    among: Mapping[str, Declared],
    where: str,
) -> list[Problem]:
    """One problem a key (a union of types gives one, not one a member)."""
    problems: dict[str, Problem] = {}
    for item in error.errors():
        location = item["loc"]
        key = str(location[0]) if location else ""
        given = found.get(key)
        declared = _declared(location, among)
        several = declared is not None and len(_kinds(declared)) > 1
        path = key if several else _path(location)
        message, fix = _message(item, declared, several=several)
        value = _dig(given.value, location[1:]) if given and not several else given.value if given else None
        problem = Problem(
            where=given.where if given else where,
            key=path or None,
            value=shown(str(location[-1]) if location else "", value, declared),
            message=message,
            fix=fix,
        )
        problems.setdefault(path, problem)
    return list(problems.values())


def _declared(location: Sequence[int | str], among: Mapping[str, Declared]) -> Declared | None:
    names = [str(part) for part in location if isinstance(part, str)]
    outer = among.get(names[0]) if names else None
    # Of a union pydantic names the members, too.
    alone = outer if len(names) == 1 or (outer and len(_kinds(outer)) > 1) else None
    return among.get(".".join(names[:2])) or alone


def _kinds(declared: Declared) -> list[Any]:
    return [kind for kind in members(declared.annotation) if kind is not NoneType]


def _path(location: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _dig(value: Any, location: Sequence[int | str]) -> Any:
    for part in location:
        if isinstance(value, Mapping):
            value = next((item for name, item in value.items() if plain_key(str(name)) == part), None)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
    return value


def _message(item: Any, declared: Declared | None, *, several: bool) -> tuple[str, str | None]:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _LIMITS and not several:
        words, name = _LIMITS[kind]
        percent = name == "le" and context[name] == 1 and (number := float(item["input"])) <= 100
        limit = f"{context[name]:g}" if isinstance(context[name], float) else str(context[name])
        return f"{words} {limit}", f"did you mean {number / 100:g}?" if percent else None
    if kind == "value_error":
        cause = context["error"]
        if isinstance(cause, Mistake):
            return str(cause), cause.fix
        if not isinstance(cause, ChoiceError):
            return str(cause), None
        meant = did_you_mean(cause.value, cause.working) or did_you_mean(cause.value, cause.later)
        return str(cause), f'did you mean "{meant}"?' if meant else None
    if kind == "extra_forbidden":
        return "is not a key here", None
    if kind == "missing":
        return "is missing", None
    if kind == "finite_number":
        return "is not a finite number", None
    expected = {"int": "whole number", "float": "number", "bool": "true or false", "string": "text"}
    plain = next((words for start, words in expected.items() if kind.startswith(start)), None)
    wanted = declared.type_name if declared and (several or plain is None) else plain
    if wanted == "true or false":
        return "is neither true nor false", None
    if several and declared:
        wanted = _any_of([_with_article(describe_type(each)) for each in _kinds(declared)])
        return f"is not {wanted}", None
    return (f"is not {_with_article(wanted)}" if wanted else item["msg"]), None


def _with_article(noun: str) -> str:
    return noun if noun.startswith("text") else f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _any_of(nouns: Sequence[str]) -> str:
    return " or ".join([*([", ".join(nouns[:-1])] if nouns[:-1] else []), nouns[-1]])
