# SPDX-License-Identifier: Apache-2.0
"""The proofs under load in small: the same functions, with fewer repeats; ``make soak`` runs them in full.

Bars that are times stand wide here, since the suite shares its machine: what is counted is exact.
"""

import asyncio
import contextlib
import re

import pytest

from benchmarks.serving import proofs
from benchmarks.serving.faults import FAULTS, Proxy
from benchmarks.serving.load import Pool, quantile, request
from benchmarks.serving.soak import soak

# Lines that faults have cut are closed by nobody on the client's side, which is not what is tested.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_many_clients_with_one_picture_are_one_encode():
    assert proofs.one_flight(20).holds


def test_abandoned_encodes_are_not_run():
    row = proofs.abandoned(60)
    assert int(re.search(r"(\d+) encodes", row.measured)[1]) <= 4, row.measured


def test_what_was_begun_is_answered_at_the_end():
    assert proofs.gentle_ends(2).holds


def test_others_do_not_notice_a_death():
    row = proofs.deaths(2)
    assert " 0 not answered" in row.measured, row.measured


def test_overload_is_told_and_does_not_slow_what_is_answered():
    row = proofs.overload(seconds=2, decode=0.05)
    share, rejected = (int(found) for found in re.search(r"\((\d+)%\); (\d+) rejected", row.measured).groups())
    assert share >= 70 and rejected > 20, row.measured


def test_the_cache_keeps_to_its_bound():
    assert proofs.cache_bound(pictures=12, megabytes=2).holds


def test_memory_and_descriptors_stay_as_they_are():
    found = soak(400)
    assert found["growth_mib"] < 48 and found["restarts"] == 0, found
    assert found["descriptors"][1] <= found["descriptors"][0] + 4, found
    assert {int(status) for status in found["statuses"] if status.isdigit() and int(status) >= 500} <= {503}


@pytest.fixture(scope="module")
def stub():
    with proofs.stub(encode=0.01, decode=0.002) as running:
        yield running


@pytest.mark.parametrize("name", FAULTS)
def test_what_networks_do_harms_nobody_else(stub, name):
    async def scenario():
        click = proofs.click(stub)
        routes = [click, request("POST", "/v1/images", proofs.picture(1)), request("GET", "/v1/models")]
        async with Proxy(stub.port, FAULTS[name]) as proxy:
            hurt, good = Pool(proxy.port), Pool(stub.port)

            async def ask(data):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        return (await hurt.ask(data))[0]

            asked = [asyncio.create_task(ask(data)) for data in routes * 3]
            statuses = [(await good.ask(click))[0] for _ in range(10)]
            found = await asyncio.gather(*asked)
            hurt.close()
            good.close()
        return statuses, found

    statuses, found = asyncio.run(scenario())
    assert statuses == [200] * 10
    assert set(found) <= {None, 0, 200, 400, 408, 413}, found
    assert stub.metric('segship_queue_depth{lane="decode",model="stub"}') == 0


def test_quantiles():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0 and quantile([1.0], 0.99) == 1.0
    assert quantile([float(number) for number in range(100)], 0.99) == 98.0
