# SPDX-License-Identifier: Apache-2.0
"""A graph is opened, copied, changed and written, and answers as before."""

import numpy as np
import pytest

from segship.backends import onnxruntime
from segship.bundle.manifest import task_module
from segship.ship.quantize.opened import open_graph


@pytest.fixture
def encoder(small_export):
    bundle = small_export[0]
    return open_graph(bundle.path / "image_encoder.onnx"), bundle.manifest.graph_spec("image_encoder")


def image_of(bundle):
    return task_module("promptable").cases(bundle.manifest).images[0].image


@pytest.mark.parametrize("largest", [1_900_000_000, 1000])
def test_a_graph_that_was_opened_and_written_answers_the_same_bytes(encoder, small_export, tmp_path, largest):
    graph, spec = encoder
    graph.write(tmp_path / "image_encoder.onnx", spec, largest_inline_bytes=largest)
    assert (tmp_path / "image_encoder.onnx.data").exists() == (largest == 1000)
    image = {"image": image_of(small_export[0])}
    files = (small_export[0].path / "image_encoder.onnx", tmp_path / "image_encoder.onnx")
    first, second = (onnxruntime.Session(file, spec).run(image)["image_embeddings"] for file in files)
    assert np.array_equal(first, second)


def test_a_session_gives_tensors_inside_and_shares_the_arrays(encoder, small_export):
    graph, spec = encoder
    inner = next(node.output[0] for node in graph.nodes if node.op_type == "LayerNormalization")
    made, found = graph.session([inner]).run([spec.outputs[0].name, inner], {"image": image_of(small_export[0])})
    assert np.isfinite(made).all() and abs(float(found.mean())) < 1
    assert sum(array.nbytes for array in graph.weights.values()) > 50_000
    assert len(graph.session([inner]).get_inputs()) == 1


def test_copies_have_nodes_and_constants_of_their_own(encoder):
    graph, _ = encoder
    copy = graph.copied()
    name = next(iter(graph.weights))
    copy.replace_constant(name, np.zeros(3, np.float32))
    copy.replace_nodes(list(copy.nodes)[:1])
    assert copy.constant(name) is None or copy.constant(name).shape == (3,)
    assert graph.constant(name).shape != (3,) and len(graph.nodes) > 1
    assert copy.weights.keys() <= {name for node in copy.nodes for name in node.input}


def test_a_constant_is_added_once(encoder):
    graph = encoder[0].copied()
    assert graph.add_constant("seven", np.array([7])) == graph.add_constant("seven", np.array([8])) == "seven"
    assert graph.constant("seven").tolist() == [7] and graph.constant("nothing") is None


def test_halves_in_a_file_are_floats_when_it_is_open():
    from segship.catalog import embedded_bundle

    graph = open_graph(embedded_bundle("tiny") / "image_encoder.onnx")
    assert graph.halves and all(array.dtype != np.float16 for array in graph.weights.values())
