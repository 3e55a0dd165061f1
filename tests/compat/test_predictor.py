# SPDX-License-Identifier: Apache-2.0
"""`SamPredictor` where the notebooks do not go: its state, what it refuses, and what it takes besides."""

import numpy as np
import pytest
import torch

from segship import compat
from segship.errors import ImageError, InputError, PromptError
from segship.images.comparison import draw_scene
from segship.promptable.prompts import Prompts
from tests.compat.side_by_side import assert_same_answers, the_facade, the_reference
from tests.small_models import small_predictor

IMAGE = draw_scene((120, 180), seed=5)
CLICK = (np.array([[50, 40]]), np.array([1]))


@pytest.fixture(scope="module")
def sam():
    return compat.Sam(small_predictor())


@pytest.fixture
def predictor(sam):
    predictor = compat.SamPredictor(sam)
    predictor.set_image(IMAGE)
    return predictor


def test_state_is_that_of_the_image(sam, predictor):
    assert predictor.is_image_set and predictor.device == "cpu" and predictor.model is sam
    assert predictor.original_size == (120, 180) and predictor.input_size == (85, 128)
    assert predictor.features.shape == (1, 32, 8, 8)
    assert np.shares_memory(predictor.get_image_embedding(), predictor.features)
    shown = repr(sam)
    assert shown.startswith("Sam(Predictor('") and repr(predictor) == f"SamPredictor({shown}, image of (120, 180))"
    generator = compat.SamAutomaticMaskGenerator(sam, points_per_side=4)
    assert repr(generator) == f"SamAutomaticMaskGenerator({shown}, points_per_side=4)"
    predictor.reset_image()
    assert not predictor.is_image_set and repr(predictor) == f"SamPredictor({shown}, no image)"
    assert predictor.features is predictor.original_size is predictor.input_size is None


def test_answers_are_plain_arrays_of_one_object(predictor):
    masks, scores, logits = predictor.predict(*CLICK)
    assert [type(part) for part in (masks, scores, logits)] == [np.ndarray] * 3
    assert (masks.shape, scores.shape, logits.shape) == ((3, 120, 180), (3,), (3, 32, 32))
    assert masks.dtype == bool
    values = predictor.predict(*CLICK, return_logits=True)[0]
    assert values.dtype == np.float32 and np.array_equal(values > predictor.model.mask_threshold, masks)


@pytest.mark.parametrize("ask", [lambda made: made.predict(*CLICK), lambda made: made.get_image_embedding()])
def test_without_an_image_nothing_is_predicted(sam, ask):
    with pytest.raises(InputError, match="no image is set; call set_image first") as caught:
        ask(compat.SamPredictor(sam))
    assert caught.value.code == "no_image"


def test_no_boxes_have_no_masks(predictor):
    assert [part.shape for part in predictor.predict(box=np.zeros((0, 4)))] == [(0, 120, 180), (0,), (0, 32, 32)]
    found = predictor.predict_torch(None, None, torch.zeros(0, 4))
    assert [part.shape for part in found] == [(0, 3, 120, 180), (0, 3), (0, 3, 32, 32)]


def test_reversed_corners_are_put_in_order_with_a_warning(predictor):
    with pytest.warns(UserWarning, match="corners of a box were put in order, x0 < x1"):
        turned = predictor.predict(box=np.array([70, 87, 42, 60]))
    with pytest.warns(UserWarning, match="corners of a box"):
        predictor.predict_torch(None, None, predictor.transform.apply_boxes_torch([[70, 60, 42, 87]], (120, 180)))
    straight = predictor.predict(box=np.array([42, 60, 70, 87]))
    assert all(np.array_equal(*pair) for pair in zip(turned, straight, strict=True))


def test_bgr_is_turned_round(predictor):
    features = predictor.features
    predictor.set_image(IMAGE[..., ::-1], image_format="BGR")
    assert np.array_equal(predictor.features, features)
    with pytest.raises(InputError, match="image_format is 'GRAY'; accepted are 'RGB' and 'BGR'"):
        predictor.set_image(IMAGE, image_format="GRAY")
    assert predictor.is_image_set, "a misspelt format changes nothing"


def test_refused_image_does_not_leave_the_one_before_it(predictor):
    with pytest.raises(ImageError):
        predictor.set_image(IMAGE.astype(np.float32))
    assert not predictor.is_image_set


def test_transformed_image_equals_the_image_itself(predictor):
    features = predictor.features
    resized = predictor.transform.apply_image(IMAGE).transpose(2, 0, 1)[None]
    for form in (resized, torch.as_tensor(resized), torch.as_tensor(resized).float() + 0.3):
        predictor.reset_image()
        predictor.set_torch_image(form, IMAGE.shape[:2])
        assert np.array_equal(predictor.features, features)
        assert predictor.original_size == (120, 180) and predictor.input_size == (85, 128)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((1, 3, 85, 127)), r"shape \(1, 3, 85, 127\); accepted is \(1, 3, h, w\) with a longer side of 128"),
        (np.zeros((3, 85, 128)), r"shape \(3, 85, 128\)"),
        (np.full((1, 3, 85, 128), -2.0), "values from -2 to -2; accepted are 0 to 255"),
        (np.full((1, 3, 85, 128), np.nan), "values from nan"),
    ],
)
def test_transformed_images_that_are_none_are_refused(predictor, image, message):
    with pytest.raises(ImageError, match=message):
        predictor.set_torch_image(image, (120, 180))


