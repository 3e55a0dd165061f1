# SPDX-License-Identifier: Apache-2.0
"""A bank of free photographs, whose pieces are surfaces of things in a scene, and what stands behind them.

    python -m recipes.tiny.surfaces --out POOL/photographs.npz PICTURE [PICTURE ...]
    python -m recipes.tiny.surfaces --out POOL/photographs.npz --outlined FOLDER

`recipes/tiny/README.md` names the photographs and their licences. Training knows nothing of what they show: a
photograph behind things belongs to no object. 77 things in 16 of them are outlined in `outlines.json`, by which
settings and weights are chosen, never trained; the second command writes them as ``FOLDER/images`` and
``FOLDER/labels``, which `recipes.tiny.evaluation` and others measure on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Rng = np.random.Generator
Pixels = NDArray[np.uint8]
Colour = NDArray[np.float32]

SIDE = 1024
"""Longer side of a photograph in the bank, in pixels."""
LEVELS = 3
"""How often a photograph is halved, for pieces that are seen from afar."""
HELD_OUT_EVERY = 7
OUTLINES = Path(__file__).with_name("outlines.json")
"""Names and polygons of things by the number of a photograph; a later thing covers an earlier one."""
MARGIN = 0.15
SEEN = 24
"""Side of the piece that gives a surface its colour, in pixels of the coarsest level."""


class Piece(NamedTuple):
    """A place in a photograph that a surface is taken from."""

    photograph: int
    x: float
    """Of the width, 0 to 1."""
    y: float
    gain: float
    """Contrast about the surface's colour; 1 is the photograph's own."""


class PhotographBank:
    """The photographs of one file, by index.

    Parameters
    ----------
    path
        What `write_bank` wrote.
    held_out
        Only every seventh, which validation has for itself; else only the others.
    """

    def __init__(self, path: Path, *, held_out: bool = False) -> None:
        with np.load(path) as arrays:
            names = sorted(arrays.files)
            chosen = [name for i, name in enumerate(names) if (i % HELD_OUT_EVERY == 0) == held_out]
            self._levels = [_halved(arrays[name]) for name in chosen]

    def __len__(self) -> int:
        return len(self._levels)

    def draw(self, rng: Rng) -> tuple[Piece, Colour]:
        """Draw a place and its mean colour, (3,) float32 RGB."""
        index = int(rng.integers(len(self)))
        x, y = rng.uniform(MARGIN, 1 - MARGIN, 2)
        coarse = self._levels[index][-1]
        height, width = coarse.shape[:2]
        left, top = int(x * width) - SEEN // 2, int(y * height) - SEEN // 2
        seen = coarse[max(top, 0) : top + SEEN, max(left, 0) : left + SEEN]
        piece = Piece(index, float(x), float(y), float(rng.choice([1.0, 0.6, 0.3]) * rng.uniform(0.8, 1.2)))
        return piece, seen.mean((0, 1), dtype=np.float32)

    def look(self, piece: Piece, matrix: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return (height, width, 3) of a photograph about a place; ``matrix`` (3, 3) takes pixels to the photograph.

        The matrix leaves out where the place is: it takes (0, 0) to the place itself, or near it.
        """
        height, width = shape
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        level = int(np.clip(np.floor(np.log2(max(scale, 1e-3))), 0, LEVELS))
        image = self._levels[piece.photograph][level]
        to_level = np.diag([0.5**level, 0.5**level, 1.0])
        to_level[:2, 2] = piece.x * image.shape[1], piece.y * image.shape[0]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        whole = to_level @ matrix
        seen = cv2.warpPerspective(image, whole, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        return seen.astype(np.float32)

    def view(self, rng: Rng, size: int) -> NDArray[np.float32]:
        """Return (size, size, 3) of a photograph, most of it or a part; at times from the other side."""
        levels = self._levels[int(rng.integers(len(self)))]
        short = min(levels[0].shape[:2])
        side = short * rng.uniform(0.35, 1)
        level = int(np.clip(np.floor(np.log2(side / size)), 0, LEVELS))
        image, side = levels[level], int(side * 0.5**level)
        top, left = (int(rng.integers(0, extent - side + 1)) for extent in image.shape[:2])
        seen = cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(seen[:, ::-1] if rng.random() < 0.5 else seen).astype(np.float32)


def _halved(image: Pixels) -> list[Pixels]:
    levels = [image]
    for _ in range(LEVELS):
        levels.append(np.asarray(cv2.pyrDown(levels[-1]), np.uint8))
    return levels


def read_photograph(path: Path) -> Pixels:
    """Read (H, W, 3) uint8 RGB with its longer side at most `SIDE`; grey stays grey."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(upright, np.uint8)


def write_bank(pictures: list[Path], out: Path) -> int:
    """Write the bank and return how many photographs it holds."""
    out.parent.mkdir(parents=True, exist_ok=True)
    photographs = {f"{number:03d}": read_photograph(path) for number, path in enumerate(pictures)}
    np.savez(out, allow_pickle=False, **photographs)
    return len(photographs)


def write_outlined(bank: Path, folder: Path) -> int:
    """Write ``images/NUMBER.jpg`` and ``labels/NUMBER.png`` (16 bits) of what is outlined; return how many things."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    outlines: dict[str, list[tuple[str, list[list[int]]]]] = json.loads(OUTLINES.read_text())
    with np.load(bank) as photographs:
        for number, things in outlines.items():
            pixels = photographs[number]
            labels = np.zeros(pixels.shape[:2], np.uint16)
            for value, (_, polygon) in enumerate(things, 1):
                cv2.fillPoly(labels, [np.array(polygon, np.int32)], (value,))
            Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg", quality=95)
            Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
    return sum(map(len, outlines.values()))


def main() -> None:
    """Write a bank of photographs, or what is outlined in one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the bank")
    parser.add_argument("--outlined", type=Path, help="folder for the outlined photographs of the bank")
    arguments = parser.parse_args()
    if not arguments.pictures and not arguments.outlined:
        parser.error("there is nothing to do; give pictures for a bank, or --outlined and a folder")
    if arguments.pictures:
        print(write_bank(arguments.pictures, arguments.out), "photographs")
    if arguments.outlined:
        print(write_outlined(arguments.out, arguments.outlined), "things")


if __name__ == "__main__":
    main()
