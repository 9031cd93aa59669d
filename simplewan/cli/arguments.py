"""The arguments of `train`: which configuration, and what overrides it.

Imports options. `key=value`, `--key value`, `--key=value`, and the name of a boolean alone; hyphens and underscores are
the same. Unknown keys are passed on: the loader answers them together with every other mistake.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simplewan.errors import Problem
from simplewan.options.catalogue import catalogue
from simplewan.options.sources import COMMAND_LINE, Override, did_you_mean, plain_key

BOOLEANS = ("true", "false", "1", "0", "yes", "no", "on", "off", "t", "f", "y", "n")
# Arguments that pick the configuration instead of setting an option.
PICKS = ("config", "env", "example")
_PAIR = re.compile(r"^-{0,2}[A-Za-z_][\w.-]*=", re.DOTALL)


@dataclass
class Arguments:
    """What was asked for. At most one of `config`, `env` and `example` counts; `problems` holds what is wrong."""

    config: Path | None = None
    env: str | None = None
    example: str | None = None
    help: bool = False
    overrides: list[Override] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def parse(argv: Sequence[str], *, environ: Mapping[str, str]) -> Arguments:
    """The arguments of the command line, those of TRAINER_EXTRA_ARGS before them, so that the command line wins."""
    arguments = Arguments()
    try:
        extra = shlex.split(environ.get("TRAINER_EXTRA_ARGS", ""))
    except ValueError as error:
        extra = []
        arguments.problems.append(Problem("environment TRAINER_EXTRA_ARGS", f"cannot be split into words: {error}"))
    _read(extra, arguments, where="environment TRAINER_EXTRA_ARGS")
    inherited = arguments.config, arguments.env, arguments.example
    arguments.config = arguments.env = arguments.example = None
    _read(argv, arguments, where=COMMAND_LINE)
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


def _read(argv: Sequence[str], arguments: Arguments, *, where: str) -> None:
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if word in ("--help", "-h"):
            arguments.help = True
        elif _PAIR.match(word):
            key, value = word.split("=", 1)
            _store(plain_key(key), value, arguments, where=where)
        elif word.startswith("--") and len(word) > 2:
            key = plain_key(word)
            following = argv[position] if position < len(argv) else None
            if _takes(key, following):
                position += 1
                _store(key, str(following), arguments, where=where)
            else:
                _store_alone(key, arguments, where=where)
        else:
            arguments.problems.append(_stray(word, where))


def _takes(key: str, following: str | None) -> bool:
    """Whether `--key` takes the next word as its value."""
    if following is None:
        return False
    declared = catalogue().get(key)
    if declared is not None and declared.is_flag:
        return following.lower() in BOOLEANS
    return not following.startswith("--") and (declared is not None or key in PICKS or not _PAIR.match(following))


def _store(key: str, value: str, arguments: Arguments, *, where: str) -> None:
    if key == "config":
        arguments.config = Path(value).expanduser()
    elif key in PICKS:
        setattr(arguments, key, value)
    else:
        arguments.overrides.append(Override(key, value, where))


def _store_alone(key: str, arguments: Arguments, *, where: str) -> None:
    declared = catalogue().get(key)
    if key in PICKS or (declared is not None and not declared.is_flag):
        arguments.problems.append(Problem(where, "needs a value", key=key, fix=f"write --{key} VALUE"))
    else:
        arguments.overrides.append(Override(key, True, where))


def _stray(word: str, where: str) -> Problem:
    key = plain_key(word)
    if key in catalogue() or key in PICKS:
        return Problem(where, f'"{word}" stands alone', fix=f"write {key}=VALUE")
    meant = did_you_mean(key, (*catalogue(), *PICKS))
    hint = f"did you mean {meant}=VALUE?" if meant else "write key=value or --key value"
    return Problem(where, f'"{word}" is no argument', fix=hint)
