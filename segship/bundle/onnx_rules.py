# SPDX-License-Identifier: Apache-2.0
"""What the graphs of a bundle may contain; checked before a runtime sees a byte.

A graph holds ONNX's own operators without control flow, tensors whose sizes are what they say, and weights either
inside the file or in the one sidecar whose name segship fixes. The reasons are in the security threads of ONNX and
ONNX Runtime: paths that leave the folder, shapes that allocate exabytes, markers of memory addresses.
"""

from __future__ import annotations

import math
import re

from segship.bundle.onnx_file import DTYPE_BITS, OnnxGraph, OnnxTensor, operator_name
from segship.errors import BundleError, shown

OWN_DOMAINS = frozenset({"", "ai.onnx"})
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_COMPUTE = frozenset({
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div",
    "Equal", "Erf", "Exp", "Flatten", "Floor", "Gather", "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual",
    "Identity", "LayerNormalization", "Less", "LessOrEqual", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
    "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu",
    "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    "Where",
})  # fmt: skip
"""What any graph may hold: numbers in, numbers out, of sizes that follow from those of the inputs."""
_DECODE = _COMPUTE | {"ConvTranspose", "Cos", "Expand", "Sin"}
_FOREIGN = _DECODE | {
    "ArgMax", "Ceil", "ConstantOfShape", "ConvInteger", "DynamicQuantizeLinear", "Einsum", "GatherElements",
    "GlobalAveragePool", "HardSigmoid", "HardSwish", "InstanceNormalization", "MatMulInteger",
    "OneHot", "QLinearConv", "QLinearMatMul", "Range", "Resize", "Round", "ScatterND", "Sum", "Tanh",
    "Tile",
}  # fmt: skip
OPERATORS: dict[str, frozenset[str]] = {
    "image_encoder": _COMPUTE,
    "image_side": _COMPUTE,
    "mask_decoder": _DECODE,
    "selective_decoder": _DECODE | {"NonZero"},
    "semantic": _COMPUTE | {"ArgMax", "Range", "Resize"},
    "foreign image_encoder": _FOREIGN,
    "foreign mask_decoder": _FOREIGN,
}
"""Kind of graph -> the operators that a bundle's may hold: those that our exports write, and their like; in graphs that
others wrote also what the exporters and quantizers that people use write for the same networks."""
# ONNX Runtime writes every domain that it knows into the files that it saves, whether it is used or not.
_WRITTEN_BY_OTHERS = frozenset({"foreign image_encoder", "foreign mask_decoder"})
MAX_RANK = 8
MAX_ELEMENTS = 2**30
"""Most elements of a tensor whose size stands in the file: 4 GiB of float32."""
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


def check_graph(graph: OnnxGraph, *, kind: str, file: str, sidecar: str | None, sidecar_bytes: int = 0) -> None:
    """Refuse a graph that holds anything a bundle does not; ``file`` is its name, for messages.

    ``kind`` is a key of `OPERATORS`. ``sidecar`` is the only name under which weights may lie outside the file; None if
    all must be inside.

    Raises
    ------
    BundleError
        With the code ``onnx_operator``, ``onnx_content``, ``onnx_tensor``, ``onnx_too_large``,
        ``external_data_location``, ``external_data_entry`` or ``external_data_range``.
    """
    _check_operators(graph, kind, file)
    for op_type, elements in graph.sizes:
        if not elements <= MAX_ELEMENTS:
            message = (
                f"{file} makes a tensor of {elements:.4g} elements with {op_type}; at most {MAX_ELEMENTS} are accepted"
            )
            raise BundleError(f"{message}; export it again for a smaller size", code="onnx_too_large")
    for tensor in graph.constants:
        if tensor.location != 0 or tensor.external_entries:
            raise _location(file, tensor, "a constant of a node has its data outside the file")
    for tensor in graph.initializers + graph.constants:
        _check_tensor(tensor, file, sidecar, sidecar_bytes)
    if sidecar is not None and not graph.external_locations:
        message = f"{file} does not use {sidecar}, which lies beside it; export the bundle again"
        raise BundleError(message, code="external_data_location")


