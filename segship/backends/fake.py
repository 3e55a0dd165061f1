# SPDX-License-Identifier: Apache-2.0
"""A session that answers from a function, for tests of programs that use segship, and for our own.

>>> import numpy as np
>>> from segship.spec import GraphSpec, TensorSpec
>>> spec = GraphSpec("double", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
>>> with Session(spec, lambda inputs: {"y": 2 * inputs["x"]}) as session:
...     session.run({"x": np.ones(2, np.float32)})["y"]
array([2., 2.], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from segship.backends.session import Session as BaseSession
from segship.backends.session import closed
from segship.spec import GraphSpec, check_arrays

Answer = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class Session(BaseSession):
    """Answer every call with ``function(inputs)``; inputs and outputs are checked against the contract.

    The function takes the checked inputs and returns one array for every output, by name.
    """

    description = "fake"

    def __init__(self, spec: GraphSpec, function: Answer) -> None:
        self.spec = spec
        self._function: Answer | None = function

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the function's answer."""
        if self._function is None:
            raise closed()
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        outputs = self._function(inputs)
        check_arrays(outputs, self.spec.outputs, self.spec.name)
        return {tensor.name: outputs[tensor.name] for tensor in self.spec.outputs}

    def close(self) -> None:
        """Forget the function."""
        self._function = None
