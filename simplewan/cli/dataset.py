"""`simpletuner dataset report`: a page that shows what the datasets of a configuration become.

Imports options; `app` only when there is something to report. Standard output holds the name of the page, or one JSON
document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from simplewan.cli.arguments import parse
from simplewan.cli.commands import answered
from simplewan.cli.configuration import find_configuration, load_configuration, with_example
from simplewan.errors import EXIT_DONE

OWN = ("output", "pictures", "max_files")
FLAGS = ("json",)
COMMANDS = ("report",)
USAGE = """usage: simpletuner dataset report [env=NAME | example=NAME | --config FILE] [key=value | --key value ...]

Writes a page (HTML, nothing else is needed to read it) that shows what the datasets become: for each bucket some
clips as they are trained on, with captions and the cut drawn into the source; how sizes, lengths and captions are
distributed; every file that is left out, with the reason; duplicates; and what is worth a second look. No model is
loaded, nothing is trained. The configuration is found as `train` finds it, and its keys are arguments here too.
What was looked at is kept beside the caches, so a second report takes a moment.

  output=FILE      where the page goes: output_dir/dataset_report.html
  pictures=12      how many clips of each bucket are shown (fewer by default where there are many buckets)
  max_files=10000  how many files are looked at for duplicates, stillness and blackness; the page says what was left out
  --json           one JSON document on standard output, the page is written too

`simpletuner options WORD` explains the keys of configurations and datasets."""


def run(argv: Sequence[str], *, environ: Mapping[str, str]) -> int:
    """Run a subcommand; returns the exit code. Raises UserError with every mistake of arguments and files."""
    if (code := answered(argv, COMMANDS, usage=USAGE, within="dataset")) is not None:
        return code
    arguments = parse(argv[1:], environ=environ, own=OWN, flags=FLAGS)
    if arguments.help:
        print(USAGE)
        return EXIT_DONE
    pictures, max_files = (
        arguments.whole_number(key, minimum=0, fix=f"write {key}=100, or leave it out")
        for key in ("pictures", "max_files")
    )
    as_json, output = arguments.flag("json"), arguments.path("output")
    config, placeholders = find_configuration(arguments, environ)
    loaded = load_configuration(arguments, config, environ, placeholders, unprepared=tuple(placeholders))
    loaded = with_example(loaded, arguments, config, environ, placeholders)
    from simplewan.app.dataset_report import MAX_FILES, dataset_report

    outcome = dataset_report(
        loaded,
        output=output,
        pictures=pictures,
        max_files=MAX_FILES if max_files is None else max_files,
    )
    if outcome.page is not None:
        print(json.dumps(outcome.document, indent=2) if as_json else outcome.page)
    return outcome.exit_code
