# SPDX-License-Identifier: Apache-2.0
"""The canvas that scenes are painted on: materials, layers, light and shadow, and who is where.

Everything that is put down gets a leaf number, and every leaf belongs to an object and perhaps to a group of alike
objects, so that the truth is known at three levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.tiny.shapes import Mask, Rng
from recipes.tiny.surfaces import PhotographBank, Piece
from recipes.tiny.textures import TILE, TextureBank

MAX_LEAVES = 250
PHOTOGRAPHED, OWN_COLOUR = 0.3, 0.6
"""How often a material is a piece of a photograph, if there is a bank of them, and how often that keeps its colour."""
Colour = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """A texture seen through a table of colours, or a piece of a photograph.

    Attributes
    ----------
    table
        (256, 3) float32 RGB, one colour for each grey level of the tile.
    texture
        Index in the texture bank.
    scale
        Tile pixels for each picture pixel.
    angle
        Turn of the tile, in radians.
    colour
        (3,) float32, the main colour.
    piece
        Where in a photograph it comes from; then table and texture are not looked at.
    """

    table: NDArray[np.float32]
    texture: int
    scale: float
    angle: float
    colour: Colour
    piece: Piece | None = None


def draw_colour(rng: Rng) -> Colour:
    """Draw an RGB colour, 0 to 255, with the frequencies of photographs: earth, green, sky, grey, skin, anything."""
    kind = rng.random()
    if kind < 0.25:
        hsv = (rng.uniform(20, 50), rng.uniform(0.1, 0.7), rng.uniform(0.15, 0.95))
    elif kind < 0.43:
        hsv = (rng.uniform(60, 140), rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.8))
    elif kind < 0.58:
        hsv = (rng.uniform(190, 230), rng.uniform(0.05, 0.7), rng.uniform(0.3, 1))
    elif kind < 0.78:
        hsv = (rng.uniform(0, 360), rng.uniform(0, 0.12), rng.uniform(0.02, 1))
    elif kind < 0.85:
        hsv = (rng.uniform(8, 30), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.95))
    else:
        hsv = (rng.uniform(0, 360), rng.uniform(0.2, 1), rng.uniform(0.1, 1))
    pixel = cv2.cvtColor(np.array([[hsv]], np.float32), cv2.COLOR_HSV2RGB)
    return np.asarray(pixel[0, 0] * 255, np.float32)


class Canvas:
    """A picture in the making.

    Parameters
    ----------
    rng
        Every draw comes from it.
    bank
        The textures.
    size
        Side of the square picture, in pixels.
    photographs
        What some materials are pieces of.
    """

    def __init__(self, rng: Rng, bank: TextureBank, size: int, photographs: PhotographBank | None = None) -> None:
        self.rng, self.bank, self.size, self.photographs = rng, bank, size, photographs
        self.image = np.zeros((size, size, 3), np.float32)
        self.leaves = np.zeros((size, size), np.uint8)
        self.object_of_leaf = np.zeros(MAX_LEAVES + 1, np.uint8)
        self.group_of_leaf = np.zeros(MAX_LEAVES + 1, np.uint8)
        self._counts = [0, 0, 0]
        self.palette = [draw_colour(rng) for _ in range(int(rng.integers(3, 8)))]
        angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.4 else -np.pi / 2 + rng.normal() * 0.6
        self.light = np.array([np.cos(angle), np.sin(angle)])
        self.last_materials: list[Material] = []

    def _next(self, kind: int) -> int:
        self._counts[kind] = min(self._counts[kind] + 1, MAX_LEAVES)
        return self._counts[kind]

    def new_object(self) -> int:
        """Return a fresh object number."""
        return self._next(1)

    def new_group(self) -> int:
        """Return a fresh group number."""
        return self._next(2)

    @property
    def full(self) -> bool:
        """Whether no leaf number is left."""
        return self._counts[0] >= MAX_LEAVES

    def material(self, base: Colour | None = None) -> Material:
        """Draw a material, of the scene's palette mostly, or near the ``base`` colour."""
        rng = self.rng
        if base is None:
            base = self.palette[rng.integers(len(self.palette))] if rng.random() < 0.7 else draw_colour(rng)
        colour = np.asarray(base + rng.normal(0, 10, 3), np.float32)
        if self.photographs is not None and rng.random() < PHOTOGRAPHED:
            piece, own = self.photographs.draw(rng)
            table = np.zeros((0, 3), np.float32)
            scale = float(np.exp(rng.uniform(np.log(0.35), np.log(1.6))) * 256 / self.size)
            colour = own if rng.random() < OWN_COLOUR else colour
            return Material(table, 0, scale, rng.uniform(0, 2 * np.pi), colour, piece)
        strength = rng.choice([2, 10, 28, 55, 95], p=[0.18, 0.27, 0.28, 0.18, 0.09]) * rng.uniform(0.6, 1.4)
        level = np.linspace(-1, 1, 256)[:, None]
        kind = rng.random()
        if kind < 0.68:
            table = colour + strength * level * (rng.uniform(0.5, 1) + rng.normal(0, 0.2, 3)) * 0.7
        elif kind < 0.86:
            other = draw_colour(rng) if rng.random() < 0.5 else self.palette[rng.integers(len(self.palette))]
            weight = rng.uniform(0.2, 1) / (1 + np.exp(-(level - rng.uniform(-0.6, 0.6)) * rng.uniform(2, 30)))
            table = colour * (1 - weight) + other * weight
        else:
            knots = np.linspace(-1, 1, int(rng.integers(3, 6)))
            colours = colour + rng.normal(0, strength * 0.6, (len(knots), 3))
            table = np.stack([np.interp(level[:, 0], knots, colours[:, i]) for i in range(3)], 1)
        texture = int(rng.integers(self.bank.count))
        scale = float(rng.choice([1.0, 1.0, 1.8, 0.6]) * rng.uniform(0.8, 1.2) * 320 / self.size)
        table = np.clip(table, 0, 255).astype(np.float32)
        return Material(table, texture, scale, rng.uniform(0, 2 * np.pi), colour)

    def surface(self, material: Material, height: int, width: int, tilt: float = 0.0) -> NDArray[np.float32]:
        """Paint (height, width, 3) of a material; ``tilt`` leans it back like a floor."""
        rng, scale, piece = self.rng, material.scale, material.piece
        x, y = rng.uniform(0, TILE, 2)
        cos, sin = np.cos(material.angle) * scale, np.sin(material.angle) * scale
        matrix = np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])
        lean = np.array([[1, 0, 0], [0, 1, 0], [0, tilt / height, 1]]) @ np.array(
            [[1, 0, -width / 2], [0, 1, 0], [0, 0, 1.0]]
        )
        if piece is not None and self.photographs is not None:
            centre = np.array([[1, 0, 0], [0, 1, -height / 2], [0, 0, 1]])
            matrix[:2, 2] = rng.normal(0, 0.02, 2) * TILE
            seen = self.photographs.look(piece, matrix @ centre @ lean, (height, width))
            mean = seen.mean((0, 1))
            paint = material.colour + (seen - mean) * np.float32(piece.gain)
            return np.asarray(np.clip(paint, 0, 255), np.float32)
        tile = self.bank.texture(material.texture)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        if tilt:
            grey = cv2.warpPerspective(tile, matrix @ lean, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        else:
            grey = cv2.warpAffine(tile, matrix[:2], (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        return np.asarray(material.table[grey])

    def put(
        self, mask: Mask, material: Material, owner: tuple[int, int], *, shaded: bool = True, tilt: float = 0.0
    ) -> None:
        """Lay a leaf down: ``owner`` is its object and its group (0 for none)."""
        x, y, width, height = cv2.boundingRect(mask)
        if width < 2 or height < 2 or self.full:
            return
        leaf = self._next(0)
        self.object_of_leaf[leaf], self.group_of_leaf[leaf] = owner
        window = (slice(y, y + height), slice(x, x + width))
        coverage = mask[window]
        paint = self.surface(material, height, width, tilt)
        if shaded:
            paint = paint * self._shading(coverage)[..., None]
        view = self.image[window]
        view += (coverage.astype(np.float32) / 255)[..., None] * (paint - view)
        self.leaves[window][coverage > 127] = leaf
        self.last_materials = [*self.last_materials[-6:], material]

    def put_painted(
        self,
        window: tuple[slice, slice],
        coverage: Mask,
        paint: NDArray[np.float32],
        parts: Mask,
        owner: tuple[int, int],
    ) -> None:
        """Lay down a thing that is painted already; each number of ``parts`` that shows becomes a leaf of ``owner``."""
        if self.full or not (coverage > 127).any():
            return
        if self.rng.random() < 0.6:
            paint = paint * self._shading(coverage)[..., None]
        view = self.image[window]
        view += (coverage.astype(np.float32) / 255)[..., None] * (paint - view)
        solid = coverage > 127
        for part in np.unique(parts[solid]):
            if self.full:
                break
            leaf = self._next(0)
            self.object_of_leaf[leaf], self.group_of_leaf[leaf] = owner
            self.leaves[window][solid & (parts == part)] = leaf

    def _shading(self, coverage: Mask) -> NDArray[np.float32]:
        """Return a light factor for each pixel of a thing: a slope of light, a rounded form, or a dark rim."""
        rng = self.rng
        height, width = coverage.shape
        factor = np.ones((height, width), np.float32)
        if rng.random() < 0.5:
            slope = rng.uniform(0, 0.35) * self.light
            factor += slope[0] * np.linspace(-1, 1, width, dtype=np.float32)[None]
            factor += slope[1] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        kind = rng.random()
        if kind > 0.5 or min(width, height) < 8:
            return np.maximum(factor, 0.1)
        inside = cv2.copyMakeBorder((coverage > 127).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        depth = np.minimum(distance / np.float32(distance.max() * rng.uniform(0.4, 1) + 1e-3), 1)
        if kind < 0.25:
            rim = 1 - np.float32(rng.uniform(0.1, 0.5)) * (1 - depth) ** 2
            return np.asarray(np.maximum(factor * rim, 0.1), np.float32)
        # A swollen form: height is round over the distance to the rim, light comes from one side.
        form = cv2.GaussianBlur(np.sqrt(1 - (1 - depth) ** 2), (0, 0), max(min(width, height) / 16, 0.6))
        reach = np.float32(rng.uniform(0.2, 0.7) * min(width, height) / 4)
        lit = cv2.Sobel(form, cv2.CV_32F, 1, 0) * self.light[0] + cv2.Sobel(form, cv2.CV_32F, 0, 1) * self.light[1]
        return np.asarray(np.clip(factor - np.clip(lit * reach, -0.6, 0.6), 0.1, 2), np.float32)

    def darken(self, coverage: NDArray[np.float32], strength: float) -> None:
        """Take light away where coverage (0 to 1) is."""
        self.image *= (1 - np.float32(strength) * coverage)[..., None]

    def cast_shadow(self, mask: Mask) -> None:
        """Darken what lies behind a thing, on the side away from the light."""
        rng, scale = self.rng, self.size / 256
        offset = -self.light * rng.uniform(1, 12) * scale
        moved = cv2.warpAffine(mask, np.array([[1, 0, offset[0]], [0, 1, offset[1]]]), (self.size, self.size))
        blur = max(1, int(rng.uniform(2, 12) * scale))
        self.darken(np.asarray(cv2.blur(moved, (blur, blur)) / np.float32(255), np.float32), rng.uniform(0.15, 0.6))

    def ground_shadow(self, mask: Mask) -> None:
        """Darken the ground under the foot of a thing."""
        x, y, width, height = cv2.boundingRect(mask)
        if width < 4 or height < 4:
            return
        spot = np.zeros((self.size, self.size), np.uint8)
        centre = (int(x + width * (0.5 - 0.15 * self.light[0])), y + height)
        axes = (max(1, int(width * self.rng.uniform(0.4, 0.7))), max(1, int(width * self.rng.uniform(0.05, 0.2))))
        cv2.ellipse(spot, centre, axes, 0, 0, 360, 255, -1)
        blur = max(1, int(width * 0.12))
        self.darken(np.asarray(cv2.blur(spot, (blur, blur)) / np.float32(255), np.float32), self.rng.uniform(0.2, 0.75))

    def blur(self, sigma: float) -> None:
        """Put everything painted so far out of focus; the labels stay."""
        self.image[:] = cv2.GaussianBlur(self.image, (0, 0), sigma)
