"""Whose turn it is: shares, runs of steps, budgets, and that a longer run begins as a shorter one."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from simplewan.plan import TrainingTurns

BOTH = ("high", "low")
shares, runs = st.floats(0.01, 0.99), st.integers(1, 20)


def sequence(turns: TrainingTurns, total: int, taken: dict[str, int] | None = None) -> list[str]:
    """The experts of the next steps, one after the other, each a function of the counts before it."""
    counts, order = dict.fromkeys(turns.experts, 0) | (taken or {}), []
    while len(order) < total and (name := turns.next(counts)) is not None:
        counts[name] += 1
        order.append(name)
    return order


def test_one_expert_takes_every_step() -> None:
    assert sequence(TrainingTurns(("low",)), 3) == ["low"] * 3
    assert TrainingTurns(("low",)).until(7) == {"low": 7}


def test_runs_of_steps_and_the_share() -> None:
    turns = TrainingTurns(BOTH, share=0.75, run_steps=2)
    assert sequence(turns, 16) == [*["high"] * 4, *["low"] * 2, *["high"] * 6, *["low"] * 2, *["high"] * 2]
    assert TrainingTurns(BOTH, share=0.5, run_steps=1).until(9) == {"high": 5, "low": 4}


@given(shares, runs, st.integers(0, 400))
def test_the_share_is_met_at_every_step_to_within_half_a_run(share: float, run: int, total: int) -> None:
    turns = TrainingTurns(BOTH, share=share, run_steps=run)
    order = sequence(turns, total)
    for step in range(total + 1):
        assert abs(order[:step].count("high") - share * step) <= run / 2 + 1e-6
    lengths = [len(list(group)) for _, group in groupby(order)]
    assert all(length % run == 0 for length in lengths[:-1])
    counts = turns.until(total)
    assert [counts[name] for name in BOTH] == [order.count(name) for name in BOTH]


@given(shares, runs, st.integers(0, 60), st.integers(1, 60), st.integers(1, 60))
def test_a_run_that_stops_anywhere_goes_on_with_the_same_turns(
    share: float, run: int, stop: int, high: int, low: int
) -> None:
    turns = TrainingTurns(BOTH, share=share, run_steps=run, budgets={"high": high, "low": low})
    whole = sequence(turns, 200)
    taken = {name: whole[:stop].count(name) for name in BOTH}
    assert whole[:stop] + sequence(turns, 200, taken) == whole


@given(shares, runs, st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_budgets_cap_an_expert_and_the_other_goes_on(share: float, run: int, high: int, low: int, total: int) -> None:
    budgets = {"high": high, "low": low}
    both = TrainingTurns(BOTH, share=share, run_steps=run, budgets=budgets)
    assert both.most_steps() == high + low
    assert both.until(1000) == budgets
    counts = both.until(total)
    assert sum(counts.values()) == min(total, high + low)
    assert all(counts[name] <= budgets[name] for name in BOTH)
    one = TrainingTurns(BOTH, share=share, run_steps=run, budgets={"high": high})
    free = TrainingTurns(BOTH, share=share, run_steps=run)
    order, expected = sequence(one, total), sequence(free, total)
    cut = next((at for at, name in enumerate(order) if expected[at] != name), total)
    assert order[:cut] == expected[:cut] and set(order[cut:]) <= {"low"}
    assert one.most_steps() == 0


def test_steps_beyond_a_lowered_budget_stay_taken_and_a_raised_one_is_caught_up() -> None:
    turns = TrainingTurns(BOTH, share=0.5, run_steps=2, budgets={"high": 4, "low": 20})
    taken = {"high": 10, "low": 10}
    assert turns.until(24, taken) == {"high": 10, "low": 14}
    assert turns.most_steps(taken) == 30
    raised = TrainingTurns(BOTH, share=0.5, run_steps=2, budgets={"high": 20, "low": 20})
    assert sequence(raised, 10, {"high": 4, "low": 10})[:6] == ["high"] * 6
