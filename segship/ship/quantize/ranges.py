# SPDX-License-Identifier: Apache-2.0
"""What tensors inside a graph hold, recorded while it answers; statistics are taken in the graph and streamed.

For every tensor the graph itself reduces what it holds: the least and largest value of each channel, and
every thirteenth element. So nothing large leaves a run, images go through one by one, and memory is that of one run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from segship.arrays import AnyArray, FloatArray
from segship.backends.session import Session
from segship.ship.quantize.opened import OpenGraph
from segship.spec import GraphSpec

BINS = 4096
STEP = 13
"""A prime that divides no number of channels, so that elements of all channels are taken."""
_LEAST_WIDTH = 2.0**-40


@dataclass(slots=True)
class Recorded:
    """What one tensor held over all images.

    Attributes
    ----------
    channel_min, channel_max
        (C,) over the last axis, float64; one of all where that axis has another length in every run.
    counts
        A histogram of elements from ``-width * BINS / 2`` to ``width * BINS / 2``.
    width
        Of a bin; a power of two, doubled when a value lies beyond.
    """

    channel_min: AnyArray
    channel_max: AnyArray
    counts: AnyArray = field(default_factory=lambda: np.zeros(BINS))
    width: float = _LEAST_WIDTH

    @property
    def low(self) -> float:
        """The least value of all."""
        return float(self.channel_min.min())

    @property
    def high(self) -> float:
        """The largest value of all."""
        return float(self.channel_max.max())

    @property
    def magnitude(self) -> float:
        """The largest magnitude; infinite where a value was not finite."""
        largest = max(abs(self.low), abs(self.high))
        return largest if math.isfinite(largest) else math.inf

    def add(self, low: AnyArray, high: AnyArray, sample: AnyArray) -> None:
        """Add what one run gave."""
        if low.shape != self.channel_min.shape:
            # The last axis is one of prompts, or of masks: there are no channels.
            low, high = low.min(), high.max()
            self.channel_min, self.channel_max = self.channel_min.min(), self.channel_max.max()
        self.channel_min = np.minimum(self.channel_min, low)
        self.channel_max = np.maximum(self.channel_max, high)
        sample = sample[np.isfinite(sample)]
        largest = float(np.abs(sample).max(initial=0))
        while largest >= self.width * BINS / 2:
            self._double()
        places = np.floor(sample / self.width).astype(np.int64) + BINS // 2
        self.counts += np.bincount(places, minlength=BINS)

    def _double(self) -> None:
        """Make the bins twice as wide."""
        half = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.concatenate([np.zeros(BINS // 4), half, np.zeros(BINS // 4)])
        self.width *= 2

    @property
    def centers(self) -> FloatArray:
        """The middle of every bin."""
        return (np.arange(BINS) - BINS // 2 + 0.5) * self.width


class RecordingSession(Session):
    """A graph in ONNX Runtime that answers as it would, and records what tensors inside it hold.

    Parameters
    ----------
    graph
        A float32 graph.
    spec
        Its contract.
    names
        Float tensors inside, of one axis or more.
    threads
        All usable cores when left out.
    """

    def __init__(self, graph: OpenGraph, spec: GraphSpec, names: Iterable[str], threads: int | None = None) -> None:
        self.spec, self.description = spec, "onnxruntime, recording"
        self.recorded: dict[str, Recorded] = {}
        self._names = list(dict.fromkeys(names))
        reduced = graph.copied()
        self._asked = [output for name in self._names for output in _reduce(reduced, name)]
        self._session = reduced.session(self._asked, threads)

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Run the graph once and add what its tensors held."""
        outputs = [tensor.name for tensor in self.spec.outputs]
        taken = {value.name: inputs[value.name] for value in self._session.get_inputs()}
        answers = self._session.run([*outputs, *self._asked], taken)
        statistics = iter(answers[len(outputs) :])
        for name, (low, high, sample) in zip(self._names, zip(*(statistics,) * 3, strict=True), strict=True):
            if name not in self.recorded:
                self.recorded[name] = Recorded(np.full(low.shape, np.inf), np.full(low.shape, -np.inf))
            self.recorded[name].add(low, high, sample)
        return dict(zip(outputs, answers, strict=False))


def _reduce(graph: OpenGraph, name: str) -> list[str]:
    """Add the nodes that reduce one tensor, and return their outputs: least, largest and sample."""
    flat, rows = f"{name}.flat", f"{name}.rows"
    outputs = [f"{name}.low", f"{name}.high", f"{name}.sample"]
    constants = {
        "range.all": np.array([-1]),
        "range.first": np.array([0]),
        "range.last": np.array([np.iinfo(np.int64).max]),
        "range.step": np.array([STEP]),
        "range.minus": np.array([-1]),
        "range.end": np.array([np.iinfo(np.int64).max]),
    }
    for constant, value in constants.items():
        graph.add_constant(constant, value.astype(np.int64))
    graph.nodes.extend(
        [
            helper.make_node("Reshape", [name, "range.all"], [flat]),
            helper.make_node("Slice", [flat, "range.first", "range.last", "range.first", "range.step"], outputs[2:]),
            helper.make_node("Shape", [name], [f"{name}.shape"]),
            helper.make_node("Slice", [f"{name}.shape", "range.minus", "range.end"], [f"{name}.channels"]),
            helper.make_node("Concat", ["range.all", f"{name}.channels"], [f"{name}.two"], axis=0),
            helper.make_node("Reshape", [name, f"{name}.two"], [rows]),
            _reduction("ReduceMin", rows, outputs[0]),
            _reduction("ReduceMax", rows, outputs[1]),
        ]
    )
    return outputs


def _reduction(kind: str, rows: str, output: str) -> onnx.NodeProto:
    return helper.make_node(kind, [rows, "range.first"], [output], keepdims=0)
