# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs as Ascend's compiler takes them: fixed sizes, an opset that it reads, operators that it knows.

``operators.json`` says for which opsets CANN's parser registers an operator: ranges of opsets, and the operators of
each, read from its published sources (ops-nn, ops-math, ops-cv, August 2026).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from segship.backends.fixed import fixed_spec
from segship.backends.session import first_line
from segship.errors import ExportError, way
from segship.ship.graph.lower import lower_opset
from segship.ship.quantize.opened import OpenGraph
from segship.spec import GraphSpec

TRACED_OPSET = 18
"""Of the graphs of bundles, and the highest that CANN registers operators for."""
GUIDE_OPSET = 14
"""Of the guides, which older CANN was shown to take."""
SINCE_CANN_8 = frozenset({"Einsum", "GridSample", "LayerNormalization", "IsInf"})
"""Operators that the lists of CANN 5 lack and those of 8 have; 6 and 7 lie between."""
NO_FUSION = ("MatMulAddFusion",)
"""What ONNX Runtime would do besides folding constants."""
HIGHEST_IR = 8
"""That of ONNX 1.12, which CANN is written against."""


@cache
def registered() -> dict[str, frozenset[int]]:
    """Return the opsets for which CANN registers each operator.

    Examples
    --------
    >>> sorted(registered()["LayerNormalization"]), "Gelu" in registered()
    ([17, 18], False)
    """
    table = json.loads(files(__package__).joinpath("operators.json").read_text("utf-8"))
    return {name: frozenset(_opsets(ranges)) for ranges, names in table.items() for name in names.split()}


def _opsets(ranges: str) -> Iterator[int]:
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def check_operators(graph: OpenGraph, name: str, cann: int) -> None:
    """Refuse a graph with an operator that CANN does not know in its opset.

    Raises
    ------
    ExportError
        ``unsupported_operator``, naming the operators.
    """
    opset = graph.model.opset_import[0].version
    missing = set()
    for node in graph.nodes:
        known = registered().get(node.op_type, frozenset()) | ({opset} if node.op_type == "Constant" else set())
        if opset not in known or (cann < 8 and node.op_type in SINCE_CANN_8):
            missing.add(f"{node.op_type} (node {node.name!r})")
    if missing:
        shown = ", ".join(sorted(missing)[:5])
        message = f"CANN {cann} registers no {shown} for opset {opset}, which graph {name!r} uses; convert for a later"
        raise ExportError(f"{message} {way('cann', '--cann')}, or write it otherwise", code="unsupported_operator")


def fix_sizes(graph: OpenGraph, spec: GraphSpec, sizes: Mapping[str, int]) -> OpenGraph:
    """Return a graph in which some axes of its contract have one size, and all that follows from them is computed.

    Weights take no part in it: ONNX Runtime folds a graph that has them as inputs.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name, array in graph.weights.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for axis, size in sizes.items():
        options.add_free_dimension_override_by_name(axis, size)
    with tempfile.TemporaryDirectory(prefix="segship-ascend-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "fixed.onnx")
        data = model.SerializeToString()
        try:
            onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(NO_FUSION)
            )
        # The runtime's exceptions share no narrower base.
        except Exception as error:
            message = f"graph {spec.name!r} cannot have the sizes {dict(sizes)}: {first_line(error)}; choose others"
            raise ExportError(message, code="bad_size") from error
        fixed = onnx.load(options.optimized_model_filepath)
    return _with_contract(OpenGraph(fixed, dict(graph.weights)), spec, sizes)


def _with_contract(graph: OpenGraph, spec: GraphSpec, sizes: Mapping[str, int]) -> OpenGraph:
    """Declare inputs and outputs as the contract has them, and the standard operators alone."""
    model, spec = graph.model, fixed_spec(spec, sizes)
    for declared, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        del declared[:]
        for tensor in tensors:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            declared.append(helper.make_tensor_value_info(tensor.name, kind, tensor.shape))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", TRACED_OPSET))
    model.ir_version = min(model.ir_version, HIGHEST_IR)
    for node in graph.nodes:
        # No axis is ever empty, so a size of 0, and what it means, does not occur.
        kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
        if node.op_type == "Reshape" and len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)
    graph.replace_nodes(list(graph.nodes))
    return graph


def lowered(graph: OpenGraph, opset: int) -> OpenGraph:
    """Return a graph in an opset; below 18 with LayerNormalization written out."""
    if opset < TRACED_OPSET:
        graph.model = lower_opset(graph.model, opset)
        graph.replace_nodes(list(graph.nodes))
    return graph


def keep_norms_apart(graph: OpenGraph) -> list[str]:
    """Keep the norm over channels behind a transposed convolution from being fused, in place; return its divisions.

    Ascend's compiler makes one LayerNorm of it and loses accuracy there (the SAM guide's ``decoder_onnx_modify.py``). A
    power of one between the subtraction and the division breaks the pattern, and changes no value.

    Raises
    ------
    ExportError
        ``unknown_pattern`` where such a convolution is followed by a mean and the norm is not written as ours are.
    """
    makers = {name: node for node in graph.nodes for name in node.output}
    transposed = {node.output[0] for node in graph.nodes if node.op_type == "ConvTranspose"}
    divisions = [node for node in graph.nodes if node.op_type == "Div" and _centre(graph, node, makers) in transposed]
    means = {node.input[0] for node in graph.nodes if node.op_type == "ReduceMean"} & transposed
    if len(means) != len(divisions):
        message = f"a norm behind a transposed convolution is written in an unknown way ({', '.join(sorted(means))})"
        raise ExportError(f"{message}, and Ascend's compiler may fuse it wrongly; export again", code="unknown_pattern")
    nodes = []
    for node in graph.nodes:
        if any(node is division for division in divisions):
            apart = f"{node.output[0]}_apart"
            one = graph.add_constant(f"{apart}_exponent", np.array(1.0, np.float32))
            nodes.append(helper.make_node("Pow", [node.input[0], one], [apart], name=apart))
            node.input[0] = apart
        nodes.append(node)
    graph.replace_nodes(nodes)
    return [node.output[0] for node in divisions]


def _centre(graph: OpenGraph, division: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """Return x where a division is (x - mean) / sqrt(mean((x - mean)^2) + eps), both means over axis 1."""

    def made_by(name: str, kind: str) -> onnx.NodeProto | None:
        node = makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def mean_of(name: str) -> str | None:
        node = made_by(name, "ReduceMean")
        return node.input[0] if node is not None and _axes(graph, node) == [1] else None

    centred, deviation = division.input
    subtraction, root = made_by(centred, "Sub"), made_by(deviation, "Sqrt")
    shifted = root and made_by(root.input[0], "Add")
    if subtraction is None or shifted is None:
        return None
    squares = [mean_of(name) for name in shifted.input]
    for square in filter(None, squares):
        node = makers[square]
        is_square = node.op_type in ("Mul", "Pow") and node.input[0] == centred
        if is_square and mean_of(subtraction.input[1]) == subtraction.input[0]:
            return str(subtraction.input[0])
    return None


def _axes(graph: OpenGraph, node: onnx.NodeProto) -> list[int]:
    given = graph.constant(node.input[1]) if len(node.input) > 1 else None
    found = given.tolist() if given is not None else next((a.ints for a in node.attribute if a.name == "axes"), [])
    return list(found)
