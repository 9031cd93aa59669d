"""`simpletuner options [WORD ...] [--json]`: the list of options, searched. Imports options."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from simplewan.cli.listing import option_text
from simplewan.errors import EXIT_DONE, EXIT_USER_ERROR
from simplewan.options.describe import dataset_records, option_records, search, webhook_records
from simplewan.options.foreign import FOREIGN, WITHOUT_OPTION
from simplewan.options.sources import did_you_mean, plain_key

USAGE = """usage: simpletuner options [WORD ...] [--json]

Lists the options in which every WORD occurs (all without one): keys of config.json, then keys of datasets, then
keys of webhooks. A WORD may be what another trainer calls an option.
--json prints one JSON document."""


def run(argv: Sequence[str]) -> int:
    """Print the options that match; returns the exit code."""
    if any(word in ("--help", "-h") for word in argv):
        print(USAGE)
        return EXIT_DONE
    words = [word for word in argv if word != "--json"]
    records = {
        "options": search(option_records(), words),
        "dataset_options": search(dataset_records(), words),
        "webhook_options": search(webhook_records(), words),
    }
    if "--json" in argv:
        print(json.dumps(records, indent=2, ensure_ascii=False))
        return EXIT_DONE
    matching = [record for found in records.values() for record in found]
    for record in matching:
        print(option_text(record))
    if not matching:
        name = plain_key("_".join(words))
        meant = did_you_mean(name, [record["key"] for record in option_records()])
        answer = f'did you mean "{meant}"?' if meant else ""
        if why := WITHOUT_OPTION.get(name, FOREIGN.get(name)):
            answer = f"{name} is no option: {why}"
        print("nothing matches" + (f"; {answer}" if answer else ""), file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_DONE
