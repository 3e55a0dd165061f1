# SPDX-License-Identifier: Apache-2.0
"""Shapes of a single graph, and files through it."""

import json

import numpy as np
import onnx
import pytest

from segship.bench.benchmark import benchmark
from segship.bench.graphs import graph_spec, make_inputs, shape_sets
from segship.bench.options import BenchmarkOptions
from segship.errors import InputError
from segship.spec import GraphSpec, TensorSpec
from tests.small_bundle import make_model, save_models

FAST = {"warm_up": 0, "repeats": 2, "fresh": False, "threads": (1,)}


@pytest.fixture
def decoder(tmp_path):
    return save_models(tmp_path / "graphs")["mask_decoder"]


@pytest.fixture
def doubling(tmp_path):
    """A graph y = x + x over ("n", 3)."""
    spec = GraphSpec("double", (TensorSpec("x", "float32", ("n", 3)),), (TensorSpec("y", "float32", ("n", 3)),))
    model = make_model([onnx.helper.make_node("Add", ["x", "x"], ["y"])], spec.inputs, spec.outputs)
    path = tmp_path / "double.onnx"
    onnx.save_model(model, str(path))
    return path


def test_every_combination_of_sizes_is_a_row(decoder):
    options = BenchmarkOptions(sizes={"objects": (1, 8), "points": (2,)}, **FAST)
    report = benchmark(decoder, options)
    assert [row.name for row in report.rows] == [
        "graph mask_decoder, objects 1, points 2",
        "graph mask_decoder, objects 8, points 2",
    ]
    assert [row.timing.items for row in report.rows] == [1, 8]
    assert report.rows[1].detail["shapes"]["point_coords"] == [8, 2, 2]


def test_given_shapes_are_gears_and_fix_shared_axes(decoder):
    shapes = ({"point_coords": (1, 4, 2)}, {"point_coords": (2, 9, 2), "point_labels": (2, 9)})
    report = benchmark(decoder, BenchmarkOptions(shapes=shapes, **FAST))
    assert [row.detail["shapes"]["point_labels"] for row in report.rows] == [[1, 4], [2, 9]]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sizes": {"batch": (1,)}}, "no dynamic axis 'batch'"),
        ({"shapes": ({"image": (1,)},)}, "no input 'image'"),
        ({"shapes": ({"point_coords": (1, 4)},)}, "was given the shape"),
        ({"shapes": ({"point_coords": (1, 4, 3)},)}, "was given the shape"),
        ({"shapes": ({"point_coords": (1, 4, 2), "point_labels": (1, 5)},)}, "was given the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(decoder, options, word):
    with pytest.raises(InputError, match=word):
        benchmark(decoder, BenchmarkOptions(**options, **FAST))


def test_inputs_that_mean_something_are_no_noise(decoder):
    spec = graph_spec(decoder)
    (shapes,) = shape_sets(spec, BenchmarkOptions(sizes={"objects": (2,)}))
    arrays = make_inputs(spec, shapes)
    assert (arrays["point_labels"] == 1).all() and (arrays["has_mask_input"] == 0).all()
    assert arrays["image_embeddings"].std() > 0.5


def test_axes_without_a_name_are_told_apart(tmp_path):
    inputs = (TensorSpec("a", "float32", (None, 3)), TensorSpec("b", "int64", (None,)))
    model = make_model(
        [onnx.helper.make_node("Identity", ["a"], ["y"])], inputs, (TensorSpec("y", "float32", (None, 3)),)
    )
    path = tmp_path / "nameless.onnx"
    onnx.save_model(model, str(path))
    report = benchmark(path, BenchmarkOptions(shapes=({"a": (2, 3), "b": (5,)},), **FAST))
    assert report.rows[0].detail["shapes"] == {"a": [2, 3], "b": [5]}


@pytest.mark.parametrize("kind", ["npy", "bin", "txt"])
def test_files_go_through_in_batches_and_come_out_one_by_one(doubling, tmp_path, kind):
    samples = np.arange(15, dtype=np.float32).reshape(5, 3)
    folder = tmp_path / "in"
    folder.mkdir()
    for index, sample in enumerate(samples):
        if index % 2:
            np.save(folder / f"s{index}.npy", sample[None])
        else:
            (folder / f"s{index}.bin").write_bytes(sample.tobytes())
    options = BenchmarkOptions(sizes={"n": (2,)}, inputs=folder, outputs=tmp_path / "out", output_format=kind, **FAST)
    report = benchmark(doubling, options)
    row = report.rows[-1]
    # Five samples in batches of two: three runs, the last filled up.
    assert (row.name, len(row.timing.milliseconds), row.detail["files"]) == ("files through double", 3, 5)
    entries = json.loads((tmp_path / "out" / "summary.json").read_text())["filemap"]
    readers = {
        "npy": np.load,
        "bin": lambda path: np.fromfile(path, np.float32).reshape(1, 3),
        "txt": lambda path: np.loadtxt(path, dtype=np.float32)[None],
    }
    for index, sample in enumerate(samples):
        assert entries[str(index)]["shapes"] == [[1, 3]]
        assert np.array_equal(readers[kind](entries[str(index)]["outfiles"][0]), 2 * sample[None])


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.bin", b"12345", "no whole number"),
        ("a.bin", b"1234" * 4, "holds 4 numbers"),
        ("a.npy", b"nonsense", "no array"),
    ],
)
def test_files_that_do_not_fit_are_refused(doubling, tmp_path, name, data, word):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(InputError, match=word) as caught:
        benchmark(doubling, BenchmarkOptions(inputs=tmp_path / "in", **FAST))
    assert caught.value.code == "bad_sample"


def test_arrays_of_another_type_and_objects_are_refused(doubling, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"float64, and the graph takes float32"):
        benchmark(doubling, BenchmarkOptions(inputs=tmp_path / "in", **FAST))
    np.save(tmp_path / "in" / "a.npy", np.array([{}, {}, {}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"no array"):
        benchmark(doubling, BenchmarkOptions(inputs=tmp_path / "in", **FAST))


def test_a_folder_for_each_input_must_hold_as_many_files(decoder, tmp_path):
    (tmp_path / "in" / "point_coords").mkdir(parents=True)
    np.save(tmp_path / "in" / "point_coords" / "a.npy", np.zeros((2, 2), np.float32))
    with pytest.raises(InputError, match=r"point_labels.*: 0") as caught:
        benchmark(decoder, BenchmarkOptions(inputs=tmp_path / "in", **FAST))
    assert caught.value.code == "no_samples"


def test_fresh_process_of_a_graph_tells_load_and_runs(doubling):
    report = benchmark(doubling, BenchmarkOptions(**{**FAST, "fresh": True, "fresh_repeats": 1}))
    assert [row.event for row in report.fresh] == ["inputs made", "graph loaded", "first run", "second run"]
    times = [row.milliseconds for row in report.fresh]
    assert times == sorted(times) and times[0] > 0
    assert all(row.peak_bytes > 10_000_000 for row in report.fresh)
