# SPDX-License-Identifier: Apache-2.0
"""Outlines of procedural things, as polygons in a unit frame (x right, y down, about [-1, 1]).

`SHAPES` are single outlines. `BODIES` are things of several parts, as a person, a cup or a cart is; each part says
which of the thing's materials it wears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Polygon = NDArray[np.float64]
Mask = NDArray[np.uint8]
_SUBPIXEL_BITS = 4


class Part(NamedTuple):
    """One part of a thing."""

    polygons: list[Polygon]
    """Outlines in the unit frame; the part is their union."""
    slot: int
    """Which of the thing's materials the part wears."""


class Placement(NamedTuple):
    """Where a unit frame lies in the picture."""

    x: float
    y: float
    radius: float
    angle: float = 0.0
    aspect: float = 1.0
    mirrored: bool = False

    def apply(self, polygon: Polygon) -> Polygon:
        """Move a polygon from the unit frame to pixels."""
        px = polygon[:, 0] * self.radius * np.sqrt(self.aspect) * (-1 if self.mirrored else 1)
        py = polygon[:, 1] * self.radius / np.sqrt(self.aspect)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([self.x + cos * px - sin * py, self.y + sin * px + cos * py], 1)


def rasterise(polygons: list[Polygon], placement: Placement, size: int) -> Mask:
    """Return the union of the polygons as (size, size) uint8 coverage, 0 to 255."""
    mask = np.zeros((size, size), np.uint8)
    for polygon in polygons:
        points = np.clip(placement.apply(polygon), -4 * size, 5 * size)
        cv2.fillPoly(mask, [np.rint(points * 2**_SUBPIXEL_BITS).astype(np.int32)], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask


def noise_blob(rng: Rng, soft: NDArray[np.uint8], placement: Placement, size: int) -> Mask:
    """Return the largest piece of a level set of soft noise under a round window: foliage, cloud, rock."""
    mask = np.zeros((size, size), np.uint8)
    half = int(np.clip(placement.radius * 1.5, 6, 0.8 * size))
    crop = int(np.clip(2 * half * rng.uniform(0.5, 1.6), 8, len(soft) - 1))
    y, x = rng.integers(0, len(soft) - crop, 2)
    patch = cv2.resize(soft[y : y + crop, x : x + crop], (2 * half, 2 * half)).astype(np.float32) / 255 - 0.5
    yy, xx = np.mgrid[-half:half, -half:half].astype(np.float32) / half
    radius = np.sqrt(xx * xx * placement.aspect + yy * yy / placement.aspect)
    coverage = np.clip((patch * rng.uniform(0.8, 2.2) + 0.75 - radius * 1.1) * half * 0.6, 0, 1)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((coverage > 0.5).astype(np.uint8))
    if count < 2:
        return mask
    coverage *= labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top = int(placement.x) - half, int(placement.y) - half
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * half, size), min(top + 2 * half, size)
    if x1 > x0 and y1 > y0:
        mask[y0:y1, x0:x1] = (coverage[y0 - top : y1 - top, x0 - left : x1 - left] * 255).astype(np.uint8)
    return mask


def ellipse(cx: float = 0, cy: float = 0, rx: float = 1, ry: float = 1, exponent: float = 1.0) -> Polygon:
    """Return a superellipse; exponent 1 is an ellipse, less is boxier, more is pinched."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    cos, sin = np.cos(t), np.sin(t)
    power = exponent
    return np.stack([cx + rx * np.sign(cos) * abs(cos) ** power, cy + ry * np.sign(sin) * abs(sin) ** power], 1)


def quad(x0: float, y0: float, x1: float, y1: float, top: float = 1.0, bottom: float = 1.0) -> Polygon:
    """Return an upright box whose top and bottom widths may be scaled about its middle."""
    mid, half = (x0 + x1) / 2, (x1 - x0) / 2
    return np.array(
        [[mid - half * top, y0], [mid + half * top, y0], [mid + half * bottom, y1], [mid - half * bottom, y1]]
    )


def ribbon(path: Polygon, widths: NDArray[np.float64]) -> Polygon:
    """Return the outline of a band along a path, with its full width at every place."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1) * widths[:, None] / 2
    return np.concatenate([path + normal, (path - normal)[::-1]])


