# SPDX-License-Identifier: Apache-2.0
"""Code written for the package segment_anything, of which only the import changed: a click, then a refined mask."""

import numpy as np
from PIL import Image

import segship
from segship.compat import SamPredictor, sam_model_registry  # was: from segment_anything import ...

sam = sam_model_registry["tiny"]()
predictor = SamPredictor(sam)
predictor.set_image(np.asarray(Image.open(segship.demo_photograph()).convert("RGB")))

masks, scores, logits = predictor.predict(np.array([[365, 290]]), np.array([1]), multimask_output=True)
best = int(np.argmax(scores))
print(f"one click: {masks[best].sum():,} pixels, predicted IoU {scores[best]:.2f}")

masks, scores, _ = predictor.predict(
    point_coords=np.array([[365, 290], [345, 230]]),
    point_labels=np.array([1, 0]),
    mask_input=logits[best][None, :, :],
    multimask_output=False,
)
print(f"two clicks: {masks[0].sum():,} pixels, predicted IoU {scores[0]:.2f}")
