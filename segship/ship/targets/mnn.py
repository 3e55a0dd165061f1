# SPDX-License-Identifier: Apache-2.0
"""Files for MNN: ``NAME.encoder.mnn``, from ``image`` to ``image_embeddings``, and ``NAME.decoder.mnn``.

The decoder is the official one; names and meaning of the tensors are those that scripts written for MNN's SAM expect.
What was converted runs here, so it is held against the bundle in ONNX Runtime: exactly, and as MNN runs it by itself,
which shortens convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.backends import mnn
from segship.bundle import Bundle
from segship.bundle.evidence import EXACT, Bar, require_passed
from segship.promptable.task import EXACT_BAR, REDUCED_BAR
from segship.ship.official import (
    Engine,
    ObjectCase,
    PictureCase,
    compare,
    object_cases,
    official_decoder,
    official_decoder_spec,
    own_manifest,
)
from segship.ship.targets import ConvertOptions, Report
from segship.ship.weights import tool_versions
from segship.spec import SamGeometry, image_encoder_spec

FLAGS: dict[str, tuple[str, ...]] = {"fp32": (), "fp16": ("--fp16",), "int8": ("--weightQuantBits", "8")}
"""Kind of weights -> what the converter is told. All are computed with in float32; int8 is symmetric, since with other
forms single masks are lost."""
BARS: dict[str, Bar] = {"fp32": EXACT_BAR, "fp16": REDUCED_BAR, "int8": REDUCED_BAR}


def write(source: Bundle, folder: Path, options: ConvertOptions, report: Report) -> dict[str, Any]:
    """Write both files and return what is said of them; see `segship.ship.targets`."""
    manifest = own_manifest(source)
    weights, single = options.weights or EXACT, bool(options.single_mask)
    decoder = official_decoder(source, single_mask=single)
    paths = {part: folder / f"{manifest.architecture}.{part}.mnn" for part in ("encoder", "decoder")}
    encoder = source.verified(manifest.artifact("image_encoder"))
    mnn.convert_graph(encoder, paths["encoder"], "image_encoder", FLAGS[weights])
    mnn.convert_graph(decoder.SerializeToString(), paths["decoder"], "decoder", FLAGS[weights])
    report("converted", [])
    pictures = object_cases(source, single_mask=single)
    rows = []
    ways = {f"mnn {weights}": (True, BARS[weights]), f"mnn {weights}, convolutions shortened": (False, REDUCED_BAR)}
    for step, (exact, bar) in ways.items():
        with ExitStack() as stack:
            engine = _engine(paths, manifest.geometry, single, exact, stack)
            found = compare(step, pictures, engine, bar)
        report(step, found)
        require_passed(found)
        rows += found
    specs = {
        "encoder": image_encoder_spec(manifest.geometry),
        "decoder": official_decoder_spec(manifest.geometry, single),
    }
    return {
        "engine": {"name": "mnn", "version": mnn.version()},
        "ran": {"engine": f"mnn {mnn.version()}", "own": True},
        "flags": [*mnn.EXACT_FLAGS, *FLAGS[weights]],
        "weights": weights,
        "single_mask": single,
        "graphs": {paths[part].name: asdict(spec) for part, spec in specs.items()},
        "tools": tool_versions(),
        "comparison": {
            "bars": {step: dict(bar) for step, (_, bar) in ways.items()},
            "rows": [asdict(row) for row in rows],
        },
    }


def _engine(paths: Mapping[str, Path], geometry: SamGeometry, single: bool, exact: bool, stack: ExitStack) -> Engine:
    network = mnn.load_file(paths["encoder"], "encoder")
    encoder = stack.enter_context(mnn.Session(network, image_encoder_spec(geometry), exact=exact))
    decoder = mnn.open_module(paths["decoder"], official_decoder_spec(geometry, single))

    def decode(embeddings: NDArray[Any], one: ObjectCase, picture: PictureCase) -> Mapping[str, NDArray[Any]]:
        size = np.array(picture.size_hw, np.float32)
        return decoder({"image_embeddings": embeddings, **one.prompts, "orig_im_size": size})

    return Engine(lambda picture: encoder.run({"image": picture.image})["image_embeddings"], decode)
