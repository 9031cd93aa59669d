"""Webhooks deliver what a run tells to a real server, in order, and never hold the run up."""

from __future__ import annotations

import base64
import io
import json
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import av
import certifi
import numpy as np
import pytest
from PIL import Image
from serving import Receiver, receiving, self_signed, web_server

from simplewan.data.media import write_mp4
from simplewan.errors import UserError
from simplewan.events import (
    CheckpointSaved,
    Emitter,
    ErrorHappened,
    EvalLoss,
    Event,
    Metric,
    Notice,
    PictureDrawn,
    Progress,
    RunSummary,
    Stage,
    ValidationRendered,
    as_record,
    silent,
)
from simplewan.options.webhooks import WebhookOptions
from simplewan.reporting import messages, webhooks
from simplewan.reporting.webhooks import Webhook, close_webhooks, open_webhooks

TIME = 1_700_000_000.25


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@contextmanager
def opened(
    address: str, said: list[Event] | None = None, *, kind: str = "raw", interval: int = 1, **options: Any
) -> Iterator[Webhook]:
    """A webhook that is closed at the end; what it says is put into `said`."""
    key = {"raw": "callback_url", "discord": "webhook_url"}[kind]
    [webhook] = open_webhooks(
        [WebhookOptions(webhook_type=kind, **{key: f"{address}/api/very-secret"}, **options)],
        run_id="abc123",
        run_name="mini",
        about="t2v-mini, lora",
        step=0,
        attempt=1,
        interval_steps=interval,
        emit=(said if said is not None else []).append,
        clock=lambda: TIME,
    )
    try:
        yield webhook
    finally:
        close_webhooks([webhook])


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def metric(step: int, *, total: int = 40) -> Metric:
    return Metric(step, total, 1, "high", 0.5 / step, 5e-3, 0.25, {"grad_norm": 0.5})


def clip(folder: Path, *, prompt: str = "a red ring", note: str | None = "single expert") -> ValidationRendered:
    frames = np.full((5, 32, 48, 3), 90, np.uint8)
    write_mp4(folder / "clip.mp4", frames, 16)
    Image.fromarray(frames[0]).save(folder / "clip.png")
    return ValidationRendered(30, "ring", prompt, str(folder / "clip.mp4"), str(folder / "clip.png"), 1.5, note)


def test_every_event_arrives_as_the_object_of_its_type(receiver: Receiver, tmp_path: Path) -> None:
    picture = PictureDrawn(0, "timesteps", clip(tmp_path).sheet)
    events = [
        Stage("latents", "Encoding latents"),
        Progress("latents", "Encoding latents", 3, 12, "clips"),
        Stage("latents", "Encoding latents", "failed", "disk full"),
        metric(10),
        EvalLoss(10, "high", 0.2, {"0-250": 0.1}),
        CheckpointSaved(10, "output/checkpoint-10"),
        CheckpointSaved(40, "output/lora.safetensors", is_final=True),
        picture,
        clip(tmp_path),
        Notice("two clips were left out", "warning"),
        ErrorHappened("no memory", "validation of step 30"),
        ErrorHappened("no memory", "training", fatal=True),
        RunSummary("finished", 40, 40, 12.5),
    ]
    with opened(receiver.address, message_prefix="[mini]", auth_token="key") as webhook:
        for event in events:
            webhook(event)
    done = {"current": 3, "total": 12, "percent": 25.0}
    first, *posts = [post.json for post in receiver.posts]
    assert first["type"] == "training.status" and first["message"] == "[mini] mini (t2v-mini, lora) begins"
    assert [post["record"] for post in posts] == [json.loads(json.dumps(as_record(event))) for event in events]
    assert {post.headers["x-api-key"] for post in receiver.posts} == {"key"}
    for post in posts:
        assert post["job_id"] == "abc123" and post["timestamp"] == "2023-11-14T22:13:20.250+00:00"
        assert post["message"].startswith("[mini] ") and post["title"]
    assert [(post["type"], post["severity"]) for post in posts] == [
        ("lifecycle.stage", "info"),
        ("lifecycle.stage", "info"),
        ("lifecycle.stage", "warning"),
        ("training.progress", "info"),
        ("training.metric", "info"),
        ("training.checkpoint", "info"),
        ("training.checkpoint", "info"),
        ("notification", "info"),
        ("validation.video", "info"),
        ("notification", "warning"),
        ("error", "error"),
        ("error", "critical"),
        ("training.summary", "info"),
    ]
    assert [post["sequence"] for post in (first, *posts)] == list(range(1, len(posts) + 2))
    assert posts[1]["stage"]["progress"] == posts[1]["progress"]
    assert posts[1]["progress"] == {"label": "Encoding latents", "unit": "clips", **done}
    assert posts[2]["stage"] == {"key": "latents", "label": "Encoding latents", "status": "failed"}
    assert posts[3]["progress"]["percent"] == 25.0
    assert posts[3]["progress"]["metrics"]["grad_norm"] == 0.5 and posts[3]["progress"]["metrics"]["lr"] == 5e-3
    assert posts[5]["checkpoint"] == {
        "path": "output/checkpoint-10",
        "label": "checkpoint-10",
        "is_final": False,
    }
    assert base64.b64decode(posts[7]["images"][0]) == Path(picture.path).read_bytes()


