# SPDX-License-Identifier: Apache-2.0
"""Graphs in the contracts of other people's programs, answered for as if they kept ours.

`ForeignGraphs` stands in the manifest and says how the files are driven; `adapt_sessions` makes sessions of the
contracts ``image_encoder`` and ``mask_decoder`` of `segship.spec` from sessions of the files. `segship.ship.importing`
finds the facts, and `segship.ship.contracts` writes such graphs from checkpoints. Objects go through a decoder one
after another, since such decoders know one object a call and no empty places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from segship.arrays import AnyArray, FloatArray
from segship.backends.session import Session
from segship.bundle.artifacts import Name
from segship.bundle.evidence import Text
from segship.promptable.transforms import Preprocessing
from segship.spec import (
    LABEL_EMPTY,
    LABEL_NOT_A_POINT,
    MASK_TOKENS,
    PLACES,
    GraphSpec,
    SamGeometry,
    TensorSpec,
    check_arrays,
    image_encoder_spec,
    mask_decoder_spec,
)

ContractName = Literal["official", "samexporter", "ascend", "osam", "nndeploy"]
Layout = Literal["NCHW", "NHWC", "HWC"]
ImageDtype = Literal["float32", "uint8"]


@dataclass(frozen=True, slots=True)
class ForeignGraphs:
    """How an encoder and a decoder of another program's contract are driven.

    Names of the decoder's tensors are those of the reference's ``SamOnnxModel`` in all contracts. It takes one object a
    call: its points in pixels of the model frame, and SAM's "not a point" token where the manifest's prompt rules say
    so.

    Attributes
    ----------
    contract
        The program that the files were written for.
    image, image_embeddings
        Names of the encoder's input and output.
    layout, dtype
        Of the image; ``HWC`` has no batch axis.
    values
        ``normalized``: what `segship.promptable.transforms.prepare_image` makes. ``pixels``: RGB from 0 to 255, which
        the graph normalises itself.
    padding
        ``outside``: the encoder takes the whole model frame. ``inside``: it takes a resized image of any size up to the
        frame and pads it with what normalises to zero; given a frame that is padded already, it answers the same.
    original_size
        Type of the decoder's input ``orig_im_size``, (height, width); None where it has none. With it goes an output
        ``masks`` of that size, which is not used here: resizing is a rule of the bundle, not of the graph.
    empty_prompts
        Whether the decoder takes an object without a point or box; where it does not, a "not a point" token stands in.
    rules
        In words, where programs that drive such graphs do something else than what is done here.
    """

    contract: ContractName
    image: Name
    image_embeddings: Name
    layout: Layout = "NCHW"
    dtype: ImageDtype = "float32"
    values: Literal["normalized", "pixels"] = "normalized"
    padding: Literal["outside", "inside"] = "outside"
    original_size: Literal["float32", "int64"] | None = None
    empty_prompts: bool = True
    rules: Annotated[tuple[Text, ...], Field(max_length=16)] = ()

    def specs(self, geometry: SamGeometry, masks: int) -> tuple[GraphSpec, GraphSpec]:
        """Return the contracts that the files keep, of the encoder and of the decoder; each takes one thing a call."""
        side, channels, grid = geometry.image_size, geometry.embedding_channels, geometry.embedding_size
        shapes: dict[Layout, tuple[int, ...]] = {
            "NCHW": (1, 3, side, side),
            "NHWC": (1, side, side, 3),
            "HWC": (side, side, 3),
        }
        embeddings = TensorSpec(self.image_embeddings, "float32", (1, channels, grid, grid))
        encoder = GraphSpec("image_encoder", (TensorSpec(self.image, self.dtype, shapes[self.layout]),), (embeddings,))
        ours = mask_decoder_spec(geometry, masks)
        inputs = tuple(TensorSpec(tensor.name, tensor.dtype, _of_one(tensor.shape)) for tensor in ours.inputs)
        scores, logits = (TensorSpec(tensor.name, tensor.dtype, _of_one(tensor.shape)) for tensor in ours.outputs)
        if self.original_size is None:
            return encoder, GraphSpec("mask_decoder", inputs, (scores, logits))
        size = TensorSpec("orig_im_size", self.original_size, (2,))
        upscaled = TensorSpec("masks", "float32", (1, masks, "height", "width"))
        return encoder, GraphSpec("mask_decoder", (*inputs, size), (upscaled, scores, logits))


def _of_one(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return a shape of our decoder's for one object, whose places may be none."""
    sizes: dict[int | str, int | str] = {"objects": 1, "points": PLACES}
    return tuple(sizes.get(size, size) for size in shape)


