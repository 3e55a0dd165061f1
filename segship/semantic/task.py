# SPDX-License-Identifier: Apache-2.0
"""The verbs of the task semantic: which cases there are, how a model answers them, how two answers are compared.

As in `segship.promptable.task`, a torch module, an exported graph and a backend answer alike. A class map alone hides
how close a graph is, so its logits are compared wherever both sides give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segship.arrays import AnyArray, FloatArray, Size
from segship.backends.session import Recorder, Session
from segship.bundle.evidence import EXACT, Bar, Row, class_map_row, tensor_row
from segship.datasets.image_list import ImageList, ListedPicture, open_image_list
from segship.images.comparison import comparison_images
from segship.semantic.manifest import SemanticManifest
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.preprocessing import SemanticPreprocessing, resize_pixels, to_tensor

Manifest = SemanticManifest

EXACT_BAR: Bar = {"cosine": 0.999999, "max_abs": 1e-3, "pixels_equal": 0.9999}
REDUCED_BAR: Bar = {"cosine": 0.998, "max_abs": 0.1, "pixels_equal": 0.97}
"""How far bfloat16 and float16 may move things.

Logits as in `segship.promptable.task.REDUCED_BAR`. Of the pixels 97 in 100 have to keep their class: two people who
label the same street agree on 96 (Cityscapes, arXiv:1604.01685, section 2.2). What differs lies along outlines and
where the model is unsure: bfloat16 kept 98.5 of a semask_s with random weights, which is unsure everywhere.
"""

LOWER_BARS: dict[str, Bar] = {
    "fp16-weights": {"pixels_equal": 0.998},
    "int8-weights": {"pixels_equal": 0.985},
    "int8": {"pixels_equal": 0.96},
    "int4-weights": {"pixels_equal": 0.96},
}
"""How many pixels keep their class in artifacts of lower precisions; logits are told alone."""

OPEN_SIZES: tuple[Size, ...] = ((512, 1024), (333, 517))
"""Heights and widths at which a graph of any size is compared: one of a street, and one that nothing divides."""


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """Inputs of the graph, (B, 3, H, W) float32 each."""

    images: tuple[FloatArray, ...]


Answers = tuple[dict[str, AnyArray], ...]
"""Of each input ``logits`` (B, K, H, W), or ``class_map`` (B, H, W), or both."""


def bar(precision: str) -> Bar:
    """Return the bar that a precision is held against."""
    return EXACT_BAR if precision == EXACT else LOWER_BARS.get(precision, REDUCED_BAR)


def cases(manifest: SemanticManifest) -> Cases:
    """Return the cases for a model."""
    return make_cases(manifest.preprocessing, manifest.batch)


def make_cases(preprocessing: SemanticPreprocessing, batch: int | None) -> Cases:
    """Return pictures of the size that a graph takes, one and several at once as it takes them.

    A graph of any size is compared at `OPEN_SIZES`, one of a fixed size on two pictures.
    """
    frame = preprocessing.frame
    sizes = OPEN_SIZES if frame is None else (frame,)
    images: list[FloatArray] = []
    for index, size_hw in enumerate(sizes):
        tensors = comparison_tensors(size_hw, preprocessing)
        chosen = [tensors[(index + place) % len(tensors)] for place in range(2 if len(sizes) == 1 else 1)]
        if batch in (None, 1):
            images.extend(chosen)
        if batch != 1:
            images.append(np.concatenate([chosen[place % len(chosen)] for place in range(batch or 2)]))
    return Cases(tuple(images))


def comparison_tensors(size_hw: Size, preprocessing: SemanticPreprocessing) -> tuple[FloatArray, ...]:
    """Return the comparison images as inputs of a semantic graph: (1, 3, H, W) float32, stretched to a size."""
    # Neither the ratio of sides nor antialiasing matters to a comparison.
    return tuple(to_tensor(resize_pixels(picture, size_hw), preprocessing) for picture in comparison_images())


def listed_case(
    manifest: SemanticManifest, picture: ListedPicture, sessions: Mapping[str, Session]
) -> tuple[Cases, Answers]:
    """Return the inputs that a picture of a list becomes, as a predictor makes them, and what the sessions answer."""
    recorder = Recorder(sessions["semantic"])
    open(manifest, {"semantic": recorder}).segment(picture.loaded)
    asked, answers = zip(*recorder.take(), strict=True)
    return Cases(tuple(inputs["image"] for inputs in asked)), answers


@dataclass(frozen=True, slots=True, eq=False)
class ListedAnswer:
    """What was answered to one picture of an image list.

    Attributes
    ----------
    tensors
        Graph -> what it gave: ``class_map`` or ``logits``, one array a call.
    class_map
        (H, W) uint8 in the image frame, as people get it.
    """

    tensors: Mapping[str, Mapping[str, list[AnyArray]]]
    class_map: AnyArray


def answer_listed(
    manifest: SemanticManifest,
    picture: ListedPicture,
    sessions: Mapping[str, Session],
    given: ListedAnswer | None = None,
) -> ListedAnswer:
    """Let a model answer a picture of an image list; ``given`` is of no use here, since it is the only graph."""
    recorder = Recorder(sessions["semantic"])
    classes = open(manifest, {"semantic": recorder}).segment(picture.loaded).array
    outputs = [answered for _, answered in recorder.take()]
    return ListedAnswer({"semantic": {name: [each[name] for each in outputs] for name in outputs[0]}}, classes)


def listed_cases(manifest: SemanticManifest, images: ImageList | str | Path, sessions: Mapping[str, Session]) -> Cases:
    """Return the pictures of an image list as cases; see `listed_case`."""
    pictures = open_image_list(images, manifest.task).pictures()
    found = [listed_case(manifest, picture, sessions)[0].images for picture in pictures]
    return Cases(tuple(image for images in found for image in images))


def feeds(
    manifest: SemanticManifest, images: ImageList | str | Path, sessions: Mapping[str, Session]
) -> Iterator[dict[str, list[dict[str, AnyArray]]]]:
    """Yield for each picture of an image list what the graph is given, as `segship.promptable.task.feeds` does."""
    for picture in open_image_list(images, manifest.task).pictures():
        cases, _ = listed_case(manifest, picture, sessions)
        yield {"semantic": [{"image": image} for image in cases.images]}


def answer(cases: Cases, sessions: Mapping[str, Session], given: Answers | None = None) -> Answers:
    """Let the graph answer all cases; ``given`` is of no use here, since it is the only graph."""
    # Engines may answer in memory that their next run changes.
    return tuple(
        {name: np.array(array) for name, array in sessions["semantic"].run({"image": image}).items()}
        for image in cases.images
    )


def compare(step: str, cases: Cases, expected: Answers, found: Answers, bar: Bar) -> list[Row]:
    """Return a row of logits where both sides give them, and one of class maps."""
    pairs = list(zip(expected, found, strict=True))
    rows = []
    if all("logits" in side for side in (expected[0], found[0])):
        logits = [pair for known, made in pairs for pair in zip(known["logits"], made["logits"], strict=True)]
        rows.append(tensor_row(step, "semantic", "logits", logits, bar))
    # Picture by picture, so that the worst one decides.
    maps = [pair for known, made in pairs for pair in zip(_class_maps(known), _class_maps(made), strict=True)]
    return [*rows, class_map_row(step, "semantic", maps, bar)]


def few(cases: Cases) -> Cases:
    """Return so many cases that they show whether a model works at all: a picture."""
    return Cases(cases.images[:1])


def agreement(step: str, cases: Cases, answers: Answers, bar: Bar) -> list[Row]:
    """Return rows of how far the class maps of a graph are those of its logits."""
    return compare(step, cases, tuple({"logits": made["logits"]} for made in answers), answers, bar)


def remember(answers: Answers) -> dict[str, AnyArray]:
    """Return what is kept of answers, to know them again: every eighth row and column of the class maps."""
    return {str(index): _class_maps(made)[:, ::8, ::8] for index, made in enumerate(answers)}


def compare_stored(step: str, answers: Answers, stored: Mapping[str, AnyArray], bar: Bar) -> list[Row]:
    """Return rows of how far answers are those of which `remember` kept something."""
    found = remember(answers)
    pairs = [(array, found[name]) for name, array in stored.items() if found[name].shape == array.shape]
    return [class_map_row(step, "semantic", pairs, bar)]


def _class_maps(answers: Mapping[str, AnyArray]) -> AnyArray:
    return answers["class_map"] if "class_map" in answers else np.asarray(answers["logits"].argmax(axis=1))


def open(
    manifest: SemanticManifest,
    sessions: Mapping[str, Session],
    *,
    digest: str = "",
    threads: int | None = None,
    **ran: str,
) -> SemanticPredictor:
    """Return a predictor over sessions; ``ran`` says what runs them, as `SemanticPredictor` takes it."""
    return SemanticPredictor(manifest, sessions["semantic"], **{"backend": "", **ran})


def timed(manifest: SemanticManifest) -> str:
    """Return in words what `timings` are the time of, all together."""
    height, width = manifest.preprocessing.frame or OPEN_SIZES[0]
    return f"a picture of {width} x {height}"


def timings(manifest: SemanticManifest, sessions: Mapping[str, Session]) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name: one picture through the graph; all else is the same in all engines."""
    (image,) = comparison_tensors(manifest.preprocessing.frame or OPEN_SIZES[0], manifest.preprocessing)[:1]
    return {"segment": lambda: sessions["semantic"].run({"image": image})}
