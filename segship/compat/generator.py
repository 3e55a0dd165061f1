# SPDX-License-Identifier: Apache-2.0
"""`SamAutomaticMaskGenerator`: everything in a picture, under the reference's names and with its results.

Follows segment_anything/automatic_mask_generator.py; the work is done by `segship.promptable.everything` in mode
``reference``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from segship.compat.predictor import ARRAY_LIMITS, Sam, SamPredictor, as_array
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.records import OutputMode
from segship.promptable.everything.search import generate_masks
from segship.promptable.predictor import Predictor


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

    def generate(self, image: Any) -> list[dict[str, Any]]:
        """Return a record for every mask.

        Parameters
        ----------
        image
            (H, W, 3) uint8 RGB.

        Returns
        -------
        list
            Dicts with ``segmentation`` ((H, W) bool, or run lengths by ``output_mode``), ``area``, ``bbox`` x y width
            height, ``predicted_iou``, ``point_coords``, ``stability_score`` and ``crop_box`` x y width height; what
            the reference gives, in its order. No mask at all is an empty list.
        """
        pixels, model = as_array(image), self.predictor.model.predictor
        records = generate_masks(model, pixels, self._options(), limits=ARRAY_LIMITS)
        return [record.to_dict(self.output_mode) for record in records]

    def _options(self) -> AmgOptions:
        return AmgOptions(
            points_per_side=self.points_per_side,
            points_per_batch=self.points_per_batch,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            stability_score_offset=self.stability_score_offset,
            box_nms_thresh=self.box_nms_thresh,
            crop_n_layers=self.crop_n_layers,
            crop_nms_thresh=self.crop_nms_thresh,
            crop_overlap_ratio=self.crop_overlap_ratio,
            crop_n_points_downscale_factor=self.crop_n_points_downscale_factor,
            point_grids=self.point_grids,
            min_mask_region_area=self.min_mask_region_area,
            output_mode=self.output_mode,
            mode="reference",
        )