def adapt_sessions(
    sessions: Mapping[str, Session],
    foreign: ForeignGraphs,
    geometry: SamGeometry,
    preprocessing: Preprocessing,
    masks: int = MASK_TOKENS,
) -> dict[str, Session]:
    """Return sessions of our contracts over those of a foreign encoder and decoder, as far as they are there."""
    found: dict[str, Session] = {}
    if "image_encoder" in sessions:
        found["image_encoder"] = ForeignEncoder(sessions["image_encoder"], foreign, geometry, preprocessing)
    if "mask_decoder" in sessions:
        found["mask_decoder"] = ForeignDecoder(sessions["mask_decoder"], foreign, geometry, masks)
    return found


class _Adapted(Session):
    """Answers in one contract through a graph that keeps another."""

    def __init__(self, graph: Session, spec: GraphSpec) -> None:
        self.spec = spec
        self.description, self.on_gpu = graph.description, graph.on_gpu
        self._graph = graph

    def close(self) -> None:
        """Release the graph."""
        self._graph.close()


class ForeignEncoder(_Adapted):
    """``image_encoder`` over an encoder that wants another form of the image."""

    def __init__(
        self, graph: Session, foreign: ForeignGraphs, geometry: SamGeometry, preprocessing: Preprocessing
    ) -> None:
        super().__init__(graph, image_encoder_spec(geometry))
        self._foreign = foreign
        self._mean = np.array(preprocessing.pixel_mean, np.float32)[:, None, None]
        self._std = np.array(preprocessing.pixel_std, np.float32)[:, None, None]

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Encode frame after frame; see `segship.backends.session.Session.run`."""
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        found = [self._graph.run({self._foreign.image: self._as_taken(frame)}) for frame in inputs["image"]]
        return {"image_embeddings": np.concatenate([answer[self._foreign.image_embeddings] for answer in found])}

    def _as_taken(self, frame: FloatArray) -> AnyArray:
        """Return a normalised frame (3, S, S) in the form that the graph takes."""
        image: AnyArray = frame
        if self._foreign.values == "pixels":
            # The padding becomes the mean, which normalises to zero again.
            image = frame * self._std + self._mean
        if self._foreign.dtype == "uint8":
            image = np.rint(image).clip(0, 255).astype(np.uint8)
        if self._foreign.layout != "NCHW":
            image = image.transpose(1, 2, 0)
        return np.ascontiguousarray(image if self._foreign.layout == "HWC" else image[None])


class ForeignDecoder(_Adapted):
    """``mask_decoder`` over a decoder that knows one object a call."""

    def __init__(self, graph: Session, foreign: ForeignGraphs, geometry: SamGeometry, masks: int) -> None:
        super().__init__(graph, mask_decoder_spec(geometry, masks))
        self._foreign = foreign
        # The image-size masks are not used, and are made no larger than they must be.
        self._size = {}
        if foreign.original_size is not None:
            self._size = {"orig_im_size": np.full(2, geometry.low_res_size, foreign.original_size)}

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Decode object after object; see `segship.backends.session.Session.run`."""
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        found = [self._decode(inputs, row) for row in range(len(inputs["point_labels"]))]
        return {tensor.name: np.concatenate([answer[tensor.name] for answer in found]) for tensor in self.spec.outputs}

    def _decode(self, inputs: Mapping[str, AnyArray], row: int) -> dict[str, AnyArray]:
        """Decode one object, without its empty places: such decoders count places, and know no label for them."""
        labels, coords = inputs["point_labels"][row], inputs["point_coords"][row]
        used = labels != LABEL_EMPTY
        labels, coords = labels[used], coords[used]
        if not len(labels) and not self._foreign.empty_prompts:
            labels, coords = np.full(1, LABEL_NOT_A_POINT, np.float32), np.zeros((1, 2), np.float32)
        return self._graph.run(
            {
                "image_embeddings": inputs["image_embeddings"],
                "point_coords": coords[None],
                "point_labels": labels[None],
                "mask_input": inputs["mask_input"][row : row + 1],
                "has_mask_input": inputs["has_mask_input"][row : row + 1],
                **self._size,
            }
        )
