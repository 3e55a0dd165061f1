# SPDX-License-Identifier: Apache-2.0
"""A program's side of `segship serve`: a picture is sent once, and masks come back as from a predictor.

    from segship.client import Client

    client = Client("http://127.0.0.1:8080")
    image = client.upload("photo.jpg")
    prediction = image.segment(points=[[500, 375]])
    for record in image.everything(points_per_side=16):
        print(record.area, record.bbox)

Python's own library alone speaks HTTP here: the core install has no client, and for a few kinds of requests to one
server none is needed. Each thread keeps a connection open. What the server refuses is raised as the error that Python
raises for it, with the same code.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlencode, urlsplit

import cv2
import numpy as np
import numpy.typing as npt

from segship import errors
from segship.arrays import BoolArray, FloatArray, IntArray, Pixels, Size
from segship.datasets.classes import ClassTable
from segship.errors import BackendUnavailable, InputError, PromptError, SegshipError, option, shown
from segship.files import read_bytes
from segship.images import ImageLimits, ImageSource, read_image
from segship.masks.rle import Rle, decode_rle, read_rle
from segship.options import make_options
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.records import MaskRecord
from segship.promptable.prediction import MaskChoice
from segship.promptable.prompts import Prompts
from segship.semantic.class_map import ClassMap

Answer = TypeVar("Answer")
Progress = Callable[[int, int], None]
"""Called with how many points were asked, and how many there are."""

_JSON, _BYTES = "application/json", "application/octet-stream"
_NO_ROOM = (429, 503)
# A server that names no time after which it may be asked again.
_PAUSE = 1.0
# A server accepts no longer deadline.
_MOST_DEADLINE = 600.0
# The server's own word that time is up is worth so much waiting.
_SLACK = 2.0
_GONE = {"embedding_evicted", "unknown_image"}


class Client:
    """A server; threads may share one.

    Parameters
    ----------
    address
        Of the server, such as http://127.0.0.1:8080.
    key
        Where the server wants one.
    timeout
        Seconds for one answer, pauses included. The server is told, and works no longer.
    retries
        How often a server that has no room is asked again, after the time that it names.

    Raises
    ------
    InputError
        ``bad_option``.

    Examples
    --------
    >>> Client("http://127.0.0.1:8080")
    Client('http://127.0.0.1:8080')
    >>> Client("127.0.0.1:8080")
    Traceback (most recent call last):
    segship.errors.InputError: address is 127.0.0.1:8080; accepted is one like http://127.0.0.1:8080
    """

    def __init__(self, address: str, key: str | None = None, timeout: float = 60.0, *, retries: int = 3) -> None:
        self._line = _Line(address, key, timeout, retries)

    def __repr__(self) -> str:
        return f"Client({self._line.address!r})"

    def models(self) -> dict[str, Any]:
        """Return what the server has: ``models`` with their tasks and classes, ``limits``, and its ``version``."""
        return self._line.ask("GET", "/v1/models")

    @property
    def ready(self) -> bool:
        """Whether the server and every model of it answer."""
        with suppress(SegshipError):
            return bool(self._line.ask("GET", "/v2/health/ready", retries=0)["ready"])
        return False

    def upload(self, image: ImageSource, *, model: str | None = None) -> RemoteImage:
        """Send a picture, which is encoded there, unless the server has it already.

        Parameters
        ----------
        image
            Path of a file or its bytes, which are sent as they are; whatever else `segship.read_image` takes is sent as
            PNG.
        model
            Name of a promptable model of the server; its first when left out.

        Raises
        ------
        ImageError, InputError
            For what is no picture, or too large; ``unknown_model``.
        BackendUnavailable
            ``no_server``, ``deadline_exceeded``, ``overloaded`` after all retries, ``missing_key`` and its like.
        """
        return RemoteImage(self._line, _bytes_of(image), model)

    def semantic(self, image: ImageSource, *, model: str | None = None, flip: bool = False) -> ClassMap:
        """Return the class of every pixel of a picture, by a semantic model of the server; errors as of `upload`."""
        path = _with_query("/v1/semantic", model=model, format="png", flip="true" if flip else "false")
        answer = self._line.ask("POST", path, _bytes_of(image), _BYTES)
        with _understood():
            return ClassMap(_class_map(answer), self._table(answer["model"]), tuple(answer["notes"]))

    def _table(self, model: str) -> ClassTable:
        rows = next(row["classes"] for row in self.models()["models"] if row["name"] == model)
        palette = tuple((red, green, blue) for red, green, blue in (row["color"] for row in rows))
        return ClassTable(model, tuple(row["name"] for row in rows), palette)

    def close(self) -> None:
        """Close the connection of this thread; another is opened when it is needed."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteImage:
    """A picture that a server has encoded, as `Client.upload` makes it.

    The picture's bytes are kept here, so that it is sent again if the server has forgotten it.

    Attributes
    ----------
    id
        The server's name for it.
    model
        Who encoded it.
    size
        Height and width of the upright picture, in pixels; all coordinates are in this frame.
    notes
        What was noticed while reading it.
    milliseconds
        What the server took for each step; empty if it had the picture already.
    """

    def __init__(self, line: _Line, source: bytes, model: str | None) -> None:
        self._line, self._source, self._asked = line, source, model
        self._send()

    def _send(self) -> None:
        found = self._line.ask("POST", _with_query("/v1/images", model=self._asked), self._source, _BYTES)
        with _understood():
            self.id, self.model = str(found["id"]), str(found["model"])
            self.size: Size = int(found["height"]), int(found["width"])
            self.notes, self.milliseconds = tuple(found["notes"]), dict(found["milliseconds"])

    def __repr__(self) -> str:
        return f"RemoteImage(id={self.id!r}, model={self.model!r}, size={self.size})"

    def segment(
        self,
        prompts: Prompts | Sequence[Prompts] | None = None,
        *,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: MaskChoice = True,
        edges: bool | None = None,
        outside: Literal["error", "clip"] = "error",
    ) -> RemotePrediction:
        """Return the masks of prompts; parameters and errors are those of `segship.Predictor.predict`."""
        given = _one_of(prompts, points, labels, boxes, mask_input)
        answer = self._ask_masks(given, multimask_output, edges, outside, "rle")
        with _understood():
            return _prediction(answer, 3 if multimask_output is True else 1)

    def low_res_masks(
        self,
        prompts: Prompts | Sequence[Prompts] | None = None,
        *,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: MaskChoice = "auto",
    ) -> FloatArray:
        """Return what `segment` takes as ``mask_input``: (objects, masks, h, w) float32 logits in the model frame."""
        given = _one_of(prompts, points, labels, boxes, mask_input)
        answer = self._ask_masks(given, multimask_output, None, "error", "logits")
        with _understood():
            rows = [[_logits(mask["low_res_logits"]) for mask in row["masks"]] for row in answer["objects"]]
            return np.array(rows, np.float32)

    def _ask_masks(
        self,
        prompts: Prompts | Sequence[Prompts],
        multimask_output: MaskChoice,
        edges: bool | None,
        outside: str,
        form: str,
    ) -> dict[str, Any]:
        if outside not in ("error", "clip"):
            message = f"{option('outside')} is {shown(outside)}; accepted are 'error' and 'clip'"
            raise InputError(message, code="bad_option")
        asked = {"multimask_output": multimask_output, "edges": edges, "clip": outside == "clip", "format": form}
        body = json.dumps({**_prompts_document(prompts), **asked}).encode()
        # Not before: an id may be another by now.
        return self._again_if_gone(lambda: self._line.ask("POST", f"/v1/images/{self.id}/masks", body))

    def everything(
        self, options: AmgOptions | None = None, *, progress: Progress | None = None, **given: Any
    ) -> Iterator[MaskRecord]:
        """Return everything in the picture, one record after another while they are found.

        Whoever stops early, by closing the iterator or letting go of it, ends the server's work too.

        Parameters
        ----------
        options
            Or its fields as keywords, such as ``points_per_side``; of the server's machine nothing can be said.
        progress
            See `Progress`.

        Raises
        ------
        InputError
            ``bad_amg_option``; ``unknown_key`` for options about the server's machine.
        TypeError
            For keywords that there are not.
        """
        asked = make_options("everything", AmgOptions, given) if options is None else options
        return self._records(json.dumps(_amg_document(asked)).encode(), progress)

    def _records(self, body: bytes, progress: Progress | None) -> Iterator[MaskRecord]:
        lines = self._again_if_gone(lambda: _begun(self._line.stream(f"/v1/images/{self.id}/everything", body)))
        kind = ""
        try:
            for line in lines:
                part = _read_document(line)
                kind = part.get("type", "")
                if kind == "error":
                    raise _error_of(500, line)
                if kind == "progress" and progress is not None:
                    progress(part["points"], part["of"])
                if kind == "record":
                    with _understood():
                        record = _record(part)
                    yield record
        finally:
            lines.close()
        if kind != "end":
            raise BackendUnavailable("the server's answer has no end; ask again", code="cut_off")

    def _again_if_gone(self, ask: Callable[[], Answer]) -> Answer:
        try:
            return ask()
        except SegshipError as error:
            if error.code not in _GONE or not self._source:
                raise
            self._send()
            return ask()

    def delete(self) -> None:
        """Make the server forget the picture, and forget it here; there are no more masks of it."""
        self._source = b""
        self._line.ask("DELETE", f"/v1/images/{self.id}")


