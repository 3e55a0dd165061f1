# SPDX-License-Identifier: Apache-2.0
"""Who may come in, and what every answer carries: host, origin, key and rate; security headers, counts and log.

Loopback is no boundary: any page that a browser shows can reach it. So the Host field must be a name of this server,
which stops rebound names, and what changes something must come from this server's own page or from no page at all.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from segship.errors import InputError
from segship.serve.errors import Refusal, of_exception
from segship.serve.metrics import Metrics
from segship.serve.options import KeyRing, Scope, ServeOptions
from segship.serve.protocol import CONNECTION

VISIT = "segship.visit"
"""Under this name a request's scope has its `Visit`."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}
_OWN_PAGE = {"same-origin", "none"}
_CLIENT_GONE = 499
_MOST_BUCKETS = 10_000
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-embedder-policy", b"require-corp"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]

_log = logging.getLogger("segship.serve")


@dataclass(slots=True)
class Visit:
    """What is known of one request."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    owner: str = ""
    route: str = "none"
    status: int = 0
    code: str = ""
    plain_errors: bool = False
    """Whether its protocol wants text as ``error``."""
    began: float = field(default_factory=time.perf_counter)


class Buckets:
    """A bucket of tokens for each client, which fills at a rate and holds what a minute brings.

    Parameters
    ----------
    per_minute
        Tokens that come in a minute.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(per_minute)
        self._rate = per_minute / 60.0
        self._clock = clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, tokens: float) -> None:
        """Take tokens, or raise a `Refusal` that says when there are enough."""
        now = self._clock()
        left, at = self._held.pop(client, (self._most, now))
        left = min(self._most, left + (now - at) * self._rate)
        wanted = min(tokens, self._most)
        is_enough = left >= wanted
        self._held[client] = (left - wanted if is_enough else left), now
        while len(self._held) > _MOST_BUCKETS:
            self._held.popitem(last=False)
        if not is_enough:
            seconds = max(1, round((wanted - left) / self._rate + 0.5))
            message = f"more was asked than {self._most:g} a minute; ask again in {seconds} seconds"
            limit = ("requests_per_minute", int(self._most), None)
            raise Refusal(429, "rate_limited", message, retry_after=seconds, limit=limit)


