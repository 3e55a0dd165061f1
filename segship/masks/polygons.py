# SPDX-License-Identifier: Apache-2.0
"""Masks as polygons along the edges of their pixels, holes kept, and back.

On the use road between a record and the formats that know only polygons. A corner of a polygon is a corner of pixels:
the pixel in column x and row y has the corners (x, y) and (x + 1, y + 1). So a single pixel is a square of area 1 and
not a point, and a polygon that was not simplified encloses exactly the pixels of its mask. Tracers that follow pixel
centres, cv2.findContours among them, lose half a pixel all around.

Pixels that touch at a corner only belong to different polygons, and a ring never visits a point twice: where it
would, it is split into two rings that share the point. So every ring is simple, as GeoJSON and most tools ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.arrays import AnyArray, BoolArray, IntArray, Points
from segship.errors import InputError
from segship.masks.rle import Runs, read_mask, read_number, runs_to_mask
from segship.masks.spans import masks_to_boxes, spans_to_runs

Ring = Points
"""(n, 2) float64, its corners."""

# Far outside any image, and near enough that no product of two coordinates loses the pixels.
_FARTHEST = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected piece of a mask.

    Parameters
    ----------
    outer
        (n, 2) float64, x y in pixels of the image frame, without repeating the first corner; clockwise on the screen.
    holes
        Rings of the same form, counter-clockwise.
    """

    outer: Ring
    holes: tuple[Ring, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Corners:
    """The corners of a mask's outline, row by row, left to right.

    Where two set pixels touch only with their corners there are two, one for each. In a row, every two corners that
    follow each other are the ends of one horizontal segment, so segment k lies between the corners 2 k and 2 k + 1.
    """

    x: IntArray
    y: IntArray
    is_shared: BoolArray
    is_rising: BoolArray
    """Of a shared corner: the set pixels are the lower left and the upper right one."""
    is_set_below: BoolArray
    """(n / 2,) of every segment: the pixels below it are set, and not those above."""


def mask_to_polygons(mask: npt.ArrayLike, *, tolerance: float = 0.0) -> list[Polygon]:
    """Return the polygons of a mask: one for each piece that is connected by the sides of its pixels.

    They are in the order of their first corners, row by row.

    Parameters
    ----------
    mask
        (H, W) bool.
    tolerance
        Pixels that a dropped corner may lie away from its polygon. 0 keeps every corner, and `polygons_to_mask` then
        gives back exactly this mask. With more, rings are simplified one by one (Douglas and Peucker, by
        cv2.approxPolyDP), so they may touch or cross; a ring that nothing would be left of stays as it was.

    Examples
    --------
    >>> import numpy as np
    >>> mask_to_polygons(np.array([[False, True, True]]))[0].outer.tolist()
    [[1.0, 0.0], [3.0, 0.0], [3.0, 1.0], [1.0, 1.0]]
    """
    pixels = read_mask(mask)
    read_number(tolerance, "tolerance")
    x0, y0, x1, y1 = masks_to_boxes(pixels).tolist()
    if x0 == x1:
        return []
    crop = pixels[y0:y1, x0:x1]
    corners = _find_corners(crop)
    corner_xy = np.stack([corners.x + x0, corners.y + y0], axis=1).astype(np.float64)
    outers: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for piece, is_outer, order in _name_rings(crop, corners):
        ring = _simplify(corner_xy[order], tolerance)
        if is_outer:
            outers[piece] = ring
        else:
            holes.setdefault(piece, []).append(ring)
    return [Polygon(outer, tuple(holes.get(piece, ()))) for piece, outer in outers.items()]


def _find_corners(crop: BoolArray) -> _Corners:
    padded = np.pad(crop, 1)
    # An outline runs where two pixels differ; its corners are where it turns.
    is_upright = padded[:, 1:] != padded[:, :-1]
    is_level = padded[1:] != padded[:-1]
    is_corner = (is_upright[1:] != is_upright[:-1]) | (is_upright[1:] & is_level[:, 1:] & is_level[:, :-1])
    # Not np.nonzero, which takes ten times as long over two axes.
    y, x = np.divmod(np.flatnonzero(is_corner), is_corner.shape[1])
    upper_left, lower_right = padded[y, x], padded[y + 1, x + 1]
    upper_right, lower_left = padded[y, x + 1], padded[y + 1, x]
    is_shared = (upper_left == lower_right) & (upper_right == lower_left)
    twice = 1 + is_shared
    x, y = np.repeat(x, twice), np.repeat(y, twice)
    is_set_below = np.asarray(padded[y[::2] + 1, x[::2] + 1])
    return _Corners(x, y, np.repeat(is_shared, twice), np.repeat(is_shared & upper_right, twice), is_set_below)


def _trace(corners: _Corners) -> list[list[int]]:
    """Return the rings as lists of segments; the first one of a ring is its highest and leftmost."""
    # In a column, too, every two corners that follow each other belong together. Of two that share a place the first
    # one is the left pixel's, and has the segment above only if that pixel is the upper one.
    rank = np.arange(len(corners.x)) % 2 == corners.is_rising
    rank &= corners.is_shared
    column_order = np.argsort((corners.x * (int(corners.y[-1]) + 1) + corners.y) * 2 + rank)
    partner = np.empty_like(column_order)
    partner[column_order] = column_order.reshape(-1, 2)[:, ::-1].ravel()
    # The set pixels lie to the right of the way along a ring.
    heads = 2 * np.arange(len(corners.is_set_below)) + corners.is_set_below
    after = (partner[heads] // 2).tolist()
    is_seen = bytearray(len(after))
    rings = []
    for first in range(len(after)):
        if is_seen[first]:
            continue
        ring, segment = [], first
        while not is_seen[segment]:
            is_seen[segment] = 1
            ring.append(segment)
            segment = after[segment]
        rings.append(ring)
    return rings


def _name_rings(crop: BoolArray, corners: _Corners) -> list[tuple[int, bool, IntArray]]:
    """Return of every ring the piece it belongs to, whether it goes around that, and its corners in order."""
    rings = _trace(corners)
    firsts = np.array([ring[0] for ring in rings])
    is_outer = corners.is_set_below[firsts]
    pieces = np.arange(len(rings))
    if not is_outer.all():
        # Which piece a hole lies in is told by the set pixel at its first segment.
        _, labels = cv2.connectedComponents(crop.view(np.uint8), connectivity=4)
        y = corners.y[2 * firsts] - ~is_outer
        pieces = labels[y, corners.x[2 * firsts]]
    named = []
    tail = 1 - corners.is_set_below
    for ring, piece, outer in zip(rings, pieces.tolist(), is_outer.tolist(), strict=True):
        segments = np.array(ring)
        tails = 2 * segments + tail[segments]
        order = np.stack([tails, tails ^ 1], axis=1).ravel()
        named += [(piece, is_around, part) for is_around, part in _split(order, outer, corners)]
    return named


def _split(order: IntArray, is_outer: bool, corners: _Corners) -> list[tuple[bool, IntArray]]:
    """Return the rings of one ring that visit no point twice, and whether each goes around the piece."""
    places = corners.y[order] * (int(corners.x.max()) + 1) + corners.x[order]
    visited, visits = np.unique(places[corners.is_shared[order]], return_counts=True)
    if not (visits > 1).any():
        return [(is_outer, order)]
    twice = set(visited[visits > 1].tolist())
    # A ring touches itself without crossing itself, so what lies between two visits is whole rings: a stack of
    # unfinished ones is enough.
    waiting: list[list[int]] = [[]]
    opened: set[int] = set()
    rings: list[list[int]] = []
    for corner, place in zip(order.tolist(), places.tolist(), strict=True):
        if place in opened:
            rings.append(waiting.pop())
        elif place in twice:
            opened.add(place)
            waiting.append([])
        waiting[-1].append(corner)
    rings += waiting
    # What was one outer ring is now one outer ring and holes, and what was a hole is several.
    parts = [np.array(ring) for ring in rings]
    return [(_area(np.stack([corners.x[part], corners.y[part]], axis=1)) > 0, part) for part in parts]


def _simplify(ring: Ring, tolerance: float) -> Ring:
    if tolerance == 0:
        return ring
    # OpenCV refuses absurd tolerances; none beyond the largest picture means more.
    kept = cv2.approxPolyDP(ring.astype(np.int32), min(tolerance, 1e6), closed=True).reshape(-1, 2).astype(np.float64)
    return kept if _area(kept) * _area(ring) > 0 else ring


def _area(ring: AnyArray) -> float:
    """Return the area of a ring, above 0 if it runs clockwise on the screen."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def join_rings(rings: Sequence[Ring]) -> Ring:
    """Return one ring (m, 2) that encloses, by the even-odd rule, what all rings (n, 2) enclose together.

    From the start of every ring a line leads to the nearest corner of the next one, is walked once there and once
    back, and so encloses nothing.

    Examples
    --------
    >>> import numpy as np
    >>> square = np.array([[0, 0], [1, 0], [1, 1]])
    >>> join_rings([square, square + 5.0]).astype(int).tolist()
    [[0, 0], [1, 0], [1, 1], [0, 0], [5, 5], [6, 5], [6, 6], [5, 5]]
    """
    if len(rings) == 1:
        return rings[0]
    walk: list[Ring] = []
    anchors: list[Ring] = []
    for ring in rings:
        start = int(((ring - anchors[-1]) ** 2).sum(axis=1).argmin()) if anchors else 0
        walk += [ring[start:], ring[: start + 1]]
        anchors.append(ring[start])
    # Back over all lines but the last and the first corner, which close by themselves.
    return np.concatenate([*walk, np.array(anchors[-2:0:-1]).reshape(-1, 2)])


def polygons_to_mask(polygons: Sequence[Polygon], size_hw: tuple[int, int]) -> BoolArray:
    """Return the mask (H, W) bool of an image's pixels whose centres lie in any of the polygons; the rest is cut off.

    Examples
    --------
    >>> import numpy as np
    >>> corners = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]])
    >>> polygons_to_mask([Polygon(corners)], (2, 3)).astype(int)
    array([[1, 1, 0],
           [0, 0, 0]])
    """
    return runs_to_mask(polygons_to_runs(polygons, size_hw), size_hw)


def polygons_to_runs(polygons: Sequence[Polygon], size_hw: tuple[int, int]) -> Runs:
    """Return the run lengths (n,) int64 of `polygons_to_mask`, without making the mask."""
    height, width = size_hw
    rings = [(number, _read_ring(ring)) for number, one in enumerate(polygons) for ring in (one.outer, *one.holes)]
    if not rings:
        return np.array([height * width], np.int64)
    begins = np.concatenate([ring for _, ring in rings])
    ends = np.concatenate([np.roll(ring, -1, axis=0) for _, ring in rings])
    numbers = np.repeat([number for number, _ in rings], [len(ring) for _, ring in rings])
    # From left to right, so that two polygons with a side in common agree on every pixel of it.
    is_turned = (begins[:, 0] > ends[:, 0])[:, None]
    begins, ends = np.where(is_turned, ends, begins), np.where(is_turned, begins, ends)
    # The columns whose centre lines a side crosses: from the first centre not left of it to the last before its end.
    first, stop = (
        np.ceil(side[:, 0].clip(-1, width + 1) - 0.5).clip(0, width).astype(np.int64) for side in (begins, ends)
    )
    counts = stop - first
    side = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(side)) - np.repeat(np.cumsum(counts) - counts, counts) + first[side]
    (x0, y0), (x1, y1) = begins[side].T, ends[side].T
    y = y0 + (column + 0.5 - x0) * ((y1 - y0) / (x1 - x0))
    row = _centres_before(y, height)
    # Of one polygon and column, every two crossings that follow each other enclose pixels.
    row += height * column
    order = np.lexsort((row, column, numbers[side]))
    spans = row[order].reshape(-1, 2)
    return spans_to_runs(spans[:, 0], spans[:, 1], height * width)


def _centres_before(places: NDArray[np.float64], length: int) -> IntArray:
    """Return how many pixel centres of a row or column of the image lie before each place."""
    # Clipped first, since a float may be larger than any whole number.
    return np.ceil(places.clip(0, length) - 0.5).astype(np.int64)


def _read_ring(ring: Ring) -> Ring:
    array = np.asarray(ring, np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 3:
        message = f"a ring of a polygon has the shape {array.shape}; accepted is (n, 2), x y of 3 corners or more"
        raise InputError(message, code="bad_shape")
    # Also with NaN, which is not below anything.
    if not (np.abs(array) <= _FARTHEST).all():
        message = f"a ring of a polygon has a corner that is NaN or farther than {_FARTHEST:.0e} pixels from the image"
        raise InputError(f"{message}; give finite pixels of the image frame", code="non_finite")
    return array
