# SPDX-License-Identifier: Apache-2.0
"""The pure loop of one graph: arrays of given shapes in, arrays out, nothing else in the time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.benchmarking.options import BenchmarkOptions
from segship.bundle.onnx_wire import read_graph
from segship.errors import InputError
from segship.spec import LABEL_FOREGROUND, GraphSpec, TensorSpec

Shapes = dict[str, tuple[int, ...]]

# Inputs that mean something, for which noise would be no fair load. All other floats are noise, integers are zero.
_VALUES: Mapping[str, float] = {"point_labels": LABEL_FOREGROUND, "has_mask_input": 0.0, "orig_im_size": 1024.0}


def graph_spec(path: Path) -> GraphSpec:
    """Return what a graph file declares, as a contract; axes without a name get one each.

    Raises
    ------
    BundleError
        When it cannot be read as an ONNX graph.
    """
    graph = read_graph(path)

    def named(tensor: TensorSpec) -> TensorSpec:
        shape = tuple(
            size if isinstance(size, int) or size.strip("?") else f"{tensor.name}.{axis}"
            for axis, size in enumerate(tensor.shape)
        )
        return TensorSpec(tensor.name, tensor.dtype, shape)

    return GraphSpec(path.stem, tuple(map(named, graph.inputs)), tuple(map(named, graph.outputs)))


def shape_sets(spec: GraphSpec, options: BenchmarkOptions) -> Iterator[Shapes]:
    """Yield the shapes of all inputs, one set for each row: given shapes first, else all combinations of given sizes.

    Raises
    ------
    InputError
        ``bad_shape`` when a name is none of the graph's, or a shape does not fit.
    """
    known = {tensor.name for tensor in spec.inputs}
    axes = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
    for name in options.sizes:
        if name not in axes:
            raise _bad(spec, f"it has no dynamic axis {name!r}; it has {sorted(axes) or 'none'}")
    for given in options.shapes:
        for name in given.keys() - known:
            raise _bad(spec, f"it has no input {name!r}; it has {sorted(known)}")
    names = list(options.sizes)
    for given in options.shapes or ({},):
        for values in itertools.product(*(options.sizes[name] for name in names)):
            yield _complete(spec, given, dict(zip(names, values, strict=True)))


def _complete(spec: GraphSpec, given: Mapping[str, tuple[int, ...]], sizes: dict[str, int]) -> Shapes:
    """Return the shape of every input; a dynamic axis has one size in all of them."""
    sizes = dict(sizes)
    for tensor in spec.inputs:
        shape = given.get(tensor.name)
        if shape is None:
            continue
        if len(shape) != len(tensor.shape):
            raise _bad(spec, f"{tensor.name} was given the shape {shape}, and it has {tensor.shape}")
        for found, wanted in zip(shape, tensor.shape, strict=True):
            if (sizes.setdefault(wanted, found) if isinstance(wanted, str) else wanted) != found:
                raise _bad(spec, f"{tensor.name} was given the shape {shape}, and it has {tensor.shape}")
    return {
        tensor.name: tuple(size if isinstance(size, int) else sizes.get(size, 1) for size in tensor.shape)
        for tensor in spec.inputs
    }


def make_inputs(spec: GraphSpec, shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Return seeded arrays of the given shapes."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        shape, dtype = shapes[tensor.name], np.dtype(tensor.dtype)
        if tensor.name in _VALUES:
            arrays[tensor.name] = np.full(shape, _VALUES[tensor.name], dtype)
        elif dtype.kind == "f":
            arrays[tensor.name] = rng.standard_normal(shape, np.float32).astype(dtype)
        else:
            arrays[tensor.name] = np.zeros(shape, dtype)
    return arrays


def _bad(spec: GraphSpec, message: str) -> InputError:
    return InputError(f"graph {spec.name!r}: {message}", code="bad_shape")
