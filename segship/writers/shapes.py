# SPDX-License-Identifier: Apache-2.0
"""Results as polygons for annotation and training: LabelMe and YOLO-seg.

Polygons run along the edges of pixels (`segship.masks.polygons`), so that with a tolerance of 0 they enclose exactly
the pixels of the mask; tools that fill a polygon and draw its border get up to a pixel more. Of a prompted prediction
the best mask of every object is written, since its other masks are other readings of the same thing. A mask without a
pixel has no shape and is left out.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from segship.errors import option
from segship.masks.polygons import join_rings
from segship.masks.rle import read_number
from segship.options import check_types
from segship.writers.documents import describe_label, encode_json
from segship.writers.instances import Instance, Instances, Source, as_instances
from segship.writers.names import safe_file_name
from segship.writers.pictures import encode_png

LabelMeShape = Literal["auto", "polygon", "mask"]
"""What a mask becomes in LabelMe; see `LabelMeWriter`."""
# Of LabelMe's form of files, in which a mask is a shape of its own; LabelMe itself does not compare it.
LABELME_VERSION = "5.5.0"
# Of a side of the image: on one of 65,500 pixels a seventh digit is less than a hundredth of a pixel.
_DIGITS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlines:
    """What is asked of the formats that have outlines of masks.

    Attributes
    ----------
    tolerance
        Pixels that an outline may leave the edge of its mask, to have fewer corners; when left out 1 in labelme, and 0
        in yolo and in polygons of coco.
    coco_polygons
        Write polygons instead of run lengths into coco; a hole is joined to the outline around it.
    labelme_shape
        ``auto`` writes a mask with a hole as a mask and others as polygons, ``polygon`` and ``mask`` all alike.
    """

    tolerance: float | None = None
    coco_polygons: bool = False
    labelme_shape: LabelMeShape = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        if self.tolerance is not None:
            read_number(self.tolerance, option("tolerance"))


@dataclass(frozen=True, slots=True)
class LabelMeWriter:
    """A LabelMe file: polygons, and a mask shape for what they cannot say.

    LabelMe's polygons have no holes. A mask without holes is one ``polygon`` a part, and the parts share their
    ``group_id``; a mask with a hole is one ``mask`` shape, a PNG of its box. The file names its image and does not hold
    it.

    Attributes
    ----------
    tolerance
        How far in pixels a polygon may leave the edge of its mask, to have corners that a person can drag: one
        pixel leaves about a fifth of them. With 0 polygons are exact.
    shape
        ``auto`` as above; ``mask`` writes mask shapes alone, which LabelMe reads back without loss; ``polygon`` writes
        polygons alone, a hole joined to the outline around it by a line that is walked there and back.
    image_path
        Where the image lies, seen from the file; its name alone when left out.
    """

    tolerance: float = 1.0
    shape: LabelMeShape = "auto"
    image_path: str | None = None
    extension: ClassVar[str] = "labelme.json"
    loses: ClassVar[str] = (
        "pixels, stability scores, points, notes, empty masks; polygons are off by up to a pixel, "
        "and LabelMe fills them with their border, up to one pixel more to the right and below"
    )

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        document = labelme_document(source, tolerance=self.tolerance, shape=self.shape, image_path=self.image_path)
        return {f"{source.stem}.{self.extension}": encode_json(document)}


@dataclass(frozen=True, slots=True)
class YoloWriter:
    """YOLO-seg labels: a line a mask with its category and one ring, x and y as parts of width and height.

    One ring cannot say holes or parts, so all rings of a mask are joined by lines that are walked there and back.
    They enclose nothing: filled by the even-odd rule, the ring gives the mask exactly. Tools that draw outlines see
    the lines.

    Attributes
    ----------
    tolerance
        How far in pixels a ring may leave the edge of its mask, to have fewer corners.
    """

    tolerance: float = 0.0
    extension: ClassVar[str] = "txt"
    loses: ClassVar[str] = (
        "scores, boxes, points, names of categories, size and name of the image, empty masks; "
        "parts and holes become one ring, joined by lines of no width that some tools draw"
    )

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        instances = as_instances(source, best_only=True)
        height, width = instances.size
        lines = []
        for entry in instances.entries:
            rings = [ring for polygon in entry.polygons(self.tolerance) for ring in (polygon.outer, *polygon.holes)]
            if rings:
                ring = join_rings(rings) / (width, height)
                lines.append(f"{entry.category} {' '.join(map(_decimal, ring.ravel().tolist()))}\n")
        return {f"{source.stem}.{self.extension}": "".join(lines).encode("ascii")}


def labelme_document(
    source: Source, *, tolerance: float = 1.0, shape: LabelMeShape = "auto", image_path: str | None = None
) -> dict[str, Any]:
    """Return masks as a LabelMe file for `json.dumps`; see `LabelMeWriter`."""
    instances = as_instances(source, best_only=True)
    height, width = instances.size
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": [
            labelme_shape
            for group, entry in enumerate(instances.entries)
            for labelme_shape in _labelme_shapes(instances, entry, group, tolerance, shape)
        ],
        "imagePath": image_path or safe_file_name(instances.name),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _labelme_shapes(
    instances: Instances, entry: Instance, group: int, tolerance: float, shape: LabelMeShape
) -> list[dict[str, Any]]:
    shared = {"label": instances.categories[entry.category], "group_id": group, "description": "", "flags": {}}
    # Keys that LabelMe does not know, and keeps.
    shared |= {"score": entry.score, **describe_label(entry)}
    polygons = [] if shape == "mask" else entry.polygons(tolerance)
    if shape == "mask" or (shape == "auto" and any(polygon.holes for polygon in polygons)):
        return [{**shared, **_mask_shape(entry)}] if entry.area else []
    rings = [join_rings([polygon.outer, *polygon.holes]) for polygon in polygons]
    return [{**shared, "points": ring.tolist(), "shape_type": "polygon", "mask": None} for ring in rings]


def _mask_shape(entry: Instance) -> dict[str, Any]:
    crop, _ = entry.crop
    x0, y0, x1, y1 = entry.box_xyxy
    picture = base64.b64encode(encode_png(crop.astype(np.uint8) * np.uint8(255))).decode("ascii")
    # LabelMe names the first and the last pixel of the box.
    return {"points": [[x0, y0], [x1 - 1, y1 - 1]], "shape_type": "mask", "mask": picture}


def _decimal(value: float) -> str:
    """Return a number from 0 to 1 without an exponent, which some readers of YOLO files do not take."""
    return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
