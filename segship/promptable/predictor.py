# SPDX-License-Identifier: Apache-2.0
"""Masks from prompts: `load` a model, `Predictor.encode` an image once, `Predictor.decode` prompts as often as wanted.

The end of the use road for one image. A predictor holds sessions and no image, so threads may share it: what
belongs to an image travels in the `ImageEmbedding` that `encode` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Never, Self

import numpy as np
import numpy.typing as npt

from segship.arrays import AnyArray, FloatArray, Points
from segship.errors import BackendUnavailable, ImageError, PromptError, way
from segship.images import ImageLimits, ImageSource, LoadedImage, read_image
from segship.images.reading import default_limits
from segship.masks.cleanup import MaskCleanUp
from segship.masks.edges import EdgeGuide, EdgePainter, MaskEdges
from segship.masks.upscaling import LogitsPatch, Upscaler, upscaler
from segship.promptable.decoder import Decoded, Decoder, SelectedMasks, bytes_per_object, objects_per_call
from segship.promptable.prediction import (
    AMBIGUOUS_MASKS,
    ImageEmbedding,
    MaskChoice,
    MaskPrediction,
    check_choice,
    choose_masks,
    count_masks,
    make_masks,
)
from segship.promptable.prompts import (
    NO_PICTURE,
    ONE_MASK,
    ObjectPrompt,
    PromptLimits,
    Prompts,
    ResolvedPrompts,
    encode_clicks,
    encode_prompts,
    resolve_prompts,
)
from segship.promptable.transforms import masks_to_logits, prepare_image, resized_size, to_model_frame
from segship.spec import MASK_TOKENS

if TYPE_CHECKING:
    from segship.backends.session import Session
    from segship.promptable.manifest import PromptableManifest

# Prompt tensors and all four masks are held of so many objects at once; the masks that are wanted, of all.
_OBJECTS_OF_A_PORTION = 64


class Predictor:
    """A promptable model that is ready to run.

    Use `load` to make one. Calls may come from several threads at once; nothing of a call stays in the predictor
    but memory that the next call writes over.

    Parameters
    ----------
    manifest
        What the model is: sizes, preprocessing, prompt rules.
    sessions
        Graph -> session with its contract of `segship.spec`: ``image_encoder``, without which nothing is encoded, and
        those of `segship.promptable.decoder.Decoder`.
    encoder_sha256
        Digest of the encoder; an embedding belongs to the predictor whose digest it carries.
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
        manifest: PromptableManifest,
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
        self._decoder = Decoder(self._sessions, self.objects_per_call, manifest.decoder_masks)
        self.encoder_sha256 = encoder_sha256
        self._threads = threads
        # Inputs of calls that have ended, for the next ones: as many as there ever were calls at once.
        self._spare_frames: list[FloatArray] = []

    @property
    def image_size(self) -> int:
        """Side of the square model frame, in pixels."""
        return self.manifest.geometry.image_size

    @property
    def masks_per_point(self) -> int:
        """How many masks everything mode gets at each point: the ambiguous three, or the one that the decoder gives."""
        return count_masks(True, self.manifest.decoder_masks)

    @property
    def mask_clean_up(self) -> MaskCleanUp | None:
        """How prompted masks are cleaned, as the manifest says; None leaves them as the decoder gives them."""
        return self.manifest.mask_clean_up

    @property
    def mask_edges(self) -> MaskEdges | None:
        """How prompted masks follow the picture, as the manifest says; None leaves their borders as they are."""
        return self.manifest.mask_edges

    @property
    def description(self) -> str:
        """What really runs the model: runtime, version, device, threads."""
        return self._leading.description

    @property
    def objects_per_call(self) -> int:
        """How many objects the decoder takes at once; more of them are decoded in several calls."""
        return objects_per_call(self.manifest.geometry, on_gpu=self._leading.on_gpu)

    @property
    def _leading(self) -> Session:
        return self._sessions["image_encoder" if "image_encoder" in self._sessions else "mask_decoder"]

    @property
    def holds_image_side(self) -> bool:
        """Whether embeddings hold what all prompts of an image share, so that a click does not pay for it."""
        return "image_side" in self._sessions

    def encode(self, image: ImageSource, *, limits: ImageLimits | None = None) -> ImageEmbedding:
        """Encode one image.

        Parameters
        ----------
        image
            A path, encoded bytes, an open file, a PIL image, or an (H, W, 3) uint8 RGB array. Files are turned upright
            first.
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
        if isinstance(image, ImageEmbedding):
            message = "this is an embedding, which is encoded already; give it to decode, which takes the prompts"
            raise ImageError(message, code="unsupported_source")
        return self.encode_loaded(read_image(image, limits=self.image_limits(limits, image)))

    def image_limits(self, limits: ImageLimits | None = None, image: object = None) -> ImageLimits:
        """Return limits, or those of the image, with the aspect ratio that this model takes: twice its image size."""
        limits = limits or default_limits(image)
        return replace(limits, aspect_ratio=min(limits.aspect_ratio, 2 * self.image_size))

    def decode(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts] | None = None,
        *,
        multimask_output: MaskChoice = True,
        return_logits: bool = False,
        clean_up: bool = True,
        edges: bool | None = None,
        outside: Literal["error", "clip"] = "error",
        limits: PromptLimits | None = None,
        **unknown: Never,
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
        edges
            Let the picture decide the masks' borders, by `segship.masks.edges`; as the manifest says when None: tiny
            does, others do not. ``low_res_masks`` stay as they are here too.
        outside
            ``error`` refuses points outside the image, ``clip`` moves them to its edge and notes it.
        limits
            Bounds on the number of points and objects.

        Raises
        ------
        PromptError
            When prompts are malformed, or the embedding is another encoder's; ``no_picture`` where ``edges`` is True
            and the embedding holds no picture.
        TypeError, ImageError
            For ``points=`` and its like, which `Prompts` takes; for an image in place of its embedding.

        Examples
        --------
        >>> import segship
        >>> predictor = segship.load("tiny")
        >>> embedding = predictor.encode(segship.demo_photograph())
        >>> prediction = predictor.decode(embedding, segship.Prompts(points=[[365, 290]], labels=[1]))
        >>> prediction.masks.shape, prediction.masks.dtype
        ((1, 3, 400, 600), dtype('bool'))
        """
        if unknown or prompts is None:
            given = f"there is no parameter {next(iter(unknown))!r}" if unknown else "there are no prompts"
            raise TypeError(f"{given}; give what is asked as one: decode(embedding, Prompts(points=...))")
        check_choice(multimask_output)
        resolved = self._resolve(embedding, prompts, limits, outside)
        masks = count_masks(multimask_output, self.manifest.decoder_masks)
        self._check_memory(embedding, resolved, limits, masks, return_logits)
        return self.decode_resolved(
            embedding,
            resolved,
            multimask_output=multimask_output,
            return_logits=return_logits,
            clean_up=clean_up,
            edges=edges,
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
        clean_up: bool = True,
        edges: bool | None = None,
        outside: Literal["error", "clip"] = "error",
        limits: PromptLimits | None = None,
        **unknown: Never,
    ) -> MaskPrediction:
        """Encode an image and decode prompts in one call; `encode` and `decode` say what the parameters mean.

        Give either ``prompts`` or the parts of one `Prompts`; errors are theirs, and `TypeError` for other names.

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
        if prompts is None or unknown:
            prompts = Prompts(points=points, labels=labels, boxes=boxes, mask_input=mask_input, **unknown)
        return self.decode(
            self.encode(image),
            prompts,
            multimask_output=multimask_output,
            return_logits=return_logits,
            clean_up=clean_up,
            edges=edges,
            outside=outside,
            limits=limits,
        )

    def decode_low_res(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts],
        *,
        limits: PromptLimits | None = None,
    ) -> Decoded:
        """Return what the decoder itself gives for prompts as `decode` takes them.

        For code that chooses and upscales masks on its own.

        Returns
        -------
        tuple
            (N, 4) float32 predicted IoUs and (N, 4, 4h, 4w) float32 logits, the single-mask token first; one of each
            instead of four where the manifest's ``decoder_masks`` is 1.
        """
        resolved = self._resolve(embedding, prompts, limits)
        self._check_memory(embedding, resolved, limits, MASK_TOKENS)
        return self._run_decoder(embedding, self._prompt_tensors(embedding, resolved.objects))

    def decode_passing(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts],
        *,
        min_iou: float = -np.inf,
        limits: PromptLimits | None = None,
    ) -> SelectedMasks:
        """Return the ambiguous masks whose predicted IoU is above a bound, for prompts as `decode` takes them.

        They are those of `decode_low_res`, cut to the part that is not padding; a bundle with ``selective_decoder``
        does not compute the others.

        Parameters
        ----------
        min_iou
            The bound, compared in float32; all masks pass when it is left out.

        Raises
        ------
        BackendUnavailable
            ``nonfinite_output`` when a score is not finite.
        """
        resolved = self._resolve(embedding, prompts, limits)
        self._check_memory(embedding, resolved, limits, MASK_TOKENS)
        return self._select(embedding, self._prompt_tensors(embedding, resolved.objects), min_iou)

    def with_image_side(self, embedding: ImageEmbedding) -> ImageEmbedding:
        """Return an embedding with what all prompts of its image share, if the bundle has such a graph.

        For embeddings that were kept without it, which is most of their memory.
        """
        if embedding.image_side is not None:
            return embedding
        return replace(embedding, image_side=self._decoder.image_side(embedding.image_embeddings))

    def session(self, graph: str) -> Session:
        """Return the session of one graph, for code that gives it tensors itself; a KeyError where there is none."""
        return self._sessions[graph]

    def encode_frames(self, frames: FloatArray) -> FloatArray:
        """Return the encoder's output (B, C, h, w) for (B, 3, S, S) float32 that the caller normalised and padded."""
        run, frames = self._sessions["image_encoder"].run, np.ascontiguousarray(frames, np.float32)
        # One by one: a batch may change the last bits.
        found = np.concatenate([run({"image": frame[None]})["image_embeddings"] for frame in frames])
        self._require_finite(found, "image_embeddings")
        return found

    def mask_to_logits(self, masks: npt.ArrayLike) -> FloatArray:
        """Return binary masks of an image, (H, W) or (B, H, W), as (B, 1, 4h, 4w) float32 logits for ``mask_input``.

        Each cell has the logit of its part that is set, 0.001 to 0.999. Others are refused as ``bad_mask_input``.

        Examples
        --------
        >>> import segship
        >>> mask = np.zeros((400, 600), bool)
        >>> mask[100:200, 250:300] = True
        >>> segship.load("tiny").mask_to_logits(mask).shape
        (1, 1, 96, 96)
        """
        array = np.asarray(masks)
        if array.ndim not in (2, 3) or 0 in array.shape[-2:] or array.dtype.kind not in "buif":
            found = f"the mask is an array of {array.dtype} with the shape {array.shape}"
            raise PromptError(f"{found}; accepted are (H, W) and (B, H, W) of numbers or bool", code="bad_mask_input")
        return masks_to_logits(
            array.reshape(-1, *array.shape[-2:]), self.image_size, self.manifest.geometry.low_res_size
        )

    def upscale(self, low_res: FloatArray, embedding: ImageEmbedding) -> FloatArray:
        """Return the (H, W) float32 logits, in the image frame, of one low-resolution mask (4h, 4w)."""
        return self.upscaler(embedding).enlarge(LogitsPatch(low_res))

    def stop(self, thread: int) -> None:
        """End what a thread runs now, where the runtime can; see `segship.backends.session.Session.stop`."""
        for session in self._sessions.values():
            session.stop(thread)

    def close(self) -> None:
        """Release the sessions; the predictor cannot be used afterwards."""
        for session in self._sessions.values():
            session.close()

    def __repr__(self) -> str:
        return f"Predictor({self.manifest.architecture!r}, {self.precision}, in {self.description})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolve(
        self,
        embedding: ImageEmbedding,
        prompts: Prompts | Sequence[Prompts],
        limits: PromptLimits | None,
        outside: Literal["error", "clip"] = "error",
    ) -> ResolvedPrompts:
        self.check_embedding(embedding)
        return resolve_prompts(prompts, embedding.original_size, outside=outside, limits=limits or PromptLimits())

    def check_embedding(self, embedding: ImageEmbedding) -> None:
        """Refuse an embedding of another encoder as ``foreign_embedding``, and one of another shape."""
        if not isinstance(embedding, ImageEmbedding):
            found = f"this is a {type(embedding).__name__} and no embedding"
            message = f"{found}; give the image to encode first, or to predict in place of decode"
            raise ImageError(message, code="unsupported_source")
        geometry, found = self.manifest.geometry, embedding.image_embeddings.shape
        if found != (shape := (1, geometry.embedding_channels, geometry.embedding_size, geometry.embedding_size)):
            raise PromptError(
                f"the embedding has the shape {found}; accepted is {shape}, of one image", code="foreign_embedding"
            )
        if embedding.encoder_sha256 != self.encoder_sha256:
            raise PromptError(
                f"the embedding was made by encoder {embedding.encoder_sha256[:12]} and this decoder belongs to "
                f"encoder {self.encoder_sha256[:12]}; encode the image with this predictor",
                code="foreign_embedding",
            )

    def _check_memory(
        self,
        embedding: ImageEmbedding,
        resolved: ResolvedPrompts,
        limits: PromptLimits | None,
        masks: int,
        return_logits: bool = False,
    ) -> None:
        """Refuse what needs more memory than the limits allow, known before anything runs."""
        count, bound = len(resolved.objects), (limits or PromptLimits()).memory_bytes
        points = max((len(entry.points) for entry in resolved.objects), default=0)
        pixels = 4 * embedding.original_size[0] * embedding.original_size[1] if return_logits else 0
        # Each mask is kept whole, and once more as far as its pixels depend on it.
        kept = count * masks * (2 * 4 * self.manifest.geometry.low_res_size**2 + pixels)
        needed = kept + min(count, self.objects_per_call) * bytes_per_object(self.manifest.geometry, points)
        if needed > bound:
            raise PromptError(
                f"masks of {count:,} objects with up to {points:,} points need about {needed / 1e6:,.0f} MB; at most "
                f"{bound / 1e6:,.0f} MB are taken in one call; give fewer of them at once",
                code="over_memory",
            )

    # What follows trusts its callers: images were read, prompts resolved, and embeddings are this predictor's own.

    def encode_loaded(self, loaded: LoadedImage) -> ImageEmbedding:
        """Encode an image that `segship.images.read_image` gave."""
        size_hw = loaded.size_hw
        frame = self._spare_frame()
        tensor = prepare_image(loaded.picture, self.manifest.preprocessing, threads=self._threads, out=frame)
        outputs = self._sessions["image_encoder"].run({"image": tensor})
        if not any(np.may_share_memory(tensor, output) for output in outputs.values()):
            self._spare_frames.append(tensor)
        image_embeddings = outputs["image_embeddings"]
        # A NaN here would make plausible-looking empty masks of every later click.
        self._require_finite(image_embeddings, "image_embeddings")
        return ImageEmbedding(
            image_embeddings=image_embeddings,
            original_size=size_hw,
            input_size=resized_size(size_hw, self.image_size),
            encoder_sha256=self.encoder_sha256,
            notes=loaded.notes,
            image_side=self._decoder.image_side(image_embeddings),
            image_path=loaded.path,
            guide=EdgeGuide(loaded.picture),
        )

    def decode_resolved(
        self,
        embedding: ImageEmbedding,
        resolved: ResolvedPrompts,
        *,
        multimask_output: MaskChoice = True,
        return_logits: bool = False,
        clean_up: bool = True,
        edges: bool | None = None,
    ) -> MaskPrediction:
        """Decode prompts that `segship.promptable.prompts.resolve_prompts` gave, as `decode` does."""
        masks, side = self.manifest.decoder_masks, self.manifest.geometry.low_res_size
        kept = len(resolved.objects), count_masks(multimask_output, masks)
        own_notes = (ONE_MASK,) if multimask_output is True and masks == 1 else ()
        cleaning = self.mask_clean_up if clean_up else None
        followed = self.followed_edges(embedding, edges)
        if followed is None and edges is None and self.mask_edges is not None:
            own_notes = (*own_notes, NO_PICTURE)
        painters = None
        if followed is not None:
            painters = [self.edge_painter(embedding, prompt, followed, cleaning) for prompt in resolved.objects]
        ious, low_res = np.empty(kept, np.float32), np.empty((*kept, side, side), np.float32)
        for begin in range(0, len(ious), _OBJECTS_OF_A_PORTION):
            rows = slice(begin, begin + _OBJECTS_OF_A_PORTION)
            objects = resolved.objects[rows]
            found = self._run_decoder(embedding, self._prompt_tensors(embedding, objects))
            ious[rows], low_res[rows] = choose_masks(*found, objects, multimask_output)
        return MaskPrediction(
            held=make_masks(
                low_res,
                embedding,
                resolved.objects,
                self.upscaler(embedding),
                cleaning,
                painters=painters,
                pixels_per_cell=self.image_size / self.manifest.geometry.low_res_size,
                return_logits=return_logits,
            ),
            iou_predictions=ious,
            low_res_masks=low_res,
            original_size=embedding.original_size,
            objects=resolved.objects,
            notes=(*embedding.notes, *resolved.notes, *own_notes),
            image_path=embedding.image_path,
        )

    def followed_edges(self, embedding: ImageEmbedding, edges: bool | None) -> MaskEdges | None:
        """Return how masks of an embedding follow the picture, if they are to, and can."""
        if edges and embedding.guide is None:
            message = "edges were asked for, and the embedding holds no picture; encode the image again, or leave out "
            raise PromptError(message + way("edges=True", "--edges"), code="no_picture")
        if edges is False or embedding.guide is None:
            return None
        return (self.mask_edges or MaskEdges()) if edges else self.mask_edges

    def edge_painter(
        self, embedding: ImageEmbedding, prompt: ObjectPrompt, edges: MaskEdges, clean_up: MaskCleanUp | None
    ) -> EdgePainter:
        """Return what makes masks of one object follow the picture of an embedding that holds it."""
        assert embedding.guide is not None
        size_hw = embedding.guide.size_hw
        return EdgePainter(
            embedding.guide,
            edges,
            self._upscaler_to(embedding, size_hw),
            clean_up,
            to_model_frame(prompt.points, embedding.original_size, size_hw),
            prompt.labels,
            prompt.box is not None,
        )

    def select_at(self, embedding: ImageEmbedding, points_xy: Points, min_iou: float) -> SelectedMasks:
        """Return what `decode_passing` does at points (N, 2) inside the image, each an object of its own."""
        tensors = encode_clicks(
            points_xy,
            original_size=embedding.original_size,
            input_size=embedding.input_size,
            low_res_size=self.manifest.geometry.low_res_size,
            rules=self.manifest.prompt_rules,
        )
        return self._select(embedding, tensors, min_iou)

    def upscaler(self, embedding: ImageEmbedding) -> Upscaler:
        """Return what makes low-resolution masks of an image as large as it is."""
        return self._upscaler_to(embedding, embedding.original_size)

    def _upscaler_to(self, embedding: ImageEmbedding, size_hw: tuple[int, int]) -> Upscaler:
        return upscaler(self.manifest.geometry.low_res_size, self.image_size, embedding.input_size, size_hw)

    def _spare_frame(self) -> FloatArray | None:
        try:
            return self._spare_frames.pop()
        except IndexError:
            return None

    def _prompt_tensors(self, embedding: ImageEmbedding, objects: Sequence[ObjectPrompt]) -> dict[str, AnyArray]:
        return encode_prompts(
            objects,
            original_size=embedding.original_size,
            input_size=embedding.input_size,
            low_res_size=self.manifest.geometry.low_res_size,
            rules=self.manifest.prompt_rules,
        )

    def _run_decoder(self, embedding: ImageEmbedding, tensors: Mapping[str, AnyArray]) -> Decoded:
        ious, low_res = self._decoder.decode(embedding.image_embeddings, embedding.image_side, tensors)
        self._require_finite(ious, "iou_predictions")
        self._require_finite(low_res, "low_res_masks")
        return ious, low_res

    def _select(self, embedding: ImageEmbedding, tensors: Mapping[str, AnyArray], min_iou: float) -> SelectedMasks:
        thresholds = np.full(self.manifest.decoder_masks, np.inf, np.float32)
        thresholds[AMBIGUOUS_MASKS if len(thresholds) > 1 else slice(None)] = min_iou
        size_hw = self.upscaler(embedding).valid_cells
        found = self._decoder.select(
            embedding.image_embeddings, embedding.image_side, tensors, min_iou=thresholds, size_hw=size_hw
        )
        self._require_finite(found.iou_predictions, "iou_predictions")
        self._require_finite(found.low_res_masks, "low_res_masks")
        return found

    def _require_finite(self, output: AnyArray, name: str) -> None:
        # A sum needs no second array, and is finite only if all are; logits are far from float32's end.
        if not np.isfinite(output.sum()):
            raise BackendUnavailable(
                f"{name} holds values that are not finite (NaN or infinity) in {self.description}; "
                "try precision fp32 or another backend, and `segship doctor`",
                code="nonfinite_output",
            )
