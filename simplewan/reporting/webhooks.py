"""Webhooks: posts a run's events to an address, as JSON objects or as messages of a Discord channel.

Imports errors, events, the options of a webhook, `messages`, `records`; requests speaks HTTP. Posting has a thread of
its own: a server that is slow or gone never holds up a step. Messages arrive in their order; while a server is away
they wait, and newer figures take the place of older ones. An address that refuses the first message is a mistake to
mend at once; whatever fails later is announced, and training goes on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests
import urllib3

from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Event, Metric, Notice, Progress, silent
from simplewan.options.webhooks import LEVELS, WebhookOptions
from simplewan.reporting.messages import Message, chat_text, message_of, raw_object, sendable, started
from simplewan.reporting.records import Paced, to_json

TIMEOUT_SECONDS = (5.0, 30.0)  # to connect, and between two parts of an answer
AWAY_SECONDS = 15.0  # between two tries while a server is away
LONGEST_WAIT_SECONDS = 60.0  # that a server may ask for
CLOSING_SECONDS = 20.0  # for what is still to be sent when the run ends
MOST_WAITING, MOST_FIGURES = 500, 20


class Refused(Exception):
    """The server has answered, and will not take this message however often it is sent."""


class TooLarge(Refused):
    """The message is too large with its files."""


class Away(Exception):
    """The server cannot be reached, or has trouble of its own. `wait`, if any: how long it asks to be left alone."""

    def __init__(self, reason: str, *, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Poster:
    """Sends one message after another to one webhook."""

    def __init__(self, options: WebhookOptions, *, run_id: str) -> None:
        self._options, self._run_id = options, run_id
        self._prefix = f"{options.message_prefix} " if options.message_prefix else ""
        self._session = requests.Session()
        if options.ssl_no_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if options.auth_token and options.webhook_type == "raw":
            self._session.headers["X-API-Key"] = options.auth_token

    def __call__(self, message: Message, at: float) -> None:
        """Send what was told at the time `at`; without its files if they are too much. Raises Refused and Away."""
        files, _ = sendable(message)
        try:
            self._send(message, files, at)
        except TooLarge:
            self._send(message, [], at)

    def _send(self, message: Message, files: Sequence[Path], at: float) -> None:
        if self._options.webhook_type == "raw":
            body = to_json(raw_object(message, files, job_id=self._run_id, time=at, prefix=self._prefix))
            self._post(data=body.encode(), headers={"Content-Type": "application/json"})
            return
        # What a caption or a prompt says must not call anybody.
        payload = {"content": chat_text(message, files, prefix=self._prefix), "allowed_mentions": {"parse": []}}
        named = {f"files[{n}]": (path.name, path.read_bytes()) for n, path in enumerate(files)}
        self._post(files={"payload_json": (None, to_json(payload), "application/json"), **named})

    def _post(self, **content: Any) -> None:
        try:
            answer = self._session.post(
                self._options.address,
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,
                # Said with each post: what is said of the session gives way to REQUESTS_CA_BUNDLE.
                verify=False if self._options.ssl_no_verify else None,
                **content,
            )
        except requests.RequestException as error:
            # Its text has the whole address in it, secrets too.
            raise Away(_reason(error)) from error
        if answer.status_code == 413:
            raise TooLarge("answered 413 (too large)")
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise Away(f"answered {answer.status_code} {answer.reason}", wait=_asked_wait(answer))
        if not 200 <= answer.status_code < 300:
            moved = "" if answer.status_code >= 400 else ": the address has moved"
            raise Refused(f"answered {answer.status_code} {answer.reason}{moved}")


class Webhook:
    """The listener. It queues what concerns it; a thread posts."""

    def __init__(
        self, options: WebhookOptions, *, run_id: str, interval_steps: int, emit: Emit, clock: Callable[[], float]
    ) -> None:
        self._options, self._emit, self._clock = options, emit, clock
        self._interval_steps = interval_steps
        self._post = Poster(options, run_id=run_id)
        self._paced = Paced(5.0)
        self._waiting: deque[tuple[Message, float]] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._lost = 0
        self._is_troubled = False  # and that was announced
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)

    def open(self, first: Message) -> None:
        """Send the first message and begin to work. Raises UserError when it is refused."""
        try:
            self._post(first, self._clock())
        except Refused as error:
            raise UserError(
                Problem(
                    where=f"webhook {self._options.host}",
                    message=str(error),
                    fix="see to its address (and auth_token), or leave webhook_config out",
                )
            ) from error
        except Away as error:
            self._waiting.append((first, self._clock()))
            self._announce(error)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        if not self._concerns(event):
            return
        message = message_of(event)
        if message is None or LEVELS.index(message.severity) < LEVELS.index(self._options.log_level):
            return
        if self._options.webhook_type == "discord" and (message.is_figure or not message.for_chat):
            return
        with self._changed:
            self._waiting.append((message, self._clock()))
            self._make_room()
            self._changed.notify()

    def close(self) -> None:
        """Send what is waiting, as far as that can be done soon, and end. Says what could not be sent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSING_SECONDS)
        if unsent := len(self._waiting) + self._lost:
            self._say(f"was not sent {unsent} report{'s' if unsent > 1 else ''}", warning=True)
        self._emit = silent  # the thread, should it still be at work

    def _concerns(self, event: Event) -> bool:
        if isinstance(event, Metric):
            return event.step % self._interval_steps == 0 or event.step == event.total_steps
        return not isinstance(event, Progress) or self._paced(event, self._clock())

    def _make_room(self) -> None:
        figures = [item for item in self._waiting if item[0].is_figure]
        if len(figures) > MOST_FIGURES:
            self._waiting.remove(figures[0])
        elif len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1

    def _work(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._post(*item)
            except Refused as error:
                self._finish(item)
                self._lost += 1
                self._announce(error)
            except Away as error:
                if error.wait is None:
                    self._announce(error)
                if not self._rest(error.wait):
                    return
            else:
                self._finish(item)
                self._recover()

    def _next(self) -> tuple[Message, float] | None:
        """The message whose turn it is, which stays in the queue until it is sent; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None

    def _finish(self, item: tuple[Message, float]) -> None:
        with self._changed:
            if self._waiting and self._waiting[0] is item:  # else room was made at its cost
                self._waiting.popleft()

    def _rest(self, wait: float | None) -> bool:
        """Leave the server alone, as long as it asks or until the run ends; false when there is no use in going on."""
        if wait is not None:
            time.sleep(min(wait, LONGEST_WAIT_SECONDS))
            return True
        with self._changed:
            if self._is_closing:
                return False
            self._changed.wait_for(lambda: self._is_closing, AWAY_SECONDS)
            return True

    def _announce(self, trouble: Exception) -> None:
        if not self._is_troubled:
            self._is_troubled = True
            self._say(f"{trouble}; training goes on, and so do attempts to reach it", warning=True)

    def _recover(self) -> None:
        if self._is_troubled:
            self._is_troubled = False
            self._say("takes reports again")

    def _say(self, what: str, *, warning: bool = False) -> None:
        self._emit(Notice(f"webhook {self._options.host} {what}", "warning" if warning else "info"))


def open_webhooks(
    webhooks: Sequence[WebhookOptions],
    *,
    run_id: str,
    run_name: str,
    step: int,
    attempt: int,
    interval_steps: int,
    emit: Emit,
    clock: Callable[[], float] = time.time,
) -> list[Webhook]:
    """Greets each webhook; returns the listeners. Raises UserError, with every one that refuses."""
    first = started(run_name=run_name, step=step, attempt=attempt)
    opened: list[Webhook] = []
    problems: list[Problem] = []
    for options in webhooks:
        webhook = Webhook(options, run_id=run_id, interval_steps=interval_steps, emit=emit, clock=clock)
        try:
            webhook.open(first)
        except UserError as error:
            problems.extend(error.problems)
        else:
            opened.append(webhook)
    if problems:
        for webhook in opened:
            webhook.close()
        raise UserError(*problems)
    return opened


def _reason(error: requests.RequestException) -> str:
    """Why a request failed, without the address."""
    if isinstance(error, requests.exceptions.SSLError):
        return "has a certificate that cannot be verified (ssl_no_verify accepts any)"
    if isinstance(error, requests.Timeout):
        return "does not answer in time"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    return f"cannot be posted to ({type(error).__name__})"


def _asked_wait(answer: requests.Response) -> float | None:
    """The seconds that a server asks to be left alone, of the header that HTTP has for it."""
    try:
        return max(0.0, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
