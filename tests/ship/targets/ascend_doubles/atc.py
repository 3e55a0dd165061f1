# SPDX-License-Identifier: Apache-2.0
"""A double of ``atc``: the grammar, checks and error codes of CANN's published compiler front end (hicann/ge, ops-*).

It compiles nothing: an .om of it is a zip of the ONNX file and of what it was compiled for. Codes are those of the
catalogue in ge; where the text of a code fits and the code that raises it was not read, it is the code that fits.
"""

import json
import sys
import zipfile
from pathlib import Path

import onnx

FLAGS = {
    "mode", "framework", "model", "weight", "output", "input_format", "input_shape", "input_shape_range",
    "dynamic_batch_size", "dynamic_image_size", "dynamic_dims", "soc_version", "log", "output_type", "precision_mode",
    "precision_mode_v2", "op_select_implmode", "optypelist_for_implmode", "keep_dtype", "modify_mixlist",
    "customize_dtypes", "fusion_switch_file", "external_weight", "deterministic", "insert_op_conf", "out_nodes",
}  # fmt: skip
VALUES = {
    "input_format": {"NCHW", "ND", "NCDHW"},
    "precision_mode": {
        "force_fp16", "force_fp32", "cube_fp16in_fp32out", "allow_mix_precision", "allow_mix_precision_fp16",
        "allow_mix_precision_bf16", "allow_fp32_to_fp16", "must_keep_origin_dtype", "allow_fp32_to_bf16",
    },
    "op_select_implmode": {
        "high_precision", "high_performance", "high_precision_for_all", "high_performance_for_all",
    },
    "output_type": {"FP32", "FP16", "UINT8", "INT8"},
}  # fmt: skip
CHIPS = {"Ascend310", "Ascend310P1", "Ascend310P3", "Ascend310B1", "Ascend910A", "Ascend910B3"}
NOT_QUANTISED = {"force_fp32", "must_keep_origin_dtype"}
INPUT_TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8}
MOST_GEARS = 100
TABLE = Path(__file__).parents[4] / "segship" / "ship" / "targets" / "ascend" / "operators.json"


class Refused(Exception):
    """What the tool prints: its code, and its words."""


def refuse(code, words):
    raise Refused(f"{code}: {words}")


def parse_flags(arguments):
    """``--k=v`` or ``--k v``, one dash or two, ``-`` or ``_``."""
    flags, waiting = {}, list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-"):
            refuse("E10054", f"The required parameter is empty, or not enclosed by quotation marks: {argument}")
        name, equals, value = argument.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name not in FLAGS:
            raise Refused(f"ERROR: unknown command line flag '{name}'")
        if not equals:
            value = waiting.pop(0) if waiting else ""
        if not value:
            refuse("E10004", f"Value for --{name} is empty.")
        flags[name] = value
    return flags


def check_flags(flags):
    if flags.get("framework") != "5":
        refuse("E10007", "--framework is required. The value must be 0, 1, 3 or 5.")
    for name in ("model", "output", "soc_version"):
        if name not in flags:
            refuse("E10007", f"--{name} is required.")
    if flags["soc_version"] not in CHIPS:
        refuse("E10001", f"Value {flags['soc_version']} for parameter soc_version is invalid.")
    if flags["output"].endswith("/"):
        refuse("E10022", f"Path {flags['output']} for parameter --output does not include the file name.")
    check_values(flags)


def check_values(flags):
    for name, accepted in VALUES.items():
        if flags.get(name, next(iter(accepted))) not in accepted:
            refuse(
                "E10061", f"Value {flags[name]} for parameter {name} is invalid. Expected value: {sorted(accepted)}."
            )
    if flags.get("log", "null") not in {"debug", "info", "warning", "error", "null"}:
        refuse("E10010", f"Value {flags['log']} for parameter --log is invalid.")
    dynamic = {"dynamic_batch_size", "dynamic_image_size", "dynamic_dims", "input_shape_range"} & flags.keys()
    if len(dynamic) > 1:
        refuse("E10009", "--dynamic_batch_size, --dynamic_image_size, ... are mutually exclusive.")
    if dynamic and "insert_op_conf" in flags:
        refuse("E10056", "Cannot configure both parameters simultaneously.")


def parse_shapes(text, gears):
    shapes = {}
    for part in text.split(";"):
        name, colon, sizes = part.rpartition(":")
        try:
            shape = [int(size) for size in sizes.split(",")]
        except ValueError:
            if "~" in sizes and gears:
                refuse("E10040", "the nodes must have -1 axes and cannot have '~'.")
            refuse("E10002", f"Value {text} for parameter --input_shape is invalid.")
        if not colon or name in shapes:
            refuse("E10002", f"Value {text} for parameter --input_shape is invalid.")
        if any(size == 0 or size < -1 for size in shape):
            refuse("E10011", f"Shape values must be positive integers: {part}.")
        shapes[name] = shape
    return shapes


