# SPDX-License-Identifier: Apache-2.0
"""Parquet is read back with pyarrow."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from segship.errors import BackendUnavailable
from segship.masks.rle import decode_rle
from segship.promptable.everything.records import ImageRecords
from segship.writers import Result, write_result
from segship.writers.tables import encode_parquet

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def read(data: bytes) -> list[dict]:
    return parquet.read_table(io.BytesIO(data)).to_pylist()


def mask_of(row: dict) -> np.ndarray:
    return decode_rle({"size": [row["height"], row["width"]], "counts": row["counts"]})


def test_every_record_is_a_row_with_all_that_is_known(records: ImageRecords, record_masks: np.ndarray) -> None:
    rows = read(encode_parquet(records))
    assert len(rows) == 6
    for index, (row, record, mask) in enumerate(zip(rows, records.records, record_masks, strict=True)):
        assert np.array_equal(mask_of(row), mask)
        assert row["index"] == index and row["object"] is None and row["mask"] is None
        assert (row["image"], row["file_name"], row["category"]) == ("my photo", "my photo.jpg", "object")
        assert row["area"] == record.area and row["bbox"] == list(record.bbox)
        assert row["predicted_iou"] == record.predicted_iou and row["stability_score"] == record.stability_score
        assert row["point_coords"] == [list(point) for point in record.point_coords]
        assert row["crop_box"] == list(record.crop_box)


def test_every_mask_of_a_prediction_is_a_row(result: Result) -> None:
    rows = read(encode_parquet(result))
    assert [(row["object"], row["mask"]) for row in rows] == list(np.ndindex(2, 3))
    for row in rows:
        assert np.array_equal(mask_of(row), result.masks[row["object"], row["mask"]])
        assert row["stability_score"] is None and row["crop_box"] == [0, 0, 53, 37]


def test_table_without_rows_has_the_same_columns(
    records: ImageRecords, no_records: ImageRecords, result: Result, tmp_path: Path
) -> None:
    paths = []
    for index, source in enumerate((records, no_records, result)):
        folder = tmp_path / str(index)
        folder.mkdir()
        paths += write_result(source, folder, ["parquet"])
    tables = [parquet.read_table(path) for path in paths]
    assert tables[0].schema == tables[1].schema == tables[2].schema
    assert pyarrow.concat_tables(tables).num_rows == 12


def test_missing_pyarrow_is_named(records: ImageRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes an import fail as if it were not there.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "segship\[parquet\]"') as caught:
        encode_parquet(records)
    assert caught.value.code == "pyarrow_missing"
