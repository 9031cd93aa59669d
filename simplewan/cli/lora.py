"""`simpletuner lora doctor`: what LoRA files are, whether they are sound, and which tools read them.

Imports `app`, and torch with it, only when there is a file to look at. Standard output holds the page, or one JSON
document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from simplewan.cli.arguments import parse
from simplewan.cli.commands import answered
from simplewan.errors import EXIT_DONE, EXIT_FAILURE, Problem, UserError
from simplewan.options.sources import COMMAND_LINE

FLAGS = ("json", "layers")
COMMANDS = ("doctor",)
HELP = """usage: simpletuner lora doctor FILE ... [--layers] [--json]

Examines LoRA and LyCORIS files, or those in a folder (a run's output_dir, or a checkpoint in it): the format, expert,
model, rank, alpha and scale; how much each layer changes; layers without effect, numbers that are not finite, keys that
nobody knows, halves without the other; and what diffusers, ComfyUI, musubi, DiffSynth and LightX2V make of the file.

  --layers    list every layer, not only those with a flag
  --json      one JSON document on standard output: a list with an object for each file

Exit code: 0 when all files are healthy, 1 when one is not, 2 for a file that is no LoRA or cannot be read."""


def run(argv: Sequence[str], *, environ: Mapping[str, str]) -> int:
    """Run a subcommand; returns the exit code. Raises UserError with every mistake of arguments and files."""
    if (code := answered(argv, COMMANDS, usage=HELP, within="lora")) is not None:
        return code
    arguments = parse(argv[1:], environ={}, own=(), flags=FLAGS, words=True)
    if arguments.help:
        print(HELP)
        return EXIT_DONE
    as_json, layers = arguments.flag("json"), arguments.flag("layers")
    problems = [*arguments.problems]
    problems += [Problem(item.where, "is not an argument", item.key) for item in arguments.overrides]
    if not arguments.words:
        problems.append(Problem(COMMAND_LINE, "no file was named", fix="write simpletuner lora doctor FILE"))
    if problems:
        raise UserError(*problems)
    from simplewan.app.doctor import doctor, page

    found, problems = doctor([Path(word).expanduser() for word in arguments.words])
    if as_json:
        print(json.dumps([each.document() for each in found], indent=2, ensure_ascii=False))
    elif found:
        print("\n\n".join(page(each, layers=layers) for each in found))
    if problems:
        raise UserError(*problems)
    return EXIT_DONE if all(each.healthy for each in found) else EXIT_FAILURE
