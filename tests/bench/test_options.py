# SPDX-License-Identifier: Apache-2.0
import pytest

from segship.bench.options import BenchmarkOptions
from segship.errors import InputError


@pytest.mark.parametrize(
    "options",
    [
        {"threads": (0,)},
        {"objects": (1, 0)},
        {"batch_sizes": (-1,)},
        {"points": 0},
        {"points_per_side": 0},
        {"repeats": 0},
        {"warm_up": -1},
        {"seconds": 0.0},
        {"seconds": float("nan")},
        {"sizes": {"objects": (0,)}},
        {"shapes": ({"x": (1, 0)},)},
    ],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=r"must be") as caught:
        BenchmarkOptions(**options)
    assert caught.value.code == "bad_benchmark_option"


def test_outputs_need_inputs(tmp_path):
    with pytest.raises(InputError, match=r"inputs=FOLDER"):
        BenchmarkOptions(outputs=tmp_path)
