"""Figures that README and docs quote, each produced by a command: `python -m benchmarks.cpu NAME...`.

A benchmark is a module with `run() -> list[Row]`. Alternatives are measured in turns within one run, because only
ratios taken side by side survive a change of machine.
"""
