# SPDX-License-Identifier: Apache-2.0
"""What a graph declares against its contract."""

import pytest

from segship.errors import BundleError
from segship.spec import GraphSpec, TensorSpec, check_interface


def graph_spec(shape, dtype="float32", name="x"):
    return GraphSpec("g", (TensorSpec(name, dtype, shape),), (TensorSpec("y", dtype, shape),))


@pytest.mark.parametrize("shape", [("n", 4), ("m", 4), ("?", 4), ("n", "k")])
def test_interface_may_be_freer_than_the_contract(shape):
    found = graph_spec(shape)
    check_interface(found.inputs, found.outputs, graph_spec(("n", 4)))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (graph_spec(("n", 5)), r"input x has shape \(n, 5\); expected \(n, 4\)"),
        (graph_spec((2, 4)), r"input x has shape \(2, 4\); expected \(n, 4\)"),
        (graph_spec(("n", 4, 1)), "input x has shape"),
        (graph_spec(("n", 4), dtype="float16"), "input x has dtype float16; expected float32"),
        (graph_spec(("n", 4), name="z"), r"its inputs are \['z'\]; expected \['x'\]"),
    ],
)
def test_interface_that_differs_is_refused(found, words):
    with pytest.raises(BundleError, match=words) as caught:
        check_interface(found.inputs, found.outputs, graph_spec(("n", 4)))
    assert caught.value.code == "graph_interface"


def test_outputs_are_part_of_the_interface():
    found = graph_spec(("n", 4))
    with pytest.raises(BundleError, match=r"its outputs are \[\]; expected \['y'\]"):
        check_interface(found.inputs, (), found)
    with pytest.raises(BundleError, match=r"output y has shape \(n, 3\)"):
        check_interface(found.inputs, (TensorSpec("y", "float32", ("n", 3)),), found)
    check_interface(found.inputs, (TensorSpec("y", "float32", (1, 4)),), found)
