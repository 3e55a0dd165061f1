# SPDX-License-Identifier: Apache-2.0
"""What is recorded of tensors is what they held, whatever the number of runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.bundle.manifest import task_module
from segship.ship.quantize.opened import open_graph
from segship.ship.quantize.ranges import BINS, STEP, Recorded, RecordingSession


def recorded(*values):
    entry = Recorded(np.full(2, np.inf), np.full(2, -np.inf))
    for array in values:
        entry.add(array.min(0), array.max(0), array.ravel())
    return entry


@given(arrays(np.float32, (5, 2), elements=st.floats(-1e6, 1e6, width=32)), st.integers(0, 12))
def test_the_histogram_counts_every_element_where_it_lies(values, exponent):
    entry = recorded(values * np.float32(2.0) ** -exponent, values)
    assert entry.counts.sum() == 20
    assert (entry.low, entry.high) == pytest.approx((min(values.min(), (values / 2**exponent).min()), entry.high))
    limit = entry.width * BINS / 2
    assert abs(entry.low) < limit and entry.high < limit
    mean = (entry.counts * entry.centers).sum() / 20
    assert mean == pytest.approx((values.mean() + (values / 2**exponent).mean()) / 2, abs=entry.width)


def test_what_is_not_finite_is_told_by_the_magnitude():
    entry = recorded(np.array([[1.0, np.inf], [2.0, -3.0]]))
    assert entry.magnitude == np.inf and entry.counts.sum() == 3


def test_axes_of_another_length_in_every_run_have_no_channels():
    entry = recorded(np.array([[1.0, 2.0], [3.0, -4.0]]))
    entry.add(np.full(5, -9.0), np.full(5, 7.0), np.zeros(3))
    assert (entry.low, entry.high) == (-9.0, 7.0) and entry.channel_max.shape == ()


def test_a_recording_session_answers_as_the_graph_and_records_what_tensors_hold(small_export):
    bundle = small_export[0]
    spec = bundle.manifest.graph_spec("image_encoder")
    graph = open_graph(bundle.path / "image_encoder.onnx")
    inner = next(node.output[0] for node in graph.nodes if node.op_type == "LayerNormalization")
    session = RecordingSession(graph, spec, [inner, inner, "image"])
    plain = graph.session([inner])
    held = []
    for case in task_module("promptable").cases(bundle.manifest).images:
        made, tensor = plain.run(["image_embeddings", inner], {"image": case.image})
        held.append(tensor)
        assert np.array_equal(session.run({"image": case.image})["image_embeddings"], made)
    entry, whole = session.recorded[inner], np.stack(held)
    rows = whole.reshape(-1, whole.shape[-1])
    assert session.recorded.keys() == {inner, "image"}
    assert np.array_equal(entry.channel_max, rows.max(0)) and np.array_equal(entry.channel_min, rows.min(0))
    assert entry.counts.sum() == sum(len(tensor.ravel()[::STEP]) for tensor in held)
