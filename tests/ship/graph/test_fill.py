# SPDX-License-Identifier: Apache-2.0
"""Weights in a graph: each where it belongs, inline or beside it, in half precision where that is exact."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from segship.bundle.onnx_file import read_graph
from segship.errors import CheckpointError
from segship.ship.graph.cut import cut_graph
from segship.ship.graph.fill import fill_graph
from segship.ship.graph.trace import tensors_of, trace_graph
from segship.ship.graph.wire import parts_of
from segship.spec import image_encoder_spec
from tests.oracle import SMALL_VIT
from tests.ship.graph.running import filled, random_inputs, run_proto


def arrays(module):
    return {name: tensor.detach().numpy() for name, tensor in tensors_of(module).items()}


def test_weights_of_the_checkpoint_are_there_bit_by_bit(decoder, decoder_proto):
    module, spec, cut = decoder
    given = arrays(module)
    own = {tensor.name for tensor in spec.inputs}
    made = {value.name for value in cut.prepare.graph.output}
    weights = [value.name for value in cut.body.graph.input if value.name not in own]
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in decoder_proto.graph.initializer}
    assert set(weights) <= found.keys() and len(made) > 20
    for name in weights:
        assert name in made or np.array_equal(found[name], given[name])
    assert [value.name for value in decoder_proto.graph.input] == [tensor.name for tensor in spec.inputs]


def test_a_cut_graph_holds_no_weight(decoder):
    module, _, cut = decoder
    values = sorted((array for array in arrays(module).values() if array.size > 1000), key=lambda array: array.size)
    for part in (cut.prepare, cut.body):
        data = part.SerializeToString()
        assert not any(array.tobytes()[:64] in data for array in values)
        # What is left are sizes, and constants of the architecture.
        assert max(len(tensor.raw_data) for tensor in part.graph.initializer) < 4096


def test_own_reader_and_onnx_read_the_same(decoder_proto, tmp_path):
    onnx.save(decoder_proto, tmp_path / "graph.onnx")
    found = read_graph(tmp_path / "graph.onnx")
    assert [tensor.name for tensor in found.initializers] == [tensor.name for tensor in decoder_proto.graph.initializer]
    assert not found.oddities


def test_small_graph_is_one_file(decoder, tmp_path):
    module, spec, cut = decoder
    fill_graph(cut.template(), spec, arrays(module), tmp_path / "mask_decoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["mask_decoder.onnx"]


def test_large_graph_has_one_sidecar_of_the_fixed_name(decoder, decoder_proto, tmp_path):
    module, spec, cut = decoder
    path = tmp_path / "mask_decoder.onnx"
    for _ in range(2):
        fill_graph(cut.template(), spec, arrays(module), path, largest_inline_bytes=10_000)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["mask_decoder.onnx", "mask_decoder.onnx.data"]
    # Writing again replaces the sidecar and does not add to it.
    assert path.with_name("mask_decoder.onnx.data").stat().st_size < 1.1 * len(decoder_proto.SerializeToString())
    onnx.checker.check_model(path, full_check=True)
    loaded = onnx.load(path)
    inputs = random_inputs(spec)
    expected, actual = run_proto(decoder_proto, inputs), run_proto(loaded, inputs)
    assert all(np.array_equal(expected[name], actual[name]) for name in expected)
    # Small enough again, it is one file.
    fill_graph(cut.template(), spec, arrays(module), path)
    assert [found.name for found in tmp_path.iterdir()] == ["mask_decoder.onnx"]


def test_weights_of_half_precision_take_half_the_bytes_and_change_nothing(decoder):
    module, spec, cut = decoder

    def rounded(array):
        return array.astype(np.float16).astype(np.float32) if array.dtype == np.float32 else array

    source = filled(cut, module, spec, change=rounded)
    halved = filled(cut, module, spec, change=rounded, halves=True)
    assert sum(node.op_type == "Cast" and node.output[0] + ".half" == node.input[0] for node in halved.graph.node) > 20
    assert len(halved.SerializeToString()) < 0.75 * len(source.SerializeToString())
    inputs = random_inputs(spec)
    expected, actual = run_proto(source, inputs), run_proto(halved, inputs)
    assert all(np.array_equal(expected[name], actual[name]) for name in expected)


def test_weights_that_half_precision_cannot_hold_stay(decoder, decoder_proto):
    module, spec, cut = decoder
    halved = filled(cut, module, spec, halves=True)
    weights = {tensor.name for tensor in decoder_proto.graph.initializer if len(tensor.raw_data) > 4096}
    assert weights <= {tensor.name for tensor in halved.graph.initializer}


def test_a_missing_tensor_is_named(decoder, tmp_path):
    module, spec, cut = decoder
    given = arrays(module)
    del given["sam.mask_decoder.iou_token.weight"]
    with pytest.raises(CheckpointError, match="1 tensors are missing, among them sam.mask_decoder.iou_token.weight"):
        fill_graph(cut.template(), spec, given, tmp_path / "mask_decoder.onnx")


def test_two_seeds_give_one_template(sam):
    """Nothing of the weights is in a template; traced anew, past what the tests share."""
    import torch

    from segship.ship.families.sam.model import ImageEncoderGraph, build_sam
    from tests.oracle import seeded_weights

    other = build_sam(replace(SMALL_VIT))
    other.load_state_dict(seeded_weights(other, seed=5))
    spec = image_encoder_spec(SMALL_VIT.geometry)
    assert not torch.equal(sam.image_encoder.pos_embed, other.image_encoder.pos_embed)
    first, second = (
        cut_graph(trace_graph(ImageEncoderGraph(model), spec, opset=18), spec).template() for model in (sam, other)
    )
    assert first == second


def test_parts_of_a_graph_make_what_the_whole_makes(decoder):
    module, _, cut = decoder
    prepare = cut.template().prepare
    whole = onnx.ModelProto.FromString(prepare)
    given = {name: array for name, array in arrays(module).items() if name in {v.name for v in whole.graph.input}}
    expected = run_proto(whole, given)
    names = list(expected)
    assert len(names) > 20
    found = {}
    for some, part in zip((names[::2], names[1::2]), parts_of(prepare, (names[::2], names[1::2])), strict=True):
        model = onnx.ModelProto.FromString(part)
        onnx.checker.check_model(model)
        assert [value.name for value in model.graph.output] == some
        assert len(model.graph.node) < len(whole.graph.node)
        needed = {value.name for value in model.graph.input}
        assert needed < given.keys()
        found |= run_proto(model, {name: given[name] for name in needed})
    assert all(np.array_equal(expected[name], found[name]) for name in names)
