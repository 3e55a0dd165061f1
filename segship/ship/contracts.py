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
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from segship.backends.session import Session
from segship.bundle.evidence import EXACT, Bar, Row, mask_row, tensor_row
from segship.bundle.folder import EXPORT_FILE, OPTIONAL_FILES, refuse_taken
from segship.bundle.manifest import MANIFEST_FILE, task_module
from segship.errors import OutputError
from segship.files import sha256_of, write_directory, write_file
from segship.images.comparison import comparison_images
from segship.masks.scores import mask_iou
from segship.promptable.task import prompt_tensors
from segship.promptable.transforms import Preprocessing, prepare_image, resize_image, resized_size, upscale_mask
from segship.semantic.preprocessing import ScaleLimits, SemanticPreprocessing
from segship.ship.export import (
    Begin,
    GraphChange,
    Progress,
    Report,
    export_bundle,
    graph_steps,
    save_graph,
    take_steps,
)
from segship.ship.families.sam.family import PROMPT_RULES
from segship.ship.families.sam.model import ImageEncoderGraph, Sam, decode_prompts
from segship.ship.families.semask.model import SemanticGraph
from segship.ship.graph.cut import NOTHING
from segship.ship.loading import LoadedModel, load_model
from segship.ship.official import (
    SINGLE_MASK_POINTS,
    SINGLE_MASK_REWARD,
    append_upscaling,
    official_decoder_spec,
    one_object_decoder_spec,
)
from segship.ship.options import ExportOptions
from segship.ship.targets import ConvertOptions, convert
from segship.ship.verify import open_graph, torch_sessions
from segship.ship.weights import tool_versions
from segship.spec import LABEL_EMPTY, MASK_TOKENS, GraphSpec, SamGeometry, TensorSpec

Arrays = dict[str, NDArray[Any]]
CONVERTED = ("mnn", "nndeploy")
"""Contracts that are targets of `segship convert`, and made by it; as a target, ``ascend`` is another thing, a kit."""
ASCEND_SIZE = (1024, 2048)
"""Of the Ascend guide for SeMask, which has no other."""


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


