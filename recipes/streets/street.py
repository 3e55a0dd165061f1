# SPDX-License-Identifier: Apache-2.0
"""One procedural street: ground, houses, what stands along the kerb, traffic, and the photograph of it all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.streets.canvas import Canvas, Labelled, Picture
from recipes.streets.things import pick, put_leaves, put_person, put_pole, put_tree, put_two_wheeler, put_vehicle
from segship.errors import InputError

Size = tuple[int, int]

FAR, NEAR = 3000.0, 1.5
"""Depths between which the ground is drawn, in metres."""
SMALLEST_SIZE, LARGEST_SIZE = 32, 4096

_PLASTER = ((176, 160, 138), (150, 92, 74), (196, 190, 178), (130, 128, 122), (205, 184, 140), (112, 88, 76))


@dataclass(frozen=True, slots=True, eq=False)
class StreetScene:
    """A street and its annotation.

    Attributes
    ----------
    pixels
        (H, W, 3) uint8 RGB.
    polygons
        In the order of drawing.
    """

    pixels: NDArray[np.uint8]
    polygons: tuple[Labelled, ...]

    def to_json(self) -> str:
        """Return the document of a ``*_gtFine_polygons.json``."""
        objects = [{"label": label, "polygon": corners.tolist()} for label, corners in self.polygons]
        height, width = self.pixels.shape[:2]
        return json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects})


class _Street(NamedTuple):
    """Where things are, from the middle of the road, in metres."""

    road: tuple[float, float]
    """X of the left and right kerb."""
    walk: tuple[float, float]
    """X of the outer edges of the sidewalks."""
    fronts: tuple[float, float]
    """X of the fronts of the houses."""


def draw_street(seed: int | Sequence[int], size_hw: Size = (256, 512)) -> StreetScene:
    """Draw one street; the same for the same seed and size.

    Examples
    --------
    >>> scene = draw_street(seed=3, size_hw=(64, 128))
    >>> scene.pixels.shape, scene.polygons[0].label
    ((64, 128, 3), 'sky')
    """
    if not all(SMALLEST_SIZE <= side <= LARGEST_SIZE for side in size_hw):
        message = f"size is {size_hw}; accepted are sides of {SMALLEST_SIZE} to {LARGEST_SIZE} pixels"
        raise InputError(message, code="bad_option")
    rng = np.random.default_rng(seed)
    canvas = Canvas(rng, size_hw)
    left, right = rng.uniform(3.2, 6.5, 2)
    walks = rng.uniform(1.5, 4.0, 2)
    setback = rng.uniform(0, 5, 2) * (rng.random(2) < 0.6)
    street = _Street(
        (-left, right),
        (-left - walks[0], right + walks[1]),
        (-left - walks[0] - setback[0], right + walks[1] + setback[1]),
    )
    _sky(canvas)
    _ground(canvas, street)
    for side in (0, 1):
        _row_of_houses(canvas, street, side)
    things = list(_things(canvas, street))
    for _, put in sorted(things, key=lambda thing: -thing[0]):
        put()
    if rng.random() < 0.3:
        _bonnet(canvas)
    return StreetScene(_photograph(canvas), tuple(canvas.polygons))


def _sky(canvas: Canvas) -> None:
    rng, horizon = canvas.rng, canvas.camera.horizon_y
    color = [(120, 160, 215), (205, 208, 212), (170, 190, 220), (230, 205, 180)][rng.integers(4)]
    frame = [(0, 0), (canvas.width - 1, 0), (canvas.width - 1, horizon + 3), (0, horizon + 3)]
    canvas.put("sky", frame, color, grain=rng.uniform(2, 12), scale=20.0, shade=-0.12)
    # What stands at the end of the street.
    count = 14
    across = np.linspace(-0.02, 1.02, count) * canvas.width
    up = horizon - np.abs(rng.normal(0.03, 0.02, count)) * canvas.height
    edge = [*zip(across, up, strict=True), (canvas.width, horizon + 3), (0, horizon + 3)]
    green = rng.random() < 0.6
    label, color = ("vegetation", (92, 110, 84)) if green else ("building", (150, 146, 142))
    canvas.put(label, edge, color, grain=9)


def _strip(canvas: Canvas, left: float, right: float) -> NDArray[np.float64]:
    return canvas.quad([left, left, right, right], 0, [NEAR, FAR, FAR, NEAR])


def _ground(canvas: Canvas, street: _Street) -> None:
    rng = canvas.rng
    for side, sign in ((0, -1), (1, 1)):
        kinds = [("terrain", (112, 124, 72), 14), ("sidewalk", (150, 144, 136), 7), ("parking", (118, 116, 114), 7)]
        label, color, grain = kinds[rng.choice(3, p=[0.55, 0.3, 0.15])]
        edges = sorted((street.walk[side], sign * 200.0))
        canvas.put(label, _strip(canvas, *edges), color, grain=grain)
    grey = rng.uniform(72, 112)
    canvas.put("road", _strip(canvas, *street.road), (grey, grey, grey + rng.uniform(-4, 8)), grain=5, scale=1.2)
    for side in (0, 1):
        kerb, outer = street.road[side], street.walk[side]
        tone = np.array([158, 152, 146]) * rng.uniform(0.85, 1.12)
        walk = canvas.put("sidewalk", _strip(canvas, *sorted((kerb, outer))), tone, grain=6)
        stone = kerb + (0.14 if side else -0.14)
        canvas.detail(_strip(canvas, *sorted((kerb, stone))), (196, 194, 190), grain=4, within=walk)
    _markings(canvas, street)


def _markings(canvas: Canvas, street: _Street) -> None:
    rng, white = canvas.rng, (214, 214, 208)
    lines = [sum(street.road) / 2] if rng.random() < 0.8 else []
    for x in lines:
        for z in np.arange(rng.uniform(2, 8), 90, 9.0):
            canvas.detail(canvas.quad([x - 0.07, x - 0.07, x + 0.07, x + 0.07], 0, [z, z + 4, z + 4, z]), white)
    if rng.random() < 0.25:
        z = rng.uniform(9, 25)
        for x in np.arange(street.road[0] + 0.4, street.road[1] - 0.6, 1.1):
            canvas.detail(canvas.quad([x, x, x + 0.55, x + 0.55], 0, [z, z + 3, z + 3, z]), white)
    for _ in range(int(rng.integers(0, 3))):
        x, z, wide = rng.uniform(*street.road), rng.uniform(6, 40), rng.uniform(1, 5)
        canvas.darken(canvas.quad([x - wide, x - wide, x + wide, x + wide], 0, [z, z + 3, z + 5, z + 1]), 0.85)


def _row_of_houses(canvas: Canvas, street: _Street, side: int) -> None:
    """Put houses, and what is in the gaps between them, from far to near."""
    rng, front, sign = canvas.rng, street.fronts[side], (-1, 1)[side]
    ends = np.cumsum(rng.uniform(8, 24, 12))
    for begin, end in reversed(list(zip(ends[:-1], ends[1:], strict=True))):
        choice = rng.random()
        if choice < 0.72:
            _house(canvas, (front, sign, begin, end))
            continue
        bushes = [(depth, rng.uniform(0.8, 2.4)) for depth in np.linspace(begin, end, 4)]
        for depth, radius in reversed(bushes):
            put_leaves(canvas, (front + sign * rng.uniform(1, 4), 0.8 * radius, depth), radius, 1.3)
        if choice < 0.92:
            _barrier(canvas, (front, begin, end), "fence" if choice < 0.83 else "wall")


def _house(canvas: Canvas, place: tuple[float, int, float, float]) -> None:
    rng = canvas.rng
    front, sign, begin, end = place
    floors = int(rng.integers(2, 7))
    top = 3.1 * floors + rng.uniform(0.5, 2)
    color = pick(canvas, _PLASTER)
    far_x = front + sign * 14
    gable = canvas.quad([front, front, far_x, far_x], [0, top, top, 0], [begin])
    canvas.put("building", gable, 0.8 * color, grain=6, shade=0.15)
    wall = canvas.put("building", canvas.quad(front, [0, top, top, 0], [begin, begin, end, end]), color, grain=6)
    roof = canvas.quad(front, [top - 0.5, top, top, top - 0.5], [begin, begin, end, end])
    canvas.detail(roof, 0.6 * color, grain=4, within=wall)
    pitch, tall = rng.uniform(2.2, 3.6), rng.uniform(1.3, 1.9)
    for depth in np.arange(begin + 0.8, end - 1.4, pitch):
        for floor in range(floors):
            low = 3.1 * floor + (0.2 if floor == 0 and rng.random() < 0.3 else 1.0)
            glass = np.array([52, 62, 76]) * rng.uniform(0.6, 1.9)
            corners = canvas.quad(front, [low, low + tall, low + tall, low], [depth, depth, depth + 1.2, depth + 1.2])
            canvas.detail(corners, glass, grain=3, within=wall)


def _barrier(canvas: Canvas, place: tuple[float, float, float], label: str) -> None:
    rng = canvas.rng
    front, begin, end = place
    top = rng.uniform(1.0, 1.5) if label == "fence" else rng.uniform(1.4, 2.6)
    color = (120, 96, 66) if label == "fence" else (150, 140, 128)
    body = canvas.put(label, canvas.quad(front, [0, top, top, 0], [begin, begin, end, end]), color, grain=8)
    if label == "fence":
        for depth in np.arange(begin, end, 0.5):
            slat = canvas.quad(front, [0, top, top, 0], [depth, depth, depth + 0.2, depth + 0.2])
            canvas.detail(slat, (66, 60, 50), grain=3, within=body)


def _bonnet(canvas: Canvas) -> None:
    across = np.linspace(-0.05, 1.05, 15)
    up = canvas.height * (1 - 0.09 * (1 - (2 * across - 1) ** 2))
    edge = [*zip(across * canvas.width, up, strict=True), (canvas.width, canvas.height), (0, canvas.height)]
    canvas.put("ego vehicle", edge, (32, 34, 38), grain=3, scale=5.0)


Thing = tuple[float, Callable[[], object]]
"""Depth in metres, and what puts it there."""


def _things(canvas: Canvas, street: _Street) -> Iterator[Thing]:
    yield from _along_the_kerb(canvas, street)
    yield from _traffic(canvas, street)
    yield from _people(canvas, street)


def _depths(canvas: Canvas, count: float, nearest: float, farthest: float) -> list[float]:
    """Draw depths so that near and far ones are as frequent in the picture."""
    drawn = canvas.rng.uniform(1 / farthest, 1 / nearest, canvas.rng.poisson(count))
    return [float(1 / value) for value in drawn]


def _along_the_kerb(canvas: Canvas, street: _Street) -> Iterator[Thing]:
    rng = canvas.rng
    for side, sign in ((0, -1), (1, 1)):
        pole_x = street.road[side] + sign * 0.5
        for z in _depths(canvas, 2.2, 6, 60):
            carries = str(rng.choice(["traffic light", "traffic sign", "lamp"]))
            yield z, partial(put_pole, canvas, pole_x, z, carries=carries)
        for z in _depths(canvas, 1.3, 8, 80):
            yield z, partial(put_tree, canvas, pole_x + sign, z)
        if rng.random() < 0.2:
            z = float(rng.uniform(6, 20))
            yield z, partial(_bin, canvas, pole_x, z)
        if rng.random() < 0.55:
            # A row of parked cars, bumper to bumper but for some.
            for z in np.arange(rng.uniform(5, 15), 90, rng.uniform(5.2, 6.5)):
                if rng.random() < 0.7:
                    # Far ones are annotated together, as a group.
                    label = "cargroup" if z > 70 else "car"
                    x = street.road[side] - sign * 1.05
                    yield z, partial(put_vehicle, canvas, "car", x, z, label=label)


def _bin(canvas: Canvas, x: float, z: float) -> None:
    canvas.put("static", canvas.quad([x - 0.3, x - 0.25, x + 0.25, x + 0.3], [0, 1.1, 1.1, 0], z), (60, 80, 60))


def _traffic(canvas: Canvas, street: _Street) -> Iterator[Thing]:
    rng = canvas.rng
    lanes = ((street.road[1] * 0.35, False), (street.road[0] * 0.4, True))
    for x, oncoming in lanes:
        for z in _depths(canvas, 0.9, 7, 60):
            kind = str(rng.choice(["car", "truck", "bus", "train"], p=[0.62, 0.15, 0.15, 0.08]))
            yield z, partial(put_vehicle, canvas, kind, x, z, oncoming=oncoming)
    for z in _depths(canvas, 0.9, 5, 30):
        kind = str(rng.choice(["bicycle", "motorcycle"], p=[0.6, 0.4]))
        x = float(rng.uniform(street.road[1] * 0.6, street.road[1] - 0.3))
        yield z, partial(put_two_wheeler, canvas, kind, x, z, ridden=True)


def _people(canvas: Canvas, street: _Street) -> Iterator[Thing]:
    rng = canvas.rng
    for side in (0, 1):
        near, far = street.road[side], street.walk[side]
        for z in _depths(canvas, 2.2, 5, 45):
            x = float(rng.uniform(min(near, far), max(near, far)))
            if rng.random() < 0.8:
                yield z, partial(put_person, canvas, x, z)
            else:
                kind = str(rng.choice(["bicycle", "motorcycle"], p=[0.7, 0.3]))
                yield z, partial(put_two_wheeler, canvas, kind, x, z, ridden=False)
    if rng.random() < 0.25:
        x, z = float(rng.uniform(*street.road)), float(rng.uniform(8, 30))
        yield z, partial(put_person, canvas, x, z)


def _photograph(canvas: Canvas) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8: light, lens and sensor over what was painted."""
    rng = canvas.rng
    image: Picture = canvas.image * np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    haze = np.float32(rng.uniform(0, 0.18)) * np.linspace(1, 0, canvas.height, dtype=np.float32)[:, None, None]
    image = image * (1 - haze) + np.float32(215) * haze
    image = 255 * np.clip(image / 255, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.18)))
    image = cv2.GaussianBlur(image, (0, 0), 0.3 + 0.5 * canvas.height / 512)
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.5, 4))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
