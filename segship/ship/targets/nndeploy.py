# SPDX-License-Identifier: Apache-2.0
"""Two ONNX graphs that nndeploy's own nodes run rightly, and what runs them: a workflow and a script.

nndeploy resizes without antialias, pads before it normalises, and scales points to a frame of 1024 whatever the
model's. So the encoder takes the picture's bytes and does all of that itself, and the decoder takes points of that
frame, and gives one mask of zeros and ones. Written for nndeploy 3.0.10, whose ONNX Runtime 1.18 reads opset 18.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from segship.backends import DEFAULT_BACKEND, installed_version
from segship.backends.opening import open_session
from segship.backends.session import RunOptions, Session
from segship.bundle import Bundle
from segship.bundle.artifacts import weights_file
from segship.bundle.evidence import Bar, require_passed
from segship.errors import InputError
from segship.files import write_file
from segship.promptable.task import EXACT_BAR
from segship.promptable.transforms import Preprocessing
from segship.ship.official import (
    Engine,
    ObjectCase,
    PictureCase,
    add_constants,
    compare,
    object_cases,
    official_decoder,
    official_decoder_spec,
    own_manifest,
    rename_tensor,
    set_interface,
)
from segship.ship.targets import ConvertOptions, Report
from segship.ship.weights import tool_versions
from segship.spec import GraphSpec, SamGeometry, TensorSpec

FRAME = 1024
"""Side of the frame that nndeploy's nodes scale points to and pad pictures to."""
MASK_SIDE = 256
OPSET, IR_VERSION = 18, 10
CHAINED_BAR: Bar = {"cosine": 0.9999, "mask_iou_mean": 0.99}
"""With the encoder's own resize, which is close to Pillow's and not equal: it rounds once, Pillow after each axis."""


def write(source: Bundle, folder: Path, options: ConvertOptions, report: Report) -> dict[str, Any]:
    """Write all files and return what is said of them; see `segship.ship.targets`."""
    manifest = own_manifest(source)
    geometry = manifest.geometry
    decoder = nndeploy_decoder(source)
    specs = {"encoder": encoder_spec(geometry), "decoder": decoder_spec(geometry)}
    paths = {part: folder / f"{manifest.architecture}.{part}.onnx" for part in specs}
    _write_encoder(source, manifest.preprocessing, specs["encoder"], paths["encoder"])
    write_file(paths["decoder"], decoder.SerializeToString())
    report("converted", [])
    run = RunOptions(backend=DEFAULT_BACKEND)
    with (
        open_session(paths["encoder"], specs["encoder"], run) as encoder,
        open_session(paths["decoder"], specs["decoder"], run) as session,
    ):
        # nndeploy gives no mask inputs, which do not survive two changes of size unharmed.
        pictures = [_without_masks(picture) for picture in object_cases(source, single_mask=True)]
        engine = Engine(partial(_encode, encoder), partial(_decode, session, geometry))
        rows = compare("nndeploy", pictures, engine, EXACT_BAR, CHAINED_BAR)
    report("nndeploy", rows)
    require_passed(rows)
    _write_programs(folder, paths)
    return {
        "ran": {"engine": f"onnxruntime {installed_version(DEFAULT_BACKEND)}", "own": False},
        "opset": OPSET,
        "graphs": {paths[part].name: asdict(spec) for part, spec in specs.items()},
        "tools": tool_versions(),
        "comparison": {"bar": EXACT_BAR, "chained_bar": CHAINED_BAR, "rows": [asdict(row) for row in rows]},
    }


def encoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of the encoder: RGB bytes of any size."""
    channels, grid = geometry.embedding_channels, geometry.embedding_size
    return GraphSpec(
        name="encoder",
        inputs=(TensorSpec("input", "uint8", (1, 3, "height", "width")),),
        outputs=(TensorSpec("image_embeddings", "float32", (1, channels, grid, grid)),),
    )


def decoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of the decoder: the official one for a single mask, with mask inputs of SAM's own size."""
    spec = official_decoder_spec(geometry, True)
    inputs = [
        TensorSpec(tensor.name, tensor.dtype, (1, 1, MASK_SIDE, MASK_SIDE)) if tensor.name == "mask_input" else tensor
        for tensor in spec.inputs
    ]
    return GraphSpec(spec.name, tuple(inputs), spec.outputs)


