# SPDX-License-Identifier: Apache-2.0
"""`pipeline("segment_anything")`: the calls of MindFormers' SAM pipeline, with the meaning that its document gives.

A facade at the end of the use road. Follows the calls of mindformers/pipeline/segment_anything_pipeline.py and its
task card; what differs is what was wrong there, and ``docs/facades.md`` lists it: points count beside boxes, whole
numbers are not cut to the model's grid, parameters belong to a call, zero means zero, and a whole-image call leaves
the image that was set alone. New code has less to remember with `segship.load`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, Unpack, cast, overload

import numpy as np

from segship.arrays import AnyArray, FloatArray
from segship.backends.session import RunOptions, RunSettings
from segship.errors import InputError, PromptError, SegshipWarning
from segship.images import ImageSource
from segship.loading import load_promptable
from segship.options import make_options
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import generate
from segship.promptable.prediction import ImageEmbedding, MaskPrediction
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import CHANGES, Prompts

TASKS = ("segment_anything",)
MODEL_NAMES = {"sam_vit_b": "vit_b", "sam_vit_l": "vit_l", "sam_vit_h": "vit_h"}
"""MindFormers' name of a model -> ours."""

UNKNOWN = "unknown_parameter"
INPUT_KEYS = ("image", "points", "labels", "boxes", "masks")

Inputs = Mapping[str, Any]
Outputs = dict[str, AnyArray]
Records = list[dict[str, Any]]


def pipeline(
    task: str,
    model: str | Path | Predictor = "tiny",
    **run: Unpack[RunSettings],
) -> SegmentAnythingPipeline:
    """Make a pipeline.

    Parameters
    ----------
    task
        ``segment_anything``.
    model
        MindFormers' names ``sam_vit_b``, ``sam_vit_l`` and ``sam_vit_h``, what `load` takes (a name, the path of a
        bundle or of a checkpoint), or a `Predictor`.
    run
        As `load` takes them.

    Raises
    ------
    InputError
        ``unknown_task``.

    Examples
    --------
    >>> import segship
    >>> task = pipeline("segment_anything", model="tiny")
    >>> task.set_image(segship.demo_photograph())
    >>> outputs = task({"points": [[365, 290]], "labels": [1]}, multimask_output=True)
    >>> outputs["masks"].shape, outputs["iou_predictions"].shape, outputs["low_res_masks"].shape
    ((3, 400, 600), (3,), (3, 96, 96))
    """
    if task not in TASKS:
        raise InputError(f"there is no task {task!r}; known are {', '.join(TASKS)}", code="unknown_task")
    options = make_options("pipeline", RunOptions, run)
    if not isinstance(model, Predictor):
        model = load_promptable(MODEL_NAMES.get(str(model), model), **asdict(options))
    return SegmentAnythingPipeline(model)


