"""How an option is declared: once, as a field of a frozen pydantic model, with everything that is known about it.

What lives here: `option(...)`, the `Group` base of all option models, and `Declared`, the view of a declaration from
which the command line, `simpletuner options` and docs/OPTIONS.md are made. Imports pydantic, nothing of this project.
The trade-off: the extra facts travel in pydantic's own `json_schema_extra`, so that a group stays an ordinary model
and no second registry can disagree with it. Models are built when they first validate, which help pages never do.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

META = "option"
# Conditions that are no options: they follow from the flavour.
BOTH_EXPERTS = "both_experts"
OF_EXPERT = {"high": "of_high", "low": "of_low"}
HOLDS_FIRST_FRAME = "holds_first_frame"
FACTS = {
    BOTH_EXPERTS: "a flavour that trains both experts",
    **{fact: f"a flavour that trains the {expert}-noise expert" for expert, fact in OF_EXPERT.items()},
    HOLDS_FIRST_FRAME: "a flavour of TI2V",
}
# A switch, and the values that it must have; () for any that is on.
Condition = tuple[str, tuple[str, ...]]
# Values that ask for nothing: a switch that holds one of them is off.
OFF = (None, False, 0, "", "none", "no_change", "no", "off")


def option(
    default: Any,
    *,
    help: str,  # noqa: A002
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    unit: str | None = None,
    later: str | None = None,
    later_choices: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    applies: str | None = None,
    comfort: str | None = None,
    restart_safe: bool = False,
    secret: bool = False,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """Declare one option; the result is the field's default in a `Group`.

    `choices` are the values that work, `later_choices` those that are known and still to come (value -> what it is),
    `aliases` other spellings of a choice. `later` says what is to come when the whole option is. `applies` names the
    switch without which the option is not read: "use_ema", "lora_type=lycoris|other", one of FACTS, or several joined
    with "&". `comfort` is for what only
    affects speed or comfort: a value that is to come is then announced, with this text, and replaced by the default.
    `restart_safe` options may change when a run is resumed. `secret` values are never written; where
    a path may stand, that of a file is no secret.
    `factory` makes the default of a nested object.
    """
    meta = {
        "choices": list(choices),
        "later_choices": dict(later_choices or {}),
        "aliases": dict(aliases or {}),
        "unit": unit,
        "later": later,
        "applies": applies,
        "comfort": comfort,
        "restart_safe": restart_safe,
        "secret": secret,
        "minimum": minimum,
        "maximum": maximum,
    }
    extra = cast(Any, {META: meta})
    if factory is not None:
        return Field(default_factory=factory, description=help, json_schema_extra=extra)
    return Field(default, description=help, ge=minimum, le=maximum, json_schema_extra=extra)


@dataclass(frozen=True)
class Declared:
    """One declared option, read back from its field."""

    key: str
    group: str
    annotation: Any
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    later_choices: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    unit: str | None = None
    later: str | None = None
    applies: str | None = None
    comfort: str | None = None
    restart_safe: bool = False
    secret: bool = False
    minimum: float | None = None
    maximum: float | None = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What must hold for the option to be read."""
        parts = (part.partition("=") for part in (self.applies or "").split("&") if part)
        return tuple((switch, tuple(wanted.split("|")) if wanted else ()) for switch, _, wanted in parts)

    @property
    def is_flag(self) -> bool:
        """True for a plain boolean: on the command line its name alone means true."""
        return bool in members(self.annotation)

    @property
    def takes_text(self) -> bool:
        """True where any string is a value as it stands, so that it must not be read as JSON."""
        return set(members(self.annotation)) <= {str, Path, types.NoneType}

    @property
    def type_name(self) -> str:
        """The type in words, as documentation shows it."""
        return " or ".join(describe_type(kind) for kind in members(self.annotation) if kind is not types.NoneType)


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def describe_type(kind: Any) -> str:
    """A type in words: "whole number", "list of text", ..."""
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    if kind in names:
        return names[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "__metadata__"):
        return next((str(note) for note in kind.__metadata__ if isinstance(note, str)), describe_type(arguments[0]))
    if origin in (tuple, list):
        return f"list of {describe_type(arguments[0])}" if arguments and arguments[0] is not Any else "list"
    if origin is dict or kind is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "object"
    return getattr(kind, "__name__", str(kind))


def is_on(value: Any) -> bool:
    """Whether a switch asks for something: not false, 0, "none", "no_change" or empty."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return (value.lower() if isinstance(value, str) else value) not in OFF
    if isinstance(value, BaseModel):
        return any(is_on(item) for item in value.__dict__.values())
    if isinstance(value, Mapping):
        return any(is_on(item) for item in value.values())
    return len(value) > 0 if hasattr(value, "__len__") else True


class Group(BaseModel):
    """Base of every option model: frozen, unknown keys refused, choices checked."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        defer_build=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        declared = declarations(cls).get(info.field_name or "")
        if declared is None:
            return value
        if isinstance(value, str) and not value.strip() and Path in members(declared.annotation):
            if declared.default is None:
                return None
            # An empty path would be the working directory: what is left of a shell variable that is not set.
            raise Mistake("is empty", fix=f"leave it out ({declared.default} is taken), or name a place")
        if isinstance(value, bool) and not declared.is_flag and {int, float} & set(members(declared.annotation)):
            raise ValueError("is not a number")
        if isinstance(value, bool) and declared.takes_text:
            value = str(value).lower()
        if isinstance(value, str) and (declared.choices or declared.aliases):
            lowered = value.strip().lower()
            known = (*declared.choices, *declared.later_choices)
            return declared.aliases.get(lowered, lowered if lowered in known else value)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _one_of_the_choices(cls, value: Any, info: ValidationInfo) -> Any:
        declared = declarations(cls).get(info.field_name or "")
        if declared is None or not declared.choices or value is None:
            return value
        known = (*declared.choices, *declared.later_choices)
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, str) and item not in known:
                raise ChoiceError(item, declared.choices, later=tuple(declared.later_choices))
        return value


class Mistake(ValueError):
    """A value that cannot be, and how to mend it."""

    def __init__(self, message: str, *, fix: str) -> None:
        self.fix = fix
        super().__init__(message)


class ChoiceError(ValueError):
    """A value that is not among the choices; carries them, those that work first, for the "did you mean"."""

    def __init__(self, value: str, working: Sequence[str], *, later: Sequence[str] = ()) -> None:
        self.value = value
        self.working, self.later = tuple(working), tuple(later)
        to_come = f" (to come: {', '.join(later)})" if later else ""
        super().__init__(f"is not one of {', '.join(working)}{to_come}")


@cache
def declarations(group: type[BaseModel]) -> dict[str, Declared]:
    """The declared options of a group, key -> declaration, in the order of the file."""
    return {declared.key: declared for declared in _read(group)}


def _read(group: type[BaseModel]) -> Iterator[Declared]:
    for key, info in group.model_fields.items():
        extra = info.json_schema_extra
        if not isinstance(extra, dict) or META not in extra:
            continue
        meta = cast("dict[str, Any]", extra[META])
        annotation: Any = info.annotation
        if notes := [note for note in info.metadata if isinstance(note, str)]:
            annotation = _Named(notes[0])
        yield Declared(
            key=key,
            group=group.__name__.removesuffix("Options").lower(),
            annotation=annotation,
            default=None if info.default_factory else info.default,
            help=info.description or "",
            **{**meta, "choices": tuple(meta["choices"])},
        )


class _Named:
    """Stands for an annotated type whose name is given in words, e.g. Annotated[..., "number or WxH"]."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
