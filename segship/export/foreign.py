# SPDX-License-Identifier: Apache-2.0
"""Export a SAM checkpoint to the graphs that other people's programs expect, compared like our own.

The result is a folder with the graphs and ``export.json``: contract, names, dtypes, shapes, digests, the comparison.
segship does not run it, the other program does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from segship.bundle.manifest import ComparisonStep
from segship.export.folder import describe_files, files_of, write_folder
from segship.export.promptable import ExportOptions, Report, open_session
from segship.export.steps import GraphChange, graph_steps, refuse_taken, take_steps
from segship.graph.foreign import (
    OneObjectDecoder,
    PixelEncoder,
    ascend_encoder_spec,
    official_decoder_spec,
    one_object_decoder_spec,
    pixel_encoder_spec,
)
from segship.graph.save import save_graph
from segship.graph.upscaling import append_upscaling
from segship.loading import SAM_PROMPT_RULES, LoadedModel, load_model, tool_versions
from segship.masks.scores import mask_iou
from segship.models.sam import ImageEncoderGraph
from segship.spec import LABEL_EMPTY, GraphSpec
from segship.transforms import Preprocessing, prepare_image, resize_image, resized_size, upscale_mask
from segship.verify.agreement import mask_step, tensor_step
from segship.verify.cases import comparison_images
from segship.verify.promptable import Arrays, Runner, decoder_inputs, torch_runner


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
