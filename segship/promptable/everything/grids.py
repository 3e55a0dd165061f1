# SPDX-License-Identifier: Apache-2.0
"""Where to ask: grids of points, crops of the image, and the order from coarse to fine.

Follows segment_anything/utils/amg.py build_point_grid, build_all_layer_point_grids and generate_crop_boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segship.arrays import BoolArray, FloatArray, IntArray, Points, Size
from segship.errors import ImageError
from segship.masks.nms import shared_by_boxes
from segship.masks.upscaling import Upscaler
from segship.promptable.everything.options import ALIKE, ALIKE_POINTS, AmgOptions


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of the image that the model looks at.

    Attributes
    ----------
    box_xyxy
        x0 y0 x1 y1 half-open, in pixels of the image frame.
    layer
        0 is the whole image.
    """

    box_xyxy: tuple[int, int, int, int]
    layer: int

    @property
    def size_hw(self) -> Size:
        """Height and width, in pixels."""
        x0, y0, x1, y1 = self.box_xyxy
        return y1 - y0, x1 - x0

    @property
    def box_xywh(self) -> tuple[int, int, int, int]:
        """x y width height, in pixels of the image frame."""
        x0, y0, x1, y1 = self.box_xyxy
        return x0, y0, x1 - x0, y1 - y0

    @property
    def area(self) -> int:
        """Pixels."""
        height, width = self.size_hw
        return height * width


def point_grid(points_per_side: int) -> Points:
    """Return (n^2, 2) float64 points, x y from 0 to 1, row by row: the centres of n x n equal cells.

    Examples
    --------
    >>> point_grid(2).tolist()
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    offset = 1 / (2 * points_per_side)
    side = np.linspace(offset, 1 - offset, points_per_side)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def layer_grids(options: AmgOptions) -> list[Points]:
    """Return the grid of each layer, (n, 2) float64 x y from 0 to 1."""
    if options.point_grids is not None:
        return [np.asarray(grid, np.float64) for grid in options.point_grids][: options.crop_n_layers + 1]
    assert options.points_per_side is not None
    factor = options.crop_n_points_downscale_factor
    return [point_grid(int(options.points_per_side / factor**layer)) for layer in range(options.crop_n_layers + 1)]


def crop_boxes(size_hw: Size, n_layers: int, overlap_ratio: float) -> list[Crop]:
    """Return the whole image and the crops of each layer, column by column.

    Raises
    ------
    ImageError
        ``too_small_for_crops``: a crop of the last layer would have no pixel.
    """
    height, width = size_hw
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, n_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_width, crop_height = (math.ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        lefts = [(crop_width - overlap) * index for index in range(count)]
        tops = [(crop_height - overlap) * index for index in range(count)]
        for left, top in product(lefts, tops):
            right, bottom = min(left + crop_width, width), min(top + crop_height, height)
            if right <= left or bottom <= top:
                raise ImageError(
                    f"an image of {width} x {height} pixels cannot be cut into {count} x {count} crops; "
                    f"give at most {layer - 1} for crop_n_layers",
                    code="too_small_for_crops",
                )
            crops.append(Crop((left, top, right, bottom), layer))
    return crops


def coarse_to_fine(points: Points, coarsest: int = 8) -> list[IntArray]:
    """Return indices of the points in portions: spread and few first, each portion finer than the last.

    Points of a regular grid fall into every eighth (or whatever power of two is the ``coarsest``), fourth, second and
    last row and column; any other points into portions that are four times as large each.
    """
    side = math.isqrt(len(points))
    everything = np.arange(len(points))
    strides = [2**power for power in reversed(range(coarsest.bit_length()))]
    if side * side != len(points) or not np.array_equal(points, point_grid(side)):
        order = np.random.default_rng(0).permutation(len(points))
        ends = [len(points) // stride**2 for stride in strides[:-1]]
        return [part for part in np.split(order, ends) if len(part)]
    rows, columns = np.divmod(everything, side)
    portions, taken = [], np.zeros(len(points), np.bool_)
    for stride in strides:
        # Begin in the middle of the first cell, so that a coarse grid is centred as a fine one is.
        begin = (stride - 1) // 2
        chosen = (rows % stride == begin % stride) & (columns % stride == begin % stride) & ~taken
        taken |= chosen
        if chosen.any():
            portions.append(np.flatnonzero(chosen))
    return portions


# Rows of one block of the matrix of pairs.
_BLOCK_ROWS = 256


class SettledPoints:
    """Points of a crop's grid that need not be asked: they lie well inside a mask that several others have found alike.

    Mode ``hierarchical`` asks it between its portions; `AmgOptions` says the rule.

    Parameters
    ----------
    points_xy
        (n, 2) of the grid, pixels of the crop.
    upscaler
        Of the crop.
    """

    def __init__(self, points_xy: Points, upscaler: Upscaler) -> None:
        height, width = upscaler.original_size
        step = np.array([width, height]) / math.sqrt(len(points_xy))
        sides = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]) * step
        # Beyond the crop's edge nothing can be seen; the nearest cell stands for it.
        self._cells = upscaler.cells_at(points_xy[None] + sides[:, None])
        self._points_count = len(points_xy)
        self._points: list[int] = []
        self._boxes: list[IntArray] = []
        self._areas: list[int] = []
        self._inside: list[NDArray[np.uint8]] = []

    def add(self, point: int, box_xyxy: IntArray, logits: FloatArray) -> None:
        """Count a mask (h, w) that a point, by its place in the grid, has found; its box has inclusive ends."""
        rows, columns = self._cells
        self._points.append(point)
        self._boxes.append(box_xyxy)
        self._areas.append(int(np.count_nonzero(logits > 0)))
        self._inside.append(np.packbits((logits[rows, columns] > 0).all(axis=0)))

    def mask(self) -> BoolArray:
        """Return (n,) bool: which points are settled by the masks that were found so far."""
        agreed = self._votes() >= ALIKE_POINTS
        if not agreed.any():
            return np.zeros(self._points_count, np.bool_)
        inside = np.bitwise_or.reduce(np.stack(self._inside)[agreed])
        return np.unpackbits(inside, count=self._points_count).astype(np.bool_)

    def _votes(self) -> IntArray:
        """Return (k,) how many points, its own included, have found each mask alike."""
        if not self._points:
            return np.zeros(0, np.int64)
        boxes, areas = np.array(self._boxes, np.float32), np.array(self._areas, np.float32)
        boxes[:, 2:] += 1
        sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        # Masks of one point follow one another.
        firsts = np.flatnonzero(np.diff(self._points, prepend=-1))
        everything, votes = np.arange(len(boxes)), []
        for rows in np.array_split(everything, -(-len(boxes) // _BLOCK_ROWS)):
            shared = shared_by_boxes(boxes, rows, everything)
            alike = shared >= ALIKE * (sizes[rows, None] + sizes - shared)
            alike &= np.minimum(areas[rows, None], areas) >= ALIKE * np.maximum(areas[rows, None], areas)
            votes.append(np.logical_or.reduceat(alike, firsts, axis=1).sum(axis=1))
        return np.concatenate(votes)
