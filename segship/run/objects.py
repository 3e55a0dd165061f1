# SPDX-License-Identifier: Apache-2.0
"""Objects of a store that speaks S3: pictures that are read from it, and runs that lie in it.

The client is AWS's own, botocore: it finds credentials wherever AWS's tools find them, takes the endpoint of other
stores from ``AWS_ENDPOINT_URL``, and can put an object on the condition that there is none, which pyarrow's cannot.
What it says is never passed on, since addresses can hold secrets: errors name host, object and the store's own code.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from segship.errors import BackendUnavailable, InputError, OutputError, SegshipError, shown

SCHEME = "s3://"
THREADS = 16
"""Requests that are under way at once where there are many small ones."""
# Seconds until a store that says nothing is given up, each of so many times; AWS_MAX_ATTEMPTS has another number.
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 10, 60, 3

STORE_FAULTS = frozenset(["s3_missing", "no_credentials", "no_bucket", "store_unreachable", "store_failed"])
"""Codes of errors that are not one object's, after which another attempt may succeed."""
_OF_CREDENTIALS = frozenset(
    ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"]
    + ["TokenRefreshRequired", "ExpiredTokenException", "InvalidSecurity", "AuthorizationHeaderMalformed"]
)
_FULL = frozenset(["QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity"])

Entry = TypeVar("Entry")
Result = TypeVar("Result")


class Changed(Exception):
    """An object is another than the one that was asked for."""


class Found(NamedTuple):
    """An object as a store lists it.

    Attributes
    ----------
    key
        Its name in the bucket.
    size
        Bytes.
    version
        A number of its ETag: another for other bytes.
    written
        When it was put, in seconds as the store's clock has it.
    """

    key: str
    size: int
    version: int
    written: float


def is_address(text: str) -> bool:
    """Return whether a text is an address and no path.

    Examples
    --------
    >>> is_address("s3://bucket/photos"), is_address("photos")
    (True, False)
    """
    return "://" in text


def parse_address(text: str) -> tuple[str, str]:
    """Return bucket and key of an address, or refuse it as ``bad_address``.

    Examples
    --------
    >>> parse_address("s3://bucket/photos/a.jpg")
    ('bucket', 'photos/a.jpg')
    """
    bucket, _, key = text.removeprefix(SCHEME).partition("/")
    if not (text.startswith(SCHEME) and bucket and _is_unicode(key)) or set(bucket) & set("@:?#%\\ "):
        # Not shown: a user name and a password may stand in it, or a signature behind it.
        message = (
            "the address is not understood; accepted is s3://bucket/prefix, with the endpoint of another store than "
            "AWS's in AWS_ENDPOINT_URL and credentials wherever AWS's tools find them, but not in the address"
        )
        raise InputError(message, code="bad_address")
    return bucket, key


def _is_unicode(text: str) -> bool:
    # Bytes that are no text have no key.
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def object_at(text: str) -> tuple[Objects, str]:
    """Return the bucket of an object's address, and its key; errors as `parse_address` and `Objects`."""
    bucket, key = parse_address(text)
    if not key:
        raise InputError(f"{shown(text)} names a bucket and no object in it", code="bad_address")
    return Objects(bucket), key


def parse_prefix(text: str) -> tuple[str, str]:
    """Return bucket and prefix of an address below which things lie: empty, or with a slash at its end."""
    bucket, key = parse_address(text)
    if "?" in key:
        # As above: other tools have keys there.
        raise InputError("an address has no options after a question mark; see the AWS_ variables", code="bad_address")
    key = key.strip("/")
    return bucket, f"{key}/" if key else ""


def in_parallel(
    function: Callable[[Entry], Result], entries: Iterable[Entry], threads: int = THREADS
) -> Iterator[Result]:
    """Yield what a function makes of entries, in their order, of which a few are under way at once."""
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[Result]]()
    try:
        for entry in entries:
            waiting.append(pool.submit(function, entry))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@cache
