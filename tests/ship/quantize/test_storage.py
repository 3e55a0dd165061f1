# SPDX-License-Identifier: Apache-2.0
"""Weights stored in fewer bits are near what they were, in fewer bytes, and need no operator of quantization."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from segship.bundle.onnx_file import read_graph
from segship.bundle.onnx_rules import check_graph
from segship.catalog import embedded_bundle
from segship.ship.quantize.opened import OpenGraph, open_graph
from segship.ship.quantize.storage import store_weights, stored_layers
from segship.spec import GraphSpec, SamGeometry, TensorSpec, image_encoder_spec
from tests.small_bundle import make_model

TINY = image_encoder_spec(SamGeometry(image_size=384, embedding_channels=128, embedding_size=24))


def product(weight):
    """Return a graph that gives its own weight: the identity times it."""
    spec = GraphSpec(
        "image_encoder",
        (TensorSpec("x", "float32", (weight.shape[0], weight.shape[0])),),
        (TensorSpec("y", "float32", (weight.shape[0], weight.shape[1])),),
    )
    model = make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], spec.inputs, spec.outputs)
    return OpenGraph(model, {"w": weight})


def stored(graph, bits, wider=()):
    weight = graph.weights["w"]
    made = store_weights(graph, bits, wider)
    return made, made.session().run(None, {"x": np.eye(weight.shape[0], dtype=np.float32)})[0]


@given(st.integers(0, 10_000), st.sampled_from([(64, 64), (129, 61), (80, 333)]))
def test_weights_come_back_within_half_a_step(seed, shape):
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    weight[0] = 0
    for bits, worst in ((16, 6e-4), (8, 0.009), (4, 0.13)):
        made, found = stored(product(weight), bits)
        assert np.linalg.norm(found - weight) / np.linalg.norm(weight) < worst
        assert np.array_equal(found[0], weight[0])
        assert sum(array.nbytes for array in made.weights.values()) < weight.nbytes * {16: 0.51, 8: 0.27, 4: 0.15}[bits]


def test_layers_that_went_back_take_twice_the_bits():
    weight = np.random.default_rng(1).normal(size=(96, 96)).astype(np.float32)
    distances = [
        np.abs(stored(product(weight), bits, wider)[1] - weight).max() for bits in (4, 8) for wider in ((), "y")
    ]
    assert distances[0] > 4 * distances[1] and distances[2] > 4 * distances[3]
    assert distances[1] == distances[2]
    assert np.array_equal(stored(product(weight), 16, "y")[1], weight)


def test_what_float16_does_not_hold_stays_float32():
    weight = np.full((80, 80), 1e6, np.float32)
    assert np.array_equal(stored(product(weight), 16)[1], weight)


@pytest.mark.parametrize(("bits", "most_bytes"), [(16, 6_400_000), (8, 3_500_000), (4, 2_200_000)])
def test_a_file_is_small_and_any_bundle_may_hold_it(tmp_path, bits, most_bytes):
    graph = open_graph(embedded_bundle("tiny") / "image_encoder.onnx")
    path = tmp_path / "image_encoder.onnx"
    store_weights(graph, bits).write(path, TINY)
    assert path.stat().st_size < most_bytes and len(stored_layers(graph)) > 40
    check_graph(read_graph(path), kind="image_encoder", file=path.name, sidecar=None)
    kinds = {node.op_type for node in open_graph(path).nodes}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "MatMulNBits"}