def test_embedding_that_was_kept_can_be_put_back(sam, predictor):
    kept = predictor.features.numpy().copy()
    restored = compat.SamPredictor(sam)
    restored.features, restored.is_image_set = kept, True
    restored.original_size, restored.input_size = (120, 180), (85, 128)
    assert_same_answers(restored.predict(*CLICK), predictor.predict(*CLICK))
    restored.features = torch.as_tensor(kept)
    assert_same_answers(restored.predict(*CLICK), predictor.predict(*CLICK))


def test_batches_of_points_and_boxes_equal_the_reference(predictor):
    _, model = the_reference()
    oracle = the_reference()[0].SamPredictor(model)
    oracle.set_image(IMAGE)
    points = torch.tensor([[[57.0, 70.0], [60.0, 66.0]], [[112.0, 62.0], [90.0, 50.0]]])
    labels, boxes = torch.tensor([[1, 0], [1, 1]]), torch.tensor([[42, 60, 70, 87], [90, 20, 140, 80]])

    def ask(predictor):
        coords = predictor.transform.apply_coords_torch(points, (120, 180))
        corners = predictor.transform.apply_boxes_torch(boxes, (120, 180))
        return [part.cpu().numpy() for part in predictor.predict_torch(coords, labels, corners)]

    assert_same_answers(ask(predictor), ask(oracle))


def test_many_objects_are_asked_in_portions(predictor):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 85, (150, 1, 2)).astype(np.float32)
    labels = np.ones((150, 1), int)
    masks, scores, logits = predictor.predict_torch(points, labels, multimask_output=False)
    assert (masks.shape, scores.shape, logits.shape) == ((150, 1, 120, 180), (150, 1), (150, 1, 32, 32))
    last = predictor.predict_torch(points[-1:], labels[-1:], multimask_output=False)
    assert_same_answers([part[-1:] for part in (masks, scores, logits)], last)


def test_several_objects_in_predict_are_refused(predictor):
    with pytest.raises(PromptError, match="for 2 objects and predict takes one; predict_torch"):
        predictor.predict(box=np.array([[1, 1, 9, 9], [5, 5, 20, 20]]))


def test_points_without_labels_are_refused_as_the_reference_does(predictor):
    with pytest.raises(PromptError, match="without point_labels; give one label a point"):
        predictor.predict(point_coords=CLICK[0])


def test_points_of_one_rank_too_few_are_refused(predictor):
    with pytest.raises(PromptError, match=r"point_coords has the shape \(1, 2\); accepted is \(B, N, 2\)"):
        predictor.predict_torch(*CLICK)


def test_what_sticks_out_is_moved_to_the_edge_with_a_warning(predictor):
    with pytest.warns(UserWarning, match="a point outside the image was moved to its edge") as caught:
        moved = predictor.predict(np.array([[200, 40]]), np.array([1]))
    assert caught[0].filename == __file__
    assert_same_answers(moved, predictor.predict(np.array([[180, 40]]), np.array([1])))
    with pytest.warns(UserWarning, match="a box was cut at the edge of the image"):
        cut = predictor.predict(box=np.array([100, -20, 300, 60]))
    assert_same_answers(cut, predictor.predict(box=np.array([100, 0, 180, 60])))


def test_far_edge_of_the_image_survives_the_model_frame(predictor):
    corners = predictor.transform.apply_boxes_torch(np.array([[0, 0, 180, 120]]), (120, 180))
    # A warning would be an error here.
    predictor.predict_torch(None, None, corners)


def test_tensors_that_record_gradients_are_taken(predictor):
    point = torch.tensor([[50.0, 40.0]], requires_grad=True)
    assert_same_answers(predictor.predict(point, torch.tensor([1])), predictor.predict(*CLICK))


def test_predictor_takes_whatever_makes_a_model():
    inner = small_predictor()
    predictor = compat.SamPredictor(inner)
    predictor.set_image(IMAGE)
    expected = inner.predict(IMAGE, Prompts(points=[[50, 40]]))
    assert np.array_equal(predictor.predict(*CLICK)[0], expected.masks[0])
    assert compat.SamPredictor("tiny").transform.target_length == 384


def test_facade_has_what_the_reference_has():
    (library, model), (facade, sam) = the_reference(), the_facade()
    theirs, mine = library.SamPredictor(model), facade.SamPredictor(sam)
    leftovers = {"orig_h", "orig_w", "input_h", "input_w"}
    public = {name for name in dir(theirs) if not name.startswith("_")} - leftovers
    assert public <= set(dir(mine))
