# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol, version 2, with its extension for binary tensors: single graphs, for those who know it.

Names, types and sizes are checked here, before any number is read; sizes of pictures are never a client's to say, for
these graphs take none. JSON holds at most what the limit ``json_bytes`` says, so that large tensors come as binary
data. Of parameters there are those of the extension alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from segship.arrays import AnyArray
from segship.backends.session import Session
from segship.errors import InputError, shown
from segship.promptable.prompt_text import load_json_object
from segship.promptable.prompts import PromptLimits
from segship.serve.errors import too_large
from segship.serve.wire import Header
from segship.spec import GraphSpec, TensorSpec, check_arrays

EXTENSION = "binary_tensor_data"
HEADER_LENGTH = "inference-header-content-length"
GRAPHS = ("image_encoder", "mask_decoder", "semantic")
"""Graphs that are served, each as the model MODEL.GRAPH."""
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_REQUEST = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")
_INPUT = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT = ("name", "parameters")
_SIZE, _IS_BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_MOST_RANK = 8
_LONGEST_SIDE = 2**31
# What a box adds to the points of an object.
_CORNERS = 2
# Bytes of memory that a number in JSON takes on its way there, beside those of a number.
_JSON_COST = 16


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """What is asked of a graph.

    Attributes
    ----------
    id
        The client's own name for it, which the answer repeats.
    arrays
        Every input of the graph by its name, not yet looked at for numbers that are not finite.
    outputs
        Name of each output that is wanted, and whether as binary data.
    """

    id: str | None
    arrays: dict[str, AnyArray]
    outputs: tuple[tuple[str, bool], ...]


def spec_to_json(spec: GraphSpec) -> Header:
    """Return a contract as headers of the wire carry it."""
    sides = {"inputs": spec.inputs, "outputs": spec.outputs}
    return {side: [[one.name, one.dtype, one.shape] for one in tensors] for side, tensors in sides.items()}


def spec_from_json(name: str, found: Mapping[str, Any]) -> GraphSpec:
    """Return the contract that `spec_to_json` wrote."""

    def tensors(side: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in found[side])

    return GraphSpec(name, tensors("inputs"), tensors("outputs"))


def describe_graph(name: str, spec: GraphSpec, platform: str) -> dict[str, Any]:
    """Return the metadata of a graph; sizes that differ from call to call are -1."""

    def rows(tensors: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "datatype": DATATYPES[one.dtype],
                "shape": [size if isinstance(size, int) else -1 for size in one.shape],
            }
            for one in tensors
        ]

    return {"name": name, "platform": platform, "inputs": rows(spec.inputs), "outputs": rows(spec.outputs)}


