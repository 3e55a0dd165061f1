# SPDX-License-Identifier: Apache-2.0
"""Results as arrays and tables: npz, and a mask input read back from it; Parquet; supervision's `Detections`.

The reader takes files from anywhere: nothing is unpickled, and memory follows the bytes that are there.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import os
import re
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from segship.arrays import FloatArray, Size
from segship.errors import BackendUnavailable, PromptError
from segship.files import open_regular, real_path
from segship.writers.instances import Instances, Result, Source, as_instances
from segship.writers.names import safe_file_name, storable_text

# The largest mask input of use: four masks of 256 x 256 for each of 256 objects.
MAX_ARRAY_BYTES = 256 * 1024 * 1024
_READ_BYTES = 1024 * 1024
# Not numpy's own reader of headers: that parses Python, and fails in many ways on what is none.
_HEADER = re.compile(
    rb"\{'descr': '([<>][fi][248])', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,99})\), \} *\n"
)
# All that zipfile and numpy raise for bytes that are not what they should be.
_DAMAGED = (KeyError, ValueError, OSError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)


def encode_npz(source: Source) -> bytes:
    """Return all arrays without loss, for numpy; nothing in the file needs ``allow_pickle``.

    Of a prompted prediction: ``masks_packed`` (objects, masks, H, ceil(W / 8)) uint8 are the masks as bits: unpack
    them with ``np.unpackbits(file["masks_packed"], axis=-1, count=W).astype(bool)``. ``iou_predictions``,
    ``low_res_masks`` and ``original_size`` are as in a prediction. ``points`` (n, 2) and ``labels`` (n,) are those of
    all objects, and ``point_objects`` (n,) says whose each is; ``boxes`` (b, 4) and ``box_objects`` (b,) likewise.

    Of n records: ``runs`` int64 are the run lengths of all masks one after the other, those of mask i from
    ``run_offsets[i]`` up to ``run_offsets[i + 1]``; `segship.masks.rle.runs_to_mask` makes masks of them. ``area``,
    ``bbox`` (n, 4), ``predicted_iou``, ``stability_score`` and ``crop_box`` (n, 4) have the meaning of SA-1B, with NaN
    for what is not known. ``point_coords`` (p, 2) are the points of all, and ``point_records`` (p,) says whose each is.
    ``category`` (n,) is an index into ``categories``, and ``original_size`` height and width.
    """
    arrays = _result_arrays(source) if isinstance(source, Result) else _instance_arrays(as_instances(source))
    stream = io.BytesIO()
    # Not compressed: bits and run lengths are small already, and logits are noise to a compressor.
    np.savez(stream, **arrays)
    return stream.getvalue()


def _result_arrays(result: Result) -> dict[str, Any]:
    prediction, objects = result.prediction, result.objects
    boxes = [(index, entry.box) for index, entry in enumerate(objects) if entry.box is not None]
    return {
        "masks_packed": np.packbits(result.masks, axis=-1),
        "iou_predictions": prediction.iou_predictions.astype(np.float32),
        "low_res_masks": prediction.low_res_masks.astype(np.float32),
        "original_size": np.array(prediction.original_size, np.int64),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *(entry.points for entry in objects)]),
        "labels": np.concatenate([np.zeros(0, np.int64), *(entry.labels for entry in objects)]),
        "point_objects": np.repeat(np.arange(len(objects)), [len(entry.points) for entry in objects]),
        "boxes": np.array([box for _, box in boxes], np.float32).reshape(-1, 4),
        "box_objects": np.array([index for index, _ in boxes], np.int64),
    }


def _instance_arrays(instances: Instances) -> dict[str, Any]:
    entries = instances.entries
    points = [point for entry in entries for point in entry.point_coords]
    return {
        "runs": np.concatenate([np.zeros(0, np.int64), *(entry.runs for entry in entries)]),
        "run_offsets": np.cumsum([0, *(len(entry.runs) for entry in entries)], dtype=np.int64),
        "original_size": np.array(instances.size, np.int64),
        "area": np.array([entry.area for entry in entries], np.int64),
        "bbox": np.array([entry.sam_bbox for entry in entries], np.float64).reshape(-1, 4),
        # None becomes NaN.
        "predicted_iou": np.array([entry.score for entry in entries], np.float64),
        "stability_score": np.array([entry.stability_score for entry in entries], np.float64),
        "crop_box": np.array([entry.crop_box for entry in entries], np.int64).reshape(-1, 4),
        "point_coords": np.array(points, np.float64).reshape(-1, 2),
        "point_records": np.repeat(np.arange(len(entries)), [len(entry.point_coords) for entry in entries]),
        "category": np.array([entry.category for entry in entries], np.int64),
        "categories": np.array(instances.categories, np.str_),
        "label_confidence": np.array([entry.label_confidence for entry in entries], np.float64),
        "label_purity": np.array([entry.label_purity for entry in entries], np.float64),
    }


def read_mask_input(path: str | os.PathLike[str], size: Size | None = None) -> FloatArray:
    """Return of every object in a file of the npz format the low-resolution mask with the highest predicted IoU.

    They are (objects, 1, 4h, 4w) float32 logits, to refine. The file is a ``.prediction.npz``, or any npz with
    ``low_res_masks`` and ``iou_predictions`` of the same kind. ``size`` is (height, width) of the image to refine them
    on: a file whose ``original_size`` is another belongs to another image.

    Raises
    ------
    InputError
        The file cannot be opened.
    PromptError
        ``bad_mask_input``: it holds no such arrays, others than it should, or those of an image of another size.
    """
    try:
        # A link that the user names is followed.
        with open_regular(real_path(path)) as stream, zipfile.ZipFile(stream) as archive:
            scores = _read_array(archive, "iou_predictions")
            low_res = _read_array(archive, "low_res_masks")
            has_size = size is not None and "original_size.npy" in archive.namelist()
            made_for = _read_array(archive, "original_size").ravel().tolist() if has_size else None
    except _DAMAGED as error:
        raise _bad_mask_input(path, "it is not a whole npz file with low_res_masks and iou_predictions") from error
    # Of no objects there may be none.
    has_masks = low_res.ndim == 4 and bool(np.prod(low_res.shape[1:]))
    if not has_masks or scores.shape != low_res.shape[:2]:
        found = f"low_res_masks has the shape {low_res.shape} and iou_predictions {scores.shape}"
        raise _bad_mask_input(path, f"{found}; accepted are (objects, masks, h, w) and (objects, masks)")
    if size is not None and made_for is not None and made_for != [*size]:
        found = f"{' x '.join(f'{side:g}' for side in made_for)} (height x width)"
        raise _bad_mask_input(path, f"it is of another image, of {found}, and this one is {size[0]} x {size[1]}")
    best: FloatArray = low_res[np.arange(len(low_res)), scores.argmax(axis=1)][:, None]
    return best


def _read_array(archive: zipfile.ZipFile, name: str) -> FloatArray:
    """Read one array of an npz that is as large as its header claims, and no larger than is of use."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed in a way that numpy does not use")
    with archive.open(entry) as stream:
        dtype, is_fortran, shape = _read_header(stream)
        count = math.prod(shape)
        if count * np.dtype(dtype).itemsize > MAX_ARRAY_BYTES:
            raise ValueError("an array that is too large")
        # Memory is taken as it is written to, so that a claim alone takes none.
        values = np.empty(count, dtype)
        data, filled = values.view(np.uint8), 0
        while part := stream.read(min(_READ_BYTES, len(data) - filled)):
            data[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
        if filled < len(data) or stream.read(1):
            raise ValueError("an array that is shorter or longer than its header says")
    values = values.reshape(shape, order="F" if is_fortran else "C")
    # A double too large for float32 becomes infinite, which Prompts refuses with its own message.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def _read_header(stream: IO[bytes]) -> tuple[str, bool, tuple[int, ...]]:
    """Read the header that numpy writes for an array of numbers: dtype, whether column-major, shape."""
    start = stream.read(10)
    # Version 1: two bytes of length. numpy writes another only for headers that no such array has.
    if len(start) < 10 or start[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("not an array of numpy's format, version 1")
    header = _HEADER.fullmatch(stream.read(int.from_bytes(start[8:], "little")))
    if header is None:
        raise ValueError("not an array of numbers")
    dtype, order, shape = (part.decode("ascii") for part in header.groups())
    return dtype, order == "True", tuple(int(side) for side in shape.split(",") if side.strip())


def _bad_mask_input(path: str | os.PathLike[str], found: str) -> PromptError:
    message = f"no mask input can be read from {os.fspath(path)!r}: {found}; give a .prediction.npz of an earlier run"
    return PromptError(message, code="bad_mask_input")


def encode_parquet(source: Source) -> bytes:
    """Return a table with one row a mask; tables of many images can be joined to one, since every row names its image.

    Columns: ``image`` (the stem of its files), ``file_name``, ``height``, ``width``, ``index`` (which mask of the
    image), ``object`` and ``mask`` (its place in a prompted prediction, else null), ``category``, ``counts`` (the mask
    as COCO's compressed run lengths, for the size ``[height, width]``), ``area``, ``bbox`` (as SA-1B has it),
    ``predicted_iou``, ``stability_score``, ``point_coords``, ``crop_box``, ``label_confidence``, ``label_purity``. What
    is not known is null.
    """
    pyarrow = _import_pyarrow()
    table = pyarrow.Table.from_pylist(_rows(as_instances(source)), schema=_schema(pyarrow))
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    return stream.getvalue()


def has_pyarrow() -> bool:
    """Return whether pyarrow is installed, without the time that importing it takes."""
    return importlib.util.find_spec("pyarrow") is not None


def _import_pyarrow() -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise pyarrow_missing() from error
    return importlib.import_module("pyarrow")


def pyarrow_missing() -> BackendUnavailable:
    """Return the error ``pyarrow_missing``, which names the extra."""
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
            "image": storable_text(instances.stem),
            "file_name": safe_file_name(instances.name),
            "height": height,
            "width": width,
            "index": index,
            "object": None if entry.place is None else entry.place[0],
            "mask": None if entry.place is None else entry.place[1],
            "category": storable_text(instances.categories[entry.category]),
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


# Sides beyond this are refused by CompactMask.from_coco_rle of supervision 0.31.
_LONGEST_COMPACT_SIDE = 32_768


def to_supervision(source: Source) -> Any:
    """Return masks as ``supervision.Detections``, in their own order.

    Of a prompted prediction the best mask of every object. Masks are a ``CompactMask``, which holds run lengths of
    crops, where supervision has one (0.28 and later), and an (n, H, W) bool array where it has not or the image is too
    large for it.

    Returns
    -------
    supervision.Detections
        ``xyxy`` (n, 4) float32, boxes to the last pixel itself as supervision counts them; ``confidence`` (n,) float32
        predicted IoUs, NaN where unknown; ``class_id`` (n,) int64 and ``data["class_name"]`` the categories; other
        values under ``data``: ``area`` and ``stability_score`` (NaN where unknown).

    Raises
    ------
    BackendUnavailable
        ``supervision_missing``.
    """
    supervision = _import_supervision()
    instances = as_instances(source, best_only=True)
    entries = instances.entries
    if not entries:
        return supervision.Detections.empty()
    boxes = np.array([entry.box_xyxy for entry in entries], np.int64)
    # Inclusive; an empty mask keeps the box of its zeros.
    boxes[:, 2:] = np.maximum(boxes[:, 2:] - 1, boxes[:, :2])
    names = np.array(instances.categories, np.str_)
    class_id = np.array([entry.category for entry in entries], np.int64)
    return supervision.Detections(
        xyxy=boxes.astype(np.float32),
        mask=_masks(supervision, instances, boxes),
        # None becomes NaN.
        confidence=np.array([entry.score for entry in entries], np.float32),
        class_id=class_id,
        data={
            "class_name": names[class_id],
            "area": np.array([entry.area for entry in entries], np.int64),
            "stability_score": np.array([entry.stability_score for entry in entries], np.float64),
        },
    )


def _masks(supervision: Any, instances: Instances, boxes: Any) -> Any:
    compact: Any = getattr(supervision, "CompactMask", None)
    if not hasattr(compact, "from_coco_rle") or max(instances.size) > _LONGEST_COMPACT_SIDE:
        return np.stack([entry.mask for entry in instances.entries])
    rles = [{"size": list(entry.size), "counts": entry.runs.tolist()} for entry in instances.entries]
    return compact.from_coco_rle(rles, boxes.astype(np.float64), instances.size)


def _import_supervision() -> Any:
    try:
        import supervision
    except ModuleNotFoundError as error:
        message = "to_supervision needs supervision, which is not installed; pip install supervision"
        raise BackendUnavailable(message, code="supervision_missing") from error
    return supervision