@dataclass(frozen=True, eq=False)
class RemotePrediction:
    """Masks for some objects of one picture, with the names of `segship.MaskPrediction`.

    Attributes
    ----------
    rles
        Of each object a list, of each mask COCO's compressed run lengths.
    iou_predictions
        (objects, masks) float32, the model's own estimate of each mask's IoU.
    areas
        (objects, masks) int64, the set pixels of each mask.
    boxes
        (objects, masks, 4) int64, the box around each mask: x0 y0 x1 y1 half-open; zeros without a pixel.
    original_size
        Height and width of the picture, in pixels.
    notes
        What was noticed, such as ``box_clipped`` or ``no_positive_prompt``.
    milliseconds
        What the server took for each step.
    """

    rles: list[list[Rle]] = field(repr=False)
    iou_predictions: FloatArray
    areas: IntArray
    boxes: IntArray = field(repr=False)
    original_size: Size
    notes: tuple[str, ...]
    milliseconds: dict[str, float]

    @cached_property
    def masks(self) -> BoolArray:
        """(objects, masks, H, W) bool in the frame of the upright picture; made at the first call and kept."""
        shape = (*self.iou_predictions.shape, *self.original_size)
        return np.array([[decode_rle(rle) for rle in row] for row in self.rles], np.bool_).reshape(shape)

    def mask(self, entry: int, index: int) -> BoolArray:
        """Return mask ``index`` of object ``entry``, (H, W) bool, without making the others."""
        return decode_rle(self.rles[entry][index])


