"""Servers for tests: an S3 service in a process of its own, a proxy before it that fails when told to, a webhook's."""

from __future__ import annotations

import email
import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from simplewan.data.backends import trying

HEADERS_OF_A_HOP = ("connection", "transfer-encoding", "keep-alive")


@contextmanager
def no_account() -> Iterator[pytest.MonkeyPatch]:
    """No keys, no profile and no metadata service: nothing reaches out; and nobody waits long for another try."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setattr(trying, "FIRST_WAIT_SECONDS", 0.005)
        yield patch


@contextmanager
def s3_server(*, page: int = 1000) -> Iterator[str]:
    """moto's server, a process of its own, which lists `page` objects at once; gives its address."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    environment = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(page)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "Running on" in line:
                address = line.split()[-1].strip("\x1b[0m")
                break
        else:
            raise AssertionError("".join(said))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield address
    finally:
        process.kill()
        process.wait()


@contextmanager
def web_server(handler: type[BaseHTTPRequestHandler], *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A web server in a thread; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Post:
    """One request that the server was sent."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def parts(self) -> dict[str, tuple[str | None, bytes]]:
        """Of a multipart body: name -> (file's name, content)."""
        whole = email.message_from_bytes(f"Content-Type: {self.headers['content-type']}\n\n".encode() + self.body)
        named = {part.get_param("name", header="content-disposition"): part for part in whole.get_payload()}
        return {name: (part.get_filename(), part.get_payload(decode=True)) for name, part in named.items()}

    @property
    def chat(self) -> dict[str, Any]:
        return json.loads(self.parts["payload_json"][1])


@dataclass
class Receiver:
    """A server that keeps what it takes; gives the `answers` in turn (a status, or one with headers), then `answer`.

    It holds each answer back while `holding`, or for a message that holds the text `slow_at`.
    """

    posts: list[Post] = field(default_factory=list)
    answers: list[int | tuple[int, dict[str, str]]] = field(default_factory=list)
    answer: Callable[[Post], int] = lambda _post: 204
    slow_at: str | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    holding: bool = False
    held: int = 0
    address: str = ""

    @property
    def kinds(self) -> list[str]:
        return [post.json["type"] for post in self.posts]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [post.json for post in self.posts if post.json["type"] == kind]


def _keeper(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            post = Post({name.lower(): value for name, value in self.headers.items()}, body)
            if receiver.holding or (receiver.slow_at is not None and receiver.slow_at.encode() in body):
                receiver.held += 1
                receiver.hold.wait(30)
            answer = receiver.answers.pop(0) if receiver.answers else receiver.answer(post)
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            if 200 <= status < 300:
                receiver.posts.append(post)
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


@contextmanager
def receiving(*, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A server of a webhook, as the `Receiver` that tells of it."""
    receiver = Receiver()
    with web_server(_keeper(receiver), tls=tls) as address:
        receiver.address = address
        try:
            yield receiver
        finally:
            receiver.hold.set()


def self_signed(folder: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that nobody else has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(key.private_bytes(*plain) + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@dataclass
class Fault:
    """How the next `times` requests that `method` and `wanted` describe fail.

    kind: "status" (answers `status` with the S3 error `code`), "drop" (closes the connection without an answer), "cut"
    (closes it after half of the body), "hang" (does not answer).
    """

    kind: str
    times: int = 1
    method: str = "GET"
    wanted: str = ""
    status: int = 503
    code: str = "SlowDown"


@dataclass
class Proxy:
    """Hands requests on to `target`, after the faults are used up; `seen` lists them."""

    target: str
    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def methods(self) -> list[str]:
        return [method for method, _, _ in self.seen]

    def fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and fault.wanted in path:
                fault.times -= 1
                return fault
        return None


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy in a thread before the server at `target`."""
    relay = Proxy(target)
    with web_server(_relay(relay)) as address:
        relay.address = address
        try:
            yield relay
        finally:
            relay.released.set()


def _relay(relay: Proxy) -> type[BaseHTTPRequestHandler]:
    class Relay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            relay.seen.append((self.command, self.path, self.headers.get("Range") or ""))
            fault = relay.fault(self.command, self.path)
            if fault is not None and fault.kind != "cut":
                self.fail(fault)
                return
            status, headers, content = self.ask(body)
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in HEADERS_OF_A_HOP:
                    self.send_header(name, value)
            self.end_headers()
            if fault is not None:
                content = content[: len(content) // 2]
                self.close_connection = True
            if self.command != "HEAD":
                self.wfile.write(content)

        def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(relay.target.removeprefix("http://"), timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HEADERS_OF_A_HOP}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), content

        def fail(self, fault: Fault) -> None:
            if fault.kind == "hang":
                relay.released.wait(30)
            if fault.kind in ("hang", "drop"):
                self.close_connection = True
                return
            content = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>".encode()
            self.send_response(fault.status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

        def log_message(self, *_arguments: object) -> None:
            pass

    return Relay
