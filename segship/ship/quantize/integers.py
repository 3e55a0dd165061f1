# SPDX-License-Identifier: Apache-2.0
"""int8: layers whose weights and inputs are integers, as QuantizeLinear and DequantizeLinear around them.

A layer is a product with constant weights: MatMul, Gemm, Conv. Weights are signed, symmetric, with a scale for every
output channel; what goes in is unsigned with a zero point and one scale for the tensor, because ONNX Runtime's products
of signed by signed are 11 times slower on CPUs. Everything between the layers stays float32, and is bfloat16 where
OpenVINO runs it so. Both engines turn the nodes around a layer into one integer product.

Ranges are those of least squared error over the recorded histogram, after A White Paper on Neural Network Quantization
(Nagel et al., arXiv 2106.08295, section 3.1). Channels of large magnitude that would coarsen all others of a layer
behind a LayerNorm are evened out by SmoothQuant (Xiao et al., arXiv 2211.10438): the norm divides them, the weights
multiply.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from segship.arrays import AnyArray, FloatArray
from segship.ship.quantize.opened import OpenGraph
from segship.ship.quantize.ranges import Recorded

LEVELS = 255
"""Steps of an unsigned byte."""
CLIPS = np.linspace(1.0, 0.3, 36)
"""Parts of the recorded range that are tried."""
WEIGHT_CLIPS = np.linspace(1.0, 0.7, 13)
SMOOTHING = 0.5
"""SmoothQuant's alpha: how much of the unevenness goes into the weights."""
UNEVEN = 8.0
_LEAST_SCALE = 1e-12


@dataclass(frozen=True, slots=True)
class Layer:
    """A product with constant weights.

    Attributes
    ----------
    name
        Of its output tensor: what ranks and manifests call it.
    kind
        ``MatMul``, ``Gemm`` or ``Conv``.
    input, weight
        Tensors.
    axis
        Of the weight: its output channels.
    bias, output
        Of convolutions: the constant that is added, and what comes out, behind a Relu where one follows. Engines
        make integers of a convolution only where those are integers, too.
    """

    name: str
    kind: str
    input: str
    weight: str
    axis: int
    bias: str = ""
    output: str = ""


def layers_of(graph: OpenGraph) -> list[Layer]:
    """Return the layers of a graph, in the order in which they run."""
    users = graph.users()
    found = (_layer(graph, node, users) for node in graph.nodes)
    return [layer for layer in found if layer is not None]


def _layer(graph: OpenGraph, node: onnx.NodeProto, users: Mapping[str, list[onnx.NodeProto]]) -> Layer | None:
    weight = graph.weights.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None or weight.dtype != np.float32:
        return None
    name, kind = node.output[0], node.op_type
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if kind == "MatMul" and weight.ndim == 2:
        return Layer(name, kind, node.input[0], node.input[1], axis=1)
    if kind == "Gemm" and not attributes.get("transA", 0):
        return Layer(name, kind, node.input[0], node.input[1], axis=0 if attributes.get("transB", 0) else 1)
    bias = node.input[2] if len(node.input) > 2 else ""
    if kind != "Conv" or (bias and graph.constant(bias) is None):
        return None
    behind = users.get(name, [])
    output = behind[0].output[0] if [user.op_type for user in behind] == ["Relu"] else name
    return Layer(name, kind, node.input[0], node.input[1], axis=0, bias=bias, output=output)


def activation_scale(recorded: Recorded) -> tuple[float, int]:
    """Return the scale and zero point of an unsigned byte for a tensor: those of least squared error."""
    low, high = min(recorded.low, 0.0), max(recorded.high, 0.0)
    used = np.flatnonzero(recorded.counts)
    counts, centers = recorded.counts[used], recorded.centers[used]
    best = (np.inf, 1.0, 0)
    for clip in CLIPS:
        # A sure range holds zero, which padding is made of.
        scale = max((high - low) * clip / LEVELS, _LEAST_SCALE)
        zero = int(np.clip(round(-low * clip / scale), 0, LEVELS))
        made = (np.clip(np.rint(centers / scale) + zero, 0, LEVELS) - zero) * scale
        error = float((counts * (made - centers) ** 2).sum())
        best = min(best, (error, scale, zero))
    return best[1], best[2]


