# SPDX-License-Identifier: Apache-2.0
"""What a weight file says of a tensor before any of its bytes are read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
MAX_RANK = 8
"""Axes of a tensor; the models here have at most 4."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype, by its name in torch and numpy, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the elements, each once."""
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class StoredTensor(TensorInfo):
    """A tensor as a view of a storage: element (i, j, ...) lies at ``offset + i * strides[0] + j * strides[1] + ...``.

    Attributes
    ----------
    storage
        Key of the storage, the name of a member under ``data/`` in the file.
    storage_elements
        Elements of the storage, as the file claims.
    """

    strides: tuple[int, ...]
    offset: int
    storage: str
    storage_elements: int

    def lies_within_storage(self) -> bool:
        """Tell whether every element lies in the storage, and no two at one place."""
        if self.elements == 0:
            return self.offset <= self.storage_elements
        reach = 1
        for stride, size in sorted((stride, size) for stride, size in zip(self.strides, self.shape, strict=True)):
            if size == 1:
                continue
            if stride < reach:
                return False
            reach = stride * (size - 1) + reach
        return self.offset + reach <= self.storage_elements
