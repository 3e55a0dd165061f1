# SPDX-License-Identifier: Apache-2.0
"""The masks of one prediction, held small: pixels and run lengths are made when somebody asks for them.

On the use road between the decoder and whoever takes its masks. A program that draws one mask of three, or that sends
run lengths, never pays for the pixels of all of them. `LazyMasks` keeps of each mask the logits that its pixels depend
on, `ArrayMasks` an array that is there already. Threads may share either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.arrays import BoolArray, FloatArray
from segship.masks.edges import EdgePainter
from segship.masks.rle import Runs, mask_to_runs, runs_to_area, runs_to_box
from segship.masks.upscaling import LogitsPatch, Upscaler, Window, encode_logits


class ArrayMasks:
    """Masks as an array (objects, masks, H, W): bool, or float32 logits of which those above 0 are set."""

    def __init__(self, pixels: BoolArray | FloatArray) -> None:
        self.pixels = pixels

    @property
    def shape(self) -> tuple[int, int]:
        """(objects, masks)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def mask(self, entry: int, index: int) -> BoolArray:
        """Return one mask (H, W) bool."""
        pixels = self.pixels[entry, index]
        return np.asarray(pixels if pixels.dtype == np.bool_ else pixels > 0, np.bool_)

    def runs(self, entry: int, index: int) -> Runs:
        """Return the run lengths (n,) int64 of one mask."""
        return mask_to_runs(self.mask(entry, index))

    def area(self, entry: int, index: int) -> int:
        """Return the set pixels of one mask."""
        return int(np.count_nonzero(self.mask(entry, index)))

    def box(self, entry: int, index: int) -> tuple[int, int, int, int]:
        """Return the box around one mask: x0 y0 x1 y1 half-open; zeros for a mask without a pixel."""
        return runs_to_box(self.runs(entry, index), (self.pixels.shape[2], self.pixels.shape[3]))

    def take(self, columns: NDArray[np.intp]) -> ArrayMasks:
        """Return of each object one mask alone, the one at its place in ``columns`` (objects,)."""
        return ArrayMasks(self.pixels[np.arange(len(columns)), columns][:, None])


class LazyMasks:
    """Masks as logits: of each object a list, of each mask the patch that its pixels depend on (`crop_patch`).

    ``limits`` are of each object the part of the image outside which its masks are empty; ``painters``, if masks follow
    the picture, what makes them do so.
    """

    def __init__(
        self,
        patches: Sequence[Sequence[LogitsPatch]],
        upscaler: Upscaler,
        limits: Sequence[Window],
        painters: Sequence[EdgePainter] | None = None,
    ) -> None:
        self._patches = patches
        self._upscaler = upscaler
        self._limits = limits
        self._painters = painters
        self._lock = Lock()
        self._pixels: BoolArray | None = None
        self._encoded: dict[tuple[int, int], Runs] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # The lock stays behind. Pixels that were made may have been changed.
        if self._pixels is not None:
            return ArrayMasks, (self._pixels,)
        return LazyMasks, (self._patches, self._upscaler, self._limits, self._painters)

    @property
    def shape(self) -> tuple[int, int]:
        """(objects, masks)."""
        return len(self._patches), len(self._patches[0]) if self._patches else 0

    @property
    def pixels(self) -> BoolArray:
        """(objects, masks, H, W) bool, made at the first call and kept; what is changed in it is changed for good."""
        with self._lock:
            if self._pixels is None:
                pixels = np.zeros((*self.shape, *self._upscaler.original_size), np.bool_)
                self._paint(list(np.ndindex(self.shape)), pixels.reshape(-1, *self._upscaler.original_size))
                self._pixels = pixels
            return self._pixels

    def mask(self, entry: int, index: int) -> BoolArray:
        """Return one mask (H, W) bool."""
        if self._pixels is not None:
            return np.asarray(self._pixels[entry, index])
        mask = np.zeros(self._upscaler.original_size, np.bool_)
        self._paint([(entry, index)], [mask])
        return mask

    def runs(self, entry: int, index: int) -> Runs:
        """Return the run lengths (n,) int64 of one mask."""
        return self._encode(entry, index) if self._pixels is None else mask_to_runs(self._pixels[entry, index])

    def area(self, entry: int, index: int) -> int:
        """Return the set pixels of one mask."""
        return runs_to_area(self.runs(entry, index))

    def box(self, entry: int, index: int) -> tuple[int, int, int, int]:
        """Return the box around one mask: x0 y0 x1 y1 half-open; zeros for a mask without a pixel."""
        return runs_to_box(self.runs(entry, index), self._upscaler.original_size)

    def take(self, columns: NDArray[np.intp]) -> LazyMasks | ArrayMasks:
        """Return of each object one mask alone, the one at its place in ``columns`` (objects,)."""
        if self._pixels is not None:
            return ArrayMasks(self._pixels).take(columns)
        patches = [[row[column]] for row, column in zip(self._patches, columns.tolist(), strict=True)]
        return LazyMasks(patches, self._upscaler, self._limits, self._painters)

    def _window(self, entry: int, index: int) -> Window:
        window, limit = self._upscaler.window(self._patches[entry][index]), self._limits[entry]
        top, left = max(window.top, limit.top), max(window.left, limit.left)
        return Window(top, max(min(window.bottom, limit.bottom), top), left, max(min(window.right, limit.right), left))

    def _encode(self, entry: int, index: int) -> Runs:
        # Two threads may both do this once, with the same result.
        found = self._encoded.get((entry, index))
        if found is None:
            if self._painters is None:
                found = encode_logits(
                    self._patches[entry][index],
                    self._upscaler,
                    corner_xy=(0, 0),
                    image_size_hw=self._upscaler.original_size,
                    window=self._window(entry, index),
                ).runs
            else:
                found = mask_to_runs(self.mask(entry, index))
            self._encoded[entry, index] = found
        return found

    def _paint(self, places: Sequence[tuple[int, ...]], masks: Iterable[BoolArray]) -> None:
        """Paint the masks at some places into empty masks, each (H, W)."""
        for (entry, index), mask in zip(places, masks, strict=True):
            if self._painters is None:
                self._upscaler.paint(self._patches[entry][index], self._window(entry, index), mask)
                continue
            top, bottom, left, right = self._limits[entry]
            painted = self._painters[entry].mask(self._patches[entry][index], self._upscaler.original_size)
            mask[top:bottom, left:right] = painted[top:bottom, left:right]
