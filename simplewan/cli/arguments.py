"""The arguments of `train` and `sample`: which configuration, and what overrides it.

Imports options. `key=value`, `--key value`, `--key=value`, and the name of a boolean alone; hyphens and underscores are
the same. Unknown keys are passed on: the loader answers them together with every other mistake.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simplewan.errors import Problem
from simplewan.options.catalogue import catalogue
from simplewan.options.foreign import MUSUBI
from simplewan.options.sources import COMMAND_LINE, Override, did_you_mean, plain_key

TRUE, FALSE = ("true", "1", "yes", "on", "t", "y"), ("false", "0", "no", "off", "f", "n")
BOOLEANS = (*TRUE, *FALSE)
# Arguments that pick the configuration instead of setting an option.
PICKS = ("config", "env", "example")
_PAIR = re.compile(r"^-{0,2}[A-Za-z_][\w.-]*=", re.DOTALL)


@dataclass
class Arguments:
    """What was asked for. At most one of `config`, `env` and `example` counts; `problems` holds what is wrong.

    `own` holds the values, in order, of the command's own arguments, which are no options; `words` those without a key.
    """

    config: Path | None = None
    env: str | None = None
    example: str | None = None
    help: bool = False
    own: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def value(self, key: str) -> str | None:
        """The value of an own argument; the last one counts."""
        return self.own.get(key, [None])[-1]

    def path(self, key: str) -> Path | None:
        """An own argument that names a place; a problem when it is empty, which would be the working directory."""
        value = self.value(key)
        if value is None or value.strip():
            return None if value is None else Path(value).expanduser()
        self.problems.append(Problem(COMMAND_LINE, "is empty", key, value, "leave it out, or name a place"))
        return None

    def number(self, key: str, *, fix: str) -> float | None:
        """An own argument that is a finite number; a problem when it is none."""
        value = self.value(key)
        with contextlib.suppress(ValueError):
            if value is None or math.isfinite(float(value)):
                return None if value is None else float(value)
        self.problems.append(Problem(COMMAND_LINE, "is not a number", key, value, fix))
        return None

    def whole_number(self, key: str, *, minimum: int, fix: str) -> int | None:
        """An own argument that counts something; a problem when it is no whole number, or less than `minimum`."""
        value = self.value(key)
        if value is None or (value.isascii() and value.isdecimal() and len(value) <= 9 and int(value) >= minimum):
            return None if value is None else int(value)
        message = "is not a whole number" + (f" of {minimum} or more" if minimum else "")
        self.problems.append(Problem(COMMAND_LINE, message, key, value, fix))
        return None

    def choice(self, key: str, choices: Sequence[str], others: Mapping[str, str]) -> str | None:
        """An own argument that is one of several words; a problem when it is another. `others` are words for them."""
        value = self.value(key)
        if value is None or value in choices:
            return value
        meant = others.get(value.lower()) or did_you_mean(value, choices)
        fix = f'did you mean "{meant}"?' if meant else f"there are {', '.join(choices)}"
        self.problems.append(Problem(COMMAND_LINE, "is not known", key, value, fix))
        return None

    def flag(self, key: str) -> bool:
        """An own argument without a value; a problem when it has one that is neither true nor false."""
        value = self.own.get(key, ["false"])[-1].lower()
        if value not in BOOLEANS:
            fix = f"write --{key} alone, or leave it out"
            self.problems.append(Problem(COMMAND_LINE, "is neither true nor false", key, value, fix))
        return value in TRUE


def parse(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    own: Collection[str] = (),
    flags: Collection[str] = (),
    words: bool = False,
) -> Arguments:
    """The arguments of the command line, those of TRAINER_EXTRA_ARGS before them, so that the command line wins.

    `own` are the arguments with a value that a command has besides the options (they win over an option of that name)
    and `flags` those without one, whose value is "true". With `words`, what has no key is kept: names of files.
    """
    arguments = Arguments()
    try:
        extra = shlex.split(environ.get("TRAINER_EXTRA_ARGS", ""))
    except ValueError as error:
        extra = []
        arguments.problems.append(Problem("environment TRAINER_EXTRA_ARGS", f"cannot be split into words: {error}"))
    _Words(arguments).read(extra, where="environment TRAINER_EXTRA_ARGS")  # options of train: no own arguments there
    inherited = arguments.config, arguments.env, arguments.example
    arguments.config = arguments.env = arguments.example = None
    _Words(arguments, frozenset(own), frozenset(flags), words).read(argv, where=COMMAND_LINE)
    if not any((arguments.config, arguments.env, arguments.example)):
        arguments.config, arguments.env, arguments.example = inherited
    if not any((arguments.config, arguments.env, arguments.example)):
        # A path in ENV is the shell's own (its start-up file).
        name = environ.get("ENV", "")
        arguments.env = name if name and "/" not in name else None
    given = [name for name in PICKS if getattr(arguments, name)]
    if len(given) > 1:
        arguments.problems.append(
            Problem(COMMAND_LINE, f"{' and '.join(given)} exclude each other", fix="keep one of them")
        )
    return arguments


@dataclass(frozen=True)
class _Words:
    """Reads words into `arguments`."""

    arguments: Arguments
    own: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    words: bool = False

    def read(self, argv: Sequence[str], *, where: str) -> None:
        position = 0
        while position < len(argv):
            word = argv[position]
            position += 1
            if word in ("--help", "-h"):
                self.arguments.help = True
            elif _PAIR.match(word):
                key, value = word.split("=", 1)
                self._store(plain_key(key), value, where=where)
            elif word.startswith("--") and len(word) > 2:
                key = plain_key(word)
                following = argv[position] if position < len(argv) else None
                if self._takes(key, following):
                    position += 1
                    self._store(key, str(following), where=where)
                else:
                    self._store_alone(key, where=where)
            elif self.words and (Path(word).exists() or not self._is_known(plain_key(word))):
                self.arguments.words.append(word)
            else:
                self.arguments.problems.append(self._stray(word, where))

    def _is_known(self, key: str) -> bool:
        return key in (*self.own, *self.flags, *catalogue(), *PICKS)

    def _takes(self, key: str, following: str | None) -> bool:
        """Whether `--key` takes the next word as its value."""
        if following is None:
            return False
        declared = catalogue().get(key)
        if key in self.flags or (key not in self.own and declared is not None and declared.is_flag):
            return following.lower() in BOOLEANS
        known = declared is not None or key in PICKS or key in self.own
        return not following.startswith("--") and (known or not _PAIR.match(following))

    def _store(self, key: str, value: str, *, where: str) -> None:
        if key in self.own or key in self.flags:
            self.arguments.own.setdefault(key, []).append(value)
        elif key in PICKS and not value.strip():
            self.arguments.problems.append(Problem(where, "is empty", key, value, "leave it out, or name one"))
        elif key == "config":
            self.arguments.config = Path(value).expanduser()
        elif key in PICKS:
            setattr(self.arguments, key, value)
        elif (meant := self._meant(key)) is not None:
            problem = Problem(where, "is not an argument", key=key, fix=f"did you mean {meant}?")
            self.arguments.problems.append(problem)
        else:
            self.arguments.overrides.append(Override(key, value, where))

    def _store_alone(self, key: str, *, where: str) -> None:
        declared = catalogue().get(key)
        if key in self.flags:
            self._store(key, "true", where=where)
        elif key in PICKS or key in self.own or (declared is not None and not declared.is_flag):
            self.arguments.problems.append(Problem(where, "needs a value", key=key, fix=f"write --{key} VALUE"))
        else:
            self.arguments.overrides.append(Override(key, True, where))

    def _meant(self, key: str) -> str | None:
        """The own argument that an unknown key most likely stands for; options are answered by the loader."""
        if key in catalogue() or not self.own:
            return None
        meant = did_you_mean(key, (*self.own, *self.flags, *catalogue(), *MUSUBI))
        return meant if meant in self.own | self.flags else None

    def _stray(self, word: str, where: str) -> Problem:
        key = plain_key(word)
        names = (*self.own, *self.flags, *catalogue(), *PICKS)
        if key in names:
            return Problem(where, f'"{word}" stands alone', fix=f"write {key}=VALUE")
        meant = did_you_mean(key, names)
        hint = f"did you mean {meant}=VALUE?" if meant else "write key=value or --key value"
        return Problem(where, f'"{word}" is no argument', fix=hint)
