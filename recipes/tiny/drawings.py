# SPDX-License-Identifier: Apache-2.0
"""A bank of free drawings of real things, which scenes are peopled with beside the procedural bodies.

    python -m recipes.tiny.drawings --out POOL/drawings.npz FOLDER [FOLDER ...]

Folders hold pictures with an alpha channel; `recipes/tiny/README.md` names the two collections that ``tiny`` used and
their licences. A drawing gives a scene its silhouette, its colours and its parts; the parts are guessed from the
colours, once, here.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128
"""Longer side of a drawing in the bank, in pixels."""
MAX_PARTS = 10
SMALLEST_PART = 0.02
SMALLEST_SIDE = 40
HELD_OUT_EVERY = 10
MAX_SOURCE_PIXELS = 20_000_000
# Of the emoji: skin tones beside the default one, flags, keycaps, and people seen from nobody's camera.
_SKIPPED = re.compile(r"1f3f[b-f]|1f1[e-f][0-9a-f]|20e3|^1f3f4-e0067|cardbacks|cards/|flowchart|signs|symbols|flags")

Pixels = NDArray[np.uint8]


class Drawing(NamedTuple):
    """One drawing, (SIDE, SIDE) with its longer side filling the frame."""

    picture: Pixels
    """(SIDE, SIDE, 4) RGBA; colours run on under the transparent rim."""
    parts: Pixels
    """(SIDE, SIDE), 1 to `MAX_PARTS` on the drawing and around it, so that a warped rim still has a part."""


class DrawingBank:
    """The drawings of one file, by index.

    Parameters
    ----------
    path
        What `write_bank` wrote.
    held_out
        Only every tenth drawing, which validation has for itself; else only the others.
    """

    def __init__(self, path: Path, *, held_out: bool = False) -> None:
        with np.load(path) as arrays:
            chosen = (np.arange(len(arrays["pictures"])) % HELD_OUT_EVERY == 0) == held_out
            self._pictures, self._parts = arrays["pictures"][chosen], arrays["parts"][chosen]

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Drawing:
        return Drawing(self._pictures[index], self._parts[index])


def read_drawing(path: Path) -> Drawing | None:
    """Read one picture, or return None when it is no solid thing: line art, a speck, a full rectangle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            if image.width * image.height > MAX_SOURCE_PIXELS:
                return None
            rgba = np.asarray(image.convert("RGBA"))
    x, y, width, height = cv2.boundingRect((rgba[..., 3] > 127).astype(np.uint8))
    if max(width, height) < SMALLEST_SIDE or min(width, height) < max(width, height) / 8:
        return None
    rgba = rgba[y : y + height, x : x + width]
    alpha = (rgba[..., 3] > 127).astype(np.uint8)
    share, filled = float(alpha.mean()), float(_without_holes(alpha).mean())
    if share < 0.15 or share > 0.93 or share < 0.6 * filled:
        return None
    frame = _to_frame(rgba)
    if int((cv2.connectedComponentsWithStats((frame[..., 3] > 127).astype(np.uint8))[2][1:, 4] > 60).sum()) > 4:
        return None
    return Drawing(frame, find_parts(frame))


def _without_holes(alpha: Pixels) -> Pixels:
    outlines, _ = cv2.findContours(alpha, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros_like(alpha), outlines, -1, 1, -1), np.uint8)


def _to_frame(rgba: Pixels) -> Pixels:
    height, width = rgba.shape[:2]
    scale = (SIDE - 2) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    frame = np.zeros((SIDE, SIDE, 4), np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    frame[top : top + size[1], left : left + size[0]] = resized
    # Colours of transparent pixels are unknown; those of the nearest solid pixel stand in.
    solid = frame[..., 3] > 200
    if solid.any():
        frame[..., :3] = frame[..., :3][solid][_nearest(solid)]
    return frame


def _nearest(solid: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return for every pixel which of the solid ones, counted in row order, lies nearest."""
    _, labels = cv2.distanceTransformWithLabels(
        (~solid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    order = np.zeros(int(labels.max()) + 1, np.intp)
    order[labels[solid]] = np.arange(int(solid.sum()))
    return order[labels]


def find_parts(frame: Pixels) -> Pixels:
    """Guess the parts of a drawing: connected regions of like colour, specks given to the nearest region."""
    solid = frame[..., 3] > 127
    smooth = cv2.pyrMeanShiftFiltering(np.ascontiguousarray(frame[..., :3]), 4, 24)
    lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB).astype(np.float32)
    # Lightness counts less: light and shade are no parts.
    values = lab[solid] * np.array([0.6, 1, 1], np.float32)
    cv2.setRNGSeed(1)
    count = min(6, len(values))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 12, 1.0)
    _, nearest, _ = cv2.kmeans(values, count, np.zeros((0,), np.int32), criteria, 2, cv2.KMEANS_PP_CENTERS)
    clusters = np.zeros(solid.shape, np.uint8)
    clusters[solid] = nearest[:, 0] + 1
    regions: list[NDArray[np.bool_]] = []
    for cluster in range(1, count + 1):
        _, pieces, stats, _ = cv2.connectedComponentsWithStats((clusters == cluster).astype(np.uint8), connectivity=4)
        regions += [pieces == 1 + i for i, stat in enumerate(stats[1:]) if stat[4] >= SMALLEST_PART * solid.sum()]
    regions = sorted(regions, key=lambda region: -int(region.sum()))[:MAX_PARTS]
    parts = np.zeros(solid.shape, np.uint8)
    for number, region in enumerate(regions or [solid], 1):
        parts[region] = number
    return np.asarray(parts[parts > 0][_nearest(parts > 0)], np.uint8)


def find_drawings(folders: list[Path]) -> Iterator[Path]:
    """Yield the pictures of the folders, in order of their names; those that are no things are passed over."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".png", ".webp") and not _SKIPPED.search(path.relative_to(folder).as_posix()):
                yield path


def write_bank(folders: list[Path], out: Path) -> int:
    """Write the bank and return how many drawings it holds."""
    drawings = []
    for path in find_drawings(folders):
        drawing = read_drawing(path)
        if drawing is not None:
            drawings.append(drawing)
    if not drawings:
        raise SystemExit(f"no drawings with an alpha channel in {', '.join(map(str, folders))}")
    pictures, parts = (np.stack(arrays) for arrays in zip(*drawings, strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, pictures=pictures, parts=parts)
    return len(drawings)


def main() -> None:
    """Write a bank of drawings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(write_bank(arguments.folders, arguments.out), "drawings")


if __name__ == "__main__":
    main()
