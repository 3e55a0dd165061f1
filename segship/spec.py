# SPDX-License-Identifier: Apache-2.0
"""Names, dtypes and shapes of every graph; the hinge between the ship road and the use road.

The exporter writes graphs that have these contracts, a manifest repeats them, and a session is checked against them.
Sizes come from `SamGeometry`; no constant for 1024 stands anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Interval
from numpy.typing import NDArray

from segship.errors import BundleError, InputError

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

PLACES = "places"
"""The axis that may have no entry at all: the tokens of an object that has a mask input and nothing else."""


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


def mask_decoder_spec(geometry: SamGeometry, masks: int = MASK_TOKENS) -> GraphSpec:
    """Return the contract of ``mask_decoder``: any number of objects, all of one image, each with so many masks."""
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
            TensorSpec("iou_predictions", "float32", ("objects", masks)),
            TensorSpec("low_res_masks", "float32", ("objects", masks, low_res, low_res)),
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


def check_arrays(arrays: Mapping[str, NDArray[Any]], tensors: Sequence[TensorSpec], graph: str) -> None:
    """Check arrays against a contract: names, dtypes, ranks, fixed sizes, and that axes of one name agree.

    Raises
    ------
    InputError
        ``bad_tensor``, with the tensor, the value found and the one expected.
    """
    expected = {tensor.name for tensor in tensors}
    if arrays.keys() != expected:
        missing, unknown = sorted(expected - arrays.keys()), sorted(arrays.keys() - expected)
        raise _bad(graph, f"missing: {missing or 'none'}; unknown: {unknown or 'none'}; it takes {sorted(expected)}")
    sizes: dict[str, tuple[int, str]] = {}
    for tensor in tensors:
        array = arrays[tensor.name]
        if not isinstance(array, np.ndarray):
            raise _bad(graph, f"{tensor.name} is a {type(array).__name__}, not a numpy array")
        if array.dtype != np.dtype(tensor.dtype):
            raise _bad(graph, f"{tensor.name} has dtype {array.dtype}; expected {tensor.dtype}, cast it first")
        if array.ndim != len(tensor.shape):
            raise _bad(graph, f"{tensor.name} has shape {array.shape}; expected {_shape(tensor.shape)}")
        for found, wanted in zip(array.shape, tensor.shape, strict=True):
            _check_size(found, wanted, tensor, array, sizes, graph)


def _check_size(
    found: int,
    wanted: Dimension,
    tensor: TensorSpec,
    array: NDArray[Any],
    sizes: dict[str, tuple[int, str]],
    graph: str,
) -> None:
    if isinstance(wanted, int):
        if found != wanted:
            raise _bad(graph, f"{tensor.name} has shape {array.shape}; expected {_shape(tensor.shape)}")
        return
    if found < 1 and wanted != PLACES:
        raise _bad(graph, f"{tensor.name} has shape {array.shape}; axis {wanted!r} needs at least 1")
    first, name = sizes.setdefault(wanted, (found, tensor.name))
    if found != first:
        message = f"axis {wanted!r} is {first} in {name} and {found} in {tensor.name}; they must be equal"
        raise _bad(graph, message)


def _bad(graph: str, message: str) -> InputError:
    return InputError(f"graph {graph!r}: {message}", code="bad_tensor")


def _shape(shape: Sequence[Dimension]) -> str:
    return f"({', '.join(str(size) for size in shape)})"


def check_interface(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], spec: GraphSpec) -> None:
    """Check what a graph file declares against its contract.

    A graph may be freer than the contract (a dynamic axis where a size stands). Its outputs may be narrower, its
    inputs may not. Names of dynamic axes are not compared, since exporters make up their own.

    Raises
    ------
    BundleError
        ``graph_interface``, with the first difference.
    """
    for kind, found, wanted in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        by_name = {tensor.name: tensor for tensor in found}
        names = [tensor.name for tensor in wanted]
        if len(by_name) != len(found) or by_name.keys() != set(names):
            raise _differs(spec, f"its {kind}s are {[tensor.name for tensor in found]}; expected {names}")
        for tensor in wanted:
            _check_declared(by_name[tensor.name], tensor, spec, kind)


def _check_declared(found: TensorSpec, wanted: TensorSpec, spec: GraphSpec, kind: str) -> None:
    if found.dtype != wanted.dtype:
        raise _differs(spec, f"{kind} {found.name} has dtype {found.dtype}; expected {wanted.dtype}")
    fits = len(found.shape) == len(wanted.shape) and all(
        isinstance(size, str) or size == expected or (isinstance(expected, str) and kind == "output")
        for size, expected in zip(found.shape, wanted.shape, strict=True)
    )
    if not fits:
        raise _differs(spec, f"{kind} {found.name} has shape {_shape(found.shape)}; expected {_shape(wanted.shape)}")


def _differs(spec: GraphSpec, message: str) -> BundleError:
    message = f"the graph does not keep the contract {spec.name!r}: {message}; export it again"
    return BundleError(message, code="graph_interface")
