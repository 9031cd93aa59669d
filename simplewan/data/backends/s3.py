"""A bucket of an S3 service, or what lies below a prefix in it: for data sets, and for caches.

Imports this package, and s3fs when it is first used; making a backend touches no network. Objects are read in ranges.
The ETag names an object's bytes, so that nothing is downloaded for a digest. That of a large file, which was uploaded
in parts, is no MD5, but changes with the bytes just the same.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from simplewan.data.backends import s3_errors
from simplewan.data.backends.base import Entry, Refused
from simplewan.data.backends.local import is_ignored_path
from simplewan.data.backends.ranges import BLOCK_BYTES, open_ranges
from simplewan.data.backends.trying import attempt

CONNECT_SECONDS = 10
READ_SECONDS = 60
ONE_PUT_BYTES = 64 << 20  # larger files are uploaded in parts; never below twice 5 MiB, the least that S3 takes
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4
# MD5, and MD5 of the parts' MD5: these name the bytes wherever they are. Other servers' ETags may name a version.
_NAMES_BYTES = re.compile(r'"[0-9a-f]{32}(-\d+)?"')


@dataclass(frozen=True)
class S3Backend:
    """What lies below `prefix`, as a folder, in `bucket`. Without keys, AWS' usual chain finds some.

    Raises ValueError when `endpoint` is no address.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    connections: int = 128
    _open: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # one for each process

    def __post_init__(self) -> None:
        if self.endpoint is not None and not re.fullmatch(r"https?://[^/\s]+(/.*)?", self.endpoint):
            raise ValueError(
                'is no address of a server; one is like "https://s3.example.com" or "http://localhost:9000"'
            )

    @property
    def root(self) -> str:
        place = f"{_without_user(self.endpoint)}/{self.bucket}" if self.endpoint else f"s3://{self.bucket}"
        return f"{place}/{self.prefix.strip('/')}".rstrip("/")

    @property
    def remarks(self) -> tuple[str, ...]:
        return ()

    @property
    def refused(self) -> tuple[Refused, ...]:
        return ()

    def list(self) -> Iterator[Entry]:
        before = self._key("")
        found = []
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", self.root, Prefix=before, **more)
            for item in page.get("Contents", ()):
                path = item["Key"].removeprefix(before)
                if path and not path.endswith("/") and not is_ignored_path(path):  # a key with "/" stands for a folder
                    found.append(Entry(path, item["Size"], _tag(item)))
            if not page.get("IsTruncated"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        yield from sorted(found)

    def stat(self, path: str) -> Entry:
        head = self._call("head_object", self._where(path), Key=self._key(path))
        return Entry(path, head["ContentLength"], _tag(head))

    def open(self, path: str) -> BinaryIO:
        try:
            beginning, answer = self._get(path, 0, BLOCK_BYTES)
        except s3_errors.Changed:  # "no such range": an empty object has none
            if self.stat(path).size:
                raise
            return io.BytesIO()
        size = int(answer["ContentRange"].rpartition("/")[2]) if "ContentRange" in answer else len(beginning)
        tag = _tag(answer)
        return open_ranges(lambda start, end: self._get(path, start, end, tag)[0], size, beginning=beginning)

    def read(self, path: str) -> bytes:
        return self._get(path)[0]

    def local_path(self, path: str) -> Path | None:
        return None

    def identity(self, entry: Entry) -> str | None:
        if entry.stamp == _tag({}):
            return None
        place = "" if _NAMES_BYTES.fullmatch(str(entry.stamp)) else f" {self._where(entry.path)}"
        return f"etag {entry.stamp} {entry.size}{place}"

    def write(self, path: str, content: bytes | Path) -> None:
        key = self._key(path, own=True)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size <= ONE_PUT_BYTES:
            body = content if isinstance(content, bytes) else content.read_bytes()
            self._call("put_object", self._where(path), Key=key, Body=body)
        else:
            self._write_parts(path, key, content, size)

    def delete(self, path: str) -> None:
        self._call("delete_object", self._where(path), Key=self._key(path, own=True))

    def _write_parts(self, path: str, key: str, content: bytes | Path, size: int) -> None:
        """The object appears with the last call, or not at all."""
        where = self._where(path)
        upload = self._call("create_multipart_upload", where, Key=key)["UploadId"]
        part_bytes = max(PART_BYTES, -(-size // 10_000))  # S3 takes up to 10,000 parts
        complete = False

        def put(number: int) -> dict[str, Any]:
            body = _slice(content, (number - 1) * part_bytes, part_bytes)
            answer = self._call("upload_part", where, Key=key, UploadId=upload, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        pool = ThreadPoolExecutor(PARTS_AT_ONCE)
        try:
            parts = list(pool.map(put, range(1, -(-size // part_bytes) + 1)))
            self._call("complete_multipart_upload", where, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
            complete = True
        finally:
            pool.shutdown(cancel_futures=True)
            if not complete:
                with suppress(OSError):  # what went wrong first is raised
                    self._call("abort_multipart_upload", where, Key=key, UploadId=upload)

    def _key(self, path: str, *, own: bool = False) -> str:
        """The key of a path. `own`: one that is written or deleted, which must stay below the prefix."""
        if own and any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError(f"{path!r} is not a path below {self.root}")
        prefix = self.prefix.strip("/")
        return f"{prefix}/{path}" if prefix else path

    def _where(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _get(self, path: str, start: int = 0, end: int | None = None, tag: str | None = None) -> tuple[bytes, Any]:
        """Bytes `start` to `end` of an object and the answer's fields. Raises OSError if its ETag is not `tag`."""
        import fsspec.asyn

        span = {} if end is None else {"Range": f"bytes={start}-{end - 1}"}

        def get() -> tuple[bytes, Any]:
            files = self._connection()
            return fsspec.asyn.sync(files.loop, _fetch, files, tag, Bucket=self.bucket, Key=self._key(path), **span)

        return self._attempt(get, self._where(path))

    def _call(self, method: str, where: str, **arguments: Any) -> Any:
        return self._attempt(lambda: self._connection().call_s3(method, Bucket=self.bucket, **arguments), where)

    def _attempt(self, do: Callable[[], Any], where: str) -> Any:
        known = s3_errors.failures()
        try:
            return attempt(do, failures=known, passing=s3_errors.is_passing)
        except known as error:
            server = _without_user(self.endpoint) if self.endpoint else "AWS"
            raise s3_errors.Spot(self.bucket, server, where).explain(error) from None

    def _connection(self) -> Any:
        """The s3fs of this process. Making one is quick, so that it does no harm if two threads do."""
        process = os.getpid()
        if process not in self._open:
            self._open.setdefault(process, self._connect())
        return self._open[process]

    def _connect(self) -> Any:
        import s3fs

        config: dict[str, Any] = {
            "max_pool_connections": self.connections,
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "retries": {"total_max_attempts": 1},  # `attempt` does that
        }
        if self.endpoint:  # the checksums that AWS takes by now are unknown to many other servers
            config |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        files = s3fs.S3FileSystem(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": self.region} if self.region else {},
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        files.retries = 1
        return files

    def __reduce__(self) -> Any:
        """For another process: all but the connections."""
        fields = (self.bucket, self.prefix, self.endpoint, self.region)
        return S3Backend, (*fields, self.access_key, self.secret_key, self.connections)


async def _fetch(files: Any, tag: str | None, **arguments: Any) -> tuple[bytes, Any]:
    answer = await files._call_s3("get_object", **arguments)
    body = answer["Body"]
    try:
        if tag is not None and _tag(answer) != tag:
            raise s3_errors.Changed("another version")
        content = await body.read()
    finally:
        body.close()
    if len(content) != answer["ContentLength"]:
        raise ConnectionError(f"{len(content)} of {answer['ContentLength']} bytes came")
    return content, answer


def _tag(answer: Any) -> str:
    """The ETag in one spelling, with quotes: listing and fetching differ on some servers."""
    return '"{}"'.format(answer.get("ETag", "").strip('"'))


def _slice(content: bytes | Path, start: int, length: int) -> bytes:
    if isinstance(content, bytes):
        return content[start : start + length]
    with content.open("rb") as file:
        file.seek(start, io.SEEK_SET)
        return file.read(length)


def _without_user(address: str) -> str:
    """An address without the name and password that may stand in it."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
