# SPDX-License-Identifier: Apache-2.0
"""From JPEG bytes to the encoder's input, by the reference's own code with two readers, and by us."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prepared import WorkFolder
from segship.jobs import Stopwatch


class _Preprocess:
    """What all have in common: the bytes, and a watch."""

    def __init__(self, work: str, model: str, threads: int) -> None:
        import cv2

        cv2.setNumThreads(threads)
        self.folder = WorkFolder(Path(work), model)
        self.config = self.folder.config
        self.jpeg = self.folder.photo().read_bytes()
        self.watch = Stopwatch()
        self.pixels: Any = None
        self.tensor: Any = None

    def answer(self) -> dict[str, Any]:
        """Return the tensor."""
        return {"image": np.asarray(self.tensor)}

    def figures(self) -> dict[str, Any]:
        """Return milliseconds of the stages, and whether the resized pixels are Pillow's."""
        stages = {f"{stage}_ms": round(value, 2) for stage, value in self.watch.milliseconds.items()}
        return {**stages, "resized_equals_pillow": self._resized_equals_pillow()}

    def _resized_equals_pillow(self) -> bool:
        from PIL import Image

        mean, std = (np.array(values).reshape(3, 1, 1) for values in (self.config.pixel_mean, self.config.pixel_std))
        height, width = self.pixels.shape[:2]
        scale = self.config.image_size / max(height, width)
        size = (int(width * scale + 0.5), int(height * scale + 0.5))
        expected = np.asarray(Image.fromarray(self.pixels).resize(size, Image.Resampling.BILINEAR))
        found = np.asarray(self.tensor)[0, :, : size[1], : size[0]].astype(np.float64) * std + mean
        return bool(np.abs(found.transpose(1, 2, 0) - expected).max() < 0.01)


class Reference(_Preprocess):
    """`SamPredictor.set_image` of the reference up to its encoder, after its notebook's cv2 or after Pillow."""

    def __init__(self, work: str, model: str, reader: str, threads: int) -> None:
        super().__init__(work, model, threads)
        import torch

        from tests.oracle import reference

        torch.set_num_threads(threads)
        package = reference()
        from segment_anything.utils.transforms import ResizeLongestSide

        self._torch, self._reader = torch, reader
        self._transform = ResizeLongestSide(self.config.image_size)
        self._mean, self._std = (
            torch.tensor(values).view(-1, 1, 1) for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        assert package.SamPredictor
        self.described = {"engine": f"reference, read by {reader}", "precision": "fp32", "threads": threads}

    def call(self) -> None:
        """Read, resize, normalise, pad, as the reference's predictor and model do."""
        import cv2
        from PIL import Image

        torch, size = self._torch, self.config.image_size
        self.watch = Stopwatch()
        if self._reader == "cv2":
            buffer = np.frombuffer(self.jpeg, np.uint8)
            self.pixels = cv2.cvtColor(cv2.imdecode(buffer, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        else:
            self.pixels = np.array(Image.open(io.BytesIO(self.jpeg)).convert("RGB"))
        self.watch.lap("decode")
        resized = torch.as_tensor(self._transform.apply_image(self.pixels))
        self.watch.lap("resize")
        image = (resized.permute(2, 0, 1).contiguous()[None] - self._mean) / self._std
        height, width = image.shape[-2:]
        self.tensor = torch.nn.functional.pad(image, (0, size - width, 0, size - height))
        self.watch.lap("normalise")


class Ours(_Preprocess):
    """`read_image` and `prepare_image`, as `Predictor.encode` calls them."""

    def __init__(self, work: str, model: str, threads: int) -> None:
        super().__init__(work, model, threads)
        import segship
        from segship.promptable.transforms import Preprocessing

        config = self.config
        self._threads = threads
        self._settings = Preprocessing(config.image_size, config.pixel_mean, config.pixel_std)
        self.described = {"engine": f"segship {segship.__version__}", "precision": "fp32", "threads": threads}

    def call(self) -> None:
        """Read and prepare."""
        from segship.images import read_image
        from segship.promptable.transforms import prepare_image

        self.watch = Stopwatch()
        loaded = read_image(self.jpeg)
        self.watch.lap("decode")
        self.tensor = prepare_image(loaded.picture, self._settings, threads=self._threads, out=self.tensor)
        self.watch.lap("resize and normalise")
        self._loaded = loaded

    def figures(self) -> dict[str, Any]:
        """Return the same, after the array that the check needs has been made of the picture."""
        self.pixels = self._loaded.pixels
        return super().figures()
