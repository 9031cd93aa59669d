"""Schedules, seeds, optimisers and signals: closed forms, identities, and real signals to a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from simplewan.errors import Interrupted
from simplewan.training.optimizers import OPTIMIZERS, OptimizerSettings, make_optimizer
from simplewan.training.schedules import learning_rate
from simplewan.training.seeding import derive_seed, seed_step
from simplewan.training.signals import SignalWatch

ROOT = Path(__file__).resolve().parents[1]


def rate(step: int, name: str, **changes: float) -> float:
    given = {"base": 1.0, "end": 0.0, "power": 1.0, "warmup_steps": 0, "total_steps": 100}
    return learning_rate(step, name=name, **(given | changes))  # type: ignore[arg-type]


def test_schedules_follow_their_curves() -> None:
    assert [rate(step, "constant") for step in (1, 50, 100)] == [1, 1, 1]
    assert rate(1, "linear") == 1
    assert rate(51, "linear") == pytest.approx(0.5)
    assert rate(51, "cosine") == pytest.approx(0.5)
    assert rate(26, "cosine") == pytest.approx(0.853553, rel=1e-5)
    assert rate(51, "polynomial", power=2.0, end=0.1) == pytest.approx(0.1 + 0.9 * 0.25)
    assert rate(100, "linear") == pytest.approx(0.01)


def test_warm_up_starts_above_zero_and_ends_at_the_rate() -> None:
    for name in ("constant_with_warmup", "linear", "cosine", "polynomial"):
        assert rate(1, name, warmup_steps=10) == pytest.approx(0.1)
        assert rate(10, name, warmup_steps=10) == pytest.approx(1.0)
        assert rate(11, name, warmup_steps=10) == pytest.approx(1.0)
    # a warm-up as long as the run, as in a configuration that many people copy
    assert rate(100, "cosine", warmup_steps=100) == pytest.approx(1.0)


def test_torch_agrees_with_the_linear_schedule() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=100)
    for step in range(1, 101):
        assert rate(step, "linear") == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_seeds_depend_on_everything_and_nothing_else() -> None:
    base = seed_step(7, "high", 3)
    first, dropout = torch.rand(4, generator=base), torch.rand(4)
    torch.rand(100)
    again = seed_step(7, "high", 3)
    assert torch.equal(first, torch.rand(4, generator=again))
    assert torch.equal(dropout, torch.rand(4))
    others = [seed_step(8, "high", 3), seed_step(7, "low", 3), seed_step(7, "high", 4), seed_step(7, "high", 3, 1)]
    assert all(not torch.equal(first, torch.rand(4, generator=other)) for other in others)
    assert derive_seed(1, "a") == derive_seed(1, "a") < 2**63


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_resume_to_the_same_bits(name: str) -> None:
    settings = OptimizerSettings(name=name, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)

    def run(split: int | None) -> torch.Tensor:
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 8192).reshape(64, 128))
        optimizer = make_optimizer([weights], settings)
        for step in range(6):
            if step == split:
                state = optimizer.state_dict()
                weights = torch.nn.Parameter(weights.detach().clone())
                optimizer = make_optimizer([weights], settings)
                optimizer.load_state_dict(state)
            weights.grad = torch.sin(weights.detach() * (step + 1))
            optimizer.step()
        return weights.detach()

    straight = run(None)
    assert torch.equal(straight, run(3))
    assert not torch.equal(straight, torch.linspace(-1, 1, 8192).reshape(64, 128))


def test_muon_takes_orthogonal_steps_for_matrices_and_adamws_for_the_rest() -> None:
    generator = torch.Generator().manual_seed(1)
    settings = OptimizerSettings(name="muon", lr=1e-2, betas=None, eps=None, weight_decay=0.0)
    tall, vector = (torch.nn.Parameter(torch.randn(*size, generator=generator)) for size in ((96, 32), (32,)))
    before = [parameter.detach().clone() for parameter in (tall, vector)]

    def steps(optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            for parameter in (tall, vector):
                gradient = torch.Generator().manual_seed(step)
                parameter.grad = torch.randn(parameter.shape, generator=gradient)
            for group in optimizer.param_groups:  # as the loop does
                group["lr"] = 1e-2 / (step + 1)
            optimizer.step()

    optimizer = make_optimizer([tall, vector], settings)
    steps(optimizer, 0, 1)
    step = (tall - before[0]).detach()
    singular = torch.linalg.svdvals(step)
    assert singular.max() < 2.5 * singular.min()  # a random gradient's differ by much more, and Newton-Schulz is coarse
    assert 0.15 < step.square().mean().sqrt() / 1e-2 < 0.25  # AdamW's are usually 0.2 of the rate
    torch.testing.assert_close((vector - before[1]).abs(), torch.full((32,), 1e-2), rtol=1e-4, atol=0.0)

    steps(optimizer, 1, 2)
    assert (vector - before[1]).abs().max() < 1.51e-2  # the second step was half as long
    state, here = deepcopy(optimizer.state_dict()), [parameter.detach().clone() for parameter in (tall, vector)]
    steps(optimizer, 2, 4)
    straight = [parameter.detach().clone() for parameter in (tall, vector)]
    with torch.no_grad():
        for parameter, value in zip((tall, vector), here, strict=True):
            parameter.copy_(value)
    other = make_optimizer([tall, vector], settings)
    other.load_state_dict(state)
    steps(other, 2, 4)
    assert all(torch.equal(a, b.detach()) for a, b in zip(straight, (tall, vector), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_and_betas_act(name: str) -> None:
    def end(**changes: object) -> torch.Tensor:
        given = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0} | changes
        weights = torch.nn.Parameter(torch.linspace(-1, 1, 8192).reshape(64, 128))
        optimizer = make_optimizer([weights], OptimizerSettings(name=name, **given))  # type: ignore[arg-type]
        for step in range(3):
            weights.grad = torch.cos(weights.detach() * (step + 2))
            optimizer.step()
        return weights.detach()

    plain = end()
    assert not torch.equal(plain, end(weight_decay=0.5))
    assert not torch.equal(plain, end(betas=(0.5, 0.99)))


def test_signals_become_flags_and_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        watch.check()
        assert watch.save_requested
        assert watch.validate_requested
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            watch.check()
        assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_time_limit_leaves_in_time() -> None:
    watch = SignalWatch(max_seconds=100.0)
    watch.check(needed_seconds=10)
    with pytest.raises(Interrupted) as stopped:
        watch.check(needed_seconds=200)
    assert stopped.value.exit_code == 0


def test_a_second_interrupt_leaves_at_once() -> None:
    code = textwrap.dedent("""
        import os, signal
        from simplewan.training.signals import SignalWatch
        with SignalWatch():
            os.kill(os.getpid(), signal.SIGINT)
            print("first", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("never", flush=True)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stdout == "first\n"