def quantize_weight(weight: FloatArray, axis: int) -> tuple[AnyArray, FloatArray]:
    """Return weights as signed bytes, and the scale of every channel of an axis: those of least squared error."""
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.maximum(np.abs(rows).max(1), _LEAST_SCALE)
    scales, errors = largest / 127, np.full(len(rows), np.inf)
    for clip in WEIGHT_CLIPS:
        tried = largest * clip / 127
        made = np.clip(np.rint(rows / tried[:, None]), -127, 127) * tried[:, None]
        found = ((made - rows) ** 2).sum(1)
        better = found < errors
        scales, errors = np.where(better, tried, scales), np.where(better, found, errors)
    scales = scales.astype(np.float32)
    wide = scales.reshape([-1 if place == axis else 1 for place in range(weight.ndim)])
    return np.clip(np.rint(weight / wide), -127, 127).astype(np.int8), scales


@dataclass(frozen=True, slots=True)
class Integers:
    """What layers of a graph become when they are quantized; which of them are is `quantized`'s to say.

    Attributes
    ----------
    graph
        In float32.
    layers
        By name.
    scales
        Tensor that goes into or out of layers -> scale and zero point.
    weights
        Weight -> signed bytes and the scale of every channel.
    """

    graph: OpenGraph
    layers: dict[str, Layer]
    scales: dict[str, tuple[float, int]]
    weights: dict[str, tuple[AnyArray, FloatArray]]

    def quantized(self, names: Collection[str]) -> OpenGraph:
        """Return the graph in which the named layers compute with integers, and all else is as it was."""
        made = self.graph.copied()
        # Tensor or weight -> its name once it was bytes.
        back: dict[str, str] = {}
        closing: set[str] = set()
        nodes: list[onnx.NodeProto] = []
        for node in made.nodes:
            layer = self.layers.get(node.output[0])
            if layer is not None and layer.name in names:
                nodes += self._open(made, layer, back)
                node.input[0], node.input[1] = back[layer.input], back[layer.weight]
                if layer.bias:
                    node.input[2] = back[layer.bias]
                closing.add(layer.output)
            nodes.append(node)
            if node.output[0] in closing:
                name = node.output[0]
                node.output[0], back[name] = f"{name}.exact", name
                nodes += self._through_bytes(made, name, node.output[0], name)
        made.replace_nodes(nodes)
        return made

    def _open(self, graph: OpenGraph, layer: Layer, back: dict[str, str]) -> list[onnx.NodeProto]:
        """Return the nodes that a layer needs before it, those that are not there yet."""
        nodes: list[onnx.NodeProto] = []
        if layer.input not in back:
            back[layer.input] = f"{layer.input}.back"
            nodes += self._through_bytes(graph, layer.input, layer.input, back[layer.input])
        if layer.weight not in back:
            back[layer.weight] = f"{layer.weight}.float"
            nodes.append(_constant(graph, layer.weight, *self.weights[layer.weight], axis=layer.axis))
        if layer.bias and layer.bias not in back:
            back[layer.bias] = f"{layer.bias}.float"
            # Sums of products have the product of both scales, and so has what is added to them.
            scales = np.float32(self.scales[layer.input][0]) * self.weights[layer.weight][1]
            bias = np.rint(_required(graph, layer.bias) / scales.astype(np.float64))
            limits = np.iinfo(np.int32)
            steps = np.clip(bias, limits.min, limits.max).astype(np.int32)
            nodes.append(_constant(graph, layer.bias, steps, scales, axis=0))
        return nodes

    def _through_bytes(self, graph: OpenGraph, name: str, source: str, target: str) -> list[onnx.NodeProto]:
        """Return the nodes that make a tensor unsigned bytes and floats again."""
        scale, zero = self.scales[name]
        constants = [
            graph.add_constant(f"{name}.scale", np.array(scale, np.float32)),
            graph.add_constant(f"{name}.zero", np.array(zero, np.uint8)),
        ]
        return [
            helper.make_node("QuantizeLinear", [source, *constants], [f"{name}.bytes"]),
            helper.make_node("DequantizeLinear", [f"{name}.bytes", *constants], [target]),
        ]


