# SPDX-License-Identifier: Apache-2.0
"""Weights stored in fewer bits, each followed by the nodes that make float32 of it: the arithmetic stays float32.

Runtimes fold those nodes away when they load a graph, so nothing but the file gets smaller, and the nodes are of the
oldest kinds, so every engine reads them. Blocks of consecutive weights share a scale, as in GPTQ and AWQ: of 64 weights
in 8 bits, of 32 in 4 bits, where two lie in a byte. Only layers are stored in 4 bits; tables and embeddings take 8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
from onnx import helper

from segship.arrays import AnyArray, FloatArray
from segship.ship.quantize.opened import OpenGraph

BLOCKS = {4: 32, 8: 64}
"""Bits -> weights that share a scale."""
SMALLEST_ELEMENTS = 4096
"""Smaller weights, and vectors, are stored as float16."""
SMALLEST_HALVED = 256
_CLIPS = np.linspace(1.0, 0.75, 11)
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")

Stored = list[onnx.NodeProto]


def stored_layers(graph: OpenGraph) -> list[str]:
    """Return the products with constant weights that are stored in fewer bits, by the names of their outputs."""
    return [
        node.output[0]
        for node in graph.nodes
        if node.op_type in PRODUCTS and any(_is_large(graph.weights.get(name)) for name in node.input)
    ]


def _is_large(weight: AnyArray | None) -> bool:
    return weight is not None and weight.dtype == np.float32 and weight.ndim > 1 and weight.size >= SMALLEST_ELEMENTS


def store_weights(
    graph: OpenGraph, bits: int, wider: Collection[str] = (), *, only: Collection[str] | None = None
) -> OpenGraph:
    """Return a graph whose weights are stored in 4, 8 or 16 bits.

    Parameters
    ----------
    bits
        Of the weights of layers; 16 is float16 for all.
    wider
        Layers, by the names of their outputs, whose weights are stored in twice as many bits.
    only
        The only layers whose weights are stored so; all of them, and all other weights, when left out.
    """
    made = graph.copied()
    widths: dict[str, int] = {}
    for node in made.nodes:
        width = 2 * bits if node.output[0] in wider else bits if node.op_type in PRODUCTS else max(bits, 8)
        widths |= {name: max(width, widths.get(name, 0)) for name in node.input}
    chosen = {name for node in made.nodes if only is None or node.output[0] in only for name in node.input}
    stored: Stored = []
    for name, weight in graph.weights.items():
        if weight.dtype != np.float32 or weight.size < SMALLEST_HALVED or name not in chosen:
            continue
        width = widths[name] if _is_large(weight) else 16
        nodes = _WRITERS[width](made, name, weight) if width in _WRITERS else []
        if nodes:
            stored += nodes
            del made.weights[name]
    made.replace_nodes([*stored, *made.nodes])
    made.halves = graph.halves
    return made


def _as_halves(graph: OpenGraph, name: str, weight: FloatArray) -> Stored:
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if not np.isfinite(half).all():
        return []
    return [helper.make_node("Cast", [graph.add_constant(f"{name}.half", half)], [name], to=onnx.TensorProto.FLOAT)]


def _as_bytes(graph: OpenGraph, name: str, weight: FloatArray) -> Stored:
    steps, scales = _blocks(weight, 8)
    return [
        _cast(graph.add_constant(f"{name}.bytes", steps.astype(np.int8)), f"{name}.steps"),
        *_scaled(graph, name, weight.shape, scales),
    ]


def _as_nibbles(graph: OpenGraph, name: str, weight: FloatArray) -> Stored:
    """Store two weights in a byte: those of a block's first half in the low four bits, of its second in the high."""
    steps, scales = _blocks(weight, 4)
    low, high = np.split((steps + 8).astype(np.uint8), 2, axis=1)
    sixteenth = graph.add_constant("nibbles.sixteenth", np.array(1 / 16, np.float32))
    sixteen = graph.add_constant("nibbles.sixteen", np.array(16, np.float32))
    eight = graph.add_constant("nibbles.eight", np.array(8, np.float32))
    part = {key: f"{name}.{key}" for key in ("pairs", "parts", "high", "upper", "low", "both", "steps")}
    return [
        _cast(graph.add_constant(f"{name}.packed", low | high << 4), part["pairs"]),
        helper.make_node("Mul", [part["pairs"], sixteenth], [part["parts"]]),
        helper.make_node("Floor", [part["parts"]], [part["high"]]),
        helper.make_node("Mul", [part["high"], sixteen], [part["upper"]]),
        helper.make_node("Sub", [part["pairs"], part["upper"]], [part["low"]]),
        helper.make_node("Concat", [part["low"], part["high"]], [part["both"]], axis=1),
        helper.make_node("Sub", [part["both"], eight], [part["steps"]]),
        *_scaled(graph, name, weight.shape, scales),
    ]


_WRITERS: dict[int, Callable[[OpenGraph, str, FloatArray], Stored]] = {4: _as_nibbles, 8: _as_bytes, 16: _as_halves}


def _blocks(weight: FloatArray, bits: int) -> tuple[FloatArray, AnyArray]:
    """Return steps (blocks, weights) and float16 scales (blocks, 1) of least squared error; zeros fill the last."""
    block, least, most = BLOCKS[bits], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    flat = np.pad(weight.ravel(), (0, -weight.size % block)).reshape(-1, block)
    extreme = np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)
    best, errors = np.zeros_like(flat), np.full((len(flat), 1), np.inf)
    scales = np.zeros((len(flat), 1), np.float16)
    for clip in _CLIPS:
        # Its extreme value takes the one step that has no opposite, so a scale may be negative.
        scale = (extreme * clip / least).astype(np.float16)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.nan_to_num(np.clip(np.rint(flat / scale.astype(np.float32)), least, most))
        error = ((steps * scale - flat) ** 2).sum(1, keepdims=True)
        better = error < errors
        best, scales, errors = (np.where(better, *pair) for pair in ((steps, best), (scale, scales), (error, errors)))
    return best, scales


def _cast(name: str, output: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT)


def _scaled(graph: OpenGraph, name: str, shape: tuple[int, ...], scales: AnyArray) -> Stored:
    """Return the nodes from the steps of a weight, in blocks, to the weight itself."""
    flat, size = [f"{name}.blocks", graph.add_constant(f"{name}.whole", np.array([-1]))], int(np.prod(shape))
    ends = [graph.add_constant(f"{name}.{at}", np.array([value])) for at, value in (("first", 0), ("last", size))]
    return [
        _cast(graph.add_constant(f"{name}.scales", scales), f"{name}.scales.float"),
        helper.make_node("Mul", [f"{name}.steps", f"{name}.scales.float"], flat[:1]),
        helper.make_node("Reshape", flat, [f"{name}.padded"]),
        helper.make_node("Slice", [f"{name}.padded", *ends], [f"{name}.flat"]),
        helper.make_node("Reshape", [f"{name}.flat", graph.add_constant(f"{name}.shape", np.array(shape))], [name]),
    ]
