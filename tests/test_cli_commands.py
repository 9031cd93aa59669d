"""The commands: exit codes, messages without a traceback, nothing generated before everything is checked."""

from __future__ import annotations

import errno
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simplewan import cli
from simplewan.cli.configuration import load_configuration
from simplewan.cli.examples import copy
from simplewan.examples import example_folder, example_names
from simplewan.options import Loaded

pytestmark = pytest.mark.usefixtures("apart")
ROOT = Path(__file__).resolve().parents[1]
needs_mini = pytest.mark.skipif(example_folder("mini") is None, reason="the example's files are not there")


@needs_mini
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("did you mean learning_rate", ["--learnin_rate=1e-4"]),
        ("learning_rate = 'fast' is not a number", ["--learning_rate=fast"]),
        ("max_train_steps = '-3' must be at least 0", ["--max_train_steps=-3"]),
        ('did you mean "i2v-14b-2.2-high"', ["--model_flavour=i2v-14b-2.3-high"]),
        ("data_backend_config = 'none.json' is not there", ["data_backend_config=none.json"]),
        ("still to come: averaged weights", ["--use_ema"]),
    ],
)
def test_mistakes_end_with_2_before_anything_is_made(
    wanted: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["train", "example=mini", *words]) == 2
    captured = capsys.readouterr()
    assert wanted in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@needs_mini
def test_everything_to_come_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["train", "example=mini", "use_ema=true", "optimizer=prodigy", "--push_to_hub", "hub_model_id=x"]) == 2
    )
    text = capsys.readouterr().err
    assert all(key in text for key in ("use_ema", "optimizer", "push_to_hub"))


@needs_mini
@pytest.mark.parametrize("command", ["train", "cache"])
@pytest.mark.parametrize("mistake", ["learnin_rate=1", "model_flavour=t2v-a15b-2.2", "seed=x", "status"])
def test_what_is_to_come_is_told_beside_mistakes(
    command: str, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "example=mini", "use_ema=true", mistake]) == 2
    text = capsys.readouterr().err
    assert mistake.split("=")[0] in text and "use_ema = True is still to come" in text


@needs_mini
def test_a_command_that_only_renders_does_not_mind_what_is_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "example=mini", "use_ema=true", "learnin_rate=1"]) == 2
    text = capsys.readouterr().err
    assert "learnin_rate" in text and "use_ema" not in text
    for mistake in ("learnin_rate=1", "status"):
        assert cli.main(["sample", "example=mini", "use_ema=true", "validation_preview=true", mistake]) == 2
        text = capsys.readouterr().err
        assert mistake.split("=")[0] in text and "validation_preview = True is still to come" in text
        assert "use_ema" not in text


class Made(Exception):
    """The example was made; what follows is not of interest."""


def once_more(made: list[Path]) -> Callable[..., Loaded]:
    """`load_configuration`, that ends the command when the example is made."""

    def load(*arguments: Any, **named: Any) -> Loaded:
        if made:
            raise Made
        return load_configuration(*arguments, **named)

    return load


def test_missing_and_broken_configurations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"model_family": "wan", ')
    for words, wanted in (
        (["train"], "config.json: there is no such file; copy config/config.json.example and its neighbours"),
        (["train", "--dit_high_noise", "x"], "did you mean pretrained_transformer_model_name_or_path?"),
        (["train", "--config", "nope.json"], "nope.json: there is no such file"),
        (["train", "--config", "broken.json"], "broken.json, line 1, column 25"),
        (["train", "env=mine"], "config/mine/config.json: there is no such file"),
        (["train", "example=mni"], "is not an example"),
        (["tran"], 'did you mean "train"?'),
        (["configure"], "config/config.json.example"),
        (["examples", "what"], "usage"),
    ):
        assert cli.main(words) == 2
        assert wanted in capsys.readouterr().err, words


@needs_mini
def test_a_copied_example_finds_its_generated_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["examples", "copy", "mini"]) == 0
    # Only what is to come is refused: the placeholders of the copy stand for the generated folder.
    assert cli.main(["train", "env=mini", "use_ema=true"]) == 2
    text = capsys.readouterr().err
    assert "use_ema" in text and "is not there" not in text


