# SPDX-License-Identifier: Apache-2.0
"""`Sam` and ``sam_model_registry``: a loaded model with the attributes that code reads of the reference's model.

Follows segment_anything/build_sam.py and segment_anything/modeling/sam.py ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from segship.catalog import EMBEDDED_MODELS, load_promptable
from segship.compat.arrays import TensorArray
from segship.errors import InputError
from segship.known import KNOWN_CHECKPOINTS
from segship.predictor import Predictor


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """What code reads of ``sam.image_encoder``: the side of the model frame, in pixels."""

    img_size: int


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """What code reads of ``sam.prompt_encoder``: channels, and (height, width) of embedding, frame and mask input."""

    embed_dim: int
    image_embedding_size: tuple[int, int]
    input_image_size: tuple[int, int]
    mask_input_size: tuple[int, int]


class Sam:
    """A model under the reference's names; `SamPredictor` and `SamAutomaticMaskGenerator` take it.

    Parameters
    ----------
    model
        What `segship.load` takes (a name, the path of a bundle or of a checkpoint), or a `segship.Predictor`.
    backend, threads, device, precision
        As `segship.load` takes them; for a model that is loaded here.

    Attributes
    ----------
    predictor
        The `segship.Predictor` that does the work.
    image_encoder, prompt_encoder
        Sizes only.
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

    def __init__(
        self,
        model: str | Path | Predictor,
        *,
        backend: str = "auto",
        threads: int | None = None,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        self._load: Callable[[str], Predictor] | None = None
        if isinstance(model, Predictor):
            self.predictor = model
        else:
            self._load = lambda where: load_promptable(
                model, backend=backend, threads=threads, device=where, precision=precision
            )
            self.predictor = self._load(device)
        geometry = self.predictor.manifest.geometry
        side, grid, low_res = geometry.image_size, geometry.embedding_size, geometry.low_res_size
        self.image_encoder = ImageEncoder(side)
        self.prompt_encoder = PromptEncoder(geometry.embedding_channels, (grid, grid), (side, side), (low_res, low_res))

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
        """Predict masks for several images, each with its prompts.

        Parameters
        ----------
        batched_input
            One mapping an image: ``image`` (3, h, w), resized by `ResizeLongestSide.apply_image`; ``original_size``
            (height, width); and as `SamPredictor.predict_torch` takes them, in the model frame, ``point_coords``,
            ``point_labels``, ``boxes`` and ``mask_inputs``.
        multimask_output
            Three masks an object, or one.

        Returns
        -------
        list
            One dict an image: ``masks`` (B, C, H, W) bool, ``iou_predictions`` (B, C), ``low_res_logits``.
        """
        # Not at the top: the predictor stands on this module.
        from segship.compat.predictor import SamPredictor

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


def as_sam(model: Sam | Predictor | str | Path) -> Sam:
    """Return the `Sam` that was given, or one around the model that was."""
    return model if isinstance(model, Sam) else Sam(model)


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
    **{name: partial(_build, name) for name in (*KNOWN_CHECKPOINTS, *EMBEDDED_MODELS)},
}
"""Name of an architecture -> what loads it: ``sam_model_registry["vit_b"](checkpoint="vit_b.bundle")``."""