def _bytes_of(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return read_bytes(image, limit=ImageLimits().bytes)
    pixels = read_image(image).pixels
    _, data = cv2.imencode(".png", pixels[..., ::-1])
    return data.tobytes()


def _one_of(prompts: Prompts | Sequence[Prompts] | None, *parts: npt.ArrayLike | None) -> Prompts | Sequence[Prompts]:
    """Return prompts that were given whole or in their parts: points, labels, boxes and mask input."""
    if prompts is None:
        return Prompts(*parts)
    if any(part is not None for part in parts):
        raise PromptError("prompts were given twice: as `prompts` and as separate parts; give one of the two")
    return prompts


def _prompts_document(prompts: Prompts | Sequence[Prompts]) -> dict[str, Any]:
    if not isinstance(prompts, Prompts):
        return {"objects": [_prompts_document(one) for one in prompts]}
    parts = {name: getattr(prompts, name) for name in ("points", "labels", "boxes", "mask_input")}
    given = {name: part for name, part in parts.items() if part is not None}
    # Arrays without an entry are no objects, of which JSON has no shape.
    if given and not prompts.object_count:
        return {"objects": []}
    return {name: _logits_document(part) if name == "mask_input" else part.tolist() for name, part in given.items()}


def _logits_document(logits: FloatArray) -> dict[str, Any]:
    data = base64.b64encode(logits.astype("<f4").tobytes()).decode()
    return {"dtype": "float32", "shape": list(logits.shape), "data": data}


def _logits(found: Mapping[str, Any]) -> FloatArray:
    return np.frombuffer(base64.b64decode(found["data"]), "<f4").reshape(found["shape"])


def _amg_document(options: AmgOptions) -> dict[str, Any]:
    """Return the options that are not as they are by default, which the server knows too."""
    usual = AmgOptions()
    asked = {one.name: getattr(options, one.name) for one in fields(AmgOptions)}
    changed = {name: value for name, value in asked.items() if value is not getattr(usual, name)}
    if changed.get("point_grids") is not None:
        changed["point_grids"] = [np.asarray(grid).tolist() for grid in changed["point_grids"]]
    return changed


def _prediction(answer: Mapping[str, Any], masks: int) -> RemotePrediction:
    rows = [row["masks"] for row in answer["objects"]]
    shape = len(rows), len(rows[0]) if rows else masks

    def gathered(name: str, dtype: type, *more: int) -> Any:
        return np.array([[mask[name] for mask in row] for row in rows], dtype).reshape(*shape, *more)

    xywh = gathered("bbox", np.int64, 4)
    return RemotePrediction(
        rles=[[_rle(mask["segmentation"]) for mask in row] for row in rows],
        iou_predictions=gathered("predicted_iou", np.float32),
        areas=gathered("area", np.int64),
        boxes=np.concatenate([xywh[..., :2], xywh[..., :2] + xywh[..., 2:]], axis=-1),
        original_size=(answer["height"], answer["width"]),
        notes=tuple(answer["notes"]),
        milliseconds=dict(answer["milliseconds"]),
    )


def _rle(found: Mapping[str, Any]) -> Rle:
    return Rle(size=found["size"], counts=found["counts"])


def _record(part: Mapping[str, Any]) -> MaskRecord:
    runs, size = read_rle(part["segmentation"])
    x, y, width, height = part["bbox"]
    left, top, wide, high = part["crop_box"]
    return MaskRecord(
        runs,
        size,
        part["area"],
        (x, y, width, height),
        part["predicted_iou"],
        tuple((x, y) for x, y in part["point_coords"]),
        part["stability_score"],
        (left, top, wide, high),
    )


def _class_map(answer: Mapping[str, Any]) -> Pixels:
    data = np.frombuffer(base64.b64decode(answer["class_map"]["png"]), np.uint8)
    found = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint8 or found.shape != (answer["height"], answer["width"]):
        raise ValueError("the picture of the classes is none")
    return np.asarray(found)


def _with_query(path: str, **query: str | None) -> str:
    given = urlencode({name: value for name, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path


class _Kept:
    """A connection of one thread, which is closed when the thread or the client is no more."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection: http.client.HTTPConnection | None = connection

    def give(self) -> http.client.HTTPConnection:
        connection, self._connection = self._connection, None
        assert connection is not None
        return connection

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Line:
    """Requests to one server over a connection of each thread, and what it refuses as errors."""

    def __init__(self, address: str, key: str | None, timeout: float, retries: int) -> None:
        try:
            parts, port = urlsplit(address), urlsplit(address).port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            message = f"{option('address')} is {shown(address)}; accepted is one like http://127.0.0.1:8080"
            raise InputError(message, code="bad_option")
        if not 0 < timeout < math.inf:
            message = f"{option('timeout')} is {shown(timeout)}; accepted are seconds above 0"
            raise InputError(message, code="bad_option")
        self.address = address.rstrip("/")
        self._host, self._port, self._is_secure = parts.hostname, port, parts.scheme == "https"
        self._below = parts.path.rstrip("/")
        self._key, self._timeout, self._retries = key, timeout, retries
        self._mine = threading.local()

    def ask(
        self, method: str, path: str, body: bytes = b"", kind: str = _JSON, *, retries: int | None = None
    ) -> dict[str, Any]:
        """Return the document that answers a request."""
        request, ends = (method, path, body, kind), time.monotonic() + self._timeout
        left = self._retries if retries is None else retries
        while True:
            connection = self._take()
            try:
                with self._translated():
                    response = self._exchange(connection, request, ends)
                    data = response.read()
            except BaseException:
                connection.close()
                raise
            # Only now: what is half read is of no use to the next request.
            if not response.will_close:
                self._keep(connection)
            if response.status < 400:
                return _read_document(data)
            self._pause(response, data, left, ends)
            left -= 1

    def _take(self) -> http.client.HTTPConnection:
        kept: _Kept | None = self._mine.__dict__.pop("kept", None)
        return self._connect() if kept is None else kept.give()

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        self._mine.kept = _Kept(connection)

    def stream(self, path: str, body: bytes) -> Generator[bytes, None, None]:
        """Yield the lines of an answer as they come, over a connection that ends with them."""
        left, ends = self._retries, time.monotonic() + self._timeout
        while True:
            connection = self._connect()
            try:
                with self._translated():
                    response = self._exchange(connection, ("POST", path, body, _JSON), ends)
                    if response.status < 400:
                        yield from response
                        return
                    data = response.read()
            finally:
                connection.close()
            self._pause(response, data, left, ends)
            left -= 1

    def close(self) -> None:
        """Close what is kept for this thread."""
        self._take().close()

    def _pause(self, response: http.client.HTTPResponse, data: bytes, left: int, ends: float) -> None:
        """Wait until a server may be asked again; raises what it said if it may not, or not in time."""
        said = response.headers.get("retry-after", "")
        pause = float(said) if said.isdigit() else _PAUSE
        is_final = response.status not in _NO_ROOM or b'"retryable": false' in data
        if is_final or left < 1 or time.monotonic() + pause >= ends:
            raise _error_of(response.status, data)
        time.sleep(pause)

    def _connect(self) -> http.client.HTTPConnection:
        assert self._host is not None
        make = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        return make(self._host, self._port)

    def _exchange(
        self, connection: http.client.HTTPConnection, request: tuple[str, str, bytes, str], ends: float
    ) -> http.client.HTTPResponse:
        """Send a request and return the head of its answer; what was kept open may be closed there by now."""
        was_open = connection.sock is not None
        try:
            return self._talk(connection, request, ends)
        except ConnectionError:
            connection.close()
            # Nothing of an answer had come, and whatever is asked may be asked twice.
            if not was_open:
                raise
            return self._talk(connection, request, ends)

    def _talk(
        self, connection: http.client.HTTPConnection, request: tuple[str, str, bytes, str], ends: float
    ) -> http.client.HTTPResponse:
        method, path, body, kind = request
        left = max(0.001, ends - time.monotonic())
        head = {"Accept": "application/json, application/x-ndjson"}
        if self._key is not None:
            head["Authorization"] = f"Bearer {self._key}"
        if method == "POST":
            head |= {"Content-Type": kind, "Segship-Deadline": f"{min(left, _MOST_DEADLINE):.3f}"}
        connection.timeout = left + _SLACK
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        try:
            connection.request(method, self._below + path, body or None, head)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a body does not read it to its end; its answer is there.
            if connection.sock is None:
                raise
        return connection.getresponse()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Make errors of connections ours."""
        try:
            yield
        except TimeoutError:
            message = f"{self.address} did not answer within {self._timeout:g} seconds; allow more, or try again"
            raise BackendUnavailable(message, code="deadline_exceeded") from None
        except (OSError, http.client.HTTPException) as error:
            message = f"{self.address} cannot be asked: {shown(str(error) or type(error).__name__)}; is it running"
            raise BackendUnavailable(message, code="no_server") from None


def _begun(lines: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Return lines of which the first has come, so that what is refused is refused here."""

    def all_of_them() -> Generator[bytes, None, None]:
        try:
            yield first
            yield from lines
        finally:
            lines.close()

    first = next(lines, b"")
    return all_of_them()


def _read_document(data: bytes) -> dict[str, Any]:
    with _understood():
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        message = f"the server's answer is not one of segship serve: {shown(repr(error))}; check the address"
        raise BackendUnavailable(message, code="bad_answer") from None


def _error_of(status: int, data: bytes) -> SegshipError:
    """Return the error that a server has refused something with."""
    try:
        said = json.loads(data)["error"]
        message, code = str(said["message"]), str(said["code"])
        kind = getattr(errors, str(said.get("kind")), None)
    except (KeyError, TypeError, ValueError, AttributeError):
        message, code, kind = f"the server answered with the status {status}; check the address", "bad_answer", None
    if not isinstance(kind, type) or not issubclass(kind, SegshipError):
        is_ours = 400 <= status < 500 and status not in (401, 403, 408, 429)
        kind = InputError if is_ours and code != "bad_answer" else BackendUnavailable
    return kind(message, code=code)
