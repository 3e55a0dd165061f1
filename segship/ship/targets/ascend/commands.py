# SPDX-License-Identifier: Apache-2.0
"""The kit's README and shell scripts: what ``amct_onnx``, ``atc`` and ``ais_bench`` are asked for each graph.

A graph is an entry of ``kit.json``. Every line is quoted for the shell, and starts in the kit's folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

Entry = Mapping[str, Any]

_HEAD = """#!/usr/bin/env bash
# {what}
set -eu
cd "$(dirname "$0")/.."
"""
_CHECK = """fail() {{ echo "$1" >&2; exit 1; }}
command -v npu-smi >/dev/null || fail "npu-smi is not on PATH; install the driver of the NPU"
grep -qwE "(Ascend)?{chip}" <<<"$(npu-smi info)" \\
  || fail "npu-smi info shows no {chip}; convert again for the chip that it shows"
command -v atc >/dev/null || fail "atc is not on PATH; run: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
[ -n "${{ASCEND_TOOLKIT_HOME:-${{ASCEND_HOME_PATH:-}}}}" ] || fail "no CANN toolkit is set; source its set_env.sh"
{amct}python3 -c "import numpy, PIL" || fail "python3 lacks numpy or Pillow; run: python3 -m pip install numpy Pillow"
python3 -c "from ais_bench.infer.interface import InferSession" \\
  || fail "python3 lacks ais_bench or aclruntime; install both wheels of Ascend/tools"
sha256sum --check --quiet graphs.sha256 || fail "a graph was changed after it was written; copy the kit again"
echo "this machine has what the kit needs"
"""
_AMCT = (
    'command -v amct_onnx >/dev/null || fail "amct_onnx is not on PATH; install AMCT, in an environment of its own"\n'
)
_BENCH = """# ais_bench's options were renamed in msit; the help says which are taken.
if python3 -m ais_bench --help 2>&1 | grep -q -- --om-model; then
  bench() { python3 -m ais_bench "$@"; }; renamed=1
elif python3 -c "import ais_bench" 2>/dev/null; then
  bench() { python3 -m ais_bench "$@"; }; renamed=
else
  bench() { msit benchmark "$@"; }; renamed=1
fi
"""
_README = """# {architecture} for {soc}

On the machine with the NPU, in this folder. It needs CANN {cann}, the wheels `aclruntime` and `ais_bench` of
Ascend/tools, numpy and Pillow.

    bash scripts/00_check.sh        # driver, chip, CANN, Python packages, digests of the graphs
{quantize}    bash scripts/20_compile.sh      # graphs/ to om/
    python3 run.py accept           # holds om/ against the recorded answers in acceptance/; writes report.json
    bash scripts/30_bench.sh        # pure inference, a hundred runs each
    {run}

| graph | sizes | file in om/ |
|---|---|---|
{rows}

What `run.py accept` takes at least: {bars}. Back where the bundle is,
`segship verify BUNDLE --kit report.json` takes the figures into its certificate. kit.json has sizes, digests,
preprocessing, bars and cases; everything else follows from it.

