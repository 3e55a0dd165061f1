# SPDX-License-Identifier: Apache-2.0
"""`SamPredictor`: one image and its embedding, and prompts asked of it, under the reference's names.

Follows segment_anything/predictor.py. Unlike `segship.Predictor`, which does the work, it holds an image.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.compat.arrays import TensorArray, as_array, as_tensor_array
from segship.compat.model import Sam, as_sam
from segship.compat.transforms import ResizeLongestSide
from segship.errors import ImageError, InputError, PromptError
from segship.images import ImageLimits
from segship.prediction import ImageEmbedding, MaskPrediction
from segship.predictor import Predictor
from segship.prompts import PromptLimits, Prompts
from segship.transforms import to_image_frame

Masks = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]

# The reference knows no limits. An array lies in memory already, so only the largest side that we take is kept.
ARRAY_LIMITS = ImageLimits(pixels=400_000_000)
# Objects that go through the decoder at once; more would only take more memory.
_OBJECTS_AT_ONCE = 64
_PROMPT_LIMITS = PromptLimits(points_per_object=4096, objects=_OBJECTS_AT_ONCE)
_CHANGED = {
    "point_clipped": "a point outside the image was moved to its edge",
    "box_clipped": "a box was cut at the edge of the image",
}


class SamPredictor:
    """Encode an image once, then predict masks for as many prompts as wanted.

    Parameters
    ----------
    sam_model
        A `Sam`, a `segship.Predictor`, or what `segship.load` takes.

    Attributes
    ----------
    model, transform, device
        The `Sam`, its `ResizeLongestSide`, and ``cpu``.
    is_image_set
        Whether an image is held.
    features
        (1, C, h, w) float32 embedding of the image, or None. Embeddings that were kept elsewhere can be put back:
        set ``features``, ``original_size``, ``input_size`` and ``is_image_set``.
    original_size, input_size
        (height, width) of the image and of its resized copy, or None.
    """

    def __init__(self, sam_model: Sam | Predictor | str | Path) -> None:
        self.model = as_sam(sam_model)
        self.transform = ResizeLongestSide(self.model.image_encoder.img_size)
        self.reset_image()

    @property
    def device(self) -> str:
        """Where arrays are taken and given."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the image."""
        self.is_image_set = False
        self.features: TensorArray | None = None
        self.original_size: tuple[int, ...] | None = None
        self.input_size: tuple[int, ...] | None = None

    def set_image(self, image: Any, image_format: str = "RGB") -> None:
        """Encode an image and hold its embedding.

        Parameters
        ----------
        image
            (H, W, 3) uint8.
        image_format
            Order of its channels, ``RGB`` or ``BGR``.

        Raises
        ------
        InputError
            ``bad_image_format``.
        ImageError
            When the array is no such image.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}; accepted are 'RGB' and 'BGR'", code="bad_image_format")
        pixels = as_array(image)
        if image_format != self.model.image_format and pixels.ndim == 3:
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        self._encode(pixels)

    def set_torch_image(self, transformed_image: Any, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that `ResizeLongestSide` has resized, and hold its embedding.

        Parameters
        ----------
        transformed_image
            (1, 3, h, w) RGB, values 0 to 255, the longer side the model's image size. Values between whole numbers
            are rounded, as resizing by Pillow does.
        original_image_size
            (height, width) before it was resized.

        Raises
        ------
        ImageError
            ``bad_array_shape`` or ``value_range``.
        """
        batch, side = as_array(transformed_image), self.model.image_encoder.img_size
        if batch.ndim != 4 or batch.shape[:2] != (1, 3) or max(batch.shape[2:]) != side:
            raise ImageError(
                f"The transformed image has the shape {batch.shape}; accepted is (1, 3, h, w) with a longer side of "
                f"{side}, or give the image as it is to set_image.",
                code="bad_array_shape",
            )
        rounded = np.rint(batch[0].transpose(1, 2, 0))
        if not ((rounded >= 0) & (rounded <= 255)).all():
            raise ImageError(
                f"The transformed image has values from {batch.min():g} to {batch.max():g}; accepted are 0 to 255, "
                "before mean and standard deviation are applied.",
                code="value_range",
            )
        self._encode(np.ascontiguousarray(rounded, np.uint8))
        self.original_size = tuple(int(length) for length in original_image_size)

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Masks:
        """Predict masks for one object of the image.

        Parameters
        ----------
        point_coords
            (N, 2) x y pixels in the image frame, or None.
        point_labels
            (N,) 1 foreground, 0 background; needed with points.
        box
            (4,) or (1, 4) x0 y0 x1 y1 pixels in the image frame, or None.
        mask_input
            (1, 4h, 4w) logits of an earlier prediction, or None.
        multimask_output
            Three masks, for prompts that may mean several things, or one.
        return_logits
            Masks as float32 logits instead of bool.

        Returns
        -------
        tuple
            Masks (C, H, W) bool, predicted IoUs (C,) float32, and logits (C, 4h, 4w) float32 for ``mask_input``.

        Raises
        ------
        InputError
            ``no_image`` when none is set.
        PromptError
            When the prompts are malformed or for several objects.
        """
        if point_coords is not None and point_labels is None:
            raise PromptError(
                "point_coords were given without point_labels; give one label a point, 1 or 0", code="length_mismatch"
            )
        prompts = _prompts(point_coords, point_labels, box, mask_input)
        if prompts.object_count > 1:
            raise PromptError(
                f"The prompts are for {prompts.object_count} objects and predict takes one; "
                "predict_torch, or Predictor.decode of segship, takes several",
                code="too_many_objects",
            )
        masks, scores, logits = self._decode([prompts], multimask_output, return_logits)
        return masks[0], scores[0], logits[0]

    def predict_torch(
        self,
        point_coords: Any,
        point_labels: Any,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[TensorArray, TensorArray, TensorArray]:
        """Predict masks for B objects of the image, with prompts in the model frame.

        Parameters
        ----------
        point_coords, point_labels
            (B, N, 2) x y as `ResizeLongestSide.apply_coords_torch` gives them, and (B, N) labels, or None.
        boxes
            (B, 4) x0 y0 x1 y1 as `ResizeLongestSide.apply_boxes_torch` gives them, or None.
        mask_input
            (B, 1, 4h, 4w) logits, or None.
        multimask_output, return_logits
            As `predict` takes them.

        Returns
        -------
        tuple
            Masks (B, C, H, W) bool, predicted IoUs (B, C) float32, logits (B, C, 4h, 4w) float32.

        Raises
        ------
        InputError, PromptError
            As `predict` does.
        """
        given, embedding = _prompts(point_coords, point_labels, boxes, mask_input), self._embedding()
        if given.points is not None and np.ndim(point_coords) != 3:
            raise PromptError(
                f"point_coords has the shape {np.shape(point_coords)}; accepted is (B, N, 2)", code="bad_shape"
            )
        given = _in_image_frame(given, embedding)
        parts = [
            _objects(given, slice(start, start + _OBJECTS_AT_ONCE))
            for start in range(0, max(1, given.object_count), _OBJECTS_AT_ONCE)
        ]
        masks, scores, logits = self._decode(parts, multimask_output, return_logits)
        return as_tensor_array(masks), as_tensor_array(scores), as_tensor_array(logits)

    def get_image_embedding(self) -> TensorArray:
        """Return the embedding (1, C, h, w) float32 of the image.

        Raises
        ------
        InputError
            ``no_image`` when none is set.
        """
        return as_tensor_array(self._embedding().image_embeddings)

    def _encode(self, pixels: NDArray[np.uint8]) -> None:
        # First, so that a refused image does not leave the one before it.
        self.reset_image()
        embedding = self.model.predictor.encode(pixels, limits=ARRAY_LIMITS)
        self.features = as_tensor_array(embedding.image_embeddings)
        self.original_size, self.input_size = embedding.original_size, embedding.input_size
        self.is_image_set = True

    def _embedding(self) -> ImageEmbedding:
        if not self.is_image_set or self.features is None or self.original_size is None or self.input_size is None:
            raise InputError("no image is set; call set_image first", code="no_image")
        (height, width), (input_height, input_width) = self.original_size, self.input_size
        return ImageEmbedding(
            image_embeddings=as_array(self.features),
            original_size=(height, width),
            input_size=(input_height, input_width),
            # Features that a caller put back carry no digest, and the reference asks for none.
            encoder_sha256=self.model.predictor.encoder_sha256,
        )

    def _decode(self, parts: Sequence[Prompts], multimask_output: bool, return_logits: bool) -> Masks:
        embedding = self._embedding()
        predictions = [
            self.model.predictor.decode(
                embedding,
                part,
                multimask_output=bool(multimask_output),
                return_logits=return_logits,
                outside="clip",
                limits=_PROMPT_LIMITS,
            )
            for part in parts
        ]
        _warn_of_changes(predictions)
        if len(predictions) == 1:
            return predictions[0].masks, predictions[0].iou_predictions, predictions[0].low_res_masks
        return (
            np.concatenate([prediction.masks for prediction in predictions]),
            np.concatenate([prediction.iou_predictions for prediction in predictions]),
            np.concatenate([prediction.low_res_masks for prediction in predictions]),
        )


def _prompts(points: Any, labels: Any, boxes: Any, mask_input: Any) -> Prompts:
    given = (as_array(part) if hasattr(part, "detach") else part for part in (points, labels, boxes, mask_input))
    return Prompts(*given)


def _in_image_frame(prompts: Prompts, embedding: ImageEmbedding) -> Prompts:
    def move(points: NDArray[np.float32]) -> NDArray[np.float32]:
        return to_image_frame(points, embedding.original_size, embedding.input_size)

    return Prompts(
        points=None if prompts.points is None else move(prompts.points),
        labels=prompts.labels,
        boxes=None if prompts.boxes is None else move(prompts.boxes.reshape(-1, 2, 2)).reshape(-1, 4),
        mask_input=prompts.mask_input,
    )


def _objects(prompts: Prompts, rows: slice) -> Prompts:
    parts = (prompts.points, prompts.labels, prompts.boxes, prompts.mask_input)
    return Prompts(*(None if part is None else part[rows] for part in parts))


def _warn_of_changes(predictions: Sequence[MaskPrediction]) -> None:
    notes = {note for prediction in predictions for note in prediction.notes}
    for note, text in _CHANGED.items():
        if note in notes:
            # To the line that called predict or predict_torch.
            warnings.warn(f"{text}; the reference would have used it as it is", stacklevel=4)
