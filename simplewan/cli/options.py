"""`simpletuner options [WORD ...] [--json]`: the list of options, searched. Imports options."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from simplewan.cli.listing import option_text
from simplewan.errors import EXIT_DONE, EXIT_USER_ERROR
from simplewan.options.describe import dataset_records, option_records, search
from simplewan.options.sources import did_you_mean

USAGE = """usage: simpletuner options [WORD ...] [--json]

Lists the options in which every WORD occurs (all without one): keys of config.json, then keys of datasets.
--json prints one JSON document."""


def run(argv: Sequence[str]) -> int:
    """Print the options that match; returns the exit code."""
    if any(word in ("--help", "-h") for word in argv):
        print(USAGE)
        return EXIT_DONE
    words = [word for word in argv if word != "--json"]
    options, datasets = search(option_records(), words), search(dataset_records(), words)
    if "--json" in argv:
        print(json.dumps({"options": options, "dataset_options": datasets}, indent=2, ensure_ascii=False))
        return EXIT_DONE
    for record in (*options, *datasets):
        print(option_text(record))
    if not options and not datasets:
        meant = did_you_mean("_".join(words), [record["key"] for record in option_records()])
        print("nothing matches" + (f'; did you mean "{meant}"?' if meant else ""), file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE
