# SPDX-License-Identifier: Apache-2.0
"""Pieces of photographs are surfaces and backgrounds of scenes, and what stands behind belongs to nobody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.tiny.painting import Canvas
from recipes.tiny.samples import Truth, candidate_at, find_candidates
from recipes.tiny.scenes import make_scene
from recipes.tiny.surfaces import (
    HELD_OUT_EVERY,
    OUTLINES,
    SIDE,
    PhotographBank,
    read_photograph,
    write_bank,
    write_outlined,
)
from recipes.tiny.textures import TextureBank

SIZE = 96


@pytest.fixture(scope="module")
def bank_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of one colour each, (20 i, 200, 30), with a ramp of 40 levels from left to right in the green."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = []
    for number in range(HELD_OUT_EVERY + 2):
        pixels = np.full((300, 400, 3), (20 * number, 200, 30), np.uint8)
        pixels[..., 1] = np.linspace(160, 200, 400).astype(np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    assert write_bank(paths, folder / "bank.npz") == len(paths)
    return folder / "bank.npz"


def test_every_seventh_photograph_is_kept_for_validation(bank_file: Path) -> None:
    ours, theirs = PhotographBank(bank_file), PhotographBank(bank_file, held_out=True)
    assert (len(ours), len(theirs)) == (HELD_OUT_EVERY, 2)
    rng = np.random.default_rng(0)
    reds = {round(float(theirs.draw(rng)[1][0])) for _ in range(20)}
    assert reds == {0, 20 * HELD_OUT_EVERY}


def test_a_photograph_is_made_small(tmp_path: Path) -> None:
    Image.new("L", (3000, 1500), 90).save(tmp_path / "grey.png")
    pixels = read_photograph(tmp_path / "grey.png")
    assert pixels.shape == (SIDE // 2, SIDE, 3) and (pixels == 90).all()


def test_outlined_things_are_written_as_labels(tmp_path: Path) -> None:
    outlines = json.loads(OUTLINES.read_text())
    bank = tmp_path / "bank.npz"
    np.savez(bank, allow_pickle=False, **{number: np.full((1024, 1024, 3), 90, np.uint8) for number in outlines})
    assert write_outlined(bank, tmp_path / "out") == 77 == sum(map(len, outlines.values()))
    with Image.open(tmp_path / "out" / "labels" / "004.png") as image:
        labels = np.asarray(image)
    # A fig in a bowl, and the shadow of the bowl on the ground.
    assert [int(labels[at]) for at in ((400, 600), (200, 800), (100, 300), (600, 100))] == [4, 3, 2, 1]
    with Image.open(tmp_path / "out" / "images" / "004.jpg") as image:
        assert image.size == (1024, 1024)


def test_a_piece_is_seen_in_its_colour_and_its_own_structure(bank_file: Path) -> None:
    bank, rng = PhotographBank(bank_file), np.random.default_rng(1)
    piece, colour = bank.draw(rng)
    assert colour[2] == pytest.approx(30, abs=1) and 160 <= colour[1] <= 200
    for scale in (0.4, 1.0, 3.0):
        seen = bank.look(piece, np.diag([scale, scale, 1.0]), (20, 30))
        assert seen.shape == (20, 30, 3)
        np.testing.assert_allclose(seen[..., 0], colour[0], atol=1.5)
        # The ramp rises by a tenth of a level for each pixel of the photograph.
        rise = float(seen[:, 20, 1].mean() - seen[:, 0, 1].mean())
        assert abs(abs(rise) - 20 * scale / 10) <= 1.5


def test_a_material_keeps_the_colour_that_it_was_given(bank_file: Path) -> None:
    canvas = Canvas(np.random.default_rng(2), TextureBank(1), SIZE, PhotographBank(bank_file))
    pieces = [material for material in (canvas.material() for _ in range(40)) if material.piece is not None]
    assert 5 < len(pieces) < 35
    for material in pieces:
        mean = canvas.surface(material, 30, 40, -0.5).mean((0, 1))
        np.testing.assert_allclose(mean, np.clip(material.colour, 0, 255), atol=6)


def test_scenes_with_photographs_are_the_same_for_the_same_seed_and_some_stand_before_one(bank_file: Path) -> None:
    bank = PhotographBank(bank_file)
    scenes = [make_scene(seed, SIZE, None, bank) for seed in range(16)]
    np.testing.assert_array_equal(scenes[3].image, make_scene(3, SIZE, None, bank).image)
    before = [scene for scene in scenes if (scene.leaves == 0).any()]
    assert 0 < len(before) < len(scenes)
    for scene in before:
        assert scene.object_of_leaf[0] == scene.group_of_leaf[0] == 0
        truth = Truth((scene.leaves, scene.object_of_leaf[scene.leaves], scene.group_of_leaf[scene.leaves]))
        y, x = np.argwhere(scene.leaves == 0)[0]
        assert candidate_at(np.random.default_rng(3), truth, (int(y), int(x))) is None
        assert all(candidate.value for candidate in find_candidates(truth))