def read_request(
    body: bytes, header_length: str | None, spec: GraphSpec, limits: PromptLimits, most_bytes: int
) -> InferRequest:
    """Read and check one request.

    Parameters
    ----------
    body
        JSON, and behind it the binary data if there is any.
    header_length
        The field Inference-Header-Content-Length; None if the whole body is JSON.
    spec
        Of the graph.
    limits
        On JSON, and on objects and points of a decoder.
    most_bytes
        Of all tensors that come back.

    Raises
    ------
    InputError
        ``bad_request`` for what the protocol has not, ``unknown_key``, ``bad_tensor``, ``answer_too_large``,
        ``too_many_objects``, ``too_many_points``; or about JSON, see `segship.promptable.prompt_text`.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    if length > limits.json_bytes:
        raise too_large("json_bytes", limits.json_bytes, length)
    document = load_json_object(body[:length], limits)
    _refuse_unknown(document, _REQUEST, "the request")
    id_ = document.get("id")
    if not isinstance(id_, str | None):
        raise _bad("id is no text; leave it out, or give text")
    arrays = _read_inputs(document.get("inputs"), memoryview(body)[length:], spec)
    check_arrays(arrays, spec.inputs, spec.name)
    outputs = _read_outputs(document, spec)
    _check_sizes(arrays, outputs, spec, limits, most_bytes)
    return InferRequest(id_, arrays, outputs)


def _header_length(text: str, most: int) -> int:
    # int() takes signs, blanks, underscores and digits of other scripts.
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= most):
        found = f"Inference-Header-Content-Length is {shown(text)}"
        raise _bad(f"{found}; accepted is how many of the body's {most} bytes are JSON")
    return int(text)


def _read_inputs(entries: Any, data: memoryview, spec: GraphSpec) -> dict[str, AnyArray]:
    tensors = {tensor.name: tensor for tensor in spec.inputs}
    if not isinstance(entries, list) or len(entries) > len(tensors):
        raise _bad(f"inputs is no list of at most {len(tensors)} tensors; accepted are {', '.join(tensors)}")
    arrays: dict[str, AnyArray] = {}
    for entry in entries:
        name = _name_in(entry, _INPUT, tensors, "input")
        shape = _read_shape(entry.get("shape"), name)
        wanted = DATATYPES[tensors[name].dtype]
        if entry.get("datatype") != wanted:
            found = shown(entry.get("datatype"))
            raise _bad_tensor(f"the datatype of {name} is {found}; accepted is {wanted}")
        size = _parameters(entry, (_SIZE,)).get(_SIZE)
        if (size is None) == ("data" not in entry):
            raise _bad_tensor(f"the input {name} has both data and {_SIZE}, or neither; give one of the two")
        if size is None:
            arrays[name] = _from_json(entry["data"], shape, tensors[name])
        else:
            arrays[name], data = _from_binary(size, data, shape, tensors[name])
    if len(data):
        raise _bad_tensor(f"{len(data)} bytes are left behind the tensors; {_SIZE} of all inputs must add up to them")
    return arrays


def _name_in(entry: Any, keys: Sequence[str], known: Mapping[str, TensorSpec], side: str) -> str:
    if not isinstance(entry, dict):
        raise _bad(f"an {side} is no object; accepted is one with {', '.join(keys)}")
    _refuse_unknown(entry, keys, f"an {side}")
    name = entry.get("name")
    if not isinstance(name, str) or name not in known:
        raise _bad_tensor(f"there is no {side} {shown(name)}; accepted are {', '.join(known)}")
    return name


def _read_shape(found: Any, name: str) -> tuple[int, ...]:
    # Whole numbers are read as float, as all of JSON is here.
    is_fine = isinstance(found, list) and len(found) <= _MOST_RANK
    if not is_fine or not all(type(one) is float and one.is_integer() and 0 <= one < _LONGEST_SIDE for one in found):
        accepted = f"at most {_MOST_RANK} whole numbers from 0 to {_LONGEST_SIDE - 1}"
        raise _bad_tensor(f"the shape of {name} is not understood; accepted are {accepted}")
    return tuple(int(one) for one in found)


def _from_json(data: Any, shape: tuple[int, ...], tensor: TensorSpec) -> AnyArray:
    """Return the numbers of nested lists that have the shape, or of one flat list."""
    count = math.prod(shape)
    numbers = _flatten(data, shape)
    if numbers is None or len(numbers) != count:
        found = "no lists of that shape" if numbers is None else f"{len(numbers)} numbers"
        raise _bad_tensor(f"the data of {tensor.name} has {found}; its shape {list(shape)} needs {count}")
    if not all(type(number) is float for number in numbers):
        raise _bad_tensor(f"the data of {tensor.name} has something that is no number; accepted are numbers alone")
    with np.errstate(over="ignore"):
        return np.array(numbers, np.float64).astype(tensor.dtype).reshape(shape)


def _flatten(data: Any, shape: tuple[int, ...]) -> list[Any] | None:
    if isinstance(data, list) and not (data and isinstance(data[0], list)):
        return data
    level = [data]
    for side in shape:
        if not all(isinstance(one, list) and len(one) == side for one in level):
            return None
        level = list(chain.from_iterable(level))
    return level


def _from_binary(
    size: Any, data: memoryview, shape: tuple[int, ...], tensor: TensorSpec
) -> tuple[AnyArray, memoryview]:
    """Return the tensor that the data begins with, and the rest; no product of sizes is too large for Python."""
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    needed = math.prod(shape) * dtype.itemsize
    if type(size) is not float or size != needed:
        message = f"{_SIZE} of {tensor.name} is {shown(size)}; its shape {list(shape)} needs {needed}"
        raise _bad_tensor(message)
    if needed > len(data):
        raise _bad_tensor(f"{tensor.name} needs {needed} bytes and {len(data)} are left; send the data behind the JSON")
    return np.frombuffer(data[:needed], dtype).astype(tensor.dtype, copy=False).reshape(shape), data[needed:]


def _read_outputs(document: Mapping[str, Any], spec: GraphSpec) -> tuple[tuple[str, bool], ...]:
    tensors = {tensor.name: tensor for tensor in spec.outputs}
    usual = _truth(_parameters(document, (_ALL_BINARY,)), _ALL_BINARY, False)
    entries = document.get("outputs")
    if entries is None or entries == []:
        return tuple((name, usual) for name in tensors)
    if not isinstance(entries, list) or len(entries) > len(tensors):
        raise _bad(f"outputs is no list of at most {len(tensors)} tensors; accepted are {', '.join(tensors)}")
    found: dict[str, bool] = {}
    for entry in entries:
        name = _name_in(entry, _OUTPUT, tensors, "output")
        if name in found:
            raise _bad_tensor(f"the output {name} is asked for twice; ask once")
        found[name] = _truth(_parameters(entry, (_IS_BINARY,)), _IS_BINARY, usual)
    return tuple(found.items())


def _parameters(entry: Mapping[str, Any], known: Sequence[str]) -> Mapping[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise _bad(f"parameters is no object; accepted is one with {', '.join(known)}")
    _refuse_unknown(found, known, "parameters")
    return found


def _truth(parameters: Mapping[str, Any], name: str, usual: bool) -> bool:
    found = parameters.get(name, usual)
    if not isinstance(found, bool):
        raise _bad(f"{name} is {shown(found)}; accepted are true and false")
    return found


def _check_sizes(
    arrays: Mapping[str, AnyArray],
    outputs: Sequence[tuple[str, bool]],
    spec: GraphSpec,
    limits: PromptLimits,
    most_bytes: int,
) -> None:
    """Refuse what would give more than is given out, and more objects and points than prompts may have."""
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        sizes |= {size: found for size, found in zip(tensor.shape, arrays[tensor.name].shape, strict=True)
                  if isinstance(size, str)}  # fmt: skip
    bounds = {"objects": (limits.objects, 0), "points": (limits.points_per_object, _CORNERS)}
    for axis, (most, more) in bounds.items():
        if most is not None and sizes.get(axis, 0) > most + more:
            message = f"there are {sizes[axis]} {axis}; at most {most + more} are taken in one call"
            raise InputError(message, code=f"too_many_{axis}")
    needed = 0
    for tensor in spec.outputs:
        count = math.prod(size if isinstance(size, int) else sizes.get(size, 1) for size in tensor.shape)
        each = np.dtype(tensor.dtype).itemsize + (0 if dict(outputs).get(tensor.name, True) else _JSON_COST)
        needed += count * each
    if needed > most_bytes:
        message = (
            f"the answer would take {needed:,} bytes; at most {most_bytes:,} are given out, of which a number in "
            "JSON takes several times what it takes as binary data; ask for less at once"
        )
        raise InputError(message, code="answer_too_large")


def run_graph(session: Session, arrays: Mapping[str, AnyArray], portion: int) -> dict[str, AnyArray]:
    """Run a graph on what a client has sent, so many of its first axis at once, which bounds its memory.

    Raises
    ------
    InputError
        ``non_finite`` for an input, ``nonfinite_output`` for what a graph makes of inputs that no picture gives.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name} has a number that is NaN or infinite; give finite numbers", code="non_finite")
    shared, rows = dict[str, AnyArray](), dict[str, AnyArray]()
    for tensor in session.spec.inputs:
        (rows if isinstance(tensor.shape[0], str) else shared)[tensor.name] = arrays[tensor.name]
    count = max((len(array) for array in rows.values()), default=1)
    parts = [
        session.run(_contiguous(shared | {name: array[at : at + portion] for name, array in rows.items()}))
        for at in range(0, count, portion)
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, array in found.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = f"{name} has a number that is not finite; give inputs as pictures and prompts make them"
            raise InputError(message, code="nonfinite_output")
    return found


def _contiguous(arrays: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    # Runtimes take the machine's own order of bytes.
    return {name: np.ascontiguousarray(array, array.dtype.newbyteorder("=")) for name, array in arrays.items()}


def write_answer(
    model: str, id_: str | None, outputs: Sequence[tuple[str, bool]], found: Mapping[str, AnyArray]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how much of it is JSON; None if all of it is."""
    rows, parts = [], list[bytes]()
    for name, is_binary in outputs:
        array = np.ascontiguousarray(found[name])
        row = {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if is_binary:
            parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            rows.append({**row, "parameters": {_SIZE: len(parts[-1])}})
        else:
            rows.append({**row, "data": array.ravel().tolist()})
    head = {"model_name": model, **({} if id_ is None else {"id": id_}), "outputs": rows}
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((text, *parts)), len(text) if parts else None


def _refuse_unknown(found: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in found:
        if key not in known:
            message = f"{where} has the unknown key {shown(key)}; accepted are {', '.join(known)}"
            raise InputError(message, code="unknown_key")


def _bad(message: str) -> InputError:
    return InputError(message, code="bad_request")


def _bad_tensor(message: str) -> InputError:
    return InputError(message, code="bad_tensor")
