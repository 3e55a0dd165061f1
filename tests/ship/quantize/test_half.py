# SPDX-License-Identifier: Apache-2.0
"""float16 where it reaches, float32 where it does not: planted overflows are found and mended, every one of them."""

import numpy as np
import onnx
import pytest

from segship.ship.quantize import half
from segship.ship.quantize.opened import open_graph
from segship.ship.quantize.ranges import RecordingSession

PLANTED = 100
CLOSE = 0.02
"""Part of an embedding's size that float16 may move it by; a lost overflow gives NaN, or another embedding."""


@pytest.fixture(scope="module")
def encoder(small_export):
    bundle = small_export[0]
    spec = bundle.manifest.graph_spec("image_encoder")
    return open_graph(bundle.path / "image_encoder.onnx"), spec


IMAGE = np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)


def record(graph, spec):
    session = RecordingSession(graph, spec, half.float_tensors_of(graph))
    session.run({"image": IMAGE})
    return session.recorded


def answer(graph):
    return graph.session().run(None, {"image": IMAGE})[0]


def moved(expected, found):
    return float(np.linalg.norm(expected.astype(np.float64) - found) / np.linalg.norm(expected))


def planted(graph, seed):
    """Return a graph whose tensors leave float16 somewhere: behind a norm, in a residual or before a softmax."""
    rng, made = np.random.default_rng(seed), graph.copied()
    names = {name for node in graph.nodes for name in node.input if name.endswith((".weight", ".bias"))}
    vectors = sorted(name for name in names if (array := graph.constant(name)) is not None and array.ndim == 1)
    name = vectors[rng.integers(len(vectors))]
    array = graph.constant(name).copy()
    array[rng.integers(len(array))] = 10 ** rng.uniform(5.0, 5.5) * rng.choice([-1, 1])
    made.replace_constant(name, array)
    return made


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, PLANTED), marks=pytest.mark.slow)])
def test_planted_overflows_are_found_and_mended_and_plain_float16_is_not_taken_for_right(encoder, seeds):
    graph, spec = encoder
    mended = refused = 0
    for seed in seeds:
        wrong = planted(graph, seed)
        recorded, expected = record(wrong, spec), answer(wrong)
        assert half.islands(wrong, recorded)
        rungs = (half.islands(wrong, recorded, rung) for rung in range(len(half.RUNGS)))
        mended += any(moved(expected, answer(half.rounded(half.to_half(wrong, kept)))) < CLOSE for kept in rungs)
        plain = answer(half.rounded(half.to_half(wrong, ())))
        refused += not np.isfinite(plain).all() or moved(expected, plain) > CLOSE
    assert (mended, refused) == (len(seeds), len(seeds))


def test_without_large_values_everything_is_float16(encoder):
    graph, spec = encoder
    assert half.islands(graph, record(graph, spec)) == set()
    made = half.to_half(graph, ())
    kinds = {node.op_type for node in made.nodes} - {node.op_type for node in graph.nodes}
    assert kinds <= {"Cast"} and [node.op_type for node in made.nodes].count("Cast") == 2
    assert all(array.dtype != np.float32 for array in made.weights.values())
    assert 0 < moved(answer(graph), answer(half.rounded(made))) < CLOSE


def test_each_rung_keeps_more_in_float32(encoder):
    graph, spec = encoder
    recorded, last = record(graph, spec), set()
    for rung in range(len(half.RUNGS)):
        kept = half.islands(graph, recorded, rung)
        assert kept >= last
        last = kept
    layers = {node.output[0] for node in graph.nodes if node.op_type in ("MatMul", "Conv")}
    assert last and not last & layers


def test_a_graph_is_typed_throughout(encoder):
    graph, spec = encoder
    names = [node.output[0] for node in graph.nodes]
    made = half.to_half(graph, set(names[::3]))
    model = made.model
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in made.weights.items())
    onnx.checker.check_model(model, full_check=True)
    assert moved(answer(graph), answer(made)) < CLOSE


def test_coordinates_stay_float32(small_export):
    bundle = small_export[0]
    graph = open_graph(bundle.path / "mask_decoder.onnx")
    kept = half.islands(graph, {})
    sines = {node.output[0] for node in graph.nodes if node.op_type in ("Sin", "Cos")}
    assert sines and sines <= kept
    first = next(node for node in half.to_half(graph, kept).nodes if "point_coords" in node.input)
    assert first.op_type != "Cast" or first.attribute[0].i == onnx.TensorProto.FLOAT
