# SPDX-License-Identifier: Apache-2.0
"""What predicted IoUs are worth on a grid of clicks, and which thresholds are chosen by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.tiny.everything import (
    Answers,
    Pair,
    Setting,
    ask,
    keep,
    measure,
    objects_of,
    read_outlined,
)
from recipes.tiny.samples import SampleBuilder, Truth, to_target
from recipes.tiny.scenes import make_scene
from recipes.tiny.scores import (
    Asked,
    ask_grid,
    ask_prompts,
    fit_head,
    known_things,
    ranked_first,
    read_weights,
    reliability,
)
from recipes.tiny.second import Second, ask_again, fit_spare
from recipes.tiny.train import new_model
from segship.ship.families.sam.mask_decoder import Mlp
from segship.ship.families.sam.model import Sam

SHIPPED = Path(__file__).parents[2] / "recipes/tiny/tiny.safetensors"


@pytest.fixture(scope="module")
def small() -> Sam:
    torch.manual_seed(0)
    return new_model(64).eval().requires_grad_(False)


def asked(scores: torch.Tensor, ious: torch.Tensor, at_frame: torch.Tensor) -> Asked:
    return Asked(torch.zeros(len(scores), 2), scores, ious, torch.ones_like(scores), at_frame)


def test_things_of_a_scene_are_pieces_objects_and_groups() -> None:
    leaf = np.zeros((32, 32), np.uint8)
    leaf[:10, :10] = leaf[20:, 20:] = 4
    levels, masks = known_things(Truth((leaf, leaf, leaf * 0)), 64)
    assert levels.tolist() == [0, 0, 1] and masks.shape == (3, 16, 16)
    np.testing.assert_array_equal(masks[2], to_target((leaf == 4).astype(np.uint8), 64) > 2)
    np.testing.assert_array_equal(masks[0] | masks[1], masks[2])


def test_reliability_tells_the_frame_from_the_middle() -> None:
    scores = torch.tensor([[0.0, 0.9, 0.2, 0.75], [0.0, 0.9, 0.6, 0.35]])
    ious = torch.tensor([[0.0, 0.8, 0.1, 0.75], [0.0, 0.2, 0.6, 0.75]])
    frame = torch.tensor([[True, False, False, False], [True, True, True, True]])
    middle, at_frame = (reliability(asked(scores, ious, frame), half) for half in (False, True))
    assert middle.bias == pytest.approx(0.2 / 3) and middle.auc == 1
    assert middle.by_score[9] == (1, pytest.approx(0.8)) and middle.by_score[5] == (0, 0.0)
    assert at_frame.bias == pytest.approx(0.3 / 3) and at_frame.auc == 0
    assert ranked_first(asked(scores, ious, frame)) == pytest.approx(0.5)


def test_the_head_learns_what_its_tokens_say() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(400, 2)
    ious = torch.stack([tokens[:, 0].sigmoid(), *[(tokens[:, 1] * sign).sigmoid() for sign in (1, -1, 1)]], 1)
    head = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    before = Asked(tokens, head(tokens).detach(), ious, torch.ones_like(ious), torch.zeros_like(ious) > 0)
    fit_head(head, before, steps=300, learning_rate=1e-2)
    after = before._replace(scores=head(tokens).detach())
    assert reliability(after, False).auc > 0.9 > reliability(before, False).auc
    assert ranked_first(after) > ranked_first(before)


def test_prompts_of_training_are_judged_by_their_targets(small: Sam) -> None:
    found = ask_prompts(small, make_scene(3, 96), np.random.default_rng(0), SampleBuilder(64))
    assert found is not None and len(found.tokens) == 16
    # Three clicks with all their masks; the rest, and everything asked again, with mask 0.
    assert found.judged.sum(1).tolist() == [4.0] * 3 + [1.0] * 13
    assert ((found.ious >= 0) & (found.ious <= 1)).all()


def test_a_grid_is_judged_by_whatever_is_there(small: Sam) -> None:
    found = ask_grid(small, make_scene(3, 96), np.random.default_rng(0), 5)
    assert found is not None and found.ious.shape == found.at_frame.shape == (25, 4)
    pair = ask(small, *objects_of(make_scene(3, 96), np.random.default_rng(0), 64), 5)
    count = len(pair.first.scores)
    assert len(pair.tokens) == count
    for answers in pair[:2]:
        assert answers.overlaps.shape == (count, count)
        assert len(answers.objects) == len(answers.stabilities) == count


def test_outlined_photographs_are_asked_in_the_model_frame(small: Sam, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    labels = np.zeros((100, 200), np.uint16)
    labels[:50, :100] = 3
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "a.jpg")
    [(picture, things)] = read_outlined(tmp_path, 64)
    assert things.shape == (1, 16, 16) and things[0, :4, :8].all() and things.sum() == 32
    assert ask(small, picture, things, 3).first.objects.shape[1] == 1


def test_of_masks_that_overlap_the_better_stays() -> None:
    overlaps = np.array([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]], np.float32)
    objects = np.array([[0.9], [0.4], [0.1]], np.float32)
    scores, stabilities = np.array([0.5, 0.7, 0.3], np.float32), np.array([1, 1, 0.2], np.float32)
    first = Answers(scores, stabilities, overlaps, objects)
    assert keep(first, 0, 0, 0.7).tolist() == [1, 2]
    assert keep(first, 0, 0.5, 0.9).tolist() == [1, 0]
    assert keep(first, 0.3, 0, 0.7).tolist() == [1]
    second = Answers(np.array([0.9, 0.6, 0.8], np.float32), np.ones(3, np.float32), np.eye(3), 1 - objects)
    pair = Pair(first, second, torch.zeros(3, 2))
    assert measure([pair], Setting(0, 0.5, 0.9)) == (1.0, 1.0, 2.0, 0.5)
    # Those that stay are the second answers of the masks 1 and 2; of them 2 is sure enough.
    assert measure([pair], Setting(0, 0, 0.7, refined=0.7)) == (1.0, 1.0, 1.0, 1.0)
    assert measure([pair], Setting(0.3, 0, 0.7, refined=0.5)) == (1.0, 0.0, 1.0, 1.0)


def test_scores_of_what_ships_do_not_prefer_the_frame() -> None:
    sam, rng = read_weights(SHIPPED), np.random.default_rng(0)
    grids = [ask_grid(sam, make_scene(seed, 384), rng, 7) for seed in range(5)]
    together = Asked(*(torch.cat(parts) for parts in zip(*filter(None, grids), strict=True)))
    middle, frame = reliability(together, False), reliability(together, True)
    assert abs(frame.bias) < 0.1 and abs(middle.bias) < 0.1
    assert frame.auc > 0.8 and middle.auc > 0.7


def test_spare_units_learn_second_answers_and_nothing_else_changes(small: Sam) -> None:
    torch.manual_seed(1)
    head = Mlp(8, 64, 4, 3).requires_grad_(False)
    # As in a trained head: many units never fire.
    for layer in list(head.layers)[:2]:
        layer.bias[:40] = -100
    tokens, others = torch.randn(300, 8), torch.randn(300, 8)
    tokens[:, 0], others[:, 0] = tokens[:, 0].abs() + 1, -others[:, 0].abs() - 1
    second, before = Second(tokens, torch.sigmoid(tokens[:, 1])), [head(part) for part in (tokens, others)]
    assert fit_spare(head, second, [others], steps=600) == (40, 40)
    after = [head(part) for part in (tokens, others)]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, 1:], new[:, 1:])
    assert (after[1][:, 0] - before[1][:, 0]).square().mean() < 0.01
    errors = [float((part[0][:, 0] - second.ious).square().mean()) for part in (before, after)]
    assert errors[1] < 0.2 * errors[0]
    found = ask_again(small, make_scene(3, 96), np.random.default_rng(0), 5)
    assert len(found.tokens) == len(found.ious) and ((found.ious >= 0) & (found.ious <= 1)).all()
