"""Webhooks: posts a run's events to an address, as JSON objects or as messages of a Discord channel.

Imports errors, events, the options of a webhook, `messages`, `records`; requests speaks HTTP. Posting has a thread of
its own: a server that is slow or gone never holds up a step. Messages arrive in their order. While a server cannot be
reached they wait, and newer figures take the place of older ones; one that the server chokes on is given up after some
tries, so that it does not keep back those behind it. An address that refuses the first message is a mistake to mend at
once; whatever fails later is announced, and training goes on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3

from simplewan.errors import Problem, UserError, counted
from simplewan.events import Emit, ErrorHappened, Event, Metric, Notice, Progress, silent
from simplewan.options.webhooks import LEVELS, WebhookOptions
from simplewan.reporting.messages import (
    VALIDATION,
    Message,
    bundle,
    chat_text,
    message_of,
    raw_object,
    read_files,
    started,
)
from simplewan.reporting.records import Paced, to_json

# To connect, and for an answer. Of plain http the first is for sending the whole body, too.
FIRST_TIMEOUT, TIMEOUT = (5.0, 15.0), (60.0, 60.0)
AWAY_SECONDS = 15.0  # between two tries
TRIES = 3  # of a message that the server fails at
WAITS = (1.0, 60.0)  # the least and the most that a server's wish to be left alone is followed
CLOSING_SECONDS = 20.0  # for what is still to be sent when the run ends
ENDING_SECONDS = 1.0  # between two tries then
MOST_WAITING, MOST_FIGURES = 500, 20
CLIPS_AT_ONCE = 5  # with their contact sheets; Discord takes ten files


class Refused(Exception):
    """The server will not take this message however often it is sent."""


class Failed(Exception):
    """The server has failed at this message; another try, or another message, may fare better."""


class Away(Exception):
    """The server cannot be reached."""


class Busy(Exception):
    """The server asks to be left alone for some seconds."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = min(max(seconds, WAITS[0]), WAITS[1])


@dataclass(eq=False)
class Item:
    """A message that waits to be sent: told at the time `at`, the `sequence`-th of its webhook."""

    message: Message
    at: float
    sequence: int
    failures: int = 0


class Poster:
    """Sends one message after another to one webhook."""

    def __init__(self, options: WebhookOptions, *, run_id: str) -> None:
        self._options, self._run_id = options, run_id
        prefix = options.message_prefix or ""
        self._prefix = f"{prefix}{': ' if prefix[-1:].isalnum() else ' '}" if prefix else ""
        self._session = requests.Session()
        if options.ssl_no_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        if options.auth_token and options.webhook_type == "raw":
            self._session.headers["X-API-Key"] = options.auth_token

    def __call__(self, item: Item, *, timeout: tuple[float, float]) -> None:
        """Send it; without its files if they are too much, or once it has failed. Raises one of the four above."""
        files = {} if item.failures else read_files(item.message)
        answer = self._send(item, files, timeout)
        if answer.status_code == 413 and files:
            answer = self._send(item, {}, timeout)
        reason = f"answered {answer.status_code} {answer.reason}"
        if answer.status_code == 429:
            raise Busy(reason, _asked_wait(answer))
        if answer.status_code == 503:
            raise Away(reason)
        if answer.status_code in (408, 425) or answer.status_code >= 500:
            raise Failed(reason)
        if 300 <= answer.status_code < 400:
            raise Refused(f"{reason}: the address has moved")
        if not 200 <= answer.status_code < 300:
            raise Refused(reason)

    def _send(self, item: Item, files: Mapping[Path, bytes], timeout: tuple[float, float]) -> requests.Response:
        if self._options.webhook_type == "raw":
            told = raw_object(
                item.message, files, job_id=self._run_id, sequence=item.sequence, time=item.at, prefix=self._prefix
            )
            return self._post(timeout, data=to_json(told).encode(), headers={"Content-Type": "application/json"})
        # What a caption or a prompt says must not call anybody.
        told = {"content": chat_text(item.message, files, prefix=self._prefix), "allowed_mentions": {"parse": []}}
        named = {f"files[{n}]": (path.name, content) for n, (path, content) in enumerate(files.items())}
        return self._post(timeout, files={"payload_json": (None, to_json(told), "application/json"), **named})

    def _post(self, timeout: tuple[float, float], **content: Any) -> requests.Response:
        """Errors are told without their text: it has the whole address in it, secrets too."""
        try:
            return self._session.post(
                self._options.address,
                timeout=timeout,
                allow_redirects=False,
                # Said with each post: what is said of the session gives way to REQUESTS_CA_BUNDLE.
                verify=False if self._options.ssl_no_verify else None,
                **content,
            )
        except (ValueError, urllib3.exceptions.LocationValueError) as error:
            raise Refused("cannot be posted to: its address, or auth_token, is none that HTTP allows") from error
        except requests.exceptions.SSLError as error:
            raise Away("has a certificate that cannot be verified (ssl_no_verify accepts any)") from error
        except requests.ReadTimeout as error:
            raise Failed("does not answer in time") from error
        except requests.RequestException as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, urllib3.exceptions.ProtocolError):
                raise Failed("drops the connection") from error
            raise Away(f"cannot be reached{_why(cause)}") from error


