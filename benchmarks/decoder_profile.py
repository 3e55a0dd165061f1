# SPDX-License-Identifier: Apache-2.0
"""Where the time of a decoder call goes: each kind of operator of ``selective_decoder``, as its runtime counts it.

    python -m benchmarks.decoder_profile [--model vit_b] [--work WORK] [--engine openvino] [--precision bf16]
        [--objects 8] [--passing 0.3] [--free] [--repeats 30] [--top 25]

Prints milliseconds a prompt for each kind of operator and for the largest single ones, at the fastest of all repeats
each; what a call takes beyond their sum is hand-over. ``--passing`` is the part of the masks that pass and are made.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import segship
from benchmarks.prepared import WorkFolder
from benchmarks.subjects.points import image_points
from segship.backends.session import Recorder, RunOptions, Sizes

Times = dict[str, tuple[str, float]]
"""Node -> kind and milliseconds of one call."""


def recorded_inputs(predictor: segship.Predictor, photo: Path, objects: int, passing: float) -> dict[str, NDArray[Any]]:
    """Return what ``selective_decoder`` gets in everything mode, with thresholds drawn so that a part passes."""
    recorder = Recorder(predictor._sessions["selective_decoder"])
    predictor._decoder._sessions = {**predictor._sessions, "selective_decoder": recorder}
    predictor.select_at(predictor.encode(photo), image_points(objects)[:, 0], 0.88)
    ((found, _),) = recorder.take()
    wanted = np.random.default_rng(0).random((objects, 4)) < passing
    wanted[:, 0] = False
    return {**found, "min_iou": np.where(wanted, np.float32(-np.inf), np.float32(np.inf))}


def profile_openvino(
    graph: Path, spec: Any, run: RunOptions, inputs: Mapping[str, Any], repeats: int, sizes: Sizes
) -> list[Times]:
    """Return the counters of every call."""
    from segship.backends import openvino

    settings = {**openvino._settings(run), "PERF_COUNT": "YES"}
    compiled = openvino._compile(openvino._read(graph, spec), settings, spec, sizes)
    request = compiled.create_infer_request()
    calls = []
    for _ in range(repeats):
        request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        found = [(node, 1e3 * node.real_time.total_seconds()) for node in request.get_profiling_info()]
        calls.append({node.node_name: (f"{node.node_type} {node.exec_type}", spent) for node, spent in found if spent})
    return calls


def profile_onnxruntime(
    graph: Path, spec: Any, run: RunOptions, inputs: Mapping[str, Any], repeats: int, sizes: Sizes
) -> list[Times]:
    """Return the kernels' times of every call; this runtime does nothing with sizes."""
    from segship.backends import onnxruntime

    choices = onnxruntime._choices(run.threads or 2, once=False)
    choices.enable_profiling = True
    with TemporaryDirectory() as folder:
        choices.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime._load(graph, spec, choices, ("CPUExecutionProvider", {}))
        for _ in range(repeats):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = sorted((e for e in events if e["name"].endswith("_kernel_time")), key=lambda event: event["ts"])
    each = len(kernels) // repeats
    return [
        {e["name"]: (e["args"]["op_name"], e["dur"] / 1e3) for e in kernels[first : first + each]}
        for first in range(0, each * repeats, each)
    ]


def fastest(calls: list[Times]) -> Times:
    """Return each node's fastest run; other work on the machine only ever adds."""
    return {node: (kind, min(call[node][1] for call in calls if node in call)) for node, (kind, _) in calls[-1].items()}


def report(times: Times, seconds: float, objects: int, top: int) -> None:
    """Print milliseconds a prompt."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for kind, milliseconds in times.values():
        kinds[kind].append(milliseconds / objects)
    total = sum(map(sum, kinds.values()))
    print(f"a call: {1e3 * seconds / objects:.2f} ms a prompt at the fastest, of which the nodes have {total:.2f}")
    print("| operator | nodes | ms a prompt | part |\n|---|---|---|---|")
    for kind, each in sorted(kinds.items(), key=lambda entry: -sum(entry[1]))[:top]:
        print(f"| {kind} | {len(each)} | {sum(each):.3f} | {sum(each) / total:.0%} |")
    print("| node | ms a prompt |\n|---|---|")
    for node, (kind, milliseconds) in sorted(times.items(), key=lambda entry: -entry[1][1])[:top]:
        print(f"| {kind}: {node} | {milliseconds / objects:.3f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--engine", choices=("onnxruntime", "openvino"), default="openvino")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--passing", type=float, default=0.3)
    parser.add_argument("--free", action="store_true", help="the graph for any sizes, not the one for many calls")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--top", type=int, default=25)
    arguments = parser.parse_args()
    folder = WorkFolder(arguments.work, arguments.model)
    bundle = folder.bundle(arguments.engine)
    run = RunOptions(arguments.engine, precision=arguments.precision, threads=arguments.threads)
    with segship.load(bundle, backend=run.backend, precision=run.precision, threads=run.threads) as predictor:
        session = predictor._sessions["selective_decoder"]
        spec, sizes = session.spec, {}
        inputs = recorded_inputs(predictor, folder.photo(), arguments.objects, arguments.passing)
        if not arguments.free:
            side = (1, predictor.manifest.geometry.embedding_size)
            points = inputs["point_labels"].shape[1]
            sizes = {"objects": arguments.objects, "points": points, "rows": side, "columns": side}
            session = session.fixed(sizes)
        seconds = []
        for _ in range(arguments.repeats):
            started = time.perf_counter()
            session.run(inputs)
            seconds.append(time.perf_counter() - started)
    profile = profile_openvino if arguments.engine == "openvino" else profile_onnxruntime
    calls = profile(bundle / "selective_decoder.onnx", spec, run, inputs, arguments.repeats, sizes)
    report(fastest(calls), min(seconds), arguments.objects, arguments.top)


if __name__ == "__main__":
    main()
