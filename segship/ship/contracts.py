# SPDX-License-Identifier: Apache-2.0
"""Graphs in the contracts of other people's programs: official, ascend, samexporter.

`official` is the decoder of segment_anything/utils/onnx.py SamOnnxModel as scripts/export_onnx_model.py writes it.
`ascend` is the encoder and decoder of the Ascend ModelZoo guide: input ``x``, no ``orig_im_size``, outputs IoU first;
and for SeMask-FPN the guide's one graph, ``image`` to the int64 numbers of classes, ``output``.
`samexporter` is the pair that the package samexporter documents: an encoder that takes raw RGB pixels of any size up to
the model frame (its ``--use-preprocess``) and the official decoder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from segship.bundle.agreement import mask_step, tensor_step
from segship.bundle.measured import ComparisonStep
from segship.cases import comparison_images
from segship.files import sha256_of, write_directory, write_file
from segship.masks.scores import mask_iou
from segship.promptable.transforms import Preprocessing, prepare_image, resize_image, resized_size, upscale_mask
from segship.ship.export_promptable import ExportOptions, Report, open_session
from segship.ship.families.sam.loading import SAM_PROMPT_RULES, LoadedModel, load_model
from segship.ship.families.sam.model import ImageEncoderGraph, Sam, decode_prompts
from segship.ship.families.semask.model import Semask, resize_bilinear
from segship.ship.graph.store import save_graph
from segship.ship.steps import GraphChange, graph_steps, refuse_taken, take_steps
from segship.ship.tools import tool_versions
from segship.ship.verify_promptable import Arrays, Runner, decoder_inputs, torch_runner
from segship.spec import LABEL_EMPTY, MASK_TOKENS, GraphSpec, SamGeometry, TensorSpec

# The reference's weight of the prompt count when it chooses between the single mask and the ambiguous three.
SINGLE_MASK_REWARD = 1000.0
SINGLE_MASK_POINTS = 2.5


class OneObjectDecoder(nn.Module):
    """One object a call; returns IoUs first, then low-resolution masks: the Ascend guide's cut decoder."""

    def __init__(self, sam: Sam, single_mask: bool) -> None:
        super().__init__()
        self.sam = sam
        self.single_mask = single_mask

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        prompts = (point_coords, point_labels, mask_input, has_mask_input)
        scores, masks = decode_prompts(self.sam, image_embeddings, *prompts, point_is_empty=None)
        if self.single_mask:
            masks, scores = select_single_mask(masks, scores, point_coords.shape[1])
        return scores, masks


class SemanticIndices(nn.Module):
    """Image (B, 3, H, W) to the numbers of classes (B, H, W) int64: the Ascend guide's SeMask graph.

    Its second resize and its softmax are left out: they change no answer.
    """

    def __init__(self, semask: Semask) -> None:
        super().__init__()
        self.semask = semask

    def forward(self, image: Tensor) -> Tensor:
        return resize_bilinear(self.semask(image), image.shape[2:]).argmax(dim=1)


class PixelEncoder(nn.Module):
    """Raw RGB pixels (H, W, 3) float32 in 0..255, already resized, to the embedding: samexporter's encoder."""

    mean: Tensor
    std: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.register_buffer("mean", torch.tensor(sam.config.pixel_mean), persistent=False)
        self.register_buffer("std", torch.tensor(sam.config.pixel_std), persistent=False)

    def forward(self, input_image: Tensor) -> Tensor:
        side = self.sam.config.image_size
        normalised = ((input_image - self.mean) / self.std).permute(2, 0, 1)
        height, width = input_image.shape[0], input_image.shape[1]
        padded = F.pad(normalised, (0, side - width, 0, side - height))
        out: Tensor = self.sam.image_encoder(padded.unsqueeze(0))
        return out


