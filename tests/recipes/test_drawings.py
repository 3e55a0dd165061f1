# SPDX-License-Identifier: Apache-2.0
"""Drawings become objects of a scene: what is taken into the bank, and what a scene says of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from recipes.tiny.drawings import HELD_OUT_EVERY, SIDE, DrawingBank, read_drawing, write_bank
from recipes.tiny.figures import put_figure
from recipes.tiny.painting import Canvas
from recipes.tiny.scenes import make_scene
from recipes.tiny.shapes import Placement
from recipes.tiny.textures import TextureBank

SIZE = 96


def save_drawing(path: Path, *, hue: int = 0) -> None:
    """A red disc on a blue post."""
    canvas = np.zeros((200, 160, 4), np.uint8)
    cv2.rectangle(canvas, (60, 90), (100, 190), (20, 40, 200, 255), -1)
    cv2.circle(canvas, (80, 60), 50, (220, 30 + hue, 30, 255), -1)
    Image.fromarray(canvas).save(path)


@pytest.fixture(scope="module")
def bank_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawings")
    for number in range(12):
        save_drawing(folder / f"{number:02d}.png", hue=10 * number)
    outline = np.zeros((200, 200, 4), np.uint8)
    cv2.circle(outline, (100, 100), 80, (0, 0, 0, 255), 3)
    Image.fromarray(outline).save(folder / "line-art.png")
    Image.fromarray(np.full((100, 100, 4), 255, np.uint8)).save(folder / "full.png")
    assert write_bank([folder], folder / "bank.npz") == 12
    return folder / "bank.npz"


def test_line_art_and_full_rectangles_are_passed_over(bank_path: Path) -> None:
    assert read_drawing(bank_path.parent / "line-art.png") is None
    assert read_drawing(bank_path.parent / "full.png") is None


def test_parts_follow_the_colours(bank_path: Path) -> None:
    drawing = read_drawing(bank_path.parent / "00.png")
    assert drawing is not None and drawing.picture.shape == (SIDE, SIDE, 4)
    scale, left = (SIDE - 2) / 181, SIDE // 2
    disc, post = drawing.parts[int(50 * scale), left], drawing.parts[int(150 * scale), left]
    assert disc != post and drawing.parts.min() > 0


def test_held_out_drawings_are_nobody_elses(bank_path: Path) -> None:
    mine, theirs = DrawingBank(bank_path), DrawingBank(bank_path, held_out=True)
    assert len(mine) + len(theirs) == 12 and len(theirs) == -(-12 // HELD_OUT_EVERY)
    pictures = {mine[i].picture.tobytes() for i in range(len(mine))}
    assert not pictures & {theirs[i].picture.tobytes() for i in range(len(theirs))}


@pytest.mark.parametrize("style", [0.1, 0.6, 0.9])
def test_a_figure_is_one_object_where_it_was_put(bank_path: Path, style: float) -> None:
    canvas = Canvas(np.random.default_rng(0), TextureBank(1), SIZE)
    before = canvas.image.copy()
    drawing = DrawingBank(bank_path)[0]
    materials = [canvas.material() for _ in range(4)]
    put_figure(canvas, drawing, Placement(60, 40, 30), 3, materials, style=style)
    owned = canvas.object_of_leaf[canvas.leaves] == 1
    assert owned[22, 60] and not owned[:, :25].any() and 0.1 < owned.mean() < 0.4
    assert (canvas.group_of_leaf[canvas.leaves[owned]] == 3).all()
    assert (canvas.image[owned] != before[owned]).any(axis=1).mean() > 0.9


def test_scenes_with_drawings_are_seeded(bank_path: Path) -> None:
    bank = DrawingBank(bank_path)
    first, again = make_scene(5, SIZE, bank), make_scene(5, SIZE, bank)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.leaves, again.leaves)
    assert first.leaves.min() > 0 and first.object_of_leaf[first.leaves].min() > 0
