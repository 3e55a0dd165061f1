# SPDX-License-Identifier: Apache-2.0
"""The server's side: what the system refuses for a while is asked again, and told in words."""

import asyncio
import errno

import pytest

from segship.serve import server, workers
from segship.serve.errors import of_exception
from segship.serve.options import ServeLimits, ServeOptions


def test_a_worker_that_the_system_has_no_room_for_is_started_later(monkeypatch):
    tries = []

    async def refuse(*command, **how):
        tries.append(command)
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    async def scenario():
        monkeypatch.setattr(workers.asyncio, "create_subprocess_exec", refuse)
        one = workers.Worker("clicks", {}, lambda worker: None, "nothing")
        one.start()
        while len(tries) < 3:
            await asyncio.sleep(0.01)
        await one.stop()
        assert one.failure == "it cannot be started: Resource temporarily unavailable"

    monkeypatch.setattr(workers, "_FIRST_PAUSE", 0.01)
    asyncio.run(asyncio.wait_for(scenario(), 5))


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "no_space"), (errno.EMFILE, "overloaded")])
def test_what_the_system_has_no_more_of_may_be_asked_again(number, code):
    refusal = of_exception(OSError(number, "no"))
    assert (refusal.status, refusal.code, refusal.retry_after) == (503, code, 1)


@pytest.mark.parametrize(
    ("bounds", "asked", "connections"),
    [
        ((1024, 4096), (3064, 4096), 2000),
        ((64, 64), (64, 64), 24),
        ((9999, 9999), None, 2000),
        ((256, -1), (3064, -1), 2000),
    ],
)
def test_connections_are_no_more_than_files(monkeypatch, bounds, asked, connections):
    import resource

    told = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: bounds)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, wanted: told.append(wanted))
    found = server._with_room_for_files(ServeOptions(limits=ServeLimits(connections=2000)))
    assert found.limits.connections == connections and told == ([] if asked is None else [asked])


def test_newcomers_that_must_wait_are_told_once(capsys):
    loop = asyncio.new_event_loop()
    try:
        for _ in range(3):
            server._note_full_table(
                loop, {"message": "accept", "exception": OSError(errno.EMFILE, "Too many open files")}
            )
    finally:
        loop.close()
    assert capsys.readouterr().err == "segship serve: newcomers wait: Too many open files\n"
