# SPDX-License-Identifier: Apache-2.0
"""Mask decoders side by side, at one point for each of 1, 8 and 64 objects of one image that was encoded before.

    python -m benchmarks.decoders [--model vit_b] [--objects 1 8 64] [--work WORK] [--rounds 5] [--only PART]

The official ONNX decoder takes one object a call, so it is called as often as there are objects. It makes masks as
large as the image inside, while all other sides stop at the decoder's own masks; a second row, where it is told a small
image, shows what that costs (`benchmarks.click` compares whole clicks). The plain exports are the reference's modules
with an axis for objects.
"""

from __future__ import annotations

from benchmarks.comparison import Comparison, Target, common_parser, run_comparison
from benchmarks.sides import SidePlan

# Beyond these, a call takes seconds or gigabytes and shows nothing new.
MOST_OBJECTS_IN_MNN = 8
ROUNDS_OF_MANY = 3
MANY = 32
BLOCK = 5


def plans(work: str, model: str, objects: int) -> list[SidePlan]:
    """Return the sides for a number of objects."""
    shared = {"work": work, "model": model, "objects": objects}
    rounds = ROUNDS_OF_MANY if objects >= MANY else None

    needs = {
        "benchmarks.subjects.reference:Decoder": ("checkpoint", "embedding"),
        "benchmarks.subjects.engines:OfficialDecoder": ("official_decoder", "embedding"),
        "benchmarks.subjects.engines:Decoder": ("plain_decoder", "embedding"),
        "benchmarks.subjects.ours:Decoder": ("photo",),
    }
    reference, official, plain, ours = needs

    def side(name: str, subject: str, **parameters: str | bool) -> SidePlan:
        engine = str(parameters.get("engine", ""))
        needed = needs[subject]
        if subject == ours:
            needed = (f"ours:{engine}:{parameters['precision']}", *needed)
        elif engine == "mnn":
            needed = ("mnn:plain_decoder", *needed)
        block = 1 if objects >= MANY else None
        return SidePlan(f"{name}, {objects} objects", subject, {**shared, **parameters}, needed, rounds, block)

    sides = [
        side("reference, torch fp32", reference, precision="fp32"),
        side("reference, torch bf16", reference, precision="bf16"),
        side("official ONNX, onnxruntime fp32", official, precision="fp32"),
        side("official ONNX told a small image, onnxruntime fp32", official, precision="fp32", small_masks=True),
        side("plain export, onnxruntime fp32", plain, engine="onnxruntime", precision="fp32"),
        side("plain export, openvino fp32", plain, engine="openvino", precision="fp32"),
        side("plain export, openvino bf16", plain, engine="openvino", precision="bf16"),
        side("segship, onnxruntime fp32", ours, engine="onnxruntime", precision="fp32"),
        side("segship, openvino fp32", ours, engine="openvino", precision="fp32"),
        side("segship, openvino bf16", ours, engine="openvino", precision="bf16"),
    ]
    if objects <= MOST_OBJECTS_IN_MNN:
        sides.append(side("plain export, mnn fp32", plain, engine="mnn", precision="fp32"))
    return sides


def targets(objects: int) -> list[Target]:
    """Return what must hold."""
    if objects != 8:
        return []
    officials = [f"official ONNX{told}, onnxruntime fp32, 8 objects" for told in ("", " told a small image")]
    return [
        *(Target("segship, onnxruntime fp32, 8 objects", official, 3.0) for official in officials),
        *(Target("segship, openvino bf16, 8 objects", official, 5.0, aim=8.0) for official in officials),
    ]


def main() -> None:
    """Measure, print and save."""
    parser = common_parser(__doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    comparison = Comparison(
        name=f"decoders_{arguments.model}",
        what=f"{arguments.model} mask decoder, one point an object",
        groups=[plans(arguments.work, arguments.model, objects) for objects in arguments.objects],
        targets=[target for objects in arguments.objects for target in targets(objects)],
        rounds=arguments.rounds,
        block=BLOCK,
        notes=["the official decoder also makes masks of the size it is told; the others stop at low-resolution masks"],
    )
    run_comparison(comparison, arguments)


if __name__ == "__main__":
    main()
