# SPDX-License-Identifier: Apache-2.0
"""Slips in options are refused at the door, by the option's name."""

from pathlib import Path

import numpy as np
import pytest

import segship
from segship.backends.session import RunOptions
from segship.bench.options import BenchmarkOptions
from segship.compat import Sam
from segship.datasets.train_ids import TrainIdsOptions
from segship.errors import ExportError, InputError
from segship.evaluation import EvaluateOptions
from segship.jobs import EverythingOptions, SegmentOptions
from segship.ship.options import ExportOptions
from segship.tune import TuneOptions


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (RunOptions, {"threads": "2"}, "threads is '2'; accepted is a whole number or None"),
        (RunOptions, {"threads": True}, "threads is True; accepted is a whole number or None"),
        (RunOptions, {"compile": "no"}, "compile is 'no'; accepted is True or False"),
        (RunOptions, {"device": None}, "device is None; accepted is a string"),
        (SegmentOptions, {"formats": "overlay"}, "formats is 'overlay'; accepted is a tuple, each a string"),
        (
            SegmentOptions,
            {"multimask_output": 1},
            "multimask_output is 1; accepted is True or False or 'best' or 'auto'",
        ),
        (EverythingOptions, {"amg": {}}, "amg is {}; accepted is a AmgOptions"),
        (segship.ImageLimits, {"pixels": -5}, "pixels is -5; accepted is a whole number from 1 to"),
        (segship.ImageLimits, {"side": 1.5}, "side is 1.5; accepted is a whole number"),
        (segship.SemanticOptions, {"window": 5}, "window is 5; accepted is a tuple of 2, each a whole number or None"),
        (segship.SemanticOptions, {"ratios": ["a"]}, "accepted is a tuple, each a number"),
        (TuneOptions, {"repeats": 0}, "repeats is 0; accepted is a whole number from 1 to"),
        (TrainIdsOptions, {"workers": "all"}, "workers is 'all'; accepted is a whole number or None"),
        (BenchmarkOptions, {"repeats": 10**9}, "repeats is 1000000000; it must be 1 or more, and at most"),
        (BenchmarkOptions, {"seconds": float("inf")}, "seconds is inf; it must be above 0 and finite"),
        (EvaluateOptions, {"bundle": "x", "batch": 0}, "batch is 0; accepted is a whole number from 1 to"),
    ],
)
def test_values_of_other_types_or_out_of_range_are_refused_by_name(make, given, message):
    with pytest.raises(InputError) as refusal:
        make(**given)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"opset": "18"}, "opset is '18'; accepted is a whole number or None"),
        ({"contract": "nope"}, "contract is 'nope'; accepted is 'segship' or 'official' or 'ascend' or 'samexporter'"),
        ({"size": "64,64"}, "size is '64,64'; accepted is a tuple of 2, each a whole number or None"),
        ({"image_size": 10**9}, "image_size is 1000000000; accepted are up to 8192 pixels"),
    ],
)
def test_slips_in_an_export_are_refused_when_its_options_are_made(given, message):
    with pytest.raises(ExportError) as refusal:
        ExportOptions(**given)
    assert message in str(refusal.value)


@pytest.mark.parametrize("door", [segship.load, segship.load_semantic, Sam])
def test_an_option_that_there_is_not_is_told_with_what_it_may_mean(door):
    message = rf"{door.__name__}\(\) got an unexpected keyword argument 'thread'; did you mean threads"
    with pytest.raises(TypeError, match=message):
        door("tiny", thread=2)
    with pytest.raises(TypeError, match=r"pipeline\(\) got .* 'speed'; accepted are backend, device, precision"):
        segship.pipeline("segment_anything", speed=2)


def test_a_model_is_a_name_or_a_path():
    with pytest.raises(InputError, match="the model is None; accepted are a known name"):
        segship.load(None)


def test_numbers_of_numpy_and_paths_as_strings_are_taken():
    assert RunOptions(threads=np.int64(2)).threads == 2
    assert ExportOptions(classes="names.json").classes == Path("names.json")
    assert SegmentOptions(formats=["overlay"]).formats == ["overlay"]
