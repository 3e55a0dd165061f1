# SPDX-License-Identifier: Apache-2.0
"""segship itself, through what its users call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import segship
from benchmarks.prepared import PHOTO_SIZE, WorkFolder
from benchmarks.subjects.points import CLICK, image_points


def load_ours(
    work: str, model: str, engine: str, precision: str, threads: int, device: str = "cpu"
) -> segship.Predictor:
    """Return our predictor over the bundle that was exported for the engine; torch takes the checkpoint."""
    folder = WorkFolder(Path(work), model)
    source = folder.checkpoint() if engine == "torch" else folder.bundle(engine)
    settings = {"device": device, "compile": device != "cpu"}
    return segship.load(source, backend=engine, precision=precision, threads=threads, **settings)


def first_load(work: str, model: str, engine: str, precision: str) -> dict[str, Any]:
    """Return what the very first load took, before anything compiled was kept; torch keeps nothing."""
    if engine == "torch":
        return {}
    folder = WorkFolder(Path(work), model)
    figures: dict[str, Any] = json.loads(folder.first_load(engine, precision).read_text())
    return {**figures, "bundle": folder.bundle(engine).name}


def described(predictor: segship.Predictor, precision: str, threads: int) -> dict[str, Any]:
    """Return what runs."""
    engine = f"segship {segship.__version__}, {predictor.description}"
    return {"engine": engine, "precision": precision, "threads": threads}


class Encoder:
    """Our image encoder on a prepared image: the graph alone, as the plain exports are measured."""

    def __init__(self, work: str, model: str, engine: str, precision: str, threads: int, device: str = "cpu") -> None:
        folder = WorkFolder(Path(work), model)
        predictor = load_ours(work, model, engine, precision, threads, device)
        # Through the predictor, so that the graph is loaded as users load it.
        self._session = predictor._sessions["image_encoder"]
        self._inputs = {"image": np.load(folder.image())}
        self.described = described(predictor, precision, threads)
        self._first = first_load(work, model, engine, precision)

    def call(self) -> None:
        """Encode."""
        self._outputs = self._session.run(self._inputs)

    def answer(self) -> dict[str, Any]:
        """Return the embedding."""
        return {"image_embeddings": self._outputs["image_embeddings"]}

    def figures(self) -> dict[str, Any]:
        """Return what the first load took."""
        return self._first


class Decoder:
    """`Predictor.decode_low_res` on points, one an object, on an image that was encoded before."""

    def __init__(self, work: str, model: str, engine: str, precision: str, threads: int, objects: int) -> None:
        self._predictor = load_ours(work, model, engine, precision, threads)
        self._embedding = self._predictor.encode(WorkFolder(Path(work), model).photo())
        self._prompts = segship.Prompts(points=image_points(objects))
        self.described = described(self._predictor, precision, threads)
        self._first = first_load(work, model, engine, precision)

    def call(self) -> None:
        """Decode all objects in one call."""
        self._ious, self._masks = self._predictor.decode_low_res(self._embedding, self._prompts)

    def answer(self) -> dict[str, Any]:
        """Return the three masks of the ambiguous set."""
        return {"iou_predictions": self._ious[:, 1:], "low_res_masks": self._masks[:, 1:]}

    def figures(self) -> dict[str, Any]:
        """Return what the first load took."""
        return self._first


class Click:
    """`Predictor.decode` of one click on an image that was encoded before, to bool masks of the image's size."""

    def __init__(self, work: str, model: str, engine: str, precision: str, threads: int) -> None:
        self._predictor = load_ours(work, model, engine, precision, threads)
        self._embedding = self._predictor.encode(WorkFolder(Path(work), model).photo())
        self._prompts = segship.Prompts(points=np.array([CLICK]) * PHOTO_SIZE)
        self.described = described(self._predictor, precision, threads)
        self._first = first_load(work, model, engine, precision)

    def call(self) -> None:
        """Ask for the three masks of a click."""
        self._prediction = self._predictor.decode(self._embedding, self._prompts)
        # Masks may be made when they are asked for, and they are asked for.
        self._masks = self._prediction.masks

    def answer(self) -> dict[str, Any]:
        """Return masks at image size."""
        return {"masks": self._masks, "iou_predictions": self._prediction.iou_predictions}

    def figures(self) -> dict[str, Any]:
        """Return what the first load took."""
        return self._first
