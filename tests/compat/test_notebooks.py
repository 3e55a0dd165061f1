# SPDX-License-Identifier: Apache-2.0
"""The calls of the reference's three notebooks, written anew, on the reference and on the facade."""

import numpy as np
import onnxruntime
import pytest
import torch

from segship import compat
from segship.images.comparison import draw_scene
from segship.ship.contracts import export_contract
from segship.ship.options import ExportOptions
from tests.compat.side_by_side import assert_same_answers, the_facade, the_reference
from tests.oracle import reference

IMAGE = draw_scene((120, 180), seed=5)
OTHER_IMAGE = draw_scene((160, 100), seed=6)
BOXES = [[42, 60, 70, 87], [7, 27, 172, 85], [137, 55, 165, 80], [124, 67, 140, 75]]
OTHER_BOXES = [[45, 26, 61, 70], [20, 90, 80, 140]]


def predictor_notebook(library, sam):
    """predictor_example.ipynb: a click, two clicks with the last mask, a background click, boxes, batches."""
    answers = []
    predictor = library.SamPredictor(sam)
    predictor.set_image(IMAGE)
    point, label = np.array([[50, 37]]), np.array([1])
    masks, scores, logits = predictor.predict(point_coords=point, point_labels=label, multimask_output=True)
    answers += [masks, scores, logits]

    points = np.array([[50, 37], [112, 62]])
    mask_input = logits[np.argmax(scores), :, :]
    for labels in (np.array([1, 1]), np.array([1, 0])):
        answers += predictor.predict(
            point_coords=points, point_labels=labels, mask_input=mask_input[None, :, :], multimask_output=False
        )

    box = np.array(BOXES[0])
    answers += predictor.predict(point_coords=None, point_labels=None, box=box[None, :], multimask_output=False)
    answers += predictor.predict(
        point_coords=np.array([[57, 75]]), point_labels=np.array([0]), box=box, multimask_output=False
    )

    boxes = torch.tensor(BOXES, device=predictor.device)
    transformed = predictor.transform.apply_boxes_torch(boxes, IMAGE.shape[:2])
    masks, scores, logits = predictor.predict_torch(
        point_coords=None, point_labels=None, boxes=transformed, multimask_output=False
    )
    assert masks.shape == (4, 1, 120, 180)
    answers += [part.cpu().numpy() for part in (masks, scores, logits)]
    return answers


def batched_part(library, sam):
    """The end of predictor_example.ipynb: several images with their boxes in one call of the model."""
    transform = library.ResizeLongestSide(sam.image_encoder.img_size)

    def prepare(image):
        resized = torch.as_tensor(transform.apply_image(image), device=sam.device)
        return resized.permute(2, 0, 1).contiguous()

    batch = [
        {
            "image": prepare(image),
            "boxes": transform.apply_boxes_torch(torch.tensor(boxes, device=sam.device), image.shape[:2]),
            "original_size": image.shape[:2],
        }
        for image, boxes in ((IMAGE, BOXES), (OTHER_IMAGE, OTHER_BOXES))
    ]
    with torch.no_grad():
        output = sam(batch, multimask_output=False)
    assert list(output[0]) == ["masks", "iou_predictions", "low_res_logits"]
    return [part.cpu().numpy() for answer in output for part in answer.values()]


@pytest.mark.parametrize("part", [predictor_notebook, batched_part])
def test_predictor_notebook_gives_the_same(part):
    assert_same_answers(part(*the_facade()), part(*the_reference()))


def onnx_notebook(library, sam, run_decoder):
    """onnx_model_example.ipynb from the session on: a click, two clicks with a mask, a box with a background click."""
    predictor = library.SamPredictor(sam)
    predictor.set_image(IMAGE)
    embedding = predictor.get_image_embedding().cpu().numpy()
    side = [4 * length for length in sam.prompt_encoder.image_embedding_size]
    assert embedding.shape == (1, sam.prompt_encoder.embed_dim, side[0] // 4, side[1] // 4)

    def ask(coords, labels, mask_input=None):
        coords = predictor.transform.apply_coords(np.array(coords)[None, :, :], IMAGE.shape[:2]).astype(np.float32)
        masks, scores, logits = run_decoder(
            {
                "image_embeddings": embedding,
                "point_coords": coords,
                "point_labels": np.array(labels, np.float32)[None, :],
                "mask_input": np.zeros((1, 1, *side), np.float32) if mask_input is None else mask_input,
                "has_mask_input": np.array([mask_input is not None], np.float32),
                "orig_im_size": np.array(IMAGE.shape[:2], np.float32),
            }
        )
        return masks > predictor.model.mask_threshold, scores, logits

    first = ask([[50, 37], [0, 0]], [1, -1])
    second = ask([[50, 37], [112, 62], [0, 0]], [1, 1, -1], first[2])
    third = ask([[57, 75], [42, 60], [70, 87]], [0, 2, 3])
    return [*first, *second, *third]


def test_onnx_notebook_gives_the_same_with_our_export(small_checkpoint, tmp_path):
    options = ExportOptions(contract="official", single_mask=True)
    export_contract(small_checkpoint, tmp_path / "out", options)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "small.decoder.onnx"))
    mine = onnx_notebook(compat, compat.Sam(small_checkpoint), lambda inputs: session.run(None, inputs))

    reference()
    from segment_anything.utils.onnx import SamOnnxModel

    library, sam = the_reference()
    model = SamOnnxModel(sam, return_single_mask=True)

    def run_in_torch(inputs):
        return [part.numpy() for part in model(**{name: torch.as_tensor(array) for name, array in inputs.items()})]

    assert_same_answers(mine, onnx_notebook(library, sam, run_in_torch))
