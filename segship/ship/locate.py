# SPDX-License-Identifier: Apache-2.0
"""Where a graph leaves its reference: the tensors of both, one by one in the order in which they are computed.

The reference is another ONNX graph, in another precision or changed by hand, or the torch module that the graph was
traced from: values of a traced graph have the names of torch's own trace, and segship's changes keep them. Tensors
belong together by name. Where few names are the same, by operators and position: the longest runs of operators that
both graphs have in one order. Both graphs answer without the runtime's fusions, as many tensors at a time as the memory
holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import onnx
import onnxruntime

from segship.arrays import AnyArray
from segship.backends.session import Recorder
from segship.bundle import Bundle
from segship.bundle.artifacts import Artifact
from segship.bundle.evidence import EXACT
from segship.bundle.manifest import task_module
from segship.bundle.onnx_file import read_graph
from segship.errors import BundleError, InputError, way
from segship.ship.options import LocateOptions
from segship.spec import GraphSpec

if TYPE_CHECKING:
    from torch import nn

Inputs = Mapping[str, AnyArray]
ROUNDING = {"fp32": 1e-6, "fp16": 2e-3, "fp16-weights": 1e-3, "bf16": 1e-2, "int8-weights": 1e-2}
"""Relative error of one operator that is the precision's own; what is missing rounds like integers."""
_INTEGERS = 3e-2
_GIVE = "give a reference that it was made from"
# A tensor whose size nobody knows before it is there.
_UNKNOWN_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class TensorError:
    """One tensor beside its reference.

    Attributes
    ----------
    tensor, reference
        Its name in the graph, and in the reference.
    node, op_type
        What computes it: the node's name, or else that of its first output.
    dtype
        In the graph.
    expected, found
        Least and largest value in the reference and in the graph.
    error
        Root mean square of the difference, over that of the reference; infinite where the graph overflowed.
    before
        The largest error of what it is computed from.
    """

    tensor: str
    reference: str
    node: str
    op_type: str
    dtype: str
    expected: tuple[float, float]
    found: tuple[float, float]
    error: float
    before: float


@dataclass(frozen=True, slots=True)
class Located:
    """A graph beside its reference.

    Attributes
    ----------
    graph
        Its name.
    first
        The first tensor that leaves its reference by more than the factor; None if none does.
    depth
        Every tensor that has one in the reference, in the order of computing.
    tensors
        How many the graph computes, of any kind.
    """

    graph: str
    first: TensorError | None
    depth: tuple[TensorError, ...]
    tensors: int


class Tensors(NamedTuple):
    """The inner tensors of a network: names in the order of computing, and what reads some of them."""

    names: list[str]
    read: Callable[[Sequence[str]], dict[str, AnyArray]]


def locate(
    found: onnx.ModelProto,
    folder: Path,
    reference: Tensors,
    inputs: Inputs,
    options: LocateOptions | None = None,
    *,
    graph: str = "graph",
    precision: str = EXACT,
    operators: Sequence[str] | None = None,
) -> Located:
    """Hold every tensor of a graph against a reference.

    Parameters
    ----------
    found
        The graph; weights that lie beside it, in ``folder``, need not be loaded.
    reference
        `graph_tensors` or `torch_tensors` of the reference, over the same inputs.
    inputs
        What both are given.
    precision
        Of the graph; how much an operator may round depends on it.
    operators
        Those of the reference, one a name, for graphs that name their tensors otherwise.
    """
    options = options or LocateOptions()
    pairs = _pair(found, reference.names, operators)
    own = graph_tensors(found, folder, inputs)
    errors: dict[str, tuple[float, str, tuple[float, float], tuple[float, float]]] = {}
    for names in _portions(pairs, _sizes(found, inputs), options.memory_bytes):
        mine, theirs = own.read(names), reference.read([pairs[name] for name in names])
        for name in names:
            compared = _compare(theirs[pairs[name]], mine[name])
            if compared is not None:
                errors[name] = (compared[0], str(mine[name].dtype), *compared[1:])
    depth = tuple(_along(found, pairs, errors))
    rounding = ROUNDING.get(precision, _INTEGERS)
    leaves = (entry for entry in depth if entry.error > options.factor * max(entry.before, rounding))
    return Located(graph, next(leaves, None), depth, sum(len(node.output) for node in found.graph.node))


