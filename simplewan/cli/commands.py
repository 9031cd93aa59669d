"""The word that names a command, or a command's own subcommand: known, asked to explain itself, or mistyped."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Sequence

from simplewan.errors import EXIT_DONE, EXIT_USER_ERROR


def answered(argv: Sequence[str], commands: Collection[str], *, usage: str, within: str = "") -> int | None:
    """The exit code where `usage` or a hint is all the answer; None when the first word is one of `commands`.

    `within` is the command whose subcommands these are.
    """
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage)
        return EXIT_DONE
    if argv[0] in commands:
        return None
    close = difflib.get_close_matches(argv[0], commands, n=1)
    whole = [f"{within} {name}".strip() for name in close or commands]
    hint = f'did you mean "{whole[0]}"?' if close else f"there {'are' if whole[1:] else 'is'} {', '.join(whole)}"
    print(f'simpletuner: there is no command "{f"{within} {argv[0]}".strip()}"; {hint}', file=sys.stderr)
    return EXIT_USER_ERROR
