# SPDX-License-Identifier: Apache-2.0
"""Scales are those of least error, integer layers stay near float32, and smoothing changes nothing but ranges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segship.catalog import embedded_bundle
from segship.machine import describe_machine
from segship.ship.quantize import integers
from segship.ship.quantize.opened import open_graph
from segship.ship.quantize.ranges import Recorded, RecordingSession
from segship.spec import SamGeometry, image_encoder_spec

TINY = SamGeometry(image_size=384, embedding_channels=128, embedding_size=24)


def recorded(values):
    entry = Recorded(np.full((), np.inf), np.full((), -np.inf))
    entry.add(values.min(), values.max(), values.ravel())
    return entry


def error_of(values, scale, zero):
    steps = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float((((steps - zero) * scale - values) ** 2).mean())


@given(st.integers(0, 1000), st.sampled_from([0.0, 3.0, -5.0]), st.sampled_from([1e-3, 1.0, 1e4]))
def test_a_scale_is_no_worse_than_that_of_the_whole_range(seed, offset, size):
    values = (np.random.default_rng(seed).standard_t(3, 5000) + offset) * size
    scale, zero = integers.activation_scale(recorded(values))
    low, high = min(values.min(), 0), max(values.max(), 0)
    whole = (high - low) / 255
    assert 0 <= zero <= 255
    assert error_of(values, scale, zero) <= 1.05 * error_of(values, whole, round(-low / whole))


def test_zero_is_a_byte_exactly():
    scale, zero = integers.activation_scale(recorded(np.linspace(2.0, 9.0, 1000)))
    assert zero == 0 and 8 < 255 * scale < 10


def test_values_that_are_all_zero_have_a_scale():
    scale, zero = integers.activation_scale(recorded(np.zeros(100)))
    assert scale > 0 and zero == 0


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_signed_bytes_with_a_scale_for_every_channel(axis):
    weight = np.random.default_rng(axis).normal(size=(40, 30)).astype(np.float32)
    weight[3] *= 50
    weight[5] = 0
    steps, scales = integers.quantize_weight(weight, axis)
    assert steps.dtype == np.int8 and scales.shape == (weight.shape[axis],) and np.abs(steps).max() == 127
    back = steps * np.expand_dims(scales, 1 - axis)
    whole = np.expand_dims(np.abs(weight).max(1 - axis) / 127, 1 - axis)
    naive = np.rint(weight / np.maximum(whole, 1e-12)) * whole
    assert ((back - weight) ** 2).sum() <= ((naive - weight) ** 2).sum() * (1 + 1e-6)


@pytest.fixture(scope="module")
def tiny():
    """The encoder of tiny, three images for it, and what went through its layers."""
    graph, rng = open_graph(embedded_bundle("tiny") / "image_encoder.onnx"), np.random.default_rng(0)
    images = [rng.normal(size=(1, 3, 384, 384)).astype(np.float32) for _ in range(3)]
    return graph, images


def record(graph, images):
    session = RecordingSession(graph, image_encoder_spec(TINY), integers.recorded_for(graph))
    for image in images[:2]:
        session.run({"image": image})
    return session.recorded


def run(graph, image, *inner):
    return graph.session(inner).run(None, {"image": image})


def distance(expected, found):
    return float(np.linalg.norm(expected - found) / np.linalg.norm(expected))


def test_integer_layers_stay_near_float32_and_only_those_that_are_named(tiny):
    graph, images = tiny
    chosen = integers.to_integers(graph, record(graph, images))
    expected = run(graph, images[2])[0]
    all_layers = chosen.quantized(set(chosen.layers))
    kinds = [node.op_type for node in all_layers.nodes]
    weights = {layer.weight for layer in chosen.layers.values()}
    assert len(weights) > 50 and not weights & all_layers.weights.keys()
    assert kinds.count("QuantizeLinear") == len(chosen.scales)
    assert 1e-4 < distance(expected, run(all_layers, images[2])[0]) < 0.15
    assert np.array_equal(run(chosen.quantized(()), images[2])[0], expected)
    one = next(iter(chosen.layers))
    # Where a processor has no VNNI, sums of two products of bytes saturate, and that comes on top.
    bar = 0.05 if any("vnni" in feature for feature in describe_machine().features) else 0.07
    assert distance(expected, run(chosen.quantized({one}), images[2])[0]) < bar


def with_outliers(graph, factor=60):
    """Return the same function with three channels of every norm ``factor`` times as large."""
    made, users = graph.copied(), graph.users()
    layers = {layer.name: layer for layer in integers.layers_of(graph)}
    count = 0
    for node in graph.nodes:
        behind = integers.products_behind(node.output[0], users, layers) if node.op_type == "LayerNormalization" else ()
        if behind:
            share = np.ones(192, np.float32)
            share[[3, 50, 100]] = factor
            for name in node.input[1:3]:
                made.replace_constant(name, graph.constant(name) * share)
            for layer in behind:
                made.replace_constant(layer.weight, graph.constant(layer.weight) / np.expand_dims(share, layer.axis))
            count += 1
    assert count >= 10
    return made


def test_smoothing_keeps_the_function_and_evens_out_planted_outliers(tiny):
    graph, images = tiny
    planted = with_outliers(graph)
    smooth = integers.smoothed(planted, record(planted, images))
    expected = run(planted, images[2])[0]
    assert distance(expected, run(smooth, images[2])[0]) < 1e-5
    errors = []
    for candidate in (planted, smooth):
        chosen = integers.to_integers(candidate, record(candidate, images))
        errors.append(distance(expected, run(chosen.quantized(set(chosen.layers)), images[2])[0]))
    assert errors[1] < 0.8 * errors[0]


def test_what_is_even_is_left_as_it_is(tiny):
    graph, images = tiny
    same = integers.smoothed(graph, record(graph, images))
    norms = [node.input[1] for node in graph.nodes if node.op_type == "LayerNormalization"]
    changed = [name for name in norms if not np.array_equal(same.constant(name), graph.constant(name))]
    assert len(changed) < len(norms) / 2
