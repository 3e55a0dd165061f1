# SPDX-License-Identifier: Apache-2.0
"""The files that sides work on: seeded checkpoints, a photograph, the peers' graphs, our bundles; each made once.

    python -m benchmarks.prepared WORK MODEL all [--renew]

makes them before anything is measured, which for vit_b takes minutes. Everything lies in a work folder and is used
again by the next run. The name of one of our bundles ends with a digest of the code that made it; the newest one is
taken, and ``--renew`` makes another where the code has changed since. Each file is made in a process of its own, so
that the one that starts the sides stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from segship.ship.families.sam.config import SamConfig

PHOTO_SIZE = (1800, 1200)
JPEG_QUALITY = 90
OPSET = 17
_ROOT = Path(__file__).parents[1]
OURS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
"""Engine and precision of our own sides."""

# What shapes the graphs of a bundle.
_SHAPING = (
    "spec.py",
    "bundle/manifest.py",
    *(f"ship/{part}" for part in ("families", "graph", "export.py", "loading.py", "options.py", "variants.py")),
)


@dataclass(frozen=True)
class WorkFolder:
    """A folder of such files for one model.

    Attributes
    ----------
    path
        The folder; made if it is not there.
    model
        ``vit_b``, ``vit_t`` or another architecture, or ``small``: one that runs in milliseconds, for trying out.
    """

    path: Path
    model: str

    @property
    def config(self) -> SamConfig:
        """Sizes of the model."""
        from segship.ship.families.sam.config import SAM_ARCHITECTURES

        if self.model != "small":
            return SAM_ARCHITECTURES[self.model]
        # The small model comes with torch, which the sides' processes must not hold unasked.
        from tests.oracle import SMALL_VIT

        return SMALL_VIT

    def photo(self) -> Path:
        """Return a JPEG of 1800 x 1200: the demo photograph enlarged."""
        return self._made("photo.jpg")

    def checkpoint(self) -> Path:
        """Return seeded random weights in the published layout."""
        return self._made(f"{self.model}.pth")

    def image(self) -> Path:
        """Return the photograph as the encoder's input, (1, 3, S, S) float32, ``.npy``."""
        return self._made(f"{self.model}-image.npy")

    def embedding(self) -> Path:
        """Return the photograph's embedding by our fp32 encoder in ONNX Runtime, (1, C, h, w) float32, ``.npy``."""
        self.bundle("onnxruntime")
        return self._made(f"{self.model}-embedding.npy")

    def plain_encoder(self) -> Path:
        """Return the reference's image encoder as `torch.onnx.export` writes it (vit_t: our plain module)."""
        self.checkpoint()
        return self._made(f"{self.model}-plain-encoder.onnx")

    def official_decoder(self) -> Path:
        """Return the decoder as the reference's scripts/export_onnx_model.py writes it."""
        self.checkpoint()
        return self._made(f"{self.model}-official-decoder.onnx")

    def plain_decoder(self) -> Path:
        """Return the reference's decoder with an axis for objects, low-resolution masks only."""
        self.checkpoint()
        return self._made(f"{self.model}-plain-decoder.onnx")

    def mnn(self, graph: Path) -> Path:
        """Return an ONNX graph converted to MNN."""
        return self._made(f"{graph.stem}.mnn")

    def bundle(self, target: str) -> Path:
        """Return our newest bundle for a target; one is made if there is none."""
        found = sorted(self.path.glob(f"{self.model}-{target}-*"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else self.renewed_bundle(target)

    def renewed_bundle(self, target: str) -> Path:
        """Return our bundle for a target as the present code makes it."""
        self.checkpoint()
        return self._made(f"{self.model}-{target}-{digest_of_code()}")

    def first_load(self, engine: str, precision: str) -> Path:
        """Return what the first load of our bundle took, JSON; what an engine compiles then is kept for the next."""
        made_by = self.bundle(engine).name.rsplit("-", 1)[1]
        self.photo()
        return self._made(f"{self.model}-first-{engine}-{precision}-{made_by}.json")

    def need(self, what: str) -> None:
        """Make sure that files are there: those of a method, or ``ours:ENGINE:PRECISION``, or ``mnn:METHOD``."""
        kind, _, detail = what.partition(":")
        if kind == "ours":
            engine, precision = detail.split(":")
            self.first_load(engine, precision)
        elif kind == "mnn":
            self.mnn(getattr(self, detail)())
        else:
            getattr(self, kind)()

    def _made(self, name: str) -> Path:
        target = self.path / name
        if not target.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            print(f"making {name}", flush=True)
            command = [sys.executable, "-m", "benchmarks.prepared", str(self.path.resolve()), self.model, name]
            subprocess.run(command, check=True, cwd=_ROOT, stdout=sys.stderr, env=side_environment(self.path))
        return target


def side_environment(work: Path) -> dict[str, str]:
    """Return the environment of processes that work in a folder: what segship keeps between runs lies there too."""
    return {**os.environ, "SEGSHIP_CACHE": str(work.resolve() / "cache")}


def digest_of_code() -> str:
    """Return a digest of the code that shapes our graphs."""
    digest = hashlib.sha256()
    for part in _SHAPING:
        path = _ROOT / "segship" / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def make(folder: WorkFolder, name: str) -> None:
    """Make one file; an unfinished one never has the right name."""
    target = folder.path / name
    # The suffix stays, since some writers look at it.
    unfinished = folder.path / f"unfinished-{os.getpid()}-{name}"
    match name.removeprefix(f"{folder.model}-"):
        case "photo.jpg":
            make_photo(unfinished)
        case "image.npy":
            np.save(unfinished, _prepared_photo(folder))
        case "embedding.npy":
            _make_embedding(folder, unfinished)
        case "plain-encoder.onnx":
            _make_plain_encoder(folder, unfinished)
        case "official-decoder.onnx":
            _make_official_decoder(folder, unfinished)
        case "plain-decoder.onnx":
            _make_plain_decoder(folder, unfinished)
        case _ if name.endswith(".pth"):
            from benchmarks.seeded_checkpoint import write_checkpoint

            write_checkpoint(folder.config, unfinished)
        case _ if name.endswith(".mnn"):
            _convert_to_mnn(folder.path / f"{Path(name).stem}.onnx", unfinished)
        case rest if rest.startswith("first-"):
            _load_first(folder, *rest.split("-")[1:3], unfinished)
        case rest:
            _export_bundle(folder, rest.split("-")[0], unfinished)
    unfinished.rename(target)


def make_photo(path: Path) -> None:
    """Write the demo photograph, enlarged, as a JPEG."""
    from PIL import Image

    from segship import demo_photograph

    Image.open(demo_photograph()).resize(PHOTO_SIZE, Image.Resampling.LANCZOS).save(path, quality=JPEG_QUALITY)


def _prepared_photo(folder: WorkFolder) -> Any:
    from segship.images import read_image
    from segship.promptable.transforms import Preprocessing, prepare_image

    config = folder.config
    settings = Preprocessing(config.image_size, config.pixel_mean, config.pixel_std)
    return prepare_image(read_image(folder.photo()).pixels, settings)


def _make_embedding(folder: WorkFolder, path: Path) -> None:
    import segship

    predictor = segship.load(folder.bundle("onnxruntime"), backend="onnxruntime")
    np.save(path, predictor.encode(folder.photo()).image_embeddings)


def _make_plain_encoder(folder: WorkFolder, path: Path) -> None:
    import torch

    from benchmarks.subjects.reference import plain_encoder

    side = folder.config.image_size
    with torch.inference_mode(), _quiet():
        torch.onnx.export(
            plain_encoder(folder.path, folder.model),
            (torch.zeros(1, 3, side, side),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["image_embeddings"],
        )


def _make_official_decoder(folder: WorkFolder, path: Path) -> None:
    import torch

    from benchmarks.subjects.reference import build_model

    model = build_model(folder.path, folder.model)
    from segment_anything.utils.onnx import SamOnnxModel

    grid, channels = folder.config.embedding_size, folder.config.embedding_channels
    # Sizes of the examples and the settings are those of the script.
    examples = {
        "image_embeddings": torch.randn(1, channels, grid, grid),
        "point_coords": torch.randint(0, 1024, (1, 5, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * grid, 4 * grid),
        "has_mask_input": torch.tensor([1.0]),
        "orig_im_size": torch.tensor([1500.0, 2250.0]),
    }
    with _quiet():
        torch.onnx.export(
            SamOnnxModel(model, return_single_mask=False),
            tuple(examples.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=True,
            input_names=list(examples),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
        )


def _make_plain_decoder(folder: WorkFolder, path: Path) -> None:
    import torch

    from benchmarks.subjects.reference import BatchedDecoder, build_model

    grid, channels = folder.config.embedding_size, folder.config.embedding_channels
    names = ("image_embeddings", "point_coords", "point_labels")
    with torch.inference_mode(), _quiet():
        torch.onnx.export(
            BatchedDecoder(build_model(folder.path, folder.model)),
            (torch.randn(1, channels, grid, grid), torch.zeros(3, 2, 2), torch.tensor([[1.0, -1.0]] * 3)),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["iou_predictions", "low_res_masks"],
            dynamic_axes={name: {0: "objects"} for name in (*names[1:], "iou_predictions", "low_res_masks")},
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the tracer's warnings about sizes that become constants, which is what the reference's script does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _convert_to_mnn(graph: Path, path: Path) -> None:
    # The converter's native entry. The command `mnnconvert` of the same package installs another package and asks a
    # server for credentials; nothing of it is imported here.
    import _tools

    arguments = ["-f", "ONNX", "--modelFile", str(graph), "--MNNModel", str(path), "--bizCode", "segship"]
    _tools.mnnconvert(["mnnconvert", *arguments])
    if not path.exists():
        raise SystemExit(f"MNN did not convert {graph.name}")


def _load_first(folder: WorkFolder, engine: str, precision: str, path: Path) -> None:
    """Load and encode once, and write down what it took, compiling included."""
    import segship
    from segship.bench.fresh import peak_resident_bytes

    started = time.perf_counter()
    predictor = segship.load(folder.bundle(engine), backend=engine, precision=precision)
    load_s = time.perf_counter() - started
    predictor.encode(folder.photo())
    figures = {"first_load_s": round(load_s, 2), "first_load_peak_mb": round(peak_resident_bytes() / 1e6, 1)}
    path.write_text(json.dumps(figures), encoding="utf-8")


def _export_bundle(folder: WorkFolder, target: str, path: Path) -> None:
    from segship.ship.export import export_bundle
    from segship.ship.options import ExportOptions

    export_bundle(folder.checkpoint(), path, ExportOptions(target=target, measure=False))


def make_all(folder: WorkFolder, *, renew: bool) -> None:
    """Make every file of a model that any comparison needs."""
    targets = ("onnxruntime", "openvino")
    for target in targets:
        if renew:
            folder.renewed_bundle(target)
    needs = ["photo", "image", "plain_encoder", "mnn:plain_encoder", "embedding"]
    if folder.model != "vit_t":
        needs += ["official_decoder", "plain_decoder", "mnn:plain_decoder"]
    needs += [f"ours:{engine}:{precision}" for engine, precision in OURS]
    for what in needs:
        folder.need(what)
    print(f"all files of {folder.model} are in {folder.path}")


if __name__ == "__main__":
    if sys.argv[3] == "all":
        make_all(WorkFolder(Path(sys.argv[1]), sys.argv[2]), renew="--renew" in sys.argv[4:])
    else:
        make(WorkFolder(Path(sys.argv[1]), sys.argv[2]), sys.argv[3])
