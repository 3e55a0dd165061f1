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

from segship.compat.generator import SamAutomaticMaskGenerator
from segship.compat.predictor import (
    ResizeLongestSide,
    Sam,
    SamPredictor,
    TensorArray,
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    sam_model_registry,
)

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