No NPU was at hand when this was written: graphs were compared in ONNX Runtime, and the scripts ran on doubles of
the vendor's tools. The report of your device is the proof.
"""
_QUANTIZE = "    bash scripts/10_quantize.sh     # amct_onnx, in an environment of its own; graphs/ to quantized/\n"
_RUN = {
    "promptable": "python3 run.py segment picture.jpg --point 500,375 --out out.png    # or --box X0,Y0,X1,Y1",
    "semantic": "python3 run.py cityscapes DATA --work WORK --batch {batch}    # mIoU of leftImg8bit/val",
}


def readme(document: Mapping[str, Any]) -> str:
    """Return the text of ``README.md`` for what ``kit.json`` says."""
    precisions, rows = document["precisions"], []
    for name, entry in document["graphs"].items():
        sizes = [f"{axis} {size}" for axis, size in entry["sizes"].items()]
        if entry["gears"]:
            sizes.append(f"points {entry['gears'][0]} to {entry['gears'][-1]}")
        rows.append(f"| {name} | {', '.join(sizes)} | {', '.join(f'`{name}_{one}.om`' for one in precisions)} |")
    bars = "; ".join(
        f"{precision}: {', '.join(f'{figure} {least}' for figure, least in document['bars'][precision].items())}"
        for precision in precisions
    )
    return _README.format(
        **{key: document[key] for key in ("architecture", "soc", "cann")},
        quantize=_QUANTIZE if "int8" in precisions else "",
        run=_RUN[document["task"]].format(batch=next(iter(document["graphs"].values()))["sizes"].get("batch")),
        rows="\n".join(rows),
        bars=bars,
    )


def check_script(soc: str, int8: bool) -> str:
    """Return ``00_check.sh``: driver, chip, compiler, environment, Python packages, graphs."""
    head = _HEAD.format(what="Looks whether this machine has what the kit needs.")
    return head + _CHECK.format(chip=soc.removeprefix("Ascend").partition("_")[0], amct=_AMCT if int8 else "")


def quantize_script(graphs: Mapping[str, Entry]) -> str:
    """Return ``10_quantize.sh``: a line of AMCT for each graph."""
    lines = "".join(f"{amct_line(name, entry)}\n" for name, entry in graphs.items())
    return _HEAD.format(what="Calibrates every graph to int8; AMCT stands in an environment of its own.") + (
        f"mkdir -p quantized\n{lines}"
    )


def compile_script(graphs: Mapping[str, Entry], precisions: list[str], soc: str) -> str:
    """Return ``20_compile.sh``: a line of ATC for each graph in each precision."""
    lines = [atc_line(name, entry, precision, soc) for precision in precisions for name, entry in graphs.items()]
    text = "\n".join(lines)
    return _HEAD.format(what="Compiles every graph for the chip.") + f"mkdir -p om\n{text}\n"


def bench_script(graphs: Mapping[str, Entry], precisions: list[str]) -> str:
    """Return ``30_bench.sh``: a hundred runs of each compiled model, in the spelling that is installed."""
    text = _HEAD.format(what="Measures the pure inference of every compiled model.") + _BENCH
    for precision in precisions:
        for name, entry in graphs.items():
            old, new = (shlex.join(list(_bench(name, entry, precision, renamed=renamed))) for renamed in (False, True))
            text += f'if [ -n "$renamed" ]; then bench {new}; else bench {old}; fi\n'
    return text


def amct_line(name: str, entry: Entry) -> str:
    """Return the line that calibrates a graph."""
    inputs = [tensor["name"] for tensor in entry["inputs"]]
    return shlex.join(
        [
            "amct_onnx",
            "calibration",
            f"--model=graphs/{name}.onnx",
            f"--save_path=quantized/{name}",
            f"--input_shape={input_shape(entry)}",
            f"--data_dir={';'.join(f'calibration/{name}/{one}' for one in inputs)}",
            f"--data_types={';'.join(tensor['dtype'] for tensor in entry['inputs'])}",
            f"--batch_num={entry['samples']}",
        ]
    )


def atc_line(name: str, entry: Entry, precision: str, soc: str) -> str:
    """Return the line that compiles a graph."""
    model = f"quantized/{name}_deploy_model.onnx" if precision == "int8" else f"graphs/{name}.onnx"
    images = all(len(tensor["shape"]) == 4 for tensor in entry["inputs"])
    gears = entry["gears"]
    return shlex.join(
        [
            "atc",
            "--framework=5",
            f"--model={model}",
            f"--output=om/{name}_{precision}",
            f"--input_format={'NCHW' if images else 'ND'}",
            f"--input_shape={input_shape(entry)}",
            *([f"--dynamic_dims={';'.join(f'{gear},{gear}' for gear in gears)}"] if gears else []),
            f"--soc_version={soc}",
            "--log=error",
        ]
    )


def input_shape(entry: Entry, gear: int = -1) -> str:
    """Return the shapes of a graph's inputs in the tools' words, -1 where a gear gives the size.

    Examples
    --------
    >>> points = {"name": "point_labels", "shape": ["objects", "points"]}
    >>> input_shape({"inputs": [points], "sizes": {"objects": 1}}), input_shape({"inputs": [points], "sizes": {}}, 4)
    ('point_labels:1,-1', 'point_labels:4,4')
    """
    sizes = entry["sizes"]
    shapes = {
        tensor["name"]: [sizes.get(size, gear) if isinstance(size, str) else size for size in tensor["shape"]]
        for tensor in entry["inputs"]
    }
    return ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())


def _bench(name: str, entry: Entry, precision: str, *, renamed: bool) -> Iterator[str]:
    words = {"model": "om-model", "batchsize": "batch-size", "dymDims": "dym-dims", "outputSize": "output-size"}

    def option(word: str, value: object) -> Iterator[str]:
        yield f"--{words[word] if renamed and word in words else word}"
        yield str(value)

    yield from option("model", f"om/{name}_{precision}.om")
    yield from option("loop", 100)
    if entry["gears"]:
        gear = entry["gears"][len(entry["gears"]) // 2]
        yield from option("dymDims", input_shape(entry, gear))
        yield from option("outputSize", ",".join(str(size) for size in entry["output_bytes"]))
    else:
        yield from option("batchsize", entry["sizes"].get("batch", 1))
