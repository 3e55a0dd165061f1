# SPDX-License-Identifier: Apache-2.0
"""Prompt tensors through the decoder graphs: which objects take which, how many at once, back in the caller's order.

Between `segship.promptable.prompts`, which makes the tensors, and `segship.promptable.predictor`. An object without a
mask input takes ``selective_decoder``, which does a quarter of the work, and less where only masks of good scores are
wanted (`Decoder.select`). All other objects take ``mask_decoder``, as all do in a bundle that has nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from segship.arrays import AnyArray, BoolArray, FloatArray, IntArray, Size
from segship.spec import LABEL_EMPTY, MASK_TOKENS, SamGeometry, image_side_spec

if TYPE_CHECKING:
    from segship.backends.session import Session

Arrays = Mapping[str, AnyArray]
Decoded = tuple[FloatArray, FloatArray]
"""(N, 4) float32 predicted IoUs and (N, 4, 4h, 4w) float32 logits, the single-mask token first.

(N, 1) and (N, 1, 4h, 4w) from decoders that give one mask."""

# More objects a call gain nothing on a CPU and take more memory; with fewer the tokens' small matrices weigh more.
MOST_OBJECTS_PER_CALL = 8
# A GPU wants large calls; this is the reference's number of points.
OBJECTS_PER_GPU_CALL = 64
# The last-level cache that a call's largest tensor should leave half of free; what small servers and laptops have.
_CACHE_BYTES = 32 * 2**20
# A click is 7 tokens with the decoder's own 5; an attention head is this many channels of the embedding wide.
_TOKENS_OF_A_CLICK = 7
_CHANNELS_PER_HEAD = 32

# Float tensors of the size of the embedding that a two-way decoder holds for each object; measured 45 to 52 MB an
# object for SAM's 4 MiB embedding in ONNX Runtime.
_EMBEDDINGS_PER_OBJECT = 13
# What sharing gains shrinks with the number n of tokens: of its M = heads * n rows an object it makes
# 12 M^2 + 2 M C products for each cell where ``mask_decoder`` makes 6 C^2, with what else they do being equal. With
# SAM's sizes that is even at n = 20, 15 places; the rows pass through memory too, so the line is drawn before.
MOST_SHARED_PLACES = 11


def objects_per_call(geometry: SamGeometry, *, on_gpu: bool = False) -> int:
    """Return how many objects the decoder should take at once; results do not depend on it, but for rounding.

    Examples
    --------
    >>> objects_per_call(SamGeometry(image_size=1024, embedding_channels=256, embedding_size=64))
    8
    """
    cells = geometry.embedding_size**2
    low_rank_bytes = 4 * cells * 2 * _TOKENS_OF_A_CLICK * max(1, geometry.embedding_channels // _CHANNELS_PER_HEAD)
    if on_gpu:
        return OBJECTS_PER_GPU_CALL
    return max(1, min(MOST_OBJECTS_PER_CALL, _CACHE_BYTES // (2 * low_rank_bytes)))


def bytes_per_object(geometry: SamGeometry, points: int = 1) -> int:
    """Return the memory, in bytes, that the decoder's tensors take for each object, of so many points, of a call."""
    heads = max(1, geometry.embedding_channels // _CHANNELS_PER_HEAD)
    # Points attend to one another and to the cells, and these to them: weights, and what they are made of.
    attention = 2 * 4 * heads * points * (points + 2 * geometry.embedding_size**2)
    return _EMBEDDINGS_PER_OBJECT * 4 * geometry.embedding_channels * geometry.embedding_size**2 + attention


def image_side_bytes(geometry: SamGeometry) -> int:
    """Return the memory, in bytes, of what ``image_side`` makes of an image."""
    return sum(4 * int(np.prod([int(size) for size in tensor.shape])) for tensor in image_side_spec(geometry).outputs)


class SelectedMasks(NamedTuple):
    """Of N objects the P masks whose scores are above a threshold."""

    iou_predictions: FloatArray
    """(N, 4), all of them."""
    objects: IntArray
    """(P,), which object each mask is of; never falling."""
    tokens: IntArray
    """(P,), which of an object's four it is."""
    low_res_masks: FloatArray
    """(P, height, width) logits of the part that was asked for."""

    @property
    def scores(self) -> FloatArray:
        """(P,) predicted IoU of each mask."""
        return self.iou_predictions[self.objects, self.tokens]


class Decoder:
    """The decoder graphs of one model.

    Methods take ``image_embeddings`` (1, C, h, w) float32; ``image_side``, what `image_side` made of them, None to make
    it where it is needed; and ``prompts``, the tensors of N objects from `segship.promptable.prompts.encode_prompts`.
    They trust their callers.

    Parameters
    ----------
    sessions
        Graph -> session; ``mask_decoder``, and ``image_side`` with ``selective_decoder`` where the model has them.
    per_call
        Objects of one call, see `objects_per_call`.
    masks
        Masks of an object; only ``mask_decoder`` may give one instead of four.
    """

    def __init__(self, sessions: Mapping[str, Session], per_call: int, masks: int = MASK_TOKENS) -> None:
        self.per_call = per_call
        self.masks = masks
        self._sessions = sessions

    def image_side(self, image_embeddings: FloatArray) -> dict[str, AnyArray] | None:
        """Return what all prompts of an image share, by the names of the graph; None where the model has no such."""
        session = self._sessions.get("image_side")
        return None if session is None else session.run({"image_embeddings": image_embeddings})

    def decode(self, image_embeddings: FloatArray, image_side: Arrays | None, prompts: Arrays) -> Decoded:
        """Return all masks of every object, in the order of the prompts."""
        if not len(prompts["point_labels"]):
            # There is nothing to run: a graph's operators need not take tensors without a value.
            side_hw = tuple(4 * side for side in image_embeddings.shape[2:])
            return np.zeros((0, self.masks), np.float32), np.zeros((0, self.masks, *side_hw), np.float32)
        shared = self._shares(prompts)
        parts: list[tuple[IntArray, FloatArray, FloatArray]] = []
        if shared.any():
            side = image_side or self._made_side(image_embeddings)
            for rows in self._portions(shared):
                parts.append((rows, *self.share(image_embeddings, side, _rows(prompts, rows))))
        for rows in self._portions(~shared):
            tensors = {**_rows(prompts, rows), **_clicks(prompts, rows)}
            found = self._sessions["mask_decoder"].run({"image_embeddings": image_embeddings, **tensors})
            parts.append((rows, found["iou_predictions"], found["low_res_masks"]))
        if len(parts) == 1:
            return parts[0][1:]
        places, ious, masks = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(places)
        in_order = np.array_equal(order, np.arange(len(order)))
        return (ious, masks) if in_order else (ious[order], masks[order])

    def share(self, image_embeddings: FloatArray, image_side: Arrays, prompts: Arrays) -> Decoded:
        """Decode objects without a mask input in one call of the graph that is there for them."""
        tensors = _clicks(prompts, slice(None))
        if "selective_decoder" not in self._sessions:
            # The torch backend on CUDA: a recorded CUDA graph cannot wait for shapes that depend on the data.
            found = self._sessions["shared_decoder"].run({**image_side, **tensors})
            return found["iou_predictions"], found["low_res_masks"]
        grid_hw = (image_embeddings.shape[2], image_embeddings.shape[3])
        found = self._run_selective(grid_hw, grid_hw, image_side, tensors, np.full(MASK_TOKENS, -np.inf, np.float32))
        ious, masks = found["iou_predictions"], found["low_res_masks"]
        if len(masks) == ious.size:
            return ious, masks.reshape(*ious.shape, *masks.shape[1:])
        # Scores that are not numbers pass nothing; who asked sees them and refuses the answer.
        whole = np.full((*ious.shape, *masks.shape[1:]), np.nan, np.float32)
        whole[tuple(found["kept"].T)] = masks
        return ious, whole

    def select(
        self,
        image_embeddings: FloatArray,
        image_side: Arrays | None,
        prompts: Arrays,
        *,
        min_iou: FloatArray,
        size_hw: Size,
    ) -> SelectedMasks:
        """Return the masks of `decode` whose predicted IoU is above a threshold; ``selective_decoder`` makes no others.

        For callers that ask often: full calls take a session for their sizes, where the runtime gains from that.

        Parameters
        ----------
        min_iou
            (4,) or (1,) float32, a threshold for each of an object's masks; infinity where none is wanted.
        size_hw
            Height and width of the part of the masks, in their pixels, that is wanted; the rest may be padding.
        """
        height, width = size_hw
        objects_count = len(prompts["point_labels"])
        if "selective_decoder" not in self._sessions or not objects_count or not self._shares(prompts).all():
            ious, masks = self.decode(image_embeddings, image_side, prompts)
            objects, tokens = np.nonzero(ious > min_iou)
            return SelectedMasks(ious, objects, tokens, masks[objects, tokens, :height, :width])
        side = image_side or self._made_side(image_embeddings)
        grid_hw, part_hw = (image_embeddings.shape[2], image_embeddings.shape[3]), (-(-height // 4), -(-width // 4))
        parts = []
        for rows in self._portions(np.ones(objects_count, np.bool_)):
            found = self._run_selective(grid_hw, part_hw, side, _clicks(prompts, rows), min_iou, often=True)
            objects, tokens = found["kept"].T
            masks = found["low_res_masks"][:, :height, :width]
            parts.append(SelectedMasks(found["iou_predictions"], rows[0] + objects, tokens, masks))
        return parts[0] if len(parts) == 1 else SelectedMasks(*map(np.concatenate, zip(*parts, strict=True)))

    def _run_selective(
        self,
        grid_hw: Size,
        part_hw: Size,
        image_side: Arrays,
        clicks: Arrays,
        min_iou: FloatArray,
        *,
        often: bool = False,
    ) -> dict[str, AnyArray]:
        """Run ``selective_decoder`` for the first rows and columns of the grid."""
        session, (objects, points) = self._sessions["selective_decoder"], clicks["point_labels"].shape
        if often and objects == self.per_call:
            most = {"rows": (1, grid_hw[0]), "columns": (1, grid_hw[1])}
            session = session.fixed({"objects": objects, "points": points, **most})
        whole = image_side["upscaled"]
        part = whole.reshape(1, *grid_hw, whole.shape[2])[:, : part_hw[0], : part_hw[1]]
        thresholds = np.tile(min_iou, (objects, 1))
        inputs = {**image_side, "upscaled": np.ascontiguousarray(part), **clicks, "min_iou": thresholds}
        return session.run(inputs)

    def _made_side(self, image_embeddings: FloatArray) -> Arrays:
        return self._sessions["image_side"].run({"image_embeddings": image_embeddings})

    def _shares(self, prompts: Arrays) -> BoolArray:
        """Return (N,) bool, True for objects that need no ``mask_decoder`` and are done sooner without."""
        if self._sessions.keys().isdisjoint(("selective_decoder", "shared_decoder")):
            return np.zeros(len(prompts["point_labels"]), np.bool_)
        places = (prompts["point_labels"] != LABEL_EMPTY).sum(axis=1)
        return np.asarray((prompts["has_mask_input"] == 0) & (places <= MOST_SHARED_PLACES), np.bool_)

    def _portions(self, chosen: BoolArray) -> list[IntArray]:
        rows = np.flatnonzero(chosen)
        return [rows[begin : begin + self.per_call] for begin in range(0, len(rows), self.per_call)]


def _rows(tensors: Arrays, rows: IntArray) -> dict[str, AnyArray]:
    return {name: array[rows] for name, array in tensors.items()}


def _clicks(tensors: Arrays, rows: IntArray | slice) -> dict[str, AnyArray]:
    """Return coordinates and labels of some objects, without the places at the end that are empty in all of them."""
    coords, labels = tensors["point_coords"][rows], tensors["point_labels"][rows]
    used = (labels != LABEL_EMPTY).any(axis=0)
    places = max(1, int(used.nonzero()[0].max(initial=0)) + 1)
    return {
        "point_coords": np.ascontiguousarray(coords[:, :places]),
        "point_labels": np.ascontiguousarray(labels[:, :places]),
    }