def limb(
    rng: Rng, start: tuple[float, float], angle: float, length: float, width: float, bend: float = 0.5
) -> list[Polygon]:
    """Return a bent tapering limb with round ends, from ``start`` towards ``angle``."""
    steps = 10
    angles = angle + np.concatenate([np.zeros(5), np.full(5, rng.normal() * bend)])
    path = np.array(start) + np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1), 0) * length / steps
    widths = np.linspace(width, width * rng.uniform(0.5, 0.9), steps)
    end, r = path[-1], widths[-1] * rng.uniform(0.5, 0.8)
    return [ribbon(path, widths), ellipse(path[0, 0], path[0, 1], width / 2, width / 2), ellipse(end[0], end[1], r, r)]


# Single outlines


def _superellipse(rng: Rng) -> list[Polygon]:
    return [ellipse(exponent=float(rng.choice([1, 1, 0.6, 0.3, 1.6])))]


def _fourier(rng: Rng) -> list[Polygon]:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = np.ones(96)
    amplitude = rng.uniform(0.1, 0.9)
    for k in range(1, int(rng.integers(3, 12))):
        radius += amplitude * rng.normal() / k**1.1 * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    radius = np.maximum(radius, 0.12)
    return [np.stack([radius * np.cos(t), radius * np.sin(t)], 1)]


def _polygon(rng: Rng) -> list[Polygon]:
    count = int(rng.integers(3, 9))
    t, radius = np.sort(rng.uniform(0, 2 * np.pi, count)), rng.uniform(0.5, 1.2, count)
    return [np.stack([radius * np.cos(t), radius * np.sin(t)], 1)]


def _star(rng: Rng) -> list[Polygon]:
    count = 2 * int(rng.integers(4, 10))
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = np.where(np.arange(count) % 2, rng.uniform(0.3, 0.7), 1.1)
    return [np.stack([radius * np.cos(t), radius * np.sin(t)], 1)]


def _rectangle(rng: Rng) -> list[Polygon]:
    skew = rng.normal(0, 0.12, (4, 2)) * (rng.random() < 0.6)
    return [0.85 * (quad(-1, -1, 1, 1) + skew)]


def _crescent(rng: Rng) -> list[Polygon]:
    span, inner = rng.uniform(0.6, 1.45) * np.pi, rng.uniform(0.3, 0.85)
    t = np.linspace(-span / 2, span / 2, 32)
    outer = np.stack([np.cos(t), np.sin(t)], 1)
    return [np.concatenate([outer, (outer * [inner, rng.uniform(inner, 1)])[::-1]])]


def _stroke(rng: Rng) -> list[Polygon]:
    steps = 24
    angles = np.cumsum(rng.normal(0, rng.uniform(0.02, 0.35), steps))
    path = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1), 0) * 2.4 / steps
    path -= path.mean(0)
    first, last = rng.uniform(0.05, 0.4, 2)
    widths = np.linspace(first, last, steps)
    ends = [ellipse(path[i, 0], path[i, 1], widths[i] / 2, widths[i] / 2) for i in (0, -1)]
    return [ribbon(path, widths), *ends]


def _vessel(rng: Rng) -> list[Polygon]:
    """A profile turned about its axis: bottle, vase, lamp."""
    y = np.linspace(-1, 1, 24)
    knots = np.abs(rng.normal(0.5, 0.25, 5)) + 0.08
    half = np.interp(y, np.linspace(-1, 1, 5), knots)
    half = np.convolve(np.pad(half, 2, "edge"), np.ones(5) / 5, "valid") if rng.random() < 0.7 else half
    return [np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]])]


SHAPES: dict[str, tuple[float, Callable[[Rng], list[Polygon]]]] = {
    "superellipse": (0.17, _superellipse),
    "fourier": (0.26, _fourier),
    "polygon": (0.11, _polygon),
    "star": (0.04, _star),
    "rectangle": (0.14, _rectangle),
    "crescent": (0.05, _crescent),
    "stroke": (0.13, _stroke),
    "vessel": (0.10, _vessel),
}


