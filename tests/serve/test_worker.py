# SPDX-License-Identifier: Apache-2.0
"""A worker's side: jobs in their order, errors as codes, and what is given up is ended."""

import queue
import threading
from dataclasses import asdict

import pytest

from segship.errors import BackendUnavailable, PromptError
from segship.images import ImageLimits
from segship.promptable.prompts import PromptLimits
from segship.serve import worker
from segship.serve.errors import Refusal


class Lines:
    def __init__(self):
        self.said = queue.Queue()

    def write(self, header, body=b""):
        self.said.put((header, body))


class Waiting(worker.Worker):
    """Works until it is stopped."""

    def __init__(self, folder):
        limits = {"image_limits": asdict(ImageLimits()), "prompt_limits": asdict(PromptLimits())}
        super().__init__({"folder": str(folder), **limits})
        self.begun, self.ended, self.stopped = threading.Event(), threading.Event(), []

    def stop(self, thread):
        self.stopped.append(thread)
        self.ended.set()

    def wait(self, header, body, tell):
        self.thread = threading.get_ident()
        tell({"type": "progress"})
        self.begun.set()
        assert self.ended.wait(10)
        raise BackendUnavailable("it was stopped", code="stopped")

    def fail(self, header, body, tell):
        raise {"prompt": PromptError("no", code="bad_shape"), "memory": MemoryError(), "file": FileNotFoundError(),
               "own": KeyError("/secret/path")}[header["how"]]  # fmt: skip

    def answer(self, header, body, tell):
        return {"said": body.decode()}, body


@pytest.fixture
def at_work(tmp_path):
    one, jobs, lines = Waiting(tmp_path), queue.SimpleQueue(), Lines()
    threading.Thread(target=worker._work, args=(one, jobs, lines), daemon=True).start()
    return one, jobs, lines


def test_a_job_that_is_given_up_is_ended_by_its_thread(at_work):
    one, jobs, lines = at_work
    jobs.put(({"number": 1, "job": "wait"}, b""))
    jobs.put(({"number": 2, "job": "answer"}, b"x"))
    assert one.begun.wait(10)
    # One that waits is not at work, and no thread is stopped for it.
    one.cancel(2)
    assert one.stopped == []
    one.cancel(1)
    assert one.stopped == [one.thread]
    said = [lines.said.get(timeout=10)[0] for _ in range(3)]
    assert said[0] == {"number": 1, "part": {"type": "progress"}}
    assert said[1]["error"]["code"] == "stopped" and said[1]["status"] == 503
    assert said[2]["number"] == 2 and said[2]["error"]["code"] == "cancelled"
    jobs.put(({"number": 3, "job": "answer"}, b"y"))
    header, body = lines.said.get(timeout=10)
    assert (header["said"], body) == ("y", b"y") and header["seconds"] >= 0


FAULTS = {"prompt": (422, "bad_shape"), "memory": (422, "out_of_memory"), "file": (410, "embedding_evicted"),
          "own": (500, "internal")}  # fmt: skip


@pytest.mark.parametrize("how", FAULTS)
def test_errors_are_codes_and_tell_nothing_of_the_machine(at_work, how, capsys):
    _, jobs, lines = at_work
    jobs.put(({"number": 1, "job": "fail", "how": how}, b""))
    header, _ = lines.said.get(timeout=10)
    assert (header["status"], header["error"]["code"]) == FAULTS[how]
    assert "secret" not in header["error"]["message"]
    assert ("secret" in capsys.readouterr().err) == (how == "own")


def test_a_refusal_says_whether_to_come_again():
    refusal = Refusal(503, "overloaded", "full", retry_after=3, limit=("decode_queue", 2, 3))
    assert refusal.to_dict("r") == {
        "kind": None,
        "code": "overloaded",
        "message": "full",
        "request_id": "r",
        "retryable": True,
        "limit": {"name": "decode_queue", "accepted": 2, "found": 3},
    }
    assert (b"retry-after", b"3") in refusal.headers()
