"""The libraries below keep quiet, unless the user asked them to talk."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from diffusers.utils import logging as diffusers_logging
from transformers import UMT5Config, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from simplewan.cli import COMMANDS, main
from simplewan.reporting.quiet import quiet_loading_bars, settle_environment


def test_the_users_verbosity_stays() -> None:
    environ = {"TRANSFORMERS_VERBOSITY": "debug"}
    settle_environment(environ)
    assert environ["TRANSFORMERS_VERBOSITY"] == "debug"
    assert environ["DIFFUSERS_VERBOSITY"] == "error"


@pytest.mark.parametrize("command", COMMANDS)
def test_libraries_are_quiet_before_any_command_loads_them(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example is prepared, which loads torch, before a command says that it loads it."""
    logger = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    levels: list[int] = []

    def watch(_arguments: object) -> int:
        levels.append(logging.getLogger("bitsandbytes.backends.cpu.ops").getEffectiveLevel())
        return 0

    monkeypatch.setitem(COMMANDS, command, watch)
    assert main([command]) == 0
    assert levels == [logging.ERROR]


def test_loading_shows_no_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path
    )
    try:
        transformers_logging.enable_progress_bar()
        UMT5EncoderModel.from_pretrained(tmp_path)
        assert "it/s" in capfd.readouterr().err, "there is something to keep quiet"
        quiet_loading_bars()
        UMT5EncoderModel.from_pretrained(tmp_path)
        assert capfd.readouterr().err == ""
    finally:
        transformers_logging.enable_progress_bar()
        diffusers_logging.enable_progress_bar()
