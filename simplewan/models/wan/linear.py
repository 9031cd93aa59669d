from __future__ import annotations


def linear(m, x):
    return m(x)


def linears(ms, x):
    return [m(x) for m in ms]
