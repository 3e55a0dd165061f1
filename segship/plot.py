# SPDX-License-Identifier: Apache-2.0
"""Masks, points, boxes and whole-image records drawn into a matplotlib figure, for notebooks.

Last step of the use road for human eyes, beside `segship.draw`, which needs no matplotlib. The functions, their
arguments and their looks are those of the helpers in SAM's notebooks predictor_example.ipynb and
automatic_mask_generator_example.ipynb; `show_anns` draws one picture instead of one a mask, and random colors come
from a seed. They draw into the current axes when no ``ax`` is given. Needs the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from segship.arrays import BoolArray
from segship.draw import GREEN, MASK_OPACITY, RED, SAM_BLUE, seeded_colors
from segship.errors import BackendUnavailable, InputError
from segship.masks.rle import decode_rle
from segship.spec import LABEL_BACKGROUND, LABEL_FOREGROUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ANNOTATION_OPACITY = 0.35
MARKER_SIZE = 375.0
"""Area of a star, in square points."""


def show_mask(
    mask: npt.ArrayLike, ax: Axes | None = None, random_color: bool = False, *, seed: int | None = None
) -> None:
    """Draw a mask in translucent blue, or in a random color, which a seed makes always the same.

    The mask is (H, W) bool, or has axes of length 1 in front, as one of `segship.pipeline` has them.

    Raises
    ------
    InputError
        ``bad_overlay`` when the array is no single mask.
    """
    pixels = np.asarray(mask)
    if pixels.ndim < 2 or int(np.prod(pixels.shape[:-2])) != 1:
        raise _bad(f"the mask has the shape {pixels.shape}", "(H, W), one mask; draw several one by one")
    color = SAM_BLUE
    if random_color:
        color = seeded_colors(1, int(np.random.default_rng().integers(1 << 31)) if seed is None else seed)[0]
    layer = np.zeros((*pixels.shape[-2:], 4), np.uint8)
    layer[pixels.reshape(pixels.shape[-2:]) > 0] = (*color, round(255 * MASK_OPACITY))
    _axes(ax).imshow(layer)


def show_points(
    coords: npt.ArrayLike, labels: npt.ArrayLike, ax: Axes | None = None, marker_size: float = MARKER_SIZE
) -> None:
    """Draw points (N, 2), x y pixels in the image frame: green stars for label 1, foreground, and red ones for 0."""
    points, kinds = np.asarray(coords), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or kinds.shape != points.shape[:1]:
        raise _bad(
            f"the points have the shape {points.shape} and the labels {kinds.shape}", "(N, 2) points and (N,) labels"
        )
    axes = _axes(ax)
    for label, color in ((LABEL_FOREGROUND, GREEN), (LABEL_BACKGROUND, RED)):
        x, y = points[kinds == label].T
        axes.scatter(x, y, color=_unit(color), marker="*", s=marker_size, edgecolor="white", linewidth=1.25)


def show_box(box: npt.ArrayLike, ax: Axes | None = None) -> None:
    """Draw a box (4,), x0 y0 x1 y1 pixels in the image frame, as a green line."""
    corners = np.asarray(box, np.float64)
    if corners.size != 4:
        raise _bad(f"the box has the shape {corners.shape}", "(4,), x0 y0 x1 y1")
    x0, y0, x1, y1 = corners.ravel()
    patches = _matplotlib("matplotlib.patches")
    rectangle = patches.Rectangle((x0, y0), x1 - x0, y1 - y0, edgecolor=_unit(GREEN), facecolor="none", lw=2)
    _axes(ax).add_patch(rectangle)


def show_anns(
    anns: Sequence[Any],
    ax: Axes | None = None,
    *,
    seed: int = 0,
    opacity: float = ANNOTATION_OPACITY,
    borders: bool = False,
) -> None:
    """Draw the masks of whole-image records, the largest first, each in its own color.

    Parameters
    ----------
    anns
        Records: `segship.promptable.everything.records.MaskRecord`, or dicts with the keys ``area`` and
        ``segmentation``, a (H, W) bool array or run lengths.
    seed
        Of the colors, which follow the order of the records; see `segship.draw.seeded_colors`.
    opacity
        0 to 1.
    borders
        Draw a thin line along the border of every mask.
    """
    if len(anns) == 0:
        return
    colors, layer = seeded_colors(len(anns), seed), None
    # One mask of pixels at a time; a stable sort, so that of equal areas the earlier is drawn first.
    for index in sorted(range(len(anns)), key=lambda index: -_area_of(anns[index])):
        mask = _mask_of(anns[index])
        if layer is None:
            layer = np.zeros((*mask.shape, 4), np.uint8)
        layer[mask] = (*colors[index], round(255 * opacity))
        if borders:
            outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(layer, outlines, -1, (*colors[index], 255), 1)
    axes = _axes(ax)
    axes.set_autoscale_on(False)
    axes.imshow(layer)


def _area_of(annotation: Any) -> int:
    return int(annotation["area"] if isinstance(annotation, Mapping) else annotation.area)


def _mask_of(annotation: Any) -> BoolArray:
    if not isinstance(annotation, Mapping):
        return np.ascontiguousarray(annotation.mask)
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, Mapping):
        return decode_rle(segmentation)
    return np.ascontiguousarray(segmentation, np.bool_)


def _unit(color: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(value / 255 for value in color)


def _axes(ax: Axes | None) -> Any:
    return _matplotlib("matplotlib.pyplot").gca() if ax is None else ax


def _matplotlib(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"drawing into figures needs matplotlib, which cannot be imported ({error}); run: pip install "
            '"segship[plot]", or use segship.draw, which needs no extra',
            code="matplotlib_missing",
        ) from error


def _bad(found: str, accepted: str) -> InputError:
    return InputError(f"the figure cannot be drawn: {found}; accepted is {accepted}", code="bad_overlay")
