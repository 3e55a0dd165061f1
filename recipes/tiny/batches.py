# SPDX-License-Identifier: Apache-2.0
"""Samples as batches of tensors, streamed by loading processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from recipes.tiny.samples import Sample, SampleBuilder, ScenePool, stream_samples


class Batch(NamedTuple):
    """The fields of `Sample` as tensors with a batch axis."""

    image: Tensor
    coords: Tensor
    labels: Tensor
    targets: Tensor
    weights: Tensor


class SampleStream(IterableDataset[Sample]):
    """Samples without end, each worker from its own seed."""

    def __init__(self, folder: Path, image_size: int, seed: tuple[int, ...]) -> None:
        self.folder, self.image_size, self.seed = folder, image_size, seed

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        return stream_samples(ScenePool(self.folder), SampleBuilder(self.image_size), rng)
