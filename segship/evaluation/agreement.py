# SPDX-License-Identifier: Apache-2.0
"""How far a model's answers to an image list are those of the reference, and how good both are against the truth.

A tally counts one picture after the other, so that no more than one has to be in memory, and gives rows of evidence and
scores. One class a task; what they count are the answers that ``answer_listed`` of the task gives.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Protocol

import numpy as np

from segship.arrays import Size
from segship.bundle.evidence import LOW_IOU, Bar, Evidence, Row, TensorErrors, figures_row, mask_figures
from segship.bundle.manifest import Manifest
from segship.datasets.image_list import ListedPicture
from segship.evaluation.report import ConfusionMatrix
from segship.masks.rle import Runs, mask_to_runs, runs_to_mask
from segship.masks.scores import boundary_f_score, mask_ious
from segship.promptable.task import ListedAnswer as PromptableAnswer
from segship.semantic.manifest import SemanticManifest
from segship.semantic.task import ListedAnswer as SemanticAnswer

BOUNDARY_PX = 2.0


class Tally(Protocol):
    """What was counted of a model's answers to pictures of an image list."""

    @property
    def outputs(self) -> str:
        """SHA-256 of all outputs so far."""

    @property
    def agreements(self) -> list[float]:
        """The IoU of every mask, or of every class map, with the reference's."""

    def add(self, picture: ListedPicture, expected: Any, found: Any) -> None:
        """Count the answers to a picture: the reference's, and those that are judged."""

    def rows(self, step: str, bar: Bar) -> list[Row]:
        """Return the rows of evidence of all that was counted."""

    def scores(self) -> dict[str, float]:
        """Return the scores of what was found against the truth; none where no picture has one."""


def make_tally(manifest: Manifest) -> Tally:
    """Return an empty tally for a model."""
    if isinstance(manifest, SemanticManifest):
        return SemanticTally(len(manifest.table.classes))
    return PromptableTally()


