# SPDX-License-Identifier: Apache-2.0
"""Numpy arrays where the reference has torch tensors: taken from either, and answering to the words notebooks use."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class TensorArray(np.ndarray[Any, Any]):
    """A numpy array that also knows ``cpu()``, ``detach()`` and ``numpy()``, which notebooks say to SAM's tensors.

    >>> as_tensor_array(np.ones(2)).detach().cpu().numpy()
    array([1., 1.])
    """

    def cpu(self) -> Self:
        """Return the array itself; it lies in the memory of the CPU."""
        return self

    def detach(self) -> Self:
        """Return the array itself; it records no gradients."""
        return self

    def numpy(self) -> NDArray[Any]:
        """Return the same numbers as a plain numpy array, not copied."""
        return np.asarray(self)


def as_tensor_array(array: NDArray[Any]) -> TensorArray:
    """Return the same numbers, not copied, as a `TensorArray`."""
    return array.view(TensorArray)


def as_array(value: Any) -> NDArray[Any]:
    """Return the numpy array of whatever was given for one: an array, a list, or a torch tensor on any device."""
    if hasattr(value, "detach"):
        # A tensor that records gradients, or lies on a GPU, makes no array of itself.
        value = value.detach().cpu()
    return np.asarray(value)
