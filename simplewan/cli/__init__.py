"""The command line: `simpletuner COMMAND ...` (also `simplewan`, and `python -m simplewan`).

What lives here: one module a command, imported when the command runs. They gather options and call `app`; torch is
loaded with it, and not before. No argparse: `key=value`, flags without values and a "did you mean" are a page of code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from simplewan import __version__
from simplewan.cli.commands import answered
from simplewan.errors import EXIT_DONE, EXIT_SIGINT, EXIT_USER_ERROR, UserError
from simplewan.reporting.quiet import settle_environment, silence

USAGE = """usage: simpletuner COMMAND [ARGUMENT ...]

Trains the Wan 2.1 and 2.2 video models from JSON files.

commands:
  train       train a LoRA or the whole model: train [env=NAME | example=NAME | --config FILE] [key=value ...]
  sample      render prompts, with what was trained: sample [env=NAME | ...] [prompt="..."] [adapter=FILE] [key=value]
  cache       fill, check, list and prune the caches: cache [env=NAME | ...] [--list | --verify | --prune] [key=value]
  dataset     show what the datasets become, as a page: dataset report [env=NAME | ...] [output=FILE] [--json]
  export      LoRA files to other tools' formats, or merged: export [FILE ...] --to FORMAT [output=PLACE] [key=value]
  lora        what a LoRA file is, whether it is sound, and what reads it: lora doctor FILE ... [--json]
  options     search the list of options: options [WORD ...] [--json]
  examples    bundled examples: examples list | examples copy NAME
  configure   write a configuration by answering questions (to come)
  check       tell the mistakes, the plan and the memory of a run without training (to come)

  --help      this page; `simpletuner COMMAND --help` tells more
  --version   the version

Start with: simpletuner train example=mini"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 2 a user's mistake, 130 and 143 interrupted, 1 anything else)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"simplewan {__version__}")
        return EXIT_DONE
    if (code := answered(arguments, COMMANDS, usage=USAGE)) is not None:
        return code
    settle_environment(os.environ)  # before any command can load torch, an example's preparation included
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGINT
    except BrokenPipeError:
        silence(sys.stdout)  # nothing is wrong, but Python would complain again when it flushes
        return EXIT_DONE


def _train(arguments: Sequence[str]) -> int:
    from simplewan.cli.train import run

    return run(arguments, environ=os.environ)


def _sample(arguments: Sequence[str]) -> int:
    from simplewan.cli.sample import run

    return run(arguments, environ=os.environ)


def _cache(arguments: Sequence[str]) -> int:
    from simplewan.cli.cache import run

    return run(arguments, environ=os.environ)


def _dataset(arguments: Sequence[str]) -> int:
    from simplewan.cli.dataset import run

    return run(arguments, environ=os.environ)


def _export(arguments: Sequence[str]) -> int:
    from simplewan.cli.export import run

    return run(arguments, environ=os.environ)


def _lora(arguments: Sequence[str]) -> int:
    from simplewan.cli.lora import run

    return run(arguments, environ=os.environ)


def _options(arguments: Sequence[str]) -> int:
    from simplewan.cli.options import run

    return run(arguments)


def _examples(arguments: Sequence[str]) -> int:
    from simplewan.cli.examples import run

    return run(arguments)


def _later(command: str, until_then: str) -> Callable[[Sequence[str]], int]:
    """What a command that is still to come answers."""

    def answer(_arguments: Sequence[str]) -> int:
        print(f"simpletuner {command} is still to come. Until then, {until_then}.", file=sys.stderr)
        return EXIT_USER_ERROR

    return answer


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "sample": _sample,
    "cache": _cache,
    "dataset": _dataset,
    "export": _export,
    "lora": _lora,
    "options": _options,
    "examples": _examples,
    "configure": _later(
        "configure",
        "start from config/config.json.example and config/multidatabackend.json.example; `simpletuner options WORD` "
        "explains the keys",
    ),
    "check": _later("check", "`simpletuner cache` tells every mistake that train would, and fills the caches"),
}
