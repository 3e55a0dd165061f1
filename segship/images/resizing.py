# SPDX-License-Identifier: Apache-2.0
"""Pillow's resize in bands, on several threads: bit for bit what one call gives, whatever their number.

On the use road between reading and normalising; `segship.promptable.transforms` uses it. Pillow releases the
interpreter's lock while it resizes, and it resizes a part of a picture if it is given a box. Output column i of a
picture is a weighted sum around the place (i + 1/2) * W / w of the source; of a band that begins at column c the box
begins at c * W / w, and its column i - c lies at c * W / w + (i - c + 1/2) * W / w. These are the same number, but the
same float only if nothing was rounded: Pillow has boxes in float32 and places in float64 (src/libImaging/Resample.c
precompute_coeffs). So a picture is cut only where all of these numbers are whole multiples of a power of two that fit;
then every weight is the same, and with it every pixel. A model frame of 1024 allows this for every picture, along its
longer side.

Pillow rounds to 8 bits between its two passes, so their order matters. It resizes across first; since version 13 down
first if a picture loses more than twice as many rows as columns (ImagingResampleInner). Those are left whole, and the
passes of a band are two calls, so that their order does not depend on the band's size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from math import ceil, floor, gcd
from threading import Lock
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from segship.arrays import Pixels, Size
from segship.machine import usable_cores

MOST_THREADS = 8
"""More than this gain nothing: their work takes less time than waking them."""
# Pixels of both of Pillow's passes below which a second thread costs more than it saves: some 2 ms of work.
_WORTH_SHARING = 2**18
# Those whose Resample.c was read. With any other, pictures are left whole, which is slower and never wrong.
_KNOWN_PILLOWS = ("12", "13")


class Band(NamedTuple):
    """A part of a resized picture: half-open rows and columns."""

    top: int
    bottom: int
    left: int
    right: int


def plan_bands(size_hw: Size, resized_hw: Size, threads: int | None = None) -> list[Band]:
    """Return the bands that a resize from one (height, width) to another is worth cutting into.

    So many ``threads`` may work on it; all usable cores when None.
    """
    height, width = resized_hw
    count = count_threads(threads)
    if count == 1 or (size_hw[0] + height) * width < _WORTH_SHARING or size_hw == resized_hw:
        return [Band(0, height, 0, width)]
    return cut_bands(size_hw, resized_hw, count)


def count_threads(threads: int | None) -> int:
    """Return how many threads work on one picture: as many as asked for, or as there are cores, and no more than 8."""
    return max(1, min(usable_cores() if threads is None else threads, MOST_THREADS))


def cut_bands(size_hw: Size, resized_hw: Size, count: int) -> list[Band]:
    """Return so many bands across the longer side, or a single one where the cut would change a pixel."""
    height, width = resized_hw
    across = size_hw[1] >= size_hw[0]
    old, new = (size_hw[1], width) if across else (size_hw[0], height)
    cuts = [new * index // max(count, 1) for index in range(count + 1)]
    if count < 2 or new < count or _passes_may_be_swapped(size_hw, resized_hw) or not _cuts_are_exact(old, new, cuts):
        return [Band(0, height, 0, width)]
    if across:
        return [Band(0, height, left, right) for left, right in pairwise(cuts)]
    return [Band(top, bottom, 0, width) for top, bottom in pairwise(cuts)]


def _passes_may_be_swapped(size_hw: Size, resized_hw: Size) -> bool:
    if PIL.__version__.split(".")[0] not in _KNOWN_PILLOWS:
        return True
    fewer_rows, fewer_columns = size_hw[0] - resized_hw[0], size_hw[1] - resized_hw[1]
    return fewer_rows > 0 and fewer_rows > 2 * fewer_columns


def _cuts_are_exact(old: int, new: int, cuts: Sequence[int]) -> bool:
    """Whether float32 holds the edges and lengths of all boxes, and float64 every place between them, unrounded."""
    steps = new // gcd(old, new)
    # Not a power of two: one output pixel is then a part of a source pixel that no float holds.
    if steps & (steps - 1):
        return False
    edges = [cut * old / new for cut in cuts]
    lengths = [right - left for left, right in pairwise(edges)]
    return all(float(np.float32(number)) == number for number in (*edges, *lengths))


def resize_band(picture: Image.Image, resized_hw: Size, band: Band) -> Pixels:
    """Return one band (rows, columns, 3) uint8 of a loaded RGB picture resized by Pillow's antialiased bilinear."""
    height, width = resized_hw
    if band == (0, height, 0, width):
        return _pixels(picture.resize((width, height), Image.Resampling.BILINEAR))
    # The products first: their quotients are exact wherever `cut_bands` cuts.
    left, right = (edge * picture.width / width for edge in (band.left, band.right))
    top, bottom = (edge * picture.height / height for edge in (band.top, band.bottom))
    # The rows that the band depends on, and one more at either end.
    reach = max(picture.height / height, 1.0)
    first, last = max(floor(top - reach) - 1, 0), min(ceil(bottom + reach) + 1, picture.height)
    rows = picture if last - first == picture.height else picture.crop((0, first, picture.width, last))
    size = (band.right - band.left, last - first)
    across = rows.resize(size, Image.Resampling.BILINEAR, box=(left, 0, right, last - first))
    size = (band.right - band.left, band.bottom - band.top)
    box = (0, top - first, band.right - band.left, bottom - first)
    return _pixels(across.resize(size, Image.Resampling.BILINEAR, box=box))


def _pixels(picture: Image.Image) -> Pixels:
    # What numpy asks a picture for is one copy more.
    return np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.height, picture.width, 3)


class _Helpers:
    """Threads that are made when first needed, and then wait: a new one costs a tenth of a millisecond."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None

    def start(self, work: Callable[[], None]) -> Future[None] | None:
        """Return some work as a future, or None where no thread can be had any more."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="segship-bands")
        try:
            return self._pool.submit(work)
        except RuntimeError:
            # The interpreter is ending, or the system gives no further thread.
            return None

    def forget(self) -> None:
        """Begin anew, as a forked child must: it has the pool and none of its threads."""
        self._lock = Lock()
        self._pool = None


_HELPERS = _Helpers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_HELPERS.forget)


def work_on_bands(work: Callable[[Band], None], bands: Sequence[Band], threads: int | None = None) -> None:
    """Do some work on every band, on so many threads, the caller's among them; raises what the work raises.

    Whoever is free takes the next band. So callers that come all at once share the helpers, and a caller whom none
    helps does all of its bands itself.
    """
    waiting = deque(bands)

    def drain() -> None:
        while True:
            try:
                band = waiting.popleft()
            except IndexError:
                return
            work(band)

    helpers = [_HELPERS.start(drain) for _ in range(min(count_threads(threads), len(bands)) - 1)]
    started = [helper for helper in helpers if helper is not None]
    try:
        drain()
    finally:
        waiting.clear()
        # Nobody may still write into the caller's array when the caller has it back.
        wait([helper for helper in started if not helper.cancel()])
    for helper in started:
        if not helper.cancelled():
            helper.result()
