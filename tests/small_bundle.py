# SPDX-License-Identifier: Apache-2.0
"""A bundle of two tiny graphs that keep the contracts, for tests of everything that stands on bundles."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segship.bundle import write_bundle
from segship.bundle.manifest import CheckpointFile
from segship.promptable.manifest import PromptableManifest
from segship.promptable.prompts import PromptRules
from segship.promptable.transforms import Preprocessing
from segship.spec import SamGeometry, image_encoder_spec, mask_decoder_spec

GEOMETRY = SamGeometry(image_size=32, embedding_channels=4, embedding_size=2)


def make_model(nodes, inputs, outputs, initializers=(), *, opset=17):
    """Build a checked-in-shape model; inputs and outputs are contracts."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [_value(tensor) for tensor in inputs],
        [_value(tensor) for tensor in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in dict(initializers).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _value(tensor):
    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), list(tensor.shape)
    )


def encoder_model():
    spec = image_encoder_spec(GEOMETRY)
    weights = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    conv = helper.make_node("Conv", ["image", "weight"], ["image_embeddings"], strides=[16, 16])
    return make_model([conv], spec.inputs, spec.outputs, {"weight": weights})


def decoder_model():
    spec = mask_decoder_spec(GEOMETRY)
    four = np.arange(1, 5, dtype=np.float32)
    tokens, sum_axes = {"row": four[None], "plane": four[None, :, None, None]}, {"axes": np.array([1], np.int64)}
    nodes = [
        helper.make_node("ReduceSum", ["point_labels", "axes"], ["labels"], keepdims=1),
        helper.make_node("Mul", ["labels", "row"], ["iou_predictions"]),
        helper.make_node("ReduceMean", ["image_embeddings"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mask_input", "mean"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "plane"], ["low_res_masks"]),
    ]
    return make_model(nodes, spec.inputs, spec.outputs, {**tokens, **sum_axes})


def decoder_inputs(objects=2, points=3, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"objects": objects, "points": points}
    shapes = {
        tensor.name: [sizes.get(size, size) for size in tensor.shape] for tensor in mask_decoder_spec(GEOMETRY).inputs
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def small_manifest(geometry=GEOMETRY, **changes):
    fields = {
        "family": "sam",
        "architecture": "custom",
        "geometry": geometry,
        "preprocessing": Preprocessing(geometry.image_size, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        "prompt_rules": PromptRules(padding_point="without_box"),
        "checkpoint": CheckpointFile(name="tiny.pth", bytes=10, sha256="a" * 64, licence="Apache-2.0", known=False),
        "tools": {"onnx": onnx.__version__},
        "created": "2026-11-21T00:00:00+00:00",
    }
    return PromptableManifest(**{**fields, **changes})


def save_models(folder, *, external=False, encoder=None, decoder=None):
    """Save both graphs and return their paths by name; ``external`` puts the encoder's weights into a sidecar."""
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.onnx" for name in ("image_encoder", "mask_decoder")}
    settings = {"save_as_external_data": True, "location": "image_encoder.onnx.data", "size_threshold": 0}
    onnx.save_model(encoder or encoder_model(), str(paths["image_encoder"]), **(settings if external else {}))
    onnx.save_model(decoder or decoder_model(), str(paths["mask_decoder"]))
    return paths


def make_bundle(folder, *, external=False, manifest=None, name="bundle"):
    """Write a bundle below a folder and return it."""
    paths = save_models(folder / "graphs", external=external)
    return write_bundle(folder / name, manifest or small_manifest(), paths)


def raw_tensor(name, dtype=TensorProto.FLOAT, dims=(1,), **fields):
    """Build a TensorProto field by field, so that it may contradict itself."""
    tensor = TensorProto(name=name, data_type=dtype, dims=dims)
    external = fields.pop("external_data", ())
    for key, value in fields.items():
        setattr(tensor, key, value)
    for key, value in external:
        tensor.external_data.add(key=key, value=value)
    return tensor
