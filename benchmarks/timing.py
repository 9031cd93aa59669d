"""What benchmarks share: the row of the printed table, alternating measurement, quartiles, and the machine in words.

Imports the standard library only; torch is asked for its version through the package metadata.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Row:
    """One line of the table: a median with its lower and upper quartile, in `unit`; `note` says what was asked for."""

    name: str
    median: float
    lower: float
    upper: float
    unit: str
    note: str = ""


def row(name: str, values: Sequence[float], unit: str, note: str = "") -> Row:
    """The `Row` of several measurements; of a single one all three figures are the same."""
    if len(values) == 1:
        return Row(name, values[0], values[0], values[0], unit, note)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Row(name, median, lower, upper, unit, note)


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that one call takes, on the wall clock."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds per call of each function, measured in turns (a, b, a, b, ...) after `warmup` unmeasured turns."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function))
    return seconds


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """`slow / fast` of the measurements taken in the same turn."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def machine() -> str:
    """The machine in words: system, processor architecture, usable cores, Python and torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    return f"{platform.system()} {platform.machine()}, {cores} cores, {versions}"


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text: name, median, quartiles, unit, note."""
    head = ("benchmark", "median", "lower", "upper", "unit", "")
    cells = [head] + [(r.name, _short(r.median), _short(r.lower), _short(r.upper), r.unit, r.note) for r in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (1, 2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
