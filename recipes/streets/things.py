# SPDX-License-Identifier: Apache-2.0
"""Things that stand or drive in procedural streets: vehicles, people, trees, poles, signs; each is one function."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.streets.canvas import Canvas, Color

Points = NDArray[np.float64]

GLASS: Color = (45, 52, 62)
RUBBER: Color = (28, 28, 30)
STEEL: Color = (128, 130, 132)
SKIN: tuple[Color, ...] = ((224, 180, 150), (186, 138, 105), (120, 82, 60))
CLOTHES: tuple[Color, ...] = ((40, 44, 60), (150, 40, 45), (60, 70, 90), (190, 190, 185), (35, 80, 120), (95, 85, 60))
CAR_PAINT: tuple[Color, ...] = (
    (30, 32, 36),
    (200, 202, 205),
    (140, 143, 148),
    (120, 25, 28),
    (30, 50, 110),
    (225, 225, 222),
)

# Side views: distance from the rear as part of the length, height as part of the height.
CAR_PROFILE = ((0, 0.18), (0, 0.62), (0.05, 0.68), (0.16, 1), (0.6, 1), (0.76, 0.66), (0.97, 0.55), (1, 0.18))
BOX_PROFILE = ((0, 0.1), (0, 1), (1, 1), (1, 0.1))
TRUCK_PROFILE = ((0, 0.15), (0, 1), (0.74, 1), (0.78, 0.85), (1, 0.8), (1, 0.12))
# label: length, width, height in metres, profile.
VEHICLES: dict[str, tuple[float, float, float, tuple[tuple[float, float], ...]]] = {
    "car": (4.3, 1.8, 1.5, CAR_PROFILE),
    "truck": (7.5, 2.4, 3.3, TRUCK_PROFILE),
    "bus": (11.0, 2.5, 3.1, BOX_PROFILE),
    "train": (24.0, 2.6, 3.5, BOX_PROFILE),
}


def pick(canvas: Canvas, colors: tuple[Color, ...]) -> Points:
    """Choose a color and vary it a little."""
    base = np.asarray(colors[canvas.rng.integers(len(colors))], np.float64)
    return np.clip(base * canvas.rng.uniform(0.85, 1.15) + canvas.rng.normal(0, 6, 3), 8, 250)


def hull(points: ArrayLike) -> Points:
    """Return the convex hull of (N, 2) points."""
    return np.asarray(cv2.convexHull(np.asarray(points, np.float32))[:, 0], np.float64)


def disc(x: float, y: float, radius: float, flat: float = 1.0, corners: int = 14) -> Points:
    """Return a circle, or an ellipse that is ``flat`` times as wide as high."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius * flat * np.cos(angles), y + radius * np.sin(angles)], 1)


def put_vehicle(
    canvas: Canvas, kind: str, x: float, z: float, *, oncoming: bool = False, label: str | None = None
) -> None:
    """Put a vehicle that is parallel to the street, its near end at depth z, its middle at x."""
    length, width, height, profile = VEHICLES[kind]
    size = canvas.rng.uniform(0.93, 1.08)
    length, width, height = length * size, width * size, height * size
    project = canvas.camera.project
    sides = x - width / 2, x + width / 2
    outline = [(1 - along if oncoming else along, up) for along, up in profile]
    solid = [(side, up * height, z + along * length) for side in sides for along, up in outline]
    shadow = [(side + dx, 0, z + dz) for side, dx in zip(sides, (-0.2, 0.2), strict=True) for dz in (0, length)]
    canvas.darken(hull(project(shadow)), 0.55)
    color = pick(canvas, CAR_PAINT)
    body = canvas.put(label or kind, hull(project(solid)), color, grain=3, scale=5.0, shade=0.35)
    # The side that is seen is the one towards the camera.
    side = sides[0] if x > 0 else sides[1]
    _wheels(canvas, side, z, length, height, body)
    _side_windows(canvas, kind, outline, (side, z, length, height), body)
    _rear(canvas, kind, (x, z, width, height), oncoming, body)


def _wheels(canvas: Canvas, side: float, z: float, length: float, height: float, body: NDArray[np.bool_]) -> None:
    radius = 0.22 * min(height, 1.9)
    for along in (0.18, 0.8):
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        around = [(side, radius + radius * np.sin(a), z + along * length + radius * np.cos(a)) for a in angles]
        canvas.detail(canvas.camera.project(around), RUBBER, grain=2, within=body)


def _side_windows(
    canvas: Canvas,
    kind: str,
    outline: list[tuple[float, float]],
    place: tuple[float, float, float, float],
    body: NDArray[np.bool_],
) -> None:
    side, z, length, height = place
    if kind == "car":
        along = sorted(a for a, up in outline if up > 0.9)
        spans, low, high = [(along[0] - 0.04, along[1] + 0.08)], 0.66, 0.95
    elif kind == "truck":
        near = outline[0][0] == 1
        spans, low, high = [(0.05, 0.2) if near else (0.8, 0.95)], 0.5, 0.75
    else:
        count = max(3, int(length / 2))
        spans, low, high = [((i + 0.12) / count, (i + 0.9) / count) for i in range(count)], 0.45, 0.82
    for begin, end in spans:
        depths = [z + begin * length, z + end * length]
        corners = canvas.quad(side, [low * height, high * height, high * height, low * height], np.repeat(depths, 2))
        canvas.detail(corners, GLASS, grain=3, scale=5.0, within=body)


