# SPDX-License-Identifier: Apache-2.0
"""The pure loop of one graph: arrays of given shapes in, arrays out, nothing else in the time."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.bench.options import ArrayFormat, BenchmarkOptions
from segship.bundle.onnx_file import read_graph
from segship.errors import InputError
from segship.files import make_directory, read_bytes, write_file
from segship.spec import LABEL_FOREGROUND, GraphSpec, TensorSpec

Shapes = dict[str, tuple[int, ...]]

# Inputs that mean something, for which noise would be no fair load. All other floats are noise, integers are zero.
_VALUES: Mapping[str, float] = {"point_labels": LABEL_FOREGROUND, "has_mask_input": 0.0, "orig_im_size": 1024.0}


def graph_spec(path: Path) -> GraphSpec:
    """Return what an ONNX graph declares, as a contract; axes without a name get one each."""
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

    A name that is none of the graph's, or a shape that does not fit, is refused as ``bad_shape``.
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
        fits = len(shape) == len(tensor.shape) and all(
            (sizes.setdefault(wanted, found) if isinstance(wanted, str) else wanted) == found
            for found, wanted in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
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


SUFFIXES = (".npy", ".bin")
SUMMARY = "summary.json"
_MAX_BYTES = 2**31

Arrays = dict[str, NDArray[Any]]


def find_samples(folder: Path, spec: GraphSpec) -> list[dict[str, Path]]:
    """Return the files of every sample: of a folder for a graph with one input, of one folder for each input else.

    None at all, or numbers that differ, are refused as ``no_samples``.
    """
    names = [tensor.name for tensor in spec.inputs]
    folders = {name: folder if len(names) == 1 else folder / name for name in names}
    files = {
        name: sorted(path for path in place.glob("*") if path.suffix in SUFFIXES) for name, place in folders.items()
    }
    counts = {name: len(paths) for name, paths in files.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        wanted = f"{folder}" if len(names) == 1 else f"the folders {', '.join(names)} in {folder}"
        message = f"{wanted} must hold as many {' or '.join(SUFFIXES)} files for each input, and holds {counts}"
        raise InputError(message, code="no_samples")
    return [dict(zip(names, paths, strict=True)) for paths in zip(*(files[name] for name in names), strict=True)]


def batches(samples: Sequence[Mapping[str, Path]], spec: GraphSpec, shapes: Shapes) -> Iterator[tuple[int, Arrays]]:
    """Yield batches of samples as the graph takes them, each with how many of its rows are samples.

    A sample fills one row of the first axis; where the last batch is not full, its last sample stands for the rest.
    """
    size = min(shape[0] if shape else 1 for shape in shapes.values())
    for begin in range(0, len(samples), size):
        part = samples[begin : begin + size]
        rows = [*part, *[part[-1]] * (size - len(part))]
        arrays = {}
        for tensor in spec.inputs:
            shape, dtype = shapes[tensor.name], np.dtype(tensor.dtype)
            arrays[tensor.name] = np.stack([_read(row[tensor.name], shape[1:], dtype) for row in rows])
        yield len(part), arrays


def write_outputs(
    folder: Path, samples: Sequence[Mapping[str, Path]], outputs: Sequence[Sequence[NDArray[Any]]], kind: ArrayFormat
) -> Path:
    """Write the outputs of every sample and the summary, and return the summary's path."""
    make_directory(folder)
    entries = {}
    for number, (sample, arrays) in enumerate(zip(samples, outputs, strict=True)):
        stem = next(iter(sample.values())).stem
        paths = [folder / f"{stem}_{index}.{kind}" for index in range(len(arrays))]
        for path, array in zip(paths, arrays, strict=True):
            write_file(path, _WRITERS[kind](array), overwrite=True)
        entries[str(number)] = {
            "infiles": [str(path) for path in sample.values()],
            "outfiles": [str(path) for path in paths],
            "shapes": [list(array.shape) for array in arrays],
            "dtypes": [str(array.dtype) for array in arrays],
        }
    summary = folder / SUMMARY
    write_file(summary, json.dumps({"filemap": entries}, indent=2).encode(), overwrite=True)
    return summary


def _read(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return one sample without its first axis."""
    data = read_bytes(path, limit=_MAX_BYTES)
    if path.suffix == ".npy":
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except ValueError as error:
            raise _unfit(path, f"it is no array ({error})") from error
        if array.dtype != dtype:
            raise _unfit(path, f"it holds {array.dtype}, and the graph takes {dtype}")
    else:
        if len(data) % dtype.itemsize:
            raise _unfit(path, f"it has {len(data)} bytes, no whole number of {dtype}")
        array = np.frombuffer(data, dtype)
    if array.size != int(np.prod(shape)):
        raise _unfit(path, f"it holds {array.size} numbers, and a sample has {int(np.prod(shape))}, {shape}")
    return np.ascontiguousarray(array.reshape(shape))


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _txt(array: NDArray[Any]) -> bytes:
    return "".join(f"{value}\n" for value in array.ravel().tolist()).encode()


_WRITERS: dict[ArrayFormat, Callable[[NDArray[Any]], bytes]] = {
    "npy": _npy,
    "bin": lambda array: array.tobytes(),
    "txt": _txt,
}


def _unfit(path: Path, problem: str) -> InputError:
    return InputError(f"{path} does not fit the graph: {problem}", code="bad_sample")
