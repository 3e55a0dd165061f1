# SPDX-License-Identifier: Apache-2.0
"""The reference's ONNX decoder: its contract, its graph made from a bundle's, and its answers held against a bundle's.

Follows segment_anything/utils/onnx.py SamOnnxModel: one object, official names, masks at the size of the image. Many
programs were written for it. Needs onnx and no torch; `segship.ship.contracts` traces the same from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.arrays import FloatArray, Pixels, Size
from segship.backends import DEFAULT_BACKEND
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions, Session
from segship.bundle import Bundle
from segship.bundle.evidence import Bar, Row, mask_row, tensor_row
from segship.errors import InputError
from segship.images.comparison import comparison_images
from segship.masks.scores import mask_iou
from segship.promptable.manifest import PromptableManifest
from segship.promptable.task import prompt_tensors
from segship.promptable.transforms import prepare_image, resized_size, upscale_mask
from segship.spec import LABEL_EMPTY, MASK_TOKENS, GraphSpec, SamGeometry, TensorSpec

Arrays = Mapping[str, NDArray[Any]]

# The reference's weight of the prompt count when it chooses between the single mask and the ambiguous three.
SINGLE_MASK_REWARD = 1000.0
SINGLE_MASK_POINTS = 2.5


# Contracts


def one_object_decoder_spec(geometry: SamGeometry, single_mask: bool) -> GraphSpec:
    """Return the contract of the official decoder before it resizes: that of the Ascend guide."""
    channels, grid, low_res = geometry.embedding_channels, geometry.embedding_size, geometry.low_res_size
    masks = 1 if single_mask else MASK_TOKENS
    return GraphSpec(
        name="decoder",
        inputs=(
            TensorSpec("image_embeddings", "float32", (1, channels, grid, grid)),
            TensorSpec("point_coords", "float32", (1, "num_points", 2)),
            TensorSpec("point_labels", "float32", (1, "num_points")),
            TensorSpec("mask_input", "float32", (1, 1, low_res, low_res)),
            TensorSpec("has_mask_input", "float32", (1,)),
        ),
        outputs=(
            TensorSpec("iou_predictions", "float32", (1, masks)),
            TensorSpec("low_res_masks", "float32", (1, masks, low_res, low_res)),
        ),
    )


def official_decoder_spec(geometry: SamGeometry, single_mask: bool) -> GraphSpec:
    """Return the contract of the reference's ONNX decoder; its masks have the size of the original image."""
    cut = one_object_decoder_spec(geometry, single_mask)
    scores, low_res = cut.outputs
    masks = TensorSpec("masks", "float32", (1, scores.shape[1], "height", "width"))
    return GraphSpec(
        name="decoder",
        inputs=(*cut.inputs, TensorSpec("orig_im_size", "float32", (2,))),
        outputs=(masks, scores, low_res),
    )


# Graphs


def own_manifest(bundle: Bundle) -> PromptableManifest:
    """Return the manifest of a bundle of segship's own promptable graphs.

    Raises
    ------
    InputError
        ``foreign_graphs`` when the bundle's decoder is another program's.
    """
    manifest = bundle.manifest
    if not isinstance(manifest, PromptableManifest) or manifest.foreign is not None:
        message = (
            f"{bundle.path} has graphs of another program, and this is made of segship's own; export the checkpoint"
        )
        raise InputError(message, code="foreign_graphs")
    return manifest


def official_decoder(bundle: Bundle, *, single_mask: bool) -> onnx.ModelProto:
    """Return the official decoder, made of a bundle's ``mask_decoder``; only of `own_manifest`."""
    manifest = own_manifest(bundle)
    model = read_model(bundle, "mask_decoder")
    spec = official_decoder_spec(manifest.geometry, single_mask)
    if single_mask:
        append_single_mask(model)
    append_upscaling(model, spec, manifest.geometry.image_size)
    set_interface(model, spec)
    return model


def read_model(bundle: Bundle, graph: str) -> onnx.ModelProto:
    """Return a graph of a bundle in fp32, checked, with all its weights."""
    found = bundle.verified(bundle.manifest.artifact(graph))
    return onnx.load_model_from_string(found) if isinstance(found, bytes) else onnx.load(found)


def set_interface(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """State inputs and outputs anew, in the order and with the sizes of a contract; what lies between is left to it."""

    def values(tensors: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
        types = [helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)) for tensor in tensors]
        return [
            helper.make_tensor_value_info(tensor.name, kind, list(tensor.shape))
            for tensor, kind in zip(tensors, types, strict=True)
        ]

    graph = model.graph
    # Sizes that were inferred for any number of objects.
    for part in (graph.input, graph.output, graph.value_info):
        del part[:]
    graph.input.extend(values(spec.inputs))
    graph.output.extend(values(spec.outputs))


