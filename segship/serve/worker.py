# SPDX-License-Identifier: Apache-2.0
"""A worker's side: a process that is told a model, and then one job after another, over its standard input and output.

It ends with its standard input, so none is left when the server is gone. Lanes are threads: of one lane one job is
worked on at a time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import shutil
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from segship.arrays import AnyArray, Pixels
from segship.images import ImageLimits, LoadedImage, read_image
from segship.images.reading import demo_photograph
from segship.promptable.prompts import PromptLimits
from segship.serve import wire
from segship.serve.errors import Refusal, of_exception
from segship.serve.wire import Header, Stored

if TYPE_CHECKING:
    from segship.promptable.predictor import Predictor

Tell = Callable[[Header], None]
Answer = tuple[Header, bytes]
Job = Callable[[Header, bytes, Tell], Answer]

# Decoders grow into this much address space beyond that of the empty process, and so much time for one picture.
_READING_BYTES = 2**30
_READING_SECONDS = 5
# Pictures that are shown without loss; a large one would take a hundred megabytes.
_MOST_PNG_PIXELS = 4_000_000
# Embeddings that are held ready for clicks.
_HELD_BYTES = 256 * 2**20


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class Worker:
    """What every kind of worker has: its folder, limits and jobs, and which of them were cancelled."""

    def __init__(self, settings: Header) -> None:
        self.folder = Path(settings["folder"])
        self.image_limits = ImageLimits(**settings["image_limits"])
        self.prompt_limits = PromptLimits(**settings["prompt_limits"])
        self.cancelled: set[int] = set()
        self._threads: dict[int, int] = {}
        self._switching = threading.Lock()

    def describe(self) -> Header:
        """Return what the server wants to know of it before it asks anything."""
        return {}

    @contextlib.contextmanager
    def at_work(self, number: int) -> Iterator[None]:
        """Know which thread works on a job, for as long as it does."""
        with self._switching:
            self._threads[number] = threading.get_ident()
        try:
            yield
        finally:
            with self._switching:
                del self._threads[number]

    def cancel(self, number: int) -> None:
        """Take notice that nobody waits for a job, and end what is run for it."""
        self.cancelled.add(number)
        with self._switching:
            if number in self._threads:
                self.stop(self._threads[number])

    def stop(self, thread: int) -> None:
        """End what a thread runs, if that can be done."""

    def loaded(self, header: Header) -> LoadedImage:
        """Return the picture that a job is about."""
        pixels = wire.fetch(self.folder, Stored.from_json(header["pixels"]))["pixels"]
        return LoadedImage(pixels, tuple(header["notes"]))

    def answer_tensors(self, header: Header, session: Any, portion: int) -> Answer:
        """Return what one graph makes of tensors, as a body of the protocol, and how much of it is JSON."""
        from segship.serve.tensors import run_graph, write_answer

        found = run_graph(session, wire.fetch(self.folder, Stored.from_json(header["stored"])), portion)
        data, text = write_answer(header["model_name"], header["id"], header["outputs"], found)
        return {"json": text}, data


class Pictures(Worker):
    """Decodes pictures that nobody has looked at, with little memory and time, and no network where that can be had."""

    def __init__(self, settings: Header) -> None:
        super().__init__(settings)
        # Of damage there is a code or a note; a log of what strangers send needs no more.
        warnings.simplefilter("ignore")
        _leave_network()
        # One of each kind, so that what is loaded at first use counts as part of the empty process.
        _write_shown(read_image(demo_photograph()).pixels)
        _bound_memory(_READING_BYTES)

    def show(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Return one picture as a file that every browser shows, upright and in its full size."""
        data, kind = _write_shown(self._read(header).pixels)
        return {"kind": kind}, data

    def _read(self, header: Header) -> LoadedImage:
        source = wire.fetch(self.folder, Stored.from_json(header["source"]))["source"]
        _bound_time(_READING_SECONDS)
        return read_image(source.tobytes(), limits=self.image_limits)

    def read(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Decode one picture."""
        loaded = self._read(header)
        stored = wire.store(self.folder, {"pixels": loaded.pixels})
        height, width = loaded.size_hw
        return {"pixels": stored.to_json(), "width": width, "height": height, "notes": list(loaded.notes)}, b""


class Promptable(Worker):
    """Holds a promptable model."""

    def __init__(self, settings: Header) -> None:
        super().__init__(settings)
        self.predictor = self.load(settings["model"], settings["run"])
        self.model = settings["model"]

    def load(self, model: str, run: Header) -> Predictor:
        """Return the model with what this kind of worker needs of it."""
        from segship.loading import load_promptable

        return load_promptable(model, **run)

    def stop(self, thread: int) -> None:
        """End what a thread runs, in runtimes that can."""
        self.predictor.stop(thread)

    def embedding(self, header: Header) -> Any:
        """Return the embedding that a job is about."""
        from segship.masks.edges import EdgeGuide
        from segship.promptable.prediction import ImageEmbedding

        arrays = wire.fetch(self.folder, Stored.from_json(header["stored"]))
        height, width = header["size"]
        input_height, input_width = header["input_size"]
        return ImageEmbedding(
            arrays["image_embeddings"],
            (height, width),
            (input_height, input_width),
            self.predictor.encoder_sha256,
            tuple(header["notes"]),
            guide=EdgeGuide(arrays["guide"]) if "guide" in arrays else None,
        )

    def infer(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Run one graph on tensors: pictures one by one, as they are encoded, and objects as many as are decoded."""
        name = header["graph"]
        portion = self.predictor.objects_per_call if name == "mask_decoder" else 1
        return self.answer_tensors(header, self.predictor.session(name), portion)


class Encoder(Promptable):
    """Encodes pictures and finds everything in them, at a low priority: nobody who clicks waits for it."""

    def describe(self) -> Header:
        """Return what the model is, and a mask that it must always find."""
        from segship.serve.tensors import spec_to_json

        predictor, manifest = self.predictor, self.predictor.manifest
        return {
            "task": "promptable",
            "architecture": manifest.architecture,
            "backend": predictor.backend,
            "precision": predictor.precision,
            "runs_on": predictor.description,
            "image_size": predictor.image_size,
            "masks": predictor.masks_per_point,
            "digest": predictor.encoder_sha256,
            "aspect_ratio": predictor.image_limits(self.image_limits).aspect_ratio,
            "graphs": {name: spec_to_json(predictor.session(name).spec) for name in ("image_encoder", "mask_decoder")},
            "golden": self._golden(),
        }

    def _golden(self) -> Mapping[str, Any]:
        """Return the mask of a click in the photograph inside the package, by the exact graphs in ONNX Runtime."""
        from segship.images.reading import DEMO_POINT_XY
        from segship.loading import load_promptable

        is_exact = (self.predictor.backend, self.predictor.precision) == ("onnxruntime", "fp32")
        is_bundle = self.predictor.backend not in ("torch", "mindspore")
        reference = self.predictor
        if is_bundle and not is_exact:
            reference = load_promptable(self.model, backend="onnxruntime", precision="fp32")
        try:
            found = reference.predict(demo_photograph(), points=[DEMO_POINT_XY], multimask_output="auto")
        finally:
            if reference is not self.predictor:
                reference.close()
        return found.mask_rle(0, 0)

    def encode(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Encode one picture."""
        loaded = self.loaded(header)
        # Before the arithmetic: what this model cannot take is the picture's fault.
        read_image(loaded, limits=self.predictor.image_limits(self.image_limits))
        found = self.predictor.encode_loaded(loaded)
        arrays: dict[str, AnyArray] = {"image_embeddings": found.image_embeddings}
        if self.predictor.mask_edges is not None and found.guide is not None:
            arrays["guide"] = found.guide.pixels
        stored = wire.store(self.folder, arrays)
        return {"stored": stored.to_json(), "size": found.original_size, "input_size": found.input_size}, b""

    def everything(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Find everything in one picture; records and progress are told on the way."""
        from segship.promptable.everything.search import generate, iter_masks
        from segship.serve.questions import read_everything

        options, told, number = read_everything(body, self.prompt_limits), 0.0, header["number"]
        source = self.loaded(header) if "pixels" in header else self.embedding(header)
        notes: list[str] = list(source.notes)

        def progress(points: int, of: int) -> None:
            nonlocal told
            if number in self.cancelled:
                raise Cancelled
            if time.monotonic() - told > 0.1 or points == of:
                tell({"type": "progress", "points": points, "of": of})
                told = time.monotonic()

        limits = self.image_limits
        if options.partition or options.deadline_seconds is not None:
            result = generate(self.predictor, source, options, limits=limits, progress=progress)
            records, notes = iter(result.records), list(result.notes)
        else:
            records = iter_masks(self.predictor, source, options, limits=limits, progress=progress)
        count = 0
        for count, record in enumerate(records, start=1):
            if number in self.cancelled:
                raise Cancelled
            tell({"type": "record", "index": count - 1, **record.to_dict("coco_rle")})
        if not count and "all_filtered" not in notes:
            notes.append("all_filtered")
        return {"type": "end", "records": count, "notes": notes}, b""


class Clicks(Promptable):
    """Answers prompts about pictures that are encoded, without an encoder."""

    def __init__(self, settings: Header) -> None:
        super().__init__(settings)
        self._held: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def load(self, model: str, run: Header) -> Predictor:
        """Return the model without its encoder, which is most of its memory."""
        from segship.loading import load_decoder

        return load_decoder(model, **run)

    def masks(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Return the masks of prompts, which stand in the query or in the body."""
        from segship.serve.questions import masks_document, read_mask_query, read_mask_question

        if "query" in header:
            prompts, question = read_mask_query([(name, text) for name, text in header["query"]], self.prompt_limits)
        else:
            prompts, question = read_mask_question(body, self.prompt_limits)
        prediction = self.predictor.decode(
            self._ready(header),
            prompts,
            multimask_output=question.multimask_output,
            edges=question.edges,
            outside="clip" if question.clip else "error",
            limits=self.prompt_limits,
        )
        return {}, _json(masks_document(prediction, question))

    def _ready(self, header: Header) -> Any:
        """Return an embedding with what its prompts share; the last ones are held."""
        file = header["stored"]["file"]
        if file in self._held:
            self._held.move_to_end(file)
            return self._held[file][0]
        found = self.predictor.with_image_side(self.embedding(header))
        side = 0 if found.image_side is None else sum(array.nbytes for array in found.image_side.values())
        # What the filter keeps of a picture is about ten times as large as the picture.
        guide = 0 if found.guide is None else 11 * found.guide.pixels.nbytes
        self._held[file] = found, side + guide
        while len(self._held) > 1 and sum(size for _, size in self._held.values()) > _HELD_BYTES:
            self._held.popitem(last=False)
        return found

    def forget(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Let go of an embedding that is cached no longer."""
        self._held.pop(header["file"], None)
        return {}, b""


class Classes(Worker):
    """Holds a semantic model."""

    def __init__(self, settings: Header) -> None:
        from segship.loading import load_semantic

        super().__init__(settings)
        self.predictor = load_semantic(settings["model"], **settings["run"])

    def describe(self) -> Header:
        """Return what the model is."""
        from segship.serve.tensors import spec_to_json

        predictor, table = self.predictor, self.predictor.table
        classes = [
            {"id": number, "name": name, "color": list(table.palette[number])}
            for number, name in enumerate(table.classes)
        ]
        return {
            "task": "semantic",
            "architecture": predictor.manifest.architecture,
            "backend": predictor.backend,
            "precision": predictor.precision,
            "runs_on": predictor.description,
            "digest": predictor.manifest.artifact(predictor.manifest.first_graph).digest,
            "classes": classes,
            "graphs": {"semantic": spec_to_json(predictor.session.spec)},
        }

    def infer(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Run the graph on tensors, one picture after another."""
        return self.answer_tensors(header, self.predictor.session, 1)

    def segment(self, header: Header, body: bytes, tell: Tell) -> Answer:
        """Return the class map of one picture."""
        from segship.serve.questions import map_document, read_map_query, semantic_options

        question = read_map_query([(name, text) for name, text in header["query"]])
        found = self.predictor.segment(self.loaded(header), semantic_options(question), limits=self.image_limits)
        return {}, _json(map_document(found, question))


KINDS: dict[str, type[Worker]] = {
    "pictures": Pictures,
    "encoder": Encoder,
    "clicks": Clicks,
    "classes": Classes,
}


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _leave_network() -> None:
    """Move into a network of its own, in which there is nothing; systems that allow that to nobody stay as they are."""
    import ctypes

    new_user, new_network = 0x10000000, 0x40000000
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(new_user | new_network)


def _write_shown(pixels: Pixels) -> tuple[bytes, str]:
    """Return a picture as PNG, or as JPEG where that would take too many bytes, and its media type."""
    stream, picture = io.BytesIO(), Image.fromarray(pixels)
    if pixels.shape[0] * pixels.shape[1] <= _MOST_PNG_PIXELS:
        picture.save(stream, "png", compress_level=1)
        return stream.getvalue(), "image/png"
    picture.save(stream, "jpeg", quality=95)
    return stream.getvalue(), "image/jpeg"


def _bound_memory(more: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_time(seconds: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, highest = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, highest))


class _Lines:
    """The two ends that a worker talks over; several threads may write."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing, self._lock = incoming, outgoing, threading.Lock()

    def read(self) -> tuple[Header, bytes] | None:
        first = self._incoming.read(wire.SIZES_BYTES)
        if len(first) < wire.SIZES_BYTES:
            return None
        header, body = wire.sizes(first)
        return wire.read_header(self._incoming.read(header)), self._incoming.read(body)

    def write(self, header: Header, body: bytes = b"") -> None:
        with self._lock:
            self._outgoing.write(wire.pack(header, body))
            self._outgoing.flush()


def describe_error(error: BaseException) -> Header:
    """Return what the server is told of an error."""
    if isinstance(error, Cancelled):
        refusal = Refusal(503, "cancelled", "it was cancelled")
    elif isinstance(error, FileNotFoundError):
        refusal = Refusal(410, "embedding_evicted", "what was known of this picture is gone; send the picture again")
    else:
        refusal = of_exception(error)
    said = {"code": refusal.code, "message": refusal.message, "kind": refusal.kind}
    return {"error": said, "status": refusal.status}


def _work(worker: Worker, jobs: queue.SimpleQueue[tuple[Header, bytes]], lines: _Lines) -> None:
    while True:
        header, body = jobs.get()
        number, began = header["number"], time.perf_counter()

        def tell(part: Header, number: int = number) -> None:
            lines.write({"number": number, "part": part})

        try:
            if number in worker.cancelled:
                raise Cancelled
            job: Job = getattr(worker, header["job"])
            with worker.at_work(number):
                answer, data = job(header, body, tell)
        # Whatever it is, the next job must not suffer for it.
        except BaseException as error:
            answer, data = describe_error(error), b""
        worker.cancelled.discard(number)
        lines.write({"number": number, "seconds": time.perf_counter() - began, **answer}, data)


def main() -> None:
    """Serve one server until its end of the line is closed."""
    lines = _Lines(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    # What libraries print must not be taken for answers.
    os.dup2(2, 1)
    told = lines.read()
    if told is None:
        return
    settings = told[0]
    with contextlib.suppress(OSError, AttributeError):
        os.nice(settings["nice"])
    try:
        worker = KINDS[settings["kind"]](settings)
        lines.write({"ready": worker.describe()})
    except BaseException as error:
        lines.write({"failed": describe_error(error)["error"]})
        return
    lanes: dict[str, queue.SimpleQueue[tuple[Header, bytes]]] = {}
    while (message := lines.read()) is not None:
        header, body = message
        if "cancel" in header:
            worker.cancel(int(header["cancel"]))
            continue
        lane = header["lane"]
        if lane not in lanes:
            lanes[lane] = queue.SimpleQueue()
            threading.Thread(target=_work, args=(worker, lanes[lane], lines), daemon=True).start()
        lanes[lane].put((header, body))
    # A server that was killed cannot do it, and what lies in memory would stay there.
    shutil.rmtree(worker.folder, ignore_errors=True)
    # Threads of runtimes may still be at work, for nobody.
    os._exit(0)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
