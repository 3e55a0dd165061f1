# SPDX-License-Identifier: Apache-2.0
"""Plain exports in the engines that people use today, with each engine's own defaults but for threads and precision."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.prepared import PHOTO_SIZE, WorkFolder
from benchmarks.subjects.points import CLICK, model_frame_points

Arrays = dict[str, NDArray[Any]]


class OnnxRuntimeGraph:
    """A graph in ONNX Runtime."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import onnxruntime

        assert precision == "fp32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self.engine = f"onnxruntime {onnxruntime.__version__}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, dict(inputs)), strict=True))


class OpenVinoGraph:
    """A graph in OpenVINO, one stream."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        # Its import reports itself to a server unless this package is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[precision]
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        self._request = compiled.create_infer_request()
        self._outputs = [output.get_any_name() for output in compiled.outputs]
        self.engine = f"openvino {openvino.__version__}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs by name; they are the engine's own memory and change with the next run."""
        self._request.infer(dict(inputs), share_inputs=True)
        return {name: self._request.get_tensor(name).data for name in self._outputs}


class MnnGraph:
    """A graph in MNN."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import MNN

        assert precision == "fp32"
        self._mnn = MNN
        # Normal is what MNN does by itself; on this kind of processor it computes in float32.
        runtime = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "normal", "numThread": threads},))
        self._inputs, self._names = _names_of(path.with_suffix(".onnx"))
        self._module = MNN.nn.load_module_from_file(
            str(path), self._inputs, self._names, runtime_manager=runtime, shape_mutable=False
        )
        self.engine = f"MNN {MNN.version()}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs by name."""
        expressions = self._mnn.expr
        given = []
        for name in self._inputs:
            array = np.ascontiguousarray(inputs[name])
            given.append(expressions.const(array, list(array.shape), expressions.NCHW, expressions.float))
        # Reading is what makes MNN compute, so it belongs to the run.
        return {
            name: np.array(out.read()) for name, out in zip(self._names, self._module.onForward(given), strict=True)
        }


def _names_of(path: Path) -> tuple[list[str], list[str]]:
    from segship.bundle.onnx_file import read_graph

    graph = read_graph(path)
    return [tensor.name for tensor in graph.inputs], [tensor.name for tensor in graph.outputs]


GRAPHS = {"onnxruntime": OnnxRuntimeGraph, "openvino": OpenVinoGraph, "mnn": MnnGraph}


def _open(work: WorkFolder, engine: str, graph: Path, precision: str, threads: int) -> Any:
    return GRAPHS[engine](work.mnn(graph) if engine == "mnn" else graph, precision, threads)


class Encoder:
    """The plain export of the image encoder on a prepared image."""

    def __init__(self, work: str, model: str, engine: str, precision: str, threads: int) -> None:
        folder = WorkFolder(Path(work), model)
        self._graph = _open(folder, engine, folder.plain_encoder(), precision, threads)
        self._inputs = {"image": np.load(folder.image())}
        self.described = {"engine": self._graph.engine, "precision": precision, "threads": threads}

    def call(self) -> None:
        """Encode."""
        self._outputs = self._graph.run(self._inputs)

    def answer(self) -> Arrays:
        """Return the embedding."""
        return {"image_embeddings": np.array(self._outputs["image_embeddings"])}

    def figures(self) -> dict[str, Any]:
        """There are no others."""
        return {}


class Decoder:
    """The plain export of the decoder, all objects in one call; the outputs are low-resolution masks."""

    def __init__(self, work: str, model: str, engine: str, precision: str, threads: int, objects: int) -> None:
        folder = WorkFolder(Path(work), model)
        self._graph = _open(folder, engine, folder.plain_decoder(), precision, threads)
        points = model_frame_points(objects, folder.config.image_size)
        self._inputs = {
            "image_embeddings": np.load(folder.embedding()),
            "point_coords": np.concatenate([points, np.zeros_like(points)], axis=1),
            "point_labels": np.tile(np.array([1, -1], np.float32), (objects, 1)),
        }
        self.described = {"engine": self._graph.engine, "precision": precision, "threads": threads}

    def call(self) -> None:
        """Decode all objects."""
        self._outputs = self._graph.run(self._inputs)

    def answer(self) -> Arrays:
        """Return what was decoded, of the three masks that the reference gives for a point."""
        return {name: np.array(self._outputs[name])[:, 1:] for name in ("iou_predictions", "low_res_masks")}

    def figures(self) -> dict[str, Any]:
        """There are no others."""
        return {}


class OfficialDecoder:
    """The reference's own ONNX decoder in ONNX Runtime, called once for each object, as its users must.

    The graph makes masks as large as it is told the image is, inside; `Click` thresholds them as well. With
    ``small_masks`` it is told the smallest image that its low-resolution masks suffice for, to show what of its time
    that takes.
    """

    def __init__(
        self, work: str, model: str, precision: str, threads: int, objects: int, small_masks: bool = False
    ) -> None:
        folder = WorkFolder(Path(work), model)
        self._graph = OnnxRuntimeGraph(folder.official_decoder(), precision, threads)
        width, height = PHOTO_SIZE
        if small_masks:
            scale = 4 * folder.config.embedding_size / max(PHOTO_SIZE)
            width, height = (round(side * scale) for side in PHOTO_SIZE)
        low_res = 4 * folder.config.embedding_size
        shared = {
            "image_embeddings": np.load(folder.embedding()),
            "point_labels": np.array([[1, -1]], np.float32),
            "mask_input": np.zeros((1, 1, low_res, low_res), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array([height, width], np.float32),
        }
        points = self._points(objects, folder.config.image_size)
        self._calls = [
            {**shared, "point_coords": np.concatenate([point[None], np.zeros((1, 1, 2), np.float32)], axis=1)}
            for point in points
        ]
        self.described = {"engine": self._graph.engine, "precision": precision, "threads": threads}

    def call(self) -> None:
        """Decode the objects one after the other."""
        self._outputs = [self._graph.run(inputs) for inputs in self._calls]

    def answer(self) -> Arrays:
        """Return what was decoded."""
        names = ("iou_predictions", "low_res_masks")
        return {name: np.concatenate([output[name] for output in self._outputs])[:, 1:] for name in names}

    def figures(self) -> dict[str, Any]:
        """There are no others."""
        return {}

    def _points(self, objects: int, image_size: int) -> NDArray[np.float32]:
        points: NDArray[np.float32] = model_frame_points(objects, image_size)
        return points


class Click(OfficialDecoder):
    """One click with the official decoder: masks of the image's size, and the threshold that its notebook takes."""

    def __init__(self, work: str, model: str, precision: str, threads: int) -> None:
        super().__init__(work, model, precision, threads, objects=1)

    def call(self) -> None:
        """Ask for the masks of a click."""
        super().call()
        self._masks = self._outputs[0]["masks"] > 0.0

    def answer(self) -> Arrays:
        """Return the three masks that the reference gives for a click."""
        return {"masks": self._masks[:, 1:], "iou_predictions": self._outputs[0]["iou_predictions"][:, 1:]}

    def _points(self, objects: int, image_size: int) -> NDArray[np.float32]:
        width, height = PHOTO_SIZE
        scale = image_size / max(PHOTO_SIZE)
        resized = np.array([int(width * scale + 0.5), int(height * scale + 0.5)])
        return np.array([[CLICK * resized]], np.float32)
