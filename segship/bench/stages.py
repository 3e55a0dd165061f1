# SPDX-License-Identifier: Apache-2.0
"""The stages of a model by its task: what is called, and what it is called.

A task is one function that yields its stages in the order of the road, and one entry in `STAGES`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segship.bench.options import BenchmarkOptions
from segship.errors import InputError
from segship.files import read_bytes, real_path
from segship.images import ImageLimits, read_image
from segship.images.reading import demo_photograph
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import generate
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import Prompts
from segship.promptable.transforms import prepare_image
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.preprocessing import resize_pixels, to_tensor
from segship.semantic.views import SemanticOptions, view_size

PHOTO_SIZE = (1800, 1200)
"""Width and height of the picture where none is given."""

_JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the road: its name, what is called, how many images or objects that handles, and its sizes."""

    name: str
    work: Callable[[], object]
    items: int = 1
    detail: dict[str, Any] = field(default_factory=dict)


def photo_bytes(image: Path | None) -> bytes:
    """Return the bytes of the picture that is measured on: a file, or the demo photograph as a JPEG of 1800 x 1200."""
    if image is not None:
        return read_bytes(real_path(image), limit=ImageLimits().bytes)
    enlarged = io.BytesIO()
    with Image.open(demo_photograph()) as photograph:
        resized = photograph.resize(PHOTO_SIZE, Image.Resampling.LANCZOS)
    resized.save(enlarged, "JPEG", quality=_JPEG_QUALITY)
    return enlarged.getvalue()


def make_prompts(objects: int, points: int, size_hw: tuple[int, int]) -> Prompts:
    """Return seeded clicks on an image: so many objects of so many points."""
    height, width = size_hw
    coords = np.random.default_rng(0).uniform(0, (width, height), (objects, points, 2))
    return Prompts(points=coords, labels=np.ones((objects, points)))


def promptable_stages(predictor: Predictor, data: bytes, options: BenchmarkOptions) -> Iterator[Stage]:
    """Yield the stages of a promptable model: read, preprocess, encode, decode, everything."""
    pixels = read_image(data).pixels
    size_hw = (pixels.shape[0], pixels.shape[1])
    picture = {"image": f"{size_hw[1]} x {size_hw[0]}"}
    settings = predictor.manifest.preprocessing
    yield Stage("decode image", lambda: read_image(data), detail={**picture, "bytes": len(data)})
    opened = read_image(data).picture
    threads = next(iter(options.threads), None)
    yield Stage("preprocess", lambda: prepare_image(opened, settings, threads=threads), detail=picture)
    # A predictor takes pixels, so this has the preprocessing in it; the row of the graph has not.
    yield Stage("encode with preprocess", lambda: predictor.encode(pixels), detail=picture)
    embedding = predictor.encode(pixels)
    for objects in options.objects:
        prompts = make_prompts(objects, options.points, size_hw)
        yield Stage(
            f"decode {objects} object{'s' if objects > 1 else ''}",
            # Masks may be made when they are first looked at, and a user looks at them.
            lambda prompts=prompts: predictor.decode(embedding, prompts).masks,  # type: ignore[misc]
            objects,
            {**picture, "objects": objects, "points": options.points},
        )
    amg = AmgOptions(points_per_side=options.points_per_side)
    detail = {**picture, "points": options.points_per_side**2}
    yield Stage("everything", lambda: generate(predictor, data, amg), detail=detail)


def semantic_stages(predictor: SemanticPredictor, data: bytes, options: BenchmarkOptions) -> Iterator[Stage]:
    """Yield the stages of a semantic model: read, preprocess, segment, segment several pictures in one call."""
    pixels = read_image(data).pixels
    picture = {"image": f"{pixels.shape[1]} x {pixels.shape[0]}"}
    settings = predictor.preprocessing
    size_hw = view_size((pixels.shape[0], pixels.shape[1]), settings, SemanticOptions())
    resized = {**picture, "resized": f"{size_hw[1]} x {size_hw[0]}"}
    yield Stage("decode image", lambda: read_image(data), detail={**picture, "bytes": len(data)})
    yield Stage("preprocess", lambda: to_tensor(resize_pixels(pixels, size_hw), settings), detail=resized)
    for batch in options.batch_sizes:
        # A predictor takes pixels, so this has the preprocessing in it; the rows of the graph have not.
        yield Stage(
            f"segment {batch} picture{'s' if batch > 1 else ''}",
            lambda batch=batch: predictor.segment_batch([pixels] * batch),  # type: ignore[misc]
            batch,
            {**resized, "batch": batch},
        )


STAGES: Mapping[str, Callable[[Any, bytes, BenchmarkOptions], Iterator[Stage]]] = {
    "promptable": promptable_stages,
    "semantic": semantic_stages,
}
"""Task of the manifest -> its stages, a function of that task's predictor."""

FRESH_SCENARIOS: Mapping[str, tuple[str, ...]] = {"promptable": ("click", "everything"), "semantic": ("segment",)}
"""Task of the manifest -> what fresh processes do with it; keys of `segship.bench.fresh.SCENARIOS`."""


def scenario_parameters(scenario: str, options: BenchmarkOptions) -> tuple[dict[str, int], ...]:
    """Return what a scenario is run with besides the model and the picture: one set for each of its rows."""
    match scenario:
        case "everything":
            return ({"points_per_side": options.points_per_side},)
        case "segment":
            return tuple({"batch": batch} for batch in options.batch_sizes)
    return ({},)


def stages_of(predictor: Predictor | SemanticPredictor, data: bytes, options: BenchmarkOptions) -> Iterator[Stage]:
    """Yield the stages of a model that were asked for; refuses others as ``unknown_stage`` or ``unknown_task``."""
    task = predictor.manifest.task
    if task not in STAGES:
        message = f"models of the task {task!r} cannot be measured by stages; known are {', '.join(STAGES)}"
        raise InputError(message, code="unknown_task")
    names = []
    fitting: set[str] = set()
    for stage in STAGES[task](predictor, data, options):
        names.append(stage.name)
        asked = [wanted for wanted in options.stages if stage.name.startswith(wanted)]
        fitting.update(asked)
        if asked or not options.stages:
            yield stage
    unknown = [wanted for wanted in options.stages if wanted not in fitting]
    if unknown:
        message = f"no stage begins with {unknown[0]!r}; there are {', '.join(names)}"
        raise InputError(message, code="unknown_stage")