class Webhook:
    """The listener. It queues what concerns it; a thread posts."""

    def __init__(
        self, options: WebhookOptions, *, run_id: str, interval_steps: int, emit: Emit, clock: Callable[[], float]
    ) -> None:
        self._options, self._emit, self._clock = options, emit, clock
        self._interval_steps = interval_steps
        self._post = Poster(options, run_id=run_id)
        self._paced = Paced(5.0)
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._told, self._lost = 0, 0
        self._is_away, self._was_refused = False, False  # and that was announced
        self._was_reached = False
        self._clips: list[Message] = []  # of a validation that goes on, for one message in a chat
        self._name = f"webhook {options.host}"
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)

    def open(self, first: Message) -> None:
        """Send the first message and begin to work. Raises UserError when it is refused."""
        item = self._item(first)
        try:
            self._post(item, timeout=FIRST_TIMEOUT)
        except Refused as error:
            fix = "see to its address (and auth_token), or leave webhook_config out"
            raise UserError(Problem(where=self._name, message=str(error), fix=fix)) from error
        except (Failed, Away, Busy) as error:
            self._waiting.append(item)
            self._go_away(error)
        else:
            self._was_reached = True
        self._thread.start()

    def __call__(self, event: Event) -> None:
        message = message_of(event) if self._concerns(event) else None
        if message is None or LEVELS.index(message.severity) < LEVELS.index(self._options.log_level):
            return
        with self._changed:
            if self._is_closing:
                return
            if self._options.webhook_type != "discord":
                self._append(message)
            elif message.kind == VALIDATION:
                self._collect(message)
            elif not message.is_figure:
                self._release_clips()
                if message.for_chat:
                    self._append(message)

    def stop(self) -> None:
        """Nothing more will be told: the thread ends when it has sent what is waiting."""
        with self._changed:
            self._release_clips()
            self._is_closing = True
            self._changed.notify()

    def _collect(self, clip: Message) -> None:
        if self._clips and self._clips[0].title != clip.title:
            self._release_clips()
        self._clips.append(clip)
        if len(self._clips) == CLIPS_AT_ONCE:
            self._release_clips()

    def _release_clips(self) -> None:
        if self._clips:
            self._append(bundle(self._clips))
            self._clips = []

    def _append(self, message: Message) -> None:
        self._waiting.append(self._item(message))
        self._make_room()
        self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Give it so long to come to its end after `stop`. Says what was not sent."""
        self._thread.join(seconds)
        if unsent := len(self._waiting) + self._lost:
            self._say(f"was not sent {counted(unsent, 'report')}", warning=True)
        self._emit = silent  # the thread, should it still be at work

    def _item(self, message: Message) -> Item:
        self._told += 1
        return Item(message, self._clock(), self._told)

    def _concerns(self, event: Event) -> bool:
        if isinstance(event, Metric):
            return event.step % self._interval_steps == 0 or event.step == event.total_steps
        if isinstance(event, Notice):
            return not event.message.startswith(self._name)  # of its own trouble it would tell without end
        return not isinstance(event, Progress) or self._paced(event, self._clock())

    def _make_room(self) -> None:
        figures = [item for item in self._waiting if item.message.is_figure]
        if len(figures) > MOST_FIGURES:
            self._waiting.remove(figures[0])
        elif len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1

    def _work(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._post(item, timeout=TIMEOUT)
            except Refused as error:
                self._finish(item, lost=True)
                self._tell_refusal(item, error)
            except Failed as error:
                item.failures += 1
                self._go_away(error)
                if item.failures == (1 if item.message.is_figure else TRIES):
                    self._finish(item, lost=True)
                self._rest(AWAY_SECONDS, at_the_end=ENDING_SECONDS)
            except Away as error:
                self._go_away(error)
                if self._is_closing and not self._was_reached:
                    return  # a server that never was there is not waited for
                self._rest(AWAY_SECONDS, at_the_end=ENDING_SECONDS)
            except Busy as error:
                self._rest(error.seconds, at_the_end=error.seconds)
            else:
                self._finish(item)
                self._was_reached = True
                self._come_back()

    def _next(self) -> Item | None:
        """The message whose turn it is, which stays in the queue until it is sent; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None

    def _finish(self, item: Item, *, lost: bool = False) -> None:
        with self._changed:
            if self._waiting and self._waiting[0] is item:  # else room was made at its cost, and it is counted
                self._waiting.popleft()
                self._lost += lost

    def _rest(self, seconds: float, *, at_the_end: float) -> None:
        """Leave the server alone for so long, and for so long when the run ends."""
        with self._changed:
            if self._is_closing:
                self._changed.wait(at_the_end)
            else:
                self._changed.wait_for(lambda: self._is_closing, seconds)

    def _tell_refusal(self, item: Item, error: Refused) -> None:
        if not self._was_refused:
            self._was_refused = True
            self._say(f"{error}: {item.message.title!r} is lost, and so may others be; training goes on", warning=True)

    def _go_away(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            self._say(f"{error}; training goes on, and so do attempts to reach it", warning=True)

    def _come_back(self) -> None:
        if self._is_away:
            self._is_away = False
            self._say("takes reports again")

    def _say(self, what: str, *, warning: bool = False) -> None:
        self._emit(Notice(f"{self._name} {what}", "warning" if warning else "info"))


def open_webhooks(
    webhooks: Sequence[WebhookOptions],
    *,
    run_id: str,
    run_name: str,
    about: str,
    step: int,
    attempt: int,
    interval_steps: int,
    emit: Emit,
    clock: Callable[[], float] = time.time,
) -> list[Webhook]:
    """Greets each webhook; returns the listeners. Raises UserError, with every one that refuses."""
    first = started(run_name=run_name, about=about, step=step, attempt=attempt)
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
            webhook(ErrorHappened("another webhook refuses: this start ends", where="webhooks", fatal=True))
        close_webhooks(opened)
        raise UserError(*problems)
    return opened


def close_webhooks(webhooks: Sequence[Webhook]) -> None:
    """Send what is waiting, as far as that can be done soon, and end."""
    for webhook in webhooks:
        webhook.stop()
    end = time.monotonic() + CLOSING_SECONDS
    for webhook in webhooks:
        webhook.wait(max(0.0, end - time.monotonic()))


def _why(cause: Any) -> str:
    """Why there is no connection, as far as it is known."""
    reason = getattr(cause, "reason", cause)
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return ": no such host is known here"
    if isinstance(reason, urllib3.exceptions.NewConnectionError):
        return ": the connection is refused" if "refused" in str(reason).lower() else ""
    return ": there is no answer" if isinstance(reason, urllib3.exceptions.ConnectTimeoutError) else ""


def _asked_wait(answer: requests.Response) -> float:
    """The seconds that a server asks to be left alone, by the header that HTTP has for it."""
    try:
        return float(answer.headers["Retry-After"])
    except (KeyError, ValueError):
        return AWAY_SECONDS