def rename_tensor(model: onnx.ModelProto, name: str, new: str) -> None:
    """Give a tensor inside a graph, or one that it takes, another name wherever it stands."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, found in enumerate(names):
                if found == name:
                    names[place] = new


def add_constants(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Put arrays into a graph by their names."""
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())


def append_single_mask(model: onnx.ModelProto) -> None:
    """Let a decoder of four masks choose one by the reference's rule, which reads the number of points, in place.

    The nodes of `segship.ship.contracts.select_single_mask`: a weighted sum with weights 0 and 1.
    """
    reward = np.zeros((1, MASK_TOKENS), np.float32)
    reward[:, 0] = SINGLE_MASK_REWARD
    constants = {
        "select.points_axis": np.array(1, np.int64),
        "select.limit": np.array(SINGLE_MASK_POINTS, np.float32),
        "select.reward": reward,
        "select.tokens": np.arange(MASK_TOKENS, dtype=np.int64)[None],
        "select.plane": np.array([2, 3], np.int64),
        "select.token_axis": np.array([1], np.int64),
    }
    add_constants(model, constants)
    for name in ("iou_predictions", "low_res_masks"):
        rename_tensor(model, name, f"select.{name}")
    node = helper.make_node
    model.graph.node.extend([
        node("Shape", ["point_labels"], ["select.shape"]),
        node("Gather", ["select.shape", "select.points_axis"], ["select.count"], axis=0),
        node("Cast", ["select.count"], ["select.points"], to=TensorProto.FLOAT),
        node("Sub", ["select.points", "select.limit"], ["select.excess"]),
        node("Mul", ["select.excess", "select.reward"], ["select.rewards"]),
        node("Add", ["select.iou_predictions", "select.rewards"], ["select.ranks"]),
        node("ArgMax", ["select.ranks"], ["select.best"], axis=1, keepdims=1),
        node("Equal", ["select.tokens", "select.best"], ["select.is_best"]),
        node("Cast", ["select.is_best"], ["select.chosen"], to=TensorProto.FLOAT),
        node("Mul", ["select.iou_predictions", "select.chosen"], ["select.score"]),
        node("ReduceSum", ["select.score", "select.token_axis"], ["iou_predictions"], keepdims=1),
        node("Unsqueeze", ["select.chosen", "select.plane"], ["select.planes"]),
        node("Mul", ["select.low_res_masks", "select.planes"], ["select.mask"]),
        node("ReduceSum", ["select.mask", "select.token_axis"], ["low_res_masks"], keepdims=1),
    ])  # fmt: skip


def append_upscaling(model: onnx.ModelProto, spec: GraphSpec, image_size: int) -> onnx.ModelProto:
    """Turn the cut decoder into the official one, in place, whose contract is ``spec``.

    The size of its ``masks`` depends on the value of ``orig_im_size``, which torch's exporter cannot trace. Follows
    segment_anything/utils/onnx.py mask_postprocessing.
    """
    graph = model.graph
    add_constants(model, _constants(spec, image_size))
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


def _constants(spec: GraphSpec, image_size: int) -> dict[str, NDArray[Any]]:
    masks = spec.outputs[0].shape[1]
    return {
        "upscale.frame_side": np.array(image_size, np.float32),
        "upscale.half": np.array(0.5, np.float32),
        "upscale.one_each": np.array([1, 1], np.int64),
        "upscale.batch_and_masks": np.array([1, masks], np.int64),
        "upscale.frame_sizes": np.array([1, masks, image_size, image_size], np.int64),
        "upscale.origin": np.array([0, 0], np.int64),
        "upscale.axes": np.array([2, 3], np.int64),
    }


