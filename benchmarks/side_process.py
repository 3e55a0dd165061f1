# SPDX-License-Identifier: Apache-2.0
"""The child of `benchmarks.sides`: makes one subject and calls it whenever the parent says so.

Started by the parent alone. Commands are JSON lines on standard input, answers JSON lines on standard output; what
libraries print goes to standard error, where it disturbs nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

from segship.bench.fresh import peak_resident_bytes


def main() -> None:
    """Make the subject that the command line names, and serve."""
    started = time.perf_counter()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    module, name = sys.argv[1].split(":")
    subject = getattr(import_module(module), name)(**json.loads(sys.argv[2]))
    tell(described=subject.described, load_s=time.perf_counter() - started)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "call":
            began = time.perf_counter()
            subject.call()
            seconds = time.perf_counter() - began
            figures = subject.figures()
            seconds -= figures.get("excluded_s", 0.0)
            tell(seconds=seconds, peak_bytes=peak_resident_bytes(), figures=figures)
        elif command["do"] == "answer":
            import numpy as np

            np.savez(command["path"], **subject.answer())
            tell(saved=command["path"])


if __name__ == "__main__":
    main()
