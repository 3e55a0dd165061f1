# SPDX-License-Identifier: Apache-2.0
"""Subjects that do next to nothing, for the tests of what compares them."""

import time

import numpy as np


class Toy:
    """Sleeps, and says what it was told to say."""

    def __init__(self, seconds, value, threads, megabytes=0, fails=""):
        if fails == "load":
            raise RuntimeError("cannot be loaded")
        print("chatter of a library, which must not reach the parent's answers")
        self.described = {"engine": "toy", "precision": "fp32", "threads": threads}
        self._seconds, self._value, self._fails = seconds, value, fails
        self._held = np.ones(megabytes * 1_000_000, np.uint8)
        self._calls = 0

    def call(self):
        if self._fails == "call" and self._calls == 1:
            raise RuntimeError("fails later")
        self._calls += 1
        time.sleep(self._seconds)

    def answer(self):
        return {"value": np.full(4, self._value, np.float32), "records_set": np.array([1, 2, 3])}

    def figures(self):
        return {"calls": self._calls, "excluded_s": 0.0}
