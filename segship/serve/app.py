# SPDX-License-Identifier: Apache-2.0
"""The routes: one table, from which the application, its document and the tests of every door are made."""

from __future__ import annotations

import asyncio
import json
import math
import mimetypes
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

import segship
from segship.errors import InputError, way
from segship.images.reading import demo_photograph
from segship.serve.cache import Entry
from segship.serve.door import VISIT, Door, Guard, Receive, Send
from segship.serve.errors import NO_SPACE, Refusal, of_exception
from segship.serve.fetching import Fetcher
from segship.serve.labelling import cvat_answer, label_studio_result, read_cvat, read_label_studio
from segship.serve.metrics import Metrics
from segship.serve.openapi import make_document
from segship.serve.options import Scope, ServeOptions
from segship.serve.protocol import BODY, read_body
from segship.serve.questions import read_everything
from segship.serve.service import Service, Timings, digest_of
from segship.serve.tensors import EXTENSION, HEADER_LENGTH, describe_graph, read_request
from segship.serve.wire import Header

_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"sample.jpg": demo_photograph()}
_ENCODE_TOKENS, _POINTS_A_TOKEN = 10.0, 50.0
_DEADLINE = "segship-deadline"
LABEL_STUDIO_TOKEN = "SEGSHIP_LABEL_STUDIO_TOKEN"
_MOST_DEADLINE = 600.0

