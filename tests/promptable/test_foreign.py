# SPDX-License-Identifier: Apache-2.0
"""Sessions of our contracts over graphs of others: what such a graph is really given."""

import numpy as np
import pytest

from segship.backends.fake import Session
from segship.errors import BackendUnavailable, InputError
from segship.promptable.foreign import ForeignGraphs, adapt_sessions
from segship.promptable.transforms import Preprocessing, prepare_image
from segship.spec import SamGeometry

GEOMETRY = SamGeometry(image_size=32, embedding_channels=4, embedding_size=2)
PREPROCESSING = Preprocessing(32, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)


def adapted(foreign, masks=4):
    """Both sessions over graphs that answer with ones, and the list of all that these were given."""
    given = []

    def answer(spec):
        sizes = {"height": 8, "width": 8, "batch": 1}
        shapes = {tensor.name: [sizes.get(size, size) for size in tensor.shape] for tensor in spec.outputs}

        def run(inputs):
            given.append(inputs)
            return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}

        return Session(spec, run)

    sessions = {spec.name: answer(spec) for spec in foreign.specs(GEOMETRY, masks)}
    return adapt_sessions(sessions, foreign, GEOMETRY, PREPROCESSING, masks), given


def prompts(labels, **more):
    """Prompt tensors of objects by their labels; coordinates count the places."""
    labels = np.array(labels, np.float32)
    coords = np.arange(2 * labels.size, dtype=np.float32).reshape(*labels.shape, 2)
    objects = len(labels)
    return {
        "image_embeddings": np.ones((1, 4, 2, 2), np.float32),
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.ones((objects, 1, 8, 8), np.float32),
        "has_mask_input": np.zeros(objects, np.float32),
        **more,
    }


@pytest.mark.parametrize(("layout", "dtype"), [("NCHW", "float32"), ("NHWC", "uint8"), ("HWC", "float32")])
def test_pixels_come_back_with_the_mean_as_their_padding(layout, dtype):
    foreign = ForeignGraphs("nndeploy", "input", "out", layout=layout, dtype=dtype, values="pixels")
    sessions, given = adapted(foreign)
    sessions["image_encoder"].run({"image": prepare_image(PIXELS, PREPROCESSING)})
    (image,) = given[0].values()
    rows = image if layout == "HWC" else image[0].transpose(1, 2, 0) if layout == "NCHW" else image[0]
    assert rows.dtype == dtype and rows.shape == (32, 32, 3)
    np.testing.assert_allclose(rows[:16], PIXELS, atol=1e-4)
    np.testing.assert_allclose(rows[16:], np.broadcast_to(PREPROCESSING.pixel_mean, (16, 32, 3)), atol=0.5)


def test_normalised_frames_pass_as_they_are_one_after_another():
    sessions, given = adapted(ForeignGraphs("osam", "x", "out"))
    frames = np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32)
    assert sessions["image_encoder"].run({"image": frames})["image_embeddings"].shape == (3, 4, 2, 2)
    np.testing.assert_array_equal(np.concatenate([inputs["x"] for inputs in given]), frames)


def test_objects_go_one_after_another_without_empty_places():
    sessions, given = adapted(ForeignGraphs("osam", "x", "out", original_size="int64"))
    answer = sessions["mask_decoder"].run(prompts([[1, -1, -2], [2, 3, -2], [1, 0, 1]]))
    assert answer["iou_predictions"].shape == (3, 4) and answer["low_res_masks"].shape == (3, 4, 8, 8)
    assert [inputs["point_labels"].tolist() for inputs in given] == [[[1, -1]], [[2, 3]], [[1, 0, 1]]]
    assert given[1]["point_coords"].tolist() == [[[6, 7], [8, 9]]]
    assert all(inputs["orig_im_size"].tolist() == [8, 8] for inputs in given)
    assert given[0]["orig_im_size"].dtype == np.int64


@pytest.mark.parametrize(("empty", "labels"), [(True, [[]]), (False, [[-1]])])
def test_an_object_of_a_mask_alone(empty, labels):
    sessions, given = adapted(ForeignGraphs("ascend", "x", "out", empty_prompts=empty), masks=1)
    answer = sessions["mask_decoder"].run(prompts([[-2]], has_mask_input=np.ones(1, np.float32)))
    assert answer["low_res_masks"].shape == (1, 1, 8, 8)
    assert given[0]["point_labels"].tolist() == labels and given[0]["has_mask_input"] == [1]
    assert "orig_im_size" not in given[0]


def test_inputs_are_held_to_our_contract_and_closing_closes_the_graph():
    sessions, given = adapted(ForeignGraphs("osam", "x", "out"))
    with pytest.raises(InputError, match="mask_decoder"):
        sessions["mask_decoder"].run({})
    sessions["image_encoder"].close()
    with pytest.raises(BackendUnavailable, match="closed"):
        sessions["image_encoder"].run({"image": np.zeros((1, 3, 32, 32), np.float32)})
    assert given == []
