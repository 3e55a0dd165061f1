# SPDX-License-Identifier: Apache-2.0
"""Results as polygons for annotation and training: LabelMe and YOLO-seg.

Polygons run along the edges of pixels (`segship.masks.polygons`), so that with a tolerance of 0, the default, they
enclose exactly the pixels of the mask; tools that fill a polygon and draw its border get up to a pixel more. Of a
prompted prediction the best mask of every object is written, since its other masks are other readings of the same
thing. A mask without a pixel has no shape and is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from segship.masks.polygons import Polygon, Ring, mask_to_polygons
from segship.writers.documents import describe_label, encode_json
from segship.writers.instances import Instance, Instances, Source, as_instances
from segship.writers.names import safe_file_name
from segship.writers.pictures import encode_png

# Of LabelMe's form of files, in which a mask is a shape of its own; LabelMe itself does not compare it.
LABELME_VERSION = "5.5.0"
# Of a side of the image: on one of 65,500 pixels a seventh digit is less than a hundredth of a pixel.
_DIGITS = 7


@dataclass(frozen=True, slots=True)
class LabelMeWriter:
    """A LabelMe file: polygons, and a mask shape for what they cannot say.

    LabelMe's polygons have no holes. A mask without holes is one ``polygon`` a part, and the parts share their
    ``group_id``; a mask with a hole is one ``mask`` shape, a PNG of its box. The file names its image and does not hold
    it: put both into one folder.

    Attributes
    ----------
    tolerance
        How far in pixels a polygon may leave the edge of its mask, to have fewer corners to drag.
    shape
        ``auto`` as above; ``mask`` writes mask shapes alone, which LabelMe reads back without loss.
    """

    tolerance: float = 0.0
    shape: Literal["auto", "mask"] = "auto"
    extension: ClassVar[str] = "labelme.json"
    loses: ClassVar[str] = (
        "pixels, stability scores, points, notes, empty masks; "
        "LabelMe fills a polygon with its border, up to one pixel more to the right and below"
    )

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        document = labelme_document(source, tolerance=self.tolerance, shape=self.shape)
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
            rings = [ring for polygon in _polygons(entry, self.tolerance) for ring in (polygon.outer, *polygon.holes)]
            if rings:
                ring = join_rings(rings) / (width, height)
                lines.append(f"{entry.category} {' '.join(map(_decimal, ring.ravel().tolist()))}\n")
        return {f"{source.stem}.{self.extension}": "".join(lines).encode("ascii")}


def labelme_document(
    source: Source, *, tolerance: float = 0.0, shape: Literal["auto", "mask"] = "auto"
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
            for labelme_shape in _labelme_shapes(instances, entry, group, tolerance, shape == "mask")
        ],
        "imagePath": safe_file_name(instances.name),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def join_rings(rings: Sequence[Ring]) -> Ring:
    """Return one ring (m, 2) that encloses, by the even-odd rule, what all rings (n, 2) enclose together.

    From the start of every ring a line leads to the nearest corner of the next one, is walked once there and once
    back, and so encloses nothing.

    Examples
    --------
    >>> import numpy as np
    >>> square = np.array([[0, 0], [1, 0], [1, 1]])
    >>> join_rings([square, square + 5.0]).astype(int).tolist()
    [[0, 0], [1, 0], [1, 1], [0, 0], [5, 5], [6, 5], [6, 6], [5, 5]]
    """
    if len(rings) == 1:
        return rings[0]
    walk: list[Ring] = []
    anchors: list[Ring] = []
    for ring in rings:
        start = int(((ring - anchors[-1]) ** 2).sum(axis=1).argmin()) if anchors else 0
        walk += [ring[start:], ring[: start + 1]]
        anchors.append(ring[start])
    # Back over all lines but the last and the first corner, which close by themselves.
    return np.concatenate([*walk, np.array(anchors[-2:0:-1]).reshape(-1, 2)])


def _polygons(entry: Instance, tolerance: float) -> list[Polygon]:
    crop, corner = entry.crop
    if not crop.size:
        return []
    offset = np.array(corner, np.float64)
    polygons = mask_to_polygons(crop, tolerance=tolerance)
    return [Polygon(one.outer + offset, tuple(hole + offset for hole in one.holes)) for one in polygons]


def _labelme_shapes(
    instances: Instances, entry: Instance, group: int, tolerance: float, as_mask: bool
) -> list[dict[str, Any]]:
    shared = {"label": instances.categories[entry.category], "group_id": group, "description": "", "flags": {}}
    # Keys that LabelMe does not know, and keeps.
    shared |= {"score": entry.score, **describe_label(entry)}
    polygons = [] if as_mask else _polygons(entry, tolerance)
    if as_mask or any(polygon.holes for polygon in polygons):
        return [{**shared, **_mask_shape(entry)}] if entry.area else []
    return [{**shared, "points": polygon.outer.tolist(), "shape_type": "polygon", "mask": None} for polygon in polygons]


def _mask_shape(entry: Instance) -> dict[str, Any]:
    crop, _ = entry.crop
    x0, y0, x1, y1 = entry.box_xyxy
    picture = base64.b64encode(encode_png(crop.astype(np.uint8) * np.uint8(255))).decode("ascii")
    # LabelMe names the first and the last pixel of the box.
    return {"points": [[x0, y0], [x1 - 1, y1 - 1]], "shape_type": "mask", "mask": picture}


def _decimal(value: float) -> str:
    """Return a number from 0 to 1 without an exponent, which some readers of YOLO files do not take."""
    return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