def select_single_mask(masks: Tensor, scores: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Keep one mask an object by the reference's rule, which reads the length of the prompt tensor.

    Follows segment_anything/utils/onnx.py select_masks: with up to two points (one click and its padding) the best of
    masks 1 to 3 wins, with more mask 0 does.
    """
    reward = torch.zeros(1, MASK_TOKENS, device=scores.device)
    reward[:, 0] = SINGLE_MASK_REWARD
    best = (scores + (points - SINGLE_MASK_POINTS) * reward).argmax(dim=1, keepdim=True)
    chosen = (torch.arange(MASK_TOKENS, device=scores.device) == best).to(scores.dtype)
    # A weighted sum with weights 0 and 1 instead of indexing: static shapes, which NPU compilers ask for.
    mask = (masks * chosen[:, :, None, None]).sum(dim=1, keepdim=True)
    return mask, (scores * chosen).sum(dim=1, keepdim=True)


def one_object_decoder_spec(geometry: SamGeometry, single_mask: bool) -> GraphSpec:
    """Return the contract of the Ascend decoder."""
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


def ascend_encoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of the Ascend encoder: input ``x``, batch dynamic."""
    side, channels, grid = geometry.image_size, geometry.embedding_channels, geometry.embedding_size
    return GraphSpec(
        name="encoder",
        inputs=(TensorSpec("x", "float32", ("batch", 3, side, side)),),
        outputs=(TensorSpec("image_embeddings", "float32", ("batch", channels, grid, grid)),),
    )


def ascend_semantic_spec(batch: int, size_hw: tuple[int, int]) -> GraphSpec:
    """Return the contract of the Ascend guide's SeMask graph: everything fixed, NCHW, RGB, normalised."""
    return GraphSpec(
        name="semantic",
        inputs=(TensorSpec("image", "float32", (batch, 3, *size_hw)),),
        outputs=(TensorSpec("output", "int64", (batch, *size_hw)),),
    )


def pixel_encoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of samexporter's encoder with its preprocessing inside."""
    channels, grid = geometry.embedding_channels, geometry.embedding_size
    return GraphSpec(
        name="encoder",
        inputs=(TensorSpec("input_image", "float32", ("image_height", "image_width", 3)),),
        outputs=(TensorSpec("image_embeddings", "float32", (1, channels, grid, grid)),),
    )


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


EXPORT_FILE = "export.json"


def files_of(graphs: Iterable[Path]) -> list[Path]:
    """Return graphs with the files of their weights, where there are any beside them."""
    return [file for path in graphs for file in (path, path.with_name(f"{path.name}.data")) if file.exists()]


def describe_files(files: Iterable[Path]) -> dict[str, dict[str, int | str]]:
    """Return the size and the digest of each file, by its name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}


def write_folder(output: Path, files: Iterable[Path], document: Mapping[str, Any], *, force: bool) -> None:
    """Copy files into a new folder, with the document beside them; whole or not at all.

    Raises
    ------
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written.
    """

    def fill(target: Path) -> None:
        for path in files:
            shutil.copyfile(path, target / path.name)
        write_file(target / EXPORT_FILE, (json.dumps(document, indent=2) + "\n").encode())

    write_directory(output, fill, overwrite=force)


@dataclass(frozen=True, slots=True, eq=False)
class ForeignGraph:
    """One graph of another program's contract.

    Attributes
    ----------
    file
        Name of the file to write.
    module, traced
        What is traced, and the contract of that.
    spec
        The contract of the finished graph; differs from ``traced`` where nodes are written by hand.
    cases
        Inputs of every comparison case.
    finish
        Turns the traced graph into the finished one.
    """

    file: str
    module: nn.Module
    traced: GraphSpec
    spec: GraphSpec
    cases: Sequence[Arrays]
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    largest_sizes: Mapping[str, int] = field(default_factory=dict)


def export_foreign(
    checkpoint_path: Path, output: Path, options: ExportOptions, report: Report | None = None
) -> dict[str, Any]:
    """Export a checkpoint in the contract ``options.contract`` and return what ``export.json`` holds.

    Raises
    ------
    ExportError
        When a step fails; `ComparisonFailed` when a graph differs from the model by more than the bar.
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written.
    """
    refuse_taken(output, force=options.force)
    model = load_model(checkpoint_path, image_size=options.image_size)
    graphs = foreign_graphs(model, options, checkpoint_path.stem)
    rows: list[ComparisonStep] = []
    with tempfile.TemporaryDirectory(prefix="segship-export-") as name:
        folder = Path(name)
        for graph in graphs:
            rows.extend(_export_graph(graph, folder / graph.file, model, options, report))
        files = files_of(folder / graph.file for graph in graphs)
        document = _describe(model, options, graphs, files, rows)
        write_folder(output, files, document, force=options.force)
    return document


def foreign_graphs(model: LoadedModel, options: ExportOptions, stem: str) -> list[ForeignGraph]:
    """Return the graphs of a contract, ready to be traced."""
    sam, config = model.sam, model.config
    geometry, single = config.geometry, options.single_mask
    encoder_cases = _encoder_cases(model)
    decoder_cases = _decoder_cases(model, encoder_cases)
    cut = one_object_decoder_spec(geometry, single)
    decoder = OneObjectDecoder(sam, single)
    official = ForeignGraph(
        f"{stem}.decoder.onnx", decoder, cut, official_decoder_spec(geometry, single), decoder_cases,
        finish=lambda traced: append_upscaling(traced, official_decoder_spec(geometry, single), config.image_size),
    )  # fmt: skip
    match options.contract:
        case "official":
            return [official]
        case "ascend":
            spec = ascend_encoder_spec(geometry)
            images = [{"x": case["image"]} for case in encoder_cases]
            plain = [{name: case[name] for name in case if name != "orig_im_size"} for case in decoder_cases]
            return [
                ForeignGraph("encoder.onnx", ImageEncoderGraph(sam), spec, spec, images),
                ForeignGraph("decoder.onnx", decoder, cut, cut, plain),
            ]
        case "samexporter":
            spec = pixel_encoder_spec(geometry)
            pixels = [{"input_image": case["pixels"]} for case in encoder_cases]
            sizes = dict.fromkeys(("image_height", "image_width"), config.image_size)
            encoder = ForeignGraph(f"{stem}.encoder.onnx", PixelEncoder(sam), spec, spec, pixels, largest_sizes=sizes)
            return [encoder, official]
        case "segship":
            raise AssertionError("the contract segship is written by export_bundle")


def _export_graph(
    graph: ForeignGraph, path: Path, model: LoadedModel, options: ExportOptions, report: Report | None
) -> list[ComparisonStep]:
    """Write one graph step by step, compare it after each, and return the rows."""
    names = [tensor.name for tensor in graph.traced.inputs]
    run = torch_runner(graph.module, names, [tensor.name for tensor in graph.traced.outputs])
    expected = [run(case) for case in graph.cases]

    def write_and_compare(step: str, change: GraphChange) -> Sequence[ComparisonStep]:
        save_graph(change(graph.module, graph.traced, path), path, largest_inline_bytes=options.largest_inline_bytes)
        with open_session(path, graph.spec) as session:
            return _compare(step, graph, session.run, expected, model, options)

    steps = graph_steps(
        options, half_weights=model.checkpoint.half_weights, largest_sizes=graph.largest_sizes, finish=graph.finish
    )
    return take_steps(steps, write_and_compare, report)


def _compare(
    step: str, graph: ForeignGraph, run: Runner, expected: Sequence[Arrays], model: LoadedModel, options: ExportOptions
) -> list[ComparisonStep]:
    answers = [run(case) for case in graph.cases]
    rows = [
        tensor_step(
            step, graph.file, tensor.name,
            [(known[tensor.name], answer[tensor.name]) for known, answer in zip(expected, answers, strict=True)],
            options.bar,
        )
        for tensor in graph.traced.outputs
    ]  # fmt: skip
    if "masks" in answers[0]:
        ious = [
            iou
            for case, known, answer in zip(graph.cases, expected, answers, strict=True)
            for iou in _upscaled_ious(case, known, answer, model.config.image_size)
        ]
        rows.append(mask_step(step, ious, options.bar))
    return rows


def _upscaled_ious(case: Arrays, known: Arrays, answer: Arrays, image_size: int) -> Iterator[float]:
    """Compare the graph's own upscaled masks with ours of the model's logits."""
    height, width = (int(side) for side in case["orig_im_size"])
    for low_res, mask in zip(known["low_res_masks"][0], answer["masks"][0], strict=True):
        upscaled = upscale_mask(
            np.ascontiguousarray(low_res),
            image_size=image_size,
            input_size=resized_size((height, width), image_size),
            original_size=(height, width),
        )
        yield mask_iou(upscaled > 0.0, mask > 0.0)


def _encoder_cases(model: LoadedModel) -> list[Arrays]:
    """Return every comparison image as the normalised tensor and as resized raw pixels."""
    config = model.config
    preprocessing = Preprocessing(config.image_size, config.pixel_mean, config.pixel_std)
    return [
        {
            "image": prepare_image(pixels, preprocessing),
            "pixels": resize_image(pixels, config.image_size).astype(np.float32),
        }
        for pixels in comparison_images()
    ]


def _decoder_cases(model: LoadedModel, encoder_cases: Sequence[Arrays]) -> list[Arrays]:
    """Return the prompt mixes that one-object decoders can take: one object, no empty places."""
    config = model.config
    low_res_size = config.geometry.low_res_size
    encode = torch_runner(ImageEncoderGraph(model.sam), ["image"], ["image_embeddings"])
    cases: list[Arrays] = []
    for pixels, case in zip(comparison_images(), encoder_cases, strict=True):
        embeddings = encode({"image": case["image"]})["image_embeddings"]
        size_hw = (pixels.shape[0], pixels.shape[1])
        for _, tensors in decoder_inputs(size_hw, config.image_size, low_res_size, SAM_PROMPT_RULES):
            if len(tensors["point_labels"]) == 1 and LABEL_EMPTY not in tensors["point_labels"]:
                size = np.array(size_hw, np.float32)
                cases.append({"image_embeddings": embeddings, **tensors, "orig_im_size": size})
    return cases


def _describe(
    model: LoadedModel,
    options: ExportOptions,
    graphs: Sequence[ForeignGraph],
    files: Sequence[Path],
    rows: Sequence[ComparisonStep],
) -> dict[str, Any]:
    return {
        "contract": options.contract,
        "single_mask": options.single_mask,
        "opset": options.graph_opset,
        "architecture": model.config.architecture,
        "image_size": model.config.image_size,
        "checkpoint": {"name": model.checkpoint.path.name, "sha256": model.checkpoint.sha256},
        "changes": list(model.changes),
        "graphs": {graph.file: asdict(graph.spec) for graph in graphs},
        "files": describe_files(files),
        "tools": tool_versions(),
        "comparison": {"bar": options.bar.model_dump(), "steps": [row.model_dump() for row in rows]},
    }
