# SPDX-License-Identifier: Apache-2.0
"""Put the reference's mask upscaling into a decoder graph: output ``masks`` at the original image's size.

The size of that output depends on the value of the input ``orig_im_size``, which torch's exporter cannot trace, so the
nodes are written here. They follow segment_anything/utils/onnx.py mask_postprocessing: bilinear to the model frame, cut
off the padding, bilinear to the original size. Sizes are floor(side * scale + 0.5) with scale = S / longest side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.spec import GraphSpec


def append_upscaling(model: onnx.ModelProto, spec: GraphSpec, image_size: int) -> onnx.ModelProto:
    """Turn a cut decoder into the official one, in place.

    Parameters
    ----------
    model
        Outputs ``iou_predictions`` and ``low_res_masks`` of one object.
    spec
        The contract to reach, with the input ``orig_im_size`` and the output ``masks``.
    image_size
        Side S of the model frame, in pixels.
    """
    graph = model.graph
    graph.initializer.extend(_constants(spec, image_size))
    graph.node.extend(_nodes())
    size_input = spec.inputs[-1]
    graph.input.append(helper.make_tensor_value_info(size_input.name, TensorProto.FLOAT, list(size_input.shape)))
    masks = spec.outputs[0]
    outputs = {value.name: value for value in graph.output}
    outputs[masks.name] = helper.make_tensor_value_info(masks.name, TensorProto.FLOAT, list(masks.shape))
    ordered = [outputs[tensor.name] for tensor in spec.outputs]
    del graph.output[:]
    graph.output.extend(ordered)
    return model


def _constants(spec: GraphSpec, image_size: int) -> list[onnx.TensorProto]:
    masks = spec.outputs[0].shape[1]
    values: dict[str, NDArray[Any]] = {
        "upscale.frame_side": np.array(image_size, np.float32),
        "upscale.half": np.array(0.5, np.float32),
        "upscale.batch_and_masks": np.array([1, masks], np.int64),
        "upscale.frame_sizes": np.array([1, masks, image_size, image_size], np.int64),
        "upscale.origin": np.array([0, 0], np.int64),
        "upscale.axes": np.array([2, 3], np.int64),
    }
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def _nodes() -> list[onnx.NodeProto]:
    def resize(source: str, sizes: str, result: str) -> onnx.NodeProto:
        return helper.make_node(
            "Resize", [source, "", "", sizes], [result], mode="linear", coordinate_transformation_mode="half_pixel"
        )

    node = helper.make_node
    # Max over two one-element slices instead of ReduceMax, whose form changed between opsets.
    return [
        node("Split", ["orig_im_size"], ["upscale.height", "upscale.width"], axis=0, num_outputs=2),
        node("Max", ["upscale.height", "upscale.width"], ["upscale.longest"]),
        node("Div", ["upscale.frame_side", "upscale.longest"], ["upscale.scale"]),
        node("Mul", ["orig_im_size", "upscale.scale"], ["upscale.scaled"]),
        node("Add", ["upscale.scaled", "upscale.half"], ["upscale.shifted"]),
        node("Floor", ["upscale.shifted"], ["upscale.rounded"]),
        node("Cast", ["upscale.rounded"], ["upscale.input_size"], to=TensorProto.INT64),
        node("Cast", ["orig_im_size"], ["upscale.original_size"], to=TensorProto.INT64),
        node("Concat", ["upscale.batch_and_masks", "upscale.original_size"], ["upscale.final_sizes"], axis=0),
        resize("low_res_masks", "upscale.frame_sizes", "upscale.frame"),
        node("Slice", ["upscale.frame", "upscale.origin", "upscale.input_size", "upscale.axes"], ["upscale.cut"]),
        resize("upscale.cut", "upscale.final_sizes", "masks"),
    ]
