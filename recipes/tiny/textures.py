# SPDX-License-Identifier: Apache-2.0
"""Grey texture tiles made from a seed: the surfaces of procedural scenes.

Natural images have amplitude spectra near 1/f and are built of many small things that cover each other (Ruderman 1997,
Lee, Mumford and Huang 2001), so the families are filtered noise, small dead leaves, strokes, cells, waves and lattices.
A tile is made when it is first asked for and kept.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

TILE = 512
GreyTile = NDArray[np.uint8]
Rng = np.random.Generator


class TextureBank:
    """Texture and soft-noise tiles by index, (TILE, TILE) uint8 each; the same for the same seed.

    Parameters
    ----------
    seed
        What the tiles are drawn from.
    count, soft_count
        Number of textures and of soft noise tiles. The soft ones give outlines and light.
    """

    def __init__(self, seed: int = 1, count: int = 200, soft_count: int = 48) -> None:
        self.seed = seed
        self.count = count
        self.soft_count = soft_count
        self._tiles: dict[tuple[int, int], GreyTile] = {}

    def texture(self, index: int) -> GreyTile:
        """Return one texture tile."""
        return self._tile(0, index % self.count)

    def soft(self, index: int) -> GreyTile:
        """Return one tile of very smooth noise."""
        return self._tile(1, index % self.soft_count)

    def _tile(self, kind: int, index: int) -> GreyTile:
        key = (kind, index)
        if key not in self._tiles:
            rng = np.random.default_rng([self.seed, kind, index])
            values = filtered_noise(rng, rng.uniform(3, 5)) if kind else FAMILIES[index % len(FAMILIES)](rng)
            self._tiles[key] = _to_grey(values)
        return self._tiles[key]


def filtered_noise(rng: Rng, beta: float, stretch: float = 1.0, angle: float = 0.0) -> NDArray[np.float32]:
    """Return periodic Gaussian noise with power spectrum 1 / frequency ** beta, unit deviation."""
    frequency = np.fft.fftfreq(TILE)
    fx, fy = np.meshgrid(frequency, frequency)
    cos, sin = np.cos(angle), np.sin(angle)
    radius = np.hypot((cos * fx + sin * fy) * stretch, -sin * fx + cos * fy)
    radius[0, 0] = 1
    amplitude = radius ** (-beta / 2)
    amplitude[0, 0] = 0
    # Weakening the lowest frequencies makes some tiles even in brightness, like a lawn seen from above.
    amplitude[radius < rng.choice([0, 0.004, 0.02])] *= 0.2
    spectrum = np.fft.fft2(rng.standard_normal((TILE, TILE))) * amplitude
    values = np.real(np.fft.ifft2(spectrum)).astype(np.float32)
    return values / np.float32(values.std() + 1e-6)


def _to_grey(values: NDArray[np.float32]) -> GreyTile:
    low, high = np.percentile(values, [1, 99])
    return np.asarray(np.clip((values - low) / (high - low + 1e-6) * 255, 0, 255), np.uint8)


def _bend(values: NDArray[np.float32], rng: Rng, amplitude: float) -> NDArray[np.float32]:
    """Shift pixels by smooth noise, so that lattices are never perfect."""
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    dx, dy = (np.float32(amplitude) * filtered_noise(rng, 3.5) for _ in range(2))
    bent = cv2.remap(values, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(bent, np.float32)


def _isotropic(rng: Rng) -> NDArray[np.float32]:
    return filtered_noise(rng, rng.uniform(1.0, 3.6))


def _grain(rng: Rng) -> NDArray[np.float32]:
    return filtered_noise(rng, rng.uniform(1, 3), rng.uniform(2, 8), rng.uniform(0, np.pi))


def _stripes(rng: Rng) -> NDArray[np.float32]:
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    period, angle = rng.uniform(4, 44), rng.uniform(0, np.pi)
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period)
    if rng.random() < 0.5:
        wave = np.sign(wave) * np.abs(wave) ** rng.uniform(0.2, 1)
    return _bend(wave.astype(np.float32), rng, rng.uniform(0, 12))


def _lattice(rng: Rng) -> NDArray[np.float32]:
    y, x = np.mgrid[:TILE, :TILE].astype(np.float32)
    period = rng.uniform(8, 44)
    other = period * rng.uniform(0.5, 2)
    if rng.random() < 0.5:
        offset = (y // other % 2) * period / 2 if rng.random() < 0.5 else 0.0
        cells = (((x + offset) % period < period * 0.15) | (y % other < other * 0.15)).astype(np.float32)
    else:
        cells = np.sign(np.sin(x * 2 * np.pi / period) * np.sin(y * 2 * np.pi / other)).astype(np.float32)
    cells = _bend(cells, rng, rng.uniform(0, 8)) + np.float32(0.15) * filtered_noise(rng, 1.5)
    return np.asarray(cv2.GaussianBlur(cells, (0, 0), 0.7), np.float32)


def _small_leaves(rng: Rng) -> NDArray[np.float32]:
    tile = np.zeros((TILE, TILE), np.float32)
    count = int(rng.choice([300, 900, 2500]))
    radius = rng.uniform(0.6, 1.6) * TILE / np.sqrt(count) * 0.8
    flatness, angle = rng.uniform(0.15, 1), rng.uniform(0, 180)
    spread = rng.uniform(0, 90) if rng.random() < 0.5 else 180
    for _ in range(2 * count):
        r = radius * rng.uniform(0.5, 1.3)
        axes = (max(1, int(r)), max(1, int(r * flatness)))
        centre = (int(rng.integers(TILE)), int(rng.integers(TILE)))
        cv2.ellipse(tile, centre, axes, angle + rng.uniform(-spread, spread), 0, 360, float(rng.normal()), -1)
    blurred = np.asarray(cv2.GaussianBlur(tile, (0, 0), 0.6), np.float32)
    return blurred + np.float32(0.2) * filtered_noise(rng, 1.5)


def _strokes(rng: Rng) -> NDArray[np.float32]:
    """Grass or fur."""
    tile = np.zeros((TILE, TILE), np.float32)
    angle, spread, length = rng.uniform(0, np.pi), rng.uniform(0.05, 0.8), rng.uniform(8, 50)
    thickness = int(rng.integers(1, 4))
    for _ in range(6000):
        a = angle + rng.normal() * spread
        x, y = rng.uniform(0, TILE, 2)
        end = (int(x + length * np.cos(a)), int(y + length * np.sin(a)))
        cv2.line(tile, (int(x), int(y)), end, float(rng.normal()), thickness, cv2.LINE_8)
    return np.asarray(cv2.GaussianBlur(tile, (0, 0), 0.5), np.float32)


def _cells(rng: Rng) -> NDArray[np.float32]:
    count = int(rng.integers(60, 900))
    holes = np.full((TILE, TILE), 255, np.uint8)
    x, y = rng.integers(0, TILE, (2, count))
    holes[y, x] = 0
    distance = cv2.distanceTransform(holes, cv2.DIST_L2, 5)
    spacing = TILE / np.sqrt(count)
    if rng.random() < 0.6:
        tile = np.minimum(distance, np.float32(rng.uniform(0.3, 1.2) * spacing))
    else:
        tile = (distance < 0.35 * spacing).astype(np.float32)
    return _bend(tile, rng, rng.uniform(0, 5))


# Filtered noise stands three times and small leaves twice: photographs are mostly those.
FAMILIES: tuple[Callable[[Rng], NDArray[np.float32]], ...] = (
    _isotropic,
    _isotropic,
    _isotropic,
    _grain,
    _stripes,
    _lattice,
    _small_leaves,
    _small_leaves,
    _strokes,
    _cells,
)