# Things of several parts


def _person(rng: Rng) -> list[Part]:
    width = rng.uniform(0.16, 0.3)
    hip, shoulder = rng.uniform(0.0, 0.15), rng.uniform(-0.62, -0.5)
    limb_width = rng.uniform(0.1, 0.17)
    legs: list[Polygon] = []
    for side in (-1, 1):
        legs += limb(rng, (side * width * 0.5, hip), np.pi / 2 + rng.normal() * 0.25, 1 - hip, limb_width * 1.3, 0.2)
    parts = [Part(legs, 0)]
    if rng.random() < 0.3:
        parts = [Part([quad(-width, hip - 0.05, width, rng.uniform(0.5, 1), 0.9, rng.uniform(1.1, 1.7))], 0)]
    torso = [quad(-width, shoulder, width, hip + 0.08, rng.uniform(0.9, 1.3), 1), ellipse(0, shoulder, width, 0.09)]
    arms = [
        limb(
            rng,
            (side * width, shoulder + 0.06),
            np.pi / 2 + rng.normal() * 0.7,
            rng.uniform(0.5, 0.75),
            limb_width,
            0.9,
        )
        for side in (-1, 1)
    ]
    head = rng.uniform(0.11, 0.16)
    top = shoulder - head - 0.06
    skin = [ellipse(0, top, head * 0.85, head), quad(-0.06, top, 0.06, shoulder)]
    hair = ellipse(rng.normal() * 0.01, top - head * 0.3, head * 0.95, head * rng.uniform(0.6, 0.9))
    sleeve_slot = int(rng.integers(1, 3))
    behind, front = (Part(arm, sleeve_slot) for arm in arms)
    return [behind, *parts, Part(torso, 1), Part(skin, 2), Part([hair], 3), front]


def _quadruped(rng: Rng) -> list[Part]:
    long, deep = rng.uniform(0.45, 0.7), rng.uniform(0.2, 0.32)
    leg, width = rng.uniform(0.4, 0.75), rng.uniform(0.08, 0.16)
    legs = [
        Part(limb(rng, (x, deep * 0.3), np.pi / 2 + rng.normal() * 0.15, leg, width, 0.3), 0)
        for x in (-long * 0.8, -long * 0.55, long * 0.55, long * 0.8)
    ]
    hx, hy = long + rng.uniform(0.1, 0.3), -rng.uniform(0.1, 0.55)
    neck = ribbon(np.linspace([long * 0.6, 0], [hx, hy], 6), np.linspace(deep, deep * 0.6, 6))
    head = [
        ellipse(hx, hy, rng.uniform(0.16, 0.22), 0.14),
        ellipse(hx + 0.17, hy + 0.04, rng.uniform(0.08, 0.16), 0.08),
    ]
    ears = [np.array([[hx - 0.1, hy - 0.08], [hx - 0.08 + rng.normal() * 0.05, hy - 0.3], [hx + 0.04, hy - 0.1]])]
    tail = limb(rng, (-long, -deep * 0.3), np.pi + rng.normal() * 0.7, rng.uniform(0.2, 0.6), 0.08, 0.9)
    slot = int(rng.integers(0, 2))
    return [*legs[::2], Part(tail, 0), Part([ellipse(0, 0, long, deep, 0.8)], 0), *legs[1::2], Part([neck], 0),
            Part(head, slot), Part(ears, slot)]  # fmt: skip


def _cup(rng: Rng) -> list[Part]:
    """A round vessel seen from above its rim, as on a table."""
    tilt, wide, high = rng.uniform(0.15, 0.5), rng.uniform(0.5, 0.95), rng.uniform(0.2, 1.3)
    foot = rng.uniform(0.45, 1.05)
    side = quad(-wide, -high / 2, wide, high / 2, 1, foot)
    base = ellipse(0, high / 2, wide * foot, wide * tilt * foot)
    rim, wall = ellipse(0, -high / 2, wide, wide * tilt), rng.uniform(0.8, 0.95)
    parts = [Part([side, base, rim], 0), Part([ellipse(0, -high / 2, wide * wall, wide * tilt * wall)], 1)]
    if rng.random() < 0.5:
        level = rng.uniform(0.5, 0.9)
        parts.append(Part([ellipse(0, -high / 2 + 0.04, wide * wall * level, wide * tilt * wall * level)], 2))
    if rng.random() < 0.4:
        t = np.linspace(-1.8, 1.8, 14)
        handle = np.stack([wide * 0.9 + 0.35 * np.cos(t), 0.35 * high * np.sin(t)], 1)
        parts.insert(0, Part([ribbon(handle, np.full(14, rng.uniform(0.08, 0.16)))], 0))
    if rng.random() < 0.3:
        parts.append(Part([quad(-wide * 0.8, -high * 0.1, wide * 0.8, high * 0.3, 1, foot)], 3))
    return parts