def parse_gears(text, unknown, input_format):
    if input_format != "ND":
        refuse("E10001", "Value dynamic_dims is invalid. Reason: input_format must be ND.")
    try:
        gears = [tuple(int(size) for size in gear.split(",")) for gear in text.split(";")]
    except ValueError:
        refuse("E10001", f"Value {text} for parameter dynamic_dims is invalid.")
    lengths = {len(gear) for gear in gears}
    for is_wrong, code, words in (
        (not unknown, "E10040", "the nodes specified in --input_shape must have -1 axes."),
        (len(gears) < 2, "E10035", f"--dynamic_dims has {len(gears)} profiles, which is less than the minimum 2."),
        (len(gears) > MOST_GEARS, "E10036", f"--dynamic_dims has {len(gears)} profiles, more than {MOST_GEARS}."),
        (len(lengths) > 1, "E10037", "The profiles have inconsistent dimension counts."),
        (min(map(min, gears)) < 1, "E10038", "Dimension size is invalid. The value must be greater than 0."),
        (len(set(gears)) < len(gears), "E10039", "The --dynamic_dims argument has duplicate profiles."),
        (unknown > max(lengths), "E10045", "The number of -1 axes exceeds the dimension count per profile."),
        (unknown < max(lengths), "E10046", "The number of -1 axes does not match the dimension count per profile."),
    ):
        if is_wrong:
            refuse(code, words)
    return gears


def read_model(path):
    try:
        return onnx.load(path)
    except Exception as error:
        raise Refused(f"E10041: Failed to load the model from {path}. {error}") from error


def registered():
    table = {}
    for ranges, names in json.loads(TABLE.read_text()).items():
        opsets = set()
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            opsets.update(range(int(first), int(last or first) + 1))
        table.update(dict.fromkeys(names.split(), opsets))
    return table


def check_operators(model):
    table, opset = registered(), model.opset_import[0].version
    for node in model.graph.node:
        if node.op_type != "Constant" and opset not in table.get(node.op_type, ()):
            refuse(
                "EZ9010", f"No parser is registered for Op [{node.name}, optype [ai.onnx::{opset}::{node.op_type}]]."
            )


def check_inputs(model, shapes):
    if unknown := [name for name in shapes if name not in {value.name for value in model.graph.input}]:
        refuse("E10016", f"Opname {unknown[0]} specified in --input_shape is not found in the model.")
    if [value.name for value in model.graph.input] != list(shapes):
        refuse(
            "E10001", "Value for parameter --input_shape is invalid. Reason: inputs are missing or in another order."
        )
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if tensor.elem_type not in INPUT_TYPES:
            refuse("E10055", f"The operation is not supported. Reason: input {value.name} has type {tensor.elem_type}.")
        declared, given = list(tensor.shape.dim), shapes[value.name]
        fits = len(declared) == len(given) and all(
            dim.HasField("dim_param") or dim.dim_value == size for dim, size in zip(declared, given, strict=True)
        )
        if not fits:
            refuse("E10001", f"Value {given} for parameter --input_shape is invalid. Reason: {value.name} has others.")


def check_sizes(model, shapes):
    """No tensor but a constant may have a size of 0."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    for value in onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph.value_info:
        if any(dim.HasField("dim_value") and dim.dim_value == 0 for dim in value.type.tensor_type.shape.dim):
            refuse("E10055", f"The operation is not supported. Reason: {value.name} has a dimension of 0.")


def with_gear(shapes, gear):
    sizes = iter(gear)
    return {name: [next(sizes) if size == -1 else size for size in shape] for name, shape in shapes.items()}


def check_quantised(model, flags, unknown):
    if not any(entry.key == "amct" for entry in model.metadata_props):
        return False
    if unknown or flags.get("precision_mode") in NOT_QUANTISED or flags.get("op_select_implmode") == "high_precision":
        refuse("E10055", "The operation is not supported. Reason: a model quantised by AMCT has fixed sizes.")
    return True


def compile_model(flags):
    check_flags(flags)
    shapes = parse_shapes(flags.get("input_shape", ""), "dynamic_dims" in flags) if "input_shape" in flags else {}
    unknown = sum(size == -1 for shape in shapes.values() for size in shape)
    gears = []
    if "dynamic_dims" in flags:
        gears = parse_gears(flags["dynamic_dims"], unknown, flags.get("input_format", "NCHW"))
    model = read_model(flags["model"])
    check_operators(model)
    check_inputs(model, shapes)
    quantised = check_quantised(model, flags, unknown)
    # Shapes alone; weights would only make it slow.
    for gear in [gears[0], gears[-1]] if gears else [()]:
        check_sizes(model, with_gear(shapes, gear))
    about = {"shapes": shapes, "gears": gears, "soc": flags["soc_version"], "quantised": quantised}
    with zipfile.ZipFile(f"{flags['output']}.om", "w") as om:
        om.writestr("about.json", json.dumps(about))
        om.writestr("model.onnx", model.SerializeToString())


def main(arguments):
    print("ATC start working now, please wait for a moment.")
    try:
        compile_model(parse_flags(arguments))
    except Refused as error:
        print(f"ATC run failed, Please check the detail log, Try 'atc --help' for more information\n{error}")
        return 1
    print("ATC run success, welcome to the next use.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
