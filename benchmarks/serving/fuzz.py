# SPDX-License-Identifier: Apache-2.0
"""Requests that nobody would send: what schemathesis makes of the server's document, and bytes that are hardly HTTP.

``python -m benchmarks.serving.fuzz --schemathesis PROGRAM --out FILE``: the program lies in an environment of its own
(pip install schemathesis==4.32.5). No answer may be a failure of the server, and none may tell of the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import write_result
from benchmarks.serving.load import request
from benchmarks.serving.proofs import CLICK, PHOTOGRAPH
from tests.serve.serving import Running, serving

TELLS = re.compile(rb"0x[0-9a-f]{6,}|Traceback|\.py\b|/(usr|tmp|home|root|opt)/|site-packages")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


# Half of what is asked of a picture is asked of one that is there.
OF_A_PICTURE = ("POST /v1/images/{id}/masks", "POST /v1/images/{id}/everything", "GET /v1/images/{id}/picture")


def schemathesis(running: Running, program: str, examples: int, seed: int, image: str) -> dict:
    """Let schemathesis ask every route so many times, valid and invalid."""
    with TemporaryDirectory() as folder:
        report, config = Path(folder) / "events.ndjson", Path(folder) / "schemathesis.toml"
        known = f'parameters = {{ "path.id" = ["{image}", "{image}", "unknown", "{"0" * 32}"] }}'
        config.write_text("".join(f'[[operations]]\ninclude-name = "{name}"\n{known}\n' for name in OF_A_PICTURE))
        command = [
            program,
            "--config-file",
            str(config),
            "run",
            f"{running.address}/openapi.json",
            "--checks",
            CHECKS,
            "--seed",
            str(seed),
        ]
        command += ["--max-examples", str(examples), "--phases", "examples,coverage,fuzzing,stateful", "--mode", "all"]
        # What it would make up is so short that the right answer is 504, which it takes for a fault.
        command += ["--header", "Segship-Deadline: 30"]
        command += ["--report", "ndjson", "--report-ndjson-path", str(report), "--continue-on-failure", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True)
        statuses: dict[str, int] = {}
        told = 0
        for line in report.read_bytes().splitlines() if report.exists() else []:
            told += bool(TELLS.search(line)) and b'"status_code"' in line
            for status in re.findall(rb'"status_code": ?(\d+)', line):
                statuses[status.decode()] = statuses.get(status.decode(), 0) + 1
    said = done.stdout.partition(" SUMMARY ")[2].partition("Reports:")[0].strip("= \n")
    return {"exit": done.returncode, "statuses": dict(sorted(statuses.items())), "said": said.splitlines()}


def mutations(seed: int) -> list[bytes]:
    """Good requests, and what becomes of them by chance."""
    return [
        request("GET", "/v1/models"),
        request("POST", "/v1/images?model=tiny", PHOTOGRAPH[:2000]),
        request("POST", f"/v1/images/{'0' * 32}/masks", CLICK),
        request("POST", "/v1/segment?point=1,1&format=png", PHOTOGRAPH[:500]),
        request("POST", f"/v1/images/{'0' * 32}/everything", b'{"points_per_side": 4}', Accept="text/event-stream"),
        request("POST", "/v1/segment?point=1,1", PHOTOGRAPH[:500], Segship_Deadline="0.25"),
        request("DELETE", f"/v1/images/{'0' * 32}"),
        request("GET", "/page/app.js"),
        b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One request with one to four changes: bytes turned, cut, doubled, repeated, or strange ones put in."""
    strange = [
        b"\x00",
        b"\r\n",
        b"\r\n\r\n",
        b"%00",
        b"../",
        b"\xff\xfe",
        b": ",
        b"chunked",
        b"-1",
        b"9" * 40,
        b"{" * 50,
    ]
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + 40)
        kind = draw.randrange(5)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:end] + data[at:end] * draw.randint(1, 8) + data[end:]
        elif kind == 3:
            data = data[:at] + draw.choice(strange) + data[at:]
        else:
            data = data[: at + 1]
    return data


def raw(running: Running, count: int, seed: int) -> dict:
    """Send bytes by socket; returns how many answers there were by status, and what was wrong with any."""
    draw, good, statuses, wrong = random.Random(seed), mutations(seed), {}, []
    for _ in range(count):
        data = mutated(draw.choice(good), draw)
        # Half a request would be waited for; its end is the end of the line.
        answer = running.raw(data, timeout=2, end=True)
        found = re.match(rb"HTTP/1\.1 (\d+)", answer)
        status = found[1].decode() if found else "none"
        statuses[status] = statuses.get(status, 0) + 1
        if status.startswith("5") and status != "503" or TELLS.search(answer):
            wrong.append({"sent": repr(data[:300]), "answer": repr(answer[:300])})
    return {"requests": count, "statuses": dict(sorted(statuses.items())), "wrong": wrong[:20]}


def fuzz(program: str | None, examples: int, raws: int, seed: int = 0) -> dict:
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        hasty = ("--head-seconds", "1", "--body-seconds", "1", "--cache-seconds", "7200")
        with serving("--log", "json", "--tensors", *hasty, log=log) as running:
            image = running.post("/v1/images", PHOTOGRAPH).json["id"]
            found = {"raw": raw(running, raws, seed)}
            if program is not None:
                found["schemathesis"] = schemathesis(running, program, examples, seed, image)
            found["still_answers"] = running.post(f"/v1/images/{image}/masks", CLICK).status == 200
        told = [line for line in log.read_bytes().splitlines() if TELLS.search(line)]
    found["log_tells"] = len(told)
    server_errors = [
        status for part in found.values() if isinstance(part, dict) for status in part["statuses"] if status[:1] == "5"
    ]
    # What is too much is refused with 503.
    is_right = set(server_errors) <= {"503"}
    found["holds"] = not found["raw"]["wrong"] and is_right and found["still_answers"] and not told
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--schemathesis", help="its program; left out where it is not installed")
    parser.add_argument("--examples", type=int, default=1300, help="of each route")
    parser.add_argument("--raw", type=int, default=20_000)
    given = parser.parse_args()
    found = fuzz(given.schemathesis, given.examples, given.raw)
    print(json.dumps(found, indent=1))
    write_result(given.out, found)


if __name__ == "__main__":
    main()
