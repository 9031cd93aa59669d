"""A bucket as a place of files: the same as a folder, read in ranges, and clear words when the server fails."""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import pickle
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Fault, Proxy, no_account, proxy, s3_server
from test_data_helpers import write_clip

from simplewan.data.backends import Entry, LocalBackend, trying
from simplewan.data.backends import s3 as s3_module
from simplewan.data.backends.ranges import BLOCK_BYTES, open_ranges
from simplewan.data.backends.s3 import S3Backend

SECRET = "wJalrXUtnFEMI-very-secret"
KEY = "AKIDEXAMPLE7"
PAGE = 100  # objects that the server lists at once
Make = Callable[..., S3Backend]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with no_account():
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server(page=PAGE) as address:
        yield address


@pytest.fixture
def relay(server: str) -> Iterator[Proxy]:
    with proxy(server) as made:
        yield made


@pytest.fixture(scope="module")
def connections() -> dict[str, dict[int, Any]]:
    """Those of the tests' backends by server and keys: each costs a tenth of a second."""
    return {}


@pytest.fixture
def make(server: str, request: pytest.FixtureRequest, connections: dict[str, dict[int, Any]]) -> Make:
    """Makes backends on a bucket of the test's own."""

    def made(prefix: str = "", **fields: Any) -> S3Backend:
        backend = replace(plain, prefix=prefix, **fields)
        shared = connections.setdefault(f"{backend.endpoint} {backend.access_key}", backend._open)
        object.__setattr__(backend, "_open", shared)
        return backend

    name = "b-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    plain = S3Backend(name, endpoint=server, region="us-east-1", access_key=KEY, secret_key=SECRET)
    made()._connection().call_s3("create_bucket", Bucket=name)
    return made


def fill(backend: S3Backend, **files: bytes) -> None:
    for name, content in files.items():
        backend.write(name.replace("__", "/").replace("_dot_", "."), content)


def clip(folder: Path, name: str = "a.mp4", frames: int = 20) -> Path:
    return write_clip(folder / name, frames=frames)


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def failure(do: Callable[[], object]) -> OSError:
    """What `do` raises: an OSError with words for people, and no secret anywhere."""
    with pytest.raises(OSError) as caught:
        do()
    error = caught.value
    assert error.errno and error.strerror and error.filename
    assert SECRET not in f"{error!r} {error.__cause__!r}" and KEY not in str(error)
    return error


def test_a_bucket_lists_what_a_folder_lists(make: Make, tmp_path: Path) -> None:
    backend, folder = make("clips/"), LocalBackend(tmp_path / "clips")
    names = ("a.mp4", 'b b\'s "c" + & ?.mp4', "deep/er/片段.mp4", "deep/er.txt", "A.mp4", "a.mp4.txt", "empty.txt")
    hidden = (".hidden.mp4", ".git/a.mp4", "c.mp4.part", "d.tmp", "deep/.x/y.mp4", "e.mp4~")
    for number, name in enumerate((*names, *hidden)):
        backend.write(name, b"x" * number)
        folder.write(name, b"x" * number)
    make().write("clips2/other.mp4", b"beside the prefix")
    backend._call("put_object", "", Key="clips/deep/", Body=b"")  # how consoles mark a folder
    found, wanted = list(backend.list()), list(folder.list())
    assert [entry[:2] for entry in found] == [entry[:2] for entry in wanted]
    assert sorted(entry.path for entry in found) == sorted(names)
    assert all(backend.stat(entry.path) == entry for entry in found)
    assert all(backend.read(entry.path) == folder.read(entry.path) for entry in found)
    assert list(make("nothing/there").list()) == []
    assert len(list(make().list())) == len(names) + 1
    assert list(make("deep").list()) == []
    assert backend.local_path("a.mp4") is None
    assert backend.root == f"{backend.endpoint}/{backend.bucket}/clips"
    assert S3Backend("bucket", "a/b/").root == "s3://bucket/a/b"
    assert SECRET not in repr(backend) and KEY not in repr(backend)


def test_objects_are_listed_in_pages_without_a_look_at_each(make: Make, relay: Proxy) -> None:
    backend = make("many")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: backend.write(f"{number:05}.txt", b"caption"), range(250)))
    found = list(replace(backend, endpoint=relay.address).list())
    assert [entry.path for entry in found] == [f"{number:05}.txt" for number in range(250)]
    assert [(method, path.split("?")[0]) for method, path, _ in relay.seen] == [("GET", f"/{backend.bucket}")] * 3


