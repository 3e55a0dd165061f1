# SPDX-License-Identifier: Apache-2.0
"""Look-ups that say what is missing."""

import pytest

from segship.errors import CheckpointError
from segship.ship.families.shapes import MAX_MODULES, Shapes

TREE = Shapes({"a.blocks.0.x": (2, 3), "a.blocks.1.x": (2, 3), "a.scalar": ()})


def refuse(words, work):
    with pytest.raises(CheckpointError, match=words) as refusal:
        work()
    assert refusal.value.code == "unknown_architecture"
    assert "accepted are SAM" in str(refusal.value)


def test_modules_are_counted_and_entered():
    assert TREE.within("a").count("blocks") == 2
    assert TREE.within("a").within("blocks.1").of("x", 2) == (2, 3)
    assert TREE.within("a").has("scalar") and not TREE.has("scalar")
    assert TREE.count("nothing") == 0


def test_a_missing_tensor_is_named():
    refuse("tensor a.blocks.2.x is missing", lambda: TREE.of("a.blocks.2.x", 2))


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4), (2, 0)])
def test_an_odd_shape_is_named(shape):
    refuse("the tensor x has the shape", lambda: Shapes({"x": shape}).of("x", 2))


def test_gaps_in_a_list_are_named():
    refuse("are not 0 to 1", lambda: Shapes({"blocks.0.x": (1,), "blocks.2.x": (1,)}).count("blocks"))


def test_too_many_modules_are_refused():
    shapes = {f"blocks.{index}.x": (1,) for index in range(MAX_MODULES + 1)}
    refuse("at most 256 are read", lambda: Shapes(shapes).count("blocks"))
