# SPDX-License-Identifier: Apache-2.0
"""Look-ups in a state dict's shapes that say which tensor is missing or odd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segship.ship.families import unrecognised

MAX_MODULES = 256
"""Of one list, such as blocks; vit_h has 32."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes of a state dict, seen from one of its modules."""

    shapes: Mapping[str, tuple[int, ...]]
    prefix: str = ""

    def within(self, prefix: str) -> Shapes:
        """Return the shapes of a module inside."""
        return Shapes(self.shapes, f"{self.prefix}{prefix}.")

    def has(self, name: str) -> bool:
        """Tell whether there is a tensor of that name."""
        return f"{self.prefix}{name}" in self.shapes

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor, which must have ``rank`` axes, none of them empty."""
        full = f"{self.prefix}{name}"
        shape = self.shapes.get(full)
        if shape is None:
            raise unrecognised(f"the tensor {full} is missing")
        if len(shape) != rank or min(shape, default=1) < 1:
            raise unrecognised(f"the tensor {full} has the shape {shape}, and {rank} axes are expected")
        return shape

    def count(self, name: str) -> int:
        """Return how many modules the list ``name`` has; its indices must run from 0."""
        start = f"{self.prefix}{name}."
        found = {key[len(start) :].partition(".")[0] for key in self.shapes if key.startswith(start)}
        if len(found) > MAX_MODULES:
            raise unrecognised(f"there are {len(found)} modules under {start}, and at most {MAX_MODULES} are read")
        if found != {str(index) for index in range(len(found))}:
            raise unrecognised(f"the numbers under {start} are not 0 to {len(found) - 1}")
        return len(found)


def divide(dim: int, head_dim: int) -> int:
    """Return the number of heads of a width."""
    if dim % head_dim:
        raise unrecognised(f"a width of {dim} is no multiple of a head's width of {head_dim}")
    return dim // head_dim


def hidden_ratio(hidden: int, dim: int) -> float:
    """Return the ratio from which the modules get ``hidden`` again by int(dim * ratio)."""
    exact = hidden / dim
    return exact if int(dim * exact) == hidden else (hidden + 0.5) / dim