class SegmentAnythingPipeline:
    """Masks from prompts or of everything in a picture; `pipeline` makes one."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._embedding: ImageEmbedding | None = None

    def set_image(self, image: ImageSource, image_format: str = "RGB") -> None:
        """Encode an image, once for all calls that name none.

        An array's channels are in the order ``RGB`` or ``BGR``; a path is read upright and in RGB.

        Raises
        ------
        InputError, ImageError
            ``bad_image_format``, or when the image cannot be read.
        """
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}; accepted are 'RGB' and 'BGR'", code="bad_image_format")
        if image_format == "BGR":
            if not isinstance(image, np.ndarray):
                raise InputError(
                    "image_format 'BGR' was given with an image that is no array; only arrays need it, files are "
                    "read in RGB",
                    code="bad_image_format",
                )
            # An array without channels is gray, and has no order to turn round.
            image = np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image
        # First, so that a refused image does not leave the one before it.
        self.reset_image()
        self._embedding = self.predictor.encode(image)

    def reset_image(self) -> None:
        """Forget the image that was set."""
        self._embedding = None

    def get_image_embedding(self) -> FloatArray:
        """Return the embedding (1, C, h, w) float32 of the image that was set; ``no_image`` is raised when none is."""
        return self._embedding_of({}).image_embeddings

    @overload
    def __call__(
        self,
        inputs: Inputs,
        *,
        seg_image: Literal[False] = False,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Outputs: ...

    @overload
    def __call__(self, inputs: Inputs, *, seg_image: Literal[True], **parameters: Any) -> Records: ...

    @overload
    def __call__(
        self, inputs: Sequence[Inputs], *, seg_image: bool = False, **parameters: Any
    ) -> list[Outputs] | list[Records]: ...

    def __call__(
        self,
        inputs: Inputs | Sequence[Inputs],
        *,
        seg_image: bool = False,
        multimask_output: bool = True,
        return_logits: bool = False,
        **parameters: Any,
    ) -> Outputs | Records | list[Outputs] | list[Records]:
        """Predict masks for prompts, or with ``seg_image=True`` for everything in an image.

        Parameters
        ----------
        inputs
            A mapping, or a list of them, which gives a list of results. Keys:

            ``image``: (H, W, 3) uint8 RGB or a path; without it the image that was set is used, with it that one is
            left alone. ``points``: (N, 2) x y pixels for N points of one object, or (B, N, 2) for B objects.
            ``labels``: (N,) or (B, N), 1 foreground and 0 background; all 1 when left out. ``boxes``: (4,) or (B, 4)
            x0 y0 x1 y1 pixels. ``masks``: (1, 4h, 4w) or (B, 1, 4h, 4w) logits of an earlier prediction.
        seg_image
            Segment everything in ``image``; prompts are refused beside it.
        multimask_output
            Three masks an object, for prompts that may mean several things, or one.
        return_logits
            Masks as float32 logits instead of bool.
        parameters
            With ``seg_image=True``, fields of `segship.promptable.everything.options.AmgOptions`; they hold for this
            call alone.

        Returns
        -------
        dict or list
            ``masks`` (B, C, H, W) bool, ``iou_predictions`` (B, C) float32 and ``low_res_masks`` (B, C, 4h, 4w)
            float32, without the axis B when there is one object. With ``seg_image=True`` a list of records with the
            keys of SA-1B.

        Raises
        ------
        InputError
            ``bad_input``, ``unknown_key``, ``unknown_parameter``, ``no_image``, or what `segship.promptable.everything`
            refuses.
        PromptError
            When the prompts are malformed.
        """
        if isinstance(inputs, list | tuple):
            call = cast(Any, self)
            settings = {"multimask_output": multimask_output, "return_logits": return_logits, **parameters}
            return [call(entry, seg_image=seg_image, **settings) for entry in inputs]
        inputs = _check_keys(inputs, seg_image)
        if seg_image:
            if return_logits or not multimask_output:
                raise _unknown("multimask_output and return_logits", "prompts; leave them out with seg_image=True")
            options = _amg_options(parameters)
            found = generate(self.predictor, inputs["image"], options)
            if found.what_was_filtered:
                warnings.warn(found.what_was_filtered, SegshipWarning, stacklevel=2)
            return [record.to_dict(options.output_mode) for record in found.records]
        if parameters:
            raise _unknown(", ".join(sorted(parameters)), "seg_image=True; without it leave them out")
        prediction = self.predictor.decode(
            self._embedding_of(inputs),
            _read_prompts(inputs),
            multimask_output=multimask_output,
            return_logits=return_logits,
        )
        for note, text in CHANGES.items():
            if note in prediction.notes:
                warnings.warn(text, SegshipWarning, stacklevel=2)
        return _outputs(prediction)

    def _embedding_of(self, inputs: Inputs) -> ImageEmbedding:
        if inputs.get("image") is not None:
            return self.predictor.encode(inputs["image"])
        if self._embedding is None:
            raise InputError("no image is set; call set_image first, or give one under 'image'", code="no_image")
        return self._embedding


def _amg_options(parameters: Mapping[str, Any]) -> AmgOptions:
    known = [field.name for field in fields(AmgOptions)]
    unknown = sorted(parameters.keys() - set(known))
    if unknown:
        raise InputError(f"there is no parameter {unknown[0]!r}; known are {', '.join(known)}", code=UNKNOWN)
    given = dict(parameters)
    if given.get("point_grids") is not None:
        # The grids stand in the place of the default, and only of the default.
        given.setdefault("points_per_side", None)
    return AmgOptions(**given)


def _check_keys(inputs: Any, seg_image: bool) -> Inputs:
    accepted = ("image",) if seg_image else INPUT_KEYS
    wanted = f"a mapping with the keys {', '.join(accepted)}" + (" when seg_image is True" if seg_image else "")
    if not isinstance(inputs, Mapping):
        raise InputError(f"the inputs are a {type(inputs).__name__}; accepted is {wanted}, or a list", code="bad_input")
    unknown = [key for key in inputs if key not in INPUT_KEYS or (inputs[key] is not None and key not in accepted)]
    if unknown:
        raise InputError(f"the inputs have the key {unknown[0]!r}; accepted is {wanted}", code="unknown_key")
    if seg_image and inputs.get("image") is None:
        raise InputError(f"the inputs have no image; accepted is {wanted}", code="no_image")
    return inputs


def _unknown(names: str, belongs_to: str) -> InputError:
    return InputError(f"{names}: this belongs to calls with {belongs_to}", code=UNKNOWN)


def _read_prompts(inputs: Inputs) -> Prompts:
    points, labels = inputs.get("points"), inputs.get("labels")
    if _is_lone_point(points):
        points, labels = [points], None if labels is None else np.reshape(labels, -1)
    try:
        return Prompts(points=points, labels=labels, boxes=inputs.get("boxes"), mask_input=inputs.get("masks"))
    except PromptError as error:
        if error.code != "bad_label":
            raise
        raise PromptError(
            f"{error}; the first example of MindFormers' task card has 2 for background, and its code, like SAM's, "
            "knows 0: write 0",
            code=error.code,
        ) from None


def _is_lone_point(points: Any) -> bool:
    return isinstance(points, list | tuple | np.ndarray) and len(points) == 2 and all(map(np.isscalar, points))


def _outputs(prediction: MaskPrediction) -> Outputs:
    outputs: Outputs = {
        "masks": prediction.masks,
        "iou_predictions": prediction.iou_predictions,
        "low_res_masks": prediction.low_res_masks,
    }
    return {name: array[0] for name, array in outputs.items()} if len(prediction.masks) == 1 else outputs