Endpoint = Callable[["Routes", Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Row:
    """One route.

    Attributes
    ----------
    method, path
        What is asked for.
    name
        Of the method of `Routes` that answers, and in metrics.
    scope
        What a key must allow; None lets everybody in.
    """

    method: str
    path: str
    name: str
    scope: Scope | None = "predict"


ROUTES = (
    Row("GET", "/v1/models", "models"),
    Row("POST", "/v1/images", "upload"),
    Row("GET", "/v1/images/{id}", "image"),
    Row("DELETE", "/v1/images/{id}", "delete"),
    Row("GET", "/v1/images/{id}/picture", "picture"),
    Row("POST", "/v1/images/{id}/masks", "masks"),
    Row("POST", "/v1/images/{id}/everything", "everything"),
    Row("POST", "/v1/segment", "segment"),
    Row("POST", "/v1/semantic", "semantic"),
    Row("POST", "/setup", "setup"),
    Row("POST", "/predict", "predict"),
    Row("GET", "/health", "health", None),
    Row("POST", "/cvat/interactor", "cvat"),
    Row("GET", "/v2/health/live", "live", None),
    Row("GET", "/v2/health/ready", "ready", None),
    Row("GET", "/metrics", "metrics", "metrics"),
    Row("GET", "/openapi.json", "openapi", None),
)
TENSOR_ROUTES = (
    Row("GET", "/v2", "tensors"),
    Row("GET", "/v2/models/{model}", "graph"),
    Row("GET", "/v2/models/{model}/ready", "graph_ready"),
    Row("POST", "/v2/models/{model}/infer", "infer"),
)
"""Of the Open Inference Protocol, where it is switched on."""
PAGE_ROUTES = (Row("GET", "/", "index", None), Row("GET", "/page/{file}", "page", None))


def rows_of(options: ServeOptions) -> tuple[Row, ...]:
    """Return the routes that a server has."""
    return ROUTES + (TENSOR_ROUTES if options.tensors else ()) + (PAGE_ROUTES if options.page else ())


def make_app(service: Service, options: ServeOptions) -> Door:
    """Return the application of a service, with its door."""
    metrics = Metrics(service)
    routes = Routes(service, options, metrics)
    rows = [Route(row.path, partial(routes.answer, row), methods=[row.method]) for row in rows_of(options)]
    router = Router(rows, redirect_slashes=False)

    async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        # Its presence makes the router raise what it would answer in words of its own.
        scope["app"] = app
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            raise _unknown(error.status_code) from None
        except (OSError, Refusal) as error:
            if (refusal := of_exception(error)).code == NO_SPACE:
                service.cache.make_room()
            raise refusal from error

    door = Door(app, options, metrics)
    routes.is_leaving = lambda: door.is_leaving
    return door


def _unknown(status: int) -> Refusal:
    code, message = {
        404: ("not_found", "there is nothing here; GET /openapi.json says what there is"),
        405: ("method_not_allowed", "this cannot be done here; GET /openapi.json says what can"),
    }.get(status, ("bad_request", "this is not understood"))
    return Refusal(status, code, message)


class Routes:
    """What answers each route; `ROUTES` says which."""

    def __init__(self, service: Service, options: ServeOptions, metrics: Metrics) -> None:
        self.is_leaving: Callable[[], bool] = lambda: False
        self._service = service
        self._options = options
        self._metrics = metrics
        self._guard = Guard(options)
        self._fetcher = None
        if options.label_studio is not None:
            token = os.environ.get(LABEL_STUDIO_TOKEN)
            self._fetcher = Fetcher(options.label_studio, token, options.limits.body_bytes)

    async def answer(self, row: Row, request: Request) -> Response:
        """Let those in who may, and answer."""
        request.scope[VISIT].route = row.name
        request.scope[VISIT].plain_errors = row in TENSOR_ROUTES
        if row.scope is not None:
            self._guard.admit(request, row.scope)
        elsewhere = await self._elsewhere(row, request)
        if elsewhere is not None:
            return await self._service.shard.pass_on(elsewhere, request, request.scope[BODY])
        endpoint: Callable[[Request], Awaitable[Response]] = getattr(self, row.name)
        return await endpoint(request)

    async def _elsewhere(self, row: Row, request: Request) -> int | None:
        """Return which other process has the picture of a request; None where it belongs here."""
        shard, limits = self._service.shard, self._options.limits
        if shard.count == 1 or shard.is_passed_on(request):
            return None
        if row.name in ("upload", "segment"):
            request.scope[BODY] = data = await read_body(request, limits.body_bytes, "body_bytes")
            there = shard.of_digest(await digest_of(data))
        elif row.name in ("predict", "cvat"):
            request.scope[BODY] = data = await read_body(request, limits.body_bytes, "body_bytes")
            pictured = self._pictured(row.name, data)
            there = shard.index if pictured is None else shard.of_digest(await digest_of(pictured))
        elif "id" in request.path_params:
            there = shard.of_handle(request.path_params["id"])
            if there != shard.index:
                request.scope[BODY] = await read_body(request, limits.json_bytes, "json_bytes")
        else:
            return None
        return None if there == shard.index else there

    def _pictured(self, name: str, body: bytes) -> bytes | None:
        """Return the picture in a question of a program that people label with, or else its address; None without."""
        if name == "cvat":
            return read_cvat(body, self._options.prompt_limits)[0]
        drawing = read_label_studio(body, self._options.prompt_limits)
        if isinstance(drawing, int):
            return None
        return drawing.picture if drawing.picture is not None else drawing.address.encode()

    async def models(self, request: Request) -> Response:
        """What is served, and every limit."""
        models = [model.to_dict() for model in self._service.models.values()]
        return JSONResponse({"version": segship.__version__, "models": models, "limits": self.limits()})

    def limits(self) -> dict[str, Any]:
        """Return every limit by its name."""
        image, prompt = self._options.image_limits, self._options.prompt_limits
        ratios = [model.description.get("aspect_ratio", image.aspect_ratio) for model in self._service.models.values()]
        return {
            "pixels": image.pixels,
            "side": image.side,
            "aspect_ratio": min(ratios, default=image.aspect_ratio),
            "objects": prompt.objects,
            "points_per_object": prompt.points_per_object,
            "json_depth": prompt.json_depth,
            **asdict(self._options.limits),
        }

    async def upload(self, request: Request) -> Response:
        """Encode a picture."""
        entry, milliseconds, cached = await self._upload(request, self._deadline(request, "encode"))
        return JSONResponse({**self._describe(entry), "cached": cached, "milliseconds": milliseconds})

    async def _upload(self, request: Request, deadline: float) -> tuple[Entry, dict[str, float], bool]:
        model = self._service.model(request.query_params.get("model"), "promptable")
        self._guard.charge(request, _ENCODE_TOKENS)
        data = await read_body(request, self._options.limits.body_bytes, "body_bytes")
        return await self._service.upload(request.scope[VISIT].owner, model, data, deadline)

    def _describe(self, entry: Entry) -> dict[str, Any]:
        return {
            "id": entry.id,
            "model": entry.model,
            "width": entry.width,
            "height": entry.height,
            "notes": entry.notes,
            "expires_in": self._options.cache_seconds,
        }

    async def image(self, request: Request) -> Response:
        """What is known of a picture."""
        return JSONResponse(self._describe(self._entry(request)))

    def _entry(self, request: Request) -> Entry:
        return self._service.cache.get(request.scope[VISIT].owner, request.path_params["id"])

    async def delete(self, request: Request) -> Response:
        """Forget a picture."""
        self._service.cache.remove(self._entry(request))
        return JSONResponse({"deleted": True})

    async def picture(self, request: Request) -> Response:
        """A picture that was sent, upright and as a browser shows it: PNG, or JPEG of a large one."""
        deadline = self._deadline(request, "read")
        self._guard.charge(request, _ENCODE_TOKENS)
        data, kind = await self._service.picture(self._entry(request), deadline)
        return Response(data, media_type=kind, headers={"cache-control": "no-store"})

    async def masks(self, request: Request) -> Response:
        """Masks of prompts in a picture that was sent."""
        deadline = self._deadline(request, "decode")
        self._guard.charge(request, 1.0)
        body = await read_body(request, self._options.limits.json_bytes, "json_bytes")
        entry = self._entry(request)
        answer, timings = await self._service.masks(entry, deadline, body=body)
        return _spliced(answer, timings, id=entry.id)

    async def segment(self, request: Request) -> Response:
        """Masks of prompts in a picture that comes with them."""
        deadline = self._deadline(request, "encode")
        entry, milliseconds, _ = await self._upload(request, deadline)
        answer, timings = await self._service.masks(entry, deadline, query=request.query_params.multi_items())
        timings.milliseconds = _added(milliseconds, timings.milliseconds)
        return _spliced(answer, timings, id=entry.id, model=entry.model)

    async def semantic(self, request: Request) -> Response:
        """Classes of all pixels of a picture."""
        deadline = self._deadline(request, "encode")
        model = self._service.model(request.query_params.get("model"), "semantic")
        self._guard.charge(request, _ENCODE_TOKENS)
        data = await read_body(request, self._options.limits.body_bytes, "body_bytes")
        query = request.query_params.multi_items()
        answer, timings = await self._service.semantic(model, data, query, deadline)
        return _spliced(answer, timings, model=model.name)

    async def everything(self, request: Request) -> Response:
        """Everything in a picture, as it is found."""
        deadline = self._deadline(request, "everything")
        body = await read_body(request, self._options.limits.json_bytes, "json_bytes")
        options = read_everything(body, self._options.prompt_limits)
        self._guard.charge(request, max(1.0, (options.points_per_side or 32) ** 2 / _POINTS_A_TOKEN))
        parts = self._service.everything(self._entry(request), deadline, body)
        # What is refused before the first part still has a status of its own.
        first = await anext(parts)
        is_events = "text/event-stream" in request.headers.get("accept", "")
        lines = _lines(first, parts, request.scope[VISIT].id, b"data: %s\n\n" if is_events else b"%s\n")
        kind = "text/event-stream" if is_events else "application/x-ndjson"
        return StreamingResponse(lines, media_type=kind, headers={"cache-control": "no-store"})

    async def setup(self, request: Request) -> Response:
        """What Label Studio asks when a project begins to use the model; what it says of itself is not needed."""
        await read_body(request, self._options.limits.json_bytes, "json_bytes")
        return JSONResponse({"model_version": self._service.model(None, "promptable").version})

    async def health(self, request: Request) -> Response:
        """Whether the server is there, for Label Studio."""
        return JSONResponse({"status": "UP", "model_class": "segship"})

    async def predict(self, request: Request) -> Response:
        """Regions for what somebody has drawn in Label Studio."""
        deadline, model = self._deadline(request, "encode"), self._service.model(None, "promptable")
        self._guard.charge(request, _ENCODE_TOKENS)
        body = await read_body(request, self._options.limits.body_bytes, "body_bytes")
        drawing = read_label_studio(body, self._options.prompt_limits)
        if isinstance(drawing, int):
            empty = {"model_version": model.version, "score": 0.0, "result": []}
            return JSONResponse({"results": [empty] * drawing, "model_version": model.version})
        data = drawing.picture if drawing.picture is not None else await self._fetch(drawing.address)
        entry, _, _ = await self._service.upload(request.scope[VISIT].owner, model, data, deadline)
        answer, _ = await self._service.masks(entry, deadline, body=drawing.prompts((entry.height, entry.width)))
        regions = await asyncio.to_thread(label_studio_result, drawing, answer)
        score = max((region["score"] for region in regions), default=0.0)
        one = {"model_version": model.version, "score": score, "result": regions}
        return JSONResponse({"results": [one], "model_version": model.version})

    async def _fetch(self, address: str) -> bytes:
        if self._fetcher is None:
            way_out = way("label_studio=", "--label-studio", "label_studio")
            message = f"a task names its picture by an address, and none is fetched; start the server with {way_out}"
            raise InputError(message, code="no_fetching")
        return await self._fetcher.fetch(address)

    async def cvat(self, request: Request) -> Response:
        """A mask of clicks, as CVAT's functions give it."""
        deadline = self._deadline(request, "encode")
        model = self._service.model(request.query_params.get("model"), "promptable")
        self._guard.charge(request, _ENCODE_TOKENS)
        body = await read_body(request, self._options.limits.body_bytes, "body_bytes")
        data, prompts = read_cvat(body, self._options.prompt_limits)
        entry, _, _ = await self._service.upload(request.scope[VISIT].owner, model, data, deadline)
        answer, _ = await self._service.masks(entry, deadline, body=prompts)
        text = await asyncio.to_thread(cvat_answer, answer, self._options.limits.tensor_bytes)
        return Response(text, media_type="application/json", headers={"cache-control": "no-store"})

    async def tensors(self, request: Request) -> Response:
        """What speaks the Open Inference Protocol here, and every limit."""
        about = {"name": "segship", "version": segship.__version__, "extensions": [EXTENSION]}
        return JSONResponse({**about, "models": self._service.graphs(), "limits": self.limits()})

    async def graph(self, request: Request) -> Response:
        """What a graph takes and gives."""
        name = request.path_params["model"]
        model, spec = self._service.graph(name)
        return JSONResponse(describe_graph(name, spec, model.description["backend"]))

    async def graph_ready(self, request: Request) -> Response:
        """Whether a graph answers."""
        name = request.path_params["model"]
        is_ready = self._service.graph(name)[0].ready and not self.is_leaving()
        status = 200 if is_ready else 503
        return JSONResponse({"name": name, "ready": is_ready}, status_code=status, headers={"retry-after": "1"})

    async def infer(self, request: Request) -> Response:
        """What a graph makes of tensors."""
        name = request.path_params["model"]
        model, spec = self._service.graph(name)
        self._service.model(model.name, model.task)
        deadline = self._deadline(request, "decode" if spec.name == "mask_decoder" else "encode")
        self._guard.charge(request, 1.0 if spec.name == "mask_decoder" else _ENCODE_TOKENS)
        data, options = await read_body(request, self._options.limits.body_bytes, "body_bytes"), self._options
        length = request.headers.get(HEADER_LENGTH)
        asked = read_request(data, length, spec, options.prompt_limits, options.limits.tensor_bytes)
        answer, text, _ = await self._service.infer(name, asked, data, deadline)
        kind, more = (
            ("application/json", {}) if text is None else ("application/octet-stream", {HEADER_LENGTH: str(text)})
        )
        return Response(answer, media_type=kind, headers={"cache-control": "no-store", **more})

    def _deadline(self, request: Request, lane: str) -> float:
        """Return until when an answer is of use: as the request says, or as is usual for a lane."""
        seconds: float = getattr(self._options.limits, f"{lane}_seconds")
        text = request.headers.get(_DEADLINE)
        if text is not None:
            try:
                seconds = float(text)
            except ValueError:
                seconds = math.nan
            if not 0 < seconds <= _MOST_DEADLINE:
                message = f"Segship-Deadline is not understood; accepted are seconds up to {_MOST_DEADLINE:g}"
                raise Refusal(400, "bad_deadline", message)
        return time.monotonic() + seconds

    async def live(self, request: Request) -> Response:
        """Whether the server is alive."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether every model answers, and rightly."""
        is_ready = self._service.ready and not self.is_leaving()
        failures = [model.failure for model in self._service.models.values() if model.failure]
        body = {"ready": is_ready, "failures": failures}
        return JSONResponse(body, status_code=200 if is_ready else 503, headers={"retry-after": "1"})

    async def metrics(self, request: Request) -> Response:
        """What is counted."""
        text, shard = self._metrics.text(), self._service.shard
        if shard.count > 1 and not shard.is_passed_on(request):
            text = await shard.metrics(text, request)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """What the routes take and give."""
        document = make_document(
            rows_of(self._options),
            Routes,
            self.limits(),
            has_keys=self._options.keys is not None,
            most_deadline=_MOST_DEADLINE,
            graphs=self._service.graphs(),
            plain=TENSOR_ROUTES,
        )
        return JSONResponse(document)

    async def index(self, request: Request) -> Response:
        """The page."""
        return _file(_PAGE / "index.html")

    async def page(self, request: Request) -> Response:
        """One file of the page."""
        name = request.path_params["file"]
        # Looked up, not opened by what a client wrote.
        files = {path.name: path for path in _PAGE.iterdir() if path.is_file()} | _PAGE_FILES
        if name not in files:
            raise Refusal(404, "not_found", "there is no such file of the page")
        return _file(files[name])


def _file(path: Path) -> Response:
    if not path.is_file():
        raise Refusal(404, "not_found", "the page is not installed")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    kind = "text/javascript" if path.suffix == ".js" else kind
    return Response(path.read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})


def _spliced(answer: bytes, timings: Timings, **more: str) -> Response:
    """Return a worker's JSON with what the server adds, which is not parsed again for that."""
    added = json.dumps({**more, "milliseconds": timings.milliseconds})
    body = answer[:-1] + b", " + added[1:].encode()
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


def _added(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    both = {**first, **second}
    both["queue"] = round(first.get("queue", 0.0) + second.get("queue", 0.0), 2)
    return both


async def _lines(first: Header, parts: AsyncIterator[Header], request_id: str, form: bytes) -> AsyncIterator[bytes]:
    """Yield parts of a stream as text; what goes wrong in the middle is its last one."""
    try:
        yield form % json.dumps(first).encode()
        async for part in parts:
            yield form % json.dumps(part).encode()
    except Exception as error:
        yield form % json.dumps({"type": "error", "error": of_exception(error).to_dict(request_id)}).encode()
    finally:
        await parts.aclose()  # type: ignore[attr-defined]
