"""Webhooks: the objects of `webhook_config`, declared and checked as the other options are.

What lives here: `WebhookOptions` and its reading, from a JSON file or from config.json itself. Imports the declarations
and the sources of values. An address holds a secret (Discord's is the key to a channel), so it is never shown whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from simplewan.errors import Problem
from simplewan.options.catalogue import unmet
from simplewan.options.declare import Group, declarations, option
from simplewan.options.problems import read_values, translate
from simplewan.options.sources import Expander, Findings, Given, did_you_mean, plain_key, read_json

# The key that holds the address of each kind.
ADDRESS = {"raw": "callback_url", "discord": "webhook_url"}
_ADDRESS_FIX = "raw has a callback_url, discord a webhook_url"
LEVELS = ("debug", "info", "warning", "error", "critical")


class WebhookOptions(Group):
    """One webhook."""

    webhook_type: str = option(
        "raw",
        choices=tuple(ADDRESS),
        help="raw posts each event as a JSON object to callback_url; discord posts messages, with clips and contact "
        "sheets, to webhook_url. Where it is left out, the address that is given tells.",
    )
    callback_url: str | None = option(
        None, secret=True, applies="webhook_type=raw", help="Address (http or https) that JSON objects are posted to."
    )
    webhook_url: str | None = option(
        None, secret=True, applies="webhook_type=discord", help="Address of a Discord channel's webhook."
    )
    log_level: str = option(
        "info", choices=LEVELS, help="What is less severe is not sent: info is all, error is what ends a run."
    )
    message_prefix: str | None = option(None, help="Text before every message, to tell runs apart.")
    auth_token: str | None = option(
        None, secret=True, applies="webhook_type=raw", help="Sent as the header X-API-Key with every post."
    )
    ssl_no_verify: bool = option(
        False, help="Accept any certificate of an https address, e.g. one that the server signed itself."
    )

    @property
    def address(self) -> str:
        """Where it posts to."""
        address = getattr(self, ADDRESS[self.webhook_type])
        assert address, "checked when it was read"
        return str(address)

    @property
    def host(self) -> str:
        """The address without its secrets, to be shown."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def read_webhooks(
    value: Any, *, where: str, file: Path | None, expand: Expander, findings: Findings
) -> tuple[WebhookOptions, ...]:
    """The webhooks of `file`, or of `value`: the object, or list of objects, that stands in config.json itself.

    Problems go to `findings`; what is wrong is not among the result.
    """
    shown = where if file is None else str(file)
    content = value if file is None else read_json(file, findings)
    if content is None:
        return ()
    objects = content if isinstance(content, (list, tuple)) else [content]
    webhooks = []
    for number, raw in enumerate(objects, 1):
        place = shown if file else f"{shown}, webhook_config"
        place = f"{place}, webhook {number}" if len(objects) > 1 else place
        if isinstance(raw, Mapping):
            webhook = _read(raw, where=place, expand=expand, findings=findings)
            webhooks.extend([webhook] if webhook else [])
        else:
            findings.problem(
                place, "is not an object", fix='write {"webhook_type": "raw", "callback_url": "http://..."}'
            )
    return tuple(webhooks)


def _read(raw: Mapping[str, Any], *, where: str, expand: Expander, findings: Findings) -> WebhookOptions | None:
    among = declarations(WebhookOptions)
    before = len(findings.problems)
    found: dict[str, Given] = {}
    for written, value in raw.items():
        key = plain_key(str(written))
        if key in found and found[key].value != value:
            findings.problem(where, "is given twice, with different values", key=key, fix="keep one of them")
        if key in among:
            found[key] = Given(key, value, where)
            continue
        meant = did_you_mean(key, among)
        fix = f"did you mean {meant}?" if meant else f"what there is: {', '.join(among)}"
        findings.problem(where, "is not a key of a webhook", key=key, fix=_ADDRESS_FIX if key == "url" else fix)
    expanded = {key: expand(given.value, where=where, key=key) for key, given in found.items()}
    values = read_values(found, expanded, among, findings)
    if "webhook_type" not in values and "webhook_url" in values and "callback_url" not in values:
        values["webhook_type"] = "discord"
    webhook = None
    try:
        webhook = WebhookOptions.model_validate(values)
    except ValidationError as error:
        findings.problems.extend(translate(error, found=found, among=among, where=where))
    # An address may have got into any of the values.
    findings.problems[before:] = [replace(problem, value=None) for problem in findings.problems[before:]]
    if webhook is None or len(findings.problems) > before:
        return None
    for key, declared in among.items():
        if getattr(webhook, key) and unmet(declared, webhook.__dict__):
            findings.warn(f"{where}: {key} is not used: webhook_type is {webhook.webhook_type}")
    findings.problems.extend(problems := _address_problems(webhook, where=where))
    return None if problems else webhook


def _address_problems(webhook: WebhookOptions, *, where: str) -> list[Problem]:
    key = ADDRESS[webhook.webhook_type]
    address = getattr(webhook, key)
    if not address:
        return [Problem(where, f"is missing: {webhook.webhook_type} posts there", key=key, fix=_ADDRESS_FIX)]
    try:
        parts = urlsplit(address)
        sound = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # of the port, or of the brackets of an IPv6 address
        sound = False
    if sound and webhook.webhook_type == "discord" and not _leads_to_webhook(address):
        fix = "Discord shows it under the channel's settings, Integrations, Webhooks: https://discord.com/api/webhooks/..."
        return [Problem(where, "is an address of Discord, and none of a webhook", key=key, fix=fix)]
    if sound:
        return []
    return [Problem(where, "is not an address", key=key, fix="write it whole: http://... or https://...")]


def _leads_to_webhook(address: str) -> bool:
    """False for another address of Discord's own, such as that of a channel; proxies may call it as they like."""
    parts = urlsplit(address)
    domain = ".".join((parts.hostname or "").split(".")[-2:])
    return domain not in ("discord.com", "discordapp.com") or "/webhooks/" in parts.path