def test_a_stamp_changes_with_the_bytes_and_names_them(make: Make) -> None:
    backend, other = make("a"), make("b")
    backend.write("a.mp4", b"one")
    first = backend.stat("a.mp4")
    other.write("z.mp4", b"one")
    backend.write("a.mp4", b"two")
    second = backend.stat("a.mp4")
    assert first.size == second.size and first.stamp != second.stamp
    assert backend.identity(first) == other.identity(other.stat("z.mp4")) != backend.identity(second)
    odd = Entry("a.mp4", 3, '"1700000000-3"')  # a server that names versions by time and size
    assert backend.identity(odd) != backend.identity(odd._replace(path="b.mp4"))
    assert backend.identity(Entry("a.mp4", 3, '""')) is None


def test_a_clip_is_probed_by_reading_parts_of_it(make: Make, relay: Proxy, tmp_path: Path) -> None:
    path = clip(tmp_path)
    moov_last = path.read_bytes()
    padded = moov_last + (30 << 20).to_bytes(4, "big") + b"free" + bytes((30 << 20) - 8)
    backend = make(endpoint=relay.address)
    backend.write("a.mp4", padded)
    relay.seen.clear()
    with backend.open("a.mp4") as stream, av.open(stream) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20
    ranges = [span for _, _, span in relay.seen]
    assert relay.methods() == ["GET"] * len(ranges) and len(ranges) == len(set(ranges)) <= 4
    fetched = sum(int(end) - int(start) + 1 for start, _, end in (span[6:].partition("-") for span in ranges))
    assert fetched <= 4 * BLOCK_BYTES < len(padded) / 4


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 5000),
    moves=st.lists(st.tuples(st.sampled_from(["seek", "end", "read", "all"]), st.integers(-100, 6000)), max_size=25),
)
def test_a_stream_of_ranges_is_the_file(size: int, moves: list[tuple[str, int]]) -> None:
    content = random.Random(size).randbytes(size)
    fetched: list[tuple[int, int]] = []

    def fetch(start: int, end: int) -> bytes:
        assert 0 <= start < end <= size
        fetched.append((start, end))
        return content[start:end]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simplewan.data.backends.ranges.BLOCK_BYTES", 64)
        patch.setattr("simplewan.data.backends.ranges.BUFFER_BYTES", 16)
        stream, wanted = open_ranges(fetch, size, beginning=content[:64]), io.BytesIO(content)
        for move, number in moves:
            if move == "seek":
                assert stream.seek(abs(number)) == wanted.seek(abs(number))
            elif move == "end":
                assert stream.seek(-min(abs(number), size), 2) == wanted.seek(-min(abs(number), size), 2)
            else:
                length = -1 if move == "all" else abs(number)
                assert stream.read(length) == wanted.read(length)
            assert stream.tell() == wanted.tell()