def _constant(graph: OpenGraph, name: str, steps: AnyArray, scales: FloatArray, *, axis: int) -> onnx.NodeProto:
    """Add a constant as integers, and return the node that makes floats of it."""
    inputs = [graph.add_constant(f"{name}.steps", steps), graph.add_constant(f"{name}.scales", scales)]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], axis=axis)


def _required(graph: OpenGraph, name: str) -> AnyArray:
    constant = graph.constant(name)
    assert constant is not None, f"{name} is computed"
    return constant


def to_integers(graph: OpenGraph, recorded: Mapping[str, Recorded]) -> Integers:
    """Choose scales for all layers of a graph from what went into and out of them; see `recorded_for`."""
    layers = {layer.name: layer for layer in layers_of(graph)}
    scales = {name: activation_scale(recorded[name]) for name in recorded_for(graph)}
    weights = {layer.weight: quantize_weight(graph.weights[layer.weight], layer.axis) for layer in layers.values()}
    return Integers(graph, layers, scales, weights)


def recorded_for(graph: OpenGraph) -> list[str]:
    """Return the tensors whose ranges layers need."""
    layers = layers_of(graph)
    return list(dict.fromkeys(name for layer in layers for name in (layer.input, layer.output) if name))


def smoothed(graph: OpenGraph, recorded: Mapping[str, Recorded]) -> OpenGraph:
    """Even out channels between norms and the products behind them; the graph answers as before but for rounding.

    Only norms are changed whose output goes into products alone, and only where a channel is `UNEVEN` times as large as
    the usual one: where all are alike there is nothing to gain.
    """
    made, users = graph.copied(), graph.users()
    by_output = {layer.name: layer for layer in layers_of(graph)}
    for node in graph.nodes:
        if node.op_type != "LayerNormalization" or len(node.input) < 3:
            continue
        behind = products_behind(node.output[0], users, by_output)
        gain, offset = (graph.constant(name) for name in node.input[1:3])
        own = {*node.input[1:3], *(layer.weight for layer in behind)}
        if not behind or gain is None or offset is None or any(len(users[name]) > 1 for name in own):
            continue
        large = np.maximum.reduce([_channels(recorded[layer.input]) for layer in behind])
        if len(large) != len(gain) or large.max() < UNEVEN * np.median(large):
            continue
        taken = np.maximum.reduce([np.abs(graph.weights[layer.weight]).max(layer.axis) for layer in behind])
        share = np.maximum(large, _LEAST_SCALE) ** SMOOTHING / np.maximum(taken, _LEAST_SCALE) ** (1 - SMOOTHING)
        share = (share / np.exp(np.log(share).mean())).astype(np.float32)
        made.replace_constant(node.input[1], gain / share)
        made.replace_constant(node.input[2], offset / share)
        for layer in behind:
            made.replace_constant(layer.weight, graph.weights[layer.weight] * np.expand_dims(share, layer.axis))
    return made


def _channels(recorded: Recorded) -> FloatArray:
    """Return the largest magnitude of every channel."""
    return np.maximum(np.abs(recorded.channel_min), np.abs(recorded.channel_max))


def products_behind(name: str, users: Mapping[str, list[onnx.NodeProto]], layers: Mapping[str, Layer]) -> list[Layer]:
    """Return the products that a norm's output goes into, as it is or in other rows; none where it goes elsewhere."""
    found: list[Layer] = []
    for node in users.get(name, []):
        layer = layers.get(node.output[0])
        if layer is not None and layer.kind != "Conv" and layer.input == name:
            found.append(layer)
        elif node.op_type == "Reshape" and (behind := products_behind(node.output[0], users, layers)):
            found += behind
        else:
            return []
    return found
