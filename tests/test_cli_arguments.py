"""The arguments of `train` and `sample`: forms, sources, and what is no argument."""

from __future__ import annotations

from pathlib import Path

import pytest

from simplewan.cli.arguments import Arguments, parse


def pairs(arguments: Arguments) -> list[tuple[str, object]]:
    return [(override.key, override.value) for override in arguments.overrides]


@pytest.mark.parametrize(
    "words",
    [["learning_rate=1e-5"], ["--learning_rate=1e-5"], ["--learning-rate", "1e-5"], ["--learning-rate=1e-5"]],
)
def test_every_form_of_a_value(words: list[str]) -> None:
    assert pairs(parse(words, environ={})) == [("learning_rate", "1e-5")]


def test_a_boolean_alone_is_true_and_takes_only_booleans() -> None:
    arguments = parse(["--gradient_checkpointing", "--use_ema", "false", "--deterministic", "seed=3"], environ={})
    assert pairs(arguments) == [
        ("gradient_checkpointing", True),
        ("use_ema", "false"),
        ("deterministic", True),
        ("seed", "3"),
    ]


def test_values_may_look_like_anything() -> None:
    words = ["--max_train_steps", "-3", "validation_prompt=a=b c", "--tracker_run_name", "lr=1", "--tread_config={}"]
    arguments = parse(words, environ={})
    assert pairs(arguments) == [
        ("max_train_steps", "-3"),
        ("validation_prompt", "a=b c"),
        ("tracker_run_name", "lr=1"),
        ("tread_config", "{}"),
    ]
    assert arguments.problems == []


def test_the_command_line_wins_over_the_extra_arguments() -> None:
    environ = {"TRAINER_EXTRA_ARGS": '--seed 1 --validation_prompt "two words" env=other', "ENV": "third"}
    arguments = parse(["env=mine", "seed=2"], environ=environ)
    assert arguments.env == "mine"
    assert pairs(arguments) == [("seed", "1"), ("validation_prompt", "two words"), ("seed", "2")]
    assert arguments.overrides[0].where == "environment TRAINER_EXTRA_ARGS"
    assert parse([], environ=environ).env == "other"
    assert parse([], environ={"ENV": "third"}).env == "third"
    assert parse(["--config", "x.json"], environ={"ENV": "third"}).env is None
    assert parse([], environ={"ENV": "/root/.shrc"}).env is None


def test_picks() -> None:
    assert parse(["example=mini"], environ={}).example == "mini"
    assert parse(["--example", "mini"], environ={}).example == "mini"
    assert parse(["--config=a/b.json"], environ={}).config == Path("a/b.json")
    assert "exclude each other" in str(parse(["example=mini", "env=x"], environ={}).problems[0])


def test_what_is_no_argument_is_answered() -> None:
    def problem(*words: str) -> str:
        return "\n".join(map(str, parse(words, environ={}).problems))

    assert "needs a value" in problem("--learning_rate")
    assert "needs a value" in problem("--learning_rate", "--use_ema")
    assert "write learning_rate=VALUE" in problem("learning_rate", "1")
    assert "did you mean learning_rate=VALUE?" in problem("learnin_rate")
    assert "cannot be split" in str(parse([], environ={"TRAINER_EXTRA_ARGS": "'"}).problems[0])


def test_a_commands_own_arguments_are_no_options() -> None:
    words = ["prompt=a=b", "--prompt", "seed=2", "--seed", "3", "--json", "learning_rate=1", "--deterministic"]
    arguments = parse(words, environ={"TRAINER_EXTRA_ARGS": "seed=9"}, own=("prompt", "seed"), flags=("json",))
    assert arguments.own == {"prompt": ["a=b", "seed=2"], "seed": ["3"], "json": ["true"]}
    # What TRAINER_EXTRA_ARGS holds are options of train, its seed among them.
    assert pairs(arguments) == [("seed", "9"), ("learning_rate", "1"), ("deterministic", True)]
    arguments = parse(["--prompt", "--json", "promt=x", "json"], environ={}, own=("prompt",), flags=("json",))
    texts = [str(problem) for problem in arguments.problems]
    assert "prompt needs a value" in texts[0] and "did you mean prompt" in texts[1] and "stands alone" in texts[2]
    assert arguments.own == {"json": ["true"]}