@needs_mini
@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_copied_example_is_made_before_its_model_is_looked_for(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.main(["examples", "copy", "mini"]) == 0
    made: list[Path] = []
    monkeypatch.setattr("simplewan.app.examples.prepare", lambda name, folder: made.append(folder))
    # Imported while configuration.py is replaced it would keep the replacement for good.
    importlib.import_module(f"simplewan.cli.{command}")
    monkeypatch.setattr("simplewan.cli.configuration.load_configuration", once_more(made))
    with pytest.raises(Made):
        cli.main([command, "env=mini"])
    assert len(made) == 1 and made[0].is_relative_to(tmp_path / "generated")


def test_env_picks_a_folder_and_suggests_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config" / "fox").mkdir(parents=True)
    (tmp_path / "config" / "fox" / "config.json").write_text('{"seed": "x"}')
    assert cli.main(["train", "env=fxo"]) == 2
    assert 'did you mean env="fox"?' in capsys.readouterr().err
    assert cli.main(["train", "env=fox"]) == 2
    assert "config/fox/config.json: seed = 'x' is not a whole number" in capsys.readouterr().err
    assert cli.main(["train", "env=default"]) == 2
    assert capsys.readouterr().err.startswith("config/config.json: there is no such file")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        [],
        ["--help"],
        ["train", "--help"],
        ["sample", "--help"],
        ["options", "--help"],
        ["examples", "--help"],
        ["--version"],
    ):
        assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "adapter=FILE" in text and "--validation_shift" in text
    assert "--learning_rate" in text and "*--use_ema" in text and "usage: simpletuner examples" in text


def test_options_searches_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["options", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    by_key = {record["key"]: record for record in document["options"]}
    assert by_key["use_ema"]["to_come"] and not by_key["lora_rank"]["to_come"]
    assert by_key["max_grad_norm"]["default"] == 1.0 and by_key["max_grad_norm"]["minimum"] == 0
    assert "video.num_frames" in {record["key"] for record in document["dataset_options"]}
    assert cli.main(["options", "timestep", "boundary"]) == 0
    text = capsys.readouterr().out
    assert "timestep_boundary" in text and "learning_rate" not in text
    assert cli.main(["options", "learnin_rat"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "learning_rate" in captured.err


def test_options_are_found_by_the_names_of_other_trainers(capsys: pytest.CaptureFixture[str]) -> None:
    for word, key in (
        ("network_dim", "lora_rank"),
        ("blocks_to_swap", "enable_group_offload"),
        ("target-frames", "video.num_frames"),
        ("checkpointing_steps", "checkpoint_step_interval"),
    ):
        assert cli.main(["options", word]) == 0
        text = capsys.readouterr().out
        keys = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
        assert keys == [key] and "elsewhere called" in text and word.replace("-", "_") in text
    assert cli.main(["options", "musubi"]) == 0
    assert "lora_rank" in capsys.readouterr().out
    assert cli.main(["options", "vae_cache_cpu"]) == 2
    assert "vae_cache_cpu is no option: leave it out" in capsys.readouterr().err


def test_options_whose_key_begins_with_the_word_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["options", "ema"]) == 0
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert keys[0] == "use_ema" and keys.index("ema_decay") < keys.index("delete_problematic_images")


@needs_mini
def test_an_example_that_cannot_be_copied_is_a_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("a file")
    assert cli.main(["examples", "copy", "mini"]) == 2
    assert "config/mini: cannot be written: Not a directory; copy it in a folder" in capsys.readouterr().err
    (tmp_path / "config").unlink()

    def full(_path: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert cli.main(["examples", "copy", "mini"]) == 2
    assert "config/mini: cannot be written: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["config", "env", "example"])
def test_a_configuration_that_is_picked_has_a_name(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", f"{key}="]) == 2
    assert f"command line: {key} = '' is empty; leave it out, or name one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["export", "x.safetensors", "--to", "musubi"], ["sample", "prompt=x"], ["dataset", "report"]]
)
def test_an_empty_output_is_not_the_working_directory(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "output="]) == 2
    assert "command line: output = '' is empty; leave it out, or name a place" in capsys.readouterr().err


def test_examples_are_listed_and_copied_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["examples", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(example_names())
    written = copy("mini", tmp_path / "config" / "mini")
    assert tmp_path / "config" / "mini" / "config.json" in written
    assert cli.main(["examples", "copy", "mini"]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert cli.main(["examples", "copy", "other"]) == 2


@pytest.mark.parametrize("command", ["train", "sample"])
def test_help_loads_no_torch(command: str) -> None:
    code = f"import sys; from simplewan.cli import main; main(['{command}', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_no_traceback_on_a_closed_pipe() -> None:
    piped = f"{sys.executable} -m simplewan options --json | head -c 10"
    done = subprocess.run(["bash", "-c", piped], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