def _along(
    model: onnx.ModelProto, pairs: Mapping[str, str], errors: Mapping[str, tuple[Any, ...]]
) -> Iterator[TensorError]:
    """Yield tensors in the order of computing; what has no partner hands on the error of what it is made of."""
    carried: dict[str, float] = {}
    for node in model.graph.node:
        before = max((carried.get(name, 0.0) for name in node.input), default=0.0)
        for name in node.output:
            carried[name] = before
            if name in errors:
                error, dtype, expected, found = errors[name]
                carried[name] = error
                told = node.name or node.output[0]
                yield TensorError(name, pairs[name], told, node.op_type, dtype, expected, found, error, before)


def _pair(model: onnx.ModelProto, names: Sequence[str], operators: Sequence[str] | None) -> dict[str, str]:
    """Return the tensors of a graph that have a partner, in the order of computing, and its name."""
    nodes = [(name, node.op_type) for node in model.graph.node for name in node.output if name]
    known = set(names)
    same = {name: name for name, _ in nodes if name in known}
    if operators is None or 2 * len(same) > min(len(nodes), len(names)):
        return same
    pairs: dict[str, str] = {}
    matcher = SequenceMatcher(None, [kind for _, kind in nodes], list(operators), autojunk=False)
    for first, second, length in matcher.get_matching_blocks():
        pairs |= {nodes[first + step][0]: names[second + step] for step in range(length)}
    return pairs


