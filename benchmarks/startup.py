"""How long the command line takes to answer, against importing torch, each in a process of its own.

Imports no torch itself. Asked for: help in at most 0.4 s.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Row, alternate, ratios, row

ROUNDS = 9
ASKED_SECONDS = 0.4
CALL = "from simplewan.cli import main; main({arguments!r})"


def run() -> list[Row]:
    """Seconds of `--help`, `train --help` and `import torch`, and the ratio of the last two."""
    seconds = alternate(
        {
            "--help": lambda: _python(CALL.format(arguments=["--help"])),
            "train --help": lambda: _python(CALL.format(arguments=["train", "--help"])),
            "import torch": lambda: _python("import torch"),
        },
        rounds=ROUNDS,
    )
    note = f"asked for: <= {ASKED_SECONDS}"
    return [
        row("simpletuner --help", seconds["--help"], "s", note),
        row("simpletuner train --help", seconds["train --help"], "s", note),
        row("python -c 'import torch'", seconds["import torch"], "s"),
        row("import torch / train --help", ratios(seconds["import torch"], seconds["train --help"]), "x"),
    ]


def _python(code: str) -> None:
    """Run `code` in a fresh interpreter. Raises CalledProcessError, with what it printed, when it fails."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{code} left with {result.returncode}:\n{result.stderr.strip()}")
