# SPDX-License-Identifier: Apache-2.0
"""`SamAutomaticMaskGenerator`: the calls of the reference's notebook on both, over one decoder that draws discs."""

import numpy as np
import pytest
import torch

from segship import compat
from segship.backends.fake import Session as FakeSession
from segship.errors import InputError
from segship.images.comparison import draw_scene
from segship.masks.rle import decode_rle
from segship.masks.scores import mask_iou
from segship.promptable.predictor import Predictor
from segship.spec import image_encoder_spec, mask_decoder_spec
from tests.compat.side_by_side import the_reference
from tests.oracle import SMALL_VIT
from tests.small_models import small_predictor, small_sam_manifest

IMAGE = draw_scene((120, 180), seed=5)
KEYS = ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"]
SPACING = 24.0


def draw_discs(points_xy):
    """Return IoUs (n, 4) and low-res logits (n, 4, 32, 32) for points in the frame of 128: the disc that each is in."""
    centres = (np.floor(points_xy / SPACING) + 0.5) * SPACING
    y, x = (np.mgrid[:32, :32] + 0.5) * 4
    distance = np.hypot(x - centres[:, 0, None, None], y - centres[:, 1, None, None])
    radii = np.array([9, 6, 11, 8])[None, :, None, None]
    # Points of one disc give about the same masks and other scores, so that the order of duplicates counts.
    ious = 0.8 + 0.199 * np.abs(np.sin(points_xy.sum(axis=1, keepdims=True) * [1.1, 2.3, 3.7, 5.1]))
    return ious.astype(np.float32), ((radii - distance[:, None]) * 20).astype(np.float32)


def facade_over_discs():
    geometry = SMALL_VIT.geometry

    def decode(inputs):
        ious, low_res = draw_discs(inputs["point_coords"][:, 0])
        return {"iou_predictions": ious, "low_res_masks": low_res}

    features = np.zeros((1, 32, 8, 8), np.float32)
    encoder = FakeSession(image_encoder_spec(geometry), lambda _: {"image_embeddings": features})
    decoder = FakeSession(mask_decoder_spec(geometry), decode)
    sessions = {"image_encoder": encoder, "mask_decoder": decoder}
    predictor = Predictor(small_sam_manifest(), sessions, encoder_sha256="f" * 64, backend="fake")
    return compat.SamAutomaticMaskGenerator, compat.Sam(predictor)


def reference_over_discs():
    library, model = the_reference()

    class Generator(library.SamAutomaticMaskGenerator):
        def __init__(self, *arguments, **parameters):
            super().__init__(*arguments, **parameters)
            self.predictor.predict_torch = self.predict_discs

        def predict_discs(self, points, labels, multimask_output, return_logits):
            assert multimask_output and return_logits
            ious, low_res = (torch.as_tensor(part)[:, 1:] for part in draw_discs(points[:, 0].float().numpy()))
            sizes = self.predictor.input_size, self.predictor.original_size
            return self.predictor.model.postprocess_masks(low_res, *sizes), ious, low_res

    return Generator, model


def automatic_notebook(generator_class, sam):
    """automatic_mask_generator_example.ipynb: the defaults, then the tuned parameters."""
    mask_generator = generator_class(sam)
    masks = mask_generator.generate(IMAGE)
    assert list(masks[0].keys()) == KEYS
    mask_generator_2 = generator_class(
        model=sam,
        points_per_side=32,
        pred_iou_thresh=0.86,
        stability_score_thresh=0.92,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
    )
    return masks + mask_generator_2.generate(IMAGE)


def test_automatic_notebook_gives_the_same_records():
    mine, theirs = automatic_notebook(*facade_over_discs()), automatic_notebook(*reference_over_discs())
    assert len(mine) == len(theirs) >= 100
    for record, expected in zip(mine, theirs, strict=True):
        assert mask_iou(record["segmentation"], expected["segmentation"]) >= 0.999
        for key in ("bbox", "point_coords", "crop_box"):
            assert record[key] == expected[key]
        for key in ("predicted_iou", "stability_score"):
            assert record[key] == pytest.approx(expected[key], abs=1e-6)
        assert abs(record["area"] - expected["area"]) <= 1 and type(record["area"]) is int
    assert len({tuple(record["crop_box"]) for record in mine}) > 1


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_output_modes_hold_the_same_masks(mode):
    generator, sam = facade_over_discs()
    records = generator(sam, points_per_side=8, output_mode=mode).generate(IMAGE)
    expected = generator(sam, points_per_side=8).generate(IMAGE)
    masks = [
        record["segmentation"] if mode == "binary_mask" else decode_rle(record["segmentation"]) for record in records
    ]
    assert masks and all(
        np.array_equal(mask, record["segmentation"]) for mask, record in zip(masks, expected, strict=True)
    )


def test_grids_take_the_place_of_points_per_side_and_attributes_count():
    generator, sam = facade_over_discs()
    made = generator(sam, points_per_side=None, point_grids=[np.array([[0.5, 0.5]])], pred_iou_thresh=0)
    made.stability_score_thresh = 0
    assert {tuple(record["point_coords"][0]) for record in made.generate(torch.as_tensor(IMAGE.copy()))} == {(90, 60)}
    made.pred_iou_thresh = 1
    with pytest.warns(UserWarning, match=r"no mask is left of 3: pred_iou_thresh \(1; 0.88 suits") as caught:
        assert made.generate(IMAGE) == []
    assert caught[0].filename == __file__


def test_generate_leaves_the_image_of_its_predictor_alone():
    generator, sam = facade_over_discs()
    made = generator(sam, points_per_side=2)
    made.predictor.set_image(IMAGE[:60])
    made.generate(IMAGE)
    assert made.predictor.original_size == (60, 180)


@pytest.mark.parametrize(
    ("parameters", "message", "code"),
    [
        ({"points_per_side": None}, "both are None", "bad_amg_option"),
        ({"point_grids": [np.zeros((1, 2))]}, "both are given", "bad_amg_option"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan", "bad_amg_option"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1", "bad_amg_option"),
        ({"output_mode": "png"}, "output_mode is 'png'; accepted are binary_mask", "bad_output_mode"),
    ],
)
def test_bad_parameters_are_refused_before_a_model_is_loaded(parameters, message, code):
    with pytest.raises(InputError, match=message) as caught:
        compat.SamAutomaticMaskGenerator("no such model", **parameters)
    assert caught.value.code == code


def test_facade_has_what_the_reference_has():
    library, model = the_reference()
    theirs, mine = library.SamAutomaticMaskGenerator(model), compat.SamAutomaticMaskGenerator(small_predictor())
    public = {name for name in dir(theirs) if not name.startswith("_")} - {"postprocess_small_regions"}
    assert public <= set(dir(mine))
