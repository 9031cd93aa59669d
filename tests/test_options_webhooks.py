"""The objects of webhook_config: where they may stand, what is told of mistakes; nothing betrays an address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from option_files import load_in, problems, write

from simplewan.options import load

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
        ({**DISCORD, "webhook_url": "https://discord.com/channels/1/2"}, ["none of a webhook", "Integrations"]),
        ({**RAW, "callback_url": "ftp://host/secret"}, ["callback_url is not an address"]),
        ({**RAW, "callback_url": "http://host:port/secret"}, ["callback_url is not an address"]),
        ({**RAW, "webhook_type": "slack"}, ["webhook_type is not one of raw, discord"]),
        ({**RAW, "ssl_no_verify": "perhaps"}, ["ssl_no_verify is neither true nor false"]),
        (
            [RAW, {**RAW, "log_level": "warn"}, 3],
            ["webhook 2: log_level is not one of", 'did you mean "warning"', "webhook 3"],
        ),
        ("nowhere.json", ["webhook_config = 'nowhere.json' is not there"]),
        ("host/hooks/1/secret", ["webhook_config = '(redacted)' is not there"]),
        ("https://host/secret", ["webhook_config is an address, not a file; write the object itself"]),
        ("https://host/secret.json", ["webhook_config is an address, not a file"]),
        ('{"webhook_url": "https://host/secret"', ["webhook_config = '(redacted)' is not valid JSON"]),
        ('{"auth_token": "secret.json', ["webhook_config = '(redacted)' is not valid JSON"]),
        ({"webhook_type": {"x": "https://host/secret"}}, ["webhook_type is not text"]),
        ({**RAW, "webhook_type": "https://host/secret"}, ["webhook_type is not one of raw, discord"]),
        ({**RAW, "ssl_no_verify": "https://host/secret"}, ["ssl_no_verify is neither true nor false"]),
        ({**RAW, "callback-url": "http://host/secret"}, ["callback_url is given twice, with different values"]),
        (3, ["webhook_config = 3 is not a path, an object or a list"]),
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


SPELLINGS = [
    {"webhook-type": "discord", "webhook-url": "https://host/secret"},
    {"--webhook_url": "https://host/secret"},
    {"callback-url": "https://host/secret", "auth-token": "secret", "log-level": "error"},
    {"webhook_url": "https://host/secret", "message_prefix": "{env:U}"},
    {"webhook_url": "{env:B}/secret"},
    {"callback_url": "{env:B}/x", "auth_token": "{env:U}{env:SECRET}secret"},
]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("hook", SPELLINGS)
def test_no_spelling_of_an_address_is_saved(tmp_path: Path, hook: dict[str, str], as_text: bool) -> None:
    environ = {"U": "user", "B": "https://host", "SECRET": "secret"}
    for content in (hook, [hook, hook]):
        value = json.dumps(content) if as_text else content
        loaded = load_in(tmp_path, ("webhook_config", value), environ=environ)
        assert loaded.webhooks and "host" in loaded.webhooks[0].address
        saved = json.dumps(loaded.resolved["webhook_config"])
        assert "secret" not in saved and "://" not in saved and "user" not in saved
        assert ("message_prefix" not in hook) or "{env:U}" in saved
        environ_too = {**environ, "SIMPLEWAN_WEBHOOK_CONFIG": json.dumps(content)}
        assert load_in(tmp_path, environ=environ_too).resolved["webhook_config"] == loaded.resolved["webhook_config"]


def test_the_path_of_a_file_and_a_lone_variable_are_saved(tmp_path: Path) -> None:
    (tmp_path / "hooks").write_text(json.dumps(RAW))
    for name in ("hooks", "./hooks", "{env:HOOKS}"):
        environ = {"HOOKS": str(tmp_path / "hooks")}
        assert load_in(tmp_path, environ=environ, webhook_config=name).resolved["webhook_config"] == name
    rendering = load(write(tmp_path, {"webhook_config": "https://host/secret.json"}), environ={}, training=False)
    assert rendering.resolved["webhook_config"] == "(redacted)"
    hook = {"webhook_url": "{env:HOOK}"}
    loaded = load_in(tmp_path, environ={"HOOK": "https://host/secret"}, webhook_config=hook)
    assert loaded.resolved["webhook_config"] == hook


def test_text_that_a_variable_completes_is_saved_as_it_was_written(tmp_path: Path) -> None:
    environ = {"MORE": 'to_k", "secret'}
    loaded = load_in(tmp_path, ("lora_targets", '["to_q", "{env:MORE}"]'), environ=environ)
    assert loaded.options.adapter.lora_targets == ("to_q", "to_k", "secret")
    assert loaded.resolved["lora_targets"] == ["to_q", "{env:MORE}"]


def test_nothing_is_off_and_an_address_too_many_is_told(tmp_path: Path) -> None:
    for off in ("", " ", [], "null"):
        loaded = load_in(tmp_path, webhook_config=off)
        assert loaded.webhooks == () and not any("webhook" in notice.message for notice in loaded.notices)
    both = {"callback_url": "http://host/secret", "webhook_url": "https://host/secret"}
    for given, unused in (({}, "webhook_url"), ({"webhook_type": "discord"}, "callback_url")):
        loaded = load_in(tmp_path, webhook_config={**both, **given})
        [told] = [notice.message for notice in loaded.notices if "webhook" in notice.message]
        assert f"{unused} is not used: webhook_type is" in told and "secret" not in told
    same = load_in(tmp_path, webhook_config={**RAW, "callback-url": RAW["callback_url"]})
    assert same.webhooks[0].address == RAW["callback_url"]