def _nodes() -> list[onnx.NodeProto]:
    def resize(source: str, sizes: str, result: str) -> onnx.NodeProto:
        return helper.make_node(
            "Resize", [source, "", "", sizes], [result], mode="linear", coordinate_transformation_mode="half_pixel"
        )

    node = helper.make_node
    # Max over two one-element slices instead of ReduceMax, whose form changed between opsets, as that of a Split that
    # counts its outputs.
    return [
        node("Split", ["orig_im_size", "upscale.one_each"], ["upscale.height", "upscale.width"], axis=0),
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


# Comparison


@dataclass(frozen=True, slots=True, eq=False)
class ObjectCase:
    """One object: the decoder's prompt tensors, and what the bundle answers.

    ``scores`` is (1, M) and ``logits`` (1, M, 4h, 4w), both float32; ``masks`` is (M, H, W) bool, in the picture.
    """

    prompts: Arrays
    scores: FloatArray
    logits: FloatArray
    masks: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PictureCase:
    """One picture, as pixels (H, W, 3) and as the encoder's input, and the objects that are asked for in it."""

    pixels: Pixels
    image: FloatArray
    image_embeddings: FloatArray
    objects: tuple[ObjectCase, ...]

    @property
    def size_hw(self) -> Size:
        """Height and width of the picture."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, slots=True)
class Engine:
    """An encoder and a decoder of one object somewhere else, by what they make of a case.

    ``encode`` gives (1, C, h, w) float32; ``decode`` the official decoder's outputs by name, for an embedding, an
    object and its picture.
    """

    encode: Callable[[PictureCase], FloatArray]
    decode: Callable[[FloatArray, ObjectCase, PictureCase], Mapping[str, NDArray[Any]]]


def object_cases(bundle: Bundle, *, single_mask: bool) -> tuple[PictureCase, ...]:
    """Return every object of the comparison's pictures and mixes, answered by the bundle in ONNX Runtime in fp32."""
    manifest = own_manifest(bundle)
    with ExitStack() as stack:
        opened = open_sessions(bundle, RunOptions(backend=DEFAULT_BACKEND))
        sessions = {name: stack.enter_context(session) for name, session in opened.items()}
        return tuple(_picture_case(pixels, manifest, sessions, single_mask) for pixels in comparison_images())


def _picture_case(
    pixels: Pixels, manifest: PromptableManifest, sessions: Mapping[str, Session], single: bool
) -> PictureCase:
    geometry, size_hw = manifest.geometry, (pixels.shape[0], pixels.shape[1])
    image = prepare_image(pixels, manifest.preprocessing)
    embeddings = sessions["image_encoder"].run({"image": image})["image_embeddings"]
    mixes = prompt_tensors(size_hw, geometry.image_size, geometry.low_res_size, manifest.prompt_rules)
    objects = []
    for prompts in (one for tensors in mixes.values() for one in _objects(tensors)):
        found = sessions["mask_decoder"].run({"image_embeddings": embeddings, **prompts})
        scores, logits = found["iou_predictions"], found["low_res_masks"]
        if single:
            best = _single_mask(scores, prompts["point_labels"].shape[1])
            scores, logits = scores[:, best : best + 1], logits[:, best : best + 1]
        objects.append(ObjectCase(prompts, scores, logits, _upscaled(logits, size_hw, geometry.image_size)))
    return PictureCase(pixels, image, embeddings, tuple(objects))


def _objects(tensors: Arrays) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield each object of a call by itself, without its empty places, which such decoders do not know."""
    for row, labels in enumerate(tensors["point_labels"]):
        one = {name: array[row : row + 1] for name, array in tensors.items()}
        used = labels != LABEL_EMPTY
        if used.any():
            yield {**one, **{name: one[name][:, used] for name in ("point_coords", "point_labels")}}


def _single_mask(scores: FloatArray, points: int) -> int:
    reward = np.zeros(MASK_TOKENS, np.float32)
    reward[0] = SINGLE_MASK_REWARD
    return int((scores[0] + (points - SINGLE_MASK_POINTS) * reward).argmax())


def _upscaled(logits: FloatArray, size_hw: Size, image_size: int) -> NDArray[np.bool_]:
    sizes = {"input_size": resized_size(size_hw, image_size), "original_size": size_hw}
    return np.stack([upscale_mask(np.ascontiguousarray(one), image_size=image_size, **sizes) > 0 for one in logits[0]])


def compare(
    step: str, pictures: Sequence[PictureCase], engine: Engine, bar: Bar, chained_bar: Bar | None = None
) -> list[Row]:
    """Return a row for the encoder, rows for the decoder by itself, and one for the masks of both, end to end.

    The encoder and both together are held against ``chained_bar``, which is ``bar`` when left out.
    """
    embeddings = [engine.encode(picture) for picture in pictures]
    pairs = [(picture.image_embeddings, found) for picture, found in zip(pictures, embeddings, strict=True)]
    alone: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {"low_res_masks": [], "iou_predictions": []}
    ious: dict[str, list[float]] = {"decoder": [], "encoder, decoder": []}
    for picture, own in zip(pictures, embeddings, strict=True):
        for one in picture.objects:
            given = engine.decode(picture.image_embeddings, one, picture)
            alone["low_res_masks"].append((one.logits, given["low_res_masks"]))
            alone["iou_predictions"].append((one.scores, given["iou_predictions"]))
            chained = engine.decode(own, one, picture)
            for graphs, answer in zip(ious, (given, chained), strict=True):
                ious[graphs] += map(mask_iou, one.masks, answer["masks"][0] > 0)
    return [
        tensor_row(step, "encoder", "image_embeddings", pairs, chained_bar or bar),
        *(tensor_row(step, "decoder", name, alone[name], bar) for name in alone),
        mask_row(step, "decoder", ious["decoder"], bar),
        mask_row(step, "encoder, decoder", ious["encoder, decoder"], chained_bar or bar),
    ]
