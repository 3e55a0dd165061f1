# SPDX-License-Identifier: Apache-2.0
"""Scores against a slow, obvious count; stopped runs; gaps."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from segship.datasets.folders import encode_label_image, find_samples, read_truth
from segship.errors import ImageError, InputError
from segship.evaluation import ModelSource, Snapshot, StateFile, score_samples
from segship.evaluation.scoring import digest_of_samples
from segship.images import read_image


def answers(samples, predictions):
    """A model that knows its pictures by their pixels."""
    known = {
        read_image(sample.image).pixels.tobytes(): prediction
        for sample, prediction in zip(samples, predictions, strict=True)
        if sample.image is not None
    }
    return lambda pixels: known[pixels.tobytes()]


@pytest.mark.parametrize("workers", [0, 2])
def test_perfect_predictions_score_100(samples, truths, workers):
    filled = [np.where(truth == 255, 0, truth).astype(np.uint8) for truth in truths]
    evaluation = score_samples("cityscapes", samples, ModelSource(answers(samples, filled)), workers=workers)
    assert evaluation.summary() == {"aAcc": 100.0, "mIoU": 100.0, "mAcc": 100.0}
    assert evaluation.samples == len(samples) and evaluation.failed == () and evaluation.resumed == 0


def test_shifted_predictions_score_what_the_slow_count_says(samples, truths, shifted, check_score):
    evaluation = score_samples("cityscapes", samples, ModelSource(answers(samples, shifted)))
    check_score(evaluation, shifted, truths)
    assert 20 < evaluation.summary()["mIoU"] < 95


def test_predictions_of_no_class_are_wrong_and_of_no_class(samples, truths, check_score):
    nothing = [np.full_like(truth, 255) for truth in truths]
    nothing[0][:, :40] = 0
    check_score(score_samples("cityscapes", samples, ModelSource(answers(samples, nothing))), nothing, truths)


def test_ade20k_is_scored_with_its_150_classes(made_ade20k, check_score):
    samples = find_samples("ade20k", made_ade20k)
    truths = [read_truth(sample) for sample in samples]
    rng = np.random.default_rng(0)
    predictions = [
        np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 150, truth.shape), truth).astype(np.uint8)
        for truth in truths
    ]
    evaluation = score_samples("ade20k", samples, ModelSource(answers(samples, predictions)))
    check_score(evaluation, predictions, truths)
    assert len(evaluation.rows()) == 150 and evaluation.rows()[0][0] == "wall"


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_batches_score_the_same(samples, shifted, batch):
    one, sizes = answers(samples, shifted), []

    def segment_batch(pictures):
        sizes.append(len(pictures))
        return [one(pixels) for pixels in pictures]

    alone = score_samples("cityscapes", samples, ModelSource(one))
    together = score_samples("cityscapes", samples, ModelSource(one, segment_batch, batch))
    assert np.array_equal(alone.matrix.counts, together.matrix.counts)
    assert max(sizes) == min(batch, len(samples))


def test_a_picture_that_the_model_refuses_fails_alone_even_in_a_batch(samples, shifted):
    one, refused = answers(samples, shifted), read_image(samples[1].image).pixels

    def segment(pixels):
        if np.array_equal(pixels, refused):
            raise ImageError("too narrow", code="aspect_ratio")
        return one(pixels)

    source = ModelSource(segment, lambda pictures: [segment(pixels) for pixels in pictures], 3)
    evaluation = score_samples("cityscapes", samples, source)
    (failure,) = evaluation.failed
    assert (failure.name, failure.code) == (samples[1].name, "aspect_ratio")
    others = [sample for sample in samples if sample is not samples[1]]
    expected = score_samples("cityscapes", others, ModelSource(one))
    assert np.array_equal(evaluation.matrix.counts, expected.matrix.counts)


def gaps(samples, tmp_path):
    """Four things that can be wrong with a sample."""
    cut = tmp_path / "cut.png"
    cut.write_bytes(samples[1].image.read_bytes()[:200])
    other = tmp_path / "other.png"
    other.write_bytes(b"no picture")
    return [
        replace(samples[0], image=None),
        replace(samples[1], image=cut),
        replace(samples[2], truth=None),
        replace(samples[3], truth=other),
        samples[4],
    ]


def test_damaged_and_missing_files_are_named_and_counted(samples, shifted, truths, check_score, tmp_path):
    source = ModelSource(answers(samples, shifted))
    evaluation = score_samples("cityscapes", gaps(samples, tmp_path), source)
    codes = [failure.code for failure in evaluation.failed]
    assert codes == ["missing_image", "truncated", "missing_truth", "bad_label_image"]
    assert "cut.png" in evaluation.failed[1].message and "other.png" in evaluation.failed[3].message
    check_score(evaluation, shifted[4:], truths[4:])
    document = evaluation.to_dict()
    assert document["scored"] == 1 and len(document["failed"]) == 4


def test_strict_stops_at_the_first(samples, shifted, tmp_path):
    broken, source = gaps(samples, tmp_path), ModelSource(answers(samples, shifted))
    with pytest.raises(InputError, match=samples[2].name) as caught:
        score_samples("cityscapes", broken, source, strict=True)
    assert caught.value.code == "missing_truth"
    with pytest.raises(InputError, match=r"cut\.png"):
        score_samples("cityscapes", broken[1:2], source, strict=True)


def test_nothing_to_score_is_an_error_that_says_why(samples, shifted, tmp_path):
    with pytest.raises(InputError, match=r"none of 2 .*cut\.png") as caught:
        score_samples("cityscapes", gaps(samples, tmp_path)[:2], ModelSource(answers(samples, shifted)))
    assert caught.value.code == "nothing_scored"


def test_a_truth_of_another_size_is_named(samples, shifted, tmp_path):
    (tmp_path / "small.png").write_bytes(encode_label_image(np.zeros((7, 9), np.uint8)))
    mixed = [replace(samples[0], truth=tmp_path / "small.png"), samples[1]]
    mixed[0] = replace(mixed[0], truth_kind="labelTrainIds")
    (failure,) = score_samples("cityscapes", mixed, ModelSource(answers(samples, shifted))).failed
    assert failure.code == "sizes_differ" and "(7, 9)" in failure.message and "leftImg8bit.png" in failure.message


def test_a_prediction_of_another_size_is_named(samples):
    source = ModelSource(lambda pixels: np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match=rf"{samples[0].name}: the prediction is \(3, 3\)"):
        score_samples("cityscapes", samples, source)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_that_stops_goes_on_where_it_was(samples, shifted, tmp_path, error, batch):
    one, asked = answers(samples, shifted), []
    state = StateFile(tmp_path / "run.state", {"model": "a"})

    def stopping(pixels):
        asked.append(1)
        if len(asked) == 4:
            raise error
        return one(pixels)

    def batches(segment):
        return lambda pictures: [segment(pixels) for pixels in pictures]

    with pytest.raises(error):
        score_samples("cityscapes", samples, ModelSource(stopping, batches(stopping), batch), state=state)
    done = state.load().done
    assert done == (3 if batch == 1 else 2)
    asked.clear()
    told = []
    evaluation = score_samples(
        "cityscapes",
        samples,
        ModelSource(lambda pixels: asked.append(1) or one(pixels)),
        state=state,
        progress=lambda *count: told.append(count),
    )
    assert len(asked) == len(samples) - done and told[0] == (done + 1, len(samples))
    whole = score_samples("cityscapes", samples, ModelSource(one))
    assert np.array_equal(evaluation.matrix.counts, whole.matrix.counts)
    assert evaluation.resumed == done and state.load().done == len(samples)


def test_failures_of_a_stopped_run_are_kept(samples, shifted, tmp_path):
    broken = [replace(samples[0], image=None), *samples[1:]]
    state = StateFile(tmp_path / "run.state", {"model": "a"})

    def stop(pixels):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        score_samples("cityscapes", broken, ModelSource(stop), state=state)
    evaluation = score_samples("cityscapes", broken, ModelSource(answers(samples, shifted)), state=state)
    assert [failure.code for failure in evaluation.failed] == ["missing_image"] and evaluation.resumed == 1


def test_a_state_that_is_further_than_the_data_is_refused(samples, shifted, tmp_path):
    state = StateFile(tmp_path / "run.state", {})
    state.save(Snapshot(99, np.zeros((19, 20), np.int64)))
    with pytest.raises(InputError, match="99 of 5"):
        score_samples("cityscapes", samples, ModelSource(answers(samples, shifted)), state=state)
    state.save(Snapshot(1, np.zeros((3, 4), np.int64)))
    with pytest.raises(InputError, match="counts"):
        score_samples("cityscapes", samples, ModelSource(answers(samples, shifted)), state=state)


def test_a_batch_needs_a_model_that_takes_one():
    for batch, words in ((0, "1 and more"), (2, "one picture at a time")):
        with pytest.raises(InputError, match=words):
            ModelSource(lambda pixels: pixels, batch=batch)


def test_the_digest_of_samples_tells_names_and_gaps(samples, made_cities):
    digests = {
        digest_of_samples(list_of_samples, made_cities)
        for list_of_samples in (samples, samples[:4], [replace(samples[0], truth=None), *samples[1:]])
    }
    assert len(digests) == 3 and digest_of_samples(samples, made_cities) in digests


def test_counts_outlive_a_process_that_is_killed(samples, made_cities, tmp_path):
    """No exception reaches a process that the system kills, so counts must be on the disk before."""
    path = tmp_path / "run.state"
    code = f"""
import os
import numpy as np
from pathlib import Path
from segship.datasets.folders import find_samples
from segship.evaluation import ModelSource, StateFile, score_samples, scoring

scoring.SECONDS_BETWEEN_SAVES = 0
calls = []

def segment(pixels):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), 9)
    return np.zeros(pixels.shape[:2], np.uint8)

state = StateFile(Path({str(path)!r}), {{"model": "a"}})
score_samples("cityscapes", find_samples("cityscapes", {str(made_cities)!r}), ModelSource(segment), state=state)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    all_road = ModelSource(lambda pixels: np.zeros(pixels.shape[:2], np.uint8))
    evaluation = score_samples("cityscapes", samples, all_road, state=StateFile(path, {"model": "a"}))
    assert evaluation.resumed == 3
    assert np.array_equal(evaluation.matrix.counts, score_samples("cityscapes", samples, all_road).matrix.counts)
