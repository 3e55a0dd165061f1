# SPDX-License-Identifier: Apache-2.0
"""One file over HTTP: resumed, checked by size and digest, and fetched by one process at a time.

Two processes never fetch the same file at once. The system drops the lock when its holder ends, however it ends; there
is no stale lock to clear away.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import shutil
import socket
import ssl
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from segship.errors import FetchError
from segship.files import CHUNK_BYTES

POLL_SECONDS = 0.1

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; waits for as long as another process or thread holds it."""
    descriptor = _wait_for(path)
    try:
        yield
    finally:
        # Removed while still held: whoever waited for it sees that its file is gone and starts anew. Windows does not
        # remove open files; there the empty file stays.
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _wait_for(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if _take(descriptor) and _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)
        time.sleep(POLL_SECONDS)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


Progress = Callable[[int, int], None]

# A lost connection is taken up again this often within one call; the part stays for the next call in any case.
ATTEMPTS = 3
PAUSE_SECONDS = 0.5
_HEADERS = {"User-Agent": "segship", "Accept-Encoding": "identity"}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
# A server that sends a byte now and then never times out. Below the least rate, over one timeout, a connection counts
# as lost; what is slower than the other rate for the whole file, with an hour for the small ones, is given up.
LEAST_BYTES_PER_SECOND = 1024
SLOWEST_BYTES_PER_SECOND = 50_000
SHORTEST_DEADLINE = 3600.0


@dataclass(frozen=True, slots=True)
class Download:
    """What to fetch, where to, what it must be, and the sentence that says how to do without the network.

    ``bytes`` is 0 where no size is published; then the server says it, and the digest alone decides.
    """

    url: str
    part: Path
    target: Path
    bytes: int
    sha256: str
    timeout: float
    by_hand: str

    @property
    def deadline(self) -> float:
        """Seconds that all attempts together may take."""
        return max(SHORTEST_DEADLINE, self.bytes / SLOWEST_BYTES_PER_SECOND)


class _Lost(Exception):
    """The connection broke or ended early; what came so far is in the part."""


class _Refused(Exception):
    """The server does not go on from the part; it has to start anew."""


class _Redirects(HTTPRedirectHandler):
    """Follow redirects to http and https only, and never from https down to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and req.type != scheme:
            fp.close()
            raise _bad_redirect(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage) -> Any:
        # The base class would refuse other schemes itself, with an error that names no reason of ours.
        location = headers.get("location") or headers.get("uri") or ""
        try:
            address = urlsplit(urljoin(req.full_url, location))
            is_good = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:
            is_good = False
        if not is_good:
            fp.close()
            raise _bad_redirect(req.full_url, location)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _bad_redirect(url: str, address: str) -> FetchError:
    message = f"{url} redirects to {address[:200]!r}; only http and https are followed, and never from https to http"
    return FetchError(message, code="bad_redirect")


def download(wanted: Download, progress: Progress) -> None:
    """Fetch a file, going on from its part if there is one, and put it in place.

    Raises
    ------
    FetchError
        ``no_network``, ``bad_address``, ``bad_certificate``, ``http_error``, ``bad_redirect``, ``file_changed``,
        ``too_many_bytes``, ``connection_lost``, ``too_slow``, ``wrong_digest`` or ``disk_full``.
    """
    if not wanted.bytes:
        wanted = replace(wanted, bytes=_announced_bytes(wanted))
    with _open_part(wanted.part) as stream:
        transfer = _Transfer(wanted, stream, progress)
        _require_space(wanted, transfer.done)
        try:
            transfer.run()
        except BaseException as error:
            # Whatever else went wrong, the bytes that came are good for the next call.
            is_wrong = isinstance(error, FetchError) and error.code in ("wrong_digest", "too_many_bytes")
            if transfer.done == 0 or is_wrong:
                stream.close()
                wanted.part.unlink(missing_ok=True)
            raise
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(wanted.part, wanted.target)


def _announced_bytes(wanted: Download) -> int:
    """Return how large the server says that a file is."""
    transfer = _Transfer(wanted, io.BytesIO(), lambda done, total: None)
    try:
        with transfer.open(Request(wanted.url, headers=_HEADERS)) as response:
            length = response.headers.get("Content-Length") or ""
    except _Lost as lost:
        message = f"the connection to {wanted.url} was lost: {lost}; run the same command again, or {wanted.by_hand}"
        raise FetchError(message, code="connection_lost") from lost
    if not re.fullmatch("[1-9][0-9]{0,10}", length, re.ASCII):
        raise transfer.error("does not say how large the file is", "file_changed")
    return int(length)


def _open_part(part: Path) -> BinaryIO:
    """Open the part, or make it; what has another name as well is somebody's file, and is let alone."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    # Whatever lies there may block when it is opened.
    flags |= getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(part, flags, 0o666)
    status = os.fstat(descriptor)
    if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        part.unlink()
        descriptor = os.open(part, flags | os.O_EXCL, 0o666)
    return os.fdopen(descriptor, "r+b")