def _client() -> Any:
    try:
        session, config = import_module("botocore.session"), import_module("botocore.config")
    except ModuleNotFoundError:
        message = 'object stores need botocore, which is not installed; pip install "segship[s3]"'
        raise BackendUnavailable(message, code="s3_missing") from None
    with _explained(None, "the client's settings"):
        return session.get_session().create_client(
            "s3",
            config=config.Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                max_pool_connections=2 * THREADS,
                retries={"mode": "standard"},
                # Stores of others do not know AWS's newer sums; puts have the older one, which all know.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


class Objects:
    """The objects of one bucket.

    Parameters
    ----------
    bucket
        Its name.
    client
        As botocore makes it; the one of this process when left out.

    Raises
    ------
    BackendUnavailable
        ``s3_missing`` without the extra. Any method: ``no_credentials``, ``store_denied``, ``no_bucket``,
        ``store_unreachable`` after so many attempts, and ``store_failed`` for all else.
    OutputError
        ``no_space`` when the store is full.
    """

    def __init__(self, bucket: str, client: Any = None) -> None:
        self.bucket = bucket
        self._client = client or _client()

    def put(self, key: str, data: bytes) -> None:
        """Put an object, in the place of what is there."""
        with _explained(self._client, self._name(key)):
            self._put(key, data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Put an object where there is none, and return whether this call has made it.

        False also where it has and the answer was lost: the client has then asked twice.
        """
        for attempt in range(_ATTEMPTS):
            with _explained(self._client, self._name(key)):
                try:
                    self._put(key, data, IfNoneMatch="*")
                    return True
                except _exceptions().ClientError as error:
                    if _status(error) == 412:
                        return False
                    # Another one is putting it; who was first shows only afterwards.
                    if _status(error) != 409 or attempt == _ATTEMPTS - 1:
                        raise
                    time.sleep(2**attempt / 10)
        raise AssertionError(key)

    def _put(self, key: str, data: bytes, **more: str) -> None:
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentMD5=digest, **more)

    def get(self, key: str, begin: int = 0, size: int | None = None, version: int | None = None) -> bytes:
        """Return the bytes of an object, or some of them.

        Parameters
        ----------
        key
            Its name.
        begin, size
            From where, and how many; to its end when left out.
        version
            Which it must be.

        Raises
        ------
        FileNotFoundError
            Where there is none.
        Changed
            Where it is another, or ends before.
        """
        how = {} if size is None else {"Range": f"bytes={begin}-{begin + size - 1}"}
        for attempt in range(_ATTEMPTS):
            with _explained(self._client, self._name(key)):
                answer = self._client.get_object(Bucket=self.bucket, Key=key, **how)
                with closing(answer["Body"]) as body:
                    if version is not None and _version(answer) != version:
                        raise Changed(key)
                    try:
                        return bytes(body.read())
                    # The client asks again for what was refused, but not for what broke off.
                    except _broken():
                        if attempt == _ATTEMPTS - 1:
                            raise
        raise AssertionError(key)

    def head(self, key: str) -> Found:
        """Return what is known of an object; a FileNotFoundError where there is none."""
        with _explained(self._client, self._name(key)):
            answer = self._client.head_object(Bucket=self.bucket, Key=key)
            return Found(key, answer["ContentLength"], _version(answer), answer["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[Found]:
        """Yield the objects whose keys begin so, in the order of their keys."""
        with _explained(self._client, self._name(prefix)):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield Found(entry["Key"], entry["Size"], _version(entry), entry["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        with _explained(self._client, self._name(key)):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def _name(self, key: str) -> str:
        return shown(f"{SCHEME}{self.bucket}/{key}")


def _version(answer: Any) -> int:
    """Return a number of 63 bits for the ETag of an answer."""
    return int.from_bytes(hashlib.sha256(answer["ETag"].encode()).digest()[:8], "big") >> 1


def _exceptions() -> Any:
    return import_module("botocore.exceptions")


def _broken() -> tuple[type[Exception], ...]:
    """Return what the client raises where no answer came, or half of one."""
    kinds, parsers = _exceptions(), import_module("botocore.parsers")
    return kinds.HTTPClientError, kinds.ConnectionError, kinds.IncompleteReadError, parsers.ResponseParserError


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def _explained(client: Any, name: str) -> Iterator[None]:
    """Errors of the client in our words, of which none is its own."""
    kinds = _exceptions()
    try:
        yield
    except kinds.ClientError as error:
        raise _refusal(error, name, _host(client)) from None
    except (kinds.NoCredentialsError, kinds.PartialCredentialsError, kinds.CredentialRetrievalError) as error:
        raise _no_credentials(name, type(error).__name__) from None
    except _broken() as error:
        message = (
            f"the store {_host(client)} does not answer for {name} ({type(error).__name__}); see that it can be "
            "reached, and start again: nothing is lost"
        )
        raise BackendUnavailable(message, code="store_unreachable") from None
    except kinds.BotoCoreError as error:
        if "Token" in type(error).__name__ or "SSO" in type(error).__name__:
            raise _no_credentials(name, type(error).__name__) from None
        message = (
            f"{name} cannot be asked for ({type(error).__name__}); look at the AWS_ variables and AWS's config file"
        )
        raise BackendUnavailable(message, code="store_failed") from None


def _host(client: Any) -> str:
    parts = urlsplit("" if client is None else client.meta.endpoint_url)
    try:
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return str(parts.hostname)


def _no_credentials(name: str, found: str) -> SegshipError:
    message = (
        f"there are no credentials that hold for {name} ({shown(found)}); give them as AWS's tools take them: "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"
    )
    return BackendUnavailable(message, code="no_credentials")


def _refusal(error: Any, name: str, host: str) -> BaseException:
    """Return our error for what a store has answered."""
    code, status = str(error.response.get("Error", {}).get("Code", "")), _status(error)
    if code == "NoSuchBucket":
        return BackendUnavailable(f"there is no bucket for {name} at {host}; make it first", code="no_bucket")
    if status == 404:
        return FileNotFoundError(name)
    if status in (412, 416):
        return Changed(name)
    if code in _OF_CREDENTIALS:
        return _no_credentials(name, code)
    if status in (401, 403):
        message = (
            f"the store {host} does not let these credentials at {name} ({shown(code)}); allow it, and start again"
        )
        return BackendUnavailable(message, code="store_denied")
    if status == 507 or code in _FULL:
        message = f"there is no space for {name} at {host}; make some, and start the run again: nothing is lost"
        return OutputError(message, code="no_space")
    if status in (429, 500, 502, 503, 504):
        message = (
            f"the store {host} cannot serve {name} now ({status} {shown(code)}); start again later: nothing is lost"
        )
        return BackendUnavailable(message, code="store_unreachable")
    message = f"the store {host} refuses {name}: {status} {shown(code)}; see that it speaks S3 and lets it be done"
    return BackendUnavailable(message, code="store_failed")