def test_reading_straight_on_asks_for_more_at_once() -> None:
    size = 40 * BLOCK_BYTES + 5
    fetched: list[int] = []

    def fetch(start: int, end: int) -> bytes:
        fetched.append(end - start)
        return bytes(end - start)

    stream = open_ranges(fetch, size)
    assert sum(len(block) for block in iter(lambda: stream.read(BLOCK_BYTES // 3), b"")) == size
    assert [length // BLOCK_BYTES for length in fetched] == [1, 2, 4, 8, 8, 8, 8, 1]
    stream.seek(0)
    stream.read(10)
    assert fetched[8:] == [BLOCK_BYTES]


def test_large_files_go_up_in_parts_and_come_back_whole(
    make: Make, relay: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_module, "ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    content = random.Random(1).randbytes((12 << 20) + 17)
    path = tmp_path / "large.bin"
    path.write_bytes(content)
    backend = make("cache", endpoint=relay.address)
    relay.faults += [Fault("status", method="PUT", wanted="partNumber=2"), Fault("drop", method="PUT", wanted="=3")]
    for source in (path, content):
        backend.write("x/large.bin", source)
        assert backend.read("x/large.bin") == content
        with backend.open("x/large.bin") as stream:
            assert stream.read() == content
    entry = backend.stat("x/large.bin")
    assert str(entry.stamp).endswith('-3"') and entry.size == len(content) and backend.identity(entry)
    assert list(backend.list()) == [entry]


def test_an_upload_that_fails_leaves_what_was_there(make: Make, relay: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(s3_module, "PART_BYTES", 5 << 20)
    backend = make("cache", endpoint=relay.address)
    backend.write("a.bin", b"old")
    relay.faults.append(
        Fault("status", times=99, method="PUT", wanted="partNumber=2", status=500, code="InternalError")
    )
    assert "InternalError again and again" in failure(lambda: backend.write("a.bin", bytes(12 << 20))).strerror
    relay.faults.clear()
    assert backend.read("a.bin") == b"old"
    uploads = backend._call("list_multipart_uploads", "")
    assert not uploads.get("Uploads")


def test_deleting_stays_below_the_prefix(make: Make) -> None:
    backend = make("cache")
    make().write("data/a.mp4", b"precious")
    backend.write("a.bin", b"1")
    backend.write("sub/b.bin", b"2")
    backend.delete("a.bin")
    backend.delete("a.bin")
    backend.delete("data/a.mp4")
    for path in ("../data/a.mp4", "", "sub/../../data/a.mp4", "/data/a.mp4", "sub//b.bin"):
        with pytest.raises(ValueError, match="is not a path below"):
            backend.delete(path)
        with pytest.raises(ValueError, match="is not a path below"):
            backend.write(path, b"x")
    assert [entry.path for entry in make().list()] == ["cache/sub/b.bin", "data/a.mp4"]


@pytest.mark.parametrize("kind", ["status", "drop", "cut"])
def test_what_fails_in_passing_is_tried_again(make: Make, relay: Proxy, kind: str) -> None:
    content = random.Random(2).randbytes(3 * BLOCK_BYTES)
    plain = make()
    plain.write("a.mp4", content)
    backend = replace(plain, endpoint=relay.address)
    faults = [Fault(kind, times=2), Fault("status", method="HEAD", status=500), Fault("drop", method="PUT")]
    relay.faults += faults
    assert [entry.path for entry in backend.list()] == ["a.mp4"]
    faults[0].times = 3
    assert backend.read("a.mp4") == content
    faults[0].times = 1
    with backend.open("a.mp4") as stream:
        stream.seek(2 * BLOCK_BYTES)
        faults[0].times = 4
        assert stream.read() == content[2 * BLOCK_BYTES :]
    assert backend.stat("a.mp4").size == len(content)
    backend.write("b.mp4", b"new")
    assert plain.read("b.mp4") == b"new"
    assert not any(fault.times for fault in faults)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("status", times=99), "answered SlowDown again and again"),
        (Fault("status", times=99, status=500, code="InternalError"), "answered InternalError again and again"),
        (Fault("status", times=99, status=502, code="<html>"), "again and again"),
        (Fault("drop", times=99), "broke again and again"),
        (Fault("cut", times=99), "broke again and again"),
        (Fault("hang", times=99), "did not answer in time"),
    ],
)
def test_a_server_that_stays_down_is_named(
    make: Make, relay: Proxy, fault: Fault, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "READ_SECONDS", 0.1)
    backend = make(endpoint=relay.address)
    backend.write("a.mp4", bytes(1000))
    relay.faults.append(fault)
    relay.seen.clear()
    began = time.monotonic()
    error = failure(lambda: backend.read("a.mp4"))
    assert time.monotonic() - began < 10
    assert words in error.strerror and relay.address in error.strerror and backend.bucket in error.strerror
    assert not isinstance(error, (FileNotFoundError, PermissionError))
    # Where there was no answer at all, aiohttp asks once more by itself.
    assert len(relay.seen) in (trying.ATTEMPTS, 2 * trying.ATTEMPTS)


REFUSALS = [
    (404, "NoSuchBucket", FileNotFoundError, "check aws_bucket_name"),
    (403, "InvalidAccessKeyId", PermissionError, "check aws_access_key_id"),
    (403, "SignatureDoesNotMatch", PermissionError, "check aws_secret_access_key"),
    (403, "AccessDenied", PermissionError, "give no access"),
    (403, "RequestTimeTooSkewed", PermissionError, "clock"),
    (400, "ExpiredToken", PermissionError, "sign in again"),
    (400, "AuthorizationHeaderMalformed", OSError, "aws_region_name"),
    (418, "Teapot", OSError, "refused with Teapot"),
]


@pytest.mark.parametrize(("status", "code", "kind", "words"), REFUSALS, ids=[code for _, code, _, _ in REFUSALS])
def test_a_refusal_is_said_once_with_what_to_do(
    make: Make, relay: Proxy, status: int, code: str, kind: type[OSError], words: str
) -> None:
    backend = make(endpoint=relay.address)
    relay.faults.append(Fault("status", times=99, status=status, code=code))
    relay.faults.append(
        Fault("status", times=99, method="HEAD", status=status, code=code)
    )  # botocore looks for regions
    error = failure(lambda: list(backend.list()))
    assert isinstance(error, kind) and words in error.strerror, error
    assert len([path for method, path, _ in relay.seen if method == "GET"]) == 1


def test_what_is_not_there(make: Make, server: str) -> None:
    backend = make("clips")
    for look in (backend.stat, backend.read, backend.open):
        error = failure(lambda look=look: look("gone.mp4"))
        assert isinstance(error, FileNotFoundError) and error.errno == errno.ENOENT
        assert error.filename == f"{backend.root}/gone.mp4" and backend.bucket in error.strerror
    error = failure(
        lambda: list(S3Backend("no-such-bucket", endpoint=server, access_key=KEY, secret_key=SECRET).list())
    )
    assert isinstance(error, FileNotFoundError)
    assert f'there is no bucket "no-such-bucket" at {server}' in error.strerror
    error = failure(lambda: list(replace(backend, bucket="Not A Bucket!").list()))
    assert "check aws_bucket_name" in error.strerror


def test_a_server_that_is_not_there(make: Make) -> None:
    backend = make(endpoint=closed_port())
    error = failure(lambda: list(backend.list()))
    assert "cannot be reached" in error.strerror and str(backend.endpoint) in error.strerror
    assert "cannot be reached" in failure(lambda: list(make(endpoint="http://no-such-host.invalid").list())).strerror
    assert "certificate" in failure(lambda: list(make(endpoint="https" + str(make().endpoint)[4:]).list())).strerror
    for address in ("localhost:9000", "s3.example.com", "ftp://x", "https://"):
        with pytest.raises(ValueError, match="is no address of a server"):
            S3Backend("bucket", endpoint=address)
    named = make(endpoint="http://user:hunter2@127.0.0.1:9")
    assert "hunter2" not in named.root


def test_keys_come_from_the_usual_chain(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = make(access_key=None, secret_key=None)
    error = failure(lambda: list(backend.list()))
    assert isinstance(error, PermissionError) and "AWS_ACCESS_KEY_ID" in error.strerror
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert "AWS_PROFILE" in failure(lambda: list(replace(backend).list())).strerror
    (tmp_path / "keys").write_text(f"[work]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    assert list(replace(backend).list()) == []
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert list(replace(backend).list()) == []


def test_wrong_keys_of_a_server_that_looks_at_them(server: str, make: Make) -> None:
    def check_keys_from_call(number: str) -> None:
        request = urllib.request.Request(
            f"{server}/moto-api/reset-auth", number.encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request).close()

    backend = make()
    check_keys_from_call("0")
    try:
        error = failure(lambda: list(backend.list()))
    finally:
        check_keys_from_call("inf")
    assert isinstance(error, PermissionError) and "check aws_access_key_id" in error.strerror


def test_a_file_that_changes_while_it_is_read_is_noticed(make: Make) -> None:
    backend = make()
    backend.write("a.mp4", bytes(3 * BLOCK_BYTES))
    with backend.open("a.mp4") as stream:
        stream.read(10)
        backend.write("a.mp4", bytes(3 * BLOCK_BYTES - 1))
        stream.seek(2 * BLOCK_BYTES)
        assert "changed in the bucket" in failure(lambda: stream.read(10)).strerror
    backend.write("empty", b"")
    assert backend.open("empty").read() == backend.read("empty") == b""


def test_threads_share_it(make: Make) -> None:
    backend = make()
    contents = {f"{number}.bin": random.Random(number).randbytes(40_000) for number in range(24)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: backend.write(name, contents[name]), contents))
        assert list(pool.map(lambda name: backend.open(name).read(), contents)) == list(contents.values())


def read_in_child(backend: S3Backend, name: str, answer: Any) -> None:
    answer.send(backend.read(name))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_share_it(make: Make, method: str) -> None:
    backend = make()
    backend.write("a.txt", b"caption")
    assert pickle.loads(pickle.dumps(backend)) == backend
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=read_in_child, args=(backend, "a.txt", theirs))  # a fork has our connections, too
    child.start()
    theirs.close()
    try:
        assert ours.recv() == b"caption"
    finally:
        child.kill()
        child.join()
    assert backend.read("a.txt") == b"caption"


def test_nothing_is_loaded_or_asked_before_it_is_used() -> None:
    code = """
import socket, sys
def refuse(*arguments): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from simplewan.data.backends.s3 import S3Backend
backend = S3Backend("bucket", "prefix", endpoint="https://s3.example.com")
assert backend.root and backend.local_path("a") is None
print([name for name in ("s3fs", "botocore", "aiohttp", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
