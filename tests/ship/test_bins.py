# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions
from segship.bundle.manifest import task_module
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.errors import InputError, OutputError
from segship.ship.bins import DECODER_FOLDERS, write_bins

RUN = RunOptions(backend="onnxruntime", threads=1)


def feeds_of(bundle, images):
    return list(task_module(bundle.manifest.task).feeds(bundle.manifest, images, open_sessions(bundle, RUN)))


def read_back(folder, shapes, name):
    files = sorted((folder / name).iterdir())
    assert [file.name for file in files] == [f"{number:06d}.bin" for number in range(len(files))]
    return np.stack([np.frombuffer(file.read_bytes(), "<f4").reshape(shapes[name]) for file in files])


def test_bins_are_what_the_graphs_are_given(small_export, tmp_path):
    images = calibrate([], tmp_path / "list", CalibrateOptions(limit=2, objects=2))
    shapes = write_bins(images, small_export[0].path, tmp_path / "bins", threads=1)
    assert json.loads((tmp_path / "bins" / "shapes.json").read_bytes()) == shapes
    assert shapes.keys() == {"x", *DECODER_FOLDERS.values()}
    found = {name: read_back(tmp_path / "bins", shapes, name) for name in shapes}
    feeds = feeds_of(small_export[0], images)
    assert np.array_equal(found["x"], np.stack([feed["image_encoder"][0]["image"] for feed in feeds]))
    place = 0
    for call in (call for feed in feeds for call in feed["mask_decoder"]):
        for row, labels in enumerate(call["point_labels"]):
            assert np.array_equal(found["image_embedding"][place], call["image_embeddings"])
            assert np.array_equal(found["mask_input"][place], call["mask_input"][row : row + 1])
            assert found["has_mask_input"][place] == call["has_mask_input"][row]
            real = labels >= 0
            there = np.flatnonzero(real)
            assert np.array_equal(found["point_label"][place][0, there], labels[real])
            assert np.array_equal(found["point_coord"][place][0, there], call["point_coords"][row, real])
            assert (np.delete(found["point_label"][place][0], there) == -1).all()
            place += 1
    assert place == len(found["x"]) * 8 == len(found["point_label"]) and found["mask_input"].any()


def test_bins_of_semantic_models_are_their_frames(small_semantic_bundle, tmp_path):
    images = calibrate([], tmp_path / "list", CalibrateOptions(limit=2, task="semantic"))
    shapes = write_bins(images, small_semantic_bundle.path, tmp_path / "bins", threads=1)
    found = read_back(tmp_path / "bins", shapes, "image")
    feeds = feeds_of(small_semantic_bundle, images)
    assert np.array_equal(found, np.stack([feed["semantic"][0]["image"] for feed in feeds]))


def test_nothing_is_written_where_something_is_or_for_the_other_task(small_export, tmp_path):
    images = calibrate([], tmp_path / "list", CalibrateOptions(limit=1, task="semantic"))
    with pytest.raises(InputError, match="is a list for semantic models"):
        write_bins(images, small_export[0].path, tmp_path / "bins")
    (tmp_path / "bins").mkdir()
    with pytest.raises(OutputError, match="bins exists"):
        write_bins(images, small_export[0].path, tmp_path / "bins")
