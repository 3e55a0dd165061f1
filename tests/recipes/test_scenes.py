# SPDX-License-Identifier: Apache-2.0
"""The scene generator keeps its promises: same seed, same scene; every pixel has an owner; levels nest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recipes.tiny.samples import ScenePool
from recipes.tiny.scenes import Scene, make_scene, write_pool

SIZE = 96


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(seed, SIZE) for seed in range(8)]


def test_same_seed_gives_the_same_scene() -> None:
    first, again = make_scene(3, SIZE), make_scene(3, SIZE)
    for name in ("image", "leaves", "object_of_leaf", "group_of_leaf"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_seeds_differ(scenes: list[Scene]) -> None:
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_arrays_are_as_documented(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        assert scene.leaves.shape == (SIZE, SIZE) and scene.leaves.dtype == np.uint8
        assert scene.object_of_leaf.shape == scene.group_of_leaf.shape == (251,)


def test_every_pixel_belongs_to_an_object(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.leaves.min() > 0
        assert scene.object_of_leaf[scene.leaves].min() > 0


def test_an_object_lies_in_one_group(scenes: list[Scene]) -> None:
    for scene in scenes:
        used = np.unique(scene.leaves)
        pairs = {(scene.object_of_leaf[leaf], scene.group_of_leaf[leaf]) for leaf in used}
        assert len(pairs) == len({obj for obj, _ in pairs})


def test_all_three_levels_occur(scenes: list[Scene]) -> None:
    def parts(scene: Scene) -> int:
        return int(np.bincount(scene.object_of_leaf[np.unique(scene.leaves)]).max())

    assert max(parts(scene) for scene in scenes) > 1
    assert any(scene.group_of_leaf[scene.leaves].any() for scene in scenes)


def test_leaves_differ_in_colour_from_their_surroundings(scenes: list[Scene]) -> None:
    # Were labels and picture out of step, the colour inside leaves would vary as much as in the whole picture.
    ratios = []
    for scene in scenes:
        values = scene.image.reshape(-1, 3).astype(np.float64)
        labels = scene.leaves.ravel()
        counts = np.bincount(labels).clip(1)
        means = np.stack([np.bincount(labels, values[:, c]) / counts for c in range(3)], 1)
        ratios.append(((values - means[labels]) ** 2).mean() / values.var(0).mean())
    assert np.median(ratios) < 0.7


def test_pool_on_disk_holds_the_scenes(tmp_path: Path) -> None:
    write_pool(tmp_path, 3, first=5, size=64)
    pool = ScenePool(tmp_path)
    assert len(pool) == 3
    np.testing.assert_array_equal(pool.scene(1).image, make_scene(6, 64).image)


def test_written_shards_are_left_alone(tmp_path: Path) -> None:
    write_pool(tmp_path, 1, size=64)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_pool(tmp_path, 1, size=64)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_an_empty_pool_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"recipes\.tiny\.scenes"):
        ScenePool(tmp_path)