def _plate(rng: Rng) -> list[Part]:
    """Discs in discs: plate, wheel, clock, flower head."""
    tilt = rng.uniform(0.25, 1)
    radii = np.sort(rng.uniform(0.15, 0.95, int(rng.integers(1, 4))))[::-1]
    return [Part([ellipse(0, 0, r, r * tilt)], i) for i, r in enumerate([1.0, *radii])]


def _ring(rng: Rng) -> list[Part]:
    tilt, inner = rng.uniform(0.25, 1), rng.uniform(0.4, 0.85)
    t = np.linspace(0.001, 2 * np.pi, 64)
    outer = np.stack([np.cos(t), tilt * np.sin(t)], 1)
    return [Part([np.concatenate([outer, inner * outer[::-1]])], 0)]


def _carton(rng: Rng) -> list[Part]:
    """A box of which three faces are seen, each in the shade of its own slot."""
    w, h, d, rise = rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.5)
    front = quad(-w, -h, w, h)
    side = np.array([[w, -h], [w + d, -h - rise], [w + d, h - rise], [w, h]])
    lid = np.array([[-w, -h], [w, -h], [w + d, -h - rise], [d - w, -h - rise]])
    parts = [Part([front], 0), Part([side], 1), Part([lid], 2)]
    if rng.random() < 0.4:
        x0, y0 = rng.uniform(-0.8, 0, 2)
        parts.append(Part([quad(w * x0, h * y0, w * (x0 + 0.8), h * (y0 + 0.8))], 3))
    return parts


def _vehicle(rng: Rng) -> list[Part]:
    roof, body = rng.uniform(-0.6, -0.4), rng.uniform(0.05, 0.25)
    x0, x1 = np.sort(rng.uniform(-0.8, 0.8, 2))
    x1 = max(x1, x0 + 0.5)
    cabin, windows = quad(x0, roof, x1, 0, rng.uniform(0.6, 1), 1.05), []
    for i in range(int(rng.integers(1, 4))):
        left = x0 + (x1 - x0) * (0.15 + 0.28 * i)
        windows.append(quad(left, roof + 0.08, left + (x1 - x0) * 0.22, -0.05))
    wheel = rng.uniform(0.14, 0.22)
    places = [(-0.6, body), (0.6, body)]
    tyres, hubs = ([ellipse(x, y, wheel * s, wheel * s) for x, y in places] for s in (1, 0.5))
    hull = [ellipse(0, (body - 0.15) / 2, 1, (body + 0.3) / 2, 0.4)]
    return [Part([cabin, *hull], 0), Part(windows, 1), Part(tyres, 2), Part(hubs, 3)]


def _building(rng: Rng) -> list[Part]:
    w, top = rng.uniform(0.4, 0.9), rng.uniform(-0.9, -0.2)
    columns, rows = int(rng.integers(2, 6)), int(rng.integers(1, 6))
    xs, ys = np.linspace(-w, w, columns + 1), np.linspace(top, 1, rows + 1)
    dx, dy = xs[1] - xs[0], ys[1] - ys[0]
    windows = [quad(x + dx * 0.25, y + dy * 0.25, x + dx * 0.75, y + dy * 0.75) for x in xs[:-1] for y in ys[:-1]]
    parts = [Part([quad(-w, top, w, 1)], 0), Part(windows, 1)]
    if rng.random() < 0.6:
        peak = rng.uniform(-0.5, 0.5) * w
        parts.append(Part([np.array([[-w * 1.1, top], [peak, top - rng.uniform(0.2, 0.6)], [w * 1.1, top]])], 2))
    if rng.random() < 0.5:
        parts.append(Part([quad(xs[0] + dx * 0.3, 1 - dy * 0.8, xs[0] + dx * 0.7, 1)], 3))
    return parts


