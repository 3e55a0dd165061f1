# SPDX-License-Identifier: Apache-2.0
"""A double of ``python3 -m ais_bench``; with ``DOUBLE_MSIT`` its options are called as in ``msit benchmark``."""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from ais_bench.infer.interface import TYPES, InferSession

NEW = {
    "model": "om-model", "batchsize": "batch-size", "dymDims": "dym-dims", "outputSize": "output-size",
    "warmup_count": "warmup-count", "output_dirname": "output-dirname",
}  # fmt: skip


def read_options():
    words = argparse.ArgumentParser(prog="ais_bench", allow_abbrev=False)

    def add(name, **more):
        words.add_argument(f"--{NEW.get(name, name) if os.environ.get('DOUBLE_MSIT') else name}", dest=name, **more)

    add("model", required=True)
    for name in ("input", "output", "output_dirname", "dymDims", "outputSize"):
        add(name)
    add("outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    for name, default in (("loop", 1), ("warmup_count", 1), ("batchsize", 1), ("device", 0)):
        add(name, type=int, default=default)
    return words.parse_args()


def given_shapes(options, session):
    if options.dymDims is None:
        return {port.name: port.shape for port in session.get_inputs()}
    parts = (part.rpartition(":") for part in options.dymDims.split(";"))
    return {name: [int(size) for size in sizes.split(",")] for name, _, sizes in parts}


def main():
    options = read_options()
    session = InferSession(options.device, options.model)
    ports, shapes = session.get_inputs(), given_shapes(options, session)
    if any(-1 in shape for shape in shapes.values()):
        sys.exit("[ERROR] a dynamic model needs dymDims")
    if len(shapes[ports[0].name]) == 4 and shapes[ports[0].name][0] != options.batchsize and len(ports) == 1:
        sys.exit(f"[ERROR] batchsize {options.batchsize} does not suit the model")
    mode = "static" if options.dymDims is None else "dymdims"
    if options.input is None:
        feeds = [np.zeros(shapes[port.name], TYPES[port.datatype]) for port in ports]
        answers = session.infer(feeds, mode)
        if options.outputSize is not None:
            sizes = [int(size) for size in options.outputSize.split(",")]
            if len(sizes) != len(answers) or any(size < one.nbytes for size, one in zip(sizes, answers, strict=True)):
                sys.exit(f"[ERROR] output size {sizes} is too small")
    else:
        infer_files(options, session, ports[0], mode)
    print(f"[INFO] throughput 1000*batchsize.mean({options.batchsize})/NPU_compute_time.mean(1.0): 1000.0")


def infer_files(options, session, port, mode):
    """Files of one picture each, as many a call as the model takes; their answers are files of one each."""
    folder = Path(options.output) / options.output_dirname
    folder.mkdir(parents=True)
    files, summary = sorted(Path(options.input).iterdir()), {}
    for at in range(0, len(files), options.batchsize):
        part = files[at : at + options.batchsize]
        arrays = [np.fromfile(file, TYPES[port.datatype]).reshape(port.shape[1:]) for file in part]
        arrays += [np.zeros_like(arrays[0])] * (options.batchsize - len(part))
        (answers,) = session.infer([np.stack(arrays)], mode)
        for file, answer in zip(part, answers, strict=False):
            out = folder / f"{file.stem}_0.bin"
            answer.tofile(out)
            summary[str(len(summary))] = {"infiles": [str(file)], "outfiles": [str(out)]}
    (folder.parent / f"{folder.name}_summary.json").write_text(json.dumps({"filesinfo": summary}))


if __name__ == "__main__":
    main()
