# SPDX-License-Identifier: Apache-2.0
"""Where to ask: grids of points, crops of the image, and the order from coarse to fine.

Follows segment_anything/utils/amg.py build_point_grid, build_all_layer_point_grids and generate_crop_boxes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from segship.arrays import IntArray, Points, Size
from segship.errors import ImageError
from segship.promptable.everything.options import AmgOptions


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


def coarse_to_fine(points: Points) -> list[IntArray]:
    """Return indices of the points in portions: a spread quarter of a quarter first, each portion finer than the last.

    Points of a regular grid fall into every eighth, fourth, second and last row and column; any other points into
    portions that are four times as large each.
    """
    side = math.isqrt(len(points))
    everything = np.arange(len(points))
    if side * side != len(points) or not np.array_equal(points, point_grid(side)):
        order = np.random.default_rng(0).permutation(len(points))
        ends = [len(points) // 64, len(points) // 16, len(points) // 4]
        return [part for part in np.split(order, ends) if len(part)]
    rows, columns = np.divmod(everything, side)
    portions, taken = [], np.zeros(len(points), np.bool_)
    for stride in (8, 4, 2, 1):
        # Begin in the middle of the first cell, so that a coarse grid is centred as a fine one is.
        begin = (stride - 1) // 2
        chosen = (rows % stride == begin % stride) & (columns % stride == begin % stride) & ~taken
        taken |= chosen
        if chosen.any():
            portions.append(np.flatnonzero(chosen))
    return portions
