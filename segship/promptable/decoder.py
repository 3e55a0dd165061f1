# SPDX-License-Identifier: Apache-2.0
"""Prompt tensors through the decoder graphs: which objects take which, how many at once, back in the caller's order.

Between `segship.promptable.prompts`, which makes the tensors, and `segship.promptable.predictor`, which owns the
sessions. An object without a mask input takes ``selective_decoder``, which does a quarter of the work, and less where
only masks of good scores are wanted (`decode_passing`); older bundles have ``shared_decoder`` in its place, which makes
all masks. All other objects take ``mask_decoder``, as all do in a bundle that has nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segship.spec import LABEL_EMPTY, MASK_TOKENS, SamGeometry, image_side_spec

if TYPE_CHECKING:
    from segship.backends.session import Session

Arrays = Mapping[str, NDArray[Any]]

SHARED_GRAPHS = ("selective_decoder", "shared_decoder")
"""Graphs for objects without a mask input; of those that a bundle has, the first is taken."""

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
# What ``shared_decoder`` gains shrinks with the number n of tokens: of its M = heads * n rows an object it makes
# 12 M^2 + 2 M C products for each cell where ``mask_decoder`` makes 6 C^2, with what else they do being equal. With
# SAM's sizes that is even at n = 20, 15 places; the rows pass through memory too, so the line is drawn before.
MOST_SHARED_PLACES = 11


def objects_per_call(geometry: SamGeometry, *, on_gpu: bool = False, bytes_left: int | None = None) -> int:
    """Return how many objects the decoder should take at once; results do not depend on it, but for rounding.

    Parameters
    ----------
    geometry
        Sizes of the model.
    on_gpu
        Whether the decoder runs on a GPU.
    bytes_left
        Memory that the decoder's tensors may take; None is no bound. At least one object is always taken.

    Examples
    --------
    >>> objects_per_call(SamGeometry(image_size=1024, embedding_channels=256, embedding_size=64))
    8
    """
    cells = geometry.embedding_size**2
    low_rank_bytes = 4 * cells * 2 * _TOKENS_OF_A_CLICK * max(1, geometry.embedding_channels // _CHANNELS_PER_HEAD)
    fitting = OBJECTS_PER_GPU_CALL if on_gpu else min(MOST_OBJECTS_PER_CALL, _CACHE_BYTES // (2 * low_rank_bytes))
    if bytes_left is not None:
        fitting = min(fitting, bytes_left // bytes_per_object(geometry))
    return max(1, fitting)


def bytes_per_object(geometry: SamGeometry) -> int:
    """Return the memory, in bytes, that the decoder's tensors take for each object of a call."""
    return _EMBEDDINGS_PER_OBJECT * 4 * geometry.embedding_channels * geometry.embedding_size**2


def image_side_bytes(geometry: SamGeometry) -> int:
    """Return the memory, in bytes, of what ``image_side`` makes of an image."""
    return sum(4 * int(np.prod([int(size) for size in tensor.shape])) for tensor in image_side_spec(geometry).outputs)


class SelectedMasks(NamedTuple):
    """The masks of N objects whose scores pass."""

    iou_predictions: NDArray[np.float32]
    """(N, 4), all of them."""
    objects: NDArray[np.int64]
    """(P,), which object each mask is of; never falling."""
    tokens: NDArray[np.int64]
    """(P,), which of an object's four it is."""
    low_res_masks: NDArray[np.float32]
    """(P, height, width) logits of the cells that were asked for."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """(P,) predicted IoU of each mask."""
        return self.iou_predictions[self.objects, self.tokens]


def decode_arrays(
    sessions: Mapping[str, Session],
    image_embeddings: NDArray[np.float32],
    image_side: Arrays | None,
    prompts: Arrays,
    *,
    per_call: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Decode the N objects of prompt tensors.

    Parameters
    ----------
    sessions
        Graph -> session.
    image_embeddings
        (1, C, h, w) float32.
    image_side
        What ``image_side`` made of them; None to run it here if an object needs it and the bundle has it.
    prompts
        What `segship.promptable.prompts.encode_prompts` returns.
    per_call
        Objects of one call, see `objects_per_call`.

    Returns
    -------
    tuple
        (N, 4) float32 predicted IoUs and (N, 4, 4h, 4w) float32 logits, in the order of the prompts.
    """
    shared = _take_shared(sessions, prompts)
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]] = []
    if shared.any():
        side = sessions["image_side"].run({"image_embeddings": image_embeddings}) if image_side is None else image_side
        for rows in _portions(shared, per_call):
            parts.append((rows, *decode_shared(sessions, image_embeddings.shape[2:], side, _rows(prompts, rows))))
    for rows in _portions(~shared, per_call):
        tensors = _without_empty_ends(_rows(prompts, rows))
        found = sessions["mask_decoder"].run({"image_embeddings": image_embeddings, **tensors})
        parts.append((rows, found["iou_predictions"], found["low_res_masks"]))
    if len(parts) == 1:
        return parts[0][1:]
    order = np.argsort(np.concatenate([rows for rows, _, _ in parts]))
    ious, masks = np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
    if np.array_equal(order, np.arange(len(order))):
        return ious, masks
    return ious[order], masks[order]