def _portions(pairs: Mapping[str, str], sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Yield names, as many at a time as may be held twice."""
    portion: list[str] = []
    held = 0
    for name in pairs:
        size = 2 * sizes.get(name, _UNKNOWN_BYTES)
        if portion and held + size > most:
            yield portion
            portion, held = [], 0
        portion.append(name)
        held += size
    if portion:
        yield portion


def _sizes(model: onnx.ModelProto, inputs: Inputs) -> dict[str, int]:
    """Return the bytes of tensors whose shapes follow from those of the inputs."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True):
            dim.dim_value = size
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    found = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape") and all(sizes):
            found[value.name] = 4 * math.prod(sizes)
    return found


def _compare(expected: AnyArray, found: AnyArray) -> tuple[float, tuple[float, float], tuple[float, float]] | None:
    """Return the relative error of a tensor and both ranges; None where the two cannot be compared."""
    if expected.shape != found.shape or not found.size or {expected.dtype.kind, found.dtype.kind} != {"f"}:
        return None
    ranges = _range(expected), _range(found)
    finite = np.isfinite(expected)
    if not np.isfinite(found[finite]).all():
        return math.inf, *ranges
    base = expected[finite].astype(np.float64)
    difference = found[finite].astype(np.float64) - base
    scale, error = math.sqrt(float(base @ base)), math.sqrt(float(difference @ difference))
    return (error / scale if scale else math.inf if error else 0.0), *ranges


def _range(array: AnyArray) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def graph_tensors(model: onnx.ModelProto, folder: Path, inputs: Inputs) -> Tensors:
    """Return the tensors of a graph, read in ONNX Runtime without fusions; weights beside it lie in ``folder``."""
    names = [name for node in model.graph.node for name in node.output if name]

    def read(wanted: Sequence[str]) -> dict[str, AnyArray]:
        asked = onnx.ModelProto()
        asked.CopyFrom(model)
        del asked.graph.output[:]
        asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.log_severity_level = 3
        with TemporaryDirectory(prefix="segship-locate-") as place:
            for file in folder.glob("*.data"):
                (Path(place) / file.name).symlink_to(file.resolve())
            path = Path(place) / "graph.onnx"
            path.write_bytes(asked.SerializeToString())
            # The runtime's own exceptions have no common class but this.
            try:
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                found = session.run(list(wanted), dict(inputs))
            except Exception as error:
                words = str(error).partition("\n")[0]
                message = f"the graph {model.graph.name!r} does not run on what the other is given ({words})"
                raise InputError(f"{message}; {_GIVE}", code="no_tensors") from error
        return dict(zip(wanted, found, strict=True))

    return Tensors(names, read)


def torch_tensors(
    module: nn.Module, spec: GraphSpec, inputs: Inputs, *, opset: int, largest_sizes: Mapping[str, int]
) -> Tensors:
    """Return the tensors of a torch module by the names that a graph traced from it has."""
    import torch

    from segship.ship.graph.trace import trace_program

    exported = trace_program(module, spec, opset=opset, largest_sizes=largest_sizes).exported_program
    assert exported is not None
    program = exported.module()
    names = [node.name for node in program.graph.nodes]
    given = [torch.from_numpy(np.array(inputs[tensor.name])) for tensor in spec.inputs]

    def read(wanted: Sequence[str]) -> dict[str, AnyArray]:
        kept: dict[str, AnyArray] = {}
        asked = set(wanted)

        class Reader(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                value = super().run_node(n)
                if n.name in asked:
                    is_tensor = isinstance(value, torch.Tensor)
                    kept[n.name] = value.numpy(force=True).copy() if is_tensor else np.zeros(0)
                return value

        with torch.no_grad():
            Reader(program).run(*given)
        return kept

    return Tensors(names, read)


def locate_in_bundle(
    path: Path,
    *,
    precision: str = EXACT,
    against: Path | None = None,
    checkpoint: Path | None = None,
    options: LocateOptions | None = None,
) -> Iterator[Located]:
    """Yield every graph of a bundle, in a precision, beside its reference, on the first of the built-in cases.

    Parameters
    ----------
    path
        The bundle.
    precision
        Which of its artifacts; the reference of a lower one is that in fp32 unless another is named.
    against
        Another bundle, whose artifacts in fp32 are the reference; or an ONNX file, of the graph with its inputs.
    checkpoint
        A checkpoint that the bundle was made of, run in torch.

    Raises
    ------
    BundleError
        When a bundle cannot be used; ``precision_unavailable`` when it has no artifact in the precision.
    InputError
        ``bad_option`` when there is no reference, or two; ``no_tensors`` when none of its tensors is found in it.
    """
    if (against is not None) + (checkpoint is not None) > 1 or (precision == EXACT and against is checkpoint is None):
        ways = way("precision, against or checkpoint", "--precision, --against or --torch")
        raise InputError(f"a graph is held against one reference; name one: {ways}", code="bad_option")
    bundle = Bundle.read(path)
    chosen = [artifact for artifact in bundle.manifest.artifacts if artifact.precision == precision]
    held = {artifact.graph for artifact in bundle.manifest.artifacts if artifact.precision == EXACT}
    if not chosen:
        there = ", ".join(sorted({artifact.precision for artifact in bundle.manifest.artifacts}))
        message = f"{path} has no graph in {precision}; it has {there}"
        raise BundleError(message, code="precision_unavailable")
    if against is checkpoint is None and any(artifact.graph not in held for artifact in chosen):
        message = f"{path} has no graph in fp32 to hold {precision} against; name another reference"
        raise InputError(f"{message}: {way('against or checkpoint', '--against or --torch')}", code="bad_option")
    references = _references(bundle, against, checkpoint)
    calls, compared = _first_calls(bundle, precision), False
    for artifact in chosen:
        reference = references(artifact, calls[artifact.graph]) if artifact.graph in calls else None
        if reference is None:
            continue
        tensors, operators = reference
        model = onnx.load(bundle.path / artifact.file, load_external_data=False)
        located = locate(
            model,
            bundle.path,
            tensors,
            calls[artifact.graph],
            options,
            graph=artifact.graph,
            precision=precision,
            operators=operators,
        )
        if not located.depth:
            message = f"no tensor of {artifact.graph} is found in its reference by name or place"
            raise InputError(f"{message}; {_GIVE}", code="no_tensors")
        yield located
        compared = True
    if not compared:
        raise InputError(f"{against or checkpoint} has the inputs of no graph of {path}; {_GIVE}", code="no_tensors")


def _first_calls(bundle: Bundle, precision: str) -> dict[str, Inputs]:
    """Return what every graph is given in its first call for the built-in cases, in fp32 where there is such."""
    from segship.backends.onnxruntime import Session as Graph

    manifest = bundle.manifest
    task = task_module(manifest.task)
    exact = {artifact.graph for artifact in manifest.artifacts if artifact.precision == EXACT}
    with ExitStack() as stack:
        recorders = {}
        for spec in manifest.graphs:
            file = bundle.path / manifest.artifact(spec.name, EXACT if spec.name in exact else precision).file
            recorders[spec.name] = Recorder(stack.enter_context(Graph(file, spec, once=True)))
        task.answer(task.few(task.cases(manifest)), manifest.adapt(dict(recorders)))
        calls = {name: recorder.take() for name, recorder in recorders.items()}
    return {name: found[0][0] for name, found in calls.items() if found}


Reference = Callable[[Artifact, Inputs], "tuple[Tensors, list[str] | None] | None"]


def _references(bundle: Bundle, against: Path | None, checkpoint: Path | None) -> Reference:
    """Return what finds the reference of an artifact, and the operators that made its tensors if it is a graph."""
    if checkpoint is not None:
        return _torch_references(bundle, checkpoint)
    if against is not None and against.is_file():
        # Says what is wrong with a file that is no graph.
        read_graph(against)
        only = onnx.load(against, load_external_data=False)
        names = {value.name for value in only.graph.input}
        return lambda artifact, inputs: _of_graph(only, against.parent, inputs) if names == set(inputs) else None
    other = bundle if against is None else Bundle.read(against)

    def of_bundle(artifact: Artifact, inputs: Inputs) -> tuple[Tensors, list[str] | None]:
        file = other.path / other.manifest.artifact(artifact.graph).file
        return _of_graph(onnx.load(file, load_external_data=False), other.path, inputs)

    return of_bundle


def _of_graph(model: onnx.ModelProto, folder: Path, inputs: Inputs) -> tuple[Tensors, list[str] | None]:
    operators = [node.op_type for node in model.graph.node for name in node.output if name]
    return graph_tensors(model, folder, inputs), operators


def _torch_references(bundle: Bundle, checkpoint: Path) -> Reference:
    from segship.ship.verify import load_origin, options_of

    manifest = bundle.manifest
    options, model = options_of(manifest), load_origin(bundle, checkpoint)

    def of_torch(artifact: Artifact, inputs: Inputs) -> tuple[Tensors, list[str] | None] | None:
        variant = artifact.options.get("variant")
        parts = model.networks.graphs(model, options if variant is None else replace(options, target=str(variant)))
        if artifact.graph not in parts:
            return None
        module, spec = parts[artifact.graph]
        opset, sizes = options.graph_opset(manifest.task), model.verbs.largest_sizes(model)
        return torch_tensors(module, spec, inputs, opset=opset, largest_sizes=sizes), None

    return of_torch


WIDTH, HEIGHT, _EDGE = 860, 220, 60


def draw_depth(graphs: Sequence[Located]) -> str:
    """Return the error of every tensor, in the order of computing, as an SVG document; a panel for each graph."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT * len(graphs)}">',
        "<style>text{font:13px system-ui,sans-serif;fill:#222}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT * len(graphs)}" fill="#fff"/>',
    ]
    for index, located in enumerate(graphs):
        lines += _panel(located, HEIGHT * index)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(located: Located, top: int) -> list[str]:
    """Return one graph's errors between 1e-8 and 10, on a logarithmic scale, and a mark where it leaves."""

    def place(index: int, error: float) -> tuple[float, float]:
        x = _EDGE + (WIDTH - 2 * _EDGE) * index / max(len(located.depth) - 1, 1)
        return x, top + 30 + (HEIGHT - 60) * (1 - math.log10(min(max(error, 1e-8), 10) / 1e-8) / 9)

    points = [place(index, entry.error) for index, entry in enumerate(located.depth)]
    lines = [f'<text x="{_EDGE}" y="{top + 18}">{escape(located.graph)}: relative error along depth</text>']
    for exponent in (-8, -5, -2, 1):
        y = place(0, 10.0**exponent)[1]
        lines.append(f'<line x1="{_EDGE}" x2="{WIDTH - _EDGE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="8" y="{y + 4:.1f}">1e{exponent}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    lines.append(f'<polyline points="{path}" fill="none" stroke="#2f6f9f"/>')
    if located.first is not None:
        x, y = points[located.depth.index(located.first)]
        told = escape(f"{located.first.op_type} {located.first.node}")
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#c22"/>')
        anchor = "end" if x > WIDTH / 2 else "start"
        lines.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="{anchor}">{told}</text>')
    return lines