def _rear(
    canvas: Canvas, kind: str, place: tuple[float, float, float, float], oncoming: bool, body: NDArray[np.bool_]
) -> None:
    """Paint the end that faces the camera: window, lights, plate."""
    x, z, width, height = place
    bottom, top = (0.62, 0.93) if kind != "truck" else (0.9, 0.92)
    half = 0.4 * width
    window = canvas.quad(
        [x - half, x - 0.85 * half, x + 0.85 * half, x + half],
        [bottom * height, top * height, top * height, bottom * height],
        [z, z + 0.1, z + 0.1, z],
    )
    canvas.detail(window, GLASS, grain=3, scale=5.0, within=body)
    light = (240, 236, 205) if oncoming else (170, 25, 25)
    for side in (-1, 1):
        centre = x + side * 0.42 * width
        box = canvas.quad(
            [centre - 0.12, centre - 0.12, centre + 0.12, centre + 0.12],
            [0.38 * height, 0.5 * height, 0.5 * height, 0.38 * height],
            z,
        )
        canvas.detail(box, light, grain=2, within=body)
    plate = canvas.quad([x - 0.26, x - 0.26, x + 0.26, x + 0.26], [0.45, 0.57, 0.57, 0.45], z)
    # Plates have the id -1: they are in the file and in no picture of ids.
    if z < 14:
        canvas.put("license plate", plate, (225, 225, 215), grain=2)
    else:
        canvas.detail(plate, (225, 225, 215), grain=2, within=body)


def _standing(canvas: Canvas, x: float, z: float, points: ArrayLike, metres: float) -> Points:
    """Turn (N, 2) points, across and up in units of ``metres``, into pixels of a flat figure at (x, z)."""
    across, up = (np.asarray(points, np.float64) * metres).T
    return canvas.camera.project(np.stack([x + across, up, np.full_like(up, z)], 1))


def put_person(canvas: Canvas, x: float, z: float, *, label: str = "person", seat: float = 0.0) -> None:
    """Put somebody who stands or walks, or, with the height of a seat in metres, who rides."""
    rng = canvas.rng
    height = rng.uniform(1.5, 1.95)
    stride, lean = rng.uniform(0.02, 0.13), rng.uniform(-0.03, 0.03)
    reach = 0.5 if seat else 0.0
    legs = 0.12 if seat else 0.0
    outline = [
        (-0.02 - stride, legs), (0.02 - stride, legs), (lean, 0.42), (stride - 0.02, legs), (stride + 0.04, legs),
        (0.09 + lean, 0.47), (0.1 + lean, 0.55), (0.15 + lean, 0.5), (0.16 + lean, 0.72), (0.1 + lean, 0.82),
        (0.04 + lean, 0.85), (0.065 + lean, 0.9), (0.055 + lean, 0.97), (lean, 1), (-0.055 + lean, 0.97),
        (-0.065 + lean, 0.9), (-0.04 + lean, 0.85), (-0.1 + lean, 0.82), (-0.15 + lean, 0.7), (-0.14 + lean, 0.5),
        (-0.09 + lean, 0.55), (-0.09 + lean, 0.47),
    ]  # fmt: skip
    lift = seat - reach * height * 0.42
    figure = np.asarray(outline) + [0, max(lift, 0) / height]
    if not seat:
        feet = _standing(canvas, x, z, [(-0.14, 0), (0.2, 0), (0.3, -0.04), (-0.05, -0.04)], height)
        canvas.darken(feet, 0.7)
    body = canvas.put(label, _standing(canvas, x, z, figure, height), pick(canvas, CLOTHES), grain=4)
    offset = np.array([lean, max(lift, 0) / height])
    coat = np.array([(-0.17, 0.45), (-0.17, 0.84), (0.17, 0.84), (0.17, 0.45)]) + offset
    canvas.detail(_standing(canvas, x, z, coat, height), pick(canvas, CLOTHES), grain=5, within=body)
    head = disc(0, 0.93, 0.07) + offset
    canvas.detail(_standing(canvas, x, z, head, height), pick(canvas, SKIN), grain=3, within=body)


