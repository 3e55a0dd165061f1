# SPDX-License-Identifier: Apache-2.0
"""Compare the graphs of a promptable model with the torch model, and hold the differences against a bar.

Every change of a graph on the ship road is followed by one call of `compare_sam`; its rows stand in the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segship.backends.session import Session
from segship.bundle.agreement import mask_step, tensor_step
from segship.bundle.measured import ComparisonBar, ComparisonStep
from segship.cases import comparison_images, prompt_mixes
from segship.masks.scores import mask_iou
from segship.promptable.decoder import Decoder
from segship.promptable.prompts import PromptRules, encode_prompts, resolve_prompts
from segship.promptable.transforms import Preprocessing, prepare_image, resized_size, upscale_mask
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph, Sam
from segship.ship.families.sam.shared_decoder import ImageSideGraph
from segship.spec import image_side_spec

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Mapping[str, NDArray[Any]]], Arrays]
TensorPairs = list[tuple[NDArray[Any], NDArray[Any]]]
Pairs = tuple[TensorPairs, TensorPairs]
"""Logits and scores, each as (the model's, the graph's)."""


@dataclass(frozen=True, slots=True, eq=False)
class DecoderCase:
    """One call of the decoder and what the model answered."""

    name: str
    inputs: Arrays
    iou_predictions: NDArray[np.float32]
    low_res_masks: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageCase:
    """One image, its embedding by the model, what all prompts share of it, and the decoder's cases on it."""

    image: NDArray[np.float32]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_embeddings: NDArray[np.float32]
    image_side: Arrays
    decoder_cases: tuple[DecoderCase, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The model's own answers on all comparison cases; made once, compared with every step."""

    image_size: int
    images: tuple[ImageCase, ...]


def run_reference(sam: Sam, rules: PromptRules) -> Reference:
    """Run the torch model in float32 on every comparison case."""
    config = sam.config
    preprocessing = Preprocessing(config.image_size, config.pixel_mean, config.pixel_std)
    encode = torch_runner(ImageEncoderGraph(sam), ["image"], ["image_embeddings"])
    decode = torch_runner(
        MaskDecoderGraph(sam),
        ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"],
        ["iou_predictions", "low_res_masks"],
    )
    share = torch_runner(
        ImageSideGraph(sam), ["image_embeddings"], [tensor.name for tensor in image_side_spec(config.geometry).outputs]
    )
    cases = []
    for pixels in comparison_images():
        size_hw = (pixels.shape[0], pixels.shape[1])
        image = prepare_image(pixels, preprocessing)
        embeddings = encode({"image": image})["image_embeddings"]
        side = share({"image_embeddings": embeddings})
        low_res_size = config.geometry.low_res_size
        inputs = list(decoder_inputs(size_hw, config.image_size, low_res_size, rules))
        decoded = tuple(_decoder_case(decode, embeddings, name, tensors) for name, tensors in inputs)
        cases.append(ImageCase(image, size_hw, resized_size(size_hw, config.image_size), embeddings, side, decoded))
    return Reference(config.image_size, tuple(cases))


def decoder_inputs(
    size_hw: tuple[int, int], image_size: int, low_res_size: int, rules: PromptRules
) -> Iterable[tuple[str, Arrays]]:
    """Yield every prompt mix of an image as its name and the decoder's prompt tensors."""
    for mix in prompt_mixes(size_hw, low_res_size):
        objects = resolve_prompts(list(mix.prompts), size_hw).objects
        yield (
            mix.name,
            encode_prompts(
                objects,
                original_size=size_hw,
                input_size=resized_size(size_hw, image_size),
                low_res_size=low_res_size,
                rules=rules,
            ),
        )


def torch_runner(module: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> Runner:
    """Wrap a module as a function from named arrays to named arrays."""

    def run(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        with torch.inference_mode():
            answer = module(*(torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in inputs))
        tensors = answer if isinstance(answer, tuple) else (answer,)
        return {name: tensor.numpy() for name, tensor in zip(outputs, tensors, strict=True)}

    return run


def compare_sam(
    step: str, reference: Reference, sessions: Mapping[str, Session], bar: ComparisonBar
) -> tuple[ComparisonStep, ...]:
    """Compare the graphs of a bundle with the model: each by itself, and masks end to end.

    A graph's own rows feed it the model's embedding; the row of masks runs the graphs behind each other, as a predictor
    does, and compares what a user sees, at image size.

    Parameters
    ----------
    sessions
        Graph -> session; the graphs that a bundle needs, or all.
    """
    embeddings: TensorPairs = []
    sides: TensorPairs = []
    sharing = "shared_decoder" if "shared_decoder" in sessions else "selective_decoder"
    found: dict[str, Pairs] = {"mask_decoder": ([], []), sharing: ([], [])}
    ious: list[float] = []
    for case in reference.images:
        made = sessions["image_encoder"].run({"image": case.image})["image_embeddings"]
        embeddings.append((case.image_embeddings, made))
        if "image_side" in sessions:
            side = sessions["image_side"].run({"image_embeddings": case.image_embeddings})
            sides.extend((case.image_side[name], side[name]) for name in side)
        for decoded in case.decoder_cases:
            answer = sessions["mask_decoder"].run({"image_embeddings": case.image_embeddings, **decoded.inputs})
            _pair(found["mask_decoder"], decoded, answer)
            decoder = Decoder(sessions, per_call=len(decoded.iou_predictions))
            chained = decoder.decode(made, None, decoded.inputs)[1]
            ious.extend(_mask_ious(reference.image_size, case, decoded.low_res_masks, chained))
            rows = np.flatnonzero(decoded.inputs["has_mask_input"] == 0)
            if "image_side" in sessions and len(rows):
                prompts = {name: decoded.inputs[name][rows] for name in ("point_coords", "point_labels")}
                own = decoder.share(case.image_embeddings, side, prompts)
                _pair(found[sharing], decoded, dict(zip(("iou_predictions", "low_res_masks"), own, strict=True)), rows)
    steps = [tensor_step(step, "image_encoder", "image_embeddings", embeddings, bar)]
    if sides:
        steps.append(tensor_step(step, "image_side", "all tensors", sides, bar))
    for graph, (logits, scores) in found.items():
        if logits:
            steps.append(tensor_step(step, graph, "low_res_masks", logits, bar))
            steps.append(tensor_step(step, graph, "iou_predictions", scores, bar))
    return (*steps, mask_step(step, ious, bar))


def _pair(
    pairs: Pairs, decoded: DecoderCase, answer: Mapping[str, NDArray[Any]], rows: NDArray[np.int64] | None = None
) -> None:
    """Add a decoder's answer beside the model's, for all objects of a case or for some."""
    chosen = slice(None) if rows is None else rows
    pairs[0].append((decoded.low_res_masks[chosen], answer["low_res_masks"]))
    pairs[1].append((decoded.iou_predictions[chosen], answer["iou_predictions"]))


def _decoder_case(decode: Runner, embeddings: NDArray[np.float32], name: str, inputs: Arrays) -> DecoderCase:
    answer = decode({"image_embeddings": embeddings, **inputs})
    return DecoderCase(name, inputs, answer["iou_predictions"], answer["low_res_masks"])


def _mask_ious(
    image_size: int, case: ImageCase, expected: NDArray[np.float32], actual: NDArray[np.float32]
) -> Iterable[float]:
    for index in np.ndindex(expected.shape[0], expected.shape[1]):
        masks = [
            upscale_mask(
                np.ascontiguousarray(low_res[index]),
                image_size=image_size,
                input_size=case.input_size,
                original_size=case.original_size,
            )
            > 0.0
            for low_res in (expected, actual)
        ]
        yield mask_iou(*masks)
