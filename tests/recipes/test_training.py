# SPDX-License-Identifier: Apache-2.0
"""Losses, corrective clicks, the training forward pass, and a run that stops and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.tiny import forward
from recipes.tiny.batches import Batch
from recipes.tiny.clicks import append_clicks, box_prompts, error_clicks
from recipes.tiny.losses import SPREAD_WEIGHT, ambiguous_loss, pair_losses, ranking_loss
from recipes.tiny.scenes import write_pool
from recipes.tiny.train import Trainer, TrainOptions, resize_positions
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.sam.model import MaskDecoderGraph, build_sam


def test_pair_losses_equal_the_plain_formula() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 50), (torch.rand(2, 2, 50) > 0.5).float()
    pairs = pair_losses(logits, targets)
    p, t = logits[1, 2].sigmoid(), targets[1, 0]
    right = torch.where(t > 0, p, 1 - p)
    focal = -((1 - right) ** 2 * right.log()).mean()
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    torch.testing.assert_close(pairs.loss[1, 2, 0], 6 * focal + dice)
    a, b = logits[1, 2] > 0, t > 0
    torch.testing.assert_close(pairs.iou[1, 2, 0], (a & b).sum() / (a | b).sum())


def test_ambiguous_loss_takes_the_best_mask_for_each_known_target() -> None:
    targets = torch.zeros(1, 3, 40)
    targets[0, 0, :10], targets[0, 1, :30] = 1, 1
    logits = torch.stack([targets[0, 1], targets[0, 0]]).unsqueeze(0) * 12 - 6
    pairs = pair_losses(logits, targets)
    best, spread = (pairs.loss[0, 1, 0] + pairs.loss[0, 0, 1]) / 2, pairs.loss[0, :, :2].mean()
    loss = ambiguous_loss(pairs, torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(loss, best + SPREAD_WEIGHT * spread)
    assert best < 0.05 < spread


def test_ranking_loss_is_zero_in_the_right_order_only() -> None:
    truth = torch.tensor([[0.9, 0.5]])
    assert ranking_loss(torch.tensor([[0.8, 0.2]]), truth) == 0
    assert ranking_loss(torch.tensor([[0.2, 0.8]]), truth) > 0


def test_corrective_click_lands_in_the_error_with_its_label() -> None:
    target = torch.zeros(2, 32, 32)
    target[:, 4:28, 4:28] = 1
    logits = target * 20 - 10
    logits[0, 16:28, 4:28] = -10
    logits[1, 0:3, 20:32] = 10
    (places, labels) = error_clicks(logits, target, 1, centred=True)
    x, y = (places[0, 0] + 0.5) / 4
    assert 16 <= y < 28 and 4 <= x < 28
    x, y = (places[1, 0] + 0.5) / 4
    assert 0 <= y < 3 and 20 <= x < 32
    assert labels[:, 0].tolist() == [1, 0]


def test_unused_clicks_are_empty() -> None:
    coords, labels = torch.zeros(1, 2, 2), torch.ones(1, 2)
    _, kinds = append_clicks(coords, labels, (torch.zeros(1, 3, 2), torch.ones(1, 3)), 1)
    assert kinds.tolist() == [[1, 1, 1, -2, -2]]


def test_boxes_are_asked_at_their_edges_in_the_model_frame() -> None:
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:5] = masks[1, 5, 0] = True
    coords, labels = box_prompts(masks)
    # The prompt encoder adds the half pixel that is missing here.
    assert (coords + 0.5).tolist() == [[[8, 4], [20, 12]], [[0, 20], [4, 24]]]
    assert labels.tolist() == [[2, 3], [2, 3]]


@pytest.mark.parametrize("with_mask", [False, True])
def test_training_forward_equals_the_shipped_modules(with_mask: bool) -> None:
    torch.manual_seed(0)
    sam = build_sam(replace(SAM_ARCHITECTURES["tiny"], image_size=64))
    images, coords = torch.randn(2, 3, 64, 64), torch.rand(2, 4, 3, 2) * 64
    labels = torch.tensor([[1, -1, -2], [2, 3, -2], [1, 0, -1], [1, 1, 1.0]]).expand(2, 4, 3)
    masks = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        expected = sam.image_encoder(images)
        tokens = forward.encode(sam, images)
        torch.testing.assert_close(tokens.transpose(1, 2), expected.flatten(2), atol=1e-5, rtol=1e-5)
        logits, predicted = forward.decode(sam, tokens, coords, labels, masks if with_mask else None)
        for i in range(2):
            given = torch.full((4,), float(with_mask))
            inputs = (expected[i : i + 1], coords[i], labels[i], masks[i].unsqueeze(1), given)
            its_predicted, its_logits = MaskDecoderGraph(sam)(*inputs)
            torch.testing.assert_close(logits[i], its_logits, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(predicted[i], its_predicted, atol=1e-5, rtol=1e-4)


def test_a_run_may_begin_from_weights_of_another_size(tmp_path: Path) -> None:
    earlier = build_sam(replace(SAM_ARCHITECTURES["tiny"], image_size=96))
    save_file({name: tensor.half() for name, tensor in earlier.state_dict().items()}, tmp_path / "earlier.safetensors")
    init = tmp_path / "earlier.safetensors"
    trainer = Trainer(TrainOptions(tmp_path, tmp_path, tmp_path, image_size=64, init=init))
    state, theirs = trainer.model.state_dict(), earlier.state_dict()
    assert state["image_encoder.pos_embed"].shape[1:3] == (4, 4)
    name = "mask_decoder.iou_token.weight"
    torch.testing.assert_close(state[name], theirs[name].half().float())


def test_asking_once_more_means_the_thing_most_like_the_first_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(TrainOptions(Path(), Path(), Path(), image_size=64))
    targets = torch.zeros(1, 8, 3, 16, 16, dtype=torch.uint8)
    targets[:, :, 0, :4, :4], targets[:, :, 1, :8, :8] = 4, 4
    weights = torch.tensor([0.5, 0.5, 0]).expand(1, 8, 3)
    nothing = torch.zeros(0)
    batch = Batch(nothing[None], nothing, nothing, targets, weights)
    logits = torch.full((1, 8, 4, 16, 16), -9.0)
    logits[0, 1:3, 2, :8, :7] = 9
    asked = []

    def decode(sam: object, image: object, coords: torch.Tensor, labels: object, masks: torch.Tensor) -> object:
        asked.append((coords, masks))
        answers = (targets[:, 1:3, 1, None] / 4 * 18 - 9).expand(1, 2, 4, 16, 16)
        return answers, torch.full((1, 2, 4), 0.5)

    monkeypatch.setattr(forward, "decode", decode)
    first = torch.full((3, 1), 2)
    likeness = torch.tensor([[0.25, 0.9, 1.0]]).expand(3, 3)
    loss, error, reached = trainer._ask_again(nothing, batch, logits, first, likeness)
    coords, masks = asked[0]
    assert (coords + 0.5).tolist() == [[[[0, 0], [28, 32]]] * 2] and torch.equal(masks, logits[:, 1:3, 2])
    assert loss < 0.01 and reached == 1
    torch.testing.assert_close(error, torch.tensor(0.25))
    loss, error, _ = trainer._ask_again(nothing, batch, logits, first, likeness * 0.3)
    assert loss == 0 and error == 0.25


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 4, size=96)
    options = TrainOptions(
        tmp_path / "pool", tmp_path / "pool", tmp_path, steps=4, batch_size=2, image_size=64, final_image_size=96,
        final_size_from=0.5, iou_phase_from=0.75, workers=0, validation_scenes=2,
    )  # fmt: skip
    Trainer(replace(options, steps=2, final_size_from=2, iou_phase_from=2)).run()
    again = Trainer(options)
    assert again.resume() and again.step == 2 and again.image_size == 64
    again.run()
    assert again.step == 4 and again.in_iou_phase
    sam = build_sam(replace(SAM_ARCHITECTURES["tiny"], image_size=96))
    sam.load_state_dict(load_file(tmp_path / "tiny.safetensors"))


def test_position_table_fits_another_grid() -> None:
    small = build_sam(replace(SAM_ARCHITECTURES["tiny"], image_size=64))
    large = build_sam(replace(SAM_ARCHITECTURES["tiny"], image_size=96))
    large.load_state_dict(resize_positions(dict(small.state_dict()), 6))