def decode_shared(
    sessions: Mapping[str, Session], grid_hw: tuple[int, ...], image_side: Arrays, prompts: Arrays
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Decode objects without a mask input in one call of the graph that is there for them.

    Parameters
    ----------
    grid_hw
        Height and width of the embedding.
    image_side, prompts
        As in `decode_arrays`.

    Returns
    -------
    tuple
        As of `decode_arrays`.
    """
    tensors = _without_empty_ends({name: prompts[name] for name in ("point_coords", "point_labels")})
    if "selective_decoder" not in sessions:
        found = sessions["shared_decoder"].run({**image_side, **tensors})
        return found["iou_predictions"], found["low_res_masks"]
    thresholds = np.full((len(tensors["point_labels"]), MASK_TOKENS), -np.inf, np.float32)
    found = _run_selective(sessions, grid_hw, grid_hw, image_side, tensors, thresholds)
    ious, masks = found["iou_predictions"], found["low_res_masks"]
    shape = (*ious.shape, *masks.shape[1:])
    if len(masks) == ious.size:
        return ious, masks.reshape(shape)
    # Scores that are not numbers pass nothing; who asked sees them and refuses the answer.
    whole = np.full(shape, np.nan, np.float32)
    whole[found["kept"][:, 0], found["kept"][:, 1]] = masks
    return ious, whole


def decode_passing(
    sessions: Mapping[str, Session],
    image_embeddings: NDArray[np.float32],
    image_side: Arrays | None,
    prompts: Arrays,
    *,
    min_iou: NDArray[np.float32],
    size_hw: tuple[int, int],
    per_call: int,
) -> SelectedMasks:
    """Decode objects, and of their masks only those whose predicted IoU is above a threshold.

    The masks are those of `decode_arrays`. A bundle with ``selective_decoder`` makes no others.

    Parameters
    ----------
    sessions, image_embeddings, image_side, prompts, per_call
        As in `decode_arrays`.
    min_iou
        (4,) float32, a threshold for each of an object's masks; infinity where none is wanted.
    size_hw
        Height and width of the part of the masks, in their pixels, that is wanted; the rest may be padding.
    """
    if "selective_decoder" not in sessions or not _take_shared(sessions, prompts).all():
        ious, masks = decode_arrays(sessions, image_embeddings, image_side, prompts, per_call=per_call)
        objects, tokens = np.nonzero(ious > min_iou)
        return SelectedMasks(ious, objects, tokens, masks[objects, tokens, : size_hw[0], : size_hw[1]])
    side = sessions["image_side"].run({"image_embeddings": image_embeddings}) if image_side is None else image_side
    grid_hw = image_embeddings.shape[2:]
    cells_hw = (-(-size_hw[0] // 4), -(-size_hw[1] // 4))
    parts = []
    for rows in _portions(np.ones(len(prompts["point_labels"]), np.bool_), per_call):
        tensors = _without_empty_ends({name: prompts[name][rows] for name in ("point_coords", "point_labels")})
        thresholds = np.tile(min_iou, (len(rows), 1))
        found = _run_selective(sessions, grid_hw, cells_hw, side, tensors, thresholds)
        kept = found["kept"]
        masks = found["low_res_masks"][:, : size_hw[0], : size_hw[1]]
        parts.append(SelectedMasks(found["iou_predictions"], rows[0] + kept[:, 0], kept[:, 1], masks))
    return (
        parts[0] if len(parts) == 1 else SelectedMasks(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    )


def _run_selective(
    sessions: Mapping[str, Session],
    grid_hw: tuple[int, ...],
    cells_hw: tuple[int, ...],
    image_side: Arrays,
    tensors: Arrays,
    thresholds: NDArray[np.float32],
) -> dict[str, NDArray[Any]]:
    """Run ``selective_decoder`` for the first rows and columns of the grid."""
    whole = image_side["upscaled"]
    cells = whole.reshape(1, *grid_hw, whole.shape[2])[:, : cells_hw[0], : cells_hw[1]]
    inputs = {**image_side, "upscaled": np.ascontiguousarray(cells), **tensors, "min_iou": thresholds}
    return sessions["selective_decoder"].run(inputs)


def _take_shared(sessions: Mapping[str, Session], prompts: Arrays) -> NDArray[np.bool_]:
    """Return (N,) bool, True for objects that a graph of `SHARED_GRAPHS` takes and does sooner."""
    if not any(graph in sessions for graph in SHARED_GRAPHS):
        return np.zeros(len(prompts["point_labels"]), np.bool_)
    places = (prompts["point_labels"] != LABEL_EMPTY).sum(axis=1)
    return np.asarray((prompts["has_mask_input"] == 0) & (places <= MOST_SHARED_PLACES), np.bool_)


def _rows(tensors: Arrays, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    return {name: array[rows] for name, array in tensors.items()}


def _portions(chosen: NDArray[np.bool_], per_call: int) -> list[NDArray[np.int64]]:
    rows = np.flatnonzero(chosen)
    return [rows[begin : begin + per_call] for begin in range(0, len(rows), per_call)]


def _without_empty_ends(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Cut off the places at the end that are empty in every object of a call."""
    used = (tensors["point_labels"] != LABEL_EMPTY).any(axis=0)
    places = max(1, int(used.nonzero()[0].max(initial=0)) + 1)
    cut = {name: np.ascontiguousarray(tensors[name][:, :places]) for name in ("point_coords", "point_labels")}
    return {**tensors, **cut}
