# SPDX-License-Identifier: Apache-2.0
"""Refusals: one shape for every answer that is not what was asked for."""

from __future__ import annotations

import errno
import json
import sys
from typing import Any

from segship.errors import InputError, SegshipError

_RETRYABLE = {408, 410, 429, 503, 504}
NO_SPACE = "no_space"
MODEL_FAILED = "model_failed"


def of_exception(error: BaseException) -> Refusal:
    """Return the refusal that an error stands for; what is not ours says nothing of itself but in our own log."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, SegshipError):
        status = 422 if isinstance(error, InputError) else 503
        return Refusal(status, error.code, error.over_http, kind=type(error).__name__)
    if isinstance(error, MemoryError):
        message = "there is not enough memory for it; ask for less at once, or send a smaller picture"
        return Refusal(422, "out_of_memory", message)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = "there is no room for pictures now; ask again"
        return Refusal(503, NO_SPACE, message, retry_after=1)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        message = "as many files and connections are open as the system allows; ask again"
        return Refusal(503, "overloaded", message, retry_after=1)
    print(f"segship serve: {error!r}", file=sys.stderr, flush=True)
    return Refusal(500, "internal", "the server failed; this is its own fault")


class Refusal(Exception):
    """An answer that is an error.

    Parameters
    ----------
    status
        Of HTTP.
    code
        The stable reason, as Python's errors and the command line have it.
    message
        What was wrong, what was found, what is accepted.
    retry_after
        In how many seconds it may be asked again.
    limit
        Name of the limit that was passed, what it accepts, and what was found.
    close
        Whether the connection ends with it.
    kind
        Name of the error that Python raises for the same, a class of `segship.errors`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
        limit: tuple[str, int, int | None] | None = None,
        close: bool = False,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after, self.limit, self.close, self.kind = retry_after, limit, close, kind

    def to_dict(self, request_id: str) -> dict[str, Any]:
        """Return the ``error`` of a document."""
        limit = None if self.limit is None else dict(zip(("name", "accepted", "found"), self.limit, strict=True))
        return {
            "code": self.code,
            "message": self.message,
            "kind": self.kind,
            "request_id": request_id,
            "retryable": self.status in _RETRYABLE and self.code != MODEL_FAILED,
            "limit": limit,
        }

    def body(self, request_id: str, *, plain: bool = False) -> bytes:
        """Return the whole answer; ``plain`` where a protocol wants text as ``error``, and has the rest beside it."""
        said = self.to_dict(request_id)
        return json.dumps({"error": said.pop("message"), **said} if plain else {"error": said}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the fields that belong to it."""
        found = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        if self.retry_after is not None:
            found.append((b"retry-after", str(self.retry_after).encode()))
        if self.close:
            found.append((b"connection", b"close"))
        return found


def overloaded(lane: str, waiting: int, most: int, retry_after: int) -> Refusal:
    """Return the refusal of a lane in which there is no room, or none in time."""
    message = f"{waiting} requests wait for {lane} already; ask again in {retry_after} seconds"
    return Refusal(503, "overloaded", message, retry_after=retry_after, limit=(f"{lane}_queue", most, waiting))


def too_large(name: str, accepted: int, found: int | None) -> Refusal:
    """Return the refusal of a body with more bytes than are taken."""
    size = "more" if found is None else f"{found:,}"
    message = f"the body has {size} bytes; at most {accepted:,} are accepted"
    return Refusal(413, "body_too_large", message, limit=(name, accepted, found), close=True)