def test_a_validation_clip_arrives_whole_and_says_single_expert(receiver: Receiver, tmp_path: Path) -> None:
    event = clip(tmp_path)
    with opened(receiver.address) as webhook:
        webhook(event)
    post = receiver.posts[1].json
    assert "single expert" in post["message"] and "single expert" in post["title"]
    assert post["record"]["note"] == "single expert"
    [video], [sheet] = post["videos"], post["images"]
    assert video["mime_type"] == "video/mp4" and video["src"].startswith("data:video/mp4;base64,")
    with av.open(io.BytesIO(base64.b64decode(video["src"].partition(",")[2]))) as media:
        assert sum(1 for _ in media.decode(video=0)) == 5
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as picture:
        assert picture.size == (48, 32)


def test_a_chat_gets_words_and_files_but_no_figures(receiver: Receiver, tmp_path: Path) -> None:
    event = clip(tmp_path, prompt="@everyone " + "long " * 600)
    with opened(receiver.address, kind="discord", message_prefix="mini", auth_token="not for a chat") as webhook:
        figures = (metric(1), Progress("latents", "Encoding", 1, 2), Stage("latents", "Encoding"))
        noise = (CheckpointSaved(1, "checkpoint-1"), PictureDrawn(0, "timesteps", event.sheet), Notice("so"))
        for told in (*figures, *noise, event, Notice("look", "warning")):
            webhook(told)
    first, rendered, notice = receiver.posts
    assert first.chat["content"] == "mini: mini (t2v-mini, lora) begins"
    assert notice.chat["content"] == "mini: **warning** look" and len(notice.parts) == 1
    text = rendered.chat["content"]
    assert text.startswith("mini: step 30, ring (single expert): @everyone long") and len(text) == 2000
    assert rendered.chat["allowed_mentions"] == {"parse": []}
    files = [part for name, part in rendered.parts.items() if name.startswith("files[")]
    assert files == [(Path(path).name, Path(path).read_bytes()) for path in (event.sheet, event.video)]
    assert all("x-api-key" not in post.headers for post in receiver.posts)


def test_the_clips_of_a_validation_are_one_message_in_a_chat(receiver: Receiver, tmp_path: Path) -> None:
    event = clip(tmp_path)
    with opened(receiver.address, kind="discord") as webhook:
        for number in range(7):
            files = {}
            for kind, path in (("video", event.video), ("sheet", event.sheet)):
                files[kind] = str(Path(path).with_stem(f"ring{number}"))
                shutil.copy(path, files[kind])
            webhook(replace(event, name=f"ring{number}", **files))
        webhook(Progress("validation", "ring", 9, 9, "steps"))
        webhook(Stage("validation", "Validation of step 30", "completed"))
        webhook(replace(event, step=60))
        webhook(replace(event, step=90))
    said = [post.chat["content"].splitlines() for post in receiver.posts[1:]]
    assert [lines[0] for lines in said[:2]] == ["Validation of step 30 (single expert)"] * 2
    assert said[0][1:] == [f"- ring{number} (single expert): a red ring" for number in range(5)]
    assert len(said[1]) == 3 and [len(post.parts) for post in receiver.posts[1:]] == [11, 5, 3, 3]
    assert [lines[0].split(",")[0] for lines in said[2:]] == ["step 60", "step 90"]


