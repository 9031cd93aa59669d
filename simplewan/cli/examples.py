"""`simpletuner examples`: the bundled examples, listed or copied to config/NAME/.

Imports errors alone. Examples are package data, folders of JSON files in simplewan/examples/; what they need besides is
generated under SIMPLEWAN_CACHE when they are trained.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from simplewan.errors import EXIT_DONE, EXIT_USER_ERROR, Problem, UserError
from simplewan.examples import example_folder, example_names

USAGE = """usage: simpletuner examples list
       simpletuner examples copy NAME     copy an example's JSON files to config/NAME/ (nothing is overwritten)"""


def run(argv: Sequence[str]) -> int:
    """List or copy; returns the exit code. Raises UserError for an unknown example or a file that is in the way."""
    if any(word in ("--help", "-h") for word in argv):
        print(USAGE)
        return EXIT_DONE
    if list(argv) in ([], ["list"]):
        for name in example_names():
            print(f"{name}    to see it work: simpletuner train example={name}")
        return EXIT_DONE
    if len(argv) == 2 and argv[0] == "copy":
        for path in copy(argv[1], Path("config") / argv[1]):
            print(path)
        print(f"train it: simpletuner train env={argv[1]} output_dir=output/my-{argv[1]}")
        return EXIT_DONE
    print(USAGE, file=sys.stderr)
    return EXIT_USER_ERROR


def copy(name: str, target: Path) -> list[Path]:
    """Copy the JSON files of example `name` into `target`; returns the new files."""
    folder = example_folder(name)
    if folder is None:
        known = "the examples are: " + (", ".join(example_names()) or "none")
        raise UserError(Problem("command line", "is not an example", key="copy", value=name, fix=known))
    sources = sorted(folder.glob("*.json"))
    try:
        taken = [target / source.name for source in sources if (target / source.name).exists()]
        if taken:
            raise UserError(
                *(Problem(str(path), "is there already and is not overwritten", fix="move it first") for path in taken)
            )
        target.mkdir(parents=True, exist_ok=True)
        for source in sources:
            (target / source.name).write_bytes(source.read_bytes())
    except OSError as error:
        message = f"cannot be written: {error.strerror or error}"
        raise UserError(Problem(str(target), message, fix="copy it in a folder that can be written")) from error
    return [target / source.name for source in sources]


def generated_folder(name: str, *, environ: Mapping[str, str]) -> Path:
    """Where the generated files of an example lie: in SIMPLEWAN_CACHE, else in the user's cache folder."""
    root = environ.get("SIMPLEWAN_CACHE")
    if not root:
        root = f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/simplewan"
    return Path(root).expanduser().absolute() / "examples" / name
