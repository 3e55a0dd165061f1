# SPDX-License-Identifier: Apache-2.0
"""Drawings of real things put into a scene: in their own colours, in procedural materials, or as one silhouette."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.tiny.drawings import SIDE, Drawing
from recipes.tiny.painting import Canvas, Material
from recipes.tiny.shapes import Mask, Placement, Rng

Paint = NDArray[np.float32]
OWN_COLOURS, MATERIALS = 0.5, 0.3
"""How often a drawing keeps its colours, and how often each part wears a material; else one material covers all."""


def put_figure(
    canvas: Canvas, drawing: Drawing, placement: Placement, group: int, materials: list[Material], *, style: float
) -> None:
    """Lay a drawing down as one object whose visible parts are leaves.

    Parameters
    ----------
    canvas
        What is painted on.
    drawing
        A thing of the bank.
    placement
        Where; the drawing's longer side spans the placement's unit frame.
    group
        Number of the group that it belongs to, 0 for none.
    materials
        What its parts wear when it does not keep its colours.
    style
        0 to 1, which way it is painted; things of one group share it.
    """
    rng = canvas.rng
    window, picture, parts = _warp(drawing, placement, canvas.size)
    if picture is None or parts is None:
        return
    coverage = np.asarray(picture[..., 3], np.uint8)
    mask = np.zeros((canvas.size, canvas.size), np.uint8)
    mask[window] = coverage
    if rng.random() < 0.35:
        canvas.cast_shadow(mask)
    elif rng.random() < 0.6:
        canvas.ground_shadow(mask)
    own = picture[..., :3].astype(np.float32)
    if style < OWN_COLOURS:
        paint, leaves = _textured(canvas, _recolour(rng, own), materials[0]), parts
    elif style < OWN_COLOURS + MATERIALS:
        paint, leaves = _lit(rng, _in_materials(canvas, parts, materials), own), parts
    else:
        paint = canvas.surface(materials[0], *coverage.shape)
        paint, leaves = (_lit(rng, paint, own), parts) if rng.random() < 0.5 else (paint, np.ones_like(parts))
    canvas.put_painted(window, coverage, paint, leaves, (canvas.new_object(), group))


def _warp(
    drawing: Drawing, placement: Placement, size: int
) -> tuple[tuple[slice, slice], NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """Return the window of the picture that a drawing falls on, and its pixels and parts there."""
    corners = placement.apply(np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]))
    x0, y0 = np.floor(corners.min(0)).astype(int).clip(0, size)
    x1, y1 = np.ceil(corners.max(0)).astype(int).clip(0, size)
    window = (slice(y0, y1), slice(x0, x1))
    if x1 - x0 < 4 or y1 - y0 < 4:
        return window, None, None
    source = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE]], np.float32) - 0.5
    target = (corners[:3] - (x0, y0)).astype(np.float32)
    matrix = cv2.getAffineTransform(source, target)
    shape = (int(x1 - x0), int(y1 - y0))
    shrink = 2 * placement.radius / SIDE
    picture = drawing.picture
    if shrink < 0.7:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 / shrink)
    flags = cv2.INTER_LINEAR
    warped = cv2.warpAffine(picture, matrix, shape, flags=flags, borderMode=cv2.BORDER_CONSTANT)
    parts = cv2.warpAffine(drawing.parts, matrix, shape, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return window, np.asarray(warped, np.uint8), np.asarray(parts, np.uint8)


def _recolour(rng: Rng, paint: Paint) -> Paint:
    """Take a drawing's loud colours to those of photographs: paler, shifted, darker or lighter."""
    grey = paint.mean(2, keepdims=True)
    paint = grey + (paint - grey) * np.float32(rng.uniform(0.1, 1.0))
    if rng.random() < 0.4:
        paint = paint[..., rng.permutation(3)]
    level = np.float32(rng.uniform(0.35, 1.05))
    tint = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    lifted = np.float32(rng.uniform(0, 40)) + paint * level * tint
    return np.asarray(np.clip(lifted, 0, 255), np.float32)


def _textured(canvas: Canvas, paint: Paint, material: Material) -> Paint:
    """Lay the fine structure of a material over colours."""
    rng = canvas.rng
    strength = float(rng.choice([0, 0.15, 0.35, 0.6], p=[0.25, 0.35, 0.27, 0.13]))
    if not strength:
        return paint
    relief = canvas.surface(material, *paint.shape[:2])
    relief = relief.mean(2, keepdims=True) / np.float32(material.colour.mean() + 20) - 1
    return np.asarray(np.clip(paint * (1 + np.clip(relief * strength * 2, -0.7, 0.7)), 0, 255), np.float32)


def _in_materials(canvas: Canvas, parts: Mask, materials: list[Material]) -> Paint:
    paint = np.zeros((*parts.shape, 3), np.float32)
    for slot, material in enumerate(materials):
        worn = parts % len(materials) == slot
        if worn.any():
            paint[worn] = canvas.surface(material, *parts.shape)[worn]
    return paint


def _lit(rng: Rng, paint: Paint, own: Paint) -> Paint:
    """Give a paint the light and shade of the drawing."""
    light = own.mean(2, keepdims=True)
    light = light / np.float32(max(float(np.median(light)), 40.0))
    return np.asarray(paint * np.clip(light, 0.4, 1.6) ** np.float32(rng.uniform(0, 0.9)), np.float32)