def _require_space(wanted: Download, done: int) -> None:
    free, needed = shutil.disk_usage(wanted.part.parent).free, wanted.bytes - done
    if free < needed:
        message = f"{wanted.part.parent} has {free} bytes free and {needed} are needed; free some or choose another"
        raise FetchError(message, code="disk_full")


class _Transfer:
    """The part, the digest of what is in it, and the requests that fill it."""

    def __init__(self, wanted: Download, stream: BinaryIO, progress: Progress) -> None:
        self.wanted = wanted
        self.stream = stream
        self.progress = progress
        self.etag: str | None = None
        self.ends = time.monotonic() + wanted.deadline
        self.digest = hashlib.sha256()
        self.done = 0
        while self.done <= wanted.bytes and (piece := stream.read(CHUNK_BYTES)):
            self.digest.update(piece)
            self.done += len(piece)
        self.from_before = self.done
        if self.done > wanted.bytes:
            self.start_anew()

    def start_anew(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()
        self.digest = hashlib.sha256()
        self.done = self.from_before = 0
        self.etag = None

    def run(self) -> None:
        self.fill()
        if self.digest.hexdigest() != self.wanted.sha256 and self.from_before:
            # Most likely the part of an earlier call was not of this file.
            self.start_anew()
            self.fill()
        if self.digest.hexdigest() != self.wanted.sha256:
            found = f"gave a file with the SHA-256 {self.digest.hexdigest()}"
            raise self.error(f"{found}, and the published one has {self.wanted.sha256}; it was removed", "wrong_digest")

    def fill(self) -> None:
        """Request until all bytes are there; a lost connection is taken up again some times."""
        self.progress(self.done, self.wanted.bytes)
        attempt = 0
        while self.done < self.wanted.bytes:
            attempt += 1
            try:
                self.request()
            except _Refused:
                self.start_anew()
                attempt -= 1
            except _Lost as lost:
                self.check_deadline()
                if attempt >= ATTEMPTS:
                    message = (
                        f"the connection to {self.wanted.url} was lost {attempt} times, last because {lost}; "
                        f"{self.done} of {self.wanted.bytes} bytes are kept: run the same command again to go on, "
                        f"or {self.wanted.by_hand}"
                    )
                    raise FetchError(message, code="connection_lost") from lost
                time.sleep(PAUSE_SECONDS * attempt)

    def check_deadline(self) -> None:
        if time.monotonic() > self.ends:
            message = (
                f"{self.wanted.url} is too slow: {self.done} of {self.wanted.bytes} bytes came in "
                f"{self.wanted.deadline / 3600:.1f} hours; run the same command again to go on, try another mirror, or "
                f"{self.wanted.by_hand}"
            )
            raise FetchError(message, code="too_slow")

    def request(self) -> None:
        headers = dict(_HEADERS)
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if self.etag:
                headers["If-Range"] = self.etag
        with self.open(Request(self.wanted.url, headers=headers)) as response:
            self.check_answer(response)
            self.receive(response)

    def open(self, request: Request) -> Any:
        """Return the response, or raise what its failure means."""
        try:
            return _opener().open(request, timeout=self.wanted.timeout)
        except HTTPError as error:
            error.close()
            if error.code == 416:
                raise self.refused() from error
            if error.code in (429, 500, 502, 503, 504):
                raise _Lost(f"the server answered {error.code} {error.reason}") from error
            raise self.error(f"answered {error.code} {error.reason}", "http_error") from error
        except URLError as error:
            if isinstance(error.reason, ssl.SSLError):
                message = f"the certificate or encryption of {self.wanted.url} is not good: {error.reason}"
                raise FetchError(f"{message}; {self.wanted.by_hand}", code="bad_certificate") from error
            message = f"{self.wanted.url} cannot be reached ({error.reason}); {self.wanted.by_hand}"
            raise FetchError(message, code="no_network") from error
        except (http.client.InvalidURL, ValueError) as error:
            # Of a host or path that cannot be sent, such as one with a label of more than 63 letters.
            raise self.error(f"is no address that can be asked ({error})", "bad_address") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Lost(_reason(error)) from error

    def refused(self) -> Exception:
        """Return what a wrong answer to a range means; nothing was there to go on from if the part is empty."""
        if self.done:
            return _Refused()
        return self.error("answers with ranges that were not asked for", "http_error")

    def error(self, what: str, code: str) -> FetchError:
        """Return the error for a server that does something else than it should."""
        return FetchError(f"{self.wanted.url} {what}; try another mirror, or {self.wanted.by_hand}", code=code)

    def check_answer(self, response: Any) -> None:
        """Start anew or go on, as the server decided; refuse a file of another size."""
        total = response.headers.get("Content-Length")
        if response.status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range") or "")
            if found is None or int(found[1]) != self.done:
                raise self.refused()
            total = None if found[3] == "*" else found[3]
        elif self.done:
            self.start_anew()
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity" or (total is not None and total != str(self.wanted.bytes)):
            what = f"holds a file of {total} bytes (encoding {encoding}), and the published one has {self.wanted.bytes}"
            raise self.error(f"{what}; it changed, or this is an error page", "file_changed")
        self.etag = _strong(response.headers.get("ETag"))

    def receive(self, response: Any) -> None:
        window, before = time.monotonic(), self.done
        while True:
            try:
                # read1 gives what has arrived, so that a stop loses nothing.
                piece: bytes = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _Lost(_reason(error)) from error
            if not piece:
                break
            if self.done + len(piece) > self.wanted.bytes:
                what = f"sends more than the published {self.wanted.bytes} bytes; it was removed"
                raise self.error(what, "too_many_bytes")
            self.stream.write(piece)
            self.digest.update(piece)
            self.done += len(piece)
            self.progress(self.done, self.wanted.bytes)
            self.check_deadline()
            if (seconds := time.monotonic() - window) > self.wanted.timeout:
                if self.done - before < LEAST_BYTES_PER_SECOND * seconds and self.done < self.wanted.bytes:
                    raise _Lost(f"{self.done - before} bytes came in {seconds:.0f} s")
                window, before = time.monotonic(), self.done
        if self.done < self.wanted.bytes:
            raise _Lost("the body ended early")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _strong(etag: str | None) -> str | None:
    """Return an ETag that If-Range may carry; weak ones may not."""
    return None if etag is None or etag.startswith("W/") else etag


class _Watched(http.client.HTTPConnection):
    """Hangs up on a server whose answer does not begin within two timeouts, though a byte comes now and then."""

    def getresponse(self) -> http.client.HTTPResponse:
        watch = threading.Timer(2 * (self.timeout or 0), self._hang_up)
        watch.start()
        try:
            return super().getresponse()
        finally:
            watch.cancel()

    def _hang_up(self) -> None:
        with suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _WatchedTls(_Watched, http.client.HTTPSConnection):
    pass


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_Watched, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_WatchedTls, req)


def _opener() -> OpenerDirector:
    """Return an opener for http and https alone: no ftp, no local files, the system's proxies."""
    opener = OpenerDirector()
    for handler in (ProxyHandler, _Http, _Https, _Redirects, HTTPErrorProcessor, HTTPDefaultErrorHandler):
        opener.add_handler(handler())
    return opener
