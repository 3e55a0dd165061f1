# SPDX-License-Identifier: Apache-2.0
"""What the server does for its routes: pictures in, masks and classes out, each through its lanes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segship.arrays import AnyArray
from segship.images.reading import DEMO_POINT_XY, demo_photograph
from segship.masks.rle import decode_rle
from segship.masks.scores import mask_iou
from segship.serve import wire
from segship.serve.cache import EmbeddingCache, Entry
from segship.serve.errors import MODEL_FAILED, Refusal, of_exception
from segship.serve.lanes import Lane, PoisonList
from segship.serve.options import ServeOptions
from segship.serve.questions import Query, read_everything
from segship.serve.shards import Shard
from segship.serve.tensors import InferRequest, spec_from_json
from segship.serve.wire import Header, Stored
from segship.serve.workers import Reply, Worker
from segship.spec import GraphSpec

WORKER_MODULE = "segship.serve.worker"
_GOLDEN_IOU = 0.99
# Self-tests of a model whose workers die at it.
_MOST_TESTS = 3
_FOLDER = "segship-serve-"
# Of the machine's own scheduler: encoding gives way to clicks.
_NICE = {"encoder": 10, "classes": 10, "pictures": 5, "clicks": 0}
# Hashing so many bytes takes longer than going to another thread and back.
_SMALL = 256 * 1024
_READING_QUEUE = 32
# Which lane runs a graph for tensors that a client has made.
_LANES = {"image_encoder": "encode", "mask_decoder": "decode", "semantic": "classes"}


@dataclass(slots=True, eq=False)
class Model:
    """One bundle that is served: its workers and their lanes."""

    name: str
    workers: tuple[Worker, ...]
    lanes: dict[str, Lane]
    is_right: bool = False
    """Whether it has passed the self-test."""
    failure: str = ""
    """Why it does not answer now; for good if it is lost."""
    is_lost: bool = False
    """Whether it will never answer: it found a wrong mask, or a worker was started in vain too often."""

    @property
    def description(self) -> Header:
        """What its first worker says of it."""
        return self.workers[0].description

    @property
    def task(self) -> str:
        """``promptable`` or ``semantic``."""
        return "semantic" if "classes" in self.lanes else "promptable"

    @property
    def version(self) -> str:
        """Its name and the beginning of its digest."""
        return f"{self.name}:{self.description['digest'][:12]}"

    @property
    def ready(self) -> bool:
        """Whether it answers, and rightly."""
        return self.is_right and all(worker.ready for worker in self.workers)

    def to_dict(self) -> dict[str, Any]:
        """Return what GET /v1/models says."""
        hidden = ("golden", "runs_on", "aspect_ratio", "graphs")
        said = {key: value for key, value in self.description.items() if key not in hidden}
        known = {"ready": self.ready, "failure": self.failure or None}
        return {"name": self.name, "task": self.task, **known, "classes": None, **said}


@dataclass(slots=True, eq=False)
class _Flight:
    task: asyncio.Task[tuple[Entry, dict[str, float]]]
    waiters: int = 0


@dataclass(slots=True)
class Timings:
    """Milliseconds of what was done for one request."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, reply: Reply, waited: float) -> None:
        """Count a job, and the wait before it."""
        self.milliseconds["queue"] = round(self.milliseconds.get("queue", 0.0) + 1e3 * waited, 2)
        self.milliseconds[stage] = round(1e3 * reply.seconds, 2)


