# SPDX-License-Identifier: Apache-2.0
"""Masks from prompts: `load` a model, `Predictor.encode` an image once, `Predictor.decode` prompts as often as wanted.

The end of the use road for one image. A predictor holds sessions and no image, so threads may share it: what
belongs to an image travels in the `ImageEmbedding` that `encode` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.errors import BackendUnavailable, PromptError
from segship.images import ImageLimits, ImageSource, read_image
from segship.masks.cleanup import MaskCleanUp
from segship.masks.upscaling import LogitsPatch, Upscaler, upscaler
from segship.promptable.decoder import SelectedMasks, decode_arrays, decode_passing, objects_per_call
from segship.promptable.prediction import (
    AMBIGUOUS_MASKS,
    ImageEmbedding,
    MaskChoice,
    MaskPrediction,
    choose_masks,
    make_masks,
)
from segship.promptable.prompts import (
    ObjectPrompt,
    PromptLimits,
    PromptRules,
    Prompts,
    encode_prompts,
    resolve_prompts,
)
from segship.promptable.transforms import Preprocessing, prepare_image, resized_size
from segship.spec import MASK_TOKENS

if TYPE_CHECKING:
    from segship.backends.session import Session
    from segship.promptable.manifest import SamManifest


class Predictor:
    """A promptable model that is ready to run.

    Use `load` to make one. Calls may come from several threads at once; nothing of a call stays in the predictor
    but memory that the next call writes over.

    Parameters
    ----------
    manifest
        What the model is: sizes, preprocessing, prompt rules.
    sessions
        Graph -> session with its contract of `segship.spec`: ``image_encoder`` and ``mask_decoder``, and ``image_side``
        with ``selective_decoder`` (older bundles: ``shared_decoder``) where the bundle has them.
    encoder_sha256
        Digest that ties embeddings to this encoder.
    backend
        Name of the backend that runs them.
    precision
        Precision that its arithmetic was asked for.
    backend_reason
        Why this backend was chosen, in words; empty if the caller named it.
    threads
        How many prepare an image; all usable cores when None.
    """

    def __init__(
        self,
        manifest: SamManifest,
        sessions: Mapping[str, Session],
        *,
        encoder_sha256: str,
        backend: str,
        precision: str = "fp32",
        backend_reason: str = "",
        threads: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.precision = precision
        self.backend_reason = backend_reason
        self._sessions = dict(sessions)
        self._encoder_sha256 = encoder_sha256
        self._threads = threads
        # Inputs of calls that have ended, for the next ones: as many as there ever were calls at once.
        self._spare_frames: list[NDArray[np.float32]] = []

    @property
    def image_size(self) -> int:
        """Side of the square model frame, in pixels."""
        return self.manifest.image_size

    @property
    def encoder_sha256(self) -> str:
        """Digest of the encoder; an embedding belongs to the predictor whose digest it carries."""
        return self._encoder_sha256

    @property
    def mask_clean_up(self) -> MaskCleanUp | None:
        """How prompted masks are cleaned, as the manifest says; None leaves them as the decoder gives them."""
        entry = self.manifest.mask_clean_up
        return None if entry is None else MaskCleanUp(**entry.model_dump())

    @property
    def description(self) -> str:
        """What really runs the model: runtime, version, device, threads."""
        return self._sessions["image_encoder"].description

    @property
    def objects_per_call(self) -> int:
        """How many objects the decoder takes at once; more of them are decoded in several calls."""
        return objects_per_call(self.manifest.geometry, on_gpu="cuda" in self.description.lower())

    @property
    def holds_image_side(self) -> bool:
        """Whether embeddings hold what all prompts of an image share, so that a click does not pay for it."""
        return "image_side" in self._sessions

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
        height, width = loaded.size_hw
        frame = self._spare_frame()
        tensor = prepare_image(loaded.picture, self._preprocessing, threads=self._threads, out=frame)
        outputs = self._sessions["image_encoder"].run({"image": tensor})
        if not any(np.may_share_memory(tensor, output) for output in outputs.values()):
            self._spare_frames.append(tensor)
        _require_finite(outputs, "image_embeddings", self.description)
        side = self._sessions.get("image_side")
        return ImageEmbedding(
            image_embeddings=outputs["image_embeddings"],
            original_size=(height, width),
            input_size=resized_size((height, width), self.image_size),
            encoder_sha256=self._encoder_sha256,
            notes=loaded.notes,
            image_side=None if side is None else side.run({"image_embeddings": outputs["image_embeddings"]}),
        )

    def _spare_frame(self) -> NDArray[np.float32] | None:
        try:
            return self._spare_frames.pop()
        except IndexError:
            return None

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts],
        *,
        multimask_output: MaskChoice = True,
        return_logits: bool = False,
        clean_up: bool = True,
        outside: Literal["error", "clip"] = "error",
        limits: PromptLimits | None = None,
    ) -> MaskPrediction:
        """Predict masks for any number of objects of one encoded image.

        Objects with a mask input and without, with few points and with many may stand beside each other; the decoder
        gets `objects_per_call` of them at once.

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
        clean_up
            Clean masks as the bundle's manifest says; most say nothing, and then nothing is cleaned. ``low_res_masks``
            stay as the decoder gave them in any case.
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
        all_ious, all_low_res = self._run_decoder(embedding, resolved.objects)
        ious, low_res = choose_masks(all_ious, all_low_res, resolved.objects, multimask_output)
        return MaskPrediction(
            held=make_masks(
                low_res,
                embedding,
                resolved.objects,
                self._upscaler(embedding),
                self.mask_clean_up if clean_up else None,
                pixels_per_cell=self.image_size / self.manifest.geometry.low_res_size,
                return_logits=return_logits,
            ),
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

    def decode_low_res(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts],
        *,
        limits: PromptLimits | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what the decoder itself gives, for code that chooses and upscales masks on its own.

        Parameters
        ----------
        embedding, prompts, limits
            As `decode` takes them.

        Returns
        -------
        tuple
            (N, 4) float32 predicted IoUs and (N, 4, 4h, 4w) float32 logits, the single-mask token first.

        Raises
        ------
        PromptError
            As `decode` does.
        """
        self._check_embedding(embedding)
        resolved = resolve_prompts(prompts, embedding.original_size, limits=limits or PromptLimits())
        return self._run_decoder(embedding, resolved.objects)

    def decode_passing(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts],
        *,
        min_iou: float = -np.inf,
        limits: PromptLimits | None = None,
    ) -> SelectedMasks:
        """Return the ambiguous masks whose predicted IoU is above a bound, as the decoder itself gives them.

        They are those of `decode_low_res`, cut to the part that is not padding; a bundle with ``selective_decoder``
        does not compute the others.

        Parameters
        ----------
        embedding, prompts, limits
            As `decode` takes them.
        min_iou
            The bound, compared in float32; all masks pass when it is left out.

        Raises
        ------
        PromptError
            As `decode` does.
        BackendUnavailable
            ``nonfinite_output`` when a score is not finite.
        """
        self._check_embedding(embedding)
        resolved = resolve_prompts(prompts, embedding.original_size, limits=limits or PromptLimits())
        thresholds = np.full(MASK_TOKENS, np.inf, np.float32)
        thresholds[AMBIGUOUS_MASKS] = min_iou
        found = decode_passing(
            self._sessions,
            embedding.image_embeddings,
            embedding.image_side,
            self._prompt_tensors(embedding, resolved.objects),
            min_iou=thresholds,
            size_hw=self._upscaler(embedding).valid_cells,
            per_call=self.objects_per_call,
        )
        _require_finite({"iou_predictions": found.iou_predictions}, "iou_predictions", self.description)
        return found

    def upscale(self, low_res: NDArray[np.float32], embedding: ImageEmbedding) -> NDArray[np.float32]:
        """Return the (H, W) float32 logits, in the image frame, of one low-resolution mask (4h, 4w)."""
        return self._upscaler(embedding).enlarge(LogitsPatch(low_res))

    def close(self) -> None:
        """Release the sessions; the predictor cannot be used afterwards."""
        for session in self._sessions.values():
            session.close()

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

    def _run_decoder(
        self, embedding: ImageEmbedding, objects: Sequence[ObjectPrompt]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        inputs = self._prompt_tensors(embedding, objects)
        ious, low_res = decode_arrays(
            self._sessions, embedding.image_embeddings, embedding.image_side, inputs, per_call=self.objects_per_call
        )
        _require_finite({"iou_predictions": ious}, "iou_predictions", self.description)
        return ious, low_res

    def _prompt_tensors(
        self, embedding: ImageEmbedding, objects: Sequence[ObjectPrompt]
    ) -> dict[str, NDArray[np.float32]]:
        return encode_prompts(
            objects,
            original_size=embedding.original_size,
            input_size=embedding.input_size,
            low_res_size=self.manifest.geometry.low_res_size,
            rules=self._prompt_rules,
        )

    def _upscaler(self, embedding: ImageEmbedding) -> Upscaler:
        low_res_size = self.manifest.geometry.low_res_size
        return upscaler(low_res_size, self.image_size, embedding.input_size, embedding.original_size)


def _require_finite(outputs: Mapping[str, NDArray[Any]], name: str, runs_on: str) -> None:
    # A NaN in the embedding would make plausible-looking empty masks of every later click.
    if not np.isfinite(outputs[name]).all():
        raise BackendUnavailable(
            f"{name} holds values that are not finite (NaN or infinity) in {runs_on}; "
            "try precision fp32 or another backend, and `segship doctor`",
            code="nonfinite_output",
        )
