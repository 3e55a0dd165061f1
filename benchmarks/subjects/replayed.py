# SPDX-License-Identifier: Apache-2.0
"""Everything in a picture on the replay workload, from JPEG bytes to COCO RLE records, by the reference and by us."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.prepared import PHOTO_SIZE, WorkFolder
from benchmarks.replay import MASKS, Replay

if TYPE_CHECKING:
    from segship.promptable.everything.options import Mode


def make_replay(folder: WorkFolder, points_per_side: int) -> Replay:
    """Return the workload for the photograph."""
    geometry = folder.config.geometry
    scale = geometry.image_size / max(PHOTO_SIZE)
    width, height = (int(side * scale + 0.5) for side in PHOTO_SIZE)
    return Replay(points_per_side, (height, width), geometry.image_size, geometry.low_res_size)


def record_digests(records: list[dict[str, Any]]) -> NDArray[np.uint32]:
    """Return a number for every record's mask, by which two sides' masks are compared bit for bit."""
    return np.array([zlib.crc32(record["segmentation"]["counts"].encode()) for record in records], np.uint32)


class _Everything:
    """What both sides share: the bytes, the workload, and what is said of a run."""

    described: dict[str, Any]

    def __init__(self, work: str, model: str, points_per_side: int) -> None:
        self.folder = WorkFolder(Path(work), model)
        self.replay = make_replay(self.folder, points_per_side)
        self.jpeg = self.folder.photo().read_bytes()
        self.records: list[dict[str, Any]] = []

    def call(self) -> None:
        """Make the records of the photograph."""
        self.replay.restart()
        self.records = self.generate()

    def generate(self) -> list[dict[str, Any]]:
        """Return records with COCO RLE."""
        raise NotImplementedError

    def answer(self) -> dict[str, Any]:
        """Return the masks' digests."""
        return {"records_set": record_digests(self.records)}

    def figures(self) -> dict[str, Any]:
        """Return how many masks were found and made, and the seconds of drawing ellipses, which do not count.

        ``passing_part`` is the part of the workload's masks that pass the predicted IoU's threshold; the others say
        which part of its objects was upscaled at all, and which part of its masks was made (four an object, one of
        which everything mode never takes).
        """
        replay = self.replay
        return {
            "excluded_s": replay.seconds,
            "points": replay.points,
            "records": len(self.records),
            "passing_part": round(replay.passing_part(), 4),
            **({} if replay.made is None else {"objects_upscaled_part": round(replay.made[0] / replay.points, 4)}),
            **({} if replay.made is None else {"masks_made_part": round(replay.made[1] / replay.points / 4, 4)}),
        }


