# SPDX-License-Identifier: Apache-2.0
"""Results as pictures: overlays for people; for programs one PNG a mask, label maps, COCO panoptic, class maps.

A pixel of a label map belongs to one mask alone: 16-bit instance ids, and COCO panoptic. Where masks overlap, the
smaller one is on top: masks are painted from the largest to the smallest, and of equal areas the later one over the
earlier, as in the overlay. So a wheel shows on its car. A mask that others cover wholly has no pixel. Masks that do not
overlap, such as a partition, lose nothing. Of a prompted prediction the best mask of every object is painted, since its
other masks are other readings of the same thing.

Masks that a class map has voted for (`segship.semantic.labels`) become COCO panoptic with things and stuff, merged as
`segship.masks.panoptic` says.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segship.arrays import AnyArray, Pixels
from segship.datasets.folders import encode_label_image
from segship.datasets.known import classes_to_label_ids
from segship.draw import draw_class_map, draw_labelled_masks, draw_masks, draw_overlay
from segship.errors import OutputError
from segship.masks.panoptic import LabelledMask, Segment, merge_panoptic
from segship.masks.rle import paint_order, paint_runs
from segship.masks.spans import masks_to_boxes, xyxy_to_xywh
from segship.writers.documents import coco_categories, coco_image, describe_label, encode_json
from segship.writers.instances import ClassMapResult, Instance, Instances, Labels, Result, Source, as_instances

JPEG_QUALITY = 92
# Masks are large flat areas, which the fastest setting already makes small.
PNG_COMPRESSION = 1
METADATA = "metadata.csv"
METADATA_COLUMNS = (
    *("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y"),
    *("predicted_iou", "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
)
LARGEST_16_BIT = 2**16 - 1
LARGEST_PANOPTIC = 2**24 - 1
PANOPTIC_PICTURE = "panoptic.png"
PANOPTIC_DOCUMENT = "panoptic.json"


def encode_overlay(source: Source) -> bytes:
    """Return a JPEG of the image: the best mask of every object and all prompts, or all records in their own colors.

    Records with labels from a class map have the colors of their classes, and a legend.
    """
    if isinstance(source, Result):
        best = [source.prediction.mask_runs(*place) for place in enumerate(source.best_masks.tolist())]
        return encode_jpeg(draw_overlay(source.pixels, best, objects=source.objects))
    return encode_jpeg(_draw_instances(as_instances(source)))


def encode_instances(source: Source) -> bytes:
    """Return a 16-bit gray PNG of the image's size: 0 where there is no mask, 1 for the first mask, ..."""
    return encode_png(_paint(as_instances(source, best_only=True), LARGEST_16_BIT, np.uint16))


def encode_class_map_overlay(result: ClassMapResult) -> bytes:
    """Return a JPEG of the image with its classes over it and a legend below or beside it."""
    return encode_jpeg(draw_class_map(result.pixels, result.class_map))


def encode_classes(result: ClassMapResult) -> bytes:
    """Return an 8-bit PNG whose palette indices are the classes (train ids), 255 for none."""
    image = Image.fromarray(result.class_map.array)
    image.putpalette(np.array(result.class_map.palette, np.uint8).tobytes().ljust(768, b"\0"))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def encode_label_ids(result: ClassMapResult) -> bytes:
    """Return an 8-bit gray PNG of the data set's own numbers, as its annotations and evaluation server have them."""
    return encode_label_image(classes_to_label_ids(result.class_map.array, result.class_map.table))


def encode_colors(result: ClassMapResult) -> bytes:
    """Return a PNG in the data set's colors; black where there is no class."""
    return encode_png(np.ascontiguousarray(result.class_map.coloured()[..., ::-1]))


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


def written_masks(directory: Path, stem: str, *, of_objects: bool) -> Iterator[str]:
    """Yield the names of an image's files of the format ``png`` that are there, of objects or of records.

    They are numbered without a gap, so that none is looked for in a folder of a million files.
    """
    for entry in itertools.count():
        masks = f"{stem}.object{entry}.mask" if of_objects else f"{stem}.mask"
        names = (f"{masks}{index}.png" for index in itertools.count())
        found = list(itertools.takewhile(lambda name: _is_plain_file(directory / name), names))
        yield from found
        if not (found and of_objects):
            return


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


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


