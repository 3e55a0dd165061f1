# SPDX-License-Identifier: Apache-2.0
"""Build the plans of this kit, for this GPU and this TensorRT (10 or 11): ``python build.py``. Needs tensorrt alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorrt as trt

KIT = Path(__file__).resolve().parent


def main() -> int:
    """Build a plan of every graph into plans/, and return the exit code."""
    document = json.loads((KIT / "kit.json").read_text())
    (KIT / "plans").mkdir(exist_ok=True)
    for name, graph in document["graphs"].items():
        builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
        # Precision is what stands in the graph; TensorRT 11 knows no other way.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
        if not parser.parse_from_file(str(KIT / graph["file"])):
            for index in range(parser.num_errors):
                print(f"{name}: {parser.get_error(index)}", file=sys.stderr)
            return 1
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        for shapes in graph["shapes"]:
            profile = builder.create_optimization_profile()
            for tensor, three in shapes.items():
                profile.set_shape(tensor, *three)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            print(f"{name}: TensorRT {trt.__version__} built no plan", file=sys.stderr)
            return 1
        (KIT / "plans" / f"{name}.plan").write_bytes(bytes(plan))
        print(f"plans/{name}.plan, TensorRT {trt.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
