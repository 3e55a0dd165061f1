# SPDX-License-Identifier: Apache-2.0
"""Masks from prompts: `load` a model, `Predictor.encode` an image once, `Predictor.decode` prompts as often as wanted.

The end of the use road for one image. A predictor holds two sessions and no image, so threads may share it: what
belongs to an image travels in the `ImageEmbedding` that `encode` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.errors import BackendUnavailable, PromptError
from segship.images import ImageLimits, ImageSource, read_image
from segship.prompts import ObjectPrompt, PromptLimits, PromptRules, Prompts, encode_prompts, resolve_prompts
from segship.transforms import Preprocessing, prepare_image, resized_size, upscale_mask

if TYPE_CHECKING:
    from segship.backends.session import Session
    from segship.bundle.manifest import Manifest

MaskChoice = bool | Literal["best", "auto"]
"""Which of the decoder's four masks come out.

``True``: the three of the ambiguous set. ``False``: the single-mask token. ``"best"``: of the ambiguous three the one
with the highest predicted IoU. ``"auto"``: ``"best"`` for an object that is a single click, the single-mask token for
any clearer object; the choice counts the points that the caller gave, never the padded length of a tensor.
"""

AMBIGUOUS_MASKS = slice(1, 4)


@dataclass(frozen=True, slots=True, eq=False)
class ImageEmbedding:
    """One encoded image.

    Attributes
    ----------
    image_embeddings
        (1, C, h, w) float32, the encoder's output.
    original_size
        Height and width of the upright image, in pixels.
    input_size
        Height and width of the resized image inside the model frame, without padding.
    encoder_sha256
        Digest of the encoder that made it; only the decoder of the same bundle accepts it.
    notes
        What was noticed while reading the image, such as ``animated_first_frame``.
    """

    image_embeddings: NDArray[np.float32]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    encoder_sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MaskPrediction:
    """Masks for some objects of one image.

    Attributes
    ----------
    masks
        (objects, masks, H, W) bool in the image frame; float32 logits when they were asked for.
    iou_predictions
        (objects, masks) float32, the model's own estimate of each mask's IoU.
    low_res_masks
        (objects, masks, 4h, 4w) float32 logits in the model frame, h x w the embedding grid; usable as mask input.
    original_size
        Height and width of the image, in pixels.
    objects
        The prompts as they were used, in the image frame: boxes ordered and clipped.
    notes
        What was noticed, such as ``box_clipped`` or ``no_positive_prompt``.
    """

    masks: NDArray[np.bool_] | NDArray[np.float32]
    iou_predictions: NDArray[np.float32]
    low_res_masks: NDArray[np.float32]
    original_size: tuple[int, int]
    objects: tuple[ObjectPrompt, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> NDArray[np.bool_]:
        """(objects, masks) bool, True where a mask has no pixel."""
        # Bool masks and logits alike: a pixel is set where it is above 0.
        return np.asarray(~(self.masks > 0).any(axis=(2, 3)), np.bool_)


class Predictor:
    """A promptable model that is ready to run.

    Use `load` to make one. Calls may come from several threads at once; nothing of a call stays in the predictor.

    Parameters
    ----------
    manifest
        What the model is: sizes, preprocessing, prompt rules.
    encoder, decoder
        Sessions with the contracts of `segship.spec`.
    encoder_sha256
        Digest that ties embeddings to this encoder.
    backend
        Name of the backend that runs both.
    """

    def __init__(
        self, manifest: Manifest, encoder: Session, decoder: Session, *, encoder_sha256: str, backend: str
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self._encoder = encoder
        self._decoder = decoder
        self._encoder_sha256 = encoder_sha256

    @property
    def image_size(self) -> int:
        """Side of the square model frame, in pixels."""
        return self.manifest.image_size

    @property
    def description(self) -> str:
        """What really runs the model: runtime, version, device, threads."""
        return self._encoder.description

    def encode(self, image: ImageSource, *, limits: ImageLimits | None = None) -> ImageEmbedding:
        """Encode one image.

        Parameters
        ----------
        image
            A path, encoded bytes, a PIL image, or an (H, W, 3) uint8 RGB array. Files are turned upright first.
        limits
            Bounds that the image must keep; the defaults of `ImageLimits` when left out.

        Raises
        ------
        ImageError
            When the image cannot be read or is outside the limits.
        BackendUnavailable
            When the runtime fails, or gives values that are not finite.

        Examples
        --------
        >>> import segship
        >>> predictor = segship.load("tiny")
        >>> embedding = predictor.encode(segship.demo_photograph())
        >>> embedding.original_size
        (400, 600)
        """
        loaded = read_image(image, limits=limits or ImageLimits())
        height, width = loaded.pixels.shape[:2]
        tensor = prepare_image(loaded.pixels, self._preprocessing)
        outputs = self._encoder.run({"image": tensor})
        _require_finite(outputs, "image_embeddings", self.description)
        return ImageEmbedding(
            image_embeddings=outputs["image_embeddings"],
            original_size=(height, width),
            input_size=resized_size((height, width), self.image_size),
            encoder_sha256=self._encoder_sha256,
            notes=loaded.notes,
        )

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts],
        *,
        multimask_output: MaskChoice = True,
        return_logits: bool = False,
        outside: Literal["error", "clip"] = "error",
        limits: PromptLimits | None = None,
    ) -> MaskPrediction:
        """Predict masks for any number of objects of one encoded image, in one call of the decoder.

        Parameters
        ----------
        embedding
            From `encode` of a predictor of the same bundle.
        prompts
            One `Prompts` for one or several objects, or a list of them for objects of different shapes.
        multimask_output
            Which masks come out; see `MaskChoice`.
        return_logits
            Return masks as float32 logits instead of bool; a pixel is set where its logit is above 0.
        outside
            ``error`` refuses points outside the image, ``clip`` moves them to its edge and notes it.
        limits
            Bounds on the number of points and objects.

        Raises
        ------
        PromptError
            When prompts are malformed, or the embedding is another encoder's.

        Examples
        --------
        >>> import segship
        >>> predictor = segship.load("tiny")
        >>> embedding = predictor.encode(segship.demo_photograph())
        >>> prediction = predictor.decode(embedding, segship.Prompts(points=[[365, 290]], labels=[1]))
        >>> prediction.masks.shape, prediction.masks.dtype
        ((1, 3, 400, 600), dtype('bool'))
        """
        self._check_embedding(embedding)
        resolved = resolve_prompts(prompts, embedding.original_size, outside=outside, limits=limits or PromptLimits())
        geometry = self.manifest.geometry
        inputs = encode_prompts(
            resolved.objects,
            original_size=embedding.original_size,
            input_size=embedding.input_size,
            low_res_size=geometry.low_res_size,
            rules=self._prompt_rules,
        )
        outputs = self._decoder.run({"image_embeddings": embedding.image_embeddings, **inputs})
        _require_finite(outputs, "iou_predictions", self.description)
        ious, low_res = _choose_masks(
            outputs["iou_predictions"], outputs["low_res_masks"], resolved.objects, multimask_output
        )
        return MaskPrediction(
            masks=self._upscale(low_res, embedding, return_logits),
            iou_predictions=ious,
            low_res_masks=low_res,
            original_size=embedding.original_size,
            objects=resolved.objects,
            notes=(*embedding.notes, *resolved.notes),
        )

    def predict(
        self,
        image: ImageSource,
        prompts: Prompts | Sequence[Prompts] | None = None,
        *,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: MaskChoice = True,
        return_logits: bool = False,
    ) -> MaskPrediction:
        """Encode an image and decode prompts in one call; `encode` and `decode` say what the parameters mean.

        Give either ``prompts`` or the parts of one `Prompts`.

        Examples
        --------
        >>> import segship
        >>> predictor = segship.load("tiny")
        >>> prediction = predictor.predict(segship.demo_photograph(), boxes=[140, 80, 460, 340], multimask_output=False)
        >>> prediction.masks.shape
        (1, 1, 400, 600)
        """
        parts = (points, labels, boxes, mask_input)
        if prompts is not None and any(part is not None for part in parts):
            raise PromptError("prompts were given twice: as `prompts` and as separate parts; give one of the two")
        if prompts is None:
            prompts = Prompts(points=points, labels=labels, boxes=boxes, mask_input=mask_input)
        return self.decode(self.encode(image), prompts, multimask_output=multimask_output, return_logits=return_logits)

    def close(self) -> None:
        """Release both sessions; the predictor cannot be used afterwards."""
        self._encoder.close()
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _preprocessing(self) -> Preprocessing:
        entry = self.manifest.preprocessing
        return Preprocessing(image_size=self.image_size, pixel_mean=entry.pixel_mean, pixel_std=entry.pixel_std)

    @property
    def _prompt_rules(self) -> PromptRules:
        return PromptRules(padding_point=self.manifest.prompt_rules.padding_point)

    def _check_embedding(self, embedding: ImageEmbedding) -> None:
        if embedding.encoder_sha256 != self._encoder_sha256:
            raise PromptError(
                f"the embedding was made by encoder {embedding.encoder_sha256[:12]} and this decoder belongs to "
                f"encoder {self._encoder_sha256[:12]}; encode the image with this predictor",
                code="foreign_embedding",
            )

    def _upscale(
        self, low_res: NDArray[np.float32], embedding: ImageEmbedding, return_logits: bool
    ) -> NDArray[np.bool_] | NDArray[np.float32]:
        # One mask at a time: all of them in float at image size is what makes the reference run out of memory.
        objects, count = low_res.shape[:2]
        shape = (objects, count, *embedding.original_size)
        masks: NDArray[Any] = np.empty(shape, np.float32 if return_logits else np.bool_)
        for index in np.ndindex(objects, count):
            logits = upscale_mask(
                low_res[index],
                image_size=self.image_size,
                input_size=embedding.input_size,
                original_size=embedding.original_size,
            )
            masks[index] = logits if return_logits else logits > 0.0
        return masks


def _require_finite(outputs: Mapping[str, NDArray[Any]], name: str, runs_on: str) -> None:
    # A NaN in the embedding would make plausible-looking empty masks of every later click.
    if not np.isfinite(outputs[name]).all():
        raise BackendUnavailable(
            f"{name} holds values that are not finite (NaN or infinity) in {runs_on}; "
            "try precision fp32 or another backend, and `segship doctor`",
            code="nonfinite_output",
        )


def _choose_masks(
    ious: NDArray[np.float32],
    low_res: NDArray[np.float32],
    objects: Sequence[ObjectPrompt],
    choice: MaskChoice,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pick masks from all four tokens: (N, 4) and (N, 4, h, w) to (N, k) and (N, k, h, w)."""
    if choice is True:
        return ious[:, AMBIGUOUS_MASKS], low_res[:, AMBIGUOUS_MASKS]
    if choice is False:
        return ious[:, :1], low_res[:, :1]
    if choice not in ("best", "auto"):
        raise PromptError(
            f"multimask_output is {choice!r}; accepted are True, False, 'best' and 'auto'", code="bad_multimask_output"
        )
    # argmax takes the first of equals, so ties go to the lower index.
    best = 1 + ious[:, AMBIGUOUS_MASKS].argmax(axis=1)
    if choice == "auto":
        ambiguous = np.array([prompt.ambiguous for prompt in objects])
        best = np.where(ambiguous, best, 0)
    rows = np.arange(len(ious))
    return ious[rows, best][:, None], low_res[rows, best][:, None]


def best_masks(prediction: MaskPrediction) -> MaskPrediction:
    """Keep of every object the mask with the highest predicted IoU, ready to be given as ``mask_input``.

    ``Prompts(mask_input=best_masks(prediction).low_res_masks)`` refines all objects of an earlier prediction.
    """
    best = prediction.iou_predictions.argmax(axis=1)
    rows = np.arange(len(best))
    return replace(
        prediction,
        masks=prediction.masks[rows, best][:, None],
        iou_predictions=prediction.iou_predictions[rows, best][:, None],
        low_res_masks=prediction.low_res_masks[rows, best][:, None],
    )
