"""Files at addresses (http, https): asking for their stamps, and fetching each once into a folder of this machine.

Imports this package, the atomic writes and the kinds of media of the room; the standard library speaks HTTP. A copy is
valid while the server's stamp (ETag, else Last-Modified, and the length) is the same; where the server cannot say, it
is used as it is. Nothing that is written or said holds the query of an address, which may be a signature.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import posixpath
import re
import shutil
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from simplewan.data.atomic import atomic_path
from simplewan.data.backends.trying import attempt
from simplewan.data.media import is_media_name

TIMEOUT_SECONDS = 30.0
AT_ONCE = 16
FAILURES = (OSError, http.client.HTTPException)
# What to call files whose address tells no kind.
SUFFIXES = {
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/x-matroska": ".mkv",
    "video/webm": ".webm",
    "video/x-msvideo": ".avi",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
}


def is_url(text: str) -> bool:
    """Whether a text is an address to fetch a file from."""
    return re.match(r"https?://[^/]", text, re.IGNORECASE) is not None


def name_of(url: str) -> str:
    """An address as a path, without its query: "https://a.org/x/b.mp4?key=1" is "a.org/x/b.mp4"."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}".replace("//", "/").rstrip("/")


@dataclass(frozen=True)
class Head:
    """What a server says of a file: its size (-1: nothing), its stamp, and the ending for its kind ("": unknown).

    `asked` is false where the server did not answer, and this is what it said when the copy that is here was made.
    """

    size: int
    stamp: str
    suffix: str = ""
    asked: bool = field(default=True, compare=False)


def suffix_of(url: str, head: Head) -> str:
    """The ending for a file: that of its address if it is one of media, else what the server says."""
    suffix = posixpath.splitext(urlsplit(url).path)[1].lower()
    return suffix if is_media_name(f"x{suffix}") else head.suffix


def ask(url: str) -> Head:
    """What the server says of the file, without fetching it. Raises OSError, with words for people."""

    def look() -> Message:
        try:
            return _headers(url, "HEAD")
        except urllib.error.HTTPError:  # some servers, and addresses that were signed for GET, do not take it
            return _headers(url, "GET")

    try:
        headers = attempt(look, failures=FAILURES, passing=_is_passing)
    except FAILURES as error:
        raise explain(error, url) from None
    length = headers.get("Content-Length", "")
    size = int(length) if length.isdigit() else -1
    kind = headers.get_content_type() if headers.get("Content-Type") else ""
    stamps = (headers.get("ETag") or headers.get("Last-Modified") or "", f"{size} bytes")
    return Head(size, " ".join(filter(None, stamps)), SUFFIXES.get(kind, ""))


