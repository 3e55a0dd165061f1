# SPDX-License-Identifier: Apache-2.0
"""Prompt tensors through the decoder graphs: which objects take which, how many at once, back in the caller's order.

Between `segship.prompts`, which makes the tensors, and `segship.predictor`, which owns the sessions. An object without
a mask input takes ``shared_decoder``, which does a quarter of the work; all others take ``mask_decoder``, as all do in
a bundle that has nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segship.spec import LABEL_EMPTY, SamGeometry, image_side_spec

if TYPE_CHECKING:
    from segship.backends.session import Session

Arrays = Mapping[str, NDArray[Any]]

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
        What `segship.prompts.encode_prompts` returns.
    per_call
        Objects of one call, see `objects_per_call`.

    Returns
    -------
    tuple
        (N, 4) float32 predicted IoUs and (N, 4, 4h, 4w) float32 logits, in the order of the prompts.
    """
    shared = _take_shared(prompts) if "shared_decoder" in sessions else np.zeros(len(prompts["point_labels"]), np.bool_)
    parts: list[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]] = []
    if shared.any():
        side = sessions["image_side"].run({"image_embeddings": image_embeddings}) if image_side is None else image_side
        for rows in _portions(shared, per_call):
            tensors = {name: prompts[name][rows] for name in ("point_coords", "point_labels")}
            parts.append((rows, sessions["shared_decoder"].run({**side, **_without_empty_ends(tensors)})))
    for rows in _portions(~shared, per_call):
        tensors = _without_empty_ends({name: array[rows] for name, array in prompts.items()})
        parts.append((rows, sessions["mask_decoder"].run({"image_embeddings": image_embeddings, **tensors})))
    if len(parts) == 1:
        return parts[0][1]["iou_predictions"], parts[0][1]["low_res_masks"]
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    ious, masks = (np.concatenate([out[name] for _, out in parts]) for name in ("iou_predictions", "low_res_masks"))
    if np.array_equal(order, np.arange(len(order))):
        return ious, masks
    return ious[order], masks[order]


def _take_shared(prompts: Arrays) -> NDArray[np.bool_]:
    """Return (N,) bool, True for objects that ``shared_decoder`` takes and does sooner."""
    places = (prompts["point_labels"] != LABEL_EMPTY).sum(axis=1)
    return np.asarray((prompts["has_mask_input"] == 0) & (places <= MOST_SHARED_PLACES), np.bool_)


def _portions(chosen: NDArray[np.bool_], per_call: int) -> list[NDArray[np.int64]]:
    rows = np.flatnonzero(chosen)
    return [rows[begin : begin + per_call] for begin in range(0, len(rows), per_call)]


def _without_empty_ends(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Cut off the places at the end that are empty in every object of a call."""
    used = (tensors["point_labels"] != LABEL_EMPTY).any(axis=0)
    places = max(1, int(used.nonzero()[0].max(initial=0)) + 1)
    cut = {name: np.ascontiguousarray(tensors[name][:, :places]) for name in ("point_coords", "point_labels")}
    return {**tensors, **cut}