class PanopticWriter:
    """COCO panoptic: a PNG whose colors are segment ids, and the JSON that describes them, in a folder.

    The id of a pixel is R + 256 G + 65536 B: 0 where there is no mask, 1 for the first mask, ... A segment that
    others cover wholly is left out of the JSON, as panopticapi demands; ``area`` and ``bbox`` are of what is seen. Of
    masks with labels from a class map, things have an id each, and then every class of stuff has one.
    """

    extension = "panoptic"
    loses = "what a smaller mask covers, stability scores, points, pixels, notes"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        instances = as_instances(source, best_only=True)
        if instances.labels is None:
            labels = _paint(instances, LARGEST_PANOPTIC, np.uint32)
            segments: list[Segment] = [Segment(entry.category, index) for index, entry in enumerate(instances.entries)]
        else:
            labels, segments = _merge(instances, instances.labels)
        folder = f"{source.stem}.{self.extension}"
        # OpenCV has blue first, which is the highest byte.
        colors = np.stack([labels >> 16, labels >> 8 & 0xFF, labels & 0xFF], axis=-1).astype(np.uint8)
        return {
            f"{folder}/{PANOPTIC_PICTURE}": encode_png(colors),
            f"{folder}/{PANOPTIC_DOCUMENT}": encode_json(_panoptic_document(instances, labels, segments)),
        }


def encode_png(pixels: AnyArray) -> bytes:
    """Return (H, W) or (H, W, 3) pixels, uint8 or uint16, colors as blue green red, as a PNG without metadata."""
    return _encode_image(".png", pixels, cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION)


def encode_jpeg(pixels: Pixels) -> bytes:
    """Return (H, W, 3) RGB pixels as a JPEG without metadata."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return _encode_image(".jpg", bgr, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)


def _draw_instances(instances: Instances) -> Pixels:
    runs = [entry.runs for entry in instances.entries]
    if instances.labels is None:
        return draw_masks(instances.pixels, runs)
    table = instances.labels.class_map.table
    names = [instances.categories[entry.category] for entry in instances.entries]
    return draw_labelled_masks(instances.pixels, runs, names, dict(zip(table.classes, table.palette, strict=True)))


def _gray(entry: Instance) -> Pixels:
    gray: Pixels = entry.mask.astype(np.uint8)
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


def _encode_image(extension: str, pixels: AnyArray, parameter: int, value: int) -> bytes:
    try:
        done, data = cv2.imencode(extension, pixels, [parameter, value])
    except cv2.error:
        done = False
    if not done:
        height, width = pixels.shape[:2]
        message = f"an image of {height} x {width} pixels cannot be encoded as {extension}; write coco, json or npz"
        raise OutputError(message, code="cannot_encode")
    return data.tobytes()


def _paint(instances: Instances, largest: int, dtype: Any) -> AnyArray:
    """Return (H, W) labels: 0 for no mask, and one more than its place in the list for every mask."""
    entries = instances.entries
    if len(entries) > largest:
        message = f"there are {len(entries)} masks, and this format holds {largest}; write coco, npz or parquet"
        raise OutputError(message, code="too_many_masks")
    height, width = instances.size
    columns = np.zeros((width, height), dtype)
    for index in paint_order([entry.runs for entry in entries]):
        paint_runs(columns, entries[index].runs, index + 1)
    return np.ascontiguousarray(columns.T)


def _merge(instances: Instances, labels: Labels) -> tuple[NDArray[np.uint32], list[Segment]]:
    masks = [
        LabelledMask(
            entry.runs,
            entry.category,
            -math.inf if entry.score is None else entry.score,
            0.0 if entry.label_purity is None else entry.label_purity,
        )
        for entry in instances.entries
    ]
    is_thing = np.array([name in labels.things for name in labels.class_map.classes])
    return merge_panoptic(masks, labels.class_map.array, is_thing, labels.panoptic)


def _panoptic_document(instances: Instances, ids: NDArray[np.uint32], segments: Sequence[Segment]) -> dict[str, Any]:
    areas = np.bincount(ids.ravel(), minlength=len(segments) + 1).tolist()
    described = [
        _segment(number, segment, instances, ids, areas[number])
        for number, segment in enumerate(segments, start=1)
        if areas[number]
    ]
    annotation = {"image_id": 1, "file_name": PANOPTIC_PICTURE, "segments_info": described}
    return {
        "images": [coco_image(instances)],
        "annotations": [annotation],
        "categories": [
            {**category, "isthing": int(category["supercategory"] != "stuff"), **_color(instances, index)}
            for index, category in enumerate(coco_categories(instances))
        ],
    }


def _color(instances: Instances, index: int) -> dict[str, list[int]]:
    palette = () if instances.labels is None else instances.labels.class_map.palette
    return {"color": list(palette[index])} if index < len(palette) else {}


def _segment(number: int, segment: Segment, instances: Instances, ids: NDArray[np.uint32], area: int) -> dict[str, Any]:
    document = {"id": number, "category_id": segment.category + 1, "area": area}
    if segment.mask is None:
        bbox = xyxy_to_xywh(masks_to_boxes(ids == number)).tolist()
        return {**document, "bbox": bbox, "iscrowd": 0}
    entry = instances.entries[segment.mask]
    x0, y0, x1, y1 = entry.box_xyxy
    seen = masks_to_boxes(ids[y0:y1, x0:x1] == number) + np.array([x0, y0, x0, y0])
    bbox = xyxy_to_xywh(seen).tolist()
    return {**document, "bbox": bbox, "iscrowd": 0, "score": entry.score, **describe_label(entry)}
