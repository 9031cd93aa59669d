"""`python -m benchmarks.cpu NAME...`: runs the named benchmarks (all of them without a name) and prints one table.

A benchmark's module is imported only when it is asked for, so that `startup` measures a process without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from benchmarks.timing import Row, machine, table

BENCHMARKS = {
    "startup": "benchmarks.startup",
    "step": "benchmarks.step",
    "cache_rw": "benchmarks.cache_rw",
    "loader": "benchmarks.loader",
    "indexing": "benchmarks.indexing",
    "decode": "benchmarks.decode",
    "ti2v_temb": "benchmarks.ti2v_temb",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 from argparse for a name that is not in `BENCHMARKS`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description="Benchmarks that need no GPU.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args(arguments).names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows += import_module(BENCHMARKS[name]).run()
    print(machine())
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
