# SPDX-License-Identifier: Apache-2.0
"""Many prompts on many pictures on one sheet, to be looked at.

    python -m recipes.tiny.contact_sheet --out sheet.jpg PANEL [PANEL ...]

A panel is IMAGE, or IMAGE followed by prompts for one object: ``photo.jpg@point=300,200``,
``photo.jpg@point=300,200@point=310,90,0@box=10,20,300,400``. ``photo.jpg@everything`` shows all masks. ``--bundle``,
given more than once, puts the answers of each beside each other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import segship
from segship.draw import draw_masks, draw_overlay
from segship.images import read_image

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT, CAPTION = 360, 270, 24


def fit(pixels: Pixels) -> Pixels:
    """Return a picture in a panel's frame, on white."""
    scale = min(WIDTH / pixels.shape[1], HEIGHT / pixels.shape[0])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    frame = np.full((HEIGHT + CAPTION, WIDTH, 3), 255, np.uint8)
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    left = (WIDTH - size[0]) // 2
    frame[: size[1], left : left + size[0]] = resized
    return frame


def panel(predictor: segship.Predictor, text: str) -> Pixels:
    """Return one panel with its caption."""
    path, *prompts = text.split("@")
    pixels = read_image(Path(path)).pixels
    caption = " ".join(prompts)
    if prompts == ["everything"]:
        records = segship.generate_masks(predictor, pixels)
        frame = fit(draw_masks(pixels, [record.runs for record in records]))
        caption = f"everything: {len(records)} masks"
    elif prompts:
        values = [part.split("=") for part in prompts]
        points = [[float(v) for v in value.split(",")] for kind, value in values if kind == "point"]
        boxes = [[float(v) for v in value.split(",")] for kind, value in values if kind == "box"]
        given = segship.Prompts(
            points=[point[:2] for point in points] or None,
            labels=[int(point[2]) if len(point) > 2 else 1 for point in points] or None,
            boxes=boxes[0] if boxes else None,
        )
        prediction = predictor.decode(predictor.encode(pixels), given, multimask_output="auto")
        masks = np.asarray(prediction.masks[:, 0], np.bool_)
        frame = fit(draw_overlay(pixels, masks, objects=prediction.objects, contour=True))
    else:
        frame = fit(pixels)
    place, words = (4, HEIGHT + CAPTION - 7), f"{Path(path).stem} {caption}"[:60]
    cv2.putText(frame, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return frame


def main() -> None:
    """Read the command line and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panels", nargs="+", metavar="PANEL")
    parser.add_argument("--bundle", action="append", help="tiny when left out")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    predictors = [segship.load(bundle) for bundle in options.bundle or ["tiny"]]
    # A picture without prompts is nobody's answer, and shown once.
    frames = [panel(one, text) for text in options.panels for one in predictors[: None if "@" in text else 1]]
    while len(frames) % options.columns:
        frames.append(np.full_like(frames[0], 255))
    rows = [np.hstack(frames[i : i + options.columns]) for i in range(0, len(frames), options.columns)]
    cv2.imwrite(str(options.out), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