def _check_operators(graph: OnnxGraph, kind: str, file: str) -> None:
    if graph.oddities:
        odd = ", ".join(map(shown, graph.oddities))
        message = f"{file} holds what no bundle needs: {odd}; export the graph again with segship"
        raise BundleError(message, code="onnx_content")
    domains = {domain for domain, _ in graph.operators}
    if kind not in _WRITTEN_BY_OTHERS:
        domains |= {domain for domain, _ in graph.opset_imports}
    if foreign := sorted(domains - OWN_DOMAINS):
        names = sorted(operator_name(*operator) for operator in graph.operators if operator[0] in foreign)
        used = (
            f"uses {', '.join(map(shown, names[:5]))}" if names else f"imports the operator set '{shown(foreign[0])}'"
        )
        message = f"{file} {used}; only operators of ONNX itself are accepted, export it again without them"
        raise BundleError(message, code="onnx_operator")
    if control := sorted({op_type for _, op_type in graph.operators} & CONTROL_FLOW):
        message = f"{file} uses control flow ({', '.join(control)}), which is not accepted; export it again without it"
        raise BundleError(message, code="onnx_operator")
    if strange := sorted({op_type for _, op_type in graph.operators} - OPERATORS[kind]):
        message = f"{file} uses {', '.join(strange[:5])}, which no {kind} needs; export it again with segship"
        raise BundleError(message, code="onnx_operator")


def _check_tensor(tensor: OnnxTensor, file: str, sidecar: str | None, sidecar_bytes: int) -> None:
    if len(tensor.shape) > MAX_RANK or min(tensor.shape, default=0) < 0 or tensor.dtype not in DTYPE_BITS:
        raise _tensor(file, tensor, f"accepted are known dtypes and at most {MAX_RANK} axes, none negative")
    # Python's integers do not overflow, so an exabyte stays one.
    needed = (math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] + 7) // 8
    if tensor.location == 0 and not tensor.external_entries:
        if tensor.stored_bytes != needed:
            raise _tensor(file, tensor, f"its data take {tensor.stored_bytes} bytes, and its shape needs {needed}")
        return
    if tensor.location != 1 or tensor.stored_bytes:
        raise _tensor(file, tensor, f"data location {tensor.location} is contradicted by what the tensor holds")
    offset, length = _external_range(tensor, file, sidecar, needed)
    if length != needed or offset + length > sidecar_bytes:
        message = (
            f"{file}: tensor {_shown(tensor)} needs {needed} bytes and names {length} from byte {offset} of {sidecar}, "
            f"which has {sidecar_bytes}; export the bundle again or fetch it anew"
        )
        raise BundleError(message, code="external_data_range")


def _external_range(tensor: OnnxTensor, file: str, sidecar: str | None, needed: int) -> tuple[int, int]:
    """Return where in the sidecar a tensor says that it lies: first byte and number of bytes."""
    entries = dict(tensor.external_entries)
    if len(entries) != len(tensor.external_entries) or not entries.keys() <= _EXTERNAL_KEYS:
        keys = [shown(key) for key in sorted(entries)[:8]]
        message = f"{file}: tensor {_shown(tensor)} has external_data keys {keys}; accepted, once each, are "
        raise BundleError(message + ", ".join(sorted(_EXTERNAL_KEYS)), code="external_data_entry")
    location = entries.get("location", "")
    if sidecar is None or location != sidecar:
        wanted = f"only {sidecar!r} is accepted" if sidecar else "no external data is declared for this graph"
        raise _location(file, tensor, f"its data lie in {location[:100]!r}, and {wanted}")
    offset, length = entries.get("offset", "0"), entries.get("length", str(needed))
    for number in (offset, length):
        if not _NUMBER.fullmatch(number):
            message = f"{file}: tensor {_shown(tensor)} has {number[:40]!r} where external_data needs a plain number"
            raise BundleError(message, code="external_data_entry")
    return int(offset), int(length)


def _shown(tensor: OnnxTensor) -> str:
    return repr(tensor.name[:100])


def _tensor(file: str, tensor: OnnxTensor, problem: str) -> BundleError:
    shape = "x".join(str(size) for size in tensor.shape[:9])
    message = f"{file}: tensor {_shown(tensor)} ({tensor.dtype} {shape}) cannot be used: {problem}; export it again"
    return BundleError(message, code="onnx_tensor")


def _location(file: str, tensor: OnnxTensor, problem: str) -> BundleError:
    message = f"{file}: tensor {_shown(tensor)}: {problem}; export it again with segship"
    return BundleError(message, code="external_data_location")
