# SPDX-License-Identifier: Apache-2.0
"""The options of every command that loads a model: which backend runs it, where, and how exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs the model.

    Parameters
    ----------
    backend
        onnxruntime, openvino or torch; auto takes the fastest that the bundle has found right.
    device
        cpu or cuda.
    precision
        fp32; bf16 and fp16 where the backend and the chip have them; auto may take them where they were measured here.
    threads
        Threads of the runtime; all usable cores when left out.
    streams
        Calls that are worked on side by side (openvino).
    compile
        Compile the model with torch on CUDA.
    """

    backend: str = "auto"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    streams: int = 1
    compile: bool = False

    def settings(self) -> dict[str, Any]:
        """Return them as `segship.load` takes them."""
        return asdict(self)


DEFAULT_RUNTIME = Runtime()
