"""What went wrong with S3, in words for people: which bucket, which address, and what to do.

Imports nothing of this project; botocore and aiohttp when they are asked for. No message repeats what the server says
about keys, so no secret can be in one. Exceptions are known by their names: some versions of botocore lack some.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import Any

PASSING_CODES = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted", "BadDigest")


class Changed(OSError):
    """The object is not the one that was opened."""


_Meaning = tuple[type[OSError], str]
_MISSING: _Meaning = FileNotFoundError, 'it is not in the bucket "{bucket}" at {server}'
_NO_SUCH_NAME: _Meaning = FileNotFoundError, '"{bucket}" is no name that a bucket can have; check aws_bucket_name'
_DENIED: _Meaning = (
    PermissionError,
    'these keys give no access to it in the bucket "{bucket}" at {server}; check the keys and the bucket\'s policy',
)
_TOKEN: _Meaning = PermissionError, "the session token for {server} is no longer valid; sign in again"
_REGION: _Meaning = OSError, 'the bucket "{bucket}" is in another region; set aws_region_name to the bucket\'s'
_CHANGED: _Meaning = Changed, 'it changed in the bucket "{bucket}" while it was being read'
_BUSY: _Meaning = OSError, "{server} answered {code} again and again (bucket {bucket}); try later"
_REFUSED: _Meaning = OSError, "{server} refused with {code} (bucket {bucket}); check the region and the keys"
_NO_KEYS: _Meaning = (
    PermissionError,
    "there are no (complete) keys for {server}; set aws_access_key_id and aws_secret_access_key, or use the "
    "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a profile, or the machine's role",
)
_TIMEOUT: _Meaning = TimeoutError, "{server} did not answer in time, again and again (bucket {bucket})"
_DROPPED: _Meaning = OSError, "the connection to {server} broke again and again (bucket {bucket})"

_ANSWERS: dict[str, _Meaning] = {
    "NoSuchBucket": (
        FileNotFoundError,
        'there is no bucket "{bucket}" at {server}; check aws_bucket_name and aws_endpoint_url',
    ),
    "InvalidBucketName": _NO_SUCH_NAME,
    "InvalidAccessKeyId": (PermissionError, "{server} does not know the access key; check aws_access_key_id"),
    "SignatureDoesNotMatch": (
        PermissionError,
        "{server} says that the secret does not fit the access key; check aws_secret_access_key",
    ),
    "RequestTimeTooSkewed": (
        PermissionError,
        "the clock of this machine differs from that of {server}; set it right",
    ),
    **dict.fromkeys(("NoSuchKey", "NoSuchUpload", "404"), _MISSING),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "401", "403"), _DENIED),
    **dict.fromkeys(("ExpiredToken", "InvalidToken", "TokenRefreshRequired"), _TOKEN),
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "307"), _REGION),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), _REGION),
    **dict.fromkeys(("PreconditionFailed", "InvalidRange", "412", "416"), _CHANGED),
}
# Where there was no answer: by the exception's class, the nearest first.
_BREAKDOWNS: dict[str, _Meaning] = {
    "Changed": _CHANGED,
    **dict.fromkeys(("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"), _NO_KEYS),
    **dict.fromkeys(("TokenRetrievalError", "NoAuthTokenError", "SSOError", "LoginError"), _NO_KEYS),
    "ProfileNotFound": (PermissionError, "AWS_PROFILE names a profile that is not there; correct it, or unset it"),
    "SSLError": (OSError, "the certificate of {server} is not accepted; check aws_endpoint_url (http or https?)"),
    "ProxyConnectionError": (
        OSError,
        "the proxy on the way to {server} cannot be reached; check HTTPS_PROXY and NO_PROXY",
    ),
    "ReadTimeoutError": _TIMEOUT,
    "ConnectTimeoutError": _TIMEOUT,
    "TimeoutError": _TIMEOUT,
    "EndpointConnectionError": (
        OSError,
        "{server} cannot be reached (bucket {bucket}); is aws_endpoint_url right, and the server running?",
    ),
    "ParamValidationError": _NO_SUCH_NAME,
    **dict.fromkeys(
        ("InvalidRegionError", "NoRegionError"), (OSError, "there is no such region of {server}; check aws_region_name")
    ),
}


def failures() -> tuple[type[Exception], ...]:
    """Everything that a call of S3 raises when it fails."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError, asyncio.TimeoutError, OSError


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed in a moment: dropped connections, timeouts, an overloaded server."""
    import aiohttp
    from botocore import exceptions as botocore
    from botocore.parsers import ResponseParserError

    code, status = _answer(error)
    if code is not None:
        return code in PASSING_CODES or "Throttl" in code or status >= 500 or status == 429
    if isinstance(error, (botocore.SSLError, botocore.ProxyConnectionError)):
        return False
    passing = (
        botocore.HTTPClientError,
        botocore.ConnectionError,
        botocore.IncompleteReadError,
        ResponseParserError,
        aiohttp.ClientError,
        asyncio.TimeoutError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, passing)


@dataclass(frozen=True)
class Spot:
    """What a call was about: the bucket, the server in words, and the root or the object as a path."""

    bucket: str
    server: str
    where: str

    def explain(self, error: Exception) -> OSError:
        """The error for people. What is not there is a FileNotFoundError, missing rights are a PermissionError."""
        code, _ = _answer(error)
        if code is not None:
            meaning = _ANSWERS.get(code) or (_BUSY if is_passing(error) else _REFUSED)
        else:
            names = [kind.__name__ for kind in type(error).__mro__]
            known = next((_BREAKDOWNS[name] for name in names if name in _BREAKDOWNS), None)
            meaning = known or (_DROPPED if is_passing(error) else _REFUSED)
        kind, text = meaning
        number = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}
        words = text.format(bucket=self.bucket, server=self.server, code=code or type(error).__name__)
        return kind(number.get(kind, errno.EIO), words, self.where)


def _answer(error: BaseException) -> tuple[str | None, int]:
    """The error code and HTTP status of the server's answer, (None, 0) where there was none.

    s3fs raises OSErrors of its own, the answer being their cause.
    """
    for candidate in (error, error.__cause__):
        response: Any = getattr(candidate, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "Unknown")), int(status)
    return None, 0
