"""Arithmetic of runs: closed forms and limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplewan.errors import UserError
from simplewan.flavours import FLAVOURS, VAE_21, VAE_22, find_flavour
from simplewan.plan import RunPlan, latents_bytes, plan_run


def plan(**changes: object) -> RunPlan:
    given_ = {
        "max_train_steps": 10,
        "num_train_epochs": 0,
        "ignore_final_epochs": False,
        "micro_batches_in_epochs": lambda epochs: 7 * epochs,
        "accumulation": 2,
        "checkpoint_step_interval": 0,
        "checkpoint_epoch_interval": 0,
        "validation_step_interval": 0,
        "eval_steps_interval": 0,
    }
    return plan_run(**(given_ | changes))  # type: ignore[arg-type]


def test_steps_and_epochs() -> None:
    assert plan().total_steps == 10
    assert plan(max_train_steps=0, num_train_epochs=3).total_steps == 10  # 21 micro-batches, 2 a step
    assert plan(max_train_steps=50, num_train_epochs=3).total_steps == 10
    assert plan(max_train_steps=50, num_train_epochs=3, ignore_final_epochs=True).total_steps == 50
    assert plan().steps_per_epoch == pytest.approx(3.5)
    with pytest.raises(UserError, match="num_train_epochs"):
        plan(max_train_steps=0)


def test_the_budgets_of_the_experts_end_a_run() -> None:
    assert plan(budget_steps=4).total_steps == 4
    assert plan(budget_steps=12).total_steps == 10
    assert plan(max_train_steps=0, budget_steps=12).total_steps == 12
    assert plan(max_train_steps=0, num_train_epochs=3, budget_steps=12).total_steps == 10


def test_what_happens_when() -> None:
    run = plan(
        max_train_steps=11,
        checkpoint_step_interval=4,
        checkpoint_epoch_interval=2,
        validation_step_interval=5,
        eval_steps_interval=6,
    )
    assert run.checkpoint_steps == (4, 7, 8, 11)  # the second epoch ends with step 7; the end is always saved
    assert run.validation_steps == (5, 10, 11)
    assert run.eval_steps == (6, 11)
    assert plan().validation_steps == ()


@given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 5))
def test_plans_stay_inside_the_run(total: int, interval: int, epochs: int) -> None:
    run = plan(
        max_train_steps=total,
        checkpoint_step_interval=interval,
        checkpoint_epoch_interval=epochs,
        validation_step_interval=interval,
    )
    assert run.checkpoint_steps[-1] == total
    assert all(1 <= step <= total for step in run.checkpoint_steps + run.validation_steps)
    assert list(run.checkpoint_steps) == sorted(set(run.checkpoint_steps))


def test_cached_latents_have_the_known_size() -> None:
    # 81 frames of 480x832 in bf16: 4.2 MB, 16 x 21 x 60 x 104 values
    assert latents_bytes(width=832, height=480, num_frames=81, vae=VAE_21, bytes_per_value=2) == 16 * 21 * 60 * 104 * 2
    assert latents_bytes(width=1280, height=704, num_frames=1, vae=VAE_22, bytes_per_value=4) == 48 * 44 * 80 * 4


def test_flavours_cut_at_the_boundary() -> None:
    high, low = find_flavour("T2V-14B-2.2-high"), FLAVOURS["t2v-a14b-2.2-low"]
    assert high.name == "t2v-a14b-2.2-high"
    assert high.sigma_bounds("high") == (0.875, 1.0)
    assert low.sigma_bounds(low.trained_experts[0]) == (0.0, 0.875)
    assert FLAVOURS["i2v-a14b-2.2-high"].sigma_bounds("high") == (0.9, 1.0)
    assert FLAVOURS["ti2v-5b-2.2"].pixel_multiple == 32
    assert FLAVOURS["t2v-480p-1.3b-2.1"].pixel_multiple == 16
    assert FLAVOURS["t2v-480p-1.3b-2.1"].sigma_bounds("high") == (0.0, 1.0)
