# SPDX-License-Identifier: Apache-2.0
"""Results as pictures: the overlay for people, one PNG a mask for programs, with or without a table."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.draw import draw_labelled_masks, draw_masks, draw_overlay
from segship.errors import OutputError
from segship.writers.instances import Instance, Instances, Result, Source, as_instances

JPEG_QUALITY = 92
# Masks are large flat areas, which the fastest setting already makes small.
PNG_COMPRESSION = 1
METADATA = "metadata.csv"
METADATA_COLUMNS = (
    *("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y"),
    *("predicted_iou", "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
)


class OverlayWriter:
    """A JPEG of the image: the best mask of every object and all prompts, or all records in colours of their own.

    Records with labels from a class map have the colours of their classes, and a legend.
    """

    extension = "overlay.jpg"
    loses = "everything but the look; it is for people"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        if isinstance(source, Result):
            best = [source.prediction.mask_runs(*place) for place in enumerate(source.best_masks.tolist())]
            overlay = draw_overlay(source.pixels, best, objects=source.objects)
        else:
            overlay = _draw_instances(as_instances(source))
        bgr = cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR)
        return {f"{source.stem}.{self.extension}": encode_jpeg(bgr)}


class PngWriter:
    """Every mask as an 8-bit gray PNG of the image's size: 255 in the mask, 0 outside."""

    extension = "png"
    loses = "all but the masks"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        entries = as_instances(source).entries
        return {
            f"{source.stem}.{_place(entry, index)}.{self.extension}": encode_png(_gray(entry))
            for index, entry in enumerate(entries)
        }


class FolderWriter:
    """The folder that the reference's command line writes: a PNG a mask, and ``metadata.csv`` with what is known of it.

    Follows segment_anything scripts/amg.py write_masks_to_folder: ``0.png``, ``1.png``, ... with 255 inside, and 14
    columns: id, area, bbox x y w h, the first point x y, predicted_iou, stability_score, crop_box x y w h. A cell is
    empty where something is not known.
    """

    extension = "masks"
    loses = "pixels, points after the first, labels of points, categories, notes"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        folder = f"{source.stem}.{self.extension}"
        entries = as_instances(source).entries
        rows = [METADATA_COLUMNS, *(_metadata_row(index, entry) for index, entry in enumerate(entries))]
        # The reference ends the last row without a line break; csv readers take both.
        table = "\n".join(",".join(row) for row in rows)
        pictures = {f"{folder}/{index}.png": encode_png(_gray(entry)) for index, entry in enumerate(entries)}
        return {**pictures, f"{folder}/{METADATA}": table.encode("ascii")}


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Return (H, W) or (H, W, 3) pixels, uint8 or uint16, colours as blue green red, as a PNG without metadata."""
    return _encode_image(".png", pixels, cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION)


def encode_jpeg(pixels: NDArray[Any]) -> bytes:
    """Return (H, W, 3) uint8 pixels, blue green red, as a JPEG without metadata."""
    return _encode_image(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)


def _draw_instances(instances: Instances) -> NDArray[np.uint8]:
    runs = [entry.runs for entry in instances.entries]
    if instances.labels is None:
        return draw_masks(instances.pixels, runs)
    table = instances.labels.class_map.table
    names = [instances.categories[entry.category] for entry in instances.entries]
    return draw_labelled_masks(instances.pixels, runs, names, dict(zip(table.classes, table.palette, strict=True)))


def _gray(entry: Instance) -> NDArray[np.uint8]:
    gray: NDArray[np.uint8] = entry.mask.astype(np.uint8)
    gray *= 255
    return gray


def _place(entry: Instance, index: int) -> str:
    return f"mask{index}" if entry.place is None else f"object{entry.place[0]}.mask{entry.place[1]}"


def _metadata_row(index: int, entry: Instance) -> tuple[str, ...]:
    point = entry.point_coords[0] if entry.point_coords else ("", "")
    return (
        *(str(index), str(entry.area), *map(_shortest, entry.sam_bbox)),
        *(str(side) for side in point),
        *("" if value is None else str(value) for value in (entry.score, entry.stability_score)),
        *(str(side) for side in entry.crop_box),
    )


def _shortest(value: float) -> str:
    """Return a whole number without a decimal point, as the reference writes its boxes."""
    return str(int(value)) if value == int(value) else str(value)


def _encode_image(extension: str, pixels: NDArray[Any], parameter: int, value: int) -> bytes:
    try:
        done, data = cv2.imencode(extension, pixels, [parameter, value])
    except cv2.error:
        done = False
    if not done:
        height, width = pixels.shape[:2]
        message = f"an image of {height} x {width} pixels cannot be encoded as {extension}; write coco, json or npz"
        raise OutputError(message, code="cannot_encode")
    return data.tobytes()
