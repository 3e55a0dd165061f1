# SPDX-License-Identifier: Apache-2.0
"""The server's side: what the system refuses for a while is asked again, what fails for good ends, both in words."""

import asyncio
import errno
import os
import time

import pytest

from segship.errors import BackendUnavailable
from segship.serve import server, workers
from segship.serve.errors import Refusal, of_exception
from segship.serve.options import ServeLimits, ServeOptions
from segship.serve.service import Service


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


def test_a_worker_that_never_gets_ready_is_given_up(monkeypatch):
    told = []

    async def scenario():
        one = workers.Worker("clicks", {}, told.append, "no_such_module")
        one.start()
        while not one.has_given_up:
            await asyncio.sleep(0.01)
        await one.stop()
        assert told == [one] and one.restarts == 2
        assert one.failure == "its process ended with 1 before it was ready"

    monkeypatch.setattr(workers, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(workers, "_MOST_STARTS", 2)
    asyncio.run(asyncio.wait_for(scenario(), 20))


WRONG = """
from benchmarks.serving import stub
from segship.masks.rle import decode_rle, encode_rle
from segship.serve import worker

class Encoder(stub.Encoder):
    def __init__(self, settings):
        super().__init__(settings)
        self.place = settings["model"]
        if self.place == "broken":
            raise ValueError("it cannot be read")

    def describe(self):
        golden = encode_rle(decode_rle(stub.RLE) & (self.place == "right"))
        return {**super().describe(), "golden": golden}

worker.KINDS["encoder"] = Encoder
worker.main()
"""


@pytest.fixture
def wrong_models(tmp_path, monkeypatch):
    """Worker module whose models find the known mask only if they are called right, and do not load if broken."""
    (tmp_path / "wrong_models.py").write_text(WRONG)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(workers, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(workers, "_MOST_STARTS", 2)
    return "wrong_models"


def test_a_model_that_fails_for_good_says_why_and_hinders_no_other(wrong_models, capfd):
    async def scenario():
        service = Service(ServeOptions(), worker_module=wrong_models)
        names = ("right", "wrong", "broken")
        service.start({name: ("promptable", name) for name in names})
        try:
            while not all(model.is_right or model.is_lost for model in service.models.values()):
                await asyncio.sleep(0.02)
            assert service.model(None, "promptable").name == "right"
            assert not service.ready and not service.lost.is_set()
            found = {}
            for name in names[1:]:
                with pytest.raises(Refusal) as caught:
                    service.model(name, "promptable")
                told = caught.value.to_dict("")
                assert (caught.value.status, told["code"], told["retryable"]) == (503, "model_failed", False)
                found[name] = told["message"]
            assert found["broken"] == "broken cannot be loaded; the log of the server says why"
            assert found["wrong"].startswith("wrong failed its self-test: a known click agrees with its mask to 0.000")
            assert [model.to_dict()["failure"] for model in service.models.values()] == [None, *found.values()]
        finally:
            await service.stop()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    log = capfd.readouterr().err
    assert "wrong is given up: a known click" in log and "broken is given up: " in log


def test_a_server_without_a_model_that_could_answer_ends(wrong_models):
    options = ServeOptions(port=0, log="none")
    began = time.monotonic()
    with (
        server.listen(options) as listener,
        pytest.raises(BackendUnavailable, match="wrong failed its self-") as caught,
    ):
        asyncio.run(
            server.serve_on(listener, options, {"wrong": ("promptable", "wrong")}, None, worker_module=wrong_models)
        )
    assert caught.value.code == "model_failed" and time.monotonic() - began < 20


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
