# SPDX-License-Identifier: Apache-2.0
import collections
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segship.ship.families.sam.model import ImageEncoderGraph
from segship.ship.graph.cut import cut_graph
from segship.ship.graph.simplify import simplify_graph
from segship.ship.graph.trace import regroup_gelu, trace_graph
from segship.ship.variants import VARIANTS, apply_variant
from segship.spec import GraphSpec, TensorSpec, image_encoder_spec
from tests.oracle import SMALL_VIT
from tests.ship.graph.running import filled, random_inputs, relative_difference, run_proto, traced_graph

SPEC = GraphSpec("gelu", (TensorSpec("x", "float32", (4, 64)),), (TensorSpec("y", "float32", (4, 64)),))
EXPORTED = """
<ir_version: 10, opset_import: ["" : 18]>
gelu (float[4, 64] x) => (float[4, 64] y)
<float root = {1.4142135}, float one = {1.0}, float half = {0.5}>
{
    scaled = Div (x, root)
    erf = Erf (scaled)
    shifted = Add (erf, one)
    halved = Mul (half, shifted)
    y = Mul (x, halved)
}
"""


def kernels(model, tmp_path):
    """Return how often each operator is in the graph that ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    # It warns that the file fits this processor only.
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return collections.Counter(node.op_type for node in graph.node)


def test_regrouping_changes_no_bit_and_makes_one_kernel(tmp_path):
    model = onnx.parser.parse_model(EXPORTED)
    x = np.random.default_rng(0).normal(0, 3, (4, 64)).astype(np.float32)
    # One kernel of its own may round otherwise, so the nodes are compared as they are written.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = lambda: onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]  # noqa: E731
    before = run()
    assert kernels(model, tmp_path)["Gelu"] == 0
    assert regroup_gelu(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(before, run())
    assert kernels(model, tmp_path) == {"Gelu": 1}


def test_factors_may_stand_in_either_order():
    for old, new in [
        ("(half, shifted)", "(shifted, half)"),
        ("(x, halved)", "(halved, x)"),
        ("(erf, one)", "(one, erf)"),
    ]:
        assert regroup_gelu(onnx.parser.parse_model(EXPORTED.replace(old, new))) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("half = {0.5}", "half = {0.25}"),
        ("one = {1.0}", "one = {2.0}"),
        ("Erf (scaled)", "Tanh (scaled)"),
        ("Div (x, root)", "Div (one, root)"),
        ("y = Mul (x, halved)", "other = Mul (x, halved) y = Add (other, halved)"),
    ],
)
def test_what_is_no_gelu_stays(old, new):
    model = onnx.parser.parse_model(EXPORTED.replace(old, new))
    before = model.SerializeToString()
    assert regroup_gelu(model) == 0
    assert model.SerializeToString() == before


def test_a_traced_gelu_is_found(tmp_path):
    model = traced_graph(torch.nn.GELU(), SPEC)
    assert kernels(model, tmp_path) == {"Gelu": 1}


@pytest.mark.parametrize("target", VARIANTS)
def test_every_variant_traces_and_keeps_its_fused_kernels(sam, target, tmp_path):
    spec = image_encoder_spec(SMALL_VIT.geometry)
    inputs = random_inputs(spec, batch=2)
    with torch.inference_mode():
        expected = sam.image_encoder(torch.from_numpy(inputs["image"])).numpy()
    apply_variant(sam, VARIANTS[target])
    try:
        module = ImageEncoderGraph(sam)
        cut = cut_graph(trace_graph(module, spec, opset=18), spec)
        model = filled(replace(cut, body=simplify_graph(cut.body)), module, spec)
    finally:
        apply_variant(sam, VARIANTS["plain"])
    assert relative_difference(expected, run_proto(model, inputs)["image_embeddings"]) <= 1e-5
    found = kernels(model, tmp_path)
    blocks = SMALL_VIT.encoder.depth
    assert found["LayerNormalization"] + found["SkipLayerNormalization"] == 2 * blocks
    assert found["Gelu"] + found["BiasGelu"] == blocks
    assert found["Erf"] == 0
    if target in ("onnxruntime", "openvino"):
        assert found["Split"] == 0, "the thirds of qkv were not folded into constants"
