# SPDX-License-Identifier: Apache-2.0
"""The whole: options to a server that runs until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from segship.errors import BackendUnavailable, BundleError, InputError, OutputError, option, shown
from segship.serve.errors import MODEL_FAILED
from segship.serve.options import ServeOptions

if TYPE_CHECKING:
    import uvicorn

_NEEDED = {
    "h11": "h11",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "prometheus_client": "prometheus-client",
}
_BACKLOG = 1_024
# Of the interpreter, workers and pictures that are stored.
_OTHER_FILES = 32
_NOTE_SECONDS = 10.0
_noted: WeakKeyDictionary[asyncio.AbstractEventLoop, float] = WeakKeyDictionary()


def check_packages() -> None:
    """Refuse as ``serve_missing`` where the packages of the extra are not installed."""
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        message = (
            f"{', '.join(missing)} of the extra serve is not installed; install it with: pip install 'segship[serve]'"
        )
        raise BackendUnavailable(message, code="serve_missing")


def serve(options: ServeOptions | None = None, *, started: Callable[[str], None] | None = None) -> int:
    """Serve masks until SIGTERM or an interrupt.

    Parameters
    ----------
    options
        Those of `ServeOptions`, its defaults when left out.
    started
        Is called with the address once the server listens; models may still be loading, see ``/v2/health/ready``.

    Returns
    -------
    int
        0, once everything that was worked on is answered.

    Raises
    ------
    BackendUnavailable
        ``serve_missing`` without the extra.
    BundleError
        When there is no such model, as `segship.load` says.
    BackendUnavailable
        ``model_failed`` once no model is left: each was loaded in vain too often, or finds wrong masks.
    OutputError
        ``cannot_listen`` when the port is taken.
    """
    check_packages()
    options = options or ServeOptions()
    models = find_models(options.bundle)
    if options.processes > 1:
        from segship.serve.shards import serve_several

        return serve_several(options, started)
    with listen(options) as listener:
        return asyncio.run(serve_on(listener, options, models, started))


def find_models(names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Return the models that names, places, or NAME=PLACE mean: name -> task and place."""
    from segship.bundle import Bundle
    from segship.catalog import CHECKPOINT_SUFFIXES, find_model

    found: dict[str, tuple[str, str]] = {}
    for given in names:
        before, parted, after = given.partition("=")
        place = find_model(after if parted else given)
        name = before if parted else (place.stem if place.is_file() else Path(given).name)
        if place.is_file() and place.suffix not in CHECKPOINT_SUFFIXES:
            message = (
                f"{place} is no model; a bundle is a folder, a checkpoint ends in {', '.join(CHECKPOINT_SUFFIXES)}"
            )
            raise BundleError(message, code="unknown_model")
        if name in found or not name:
            message = f"{option('bundle')} has two models of the name {shown(name)}; give one another: NAME=PLACE"
            raise InputError(message, code="bad_option")
        task = Bundle.open(place).manifest.task if place.is_dir() else "promptable"
        found[name] = task, str(place)
    return found


def listen(options: ServeOptions, *, is_shared: bool = False, backlog: int | None = _BACKLOG) -> socket.socket:
    """Return a socket that listens where the options say; ``cannot_listen`` where that is not possible.

    A shared port may have several sockets; one without ``backlog`` is bound and does not listen.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Named, since asyncio sends answers without delay only then; else each waits 40 ms for the client's word.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((options.host, options.port))
        if backlog is not None:
            listener.listen(backlog)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {options.host} port {options.port}: {error.strerror}; choose another host or port"
        raise OutputError(message, code="cannot_listen") from None
    return listener


async def serve_on(
    listener: socket.socket,
    options: ServeOptions,
    models: dict[str, tuple[str, str]],
    started: Callable[[str], None] | None,
    *,
    inside: socket.socket | None = None,
    **how: Any,
) -> int:
    """Serve models on a socket that listens, and on one ``inside`` the machine; errors are those of `serve`.

    ``how`` is what `segship.serve.service.Service` takes besides options.
    """
    import uvicorn

    from segship.serve.app import make_app
    from segship.serve.protocol import Server, connection_class
    from segship.serve.service import Service

    if options.log != "none":
        _log_to_stderr()
    options = _with_room_for_files(options)
    asyncio.get_running_loop().set_exception_handler(_note_full_table)
    service = Service(options, **how)
    door = make_app(service, options)
    config = uvicorn.Config(
        door,
        http=connection_class(options.limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(options.drain_seconds)),
    )
    service.start(models)
    if started is not None:
        started(address_of(listener))
    server = Server(config, door.leave)
    losing = asyncio.ensure_future(_end_if_lost(service.lost, server))
    try:
        await server.serve(sockets=[listener] if inside is None else [listener, inside])
    finally:
        losing.cancel()
        await service.stop()
    if service.lost.is_set():
        failures = "; ".join(model.failure for model in service.models.values())
        raise BackendUnavailable(f"there is nothing left to serve: {failures}", code=MODEL_FAILED)
    return 0


async def _end_if_lost(lost: asyncio.Event, server: uvicorn.Server) -> None:
    """End a server for which there is nothing left to do: whoever watches over processes sees that at once."""
    await lost.wait()
    server.should_exit = True


def _with_room_for_files(options: ServeOptions) -> ServeOptions:
    """Let this process open as many files as its connections need, or else take fewer connections."""
    if find_spec("resource") is None:
        return options
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = _OTHER_FILES + 8 * len(options.bundle)
    wanted = options.limits.connections + others + _BACKLOG
    if not 0 <= soft < wanted:
        return options
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    connections = min(options.limits.connections, max(1, soft - others))
    return replace(options, limits=replace(options.limits, connections=connections))


def _note_full_table(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say in a line what asyncio says in a page for each connection that waits, thousands of times a second."""
    error = context.get("exception")
    if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
        loop.default_exception_handler(context)
        return
    if loop.time() - _noted.get(loop, -math.inf) > _NOTE_SECONDS:
        _noted[loop] = loop.time()
        print(f"segship serve: newcomers wait: {error.strerror}", file=sys.stderr, flush=True)


def address_of(listener: socket.socket) -> str:
    """Return where a socket listens, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr() -> None:
    log = logging.getLogger("segship.serve")
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.StreamHandler(sys.stderr))