class PixelEncoder(nn.Module):
    """Raw RGB pixels (H, W, 3) float32 in 0..255, already resized, to the embedding: samexporter's encoder."""

    # The exporter names results of its own "mean".
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.register_buffer("pixel_mean", torch.tensor(sam.config.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(sam.config.pixel_std), persistent=False)

    def forward(self, input_image: Tensor) -> Tensor:
        side = self.sam.config.image_size
        normalised = ((input_image - self.pixel_mean) / self.pixel_std).permute(2, 0, 1)
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


def files_of(graphs: Iterable[Path]) -> list[Path]:
    """Return graphs with the files of their weights, where there are any beside them."""
    return [file for path in graphs for file in (path, path.with_name(f"{path.name}.data")) if os.path.exists(file)]


def describe_files(files: Iterable[Path]) -> dict[str, dict[str, int | str]]:
    """Return the size and the digest of each file, by its name."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}


def refuse_stranger(output: Path) -> None:
    """Let only folders be replaced in which nothing lies but what an export wrote.

    Raises
    ------
    OutputError
        ``not_an_export``.
    """
    names = [path.name for path in output.iterdir()] if os.path.isdir(output) else []
    texts = {EXPORT_FILE, MANIFEST_FILE, *OPTIONAL_FILES}
    foreign = [name for name in names if name not in texts and not name.endswith((".onnx", ".onnx.data"))]
    if names and (foreign or not {EXPORT_FILE, MANIFEST_FILE} & set(names)):
        message = f"{output} is no export, so it is not replaced; choose another folder, or empty this one yourself"
        raise OutputError(message, code="not_an_export")


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
    """One graph of another program's contract; ``finish`` and ``largest_sizes`` are those of `graph_steps`."""

    file: str
    module: nn.Module
    traced: GraphSpec
    """The contract of the module."""
    spec: GraphSpec
    """That of the finished graph; differs where nodes are written by hand."""
    compare: Callable[[str, Session, int | None], list[Row]]
    """Runs so many comparison cases, or all, on the finished graph and returns the rows of a step."""
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    largest_sizes: Mapping[str, int] = field(default_factory=dict)


def export_contract(
    checkpoint_path: Path,
    output: Path,
    options: ExportOptions,
    report: Report | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export a checkpoint in the contract ``options.contract`` and return what ``export.json`` holds.

    Raises
    ------
    ExportError
        When a step fails; `ComparisonFailed` when a graph differs from the model by more than the bar.
    CheckpointError, OutputError
        As `segship.ship.export.export_bundle`.
    """
    if options.contract in CONVERTED:
        return _export_for_target(checkpoint_path, output, options, report, progress)
    refuse_taken(output, force=options.force)
    refuse_stranger(output)
    begin = Begin(progress)
    begin("reading the checkpoint", 1)
    model = load_model(checkpoint_path, options)
    begin("asking the model for its answers", 16)
    graphs, facts = CONTRACTS[model.task](model, options, checkpoint_path.stem)
    begin.total = 17 + 50 * len(graphs)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="segship-export-") as name:
        folder = Path(name)
        for graph in graphs:
            rows.extend(_export_graph(graph, folder / graph.file, model, options, report, begin))
        files = files_of(folder / graph.file for graph in graphs)
        document = {
            "contract": options.contract,
            "opset": options.graph_opset(model.task),
            "architecture": model.config.architecture,
            **facts,
            "checkpoint": {"name": model.checkpoint.path.name, "sha256": model.checkpoint.sha256},
            "changes": list(model.changes),
            "graphs": {graph.file: asdict(graph.spec) for graph in graphs},
            "files": describe_files(files),
            "tools": tool_versions(),
            "comparison": {"bar": dict(_bar(model, options)), "steps": [asdict(row) for row in rows]},
        }
        write_folder(output, files, document, force=options.force)
    return document


def _export_for_target(
    checkpoint_path: Path, output: Path, options: ExportOptions, report: Report | None, progress: Progress | None
) -> dict[str, Any]:
    """Export a bundle that nobody sees, with all its comparisons, and convert that."""
    refuse_taken(output, force=options.force)
    conversion = ConvertOptions(options.contract, force=options.force, single_mask=options.single_mask)
    own = replace(options, contract="segship", single_mask=None, force=False, measure=False)
    with tempfile.TemporaryDirectory(prefix="segship-export-") as name:
        bundle = export_bundle(checkpoint_path, Path(name) / "bundle", own, report, progress)
        return convert(bundle.path, output, conversion, report)


def _bar(model: LoadedModel, options: ExportOptions) -> Bar:
    bar: Bar = options.bar or task_module(model.task).bar(EXACT)
    return bar


def _export_graph(
    graph: ForeignGraph, path: Path, model: LoadedModel, options: ExportOptions, report: Report | None, begin: Begin
) -> list[Row]:
    """Write one graph step by step, compare it after each, and return the rows."""
    steps = graph_steps(
        model.module,
        options,
        options.graph_opset(model.task),
        half_weights=model.checkpoint.half_weights,
        largest_sizes=graph.largest_sizes,
        finish=graph.finish,
    )

    cut = NOTHING

    def make(step: str, change: GraphChange) -> None:
        nonlocal cut
        begin(f"{graph.file}: {step}", 25 / len(steps))
        cut = change(graph.module, graph.traced, cut)
        save_graph(cut, model.module, graph.module, graph.spec, path, options)

    def compare(step: str, count: int | None) -> Sequence[Row]:
        begin(f"{graph.file}: comparing what was {step}", 25 / len(steps))
        with open_graph(path, graph.spec) as session:
            return graph.compare(step, session, count)

    return take_steps(steps, make, compare, report)


Contract = tuple[list[ForeignGraph], dict[str, Any]]
"""The graphs, ready to be traced, and what ``export.json`` says of the task."""


def promptable_contract(model: LoadedModel, options: ExportOptions, stem: str) -> Contract:
    """Return the graphs of official, ascend or samexporter."""
    sam, config = model.module, model.config
    geometry, single = config.geometry, bool(options.single_mask)
    encoder_cases = _encoder_cases(model)
    decoder_cases = _decoder_cases(model, encoder_cases)
    cut = one_object_decoder_spec(geometry, single)

    def graph(
        file: str,
        module: nn.Module,
        traced: GraphSpec,
        cases: Sequence[Arrays],
        spec: GraphSpec | None = None,
        **more: Any,
    ) -> ForeignGraph:
        session = torch_sessions({"": (module, traced)})[""]
        expected = [session.run({tensor.name: case[tensor.name] for tensor in traced.inputs}) for case in cases]
        compare = partial(_compare, graph=file, cases=cases, expected=expected, model=model, options=options)
        return ForeignGraph(file, module, traced, spec or traced, compare, **more)

    def official() -> ForeignGraph:
        spec = official_decoder_spec(geometry, single)
        finish = partial(append_upscaling, spec=spec, image_size=config.image_size)
        return graph(f"{stem}.decoder.onnx", OneObjectDecoder(sam, single), cut, decoder_cases, spec, finish=finish)

    def ascend() -> list[ForeignGraph]:
        plain = [{name: case[name] for name in case if name != "orig_im_size"} for case in decoder_cases]
        images = [{"x": case["image"]} for case in encoder_cases]
        return [
            graph("encoder.onnx", ImageEncoderGraph(sam), ascend_encoder_spec(geometry), images),
            graph("decoder.onnx", OneObjectDecoder(sam, single), cut, plain),
        ]

    def samexporter() -> list[ForeignGraph]:
        pixels = [{"input_image": case["pixels"]} for case in encoder_cases]
        sizes = dict.fromkeys(("image_height", "image_width"), config.image_size)
        file, spec = f"{stem}.encoder.onnx", pixel_encoder_spec(geometry)
        return [graph(file, PixelEncoder(sam), spec, pixels, largest_sizes=sizes), official()]

    makers = {"official": lambda: [official()], "ascend": ascend, "samexporter": samexporter}
    return makers[options.contract](), {"single_mask": single, "image_size": config.image_size}


def semantic_contract(model: LoadedModel, options: ExportOptions, stem: str) -> Contract:
    """Return the one graph that the Ascend guide for SeMask compiles: one size, one batch, numbers in int64."""
    config, task = model.config, task_module(model.task)
    batch, size = options.batch or 1, options.size or ASCEND_SIZE
    spec = ascend_semantic_spec(batch, size)
    # The scale of pictures plays no part where the size is given.
    preprocessing = SemanticPreprocessing(ScaleLimits(*size), config.pixel_mean, config.pixel_std, frame=size)
    cases = task.make_cases(preprocessing, batch)
    expected = task.answer(cases, torch_sessions(model.networks.reference(model)))

    def compare(step: str, session: Session, count: int | None) -> list[Row]:
        some = replace(cases, images=cases.images[:count])
        found = task.answer(some, {"semantic": session})
        rows: list[Row] = task.compare(step, some, expected[:count], found, _bar(model, options))
        return rows

    graph = ForeignGraph(f"{stem}_bs{batch}.onnx", SemanticGraph(model.module, "indices"), spec, spec, compare)
    facts = {
        "semantic_window": config.semantic_window,
        "classes": config.classes,
        "preprocessing": {"pixel_mean": config.pixel_mean, "pixel_std": config.pixel_std},
    }
    return [graph], facts


CONTRACTS: dict[str, Callable[[LoadedModel, ExportOptions, str], Contract]] = {
    "promptable": promptable_contract,
    "semantic": semantic_contract,
}
"""By task."""


def _compare(
    step: str,
    session: Session,
    count: int | None,
    *,
    graph: str,
    cases: Sequence[Arrays],
    expected: Sequence[Arrays],
    model: LoadedModel,
    options: ExportOptions,
) -> list[Row]:
    cases, expected = cases[:count], expected[:count]
    answers = [session.run(case) for case in cases]
    bar = _bar(model, options)
    rows = [
        tensor_row(step, graph, name, [(a[name], b[name]) for a, b in zip(expected, answers, strict=True)], bar)
        for name in expected[0]
    ]
    if "masks" in answers[0]:
        triples = zip(cases, expected, answers, strict=True)
        ious = [iou for triple in triples for iou in _upscaled_ious(*triple, model.config.image_size)]
        rows.append(mask_row(step, graph, ious, bar))
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
    encoder = torch_sessions(model.networks.reference(model))["image_encoder"]
    cases: list[Arrays] = []
    for pixels, case in zip(comparison_images(), encoder_cases, strict=True):
        embeddings = encoder.run({"image": case["image"]})["image_embeddings"]
        size_hw = (pixels.shape[0], pixels.shape[1])
        for tensors in prompt_tensors(size_hw, config.image_size, low_res_size, PROMPT_RULES).values():
            if len(tensors["point_labels"]) == 1 and LABEL_EMPTY not in tensors["point_labels"]:
                size = np.array(size_hw, np.float32)
                cases.append({"image_embeddings": embeddings, **tensors, "orig_im_size": size})
    return cases
