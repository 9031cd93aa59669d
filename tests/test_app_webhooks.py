"""What a webhook is told of a run that does not come far."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import records, start, write_tiny_run
from serving import receiving

pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")


def test_the_mistake_that_ends_a_run_is_told_and_so_are_early_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMPLEWAN_HOMEPAGE", "another program's")
    config = write_tiny_run(tmp_path, clips=2, frames=81, max_train_steps=1)
    with receiving() as receiver:
        hook = {"webhook_type": "raw", "callback_url": f"{receiver.address}/very-secret", "log_level": "warning"}
        (tmp_path / "webhook.json").write_text(json.dumps(hook))
        out = tmp_path / "out"
        words = (f"output_dir={out}", f"webhook_config={tmp_path / 'webhook.json'}")
        assert start("train", "--config", str(config), *words) == 2
    error = receiver.of_type("error")[-1]
    assert error["severity"] == "critical" and "UserError" in error["message"]
    logged = [record for record in records(out, "notice") if record["severity"] == "warning"]
    told = [post["record"]["message"] for post in receiver.of_type("notification")]
    assert any("SIMPLEWAN_HOMEPAGE" in text for text in told)
    assert told == [record["message"] for record in logged]
    for file in out.rglob("*"):
        assert not file.is_file() or b"very-secret" not in file.read_bytes(), file
