# SPDX-License-Identifier: Apache-2.0
"""Bundles of promptable models: every installed backend against the bundle's graphs in ONNX Runtime in fp32.

What is timed is one picture through `Predictor.encode`, and a handful of clicks through the decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.backends.choice import DEFAULT_BACKEND, EXACT
from segship.bundle import Bundle
from segship.bundle.agreement import mask_step, tensor_step
from segship.bundle.measured import BackendCheck, ComparisonBar, ComparisonStep
from segship.cases import comparison_images, prompt_mixes
from segship.catalog import load_promptable as load
from segship.errors import SegshipError
from segship.masks.scores import mask_iou
from segship.promptable.prediction import ImageEmbedding
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import Prompts
from segship.tune.candidates import ROUNDS, Report, TuneOptions, candidates, describe_candidate

REDUCED_BAR = ComparisonBar(cosine=0.998, max_abs=0.1, mask_iou_mean=0.97, mask_iou_min=0.75)
"""How far bfloat16 and float16 may move things.

bfloat16 has 8 significant bits, so each operation rounds by up to 0.4 %; through the blocks of an encoder that grew to
0.8 % of the embedding's largest value in tiny and 7 % in a vit_b with random weights, whose embedding still had a
cosine of 0.9991. What a user sees is pixels along the outlines of masks: their mean IoU with the float32 masks was
0.982 in both, of all four masks of each prompt, sure and unsure ones alike. The bar leaves room for other models and
stays far above the 0.85 to 0.91 to which two people agree who outline the same object (Segment Anything,
arXiv 2304.02643, section 5); the lowest IoU is that of masks of few pixels, and was 0.872.
"""

CLICKS = 8
"""One-point objects in the call that is timed: a handful of things in a picture, and what everything mode asks at once
on CPUs."""


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """One image with what the reference answered."""

    pixels: NDArray[np.uint8]
    embedding: ImageEmbedding
    calls: tuple[tuple[list[Prompts], NDArray[np.float32], NDArray[np.float32]], ...]


def measure_promptable(
    bundle: Bundle, options: TuneOptions | None = None, report: Report | None = None
) -> tuple[BackendCheck, ...]:
    """Compare and time every installed backend that runs graphs, in every precision that this chip has.

    Each is loaded alone, so that idle threads of one do not slow the next.
    """
    options = options or TuneOptions()
    checks: list[BackendCheck] = []
    with load(bundle.path, backend=DEFAULT_BACKEND, precision=EXACT, threads=options.threads) as predictor:
        cases = tuple(_reference(predictor))
    for backend, precision in candidates():
        checks.append(_measure(bundle, backend, precision, cases, options))
        if report is not None:
            report(checks[-1])
    for _ in range(ROUNDS - 1):
        checks = [_time_again(bundle, check, cases[0], options) for check in checks]
    return tuple(checks)


def bar_of(precision: str) -> ComparisonBar:
    """Return the bar that a precision is held against."""
    return ComparisonBar() if precision == EXACT else REDUCED_BAR


def _reference(predictor: Predictor) -> Iterator[_Case]:
    for pixels in comparison_images():
        embedding = predictor.encode(pixels)
        calls = []
        for mix in prompt_mixes(pixels.shape[:2], predictor.manifest.geometry.low_res_size):
            prompts = list(mix.prompts)
            calls.append((prompts, *predictor.decode_low_res(embedding, prompts)))
        yield _Case(pixels, embedding, tuple(calls))


def _measure(
    bundle: Bundle, backend: str, precision: str, cases: tuple[_Case, ...], options: TuneOptions
) -> BackendCheck:
    facts: dict[str, Any] = {
        **describe_candidate(backend, precision, options),
        "bar": bar_of(precision),
    }
    nothing: dict[str, Any] = {"load_ms": None, "encode_ms": None, "decode_ms": None, "comparison": [], "passed": False}
    try:
        # Once before, so that compiling is not counted, which happens once on a machine.
        load(bundle.path, backend=backend, precision=precision, threads=options.threads).close()
        started = time.perf_counter()
        with load(bundle.path, backend=backend, precision=precision, threads=options.threads) as predictor:
            load_ms = 1e3 * (time.perf_counter() - started)
            rows = _compare(f"{backend} {precision}", predictor, cases, bar_of(precision))
            encode_ms, decode_ms = _time(predictor, cases[0], options.repeats)
    except SegshipError as error:
        return BackendCheck(**facts, **nothing, problem=str(error)[:4096])
    return BackendCheck(
        **facts,
        load_ms=round(load_ms, 1),
        encode_ms=round(encode_ms, 2),
        decode_ms=round(decode_ms, 2),
        comparison=rows,
        passed=all(row.passed for row in rows),
    )


def _time_again(bundle: Bundle, check: BackendCheck, case: _Case, options: TuneOptions) -> BackendCheck:
    if check.encode_ms is None or check.decode_ms is None:
        return check
    with load(bundle.path, backend=check.backend, precision=check.precision, threads=options.threads) as predictor:
        # The first run of a session plans its memory and is no measure.
        predictor.encode(case.pixels)
        encode_ms, decode_ms = _time(predictor, case, options.repeats)
    return check.model_copy(
        update={
            "encode_ms": min(check.encode_ms, round(encode_ms, 2)),
            "decode_ms": min(check.decode_ms, round(decode_ms, 2)),
        }
    )


def _compare(step: str, predictor: Predictor, cases: tuple[_Case, ...], bar: ComparisonBar) -> list[ComparisonStep]:
    """Return four rows: embedding, logits and scores of the decoder on the reference's embedding, masks end to end."""
    embeddings, logits, scores = [], [], []
    ious: list[float] = []
    for case in cases:
        made = predictor.encode(case.pixels)
        embeddings.append((case.embedding.image_embeddings, made.image_embeddings))
        for prompts, expected_scores, expected in case.calls:
            found_scores, found = predictor.decode_low_res(case.embedding, prompts)
            scores.append((expected_scores, found_scores))
            logits.append((expected, found))
            _, chained = predictor.decode_low_res(made, prompts)
            ious.extend(
                mask_iou(predictor.upscale(expected[at], made) > 0.0, predictor.upscale(chained[at], made) > 0.0)
                for at in np.ndindex(expected.shape[:2])
            )
    return [
        tensor_step(step, "image_encoder", "image_embeddings", embeddings, bar),
        tensor_step(step, "mask_decoder", "low_res_masks", logits, bar),
        tensor_step(step, "mask_decoder", "iou_predictions", scores, bar),
        mask_step(step, ious, bar),
    ]


def _time(predictor: Predictor, case: _Case, repeats: int) -> tuple[float, float]:
    """Return the fewest milliseconds of encoding the image and of decoding `CLICKS` one-point objects on it."""
    height, width = case.pixels.shape[:2]
    places = np.linspace(0.1, 0.9, CLICKS)[:, None, None] * np.array([width, height])
    clicks = Prompts(points=places)
    encode = [_milliseconds(lambda: predictor.encode(case.pixels)) for _ in range(repeats)]
    embedding = predictor.encode(case.pixels)
    # The first call with this number of objects plans for it.
    predictor.decode_low_res(embedding, clicks)
    decode = [_milliseconds(lambda: predictor.decode_low_res(embedding, clicks)) for _ in range(max(repeats, 5))]
    return min(encode), min(decode)


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)
