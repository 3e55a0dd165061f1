# SPDX-License-Identifier: Apache-2.0
"""Semantic bundles: every installed backend against the bundle's graph in ONNX Runtime in fp32.

What is timed is one picture through the graph, tensor in and answer out; reading and resizing are the same in all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.backends.choice import DEFAULT_BACKEND, EXACT
from segship.backends.opening import open_sessions
from segship.backends.session import Session, SessionOptions
from segship.bundle import Bundle
from segship.bundle.agreement import class_map_step, logits_step
from segship.bundle.measured import SemanticBar, SemanticCheck, SemanticStep
from segship.cases import comparison_tensors
from segship.errors import SegshipError
from segship.semantic.manifest import SemanticManifest
from segship.tune.candidates import ROUNDS, Report, TuneOptions, candidates, describe_candidate

TUNED_SIZE = (512, 1024)
"""(height, width) of the pictures for a bundle that takes any size."""

REDUCED_SEMANTIC_BAR = SemanticBar(cosine=0.998, max_abs=0.1, pixels_equal=0.97)
"""How far bfloat16 and float16 may move things.

Logits as in `segship.tune.promptable.REDUCED_BAR`. Of the pixels 97 in 100 have to keep their class: two people who
label the same street agree on 96 (Cityscapes, arXiv:1604.01685, section 2.2). What differs lies along outlines and
where the model is unsure: bfloat16 kept 98.5 of a semask_s with random weights, which is unsure everywhere.
"""

Tensor = NDArray[np.float32]
Answer = NDArray[Any]


def measure_semantic(
    bundle: Bundle, options: TuneOptions | None = None, report: Report | None = None
) -> tuple[SemanticCheck, ...]:
    """Compare and time every installed backend that runs graphs, in every precision that this chip has."""
    options = options or TuneOptions()
    manifest = bundle.manifest
    assert isinstance(manifest, SemanticManifest)
    entry = manifest.preprocessing
    size = manifest.size or TUNED_SIZE
    tensors = comparison_tensors(size, entry.pixel_mean, entry.pixel_std)
    with _open(bundle, DEFAULT_BACKEND, EXACT, options) as session:
        expected = tuple(_answer(session, tensor) for tensor in tensors)
    checks: list[SemanticCheck] = []
    for backend, precision in candidates():
        checks.append(_measure(bundle, backend, precision, size, tensors, expected, options))
        if report is not None:
            report(checks[-1])
    for _ in range(ROUNDS - 1):
        checks = [_time_again(bundle, check, tensors[0], options) for check in checks]
    return tuple(checks)


def _open(bundle: Bundle, backend: str, precision: str, options: TuneOptions) -> Session:
    settings = SessionOptions(threads=options.threads, precision=precision)
    return open_sessions(bundle, backend, settings)["semantic"]


def _answer(session: Session, tensor: Tensor) -> Answer:
    # Engines may answer in memory that their next run changes.
    (answer,) = session.run({"image": tensor}).values()
    return np.array(answer)


def _measure(
    bundle: Bundle,
    backend: str,
    precision: str,
    size: tuple[int, int],
    tensors: tuple[Tensor, ...],
    expected: tuple[Answer, ...],
    options: TuneOptions,
) -> SemanticCheck:
    bar = SemanticBar() if precision == EXACT else REDUCED_SEMANTIC_BAR
    facts: dict[str, Any] = {
        **describe_candidate(backend, precision, options),
        "size": size,
        "bar": bar,
    }
    nothing: dict[str, Any] = {"load_ms": None, "segment_ms": None, "comparison": [], "passed": False}
    try:
        # Once before, so that compiling is not counted, which happens once on a machine.
        _open(bundle, backend, precision, options).close()
        started = time.perf_counter()
        with _open(bundle, backend, precision, options) as session:
            load_ms = 1e3 * (time.perf_counter() - started)
            found = tuple(_answer(session, tensor) for tensor in tensors)
            segment_ms = _time(session, tensors[0], options.repeats)
    except SegshipError as error:
        return SemanticCheck(**facts, **nothing, problem=str(error)[:4096])
    rows = _compare(f"{backend} {precision}", expected, found, bar)
    return SemanticCheck(
        **facts,
        load_ms=round(load_ms, 1),
        segment_ms=round(segment_ms, 2),
        comparison=rows,
        passed=all(row.passed for row in rows),
    )


def _time_again(bundle: Bundle, check: SemanticCheck, tensor: Tensor, options: TuneOptions) -> SemanticCheck:
    if check.segment_ms is None:
        return check
    with _open(bundle, check.backend, check.precision, options) as session:
        # The first run of a session plans its memory and is no measure.
        _answer(session, tensor)
        again = _time(session, tensor, options.repeats)
    return check.model_copy(update={"segment_ms": min(check.segment_ms, round(again, 2))})


def _compare(
    step: str, expected: tuple[Answer, ...], found: tuple[Answer, ...], bar: SemanticBar
) -> list[SemanticStep]:
    """Return a row of class maps, and one of logits where the graph gives them."""
    pairs = list(zip(expected, found, strict=True))
    if expected[0].dtype != np.float32:
        return [class_map_step(step, pairs, bar)]
    maps = [(logits.argmax(axis=1), other.argmax(axis=1)) for logits, other in pairs]
    return [logits_step(step, pairs, bar), class_map_step(step, maps, bar)]


def _time(session: Session, tensor: Tensor, repeats: int) -> float:
    """Return the fewest milliseconds of a picture through the graph."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run({"image": tensor})
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)