class Reference(_Everything):
    """`SamAutomaticMaskGenerator` of the reference with its defaults, the photograph read as its notebook does.

    It gets our box NMS in the place of torchvision's, which is not here; a Python loop there would be unfair to it.
    """

    def __init__(
        self, work: str, model: str, precision: str, threads: int, points_per_side: int, device: str = "cpu"
    ) -> None:
        super().__init__(work, model, points_per_side)
        import torch

        from benchmarks.subjects.reference import build_model, described

        self.described = described(model, precision, threads, device)
        self._scope = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        self._generator = self._make_generator(build_model(Path(work), model).to(device), points_per_side)
        # The first run of an encoder is slower than all others; it does not count on either side.
        with self._scope:
            self._generator.predictor.set_image(self._read())

    def generate(self) -> list[dict[str, Any]]:
        """Return the reference's own records."""
        with self._scope:
            records: list[dict[str, Any]] = self._generator.generate(self._read())
        return records

    def _read(self) -> Any:
        import cv2

        return cv2.cvtColor(cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def _make_generator(self, sam: Any, points_per_side: int) -> Any:
        import sys

        import torch
        from segment_anything import SamAutomaticMaskGenerator
        from torch import nn

        from segship.masks.nms import box_nms

        replay = self.replay

        class RecordedPrompts(nn.Module):
            """The prompt encoder, which remembers what it was asked."""

            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.inner = inner
                self.coords: Any = None

            def forward(self, points: Any, boxes: Any, masks: Any) -> Any:
                self.coords = points[0][:, 0].cpu().numpy()
                return self.inner(points=points, boxes=boxes, masks=masks)

            def get_dense_pe(self) -> Any:
                return self.inner.get_dense_pe()

        class ReplayedDecoder(nn.Module):
            """The mask decoder, which runs and is not listened to."""

            def __init__(self, inner: Any, prompts: RecordedPrompts) -> None:
                super().__init__()
                self.inner = inner
                self.prompts = [prompts]

            def forward(self, **inputs: Any) -> Any:
                masks, _ = self.inner(**inputs)
                ious, logits = replay.answer(self.prompts[0].coords)
                assert masks.shape == logits.shape
                return torch.from_numpy(logits).to(masks.device), torch.from_numpy(ious).to(masks.device)

        sam.prompt_encoder = RecordedPrompts(sam.prompt_encoder)
        sam.mask_decoder = ReplayedDecoder(sam.mask_decoder, sam.prompt_encoder)
        vars(sys.modules["segment_anything.automatic_mask_generator"])["batched_nms"] = (
            lambda boxes, scores, idxs, iou_threshold: torch.from_numpy(
                box_nms(boxes.cpu().numpy(), scores.float().cpu().numpy(), iou_threshold)
            ).to(boxes.device)
        )
        return SamAutomaticMaskGenerator(sam, points_per_side=points_per_side, output_mode="coco_rle")


class Ours(_Everything):
    """`segship.generate_masks` with its defaults, in a mode."""

    def __init__(
        self,
        work: str,
        model: str,
        engine: str,
        precision: str,
        threads: int,
        points_per_side: int,
        device: str = "cpu",
        mode: Mode = "fast",
    ) -> None:
        super().__init__(work, model, points_per_side)
        from benchmarks.subjects.ours import described, first_load, load_ours
        from segship import AmgOptions

        self._predictor = load_ours(work, model, engine, precision, threads, device)
        self._options = AmgOptions(points_per_side=points_per_side, mode=mode)
        self.described = described(self._predictor, precision, threads)
        self._first = first_load(work, model, engine, precision)
        self._parts: dict[str, float] = {}
        replay_sessions(self._predictor, self.replay, self._parts)

    def figures(self) -> dict[str, Any]:
        """Return what the first load took as well, and the seconds of each part of the last run."""
        return {**super().figures(), **self._first, "parts_s": {name: round(s, 3) for name, s in self._parts.items()}}

    def generate(self) -> list[dict[str, Any]]:
        """Return our records as the reference has them; what is in no session is ours."""
        from segship.images import read_image
        from segship.promptable.everything.search import generate_loaded

        self._parts.clear()
        started = time.perf_counter()
        loaded = read_image(self.jpeg)
        read = time.perf_counter()
        found = generate_loaded(self._predictor, loaded, self._options)
        done = time.perf_counter()
        records = [record.to_dict("coco_rle") for record in found.records]
        sessions = sum(self._parts.values()) + self.replay.seconds
        self._parts["read"] = read - started
        self._parts["prepare, filters, duplicates, run lengths"] = done - read - sessions
        self._parts["records with COCO RLE"] = time.perf_counter() - done
        return records


class _Timed:
    """A session whose seconds are added up under its name."""

    def __init__(self, inner: Any, name: str, parts: dict[str, float]) -> None:
        self._inner, self._name, self._parts = inner, name, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def fixed(self, sizes: Any) -> _Timed:
        """Time the session for some sizes."""
        return _Timed(self._inner.fixed(sizes), self._name, self._parts)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run and add the time."""
        started = time.perf_counter()
        outputs: dict[str, NDArray[Any]] = self._inner.run(inputs)
        self._parts[self._name] = self._parts.get(self._name, 0.0) + time.perf_counter() - started
        return outputs


def replay_sessions(predictor: Any, replay: Replay, parts: dict[str, float]) -> None:
    """Let every decoder of a predictor run for real and give the workload's answers; ``parts`` gets seconds."""
    for name in predictor._sessions:
        predictor._sessions[name] = _Timed(predictor._sessions[name], name, parts)
    for name, session in predictor._sessions.items():
        outputs = {tensor.name for tensor in session.spec.outputs}
        if outputs >= {"iou_predictions", "low_res_masks"}:
            kind = _ReplayedSelection if "kept" in outputs else _ReplayedSession
            predictor._sessions[name] = kind(session, replay)


class _ReplayedSession:
    """A decoder's session, which runs and is not listened to."""

    def __init__(self, inner: Any, replay: Replay) -> None:
        self._inner = inner
        self._replay = replay

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run, then answer with ellipses; the single-mask token, which everything mode never takes, gets nothing."""
        outputs = self._inner.run(inputs)
        ious, logits = self._replay.answer(inputs["point_coords"][:, 0])
        with self._replay.uncounted():
            masks = np.zeros((len(ious), MASKS + 1, *logits.shape[2:]), np.float32)
            masks[:, 1:] = logits
        assert outputs["low_res_masks"].shape == masks.shape, f"{outputs['low_res_masks'].shape} and not {masks.shape}"
        self._replay.count_made(len(ious), masks.shape[0] * masks.shape[1])
        return {**outputs, "iou_predictions": _with_single(ious), "low_res_masks": masks}


class _ReplayedSelection(_ReplayedSession):
    """A decoder that makes only masks that pass: it makes as many as, and for the objects that, the workload says.

    Its thresholds become minus infinity where the workload's score passes the threshold that was asked for, and
    infinity elsewhere. So it does the work of the recorded scores, whatever its random weights think.
    """

    def fixed(self, sizes: Any) -> _ReplayedSelection:
        """Replay the session for some sizes."""
        return _ReplayedSelection(self._inner.fixed(sizes), self._replay)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run for the masks that pass, then answer with their ellipses."""
        ious, logits = self._replay.answer(inputs["point_coords"][:, 0])
        with self._replay.uncounted():
            scores = _with_single(ious)
            passes = scores > inputs["min_iou"]
            forced = np.where(passes, np.float32(-np.inf), np.float32(np.inf))
            _, rows, columns, _ = inputs["upscaled"].shape
            kept = np.argwhere(passes)
            masks = logits[kept[:, 0], kept[:, 1] - 1, : 4 * rows, : 4 * columns]
        outputs = self._inner.run({**inputs, "min_iou": forced})
        assert np.array_equal(outputs["kept"], kept), "other masks were kept than passed"
        assert outputs["low_res_masks"].shape == masks.shape, f"{outputs['low_res_masks'].shape} and not {masks.shape}"
        self._replay.count_made(len(np.unique(kept[:, 0])), len(kept))
        return {**outputs, "iou_predictions": scores, "low_res_masks": masks}


def _with_single(ious: NDArray[np.float32]) -> NDArray[np.float32]:
    """Put a score of 0 for the single-mask token, which everything mode never takes, before those of the workload."""
    return np.pad(ious, ((0, 0), (1, 0)))
