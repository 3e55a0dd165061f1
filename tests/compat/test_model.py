# SPDX-License-Identifier: Apache-2.0
import copy

import numpy as np
import pytest
import torch

from segship import compat
from segship.errors import BackendUnavailable, BundleError, InputError, SegshipError
from segship.images.comparison import draw_scene
from tests.compat.side_by_side import assert_same_answers, the_facade, the_reference


def test_sizes_are_those_of_the_reference():
    (_, model), (_, sam) = the_reference(), the_facade()
    assert sam.image_encoder.img_size == model.image_encoder.img_size
    for name in ("embed_dim", "image_embedding_size", "input_image_size", "mask_input_size"):
        assert getattr(sam.prompt_encoder, name) == getattr(model.prompt_encoder, name)
    assert sam.mask_threshold == model.mask_threshold and sam.image_format == model.image_format
    assert torch.zeros(1, device=sam.device).device == model.device


def test_registry_has_the_names_of_the_reference_and_ours():
    from segment_anything import sam_model_registry

    the_reference()
    assert set(compat.sam_model_registry) == {*sam_model_registry, "vit_t", "tiny"}
    assert compat.sam_model_registry["default"] is compat.build_sam is compat.build_sam_vit_h


def test_registry_loads_the_model_inside_the_package():
    sam = compat.sam_model_registry["tiny"](threads=1)
    before = sam.predictor
    assert sam.to(device=torch.device("cpu")) is sam and sam.eval() is sam
    assert sam.predictor is not before and sam.predictor.backend == "onnxruntime"
    assert "1 threads" in sam.predictor.description


def test_device_that_is_not_here_is_refused():
    if torch.cuda.is_available():
        pytest.skip("it is here")
    with pytest.raises(BackendUnavailable):
        compat.sam_model_registry["tiny"]().to("cuda")


def test_registry_refuses_another_architecture(small_checkpoint):
    with pytest.raises(InputError, match=r"small.pth holds a model of architecture 'custom' and 'vit_b' was asked"):
        compat.build_sam_vit_b(checkpoint=small_checkpoint)
    assert compat.Sam(small_checkpoint).image_encoder.img_size == 128


@pytest.mark.parametrize("build", [compat.build_sam_vit_b, compat.build_sam_vit_l, compat.build_sam_vit_h])
def test_model_that_was_never_fetched_says_how(build, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    with pytest.raises(BundleError, match="segship fetch vit_"):
        build()


def test_model_in_a_given_predictor_does_not_move():
    with pytest.raises(InputError, match="cannot move to cuda; load it there with segship.load") as caught:
        the_facade()[1].to("cuda")
    assert caught.value.code == "loaded_elsewhere"


def ask_the_parts(model, image, boxes, points=None, masks=None, multimask=False):
    """What code for MedSAM does with the parts of a model; ``image`` is (1, 3, S, S) and normalised."""
    embedding = model.image_encoder(image)
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=masks)
    low_res, scores = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return embedding, low_res, scores


BOXES = torch.tensor([[[10.0, 12, 60, 70]], [[40, 5, 120, 60]]])
POINTS = torch.tensor([[[30.0, 40.5]], [[70, 20]]]), torch.tensor([[1], [0]])


@pytest.mark.parametrize(
    "prompts",
    [
        {"boxes": BOXES},
        {"boxes": BOXES[:, 0], "multimask": True},
        {"boxes": None, "points": POINTS},
        {"boxes": BOXES, "points": POINTS, "multimask": True},
        {"boxes": None, "masks": torch.linspace(-8, 8, 1024).reshape(1, 1, 32, 32)},
    ],
)
def test_parts_that_are_called_by_themselves_answer_as_the_reference_does(prompts):
    (_, model), (_, sam) = the_reference(), the_facade()
    resized = torch.as_tensor(draw_scene((85, 128), seed=3).transpose(2, 0, 1).copy()).float()[None]
    with torch.no_grad():
        theirs = ask_the_parts(model, model.preprocess(resized), **prompts)
        mine = ask_the_parts(sam, model.preprocess(resized), **prompts)
    # Points are rescaled in double precision and then rounded, so the last bits may differ.
    assert_same_answers(mine, [part.numpy() for part in theirs])


def test_no_boxes_have_no_masks():
    _, sam = the_facade()
    found = ask_the_parts(sam, np.zeros((1, 3, 128, 128), np.float32), np.zeros((0, 4)))
    assert [part.shape for part in found] == [(1, 32, 8, 8), (0, 1, 32, 32), (0, 1)]


def test_what_only_the_graph_knows_is_refused_by_name():
    _, sam = the_facade()
    sparse, dense = sam.prompt_encoder(boxes=[10, 12, 60, 70])
    embedding, position = np.zeros((1, 32, 8, 8), np.float32), sam.prompt_encoder.get_dense_pe()
    for ask in (
        lambda: np.asarray(position),
        lambda: sparse.shape,
        lambda: sam.mask_decoder(embedding, position, np.zeros((1, 2, 32)), dense, False),
        lambda: sam.mask_decoder(embedding, np.zeros((1, 32, 8, 8)), sparse, dense, False),
    ):
        with pytest.raises(InputError, match="a bundle computes them inside its decoder") as caught:
            ask()
        assert caught.value.code == "inside_graph"
    with pytest.raises(InputError, match="accepted is"):
        sam.mask_decoder(np.zeros((2, 32, 8, 8), np.float32), position, sparse, dense, False)
    with pytest.raises(SegshipError, match="image"):
        sam.image_encoder(np.zeros((1, 3, 64, 64)))
    assert copy.copy(position).name == position.name
