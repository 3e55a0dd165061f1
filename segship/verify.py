# SPDX-License-Identifier: Apache-2.0
"""Compare graphs with the torch model they were made from, and hold the differences against a bar.

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
from segship.bundle.manifest import ComparisonBar, ComparisonStep
from segship.comparison_cases import comparison_images, prompt_mixes
from segship.errors import ComparisonFailed
from segship.masks.scores import mask_iou
from segship.models.sam import ImageEncoderGraph, MaskDecoderGraph, Sam
from segship.prompts import PromptRules, encode_prompts, resolve_prompts
from segship.transforms import Preprocessing, prepare_image, resized_size, upscale_mask

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Mapping[str, NDArray[Any]]], Arrays]


@dataclass(frozen=True, slots=True, eq=False)
class DecoderCase:
    """One call of the decoder and what the model answered."""

    name: str
    inputs: Arrays
    iou_predictions: NDArray[np.float32]
    low_res_masks: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ImageCase:
    """One image, its embedding by the model, and the decoder's cases on it."""

    image: NDArray[np.float32]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_embeddings: NDArray[np.float32]
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
    cases = []
    for pixels in comparison_images():
        size_hw = (pixels.shape[0], pixels.shape[1])
        image = prepare_image(pixels, preprocessing)
        embeddings = encode({"image": image})["image_embeddings"]
        low_res_size = config.geometry.low_res_size
        inputs = list(decoder_inputs(size_hw, config.image_size, low_res_size, rules))
        decoded = tuple(_decoder_case(decode, embeddings, name, tensors) for name, tensors in inputs)
        cases.append(ImageCase(image, size_hw, resized_size(size_hw, config.image_size), embeddings, decoded))
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
    step: str, reference: Reference, encoder: Session, decoder: Session, bar: ComparisonBar
) -> tuple[ComparisonStep, ...]:
    """Compare two sessions with the model; three rows: embedding, decoder alone, and masks end to end.

    The decoder row feeds both sides the model's embedding; the row of masks runs the graphs behind each other and
    compares what a user sees, at image size.
    """
    embeddings, logits, scores = [], [], []
    ious: list[float] = []
    for case in reference.images:
        made = encoder.run({"image": case.image})["image_embeddings"]
        embeddings.append((case.image_embeddings, made))
        for decoded in case.decoder_cases:
            answer = decoder.run({"image_embeddings": case.image_embeddings, **decoded.inputs})
            logits.append((decoded.low_res_masks, answer["low_res_masks"]))
            scores.append((decoded.iou_predictions, answer["iou_predictions"]))
            chained = decoder.run({"image_embeddings": made, **decoded.inputs})["low_res_masks"]
            ious.extend(_mask_ious(reference.image_size, case, decoded.low_res_masks, chained))
    return (
        tensor_step(step, "image_encoder", "image_embeddings", embeddings, bar),
        tensor_step(step, "mask_decoder", "low_res_masks", logits, bar),
        tensor_step(step, "mask_decoder", "iou_predictions", scores, bar),
        mask_step(step, ious, bar),
    )


def tensor_step(
    step: str,
    graph: str,
    tensor: str,
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    bar: ComparisonBar,
) -> ComparisonStep:
    """Measure pairs of (reference, candidate) tensors: the worst cosine and the largest difference against the scale.

    The scale of a tensor is the largest magnitude of its reference.
    """
    # numpy's min and max pass a NaN on, Python's may drop it; a comparison with NaN is false and so fails the bar.
    cosine = float(np.min([_cosine(expected, actual) for expected, actual in pairs]))
    scale = float(np.max([np.abs(expected).max() for expected, _ in pairs]))
    relative = float(np.max([_relative_difference(expected, actual) for expected, actual in pairs]))
    passed = bool(cosine >= bar.cosine and relative <= bar.max_abs)
    return ComparisonStep(
        step=step, graph=graph, what=tensor, cases=len(pairs), cosine=cosine, max_abs=relative, scale=scale,
        mask_iou_mean=None, mask_iou_min=None, passed=passed,
    )  # fmt: skip


def mask_step(step: str, ious: Sequence[float], bar: ComparisonBar) -> ComparisonStep:
    """Hold the IoUs of masks at image size against the bar."""
    mean, lowest = float(np.mean(ious)), float(np.min(ious))
    return ComparisonStep(
        step=step, graph="image_encoder, mask_decoder", what="masks", cases=len(ious), cosine=None, max_abs=None,
        scale=None, mask_iou_mean=mean, mask_iou_min=lowest,
        passed=bool(mean >= bar.mask_iou_mean and lowest >= bar.mask_iou_min),
    )  # fmt: skip


def require_passed(steps: Sequence[ComparisonStep]) -> None:
    """Raise when a row is past the bar.

    Raises
    ------
    ComparisonFailed
        Naming every row that failed with its figures.
    """
    failed = [row for row in steps if not row.passed]
    if failed:
        rows = "; ".join(describe_step(row) for row in failed)
        raise ComparisonFailed(
            f"the graph differs from its model by more than the bar: {rows}. Nothing was written. "
            "Try another opset or --no-simplify, and report the figures if it stays"
        )


def describe_step(row: ComparisonStep) -> str:
    """Return one row as a short sentence."""
    if row.mask_iou_mean is not None:
        return f"{row.step}, {row.what}: IoU mean {row.mask_iou_mean:.6f}, min {row.mask_iou_min:.6f}"
    return f"{row.step}, {row.what}: cosine {row.cosine:.9f}, max abs {row.max_abs:.2e} of scale {row.scale:.3g}"


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


def _cosine(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    a, b = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def _relative_difference(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(expected.astype(np.float64) - actual.astype(np.float64)).max()) / scale
