# SPDX-License-Identifier: Apache-2.0
"""What scenes stand on: bands of land and sky, patches of stuff, blobs, rooms; and the outlines that things have.

Each background paints itself and returns the height, in pixels, from which things stand on the ground, or None.
"""

from __future__ import annotations

import cv2
import numpy as np

from recipes.tiny.painting import Canvas
from recipes.tiny.shapes import SHAPES, Mask, Placement, noise_blob, pick, quad, rasterise


def _whole(canvas: Canvas) -> Mask:
    return np.full((canvas.size, canvas.size), 255, np.uint8)


def _region(canvas: Canvas, mask: Mask, shaded: bool = False, tilt: float = 0.0) -> None:
    canvas.put(mask, canvas.material(), (canvas.new_object(), 0), shaded=shaded, tilt=tilt)


def _bands(canvas: Canvas) -> float | None:
    """Sky, hills, shore, water."""
    rng, size = canvas.rng, canvas.size
    _region(canvas, _whole(canvas))
    y = rng.uniform(0.1, 0.5) * size
    first = y
    for _ in range(int(rng.integers(1, 5))):
        x = np.linspace(-5, size + 5, 48)
        walk = np.cumsum(rng.normal(0, 1, 48))
        walk -= np.linspace(walk[0], walk[-1], 48)
        walk *= rng.choice([0, 2, 6, 14, 25]) * size / 256 / (walk.std() + 1e-3)
        line = y + walk + (x - size / 2) * rng.normal(0, 0.06)
        polygon = np.concatenate([np.stack([x, line], 1), [[size + 5, size + 5], [-5, size + 5]]])
        tilt = rng.uniform(1, 6) if rng.random() < 0.3 else 0.0
        _region(canvas, rasterise([polygon], Placement(0, 0, 1), size), rng.random() < 0.3, -tilt / (tilt + 1))
        y += rng.uniform(0.08, 0.35) * size
    return float(first) if rng.random() < 0.6 else None


def _patches(canvas: Canvas) -> float | None:
    """Stuff regions cut by level sets of noise: vegetation, rock, snow, reflections."""
    rng, size = canvas.rng, canvas.size
    _region(canvas, _whole(canvas))
    for _ in range(int(rng.integers(1, 4))):
        tile = canvas.bank.soft(int(rng.integers(canvas.bank.soft_count)))
        crop = int(rng.uniform(100, 500))
        y, x = rng.integers(0, len(tile) - crop, 2)
        field = cv2.resize(tile[y : y + crop, x : x + crop], (size, size)).astype(np.float32)
        # People draw such borders smoother than they are.
        field = cv2.GaussianBlur(field, (0, 0), rng.uniform(1, 4) * size / 256)
        level = np.percentile(field, rng.uniform(25, 80))
        _region(canvas, np.clip((field - level) * 12 + 128, 0, 255).astype(np.uint8))
    return None


def _blobs(canvas: Canvas) -> float | None:
    rng, size = canvas.rng, canvas.size
    _region(canvas, _whole(canvas))
    for _ in range(int(rng.integers(0, 7))):
        x, y = rng.uniform(0, size, 2)
        placement = Placement(x, y, rng.uniform(50, 150) * size / 256, rng.uniform(0, 6))
        _region(canvas, draw_outline(canvas, placement), True)
    return None


def _room(canvas: Canvas) -> float | None:
    """A wall, perhaps panels on it, and a floor or a table top that leans back."""
    rng, size = canvas.rng, canvas.size
    _region(canvas, _whole(canvas), True)
    horizon = rng.uniform(0.2, 0.75) * size
    lean = rng.normal() * 0.04 * size
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.6 else 0):
        x, y = rng.uniform(0, size), rng.uniform(0, horizon)
        w, h = rng.uniform(0.05, 0.3, 2) * size
        _region(canvas, rasterise([quad(x, y - h, x + w, y + h * 0.2)], Placement(0, 0, 1), size), True)
    inset = rng.uniform(-0.3, 0.25) * size
    floor = np.array(
        [[inset, horizon - lean], [size - inset, horizon + lean], [size * 1.3, size * 1.1], [-size * 0.3, size * 1.1]]
    )
    if inset > 0 and rng.random() < 0.5:
        below = np.array([[-5, horizon], [size + 5, horizon], [size + 5, size + 5], [-5, size + 5]])
        _region(canvas, rasterise([below], Placement(0, 0, 1), size), True)
    _region(canvas, rasterise([floor], Placement(0, 0, 1), size), rng.random() < 0.5, -rng.uniform(0.2, 0.85))
    return float(horizon)


def photograph_behind(canvas: Canvas) -> float | None:
    """Fill the canvas with a view of a free photograph, which belongs to no object."""
    assert canvas.photographs is not None
    rng, size = canvas.rng, canvas.size
    seen = canvas.photographs.view(rng, size)
    tint = np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    canvas.image[:] = np.clip(seen * tint * np.float32(rng.uniform(0.7, 1.15)), 0, 255)
    return float(rng.uniform(0.3, 0.7) * size) if rng.random() < 0.5 else None


BACKGROUNDS = {"bands": _bands, "patches": _patches, "blobs": _blobs, "room": _room}


def draw_outline(canvas: Canvas, placement: Placement, name: str | None = None) -> Mask:
    """Return the coverage of one shape, of foliage-like noise in one case of six, with a hole in one of fourteen."""
    rng = canvas.rng
    if name is None:
        name = "noise" if rng.random() < 0.16 else pick(rng, SHAPES)
    if name == "noise":
        tile = canvas.bank.soft(int(rng.integers(canvas.bank.soft_count)))
        mask = noise_blob(rng, tile, placement, canvas.size)
    else:
        mask = rasterise(SHAPES[name][1](rng), placement, canvas.size)
    if rng.random() < 0.07:
        r = placement.radius
        dx, dy = rng.normal(0, 0.3, 2) * r
        hole = Placement(placement.x + dx, placement.y + dy, r * rng.uniform(0.2, 0.5), rng.uniform(0, 6))
        mask = np.minimum(mask, 255 - rasterise(SHAPES["superellipse"][1](rng), hole, canvas.size))
    return mask
