"""`simpletuner train`: find the configuration, load it, refuse what is wrong or still to come, then train.

Imports options; `app`, and torch with it, only when there is something to train.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from simplewan.cli.arguments import parse
from simplewan.cli.configuration import find_configuration, load_configuration, refuse, with_example
from simplewan.cli.listing import train_help
from simplewan.errors import EXIT_DONE


def run(argv: Sequence[str], *, environ: Mapping[str, str]) -> int:
    """Train; returns the exit code. Raises UserError with every mistake of arguments and files."""
    arguments = parse(argv, environ=environ)
    if arguments.help:
        print(train_help())
        return EXIT_DONE
    config, placeholders = find_configuration(arguments, environ)
    loaded = load_configuration(
        arguments, config, environ, placeholders, unprepared=tuple(placeholders), later_too=True
    )
    if loaded.later:
        return refuse(loaded.later, loaded.notices)
    from simplewan.models.wan.checking import check_files

    if not placeholders:  # the model of an example may have to be made first
        options = loaded.options
        check_files(options.model, loaded.flavour, with_other_stage=options.validation.loads_other_stage)
    print("loading PyTorch and diffusers ...", file=sys.stderr, flush=True)
    loaded = with_example(loaded, arguments, config, environ, placeholders)
    from simplewan.app.train import train

    return train(loaded)
