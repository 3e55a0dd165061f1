# SPDX-License-Identifier: Apache-2.0
"""A resize in bands is one resize, bit for bit; and threads share the work without waiting for each other."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from segship.errors import ImageError
from segship.images import resizing
from segship.images.resizing import MOST_THREADS, Band, cut_bands, plan_bands, resize_band, work_on_bands
from segship.promptable.transforms import Preprocessing, prepare_image, resize_image, resized_size

QUIET = settings(database=None, deadline=None, max_examples=150)
PREPROCESSING = Preprocessing(1024, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def noise(height: int, width: int) -> np.ndarray:
    # Black and white beside each other: every weight that differs shows.
    rng = np.random.default_rng(height * 31_337 + width)
    return (rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8) ^ rng.integers(0, 9, 3, dtype=np.uint8)


def whole(pixels: np.ndarray, resized_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(resized_hw[::-1], Image.Resampling.BILINEAR))


def rows_shrink_most(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    return size[0] - resized[0] > 2 * (size[1] - resized[1]) and size[0] > resized[0]


def in_bands(pixels: np.ndarray, resized_hw: tuple[int, int], bands: list[Band]) -> np.ndarray:
    joined = np.zeros((*resized_hw, 3), np.uint8)
    for band in bands:
        joined[band.top : band.bottom, band.left : band.right] = resize_band(Image.fromarray(pixels), resized_hw, band)
    return joined


@QUIET
@given(st.integers(1, 2600), st.integers(1, 2600), st.sampled_from([64, 128, 256, 512, 1024]), st.integers(2, 9))
def test_bands_of_a_models_frame_are_one_resize(height: int, width: int, side: int, count: int) -> None:
    try:
        resized = resized_size((height, width), side)
    except ImageError:
        assume(False)
    # Thin enough to be quick, at the full length of the axis that is cut.
    if width >= height:
        height = max(1, min(height, 90))
        resized = (min(resized[0], 60), resized[1])
    else:
        width = max(1, min(width, 90))
        resized = (resized[0], min(resized[1], 60))
    bands = cut_bands((height, width), resized, count)
    assert len(bands) == (1 if rows_shrink_most((height, width), resized) else count)
    pixels = noise(height, width)
    assert np.array_equal(in_bands(pixels, resized, bands), whole(pixels, resized))


@pytest.mark.parametrize(
    "size",
    [(1200, 1800), (1800, 1200), (1199, 1801), (1801, 1199), (683, 1024), (1024, 683), (1024, 1024), (2048, 2048)]
    + [(1, 1), (1, 2048), (2048, 1), (3, 5), (5, 3), (37, 53), (1023, 1025), (7, 4000), (4000, 7), (3000, 4000)],
)
def test_two_to_eight_bands_of_whole_pictures_are_one_resize(size: tuple[int, int]) -> None:
    pixels, resized = noise(*size), resized_size(size, 1024)
    expected = whole(pixels, resized)
    for count in (2, 3, 8):
        bands = cut_bands(size, resized, count)
        assert len(bands) == (count if max(resized) >= count and not rows_shrink_most(size, resized) else 1)
        assert np.array_equal(in_bands(pixels, resized, bands), expected)


@pytest.mark.parametrize("size", [(40, 30_000), (29_999, 40), (31, 16_777)])
def test_very_long_pictures_are_cut_only_where_the_edges_fit_float32(size: tuple[int, int]) -> None:
    pixels, resized = noise(*size), resized_size(size, 1024)
    expected = whole(pixels, resized)
    for count in (2, 3, 5):
        assert np.array_equal(in_bands(pixels, resized, cut_bands(size, resized, count)), expected)


@QUIET
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300), st.integers(1, 300), st.integers(1, 9))
def test_whatever_is_cut_is_one_resize(height: int, width: int, down: int, across: int, count: int) -> None:
    # Any ratio of the axes, most of which no cut would leave as they are.
    pixels = noise(height, width)
    bands = cut_bands((height, width), (down, across), count)
    assert np.array_equal(in_bands(pixels, (down, across), bands), whole(pixels, (down, across)))


def test_a_cut_that_would_change_pixels_is_not_made() -> None:
    assert cut_bands((1199, 900), (683, 513), 2) == [Band(0, 683, 0, 513)]
    # It really would: that is what the check is for.
    pixels = np.random.default_rng(0).integers(0, 256, (1199, 900, 3), dtype=np.uint8)
    halves = [Band(0, 341, 0, 513), Band(341, 683, 0, 513)]
    assert not np.array_equal(in_bands(pixels, (683, 513), halves), whole(pixels, (683, 513)))


def test_pictures_whose_passes_pillow_may_swap_are_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tall = ((3000, 1000), (1024, 341))
    assert len(cut_bands(*tall, 2)) == 1
    photograph = ((1800, 1200), (1024, 683))
    # Should this fail: read ImagingResampleInner of the new Pillow, and add its number if nothing has changed.
    assert len(cut_bands(*photograph, 2)) == 2
    monkeypatch.setattr("PIL.__version__", "99.1")
    assert len(cut_bands(*photograph, 2)) == 1


def test_a_side_shorter_than_the_count_is_not_cut() -> None:
    assert cut_bands((1, 2), (1, 4), 5) == [Band(0, 1, 0, 4)]
    assert len(cut_bands((1, 2), (1, 4), 4)) == 4


def test_the_plan_follows_the_threads_and_leaves_small_pictures_whole() -> None:
    large = ((1200, 1800), (683, 1024))
    assert [len(plan_bands(*large, threads)) for threads in (0, 1, 2, 3, 50)] == [1, 1, 2, 3, MOST_THREADS]
    assert plan_bands(*large) == plan_bands(*large, resizing.usable_cores())
    assert len(plan_bands((60, 90), (85, 128), 4)) == 1
    assert len(plan_bands((683, 1024), (683, 1024), 4)) == 1


@pytest.mark.parametrize("size", [(301, 450), (450, 301), (700, 1024), (1200, 1800), (1801, 1199), (1024, 1024)])
def test_the_number_of_threads_changes_nothing(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    frame, resized = prepare_image(pixels, PREPROCESSING, threads=1), resize_image(pixels, 1024, threads=1)
    for threads in (2, 3, 8, None):
        assert np.array_equal(prepare_image(pixels, PREPROCESSING, threads=threads), frame)
        assert np.array_equal(resize_image(pixels, 1024, threads=threads), resized)


def test_many_callers_at_once_get_what_one_gets() -> None:
    pictures = [noise(500 + 100 * index, 900) for index in range(6)]
    expected = [prepare_image(picture, PREPROCESSING, threads=1) for picture in pictures]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            found = list(pool.map(lambda picture: prepare_image(picture, PREPROCESSING, threads=3), pictures))
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def strips(count: int) -> list[Band]:
    return [Band(0, 1, index, index + 1) for index in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 5, 100, None])
def test_every_band_is_worked_on_once_by_no_more_threads_than_asked_for(threads: int | None) -> None:
    seen: list[tuple[Band, int]] = []

    def work(band: Band) -> None:
        time.sleep(0.001)
        seen.append((band, threading.get_ident()))

    work_on_bands(work, strips(40), threads)
    assert sorted(band for band, _ in seen) == strips(40)
    workers = {thread for _, thread in seen}
    assert threading.get_ident() in workers
    assert len(workers) <= resizing.count_threads(threads) <= MOST_THREADS


def test_a_caller_does_all_of_its_bands_while_the_helpers_are_busy() -> None:
    all_in, release = threading.Barrier(MOST_THREADS + 1), threading.Event()

    def block(band: Band) -> None:
        all_in.wait(20)
        release.wait(20)

    holder = threading.Thread(target=work_on_bands, args=(block, strips(MOST_THREADS), MOST_THREADS))
    holder.start()
    all_in.wait(20)
    seen: list[int] = []
    try:
        work_on_bands(lambda band: seen.append(threading.get_ident()), strips(6), 3)
    finally:
        release.set()
        holder.join()
    assert seen == [threading.get_ident()] * 6


@pytest.mark.parametrize("by_helper", [False, True])
def test_what_a_band_raises_is_raised_when_all_have_ended(by_helper: bool) -> None:
    caller, both_in = threading.get_ident(), threading.Barrier(2)
    ended = []

    def work(band: Band) -> None:
        both_in.wait(20)
        if (threading.get_ident() != caller) == by_helper:
            raise MemoryError("no room")
        time.sleep(0.05)
        ended.append(band)

    with pytest.raises(MemoryError, match="no room"):
        work_on_bands(work, strips(2), 2)
    assert len(ended) == 1


def test_no_thread_to_be_had_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    pixels = noise(900, 1300)
    assert np.array_equal(resize_image(pixels, 1024, threads=2), whole(pixels, resized_size((900, 1300), 1024)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own() -> None:
    work_on_bands(lambda band: None, [Band(0, 1, 0, 1)] * 3, 2)
    child = os.fork()
    if child == 0:
        seen: list[Band] = []
        work_on_bands(seen.append, [Band(0, 1, 0, 1)] * 3, 2)
        os._exit(0 if len(seen) == 3 and resizing._HELPERS._pool is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
