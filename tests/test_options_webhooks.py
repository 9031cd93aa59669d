"""The objects of webhook_config: where they may stand, what is told of mistakes; nothing betrays an address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from option_files import load_in, problems

RAW = {"webhook_type": "raw", "callback_url": "http://host:8001/secret-place"}
DISCORD = {"webhook_type": "discord", "webhook_url": "https://discord.com/api/webhooks/1/secret-key"}


def test_a_file_an_object_and_a_list_are_read(tmp_path: Path) -> None:
    assert load_in(tmp_path).webhooks == ()
    assert load_in(tmp_path, webhook_config=[]).webhooks == ()
    path = tmp_path / "webhook.json"
    for content, kinds in ((RAW, ["raw"]), ([RAW, DISCORD], ["raw", "discord"])):
        path.write_text(json.dumps(content))
        for given in ("webhook.json", content):
            assert [webhook.webhook_type for webhook in load_in(tmp_path, webhook_config=given).webhooks] == kinds
    [webhook] = load_in(tmp_path, ("webhook_config", json.dumps(RAW))).webhooks
    assert webhook.address == RAW["callback_url"] and webhook.host == "http://host:8001"


def test_the_address_tells_the_type(tmp_path: Path) -> None:
    del (hook := dict(DISCORD))["webhook_type"]
    [webhook] = load_in(tmp_path, webhook_config=hook).webhooks
    assert webhook.webhook_type == "discord" and webhook.host == "https://discord.com"


def test_secrets_come_from_the_environment_and_are_never_saved(tmp_path: Path) -> None:
    (tmp_path / "webhook.json").write_text(json.dumps({"callback_url": "{env:HOOK}", "auth_token": "{env:KEY}"}))
    environ = {"HOOK": "https://host/secret", "KEY": "hidden"}
    loaded = load_in(tmp_path, environ=environ, webhook_config="webhook.json")
    assert (loaded.webhooks[0].address, loaded.webhooks[0].auth_token) == ("https://host/secret", "hidden")
    assert loaded.resolved["webhook_config"] == "webhook.json"
    inline = load_in(tmp_path, webhook_config=[{**RAW, "auth_token": "hidden"}])
    assert "secret" not in json.dumps(inline.resolved) and "hidden" not in json.dumps(inline.resolved)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({**RAW, "loglevel": "info"}, ["loglevel is not a key of a webhook", "did you mean log_level"]),
        ({"url": "http://host/secret"}, ["url is not a key of a webhook", "raw has a callback_url"]),
        ({"webhook_type": "discord", "callback_url": "http://host/secret"}, ["webhook_url is missing: discord posts"]),
        ({**RAW, "callback_url": "host/secret"}, ["callback_url is not an address", "write it whole"]),
        ({**RAW, "callback_url": "ftp://host/secret"}, ["callback_url is not an address"]),
        ({**RAW, "callback_url": "http://host:port/secret"}, ["callback_url is not an address"]),
        ({**RAW, "webhook_type": "slack"}, ["webhook_type = 'slack' is not one of raw, discord"]),
        ({**RAW, "ssl_no_verify": "perhaps"}, ["ssl_no_verify = 'perhaps' is neither true nor false"]),
        (
            [RAW, {**RAW, "log_level": "warn"}, 3],
            ["webhook 2: log_level = 'warn'", 'did you mean "warning"', "webhook 3"],
        ),
        ("nowhere.json", ["webhook_config = 'nowhere.json' is not there"]),
    ],
)
def test_mistakes_are_told_with_all_others(tmp_path: Path, content: Any, told: list[str]) -> None:
    found = problems(tmp_path, webhook_config=content, learning_rate="fast")
    for text in [*told, "learning_rate = 'fast'"]:
        assert text in found
    assert "secret" not in found


def test_an_unset_variable_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "webhook.json").write_text(json.dumps({"webhook_url": "{env:HOOK}"}))
    found = problems(tmp_path, webhook_config="webhook.json")
    assert "names the environment variable HOOK, which is not set" in found