class Service:
    """Workers, lanes and what is kept of pictures; routes ask it, and know nothing of processes.

    Parameters
    ----------
    options
        What the server was told.
    shard
        Which of several processes this is.
    worker_module
        What its workers run; load tests have models that only wait.
    """

    def __init__(self, options: ServeOptions, shard: Shard | None = None, worker_module: str = WORKER_MODULE) -> None:
        self.options = options
        self.shard = shard or Shard()
        self._worker_module = worker_module
        self.folder = _make_folder()
        self.cache = EmbeddingCache(options.cache_bytes, options.cache_seconds, self._drop)
        self.poison = PoisonList()
        self._flights: dict[tuple[str, str, str], _Flight] = {}
        self._background: set[asyncio.Task[Any]] = set()
        limits = options.limits
        self.pictures = self._worker("pictures", {})
        self.reading = self._lane("read", self.pictures, _READING_QUEUE, limits.read_seconds)
        self.models: dict[str, Model] = {}
        self.lost = asyncio.Event()
        """Set once no model is left that may ever answer."""

    def start(self, tasks: Mapping[str, tuple[str, str]]) -> None:
        """Start every worker; ``tasks`` are name -> task and place of the models, the first the one by default."""
        self.pictures.start()
        for name, (task, place) in tasks.items():
            self.models[name] = self._semantic(name, place) if task == "semantic" else self._promptable(name, place)
            for worker in self.models[name].workers:
                worker.start()
            self._spawn(self._prove(self.models[name]))

    async def stop(self) -> None:
        """End every worker, and leave nothing on the disk."""
        for task in self._background:
            task.cancel()
        workers = [self.pictures, *(worker for model in self.models.values() for worker in model.workers)]
        await asyncio.gather(*(worker.stop() for worker in workers))
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def workers(self) -> dict[str, Worker]:
        """Every worker by a name for people."""
        found = {"pictures": self.pictures}
        for model in self.models.values():
            found |= {f"{model.name} {worker.kind}": worker for worker in model.workers}
        return found

    @property
    def lanes(self) -> dict[tuple[str, str], Lane]:
        """Every lane by the names of its model and its own."""
        found = {("", "read"): self.reading}
        for model in self.models.values():
            found |= {(model.name, name): lane for name, lane in model.lanes.items()}
        return found

    @property
    def ready(self) -> bool:
        """Whether every model answers, and rightly."""
        return self.pictures.ready and all(model.ready for model in self.models.values())

    def model(self, name: str | None, task: str) -> Model:
        """Return a model by its name, or the first of a task.

        Raises
        ------
        Refusal
            ``unknown_model``, ``other_family`` for one of another task, ``starting`` for one that is not there yet,
            ``model_failed`` for one that never will be.
        """
        able = [model for model in self.models.values() if model.task == task]
        if name is None and not able:
            raise Refusal(404, "unknown_model", f"no {task} model is served here")
        found = able[0] if name is None else self.models.get(name)
        if found is None:
            raise Refusal(404, "unknown_model", f"there is no such model; there are {', '.join(self.models)}")
        if found.task != task:
            raise Refusal(422, "other_family", f"{found.name} is a {found.task} model, and a {task} one is needed")
        if found.is_lost:
            raise Refusal(503, MODEL_FAILED, found.failure)
        if not found.is_right:
            message = found.failure or f"{found.name} is being loaded; ask again"
            raise Refusal(503, "starting", message, retry_after=1)
        return found

    async def upload(
        self, owner: str, model: Model, data: bytes, deadline: float
    ) -> tuple[Entry, dict[str, float], bool]:
        """Encode a picture, unless it is kept already, or somebody's same picture is on its way.

        Returns
        -------
        tuple
            The entry, milliseconds of what was done, and whether it was kept.
        """
        digest = await digest_of(data)
        kept = self.cache.find(owner, model.name, digest)
        if kept is not None:
            return kept, {}, True
        key = (owner, model.name, digest)
        flight = self._flights.get(key)
        if flight is None:
            ends = time.monotonic() + self.options.limits.encode_seconds
            task = asyncio.get_running_loop().create_task(self._encode(owner, model, data, digest, max(ends, deadline)))
            flight = self._flights[key] = _Flight(task)
            task.add_done_callback(lambda done: self._land(key, done))
        entry, milliseconds = await self._wait_for(key, flight, deadline)
        return entry, milliseconds, False

    async def _wait_for(
        self, key: tuple[str, str, str], flight: _Flight, deadline: float
    ) -> tuple[Entry, dict[str, float]]:
        flight.waiters += 1
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.shield(flight.task)
        except TimeoutError:
            message = "the picture was not encoded before the deadline; ask again, or allow more time"
            raise Refusal(504, "deadline_exceeded", message) from None
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()

    def _land(self, key: tuple[str, str, str], done: asyncio.Task[Any]) -> None:
        if (flight := self._flights.get(key)) is not None and flight.task is done:
            del self._flights[key]
        # Perhaps nobody waits for it any more, which asyncio would complain of.
        if not done.cancelled():
            done.exception()

    async def _encode(
        self, owner: str, model: Model, data: bytes, digest: str, deadline: float
    ) -> tuple[Entry, dict[str, float]]:
        timings = Timings()
        source = await self._store({"source": np.frombuffer(data, np.uint8)})
        try:
            async with _Pixels(self, source, digest, deadline, timings) as read:
                header = {"pixels": read["pixels"], "notes": read["notes"]}
                reply, waited = await model.lanes["encode"].run("encode", header, deadline=deadline, digest=digest)
        except BaseException:
            wire.discard(self.folder, source)
            raise
        timings.add("encode", reply, waited)
        found = reply.header
        entry = Entry(
            id=self.shard.new_handle(),
            owner=owner,
            model=model.name,
            digest=digest,
            width=read["width"],
            height=read["height"],
            input_size=tuple(found["input_size"]),
            notes=tuple(read["notes"]),
            source=source,
            embedding=Stored.from_json(found["stored"]),
        )
        return self.cache.add(entry), timings.milliseconds

    async def _store(self, arrays: Mapping[str, AnyArray]) -> Stored:
        """Store arrays in another thread; of what is stored for nobody any more nothing stays."""
        storing = asyncio.ensure_future(asyncio.to_thread(wire.store, self.folder, arrays))
        try:
            return await asyncio.shield(storing)
        except asyncio.CancelledError:
            storing.add_done_callback(self._unstore)
            raise

    def _unstore(self, done: asyncio.Future[Stored]) -> None:
        if not done.cancelled() and done.exception() is None:
            wire.discard(self.folder, done.result())

    def _discard_unclaimed(self, header: Header) -> None:
        """Delete what a worker has stored for an answer that nobody waits for."""
        for name in ("pixels", "stored"):
            # A worker that says what is no message is ended elsewhere.
            with suppress(KeyError, TypeError, ValueError):
                wire.discard(self.folder, Stored.from_json(header[name]))

    def _lane(self, name: str, worker: Worker, most: int, stuck_seconds: float) -> Lane:
        return Lane(name, worker, most, stuck_seconds, self.poison, self._discard_unclaimed)

    async def picture(self, entry: Entry, deadline: float) -> tuple[bytes, str]:
        """Return a picture that is kept as a file that every browser shows, and its media type."""
        header = {"source": entry.source.to_json()}
        with self.cache.in_use(entry):
            ends = self.reading_ends(deadline)
            reply, _ = await self.reading.run("show", header, deadline=ends, digest=entry.digest)
        return reply.body, reply.header["kind"]

    def reading_ends(self, deadline: float) -> float:
        """Return until when a picture that is asked for now must be read."""
        usual = time.monotonic() + self.options.limits.read_seconds + self.reading.expected_wait()
        return min(deadline, usual)

    async def masks(
        self, entry: Entry, deadline: float, *, body: bytes = b"", query: Query | None = None
    ) -> tuple[bytes, Timings]:
        """Return the JSON of masks of prompts, which stand in a body or in a query."""
        timings = Timings()
        header = entry.header() if query is None else {**entry.header(), "query": query}
        digest = hashlib.sha256(entry.digest.encode() + body + repr(query).encode()).hexdigest()
        with self.cache.in_use(entry):
            lane = self.models[entry.model].lanes["decode"]
            reply, waited = await lane.run("masks", header, body, deadline=deadline, digest=digest)
        timings.add("decode", reply, waited)
        return reply.body, timings

    async def everything(self, entry: Entry, deadline: float, body: bytes) -> AsyncIterator[Header]:
        """Yield progress, records and the end of everything in a picture, as they come; closing it ends the work."""
        model = self.models[entry.model]
        lane, parts = model.lanes["everything"], asyncio.Queue[Header]()
        digest = hashlib.sha256(entry.digest.encode() + body).hexdigest()

        async def work() -> None:
            with self.cache.in_use(entry):
                if read_everything(body, self.options.prompt_limits).crop_n_layers:
                    async with _Pixels(self, entry.source, entry.digest, deadline, Timings()) as read:
                        header = {"pixels": read["pixels"], "notes": read["notes"]}
                        await self._find(lane, header, body, deadline, digest, parts)
                else:
                    await self._find(lane, entry.header(), body, deadline, digest, parts)

        task = asyncio.get_running_loop().create_task(work())
        try:
            async for part in _until_done(task, parts):
                yield part
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _find(
        self, lane: Lane, header: Header, body: bytes, deadline: float, digest: str, parts: asyncio.Queue[Header]
    ) -> None:
        reply, waited = await lane.run(
            "everything", header, body, deadline=deadline, digest=digest, tell=parts.put_nowait
        )
        end = {key: reply.header[key] for key in ("type", "records", "notes")}
        parts.put_nowait(
            {**end, "milliseconds": {"queue": round(1e3 * waited, 2), "run": round(1e3 * reply.seconds, 2)}}
        )

    def graph(self, name: str) -> tuple[Model, GraphSpec]:
        """Return the model of a graph by a name like tiny.mask_decoder, and its contract; raises ``unknown_model``."""
        before, _, graph = name.rpartition(".")
        model = self.models.get(before)
        found = {} if model is None else model.description.get("graphs", {})
        if model is None or graph not in found:
            raise Refusal(404, "unknown_model", f"there is no such graph; there are {', '.join(self.graphs())}")
        return model, spec_from_json(graph, found[graph])

    def graphs(self) -> list[str]:
        """Return the name of every graph."""
        return [
            f"{name}.{graph}" for name, model in self.models.items() for graph in model.description.get("graphs", {})
        ]

    async def infer(
        self, name: str, request: InferRequest, data: bytes, deadline: float
    ) -> tuple[bytes, int | None, Timings]:
        """Return what a graph makes of tensors, as a body of the protocol, and how much of it is JSON."""
        (model, spec), timings, digest = self.graph(name), Timings(), await digest_of(data)
        stored = await self._store(request.arrays)
        header = {"graph": spec.name, "stored": stored.to_json(), "model_name": name, "id": request.id}
        try:
            lane = model.lanes[_LANES[spec.name]]
            reply, waited = await lane.run(
                "infer", {**header, "outputs": request.outputs}, deadline=deadline, digest=digest
            )
        finally:
            wire.discard(self.folder, stored)
        timings.add("infer", reply, waited)
        return reply.body, reply.header["json"], timings

    async def semantic(self, model: Model, data: bytes, query: Query, deadline: float) -> tuple[bytes, Timings]:
        """Return the JSON of the class map of a picture."""
        timings, digest = Timings(), await digest_of(data)
        source = await self._store({"source": np.frombuffer(data, np.uint8)})
        try:
            async with _Pixels(self, source, digest, deadline, timings) as read:
                header = {"pixels": read["pixels"], "notes": read["notes"], "query": query}
                reply, waited = await model.lanes["classes"].run("segment", header, deadline=deadline, digest=digest)
        finally:
            wire.discard(self.folder, source)
        timings.add("segment", reply, waited)
        return reply.body, timings

    def _promptable(self, name: str, place: str) -> Model:
        limits = self.options.limits
        encoder, clicks = self._model_worker("encoder", place), self._model_worker("clicks", place)
        lanes = {
            "encode": self._lane("encode", encoder, limits.encode_queue, 4 * limits.encode_seconds),
            "everything": self._lane("everything", encoder, limits.everything_queue, limits.encode_seconds),
            "decode": self._lane("decode", clicks, limits.decode_queue, 4 * limits.decode_seconds),
        }
        return Model(name, (encoder, clicks), lanes)

    def _semantic(self, name: str, place: str) -> Model:
        limits, worker = self.options.limits, self._model_worker("classes", place)
        lane = self._lane("classes", worker, limits.encode_queue, 4 * limits.encode_seconds)
        return Model(name, (worker,), {"classes": lane})

    def _model_worker(self, kind: str, place: str) -> Worker:
        return self._worker(kind, {"model": place, "run": asdict(self.options.run)})

    def _worker(self, kind: str, more: Header) -> Worker:
        options = self.options
        settings = {
            "folder": str(self.folder),
            "image_limits": asdict(options.image_limits),
            "prompt_limits": asdict(options.prompt_limits),
            "nice": _NICE[kind],
            **more,
        }
        return Worker(kind, settings, self._notice, self._worker_module)

    def _notice(self, worker: Worker) -> None:
        for lane in self.lanes.values():
            lane.notice(worker)
        if worker.has_given_up:
            for model in self.models.values():
                if worker in (self.pictures, *model.workers):
                    self._lose(model, f"{model.name} cannot be loaded; the log of the server says why", worker.failure)

    def _lose(self, model: Model, failure: str, why: str) -> None:
        """Take notice that a model will never answer."""
        model.is_right, model.is_lost, model.failure = False, True, failure
        print(f"segship serve: {model.name} is given up: {why}", file=sys.stderr, flush=True)
        if all(one.is_lost for one in self.models.values()):
            self.lost.set()

    def _drop(self, entry: Entry) -> None:
        for stored in (entry.source, entry.embedding):
            wire.discard(self.folder, stored)
        model = self.models.get(entry.model)
        clicks = None if model is None else model.lanes["decode"].worker
        if clicks is not None and clicks.ready:
            clicks.ask("decode", "forget", {"file": entry.embedding.file})

    async def _prove(self, model: Model) -> None:
        """Ask what must be found, until the answer is right: a model that is wrong is never ready."""
        for tries_left in reversed(range(_MOST_TESTS)):
            await self._until_loaded(model)
            if model.is_lost:
                return
            data, deadline = demo_photograph().read_bytes(), time.monotonic() + 600.0
            try:
                if model.task == "semantic":
                    await self.semantic(model, data, [("format", "rle")], deadline)
                else:
                    await self._prove_masks(model, data, deadline)
            except Exception as error:
                refusal = of_exception(error)
                model.failure = f"{model.name} failed its self-test: {refusal.message}"
                # A worker that was killed says nothing of the model.
                if refusal.code != "worker_died" or not tries_left:
                    self._lose(model, model.failure, refusal.message)
                    return
            else:
                model.is_right, model.failure = True, ""
                return

    async def _until_loaded(self, model: Model) -> None:
        """Wait until every worker of a model is there, or it is lost."""
        while not model.is_lost and not (self.pictures.ready and all(worker.ready for worker in model.workers)):
            failures = [worker.failure for worker in (self.pictures, *model.workers) if worker.failure]
            if failures and not model.failure:
                model.failure = f"{model.name} cannot be loaded; the log of the server says why"
                print(f"segship serve: {model.name}: {failures[0]}", file=sys.stderr, flush=True)
            await asyncio.sleep(0.05)

    async def _prove_masks(self, model: Model, data: bytes, deadline: float) -> None:
        entry, _, _ = await self.upload("", model, data, deadline)
        x, y = DEMO_POINT_XY
        body, _ = await self.masks(entry, deadline, query=[("point", f"{x},{y}")])
        found = decode_rle(json.loads(body)["objects"][0]["masks"][0]["segmentation"])
        expected = decode_rle(model.description["golden"])
        agreement = float(mask_iou(found, expected))
        if not agreement >= _GOLDEN_IOU:
            message = f"a known click agrees with its mask to {agreement:.3f}; {_GOLDEN_IOU} are needed"
            raise Refusal(503, "self_test_failed", message)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class _Pixels:
    """The pixels of a picture, in a file while they are needed."""

    def __init__(self, service: Service, source: Stored, digest: str, deadline: float, timings: Timings) -> None:
        self._service, self._source, self._digest = service, source, digest
        self._deadline, self._timings = deadline, timings
        self._pixels: Stored | None = None

    async def __aenter__(self) -> Header:
        service = self._service
        ends = service.reading_ends(self._deadline)
        header = {"source": self._source.to_json()}
        reply, waited = await service.reading.run("read", header, deadline=ends, digest=self._digest)
        self._timings.add("read", reply, waited)
        self._pixels = Stored.from_json(reply.header["pixels"])
        return reply.header

    async def __aexit__(self, *_: object) -> None:
        if self._pixels is not None:
            wire.discard(self._service.folder, self._pixels)


async def _until_done(task: asyncio.Task[None], parts: asyncio.Queue[Header]) -> AsyncIterator[Header]:
    """Yield what is put into a queue until a task is done and the queue is empty; raises what the task has raised."""
    while True:
        part = asyncio.get_running_loop().create_task(parts.get())
        try:
            await asyncio.wait({part, task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Whoever listens may leave while it waits.
            is_there = part.done() or not part.cancel()
        if is_there:
            yield part.result()
            continue
        task.result()
        while not parts.empty():
            yield parts.get_nowait()
        return


async def digest_of(data: bytes) -> str:
    """Return the SHA-256 of bytes, in another thread if they are many."""
    if len(data) <= _SMALL:
        return hashlib.sha256(data).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())


def _make_folder() -> Path:
    """Make a folder in memory where there is such, and remove those of servers that are no more."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_FOLDER}*"):
        number = left.name.removeprefix(_FOLDER).partition("-")[0]
        if number.isdigit() and not _is_running(int(number)) and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=parent))


def _is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
