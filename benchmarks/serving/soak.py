# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand requests of all kinds, good and bad, on one server: memory and times stay as they are.

``python -m benchmarks.serving.soak --out FILE``; ``--requests`` for another number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path

from benchmarks.machine import write_result
from benchmarks.serving.load import Pool, connect, quantile, request
from benchmarks.serving.proofs import CLICK, PHOTOGRAPH, picture, real
from tests.serve.serving import Running

BAD = [
    request("POST", "/v1/images", b"no picture"),
    request("POST", "/v1/images", PHOTOGRAPH[:3000]),
    request("POST", f"/v1/images/{'0' * 32}/masks", CLICK),
    request("POST", "/v1/segment?point=9999,1", PHOTOGRAPH),
    request("GET", "/nowhere"),
    request("POST", "/v1/images", b"", Content_Encoding="gzip"),
    request("POST", "/v1/images", b"", Host="evil.example"),
    b"nonsense\r\n\r\n",
]
# Pictures, of which the cache keeps a part.
PICTURES = 400


class Weights:
    """Memory and descriptors of a server and its workers."""

    def __init__(self, running: Running) -> None:
        self.processes = [running.process.pid, *running.children()]

    def resident(self) -> int:
        """Bytes that are a process' own; pages of files that several map are not counted as growth."""
        return sum(_status(pid, "RssAnon") for pid in self.processes)

    def descriptors(self) -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.processes)

    def threads(self) -> int:
        return sum(_status(pid, "Threads") for pid in self.processes)


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            number, *unit = line.partition(":")[2].split()
            return int(number) * (1024 if unit else 1)
    return 0


async def abandon(port: int, data: bytes) -> None:
    line = await connect(port)
    line.writer.write(data)
    await asyncio.sleep(0.001)
    line.close()


async def mix(running: Running, count: int, workers: int) -> tuple[dict, list[float], list[dict]]:
    """Send so many requests by so many clients; returns counts by status, times of clicks, and what things weighed."""
    draw, pool, statuses = random.Random(0), Pool(running.port), {}
    _, _, body = await pool.ask(request("POST", "/v1/images", PHOTOGRAPH), True)
    click = request("POST", f"/v1/images/{json.loads(body)['id']}/masks", CLICK)
    everything = request("POST", f"/v1/images/{json.loads(body)['id']}/everything", b'{"points_per_side": 2}')
    pictures = [request("POST", "/v1/images", picture(number, (300, 200))) for number in range(PICTURES)]
    weights, seconds, seen, left = Weights(running), [], [], count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            if left % max(1, count // 40) == 0:
                seen.append({"left": left, "resident": weights.resident(), "descriptors": weights.descriptors()})
            kind = draw.random()
            if kind < 0.02:
                await abandon(running.port, draw.choice([*pictures, click, everything]))
                statuses["abandoned"] = statuses.get("abandoned", 0) + 1
                continue
            data = draw.choice(BAD) if kind < 0.2 else click if kind < 0.93 else draw.choice(pictures)
            data = everything if kind > 0.998 else data
            began = time.perf_counter()
            status, _, _ = await pool.ask(data)
            statuses[status] = statuses.get(status, 0) + 1
            if data is click and status == 200:
                seconds.append(time.perf_counter() - began)

    await asyncio.gather(*(work() for _ in range(workers)))
    pool.close()
    seen.append({"left": 0, "resident": weights.resident(), "descriptors": weights.descriptors()})
    return statuses, seconds, seen


def soak(count: int = 100_000, workers: int = 4) -> dict:
    """Warm up with a tenth, then measure."""
    with real("--cache-bytes", str(64 * 2**20)) as running:
        asyncio.run(mix(running, max(100, count // 10), workers))
        time.sleep(2)
        before = Weights(running)
        base = before.resident(), before.descriptors(), before.threads()
        began = time.monotonic()
        statuses, seconds, seen = asyncio.run(mix(running, count, workers))
        took = time.monotonic() - began
        time.sleep(2)
        after = Weights(running)
        now = after.resident(), after.descriptors(), after.threads()
        restarts = sum(
            running.metric(f'segship_worker_restarts_total{{worker="{name}"}}')
            for name in ("pictures", "tiny encoder", "tiny clicks")
        )
    half = [one for one in seen if one["left"] <= count / 2]
    slope = (half[-1]["resident"] - half[0]["resident"]) / max(1, half[0]["left"] - half[-1]["left"])
    tenth = max(1, len(seconds) // 10)
    growth = quantile(seconds[-tenth:], 0.99) / quantile(seconds[:tenth], 0.99)
    server_faults = {status: number for status, number in statuses.items() if isinstance(status, int) and status >= 500}
    return {
        "requests": count,
        "seconds": round(took, 1),
        "statuses": {str(key): value for key, value in sorted(statuses.items(), key=str)},
        "growth_mib": round((now[0] - base[0]) / 2**20, 2),
        "bytes_a_request_in_the_last_half": round(slope, 1),
        "descriptors": [base[1], now[1]],
        "threads": [base[2], now[2]],
        "click_p99_last_tenth_over_first": round(growth, 2),
        "restarts": restarts,
        "holds": now[0] - base[0] < 16 * 2**20
        and slope < 1024
        and now[1] <= base[1] + 2
        and now[2] <= base[2]
        and growth <= 1.2
        and not restarts
        and set(server_faults) <= {503},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    given = parser.parse_args()
    found = soak(given.requests)
    print(json.dumps(found, indent=1))
    write_result(given.out, found)


if __name__ == "__main__":
    main()