@pytest.mark.parametrize("kind", ["raw", "discord"])
def test_files_that_are_too_large_are_named(receiver: Receiver, tmp_path: Path, kind: str) -> None:
    event = clip(tmp_path)
    receiver.answers = [204, 413]
    with opened(receiver.address, kind=kind) as webhook:
        webhook(event)
    post = receiver.posts[1]
    told = post.json["message"] if kind == "raw" else post.chat["content"]
    assert "not sent" in told and event.video in told and event.sheet in told
    assert ("videos" not in post.json) if kind == "raw" else (len(post.parts) == 1)


def test_a_file_over_the_limit_stays_here(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event = clip(tmp_path)
    sizes = sorted(Path(path).stat().st_size for path in (event.sheet, event.video))
    monkeypatch.setattr(messages, "LARGEST_FILE_BYTES", sizes[0])
    with opened(receiver.address) as webhook:
        webhook(event)
    post = receiver.posts[1].json
    assert len(post.get("videos", [])) + len(post.get("images", [])) == 1 and "not sent" in post["message"]


def test_only_what_is_severe_enough_and_due_is_sent(receiver: Receiver) -> None:
    with opened(receiver.address, log_level="warning") as webhook:
        for event in (Stage("a", "A"), Notice("so"), Notice("oh", "warning"), ErrorHappened("no", "here")):
            webhook(event)
    assert receiver.kinds[1:] == ["notification", "error"]
    receiver.posts.clear()
    with opened(receiver.address, interval=4) as webhook:
        for step in range(1, 11):
            webhook(metric(step, total=10))
    assert [post.json["progress"]["current"] for post in receiver.posts[1:]] == [4, 8, 10]


def test_progress_is_passed_on_now_and_then(receiver: Receiver) -> None:
    with opened(receiver.address) as webhook:
        for count in range(1, 101):
            webhook(Progress("latents", "Encoding", count, 100))
    assert [post.json["progress"]["current"] for post in receiver.posts[1:]] == [1, 100]


def test_a_server_that_comes_back_is_sent_all_but_stale_figures(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AWAY_SECONDS", 0.05)
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        receiver.answers = [503] * 4
        for step in range(1, 101):
            webhook(metric(step, total=100))
            if step % 50 == 0:
                webhook(CheckpointSaved(step, f"checkpoint-{step}"))
        wait_for(lambda: "training.checkpoint" in receiver.kinds and len(said) == 2)
        wait_for(lambda: receiver.kinds[-1] == "training.checkpoint")
    steps = [post.json["record"]["step"] for post in receiver.posts[1:]]
    assert steps == sorted(steps) and len(steps) <= webhooks.MOST_FIGURES + 3
    assert {50, 100} == {post.json["record"]["step"] for post in receiver.posts if "checkpoint" in post.json}
    assert 99 in steps and 2 not in steps[1:]
    host = receiver.address
    assert [event.message for event in said if isinstance(event, Notice)] == [
        f"webhook {host} answered 503 Service Unavailable; training goes on, and so do attempts to reach it",
        f"webhook {host} takes reports again",
    ]


def test_a_server_that_asks_for_patience_gets_it_at_the_end_too(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WAITS", (0.05, 1.0))
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        receiver.answers = [(429, {"Retry-After": "0.1"})] * 2
        webhook(RunSummary("finished", 1, 1, 1.0))
    assert receiver.kinds == ["training.status", "training.summary"] and said == []


def test_a_slow_server_holds_nobody_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "CLOSING_SECONDS", 0.2)
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        receiver.holding = True
        began = time.monotonic()
        for number in range(webhooks.MOST_WAITING + 20):
            webhook(Notice(f"notice {number}"))
        assert time.monotonic() - began < 1
    assert time.monotonic() - began < 3
    [notice] = [event.message for event in said if isinstance(event, Notice)]
    assert notice == f"webhook {receiver.address} was not sent {webhooks.MOST_WAITING + 20} reports"


@pytest.mark.parametrize("answer", [(307, {"Location": "/elsewhere"}), 401, 404], ids=str)
def test_an_address_that_refuses_is_a_mistake_told_at_once(receiver: Receiver, answer: Any) -> None:
    receiver.answers = [answer]
    status = answer if isinstance(answer, int) else answer[0]
    with pytest.raises(UserError, match=f"answered {status}") as caught, opened(receiver.address):
        pass
    assert "leave webhook_config out" in str(caught.value) and "secret" not in str(caught.value)
    assert receiver.posts == []


BEYOND_HTTP = [
    ("http://a..b", {}),
    ("http://exa mple.com", {}),
    ("{}", {"auth_token": "abc\n"}),
    ("{}", {"auth_token": "пароль"}),
]


@pytest.mark.parametrize(("place", "more"), BEYOND_HTTP, ids=str)
def test_what_http_does_not_allow_is_told_at_once(receiver: Receiver, place: str, more: dict[str, str]) -> None:
    address = place.format(receiver.address)
    with pytest.raises(UserError, match="none that HTTP allows") as caught, opened(address, **more):
        pass
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)


def test_refusals_later_on_are_announced_once(receiver: Receiver) -> None:
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        receiver.answers = [404, 204, 404, 404]
        for number in range(5):
            webhook(Notice(f"notice {number}"))
    texts = [event.message for event in said if isinstance(event, Notice)]
    assert len(texts) == 2 and "answered 404" in texts[0] and texts[1].endswith("was not sent 3 reports")
    assert len(receiver.posts) == 3


def test_its_own_trouble_is_not_told_to_itself_but_to_others(receiver: Receiver) -> None:
    with receiving() as other:
        listeners: list[Webhook] = []
        emit = Emitter()
        emit.add(lambda event: [listener(event) for listener in listeners] and None)
        hooks = [WebhookOptions(callback_url=f"{each.address}/x") for each in (receiver, other)]
        names = {"run_id": "a", "run_name": "b", "about": "c", "step": 0, "attempt": 1, "interval_steps": 1}
        listeners += open_webhooks(hooks, emit=emit, **names)  # type: ignore[arg-type]
        receiver.answers = [422] * 50
        emit(Notice("look"))
        wait_for(lambda: len(other.posts) == 3)
        close_webhooks(listeners)
    assert len(receiver.answers) == 49  # it was told of nothing else
    assert "answered 422" in other.posts[2].json["message"]


def test_what_the_server_fails_at_does_not_keep_back_the_rest(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AWAY_SECONDS", 0.01)
    monkeypatch.setattr(webhooks, "ENDING_SECONDS", 0.01)
    receiver.answer = lambda post: 500 if "metrics" in post.json.get("progress", {}) else 204
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        for event in (metric(1), CheckpointSaved(1, "checkpoint-1"), metric(2), RunSummary("finished", 2, 2, 1.0)):
            webhook(event)
    assert receiver.kinds == ["training.status", "training.checkpoint", "training.summary"]
    receiver.answer = lambda post: 500 if "videos" in post.json else 204
    receiver.posts.clear()
    with opened(receiver.address) as webhook:
        webhook(clip(tmp_path))
    assert "not sent" in receiver.posts[1].json["message"]


def test_an_answer_that_does_not_come_is_not_waited_for_without_end(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "AWAY_SECONDS", 0.01)
    monkeypatch.setattr(webhooks, "TIMEOUT", (5.0, 0.1))
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        receiver.slow_at = "first"
        webhook(Notice("first"))
        webhook(Notice("second"))
        wait_for(lambda: receiver.posts[-1].json["message"] == "second")
        receiver.hold.set()
    assert "does not answer in time" in said[0].message  # type: ignore[attr-defined]


def test_a_file_that_vanishes_costs_nothing_else(receiver: Receiver, tmp_path: Path) -> None:
    event = clip(tmp_path)
    Path(event.video).unlink()
    with opened(receiver.address) as webhook:
        webhook(event)
        webhook(Notice("still here"))
    rendered, notice = receiver.posts[1:]
    assert rendered.json["images"] and event.video in rendered.json["message"]
    assert notice.json["message"] == "still here"


def test_when_one_refuses_the_others_are_told_that_it_ends(receiver: Receiver) -> None:
    with receiving() as other:
        other.answers = [404]
        hooks = [WebhookOptions(callback_url=f"{each.address}/x") for each in (receiver, other)]
        names = {"run_id": "a", "run_name": "b", "about": "c", "step": 0, "attempt": 1, "interval_steps": 1}
        with pytest.raises(UserError, match="answered 404"):
            open_webhooks(hooks, emit=silent, **names)  # type: ignore[arg-type]
    assert receiver.kinds == ["training.status", "error"]


def test_all_are_closed_in_the_time_of_one(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "CLOSING_SECONDS", 0.3)
    hooks = [WebhookOptions(callback_url=f"{receiver.address}/{n}") for n in range(5)]
    names = {"run_id": "a", "run_name": "b", "about": "c", "step": 0, "attempt": 1, "interval_steps": 1}
    listeners = open_webhooks(hooks, emit=silent, **names)  # type: ignore[arg-type]
    receiver.holding = True
    for listener in listeners:
        listener(Notice("hold"))
    began = time.monotonic()
    close_webhooks(listeners)
    assert time.monotonic() - began < 1


def test_a_server_that_is_not_there_stops_nothing_and_betrays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Event] = []
    with web_server(BaseHTTPRequestHandler) as address:
        pass
    began = time.monotonic()
    with opened(address, said) as webhook:
        webhook(Notice("here"))
    assert time.monotonic() - began < 5
    texts = [event.message for event in said if isinstance(event, Notice)]
    assert (
        "cannot be reached: the connection is refused; training goes on" in texts[0]
        and "was not sent 2 reports" in texts[1]
    )
    assert "secret" not in " ".join(texts)


def test_a_certificate_of_its_own_is_taken_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())  # which must not overrule the option
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    said: list[Event] = []
    with receiving(tls=context) as receiver:
        with opened(receiver.address, said):
            pass
        assert "certificate" in str(said[0]) and receiver.posts == []
        with opened(receiver.address, ssl_no_verify=True):
            pass
    assert receiver.kinds == ["training.status"]