def _write_encoder(source: Bundle, preprocessing: Preprocessing, spec: GraphSpec, path: Path) -> None:
    found = source.verified(source.manifest.artifact("image_encoder"))
    # Weights in a file of their own stay there, under the name that the graph has for it.
    model = (
        onnx.load_model_from_string(found) if isinstance(found, bytes) else onnx.load(found, load_external_data=False)
    )
    _require_opset(model)
    prepend_preprocessing(model, preprocessing)
    set_interface(model, spec)
    write_file(path, model.SerializeToString())
    if isinstance(found, Path):
        sidecar = weights_file(found.name)
        shutil.copyfile(found.with_name(sidecar), path.with_name(sidecar))


def _require_opset(model: onnx.ModelProto) -> None:
    found = next(one.version for one in model.opset_import if one.domain == "")
    if found != OPSET or model.ir_version > IR_VERSION:
        message = (
            f"the graphs have opset {found} and IR version {model.ir_version}, and nndeploy is given {OPSET} and "
            f"{IR_VERSION}; export the checkpoint with opset {OPSET}"
        )
        raise InputError(message, code="bad_opset")


def prepend_preprocessing(model: onnx.ModelProto, preprocessing: Preprocessing) -> None:
    """Let an encoder take bytes of any size, in place: resize with antialias, normalise, pad.

    A picture of exactly 1024 x 1024 may be one that nndeploy's SAMGraph has put into its frame: black rows and columns
    at its end are padding then. Sizes are computed in float64, as `segship.promptable.transforms.resized_size` does.
    """
    side, planes = preprocessing.image_size, (1, 3, 1, 1)
    constants: dict[str, NDArray[Any]] = {
        "nn.zero": np.array(0, np.float32),
        "nn.one": np.array(1, np.float32),
        "nn.one_more": np.array([1], np.int64),
        "nn.but_rows": np.array([0, 1, 3], np.int64),
        "nn.but_columns": np.array([0, 1, 2], np.int64),
        "nn.frame": np.array([FRAME, FRAME], np.int64),
        "nn.origin": np.zeros(2, np.int64),
        "nn.axes": np.array([2, 3], np.int64),
        "nn.side": np.array(side, np.float64),
        "nn.half": np.array(0.5, np.float64),
        "nn.batch": np.array([1, 3], np.int64),
        "nn.mean": np.array(preprocessing.pixel_mean, np.float32).reshape(planes),
        "nn.std": np.array(preprocessing.pixel_std, np.float32).reshape(planes),
        "nn.sides": np.array([side, side], np.int64),
        "nn.no_pads": np.zeros(6, np.int64),
    }
    add_constants(model, constants)
    nodes = [*_used_size(), *_resized(), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _used_size() -> list[onnx.NodeProto]:
    """Return nodes from ``input`` to its pixels, their size, and the size of what is no padding, ``nn.used``."""
    node = helper.make_node

    def last_light(axis: str) -> list[onnx.NodeProto]:
        # Of a black picture the last one, so all of it counts.
        return [
            node("ReduceMax", ["nn.pixels", f"nn.but_{axis}"], [f"nn.brightest_{axis}"], keepdims=0),
            node("Clip", [f"nn.brightest_{axis}", "nn.zero", "nn.one"], [f"nn.light_{axis}"]),
            node("ArgMax", [f"nn.light_{axis}"], [f"nn.last_{axis}"], axis=0, keepdims=1, select_last_index=1),
        ]

    return [
        node("Cast", ["input"], ["nn.pixels"], to=TensorProto.FLOAT),
        node("Shape", ["input"], ["nn.size"], start=2),
        *last_light("rows"),
        *last_light("columns"),
        node("Concat", ["nn.last_rows", "nn.last_columns"], ["nn.last"], axis=0),
        node("Add", ["nn.last", "nn.one_more"], ["nn.without_black"]),
        node("Equal", ["nn.size", "nn.frame"], ["nn.equal"]),
        node("Cast", ["nn.equal"], ["nn.are_equal"], to=TensorProto.INT64),
        node("ReduceMin", ["nn.are_equal"], ["nn.both_equal"], keepdims=1),
        node("Cast", ["nn.both_equal"], ["nn.is_frame"], to=TensorProto.BOOL),
        node("Where", ["nn.is_frame", "nn.without_black", "nn.size"], ["nn.used"]),
    ]


def _resized() -> list[onnx.NodeProto]:
    """Return nodes from the pixels and sizes of `_used_size` to ``image``, as the encoder of a bundle takes it."""
    node = helper.make_node
    return [
        node("Slice", ["nn.pixels", "nn.origin", "nn.used", "nn.axes"], ["nn.picture"]),
        node("ReduceMax", ["nn.size"], ["nn.longest"], keepdims=1),
        node("Cast", ["nn.longest"], ["nn.longest_side"], to=TensorProto.DOUBLE),
        node("Div", ["nn.side", "nn.longest_side"], ["nn.scale"]),
        node("Cast", ["nn.used"], ["nn.used_sides"], to=TensorProto.DOUBLE),
        node("Mul", ["nn.used_sides", "nn.scale"], ["nn.scaled"]),
        node("Add", ["nn.scaled", "nn.half"], ["nn.shifted"]),
        node("Floor", ["nn.shifted"], ["nn.rounded"]),
        node("Cast", ["nn.rounded"], ["nn.whole"], to=TensorProto.INT64),
        node("Max", ["nn.whole", "nn.one_more"], ["nn.resized"]),
        node("Concat", ["nn.batch", "nn.resized"], ["nn.sizes"], axis=0),
        node(
            "Resize",
            ["nn.picture", "", "", "nn.sizes"],
            ["nn.smooth"],
            mode="linear",
            antialias=1,
            # As Pillow, which gives places outside the picture no weight; else borders are off by a dozen levels.
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        node("Round", ["nn.smooth"], ["nn.bytes"]),
        node("Sub", ["nn.bytes", "nn.mean"], ["nn.centred"]),
        node("Div", ["nn.centred", "nn.std"], ["nn.normalised"]),
        node("Sub", ["nn.sides", "nn.resized"], ["nn.rest"]),
        node("Concat", ["nn.no_pads", "nn.rest"], ["nn.pads"], axis=0),
        node("Pad", ["nn.normalised", "nn.pads"], ["image"]),
    ]


def nndeploy_decoder(bundle: Bundle) -> onnx.ModelProto:
    """Return the official decoder of a bundle for points in a frame of 1024, with masks of 0 and 1."""
    model = official_decoder(bundle, single_mask=True)
    _require_opset(model)
    geometry = own_manifest(bundle).geometry
    low_res = geometry.low_res_size
    constants: dict[str, NDArray[Any]] = {
        "nn.scale": np.array(geometry.image_size / FRAME, np.float32),
        "nn.threshold": np.array(0, np.float32),
        "nn.low_res": np.array([1, 1, low_res, low_res], np.int64),
    }
    add_constants(model, constants)
    for name in ("point_coords", "mask_input", "masks"):
        rename_tensor(model, name, f"nn.{name}")
    node = helper.make_node
    before = [
        node("Mul", ["point_coords", "nn.scale"], ["nn.point_coords"]),
        node("Resize", ["mask_input", "", "", "nn.low_res"], ["nn.mask_input"], mode="linear"),
    ]
    after = [
        node("Greater", ["nn.masks", "nn.threshold"], ["nn.above"]),
        node("Cast", ["nn.above"], ["masks"], to=TensorProto.FLOAT),
    ]
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    set_interface(model, decoder_spec(geometry))
    return model


def _without_masks(picture: PictureCase) -> PictureCase:
    unmasked = tuple(one for one in picture.objects if not one.prompts["has_mask_input"].any())
    return replace(picture, objects=unmasked)


def _encode(session: Session, picture: PictureCase) -> NDArray[Any]:
    pixels = np.ascontiguousarray(picture.pixels.transpose(2, 0, 1)[None])
    return session.run({"input": pixels})["image_embeddings"]


def _decode(
    session: Session, geometry: SamGeometry, embeddings: NDArray[Any], one: ObjectCase, picture: PictureCase
) -> Mapping[str, NDArray[Any]]:
    mask, scale = np.zeros((1, 1, MASK_SIDE, MASK_SIDE), np.float32), np.float32(FRAME / geometry.image_size)
    prompts = {**one.prompts, "point_coords": one.prompts["point_coords"] * scale, "mask_input": mask}
    size = np.array(picture.size_hw, np.float32)
    return session.run({"image_embeddings": embeddings, **prompts, "orig_im_size": size})


def _write_programs(folder: Path, paths: Mapping[str, Path]) -> None:
    encoder, decoder = paths["encoder"].name, paths["decoder"].name
    texts = {
        "workflow.json": json.dumps(workflow(encoder, decoder), indent=2) + "\n",
        "segment.py": SCRIPT.replace("ENCODER", encoder).replace("DECODER", decoder),
        "README.md": README,
    }
    for name, text in texts.items():
        write_file(folder / name, text.encode())


CPU = "kDeviceTypeCodeCpu:0"
PROMPTS = ("point_coords", "point_labels", "orig_im_size", "mask_input", "has_mask_input")


def workflow(encoder: str, decoder: str) -> dict[str, Any]:
    """Return the graph that ``nndeploy-run-json`` runs: picture.jpg to mask.png, in the folder that it is run in."""
    picture, prompt = [("", "read@output_0", "ndarray")], [("", "prompt@output_0", "SAMPointsParam")]
    mask = [("", "mask@output_0", "ndarray")]
    tensors = dict(zip(PROMPTS, (f"{name}@output" for name in PROMPTS), strict=True))
    click = {"points": [500, 375, 0, 0], "labels": [1, -1], "ori_width": 0, "ori_height": 0, "version": 1}
    answers = ("masks", "iou_predictions", "low_res_masks")
    nodes = [
        _node("codec::OpenCvImageDecode", "read", [], picture, "Input", path_="picture.jpg"),
        _node("preprocess::CvtNormTrans", "pixels", picture, [("", "pixels@output_0", "Tensor")], param=_TO_RGB),
        _infer("encode", encoder, {"input": "pixels@output_0"}, ["image_embeddings"]),
        _node("segment::SelectPointNode", "prompt", picture, prompt, param=click),
        _node(
            "segment::SAMPointNode", "points", prompt,
            [(name, tensors[name], "Tensor") for name in PROMPTS[:3]],
        ),
        _node(
            "segment::SAMMaskNode", "no_mask", prompt,
            [(name, tensors[name], "Tensor") for name in PROMPTS[3:]],
        ),
        _infer("decode", decoder, {"image_embeddings": "encode@image_embeddings", **tensors}, answers),
        _node(
            "segment::SAMPostProcess", "mask", [(name, f"decode@{name}", "Tensor") for name in answers],
            mask,
        ),
        _node("codec::OpenCvImageEncode", "write", mask, [], "Output", path_="mask.png"),
    ]  # fmt: skip
    urls: dict[str, list[str]] = {f"{kind}_url_": [] for kind in ("image", "video", "audio", "model", "other")}
    return {
        **_described("nndeploy.dag.Graph", "segment", [], [], "Intermediate"),
        "is_graph_": True,
        "parallel_type_": "kParallelTypeSequential",
        "is_inner_": False,
        "is_time_profile_": False,
        "is_debug_": False,
        "is_external_stream_": False,
        "is_graph_node_share_stream_": True,
        "queue_max_size_": 16,
        "is_loop_max_flag_": True,
        "loop_count_": -1,
        **urls,
        "node_repository_": nodes,
    }


_TO_RGB = {
    "src_pixel_type_": "kPixelTypeBGR",
    "dst_pixel_type_": "kPixelTypeRGB",
    "data_type_": "kDataTypeCodeUint8",
    "data_format_": "kDataFormatNCHW",
    "normalize_": False,
    "scale_": [1.0] * 4,
    "mean_": [0.0] * 4,
    "std_": [1.0] * 4,
}

Port = tuple[str, str, str]
"""What it is called in a node, the edge it lies on, its type."""


def _described(key: str, name: str, inputs: Sequence[Port], outputs: Sequence[Port], kind: str) -> dict[str, Any]:
    def ports(given: Sequence[Port]) -> list[dict[str, str]]:
        return [{"desc_": desc, "name_": edge, "type_": type_} for desc, edge, type_ in given]

    return {
        "key_": key,
        "name_": name,
        "device_type_": CPU,
        "inputs_": ports(inputs),
        "outputs_": ports(outputs),
        "node_type_": kind,
    }


def _node(
    key: str,
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    kind: str = "Intermediate",
    *,
    param: Mapping[str, Any] | None = None,
    path_: str | None = None,
) -> dict[str, Any]:
    extra = {} if path_ is None else {"io_type_": "Image", "path_": path_}
    return {**_described(f"nndeploy::{key}", name, inputs, outputs, kind), "param_": dict(param or {}), **extra}


def _infer(name: str, file: str, inputs: Mapping[str, str], outputs: Sequence[str]) -> dict[str, Any]:
    param = {
        "model_type_": "kModelTypeOnnx",
        "is_path_": True,
        "model_value_": [file],
        "external_model_data_": [""],
        "device_type_": CPU,
        "num_thread_": 4,
        "input_num_": len(inputs),
        "input_name_": list(inputs),
        "output_num_": len(outputs),
        "output_name_": list(outputs),
        "precision_type_": "kPrecisionTypeFp32",
        "is_dynamic_shape_": False,
    }
    ports = [(tensor, edge, "Tensor") for tensor, edge in inputs.items()]
    made = [(tensor, f"{name}@{tensor}", "Tensor") for tensor in outputs]
    kind = {"type_": "kInferenceTypeOnnxRuntime", "is_dynamic_input_": True, "is_dynamic_output_": True}
    return {**_node("infer::Infer", name, ports, made, param=param), **kind}


SCRIPT = '''"""Segment a picture with nndeploy's SAMGraph: python segment.py picture.jpg mask.png --point 500,375"""

import argparse

import cv2
import nndeploy._nndeploy_internal as internal
import nndeploy.dag
import nndeploy.segment
import numpy as np
from nndeploy.base import DeviceType, InferenceType, ModelType


class Segment(nndeploy.dag.Graph):
    def __init__(self, points, labels):
        super().__init__("segment")
        self.set_input_type(np.ndarray)
        self.set_output_type(np.ndarray)
        self.select = internal.segment.SelectPointNode("select")
        self.select.setPoints(points, labels)
        self.sam = nndeploy.segment.SAMGraph("sam")
        cpu, models = DeviceType("cpu"), ["ENCODER", "DECODER"]
        self.sam.setInferParam(InferenceType.OnnxRuntime, cpu, ModelType.Onnx, True, models)

    def forward(self, inputs):
        return self.sam([inputs[0], self.select([inputs[0]])[0]])


def numbers(text):
    return [float(number) for number in text.split(",")]


parser = argparse.ArgumentParser()
parser.add_argument("picture")
parser.add_argument("mask")
parser.add_argument("--point", type=numbers, action="append", default=[], help="X,Y or X,Y,LABEL")
parser.add_argument("--box", type=numbers, help="X0,Y0,X1,Y1")
given = parser.parse_args()
points = [number for point in given.point for number in point[:2]]
labels = [int(point[2]) if len(point) > 2 else 1 for point in given.point]
# A box is two more points; without one a point that is none belongs to the prompt.
points += given.box or [0.0, 0.0]
labels += [2, 3] if given.box else [-1]
picture, graph, edge = cv2.imread(given.picture), Segment(points, labels), nndeploy.dag.Edge("image")
edge.set(picture)
# All of it is kept until the mask is written: nndeploy does not hold what Python drops.
answers = graph([edge])
cv2.imwrite(given.mask, answers[0].get_graph_output())
'''

README = """# SAM for nndeploy

Written for nndeploy 3.0.10 (`pip install nndeploy==3.0.10`). Run both from this folder; a mask is 255 inside.

    nndeploy-run-json --json_file workflow.json --name segment      # picture.jpg to mask.png
    python segment.py picture.jpg mask.png --point 500,375

The command ends with status 0 whatever happens: look for mask.png.

The nodes of workflow.json, between reading and writing:

| node | does |
|---|---|
| CvtNormTrans | BGR to RGB, bytes as they are: the encoder resizes, normalises and pads itself |
| Infer `encode` | the picture to its embedding |
| SelectPointNode, SAMPointNode, SAMMaskNode | the prompt: points scaled to a frame of 1024, and no mask input |
| Infer `decode` | embedding and prompt to one mask of 0 and 1 |
| SAMPostProcess | that times 255 |

The prompt stands in `param_` of the node `prompt`: `points` as x, y, x, y, ... in pixels of the picture, and a label
for each: 1 inside, 0 outside. To clicks alone belongs the point 0, 0 with label -1. A box is its corners x0, y0 and
x1, y1 with labels 2 and 3, and then no such point.

`parallel_type_` in workflow.json: `kParallelTypeSequential` and `kParallelTypeTask` give the same mask.
`kParallelTypePipeline` hangs with these nodes. The command reads its option `--parallel_type` and does not use it.

SAMGraph, in segment.py, puts pictures into a frame of 1024 x 1024 with black padding, without antialias. So the encoder
takes black rows and columns at the end of a picture of exactly that size for padding.
"""
