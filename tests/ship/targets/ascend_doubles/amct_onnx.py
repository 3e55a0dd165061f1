# SPDX-License-Identifier: Apache-2.0
"""A double of ``amct_onnx calibration``: the layout of its files, and a deploy model that is marked and no other."""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import onnx

PLAIN = re.compile(r"[A-Za-z0-9_./-]+")


def refuse(words):
    print(f"[AMCT]:[ERROR] {words}", file=sys.stderr)
    raise SystemExit(1)


def read_options(arguments):
    words = argparse.ArgumentParser(prog="amct_onnx", allow_abbrev=False)
    calibration = words.add_subparsers(dest="verb", required=True).add_parser("calibration", allow_abbrev=False)
    for name in ("model", "save_path"):
        calibration.add_argument(f"--{name}", required=True)
    for name in ("input_shape", "data_dir", "data_types", "evaluator", "calibration_config"):
        calibration.add_argument(f"--{name}")
    calibration.add_argument("--batch_num", type=int, default=1)
    return words.parse_args(arguments)


def check_data(options, inputs):
    shapes = [part.rpartition(":") for part in options.input_shape.split(";")]
    folders, types = options.data_dir.split(";"), options.data_types.split(";")
    if [name for name, _, _ in shapes] != inputs or len(folders) != len(inputs) or len(types) != len(inputs):
        refuse(f"input_shape, data_dir and data_types must have the {len(inputs)} inputs {inputs} in this order")
    counts = set()
    for (_, _, sizes), folder, kind in zip(shapes, folders, types, strict=True):
        if not PLAIN.fullmatch(folder):
            refuse(f"data_dir {folder} has other characters than letters, digits and _-.")
        if not Path(folder).is_dir():
            refuse(f"data_dir {folder} does not exist")
        shape = [int(size) for size in sizes.split(",")]
        if min(shape) < 1:
            refuse(f"input_shape {shape} of data must be fixed")
        files = sorted(Path(folder).iterdir())
        counts.add(len(files))
        wanted = int(np.prod(shape)) * np.dtype(kind).itemsize
        for file in files:
            if file.suffix != ".bin" or file.stat().st_size != wanted:
                refuse(f"{file} has {file.stat().st_size} bytes; {sizes} of {kind} are {wanted}")
    if len(counts) != 1 or counts.pop() < options.batch_num or options.batch_num < 1:
        refuse("every data_dir must hold as many files, and batch_num of them at least")


def main(arguments):
    options = read_options(arguments)
    if options.evaluator is None and None in (options.input_shape, options.data_dir, options.data_types):
        refuse("--input_shape, --data_dir and --data_types are required without --evaluator")
    model = onnx.load(options.model)
    check_data(options, [value.name for value in model.graph.input])
    for kind in ("deploy", "fake_quant"):
        model.metadata_props.add(key="amct", value=kind)
        onnx.save(model, f"{options.save_path}_{kind}_model.onnx")


if __name__ == "__main__":
    main(sys.argv[1:])