@dataclass(frozen=True)
class Downloads:
    """A folder with copies of files from the web, each beside a note of the stamp that it had."""

    folder: Path
    _locks: dict[str, threading.Lock] = field(default_factory=dict, init=False, repr=False, compare=False)

    def look(
        self, urls: Iterable[str], *, tell: Callable[[int], None] = lambda _count: None
    ) -> dict[str, Head | OSError]:
        """What is known of each file, or why it cannot be had; `tell` hears how many were asked for.

        Once a server cannot be reached it is not tried again, and the copies that are here are taken as they are.
        """
        down: dict[str, OSError] = {}

        def one(url: str) -> Head | OSError:
            host = urlsplit(url).netloc
            error = down.get(host)
            try:
                if error is None:
                    return ask(url)
            except Unreachable as failed:
                error = down[host] = failed
            except OSError as failed:
                error = failed
            return self._noted(url) or error

        found: dict[str, Head | OSError] = {}
        pool = ThreadPoolExecutor(AT_ONCE)
        wanted = list(dict.fromkeys(urls))
        try:
            for url, head in zip(wanted, pool.map(one, wanted), strict=True):
                found[url] = head
                tell(len(found))
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def __getstate__(self) -> dict[str, object]:
        """For another process, which has locks of its own."""
        return {**self.__dict__, "_locks": {}}

    def copy(self, url: str, head: Head) -> Path | None:
        """The copy of the file with this stamp, if it is here."""
        return self._path(url, head) if self._noted(url) == head else None

    def fetch(self, url: str, head: Head) -> Path:
        """The copy of the file, fetched now unless it is here. Raises OSError; what is here then is whole."""
        with self._locks.setdefault(url, threading.Lock()):
            there = self.copy(url, head)
            if there is not None:
                return there
            try:
                return attempt(lambda: self._download(url, head), failures=FAILURES, passing=_is_passing)
            except FAILURES as error:
                raise explain(error, url) from None

    def _download(self, url: str, head: Head) -> Path:
        path, note = self._path(url, head), self._note(url)
        with _opened(url, "GET") as response, atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
            length = response.headers.get("Content-Length", "")
            size = temporary.stat().st_size
            if length.isdigit() and size != int(length):
                raise http.client.IncompleteRead(b"", int(length) - size)
            note.unlink(missing_ok=True)  # a note beside another file would lie
        known = {"size": head.size, "stamp": head.stamp, "suffix": head.suffix}
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps({**known, "bytes": size, "address": name_of(url)}), encoding="utf-8")
        return path

    def _noted(self, url: str) -> Head | None:
        """What the note of a copy says, if copy and note are whole."""
        try:
            note = json.loads(self._note(url).read_text(encoding="utf-8"))
            head = Head(note["size"], note["stamp"], note["suffix"], asked=False)
            return head if self._path(url, head).stat().st_size == note["bytes"] else None
        except (OSError, ValueError, KeyError):
            return None

    def _path(self, url: str, head: Head) -> Path:
        return self.folder / f"{_digest(url)}{suffix_of(url, head)}"

    def _note(self, url: str) -> Path:
        return self.folder / f"{_digest(url)}.json"


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:24]


class Unreachable(OSError):
    """No server answers at an address."""


def explain(error: Exception, url: str) -> OSError:
    """The error for people: FileNotFoundError and PermissionError where the server says so."""
    host, where = urlsplit(url).netloc.rpartition("@")[2], name_of(url)
    if isinstance(error, urllib.error.HTTPError):
        said = f"{host} answers {error.code} {error.reason}"
        if error.code in (404, 410):
            return FileNotFoundError(errno.ENOENT, f"{said}: the address is wrong, or the file gone", where)
        if error.code in (401, 403):
            return PermissionError(
                errno.EACCES, f"{said}: it needs a sign-in, or the address is no longer valid", where
            )
        return OSError(errno.EIO, f"{said}; try later", where)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLError):
        return Unreachable(errno.EIO, f"the certificate of {host} is not accepted", where)
    if isinstance(reason, TimeoutError):
        return Unreachable(errno.ETIMEDOUT, f"{host} did not answer within {TIMEOUT_SECONDS:g} seconds", where)
    if isinstance(reason, socket.gaierror):
        return Unreachable(errno.EIO, f"{host} is not known; is there a network?", where)
    if isinstance(reason, ConnectionRefusedError):
        return Unreachable(errno.ECONNREFUSED, f"{host} refuses the connection; is its server running?", where)
    if isinstance(reason, (ConnectionError, http.client.IncompleteRead)):
        return OSError(errno.EIO, f"the connection to {host} broke again and again", where)
    if isinstance(reason, OSError):
        return OSError(reason.errno or errno.EIO, reason.strerror or f"{host} cannot be reached", where)
    return OSError(errno.EIO, f"{host} answers what is no HTTP ({type(reason).__name__})", where)


def _is_passing(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 425, 429)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, (ConnectionError, http.client.IncompleteRead, http.client.BadStatusLine))


def _headers(url: str, method: str) -> Message:
    with _opened(url, method) as response:
        headers: Message = response.headers
        return headers


def _opened(url: str, method: str) -> Any:
    address = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    fields = {"User-Agent": "simplewan", "Accept-Encoding": "identity"}
    request = urllib.request.Request(address.partition("#")[0], headers=fields, method=method)
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