def test_the_documentation_lists_every_type() -> None:
    page = (Path(__file__).parents[1] / "docs" / "webhooks.md").read_text()
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and "." in line.split("`")[1]}
    source = Path(messages.__file__).read_text()
    sent = {text for text in source.split('"') if text.startswith(("training.", "lifecycle.", "validation."))}
    assert listed == sent and "| `notification` |" in page and "| `error` |" in page


def test_room_that_is_made_meanwhile_costs_the_oldest_alone(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MOST_WAITING", 2)
    with opened(receiver.address) as webhook:
        receiver.holding = True
        webhook(Notice("a"))
        wait_for(lambda: receiver.held)
        for text in "bcd":
            webhook(Notice(text))
        receiver.hold.set()
    assert [post.json["message"] for post in receiver.posts[1:]] == ["a", "c", "d"]


def test_a_host_that_nobody_knows_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Event] = []
    with opened("http://localhots.invalid", said):
        pass
    assert "cannot be reached: no such host is known here" in said[0].message  # type: ignore[attr-defined]


def test_a_server_that_is_back_before_the_end_is_sent_the_rest(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ENDING_SECONDS", 0.05)
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        receiver.answers = [503] * 4
        webhook(RunSummary("finished", 1, 1, 1.0))
    assert receiver.kinds[-1] == "training.summary"
    assert [event.message.split(" ", 2)[2] for event in said if isinstance(event, Notice)][-1] == "takes reports again"


def test_what_is_told_after_the_end_is_not_counted_as_lost(receiver: Receiver) -> None:
    said: list[Event] = []
    with opened(receiver.address, said) as webhook:
        webhook.stop()
        webhook._thread.join(10)
        webhook(Notice("another webhook was not sent 3 reports", "warning"))
    assert said == []
