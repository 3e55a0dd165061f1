# SPDX-License-Identifier: Apache-2.0
"""Names, dtypes and shapes of every graph; the hinge between the ship road and the use road.

The exporter writes graphs that have these contracts, a manifest repeats them, and a session is checked against them.
Sizes come from `SamGeometry`; no constant for 1024 stands anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Interval

Dimension = int | str
"""A fixed size, or the name of one that may differ from call to call."""

Side = Annotated[int, Interval(ge=1, le=1 << 16)]
"""A number of pixels, cells or channels; bounds are those of what a manifest may say."""
Positive = Annotated[float, Gt(0)]
Part = Annotated[float, Interval(ge=0, le=1)]
"""A part of a whole, 0 to 1."""

LABEL_BACKGROUND = 0
LABEL_FOREGROUND = 1
LABEL_BOX_TOP_LEFT = 2
LABEL_BOX_BOTTOM_RIGHT = 3
LABEL_NOT_A_POINT = -1
"""SAM's learned "not a point" token; it takes part in attention."""
LABEL_EMPTY = -2
"""An empty place in a padded call; it takes part in nothing."""

MASK_TOKENS = 4
"""Mask tokens of the SAM decoder: 0 answers clear prompts, 1 to 3 are the ambiguous set."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes
    ----------
    name
        As it stands in the graph.
    dtype
        A numpy dtype name, such as ``float32``.
    shape
        Sizes in order; a string names a dynamic axis.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """The contract of one graph: what goes in and what comes out, by name."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class SamGeometry:
    """The sizes that a promptable model's graphs depend on.

    Attributes
    ----------
    image_size
        Side S of the square model frame, in pixels.
    embedding_channels
        Channels C of the image embedding.
    embedding_size
        Side of the embedding's square grid.
    """

    image_size: Side
    embedding_channels: Side
    embedding_size: Side

    @property
    def low_res_size(self) -> int:
        """Side of the decoder's masks and of a mask input, in pixels."""
        return 4 * self.embedding_size


def image_encoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of ``image_encoder`` for a model of the given sizes."""
    side, channels, grid = geometry.image_size, geometry.embedding_channels, geometry.embedding_size
    return GraphSpec(
        name="image_encoder",
        inputs=(TensorSpec("image", "float32", ("batch", 3, side, side)),),
        outputs=(TensorSpec("image_embeddings", "float32", ("batch", channels, grid, grid)),),
    )


def mask_decoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of ``mask_decoder``: any number of objects, all of one image."""
    channels, grid, low_res = geometry.embedding_channels, geometry.embedding_size, geometry.low_res_size
    return GraphSpec(
        name="mask_decoder",
        inputs=(
            TensorSpec("image_embeddings", "float32", (1, channels, grid, grid)),
            TensorSpec("point_coords", "float32", ("objects", "points", 2)),
            TensorSpec("point_labels", "float32", ("objects", "points")),
            TensorSpec("mask_input", "float32", ("objects", 1, low_res, low_res)),
            TensorSpec("has_mask_input", "float32", ("objects",)),
        ),
        outputs=(
            TensorSpec("iou_predictions", "float32", ("objects", MASK_TOKENS)),
            TensorSpec("low_res_masks", "float32", ("objects", MASK_TOKENS, low_res, low_res)),
        ),
    )


def image_side_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of ``image_side``: what every prompt of an image without a mask input shares."""
    channels, grid = geometry.embedding_channels, geometry.embedding_size
    return GraphSpec(
        name="image_side",
        inputs=(TensorSpec("image_embeddings", "float32", (1, channels, grid, grid)),),
        outputs=_image_side_tensors(geometry),
    )


def shared_decoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of ``shared_decoder``: objects of one image, none of which has a mask input."""
    low_res = geometry.low_res_size
    return GraphSpec(
        name="shared_decoder",
        inputs=(
            *_image_side_tensors(geometry),
            TensorSpec("point_coords", "float32", ("objects", "points", 2)),
            TensorSpec("point_labels", "float32", ("objects", "points")),
        ),
        outputs=(
            TensorSpec("iou_predictions", "float32", ("objects", MASK_TOKENS)),
            TensorSpec("low_res_masks", "float32", ("objects", MASK_TOKENS, low_res, low_res)),
        ),
    )


SemanticOutput = Literal["class_map", "logits"]


def semantic_spec(classes: int, output: SemanticOutput, size_hw: tuple[int, int] | None = None) -> GraphSpec:
    """Return the contract of ``semantic``: pictures to class maps, or to logits, of their size.

    Parameters
    ----------
    classes
        Channels of the logits.
    output
        What comes out: the number of every pixel's class, or the logits of all.
    size_hw
        Height and width of the only pictures that the graph takes; None takes any.
    """
    height, width = size_hw or ("height", "width")
    answer = (
        TensorSpec("class_map", "uint8", ("batch", height, width))
        if output == "class_map"
        else TensorSpec("logits", "float32", ("batch", classes, height, width))
    )
    image = TensorSpec("image", "float32", ("batch", 3, height, width))
    return GraphSpec("semantic", (image,), (answer,))


def selective_decoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of ``selective_decoder``: as ``shared_decoder``, with masks only of scores that pass.

    A mask is made where its predicted IoU is above its entry of ``min_iou``; ``kept`` (kept, 2) says of which object
    and mask token each is, in order. ``upscaled`` holds the first rows and columns of the grid, and so do the masks.
    """
    shared = shared_decoder_spec(geometry)
    cells = TensorSpec("upscaled", "float32", (1, "rows", "columns", geometry.embedding_channels))
    return GraphSpec(
        name="selective_decoder",
        inputs=(
            *(cells if tensor.name == "upscaled" else tensor for tensor in shared.inputs),
            TensorSpec("min_iou", "float32", ("objects", MASK_TOKENS)),
        ),
        outputs=(
            TensorSpec("iou_predictions", "float32", ("objects", MASK_TOKENS)),
            TensorSpec("kept", "int64", ("kept", 2)),
            TensorSpec("low_res_masks", "float32", ("kept", "height", "width")),
        ),
    )


def _image_side_tensors(geometry: SamGeometry) -> tuple[TensorSpec, ...]:
    # Half of the channels: every attention between tokens and image is that wide. What each is for stands in
    # segship/ship/families/sam/shared_decoder.py; nothing else needs to know.
    channels, cells = geometry.embedding_channels, geometry.embedding_size**2
    rows = {
        "first_keys": channels // 2,
        "first_values": channels // 2,
        "first_queries": channels // 2,
        "first_outputs": channels // 2,
        "first_energy": 1,
        "second_keys": channels // 2,
        "second_values": channels // 2,
        "second_queries": channels // 2,
        "second_outputs": channels,
        "second_energy": 2,
        "final_keys": channels // 2,
        "final_values": channels // 2,
    }
    tensors = (TensorSpec(name, "float32", (1, count, cells)) for name, count in rows.items())
    return (*tensors, TensorSpec("upscaled", "float32", (1, cells, channels)))