class _Tensors:
    """Errors of every output of every graph, and a digest of all outputs."""

    def __init__(self) -> None:
        self._errors: dict[tuple[str, str], TensorErrors] = defaultdict(TensorErrors)
        self._digest = hashlib.sha256()

    @property
    def outputs(self) -> str:
        """SHA-256 of all outputs so far."""
        return self._digest.hexdigest()

    def add(self, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        for graph, outputs in found.items():
            for name, arrays in outputs.items():
                for array in arrays:
                    self._digest.update(np.ascontiguousarray(array).tobytes())
                if arrays[0].dtype.kind != "f" or name not in expected[graph]:
                    continue
                # Refined masks come last, and one of the decoders does not take them.
                for known, array in zip(expected[graph][name][: len(arrays)], arrays, strict=True):
                    self._errors[graph, "all tensors" if graph == "image_side" else name].add(known, array)

    def rows(self, step: str, bar: Bar) -> Iterator[Row]:
        for (graph, name), errors in self._errors.items():
            yield figures_row(step, graph, name, errors.pairs, errors.figures(), bar)


class PromptableTally:
    """Masks as people get them, and every tensor on the way; see `Tally`."""

    def __init__(self) -> None:
        self._tensors = _Tensors()
        self._ious: dict[str, list[float]] = defaultdict(list)
        self._boundaries: dict[str, list[float]] = defaultdict(list)
        self._score_errors: dict[str, list[float]] = defaultdict(list)
        self._flips: dict[str, int] = defaultdict(int)
        self._truth: dict[str, list[float]] = defaultdict(list)

    @property
    def outputs(self) -> str:
        """SHA-256 of all outputs so far."""
        return self._tensors.outputs

    @property
    def agreements(self) -> list[float]:
        """The IoU of every mask with the reference's."""
        return [iou for ious in self._ious.values() for iou in ious]

    def add(self, picture: ListedPicture, expected: PromptableAnswer, found: PromptableAnswer) -> None:
        """Count the answers to a picture."""
        size_hw = picture.loaded.size_hw
        # What gives the same masks in fewer steps is held against the graph whose work it repeats.
        decoded = expected.tensors["mask_decoder"]
        self._tensors.add({**expected.tensors, "selective_decoder": decoded}, found.tensors)
        for kind, objects in found.masks.items():
            for one, other in zip(expected.masks[kind], objects, strict=True):
                for known, made in zip(one, other, strict=True):
                    self._count_mask(kind, known, made, size_hw)
            errors = np.abs(expected.scores[kind] - found.scores[kind])
            self._score_errors[kind] += errors.ravel().tolist()
        if picture.truth is not None:
            self._count_truth(picture, found)

    def _count_mask(self, kind: str, known: Runs, made: Runs, size_hw: Size) -> None:
        iou = float(mask_ious([known], [made], height=size_hw[0])[0, 0])
        self._ious[kind].append(iou)
        areas = [int(runs[1::2].sum()) for runs in (known, made)]
        extremes = (0, size_hw[0] * size_hw[1])
        self._flips[kind] += any((area in extremes) for area in areas) and areas[0] != areas[1]
        same = iou == 1
        score = 1.0 if same else boundary_f_score(*(runs_to_mask(runs, size_hw) for runs in (known, made)))
        self._boundaries[kind].append(score)

    def _count_truth(self, picture: ListedPicture, found: PromptableAnswer) -> None:
        """Score a click by the best of its masks and by the one ranked first, and a box by its mask."""
        asked = picture.entry.objects
        for kind in ("click", "box"):
            segments = [entry.segment for entry in asked if entry.kind == kind]
            for place, segment in enumerate(segments):
                if segment is None:
                    continue
                truth = mask_to_runs(np.asarray(picture.truth == segment, np.bool_))
                ious = mask_ious([truth], found.masks[kind][place], height=picture.loaded.size_hw[0])[0]
                if kind == "box":
                    self._truth["box"].append(float(ious[0]))
                else:
                    self._truth["click_best"].append(float(ious.max()))
                    self._truth["click_first"].append(float(ious[int(found.scores[kind][place].argmax())]))

    def rows(self, step: str, bar: Bar) -> list[Row]:
        """Return a row for every output, one for all masks, and one for those of each kind of prompt, which is told."""
        masks = [
            figures_row(step, "all graphs", f"masks, {kind}", len(ious), self._mask_figures((kind,)), {})
            for kind, ious in self._ious.items()
        ]
        whole = []
        if self._ious:
            figures = self._mask_figures(tuple(self._ious))
            whole = [figures_row(step, "all graphs", "masks", len(self.agreements), figures, list_bar(bar))]
        return [*self._tensors.rows(step, bar), *whole, *masks]

    def _mask_figures(self, kinds: Sequence[str]) -> dict[str, float]:
        def gathered(lists: Mapping[str, list[float]]) -> list[float]:
            return [value for kind in kinds for value in lists[kind]]

        return {
            **mask_figures(gathered(self._ious)),
            "boundary_f": float(np.mean(gathered(self._boundaries))),
            "iou_error": float(np.mean(gathered(self._score_errors))),
            "flips": float(sum(self._flips[kind] for kind in kinds)),
        }

    def scores(self) -> dict[str, float]:
        """Return the mean IoU with the segments of the truth, by how it was asked for."""
        return {name: float(np.mean(ious)) for name, ious in self._truth.items()}


def list_bar(bar: Bar) -> Bar:
    """Return the bar for masks of a list: of hundreds the lowest says little; the 5th percentile takes its place."""
    lowest = bar.get("mask_iou_min")
    held = {name: least for name, least in bar.items() if name != "mask_iou_min"}
    return held if lowest is None or "mask_iou_p5" in bar else {**held, "mask_iou_p5": lowest}


class SemanticTally:
    """Class maps at the size of the picture, and logits where the graph gives them; see `Tally`."""

    def __init__(self, classes: int) -> None:
        self._tensors = _Tensors()
        self._equal: list[float] = []
        self._agreements: list[float] = []
        self._between, self._truth = ConfusionMatrix(classes), ConfusionMatrix(classes)

    @property
    def outputs(self) -> str:
        """SHA-256 of all outputs so far."""
        return self._tensors.outputs

    @property
    def agreements(self) -> list[float]:
        """The mean IoU of the classes of every map with the reference's."""
        return self._agreements

    def add(self, picture: ListedPicture, expected: SemanticAnswer, found: SemanticAnswer) -> None:
        """Count the answers to a picture."""
        self._tensors.add(expected.tensors, found.tensors)
        self._equal.append(float(np.mean(expected.class_map == found.class_map)))
        self._between.add(found.class_map, expected.class_map)
        between = ConfusionMatrix(self._between.classes)
        between.add(found.class_map, expected.class_map)
        self._agreements.append(between.scores().mean_iou)
        if picture.truth is not None:
            self._truth.add(found.class_map, picture.truth.astype(np.uint8))

    def rows(self, step: str, bar: Bar) -> list[Row]:
        """Return a row of logits, where there are any, and one of class maps."""
        figures = {"pixels_equal": float(np.mean(self._equal)), "map_iou": self._between.scores().mean_iou}
        maps = figures_row(step, "semantic", "class_map", len(self._equal), figures, bar)
        return [*self._tensors.rows(step, bar), maps]

    def scores(self) -> dict[str, float]:
        """Return mIoU and pixel accuracy."""
        found = self._truth.scores()
        figures = {"miou": found.mean_iou, "pixel_accuracy": found.pixel_accuracy}
        return {name: value for name, value in figures.items() if not math.isnan(value)}


def draw_agreements(title: str, agreements: Mapping[str, Sequence[float]], evidence: Mapping[str, Evidence]) -> str:
    """Return the distribution of IoUs with the reference as an SVG, a panel for each name; below 0.8 counts as 0.8.

    Beside it the relative L2 error of every output, in the order in which graphs run, on a logarithmic scale.
    """
    bins, step, left, panel = 40, 12, 240, 110
    width, height = left + step * bins + 500, 60 + panel * len(agreements)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        "<style>text{font:13px system-ui,sans-serif;fill:#222}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="24">{escape(title)}</text>',
    ]
    for place, (name, values) in enumerate(agreements.items()):
        base = 40 + panel * (place + 1) - 22
        told = name, f"mean {np.mean(values):.4f}", f"5th percentile {np.percentile(values, 5):.4f}"
        lines += [f'<text x="12" y="{base - 44 + 18 * row}">{escape(text)}</text>' for row, text in enumerate(told)]
        counts, edges = np.histogram(np.clip(values, 0.8, 1), bins, (0.8, 1))
        for bin, (edge, part) in enumerate(zip(edges, counts / max(1, counts.max()), strict=False)):
            box = f'x="{left + step * bin}" y="{base - 60 * part:.1f}" width="{step - 2}" height="{60 * part:.1f}"'
            lines.append(f'<rect {box} fill="{"#b5432e" if edge < LOW_IOU - 1e-9 else "#2f6f9f"}"/>')
        lines.append(f'<line x1="{left}" x2="{left + step * bins}" y1="{base}" y2="{base}" stroke="#222"/>')
        marks = ((left + step * bins * part - 10, 0.8 + 0.2 * part) for part in (0, 0.5, 1))
        lines += [f'<text x="{x:.0f}" y="{base + 15}">{mark:.1f}</text>' for x, mark in marks]
        lines += _error_bars(evidence[name], left + step * bins + 40, base - 70)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _error_bars(evidence: Evidence, left: int, top: int) -> Iterator[str]:
    """Yield a bar for every output: the longest is an error as large as the output, none is a millionth."""
    rows = [row for row in evidence.rows if "relative_l2" in row.figures]
    for place, row in enumerate(rows):
        error, y = row.figures["relative_l2"], top + 15 * place
        length = 0.0 if not error else max(0.0, 20 * (math.log10(error) + 6))
        told = "not finite" if error is None else f"{error:.1e}"
        yield f'<rect x="{left}" y="{y}" width="{length:.1f}" height="10" fill="#c27a2c"/>'
        yield f'<text x="{left + length + 6:.1f}" y="{y + 10}">{escape(f"{row.graph} {row.what} {told}")}</text>'
