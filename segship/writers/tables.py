# SPDX-License-Identifier: Apache-2.0
"""Results as a Parquet table, one row a mask: the form for the masks of very many images."""

from __future__ import annotations

import importlib
import importlib.util
import io
from typing import Any

from segship.errors import BackendUnavailable
from segship.writers.instances import Instances, Source, as_instances
from segship.writers.names import safe_file_name


class ParquetWriter:
    """One row a mask; tables of many images can be joined to one, since every row names its image.

    Columns: ``image`` (the stem of its files), ``file_name``, ``height``, ``width``, ``index`` (which mask of the
    image), ``object`` and ``mask`` (its place in a prompted prediction, else null), ``category``, ``counts`` (the mask
    as COCO's compressed run lengths, for the size ``[height, width]``), ``area``, ``bbox`` (as SA-1B has it),
    ``predicted_iou``, ``stability_score``, ``point_coords``, ``crop_box``, ``label_confidence``, ``label_purity``. What
    is not known is null.
    """

    extension = "parquet"
    loses = "pixels, labels of points, boxes that prompted, notes"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        pyarrow = import_pyarrow()
        instances = as_instances(source)
        table = pyarrow.Table.from_pylist(_rows(instances), schema=_schema(pyarrow))
        stream = io.BytesIO()
        pyarrow.parquet.write_table(table, stream, compression="zstd")
        return {f"{source.stem}.{self.extension}": stream.getvalue()}


def has_pyarrow() -> bool:
    """Return whether pyarrow is installed, without the time that importing it takes."""
    return importlib.util.find_spec("pyarrow") is not None


def import_pyarrow() -> Any:
    """Return the module pyarrow with its parquet part.

    Raises
    ------
    BackendUnavailable
        ``pyarrow_missing``: it is not installed; the message names the extra.
    """
    try:
        importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise pyarrow_missing() from error
    return importlib.import_module("pyarrow")


def pyarrow_missing() -> BackendUnavailable:
    """Return the error that names the extra."""
    message = 'the format parquet needs pyarrow, which is not installed; pip install "segship[parquet]"'
    return BackendUnavailable(message, code="pyarrow_missing")


def _schema(pyarrow: Any) -> Any:
    float64, int32, string = pyarrow.float64(), pyarrow.int32(), pyarrow.string()
    return pyarrow.schema(
        [
            pyarrow.field("image", string, nullable=False),
            pyarrow.field("file_name", string, nullable=False),
            pyarrow.field("height", int32, nullable=False),
            pyarrow.field("width", int32, nullable=False),
            pyarrow.field("index", int32, nullable=False),
            pyarrow.field("object", int32),
            pyarrow.field("mask", int32),
            pyarrow.field("category", string, nullable=False),
            pyarrow.field("counts", string, nullable=False),
            pyarrow.field("area", pyarrow.int64(), nullable=False),
            pyarrow.field("bbox", pyarrow.list_(float64, 4), nullable=False),
            pyarrow.field("predicted_iou", float64),
            pyarrow.field("stability_score", float64),
            pyarrow.field("point_coords", pyarrow.list_(pyarrow.list_(float64, 2)), nullable=False),
            pyarrow.field("crop_box", pyarrow.list_(int32, 4), nullable=False),
            pyarrow.field("label_confidence", float64),
            pyarrow.field("label_purity", float64),
        ]
    )


def _rows(instances: Instances) -> list[dict[str, Any]]:
    height, width = instances.size
    return [
        {
            "image": instances.stem,
            "file_name": safe_file_name(instances.name),
            "height": height,
            "width": width,
            "index": index,
            "object": None if entry.place is None else entry.place[0],
            "mask": None if entry.place is None else entry.place[1],
            "category": instances.categories[entry.category],
            "counts": entry.rle["counts"],
            "area": entry.area,
            "bbox": entry.sam_bbox,
            "predicted_iou": entry.score,
            "stability_score": entry.stability_score,
            "point_coords": [list(point) for point in entry.point_coords],
            "crop_box": list(entry.crop_box),
            "label_confidence": entry.label_confidence,
            "label_purity": entry.label_purity,
        }
        for index, entry in enumerate(instances.entries)
    ]