def put_two_wheeler(canvas: Canvas, kind: str, x: float, z: float, *, ridden: bool) -> None:
    """Put a bicycle or motorcycle, seen from the side or from behind, with or without its rider."""
    rng = canvas.rng
    aside = rng.random() < 0.6
    radius, wide = (0.34, 0.05) if kind == "bicycle" else (0.33, 0.1)
    frame = pick(canvas, CAR_PAINT)
    if aside:
        for at in (-0.52, 0.52):
            canvas.put(kind, _standing(canvas, x, z, disc(at, radius, radius), 1), RUBBER, grain=3)
        top = 0.95 if kind == "bicycle" else 0.85
        bars = [(-0.55, 0.3), (-0.3, top), (-0.18, top), (0.35, top), (0.45, top + 0.1), (0.55, 0.35), (0, 0.28)]
        canvas.put(kind, _standing(canvas, x, z, bars, 1), frame, grain=4)
    else:
        outline = [(-wide, 0), (-wide, 0.9), (-0.32, 1.02), (0.32, 1.02), (wide, 0.9), (wide, 0)]
        canvas.put(kind, _standing(canvas, x, z, outline, 1), frame, grain=4)
    if ridden:
        put_person(canvas, x, z - 0.05, label="rider", seat=0.85)


def put_tree(canvas: Canvas, x: float, z: float) -> None:
    """Put a tree; its trunk counts as vegetation, as the data set's own rules have it."""
    rng = canvas.rng
    trunk, radius = rng.uniform(1.8, 3.2), rng.uniform(1.4, 3.0)
    wood = canvas.quad([x - 0.13, x - 0.11, x + 0.11, x + 0.13], [0, trunk + 1, trunk + 1, 0], z)
    canvas.put("vegetation", wood, (78, 64, 50), grain=9)
    put_leaves(canvas, (x, trunk + 0.8 * radius, z), radius, rng.uniform(0.8, 1.2))


def put_leaves(canvas: Canvas, centre: tuple[float, float, float], radius: float, flat: float) -> None:
    """Put a crown or a bush with a ragged border."""
    rng = canvas.rng
    angles = np.linspace(0, 2 * np.pi, 26, endpoint=False)
    reach = radius * (1 + 0.1 * rng.standard_normal(26))
    x, y, z = centre
    edge = np.stack([x + reach * flat * np.cos(angles), y + reach * np.sin(angles), np.full(26, z)], 1)
    green = np.array([rng.uniform(45, 95), rng.uniform(80, 125), rng.uniform(30, 60)])
    canvas.put("vegetation", canvas.camera.project(edge), green, grain=20, shade=0.45)


def put_pole(canvas: Canvas, x: float, z: float, *, carries: str) -> None:
    """Put a pole with a ``traffic light``, a ``traffic sign`` or a ``lamp``."""
    rng = canvas.rng
    height = {"traffic light": rng.uniform(3, 3.8), "traffic sign": rng.uniform(2.4, 3.2), "lamp": rng.uniform(5, 8)}
    top = height[carries]
    half = rng.uniform(0.05, 0.1)
    canvas.put("pole", canvas.quad([x - half, x - half, x + half, x + half], [0, top, top, 0], z), STEEL, grain=5)
    if carries == "lamp":
        towards = -1.6 if x > 0 else 1.6
        arm = canvas.quad([x, x, x + towards, x + towards], [top - 0.15, top, top + 0.1, top - 0.05], z)
        canvas.put("pole", arm, STEEL, grain=5)
    elif carries == "traffic light":
        _traffic_light(canvas, x, top, z)
    else:
        _traffic_sign(canvas, x, top, z)


def _traffic_light(canvas: Canvas, x: float, top: float, z: float) -> None:
    box = canvas.quad([x - 0.17, x - 0.17, x + 0.17, x + 0.17], [top - 0.9, top, top, top - 0.9], z)
    body = canvas.put("traffic light", box, (30, 33, 30), grain=3)
    lit = int(canvas.rng.integers(3))
    for place, color in enumerate(((235, 45, 40), (240, 180, 40), (60, 220, 130))):
        lamp = _standing(canvas, x, z, disc(0, top - 0.17 - 0.28 * place, 0.1), 1)
        canvas.detail(lamp, np.asarray(color) * (1 if place == lit else 0.3), grain=2, within=body)


def _traffic_sign(canvas: Canvas, x: float, top: float, z: float) -> None:
    rng = canvas.rng
    shape = rng.integers(3)
    if shape == 0:
        outline, rim, face = disc(0, top - 0.35, 0.35), (190, 30, 35), (235, 235, 230)
    elif shape == 1:
        outline = np.array([(-0.45, top - 0.75), (0.45, top - 0.75), (0, top)])
        rim, face = (190, 30, 35), (235, 235, 230)
    else:
        side = rng.uniform(0.25, 0.6)
        outline = np.array([(-side, top - 0.7), (-side, top), (side, top), (side, top - 0.7)])
        rim, face = ((235, 235, 235), (35, 70, 160)) if rng.random() < 0.5 else ((240, 240, 240), (235, 190, 40))
    sign = canvas.put("traffic sign", _standing(canvas, x, z, outline, 1), rim, grain=2)
    middle = outline.mean(0)
    canvas.detail(_standing(canvas, x, z, middle + 0.68 * (outline - middle), 1), face, grain=2, within=sign)
