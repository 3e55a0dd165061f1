# SPDX-License-Identifier: Apache-2.0
"""Semantic models by their stages."""

import pytest

from segship.bench.benchmark import benchmark
from segship.bench.options import BenchmarkOptions
from segship.errors import InputError

QUICK = {"repeats": 1, "warm_up": 0, "threads": (1,)}


@pytest.fixture(scope="module")
def report(small_semantic_bundle):
    options = BenchmarkOptions(**QUICK, batch_sizes=(1, 2), fresh_repeats=1)
    return benchmark(small_semantic_bundle.path, options)


def test_every_stage_and_every_batch_is_a_row(report):
    assert [row.name for row in report.rows] == [
        "decode image",
        "preprocess",
        "segment 1 picture",
        "segment 2 pictures",
        "graph semantic, batch 1",
        "graph semantic, batch 2",
    ]
    assert [row.timing.items for row in report.rows[2:]] == [1, 2, 1, 2]
    # The picture of 1800 x 1200 goes into the frame of 96 x 160.
    assert report.rows[2].detail == {"image": "1800 x 1200", "resized": "144 x 96", "batch": 1}
    assert report.rows[5].detail["shapes"] == {"image": [2, 3, 96, 160]}


def test_fresh_processes_tell_the_peak_of_every_batch(report):
    assert [(row.scenario, row.event) for row in report.fresh] == [
        ("segment", "model loaded, batch 1"),
        ("segment", "first call of 1"),
        ("segment", "second call of 1"),
        ("segment", "model loaded, batch 2"),
        ("segment", "first call of 2"),
        ("segment", "second call of 2"),
    ]
    assert all(row.peak_bytes > 10e6 for row in report.fresh)


def test_a_checkpoint_is_measured_in_torch(small_semask_checkpoint, tmp_path):
    options = BenchmarkOptions(**QUICK, stages=("preprocess",), fresh=False)
    assert benchmark(small_semask_checkpoint, options).backend == "torch"


def test_stages_of_the_other_family_are_unknown(small_semantic_bundle):
    with pytest.raises(InputError, match="no stage begins with 'encode'; there are decode image, preprocess, segment"):
        benchmark(small_semantic_bundle.path, BenchmarkOptions(**QUICK, stages=("encode",), fresh=False))
