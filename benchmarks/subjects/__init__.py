# SPDX-License-Identifier: Apache-2.0
"""What is measured, one class each: made in a process of its own by `benchmarks.side_process`, then called in turn."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Subject(Protocol):
    """One way to do the work that a benchmark compares.

    Attributes
    ----------
    described
        What really runs: engine with its version, ``precision``, ``threads``.
    """

    described: dict[str, Any]

    def call(self) -> None:
        """Do the work once; the time of this is what counts."""

    def answer(self) -> dict[str, NDArray[np.float32]]:
        """Return what the last call found, for the comparison with the other sides."""

    def figures(self) -> dict[str, Any]:
        """Return further numbers of the last call; ``excluded_s`` is taken off its seconds."""
