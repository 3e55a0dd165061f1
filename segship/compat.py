# SPDX-License-Identifier: Apache-2.0
"""Code written for the package ``segment_anything``, running on segship: only its import changes.

Facades at the end of the use road. Names, signatures, attributes and results are those of segment_anything 1.0
(predictor.py, automatic_mask_generator.py, build_sam.py, utils/transforms.py), with numpy arrays where it has torch
tensors; torch tensors are taken too, and torch need not be there. ``docs/facades.md`` lists what differs. New code
has less to remember with `segship.load`.

>>> import numpy as np
>>> import segship
>>> from PIL import Image
>>> from segship.compat import SamPredictor, sam_model_registry
>>> predictor = SamPredictor(sam_model_registry["tiny"]())
>>> predictor.set_image(np.asarray(Image.open(segship.demo_photograph())))
>>> masks, scores, logits = predictor.predict(np.array([[365, 290]]), np.array([1]))
>>> masks.shape, scores.shape, logits.shape
((3, 400, 600), (3,), (3, 96, 96))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.arrays import AnyArray, FloatArray, Pixels
from segship.backends.session import RunOptions, RunSettings
from segship.catalog import EMBEDDED_MODELS, KNOWN_CHECKPOINTS
from segship.errors import ImageError, InputError, PromptError, SegshipWarning
from segship.images import ImageLimits
from segship.loading import load_promptable
from segship.options import make_options
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.records import OutputMode
from segship.promptable.everything.search import generate
from segship.promptable.prediction import ImageEmbedding
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import CHANGES, Prompts, ResolvedPrompts, resolve_prompts
from segship.promptable.transforms import resize_image, resized_size, to_image_frame
from segship.spec import SamGeometry

__all__ = [
    "ResizeLongestSide",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "TensorArray",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
]


class TensorArray(np.ndarray[Any, Any]):
    """A numpy array that also knows ``cpu()``, ``detach()`` and ``numpy()``, which notebooks say to SAM's tensors.

    >>> as_tensor_array(np.ones(2)).detach().cpu().numpy()
    array([1., 1.])
    """

    def cpu(self) -> Self:
        """Return the array itself; it lies in the memory of the CPU."""
        return self

    def detach(self) -> Self:
        """Return the array itself; it records no gradients."""
        return self

    def numpy(self) -> AnyArray:
        """Return the same numbers as a plain numpy array, not copied."""
        return np.asarray(self)


def as_tensor_array(array: AnyArray) -> TensorArray:
    """Return the same numbers, not copied, as a `TensorArray`."""
    return array.view(TensorArray)


def as_array(value: Any) -> AnyArray:
    """Return the numpy array of whatever was given for one: an array, a list, or a torch tensor on any device."""
    if hasattr(value, "detach"):
        # A tensor that records gradients, or lies on a GPU, makes no array of itself.
        value = value.detach().cpu()
    return np.asarray(value)


class ResizeLongestSide:
    """Bring images and coordinates to the model frame, where an image's longer side is ``target_length``.

    Parameters
    ----------
    target_length
        Side of the model frame, in pixels.

    Examples
    --------
    >>> transform = ResizeLongestSide(1024)
    >>> transform.apply_coords(np.array([[500, 375]]), (1200, 1800))
    array([[284.44444444, 213.4375    ]])
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: Any) -> Pixels:
        """Return (h, w, 3) uint8 of an image (H, W, 3) uint8, resized by Pillow's antialiased bilinear."""
        # A copy, since Pillow's memory is read-only and torch warns of such arrays.
        return np.array(resize_image(as_array(image), self.target_length))

    def apply_coords(self, coords: Any, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """Return points (..., 2) float64 in the model frame, given in pixels of an image (height, width)."""
        height, width = original_size
        new_height, new_width = resized_size((height, width), self.target_length)
        # Each axis has its own exact ratio, since the resized sides are rounded.
        return np.asarray(as_array(coords).astype(np.float64) * (new_width / width, new_height / height))

    def apply_boxes(self, boxes: Any, original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """Return boxes (B, 4) float64 x0 y0 x1 y1 in the model frame; see `apply_coords`."""
        return self.apply_coords(as_array(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(self, coords: Any, original_size: tuple[int, ...]) -> TensorArray:
        """Return points (..., 2) float32 in the model frame, for `SamPredictor.predict_torch`."""
        return as_tensor_array(self.apply_coords(coords, original_size).astype(np.float32))

    def apply_boxes_torch(self, boxes: Any, original_size: tuple[int, ...]) -> TensorArray:
        """Return boxes (B, 4) float32 in the model frame, for `SamPredictor.predict_torch`."""
        return as_tensor_array(self.apply_boxes(boxes, original_size).astype(np.float32))

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Return (height, width) of an image of ``oldh`` x ``oldw`` whose longer side becomes ``long_side_length``."""
        return resized_size((oldh, oldw), long_side_length)


class InsideGraph:
    """What a bundle has only inside its decoder: `MaskDecoder` takes it back, its numbers are refused."""

    def __init__(self, name: str, prompts: ResolvedPrompts | None = None) -> None:
        self.name = name
        self.prompts = prompts

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            # What is looked for by numpy, copy and pickle alike.
            raise AttributeError(attribute)
        raise _inside_graph(self.name)

    def __array__(self, *_: Any, **__: Any) -> AnyArray:
        raise _inside_graph(self.name)


def _inside_graph(name: str) -> InputError:
    message = (
        f"{name} has no numbers here: a bundle computes them inside its decoder; give what sam.prompt_encoder gave to "
        "sam.mask_decoder, or use the package segment_anything for the tensors themselves"
    )
    return InputError(message, code="inside_graph")


class ImageEncoder:
    """``sam.image_encoder``: from normalised and padded images to embeddings; ``img_size`` is the side S of images."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam
        self.img_size = sam.predictor.image_size

    def __call__(self, x: Any) -> TensorArray:
        """Return the embeddings (B, C, h, w) of images (B, 3, S, S)."""
        return as_tensor_array(self._sam.predictor.encode_frames(as_array(x)))


class PromptEncoder:
    """``sam.prompt_encoder``: called with prompts in the model frame, it gives what ``sam.mask_decoder`` takes.

    ``embed_dim`` are channels; ``image_embedding_size``, ``input_image_size`` and ``mask_input_size`` (height, width).
    """

    def __init__(self, geometry: SamGeometry) -> None:
        side, grid, low_res = geometry.image_size, geometry.embedding_size, geometry.low_res_size
        self.embed_dim = geometry.embedding_channels
        self.image_embedding_size = grid, grid
        self.input_image_size = side, side
        self.mask_input_size = low_res, low_res

    def __call__(self, points: Any = None, boxes: Any = None, masks: Any = None) -> tuple[InsideGraph, InsideGraph]:
        """Return sparse and dense embeddings of B objects for ``sam.mask_decoder``.

        ``points`` are a pair of (B, N, 2) coordinates and (B, N) labels, ``boxes`` (B, 4) or (B, 1, 4), ``masks``
        (B, 1, 4h, 4w) logits. Points and boxes are kept within the model frame, as in `SamPredictor.predict`.
        """
        coords, labels = (None, None) if points is None else points
        given = _prompts(coords, labels, None if boxes is None else as_array(boxes).reshape(-1, 4), masks)
        resolved = resolve_prompts(given, self.input_image_size, outside="clip", limits=None)
        _warn_of_changes(resolved.notes, stacklevel=3)
        return InsideGraph("the sparse embedding", resolved), InsideGraph("the dense embedding", resolved)

    def get_dense_pe(self) -> InsideGraph:
        """Return what stands for the positional encoding of the grid, to be given to ``sam.mask_decoder``."""
        return InsideGraph("the dense positional encoding")


class MaskDecoder:
    """``sam.mask_decoder``: from an embedding and encoded prompts to low-resolution masks and their scores."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    def __call__(
        self,
        image_embeddings: Any,
        image_pe: Any,
        sparse_prompt_embeddings: Any,
        dense_prompt_embeddings: Any,
        multimask_output: bool,
    ) -> tuple[TensorArray, TensorArray]:
        """Return (B, C, 4h, 4w) float32 logits and (B, C) predicted IoUs of B objects of one image.

        Embeddings are (1, C, h, w), what ``sam.image_encoder`` gives; the other three come from ``sam.prompt_encoder``,
        and tensors of another origin are refused as ``inside_graph``.
        """
        prompts = getattr(sparse_prompt_embeddings, "__dict__", {}).get("prompts")
        given = (image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        if prompts is None or not all(isinstance(value, InsideGraph) for value in given):
            raise _inside_graph("a tensor of prompts or positions")
        predictor, frame = self._sam.predictor, self._sam.prompt_encoder.input_image_size
        embedding = ImageEmbedding(as_array(image_embeddings), frame, frame, predictor.encoder_sha256)
        predictor.check_embedding(embedding)
        found = predictor.decode_resolved(embedding, prompts, multimask_output=bool(multimask_output))
        return as_tensor_array(found.low_res_masks), as_tensor_array(found.iou_predictions)


class Sam:
    """A model under the reference's names; `SamPredictor` and `SamAutomaticMaskGenerator` take it.

    Parameters
    ----------
    model
        What `segship.load` takes (a name, the path of a bundle or of a checkpoint), or a `segship.Predictor`.
    run
        As `segship.load` takes them; for a model that is loaded here.

    Attributes
    ----------
    predictor
        The `segship.Predictor` that does the work.
    image_encoder, prompt_encoder, mask_decoder
        The parts that code calls by themselves: `ImageEncoder`, `PromptEncoder`, `MaskDecoder`.
    device
        ``cpu``, where arrays are taken and given, whatever device the model runs on.
    mask_threshold
        0.0: a pixel belongs to a mask where its logit is above it.
    image_format
        ``RGB``.
    """

    device = "cpu"
    mask_threshold = 0.0
    image_format = "RGB"

    def __init__(self, model: str | Path | Predictor, **run: Unpack[RunSettings]) -> None:
        options = make_options("Sam", RunOptions, run)
        self._load: Callable[[str], Predictor] | None = None
        if isinstance(model, Predictor):
            self.predictor = model
        else:
            self._load = lambda device: load_promptable(model, **asdict(replace(options, device=device)))
            self.predictor = self._load(options.device)
        self.image_encoder = ImageEncoder(self)
        self.prompt_encoder = PromptEncoder(self.predictor.manifest.geometry)
        self.mask_decoder = MaskDecoder(self)

    def __repr__(self) -> str:
        return f"Sam({self.predictor!r})"

    def to(self, device: Any) -> Self:
        """Load the model on a device: ``cpu``, ``cuda``, ``cuda:1``, or a ``torch.device``.

        Raises
        ------
        BackendUnavailable
            When the device is not here.
        InputError
            ``loaded_elsewhere`` when a `segship.Predictor` was given, whose device is settled.
        """
        if self._load is None:
            raise InputError(
                f"this model runs in a Predictor that was made before ({self.predictor.description}) and cannot move "
                f"to {device}; load it there with segship.load(..., device={str(device)!r})",
                code="loaded_elsewhere",
            )
        self.predictor = self._load(str(device))
        return self

    def eval(self) -> Self:
        """Return the model itself, which is never in training."""
        return self

    def __call__(
        self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool
    ) -> list[dict[str, TensorArray]]:
        """Predict masks for several images, each with its prompts; three an object, or one.

        An image's mapping has ``image`` (3, h, w), resized by `ResizeLongestSide.apply_image`; ``original_size``
        (height, width); and as `SamPredictor.predict_torch` takes them, in the model frame, ``point_coords``,
        ``point_labels``, ``boxes`` and ``mask_inputs``. For each there is a dict: ``masks`` (B, C, H, W) bool,
        ``iou_predictions`` (B, C), ``low_res_logits``.
        """
        predictor, results = SamPredictor(self), []
        for record in batched_input:
            image = record["image"]
            predictor.set_torch_image(image[None], record["original_size"])
            masks, scores, logits = predictor.predict_torch(
                record.get("point_coords"),
                record.get("point_labels"),
                record.get("boxes"),
                record.get("mask_inputs"),
                multimask_output,
            )
            results.append({"masks": masks, "iou_predictions": scores, "low_res_logits": logits})
        return results


def _build(architecture: str, checkpoint: str | Path | None = None, **options: Any) -> Sam:
    sam = Sam(architecture if checkpoint is None else checkpoint, **options)
    found = sam.predictor.manifest.architecture
    if found != architecture:
        raise InputError(
            f"{checkpoint} holds a model of architecture {found!r} and {architecture!r} was asked for; "
            f"use segship.compat.Sam(checkpoint), which takes any",
            code="other_architecture",
        )
    return sam


def build_sam_vit_h(checkpoint: str | Path | None = None, **options: Any) -> Sam:
    """Load SAM ViT-H from a bundle or checkpoint, or by its name from the cache folder; options as `Sam` has them."""
    return _build("vit_h", checkpoint, **options)


def build_sam_vit_l(checkpoint: str | Path | None = None, **options: Any) -> Sam:
    """Load SAM ViT-L; see `build_sam_vit_h`."""
    return _build("vit_l", checkpoint, **options)


def build_sam_vit_b(checkpoint: str | Path | None = None, **options: Any) -> Sam:
    """Load SAM ViT-B; see `build_sam_vit_h`."""
    return _build("vit_b", checkpoint, **options)


build_sam = build_sam_vit_h

sam_model_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam,
    **{name: partial(_build, name) for name, known in KNOWN_CHECKPOINTS.items() if known.task == "promptable"},
    **{name: partial(_build, name) for name in EMBEDDED_MODELS},
}
"""Name of an architecture -> what loads it: ``sam_model_registry["vit_b"](checkpoint="vit_b.bundle")``."""


Masks = tuple[AnyArray, FloatArray, FloatArray]

# The reference knows no limits. An array lies in memory already, so only the largest side that we take is kept.
ARRAY_LIMITS = ImageLimits(pixels=400_000_000)


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
        self.model = sam_model if isinstance(sam_model, Sam) else Sam(sam_model)
        self.transform = ResizeLongestSide(self.model.image_encoder.img_size)
        self.reset_image()

    def __repr__(self) -> str:
        return f"SamPredictor({self.model!r}, {f'image of {self.original_size}' if self.is_image_set else 'no image'})"

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
        """Encode an image (H, W, 3) uint8, its channels ``RGB`` or ``BGR``, and hold its embedding.

        Raises
        ------
        InputError, ImageError
            ``bad_image_format``, or when the array is no such image.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}; accepted are 'RGB' and 'BGR'", code="bad_image_format")
        pixels = as_array(image)
        if image_format != self.model.image_format and pixels.ndim == 3:
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        self._encode(pixels)

    def set_torch_image(self, transformed_image: Any, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that `ResizeLongestSide` has resized, and hold its embedding.

        It is (1, 3, h, w) RGB, values 0 to 255, the longer side the model's image size. Values between whole numbers
        are rounded, as resizing by Pillow does. The original size is (height, width) before that.

        Raises
        ------
        ImageError
            ``bad_array_shape`` or ``value_range``.
        """
        batch, side = as_array(transformed_image), self.model.image_encoder.img_size
        if batch.ndim != 4 or batch.shape[:2] != (1, 3) or max(batch.shape[2:]) != side:
            raise ImageError(
                f"the transformed image has the shape {batch.shape}; accepted is (1, 3, h, w) with a longer side of "
                f"{side}, or give the image as it is to set_image",
                code="bad_array_shape",
            )
        rounded = np.rint(batch[0].transpose(1, 2, 0))
        if not ((rounded >= 0) & (rounded <= 255)).all():
            raise ImageError(
                f"the transformed image has values from {batch.min():g} to {batch.max():g}; accepted are 0 to 255, "
                "before mean and standard deviation are applied",
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
        """Predict masks for one object of the image; arguments and their meaning are the reference's.

        Points (N, 2) x y, with labels (N,), and the box (4,) or (1, 4) x0 y0 x1 y1 are pixels in the image frame; the
        mask input is (1, 4h, 4w) logits of an earlier prediction.

        Returns
        -------
        tuple
            Masks (C, H, W) bool, or float32 logits if asked for, predicted IoUs (C,) float32, and logits (C, 4h, 4w)
            float32 for ``mask_input``.

        Raises
        ------
        InputError, PromptError
            ``no_image`` when none is set; when the prompts are malformed or for several objects.
        """
        if point_coords is not None and point_labels is None:
            raise PromptError(
                "point_coords were given without point_labels; give one label a point, 1 or 0", code="length_mismatch"
            )
        prompts = _prompts(point_coords, point_labels, box, mask_input)
        if prompts.object_count > 1:
            raise PromptError(
                f"the prompts are for {prompts.object_count} objects and predict takes one; "
                "predict_torch, or Predictor.decode of segship, takes several",
                code="too_many_objects",
            )
        masks, scores, logits = self._decode(prompts, multimask_output, return_logits)
        # No box at all, (0, 4), has no masks.
        return masks.reshape(-1, *masks.shape[2:]), scores.reshape(-1), logits.reshape(-1, *logits.shape[2:])

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

        Points (B, N, 2) are what `ResizeLongestSide.apply_coords_torch` gives, labels (B, N), boxes (B, 4) what
        ``apply_boxes_torch`` gives, and mask inputs (B, 1, 4h, 4w); the rest is as in `predict`, with an axis B in
        front of what comes back.
        """
        given = _prompts(point_coords, point_labels, boxes, mask_input)
        if given.points is not None and np.ndim(point_coords) != 3:
            raise PromptError(
                f"point_coords has the shape {np.shape(point_coords)}; accepted is (B, N, 2)", code="bad_shape"
            )
        given = _in_image_frame(given, self._embedding())
        masks, scores, logits = self._decode(given, multimask_output, return_logits)
        return as_tensor_array(masks), as_tensor_array(scores), as_tensor_array(logits)

    def get_image_embedding(self) -> TensorArray:
        """Return the embedding (1, C, h, w) float32 of the image; ``no_image`` is raised when none is set."""
        return as_tensor_array(self._embedding().image_embeddings)

    def _encode(self, pixels: Pixels) -> None:
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

    def _decode(self, prompts: Prompts, multimask_output: bool, return_logits: bool) -> Masks:
        embedding = self._embedding()
        # The reference knows no limits, and uses points outside the image as they are.
        resolved = resolve_prompts(prompts, embedding.original_size, outside="clip", limits=None)
        prediction = self.model.predictor.decode_resolved(
            embedding, resolved, multimask_output=bool(multimask_output), return_logits=return_logits
        )
        # To the line that called predict or predict_torch.
        _warn_of_changes(prediction.notes, stacklevel=4)
        return prediction.masks, prediction.iou_predictions, prediction.low_res_masks


def _warn_of_changes(notes: Sequence[str], *, stacklevel: int) -> None:
    for note, text in CHANGES.items():
        if note in notes:
            warnings.warn(f"{text}; the reference would have used it as it is", SegshipWarning, stacklevel=stacklevel)


def _prompts(points: Any, labels: Any, boxes: Any, mask_input: Any) -> Prompts:
    given = (as_array(part) if hasattr(part, "detach") else part for part in (points, labels, boxes, mask_input))
    return Prompts(*given)


def _in_image_frame(prompts: Prompts, embedding: ImageEmbedding) -> Prompts:
    def move(points: FloatArray) -> FloatArray:
        return to_image_frame(points, embedding.original_size, embedding.input_size)

    return Prompts(
        points=None if prompts.points is None else move(prompts.points),
        labels=prompts.labels,
        boxes=None if prompts.boxes is None else move(prompts.boxes.reshape(-1, 2, 2)).reshape(-1, 4),
        mask_input=prompts.mask_input,
    )


class SamAutomaticMaskGenerator:
    """Generate masks for everything in pictures.

    The parameters, their defaults and their meaning are the reference's; `segship.AmgOptions` describes each. All are
    attributes too, and `generate` uses what they hold when it is called.

    Parameters
    ----------
    model
        A `Sam`, a `segship.Predictor`, or what `segship.load` takes.

    Attributes
    ----------
    predictor
        The `SamPredictor` of the model. `generate` leaves its image alone.

    Raises
    ------
    InputError
        ``bad_amg_option`` or ``bad_output_mode``, with the name of the parameter.

    Examples
    --------
    >>> import segship
    >>> from PIL import Image
    >>> image = Image.open(segship.demo_photograph())
    >>> generator = SamAutomaticMaskGenerator("tiny", points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0)
    >>> list(generator.generate(image)[0])
    ['segmentation', 'area', 'bbox', 'predicted_iou', 'point_coords', 'stability_score', 'crop_box']
    """

    def __init__(
        self,
        model: Sam | Predictor | str | Path,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[npt.ArrayLike] | None = None,
        min_mask_region_area: float = 0,
        output_mode: OutputMode = "binary_mask",
    ) -> None:
        self.points_per_side = points_per_side
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.point_grids = point_grids
        self.min_mask_region_area = min_mask_region_area
        self.output_mode: OutputMode = output_mode
        # Refused here, where they were written, and before a model is loaded.
        self._options()
        self.predictor = SamPredictor(model)

    def __repr__(self) -> str:
        return f"SamAutomaticMaskGenerator({self.predictor.model!r}, points_per_side={self.points_per_side})"

    def generate(self, image: Any) -> list[dict[str, Any]]:
        """Return a record for every mask of an image (H, W, 3) uint8 RGB; no mask at all is an empty list.

        They are dicts with ``segmentation`` ((H, W) bool, or run lengths by ``output_mode``), ``area``, ``bbox`` x y
        width height, ``predicted_iou``, ``point_coords``, ``stability_score`` and ``crop_box`` x y width height; what
        the reference gives, in its order.
        """
        pixels, model = as_array(image), self.predictor.model.predictor
        found = generate(model, pixels, self._options(), limits=ARRAY_LIMITS)
        if found.what_was_filtered:
            warnings.warn(found.what_was_filtered, SegshipWarning, stacklevel=2)
        return [record.to_dict(self.output_mode) for record in found.records]

    def _options(self) -> AmgOptions:
        names = {field.name for field in fields(AmgOptions)}
        return AmgOptions(**{name: value for name, value in vars(self).items() if name in names}, mode="reference")