def _plant(rng: Rng) -> list[Part]:
    leaves: list[Polygon] = []
    for _ in range(int(rng.integers(4, 14))):
        angle = -np.pi / 2 + rng.normal() * 0.8
        path = np.linspace([0, 0.3], [rng.uniform(0.5, 1.2) * np.cos(angle), 0.3 + 1.2 * np.sin(angle)], 9)
        leaves.append(ribbon(path, rng.uniform(0.08, 0.35) * np.sin(np.linspace(0.1, np.pi, 9))))
    parts = [Part(leaves, 0)]
    if rng.random() < 0.6:
        parts.append(Part([quad(-0.35, 0.3, 0.35, 1, 1, rng.uniform(0.5, 1)), ellipse(0, 0.3, 0.35, 0.08)], 1))
    return parts


def _bird(rng: Rng) -> list[Part]:
    wing = np.array([[-0.3, 0], [rng.uniform(-0.9, 0), rng.uniform(-1, 0.5)], [0.3, 0.02]])
    tail = np.array([[-0.5, -0.05], [-1.1, rng.uniform(-0.3, 0.2)], [-1.0, rng.uniform(0.1, 0.4)], [-0.4, 0.12]])
    head = ellipse(0.62, -0.22, 0.18, 0.17)
    beak = np.array([[0.76, -0.28], [rng.uniform(0.9, 1.1), -0.2], [0.76, -0.14]])
    return [Part([tail], 1), Part([ellipse(0, 0, 0.65, 0.3), head], 0), Part([wing], 1), Part([beak], 2)]


def _furniture(rng: Rng) -> list[Part]:
    width, top, thick = rng.uniform(0.6, 1), rng.uniform(-0.3, 0.2), rng.uniform(0.06, 0.2)
    leg = rng.uniform(0.05, 0.12)
    legs = [quad(x - leg / 2, top, x + leg / 2, 1) for x in (-0.9 * width, -0.45 * width, 0.45 * width, 0.9 * width)]
    parts = [Part(legs, 1), Part([quad(-width, top, width, top + thick, rng.uniform(0.8, 1), 1)], 0)]
    if rng.random() < 0.5:
        parts.insert(0, Part([quad(-width, -1, width, top, rng.uniform(0.8, 1), 1)], int(rng.integers(0, 3))))
    return parts


def _branches(rng: Rng) -> list[Part]:
    polygons = limb(rng, (0, 1), -np.pi / 2, 1.6, 0.2, 0.3)
    for _ in range(int(rng.integers(3, 9))):
        start = (rng.normal() * 0.08, rng.uniform(-0.5, 0.7))
        polygons += limb(rng, start, -np.pi / 2 + rng.normal() * 0.9, rng.uniform(0.4, 1), rng.uniform(0.04, 0.1))
    return [Part(polygons, 0)]


BODIES: dict[str, tuple[float, Callable[[Rng], list[Part]]]] = {
    "person": (0.18, _person),
    "quadruped": (0.14, _quadruped),
    "cup": (0.12, _cup),
    "plate": (0.07, _plate),
    "ring": (0.04, _ring),
    "carton": (0.1, _carton),
    "vehicle": (0.1, _vehicle),
    "building": (0.08, _building),
    "plant": (0.06, _plant),
    "bird": (0.05, _bird),
    "furniture": (0.04, _furniture),
    "branches": (0.02, _branches),
}


def pick(
    rng: Rng,
    table: dict[str, tuple[float, Callable[[Rng], list[Part]]]]
    | dict[str, tuple[float, Callable[[Rng], list[Polygon]]]],
) -> str:
    """Return a name of the table, drawn by its weights."""
    weights = np.array([weight for weight, _ in table.values()])
    return str(rng.choice(list(table), p=weights / weights.sum()))
