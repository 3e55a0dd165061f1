# SPDX-License-Identifier: Apache-2.0
import copy
from dataclasses import replace

import pytest

from segship.errors import ExportError
from segship.ship.graph.simplify import simplify_graph
from segship.spec import mask_decoder_spec
from tests.oracle import SMALL_VIT
from tests.ship.graph.running import filled, random_inputs, relative_difference, run_proto


def test_simplified_graph_gives_the_same_and_is_not_larger(decoder, decoder_proto):
    module, spec, cut = decoder
    body = simplify_graph(copy.deepcopy(cut.body))
    assert len(body.graph.node) <= len(cut.body.graph.node)
    simplified = filled(replace(cut, body=body), module, spec)
    inputs = random_inputs(mask_decoder_spec(SMALL_VIT.geometry))
    expected, actual = run_proto(decoder_proto, inputs), run_proto(simplified, inputs)
    for name, value in expected.items():
        assert relative_difference(value, actual[name]) <= 1e-5


def test_changed_interface_is_refused(decoder_proto, monkeypatch):
    import onnxslim

    changed = copy.deepcopy(decoder_proto)
    del changed.graph.output[0]
    monkeypatch.setattr(onnxslim, "slim", lambda _: changed)
    with pytest.raises(ExportError, match="changed the inputs or outputs.*simplify=False"):
        simplify_graph(decoder_proto)


def test_failure_of_onnxslim_says_how_to_go_on(decoder_proto, monkeypatch):
    import onnxslim

    def fail(_):
        raise ValueError("no such node")

    monkeypatch.setattr(onnxslim, "slim", fail)
    with pytest.raises(ExportError, match="no such node.*simplify=False"):
        simplify_graph(decoder_proto)