class Door:
    """The outermost layer of the application.

    Parameters
    ----------
    app
        What answers those that may come in.
    options, metrics
        Of the server.
    """

    def __init__(self, app: App, options: ServeOptions, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = {"localhost", "127.0.0.1", "[::1]", *map(str.lower, options.allowed_hosts)}
        self._hosts.add(f"[{options.host}]" if ":" in options.host else options.host.lower())
        self._log = options.log
        self.is_leaving = False

    def leave(self) -> None:
        """Let nobody in any more."""
        self.is_leaving = True

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = scope[VISIT] = Visit()
        connection = scope.get(CONNECTION)
        if connection is not None:
            connection.running = asyncio.current_task()
        answer = _Answer(send, visit, self.is_leaving)
        try:
            self._check(scope)
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            # Whoever cancels from inside wants to know; of a client that has gone nobody does.
            if connection is None or not connection.transport.is_closing():
                raise
            visit.status = _CLIENT_GONE
        except ClientDisconnect:
            visit.status = _CLIENT_GONE
        except Exception as error:
            await answer.refuse(of_exception(error))
        finally:
            if connection is not None:
                connection.running = None
            self._count(scope, visit)

    def _check(self, scope: MutableMapping[str, Any]) -> None:
        fields = [(name, value) for name, value in scope["headers"] if name in _LOOKED_AT]
        found = dict(fields)
        hosts = [value for name, value in fields if name == b"host"]
        if len(hosts) != 1 or _name_of(hosts[0].decode("latin-1")) not in self._hosts:
            message = "the Host field names no server of this place; start it with allowed_hosts for another name"
            raise Refusal(421, "unknown_host", message, close=True)
        if b"content-length" in found and b"transfer-encoding" in found:
            raise Refusal(400, "bad_request", "the head has both Content-Length and Transfer-Encoding", close=True)
        if scope["method"] in _UNSAFE:
            _check_origin(found, hosts[0])
        if self.is_leaving and not scope["path"].startswith("/v2/health/"):
            message = "the server is about to end; ask again, where another may answer"
            raise Refusal(503, "draining", message, retry_after=1, close=True)

    def _count(self, scope: MutableMapping[str, Any], visit: Visit) -> None:
        seconds = time.perf_counter() - visit.began
        self._metrics.requests.labels(visit.route, visit.status).inc()
        self._metrics.seconds.labels(visit.route).observe(seconds)
        if visit.code:
            self._metrics.refusals.labels(visit.code).inc()
        if self._log == "none":
            return
        told = {
            "request": visit.id,
            "method": scope["method"] if scope["method"] in (*_UNSAFE, "GET", "HEAD", "OPTIONS") else "?",
            "route": visit.route,
            "status": visit.status,
            "code": visit.code or None,
            "key": visit.owner or None,
            "milliseconds": round(1e3 * seconds, 1),
        }
        if self._log == "json":
            _log.info(json.dumps(told))
        else:
            _log.info(" ".join(f"{value}" for value in told.values() if value is not None))


_LOOKED_AT = {b"host", b"origin", b"sec-fetch-site", b"content-length", b"transfer-encoding"}


def _name_of(host: str) -> str:
    name = host.strip().lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.rpartition(":")[0] if ":" in name else name


def _check_origin(found: dict[bytes, bytes], host: bytes) -> None:
    """Refuse what another place's page has sent; programs say nothing of a page."""
    site, origin = found.get(b"sec-fetch-site"), found.get(b"origin")
    is_foreign = site is not None and site.decode("latin-1") not in _OWN_PAGE
    if origin is not None:
        # A proxy in front may speak TLS, so the scheme is not compared.
        is_foreign |= origin.partition(b"://")[2].lower() != host.strip().lower()
    if is_foreign:
        message = "a page of another place has sent this; use the page of this server, or a program"
        raise Refusal(403, "foreign_origin", message)


class _Answer:
    """What is sent, with the fields that every answer carries."""

    def __init__(self, send: Send, visit: Visit, is_leaving: bool) -> None:
        self._send = send
        self._visit = visit
        self._is_leaving = is_leaving

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._visit.status = message["status"]
            fields = [*message.get("headers", []), *SECURITY_HEADERS, (b"x-request-id", self._visit.id.encode())]
            if self._is_leaving:
                fields.append((b"connection", b"close"))
            message = {**message, "headers": fields}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error, unless the answer has begun; then it just ends."""
        self._visit.code = refusal.code
        if self._visit.status:
            return
        body = refusal.body(self._visit.id, plain=self._visit.plain_errors)
        fields = [*refusal.headers(), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": fields})
        await self._send({"type": "http.response.body", "body": body})


class Guard:
    """Keys and rates, for routes: each says what a key must allow, and what it costs.

    Parameters
    ----------
    options
        Of the server.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._keys = None if options.keys is None else KeyRing(options.keys)
        rate = options.limits.requests_per_minute
        self._buckets = None if rate is None else Buckets(rate)

    def admit(self, request: Any, scope: Scope) -> None:
        """Find out whose a request is.

        Raises
        ------
        Refusal
            ``missing_key``, ``unknown_key`` or ``forbidden_scope``.
        """
        if self._keys is None:
            return
        secret = _bearer(request.headers.get("authorization", "")) or request.headers.get("x-api-key", "")
        if not secret:
            message = "this server wants a key; send it as Authorization: Bearer KEY, or as X-API-Key"
            raise Refusal(401, "missing_key", message)
        try:
            self._keys.refresh()
        except (OSError, InputError) as error:
            # The keys that were read last go on.
            print(
                f"segship serve: the file of keys cannot be read: {type(error).__name__}", file=sys.stderr, flush=True
            )
        key = self._keys.find(secret)
        if key is None:
            raise Refusal(401, "unknown_key", "this key is not known here")
        if scope not in key.scopes:
            raise Refusal(403, "forbidden_scope", f"this key is not for {scope}")
        request.scope[VISIT].owner = key.name

    def charge(self, request: Any, tokens: float) -> None:
        """Count what a request costs; raises ``rate_limited``."""
        if self._buckets is not None:
            address = request.client.host if request.client else ""
            self._buckets.take(request.scope[VISIT].owner or address, tokens)


def _bearer(text: str) -> str:
    kind, _, secret = text.partition(" ")
    if kind.lower() == "basic":
        # Programs that know users and passwords alone: the key is the password, of any user.
        with contextlib.suppress(ValueError):
            return base64.b64decode(secret.strip(), validate=True).decode().partition(":")[2]
    return secret.strip() if kind.lower() == "bearer" else ""
