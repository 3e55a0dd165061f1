# SPDX-License-Identifier: Apache-2.0
"""The npz format round trips, and files from anywhere give a mask input or a reason."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from segship.errors import InputError, PromptError
from segship.masks.rle import runs_to_mask
from segship.promptable.everything.records import ImageRecords
from segship.promptable.prompts import Prompts
from segship.writers import Result, label_instances, read_mask_input, write_result
from segship.writers.tables import encode_npz


@pytest.fixture
def npz(result: Result, tmp_path: Path) -> Path:
    return write_result(result, tmp_path, ["npz"])[0]


def test_arrays_round_trip_without_pickle(result: Result, npz: Path) -> None:
    with np.load(npz, allow_pickle=False) as file:
        masks = np.unpackbits(file["masks_packed"], axis=-1, count=53).astype(bool)
        assert np.array_equal(masks, result.masks)
        assert np.array_equal(file["iou_predictions"], result.prediction.iou_predictions)
        assert np.array_equal(file["low_res_masks"], result.prediction.low_res_masks)
        assert file["original_size"].tolist() == [37, 53]
        assert np.array_equal(file["points"], np.array([[10.1, 20], [30, 5], [40, 30]], np.float32))
        assert file["labels"].tolist() == [1, 0, 1] and file["point_objects"].tolist() == [0, 0, 1]
        assert file["boxes"].tolist() == [[0, 0, 53, 37]] and file["box_objects"].tolist() == [0]


def test_mask_input_is_the_best_mask_of_every_object(result: Result, npz: Path) -> None:
    mask_input = read_mask_input(npz)
    low_res = result.prediction.low_res_masks
    assert mask_input.dtype == np.float32 and mask_input.shape == (2, 1, 16, 16)
    assert np.array_equal(mask_input[:, 0], np.stack([low_res[0, 1], low_res[1, 0]]))
    assert Prompts(mask_input=mask_input).object_count == 2


def test_mask_input_is_read_from_what_numpy_compressed_and_through_a_link(result: Result, tmp_path: Path) -> None:
    prediction = result.prediction
    real, link = tmp_path / "real.npz", tmp_path / "link.npz"
    low_res = np.asfortranarray(prediction.low_res_masks.astype(np.float64))
    np.savez_compressed(real, low_res_masks=low_res, iou_predictions=prediction.iou_predictions)
    link.symlink_to(real)
    assert np.array_equal(read_mask_input(link)[0, 0], prediction.low_res_masks[0, 1])


def test_mask_input_of_another_image_is_refused_where_both_sizes_are_known(npz: Path, tmp_path: Path) -> None:
    assert np.array_equal(read_mask_input(npz, (37, 53)), read_mask_input(npz))
    with pytest.raises(
        PromptError, match="of another image, of 37 x 53 .height x width., and this one is 53 x 37"
    ) as caught:
        read_mask_input(npz, (53, 37))
    assert caught.value.code == "bad_mask_input"
    with np.load(npz) as file:
        np.savez(tmp_path / "less.npz", **{name: file[name] for name in ("low_res_masks", "iou_predictions")})
    assert np.array_equal(read_mask_input(tmp_path / "less.npz", (53, 37)), read_mask_input(npz))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file .*none.npz"):
        read_mask_input(tmp_path / "none.npz")


def pickled() -> dict[str, np.ndarray]:
    return {"low_res_masks": np.array([{}], object), "iou_predictions": np.ones((1, 1), np.float32)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "not a whole npz"),
        ({"low_res_masks": np.zeros((1, 1, 4, 4), np.float32)}, "not a whole npz"),
        (pickled(), "not a whole npz"),
        (
            {"low_res_masks": np.zeros((1, 1, 4, 4), bool), "iou_predictions": np.ones((1, 1), np.float32)},
            "not a whole",
        ),
        ({"low_res_masks": np.zeros((4, 4)), "iou_predictions": np.ones(1)}, r"\(4, 4\) and iou_predictions \(1,\)"),
        ({"low_res_masks": np.zeros((2, 3, 4, 4)), "iou_predictions": np.ones((3, 2))}, r"\(2, 3, 4, 4\)"),
        ({"low_res_masks": np.zeros((0, 0, 4, 4)), "iou_predictions": np.ones((0, 0))}, r"\(0, 0, 4, 4\)"),
    ],
)
def test_other_arrays_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    with pytest.raises(PromptError, match=message) as caught:
        read_mask_input(path)
    assert caught.value.code == "bad_mask_input" and "other.npz" in str(caught.value)


def test_header_that_claims_more_than_is_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.npz"
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (1, 1, 10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, claim)
    scores = io.BytesIO()
    np.save(scores, np.ones((1, 1), np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("low_res_masks.npy", header.getvalue() + bytes(64))
        archive.writestr("iou_predictions.npy", scores.getvalue())
    with pytest.raises(PromptError, match="not a whole npz"):
        read_mask_input(path)


def test_bomb_is_refused_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segship.writers.tables.MAX_ARRAY_BYTES", 1000)
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, low_res_masks=np.zeros((1, 1, 16, 16)), iou_predictions=np.ones((1, 1), np.float32))
    with pytest.raises(PromptError, match="not a whole npz"):
        read_mask_input(path)


def test_no_more_is_inflated_than_the_largest_mask_input(tmp_path: Path) -> None:
    path, megabyte = tmp_path / "bomb.npz", bytes(2**20)
    scores, header = io.BytesIO(), io.BytesIO()
    np.save(scores, np.ones((1, 1), np.float32))
    claim = {"descr": "<f4", "fortran_order": False, "shape": (1, 1, 256, 256)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("iou_predictions.npy", scores.getvalue())
        with archive.open("low_res_masks.npy", "w", force_zip64=True) as stream:
            stream.write(header.getvalue())
            for _ in range(500):
                stream.write(megabyte)
    tracemalloc.start()
    with pytest.raises(PromptError, match="not a whole npz"):
        read_mask_input(path)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_a_mask_input_of_no_objects_is_one(tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    np.savez(path, low_res_masks=np.zeros((0, 3, 4, 4)), iou_predictions=np.ones((0, 3)))
    assert Prompts(mask_input=read_mask_input(path)).object_count == 0


def test_compression_that_numpy_does_not_use_is_refused(npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    with zipfile.ZipFile(npz) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(PromptError, match="not a whole npz"):
        read_mask_input(path)


def test_damaged_files_give_a_reason(result: Result, tmp_path: Path) -> None:
    data = encode_npz(result)
    path = tmp_path / "damaged.npz"
    rng = np.random.default_rng(0)
    outcomes = set()
    for case in range(300):
        damaged = bytearray(data if case % 2 else data[: rng.integers(len(data))])
        for place in rng.integers(0, len(damaged), 8) if damaged else ():
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            outcomes.add(read_mask_input(path).shape)
        except PromptError as error:
            outcomes.add(error.code)
    assert "bad_mask_input" in outcomes


def test_arrays_of_records_round_trip_without_pickle(
    records: ImageRecords, record_masks: np.ndarray, tmp_path: Path
) -> None:
    named = label_instances(records, ["cat", "dog", "cat", "dog", "dog", "cat"])
    (path,) = write_result(named, tmp_path, ["npz"])
    with np.load(path, allow_pickle=False) as file:
        offsets, size = file["run_offsets"], tuple(file["original_size"].tolist())
        for index, mask in enumerate(record_masks):
            runs = file["runs"][offsets[index] : offsets[index + 1]]
            assert np.array_equal(runs_to_mask(runs, size), mask)
        for key in ("area", "bbox", "predicted_iou", "stability_score", "crop_box"):
            assert file[key].tolist() == [record.to_dict()[key] for record in records.records]
        assert file["point_coords"].tolist() == [list(record.point_coords[0]) for record in records.records]
        assert file["point_records"].tolist() == [0, 1, 2, 3, 4, 5]
        assert file["categories"][file["category"]].tolist() == ["cat", "dog", "cat", "dog", "dog", "cat"]


def test_arrays_of_no_records_have_their_shapes(no_records: ImageRecords, tmp_path: Path) -> None:
    (path,) = write_result(no_records, tmp_path, ["npz"])
    with np.load(path, allow_pickle=False) as file:
        assert file["bbox"].shape == file["crop_box"].shape == (0, 4) and file["run_offsets"].tolist() == [0]
        assert file["point_coords"].shape == (0, 2) and file["runs"].size == 0


def test_no_mask_input_is_read_from_records(records: ImageRecords, tmp_path: Path) -> None:
    (path,) = write_result(records, tmp_path, ["npz"])
    with pytest.raises(PromptError, match="not a whole npz file with low_res_masks"):
        read_mask_input(path)
