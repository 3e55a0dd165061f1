# SPDX-License-Identifier: Apache-2.0
"""The published SAM and MobileSAM checkpoints: where each lies and what its bytes must be.

Sizes and digests agree across several independent public downloaders; the publishers give no checksum file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from segship.errors import BackendUnavailable, BundleError, InputError
from segship.files import cache_folder
from segship.promptable.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segship.backends.choice import BackendChoice
    from segship.backends.session import Session, SessionOptions
    from segship.bundle import Bundle
    from segship.bundle.manifest import Manifest
    from segship.semantic.predictor import SemanticPredictor

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
"""Endings of the weight files that can be read."""

_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_SOURCE = "https://github.com/facebookresearch/segment-anything"
_MOBILE_SAM_SOURCE = "https://github.com/ChaoningZhang/MobileSAM"


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """One published weight file.

    Attributes
    ----------
    architecture
        Its name in `segship.ship.families.sam.config.SAM_ARCHITECTURES`.
    file
        The published file name.
    url
        Where its publisher serves it.
    bytes
        Its exact size.
    sha256
        Its digest, 64 hexadecimal digits; the only one that is checked.
    md5
        Its MD5, whose first digits stand in SAM's file names.
    licence
        SPDX name of the weights' licence.
    source
        The project that published it.
    """

    architecture: str
    file: str
    url: str
    bytes: int
    sha256: str
    md5: str | None
    licence: str
    source: str


KNOWN_CHECKPOINTS: dict[str, KnownCheckpoint] = {
    "vit_b": KnownCheckpoint(
        architecture="vit_b",
        file="sam_vit_b_01ec64.pth",
        url=f"{_SAM_URL}/sam_vit_b_01ec64.pth",
        bytes=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        md5="01ec64d29a2fca3f0661936605ae66f8",
        licence="Apache-2.0",
        source=_SAM_SOURCE,
    ),
    "vit_l": KnownCheckpoint(
        architecture="vit_l",
        file="sam_vit_l_0b3195.pth",
        url=f"{_SAM_URL}/sam_vit_l_0b3195.pth",
        bytes=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        md5="0b3195507c641ddb6910d2bb5adee89c",
        licence="Apache-2.0",
        source=_SAM_SOURCE,
    ),
    "vit_h": KnownCheckpoint(
        architecture="vit_h",
        file="sam_vit_h_4b8939.pth",
        url=f"{_SAM_URL}/sam_vit_h_4b8939.pth",
        bytes=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        md5="4b8939a88964f0f4ff5f5b2642c598a6",
        licence="Apache-2.0",
        source=_SAM_SOURCE,
    ),
    "vit_t": KnownCheckpoint(
        architecture="vit_t",
        file="mobile_sam.pt",
        url=f"{_MOBILE_SAM_SOURCE}/raw/master/weights/mobile_sam.pt",
        bytes=40_728_226,
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        md5="f3c0d8cda613564d499310dab6c812cd",
        licence="Apache-2.0",
        source=_MOBILE_SAM_SOURCE,
    ),
}

_BY_SHA256 = {known.sha256: known for known in KNOWN_CHECKPOINTS.values()}


def identify(sha256: str) -> KnownCheckpoint | None:
    """Return the published checkpoint of that digest, or None for any other file."""
    return _BY_SHA256.get(sha256.lower())


SemanticName = Literal[
    "semask_t_cityscapes",
    "semask_s_cityscapes",
    "semask_b_cityscapes",
    "semask_l_cityscapes",
    "semask_t_ade20k",
    "semask_s_ade20k",
    "semask_b_ade20k",
    "semask_l_ade20k",
    "semask_t_cocostuff",
    "semask_s_cocostuff",
    "semask_b_cocostuff",
    "semask_l_cocostuff",
]
"""The names, for type checkers."""

SOURCE = "https://github.com/Picsart-AI-Research/SeMask-Segmentation"
SEMASK_LICENCE = "Apache-2.0"
CLASS_COUNTS = {"cityscapes": (19, 19), "ade20k": (150, 150), "cocostuff": (171, 150)}
"""Data set -> classes of the head, and of the semantic layers; those of COCO-Stuff were left at ADE20K's number."""


@dataclass(frozen=True, slots=True)
class SemanticCheckpoint:
    """One published weight file of a semantic model.

    Attributes
    ----------
    name
        What `segship.load`, ``segship fetch`` and ``segship export`` take.
    architecture
        Its name in `segship.ship.families.semask.config.SEMASK_ARCHITECTURES`.
    data_set
        What it was trained and scored on.
    drive_id
        Its number on Google Drive.
    miou, miou_multi_scale
        Published mIoU in percent: of whole pictures at one scale; at six scales and mirrored.
    bytes
        Size of its weights by arithmetic; files with a training state are larger.
    """

    name: str
    architecture: str
    data_set: str
    drive_id: str
    miou: float
    miou_multi_scale: float
    bytes: int

    @property
    def file(self) -> str:
        """The name that the file has in the cache folder."""
        return f"{self.name}.pth"

    @property
    def url(self) -> str:
        """The page from which a browser downloads it."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"

    @property
    def classes(self) -> int:
        """Classes of the head."""
        return CLASS_COUNTS[self.data_set][0]

    @property
    def semantic_classes(self) -> int:
        """Classes of the semantic layers."""
        return CLASS_COUNTS[self.data_set][1]


_ROWS = (
    ("t", "cityscapes", "1_JBOJQSUVes-CWs075XyPnuNfG5psELr", 74.92, 76.56),
    ("s", "cityscapes", "1WyT207dZmdwETBUR6aeiqOVfQdUIV_fN", 77.13, 79.14),
    ("b", "cityscapes", "1-LzVB6XzD7IR0zzE5qmE0EM4ZTv429b4", 77.70, 79.73),
    ("l", "cityscapes", "1R9DDCmucQ_a_6ZkMGufEZCzJ-_qVMqCB", 78.53, 80.39),
    ("t", "ade20k", "1L0daUHWQGNGCXHF-cKWEauPSyBV0GLOR", 42.06, 43.36),
    ("s", "ade20k", "1QhDG4SyGFtWL5kP9BbBoyPqTuFu7fH_y", 45.92, 47.63),
    ("b", "ade20k", "1PXCEhrrUy5TJC4dUp7YDQvaapnMzGT6C", 49.35, 50.98),
    ("l", "ade20k", "1u5flfAQCiQJbMZbZPIlGUGTYBz9Ca7rE", 51.89, 53.52),
    ("t", "cocostuff", "1qhXsJ8H64JPI_DW7CNzhxpHSEG2sKaIl", 37.53, 38.88),
    ("s", "cocostuff", "1ddXSMQu5ClkbLNMyQdyT0ATaOr86vIkL", 40.72, 42.27),
    ("b", "cocostuff", "1pGWI7U9bZJoe4ZaDx7ktWELx-uVN7rL0", 44.63, 46.30),
    ("l", "cocostuff", "1F6B9x9pX-SYEth7hdtxeNUeQ3XncOH7G", 47.47, 48.54),
)
_BYTES = {
    "cityscapes": {"t": 137_000_000, "s": 223_000_000, "b": 388_000_000, "l": 844_000_000},
    "ade20k": {"t": 139_000_000, "s": 225_000_000, "b": 390_000_000, "l": 847_000_000},
}

SEMANTIC_CHECKPOINTS: dict[str, SemanticCheckpoint] = {
    f"semask_{size}_{data_set}": SemanticCheckpoint(
        name=f"semask_{size}_{data_set}",
        architecture=f"semask_{size}",
        data_set=data_set,
        drive_id=drive_id,
        miou=miou,
        miou_multi_scale=multi_scale,
        # 21 classes more in the head are less than 0.1 MB.
        bytes=_BYTES["cityscapes" if data_set == "cityscapes" else "ade20k"][size],
    )
    for size, data_set, drive_id, miou, multi_scale in _ROWS
}


EMBEDDED_MODELS = ("tiny",)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that has a name.

    Attributes
    ----------
    name
        What `load`, ``segship fetch`` and ``segship export`` take.
    status
        ``in the package``, ``bundle ready``, ``checkpoint fetched``, ``not fetched``, or ``get by hand`` for a file
        that is not here and that its publisher lets nobody but browsers download.
    bytes
        Size of the bundle or checkpoint.
    licence
        SPDX name of the weights' licence.
    location
        Where it lies on this machine, or the address it is fetched from.
    published
        What its publisher measured: mIoU in percent at one scale, and at six scales and mirrored; empty where there is
        nothing to say.
    """

    name: str
    status: Literal["in the package", "bundle ready", "checkpoint fetched", "not fetched", "get by hand"]
    bytes: int
    licence: str
    location: str
    published: str = ""


@overload
def load(  # type: ignore[overload-overlap]  # The names of semantic models are strings, too.
    model: SemanticName,
    *,
    backend: str = ...,
    threads: int | None = ...,
    device: str = ...,
    precision: str = ...,
    streams: int = ...,
    compile: bool = ...,
) -> SemanticPredictor: ...


@overload
def load(
    model: str | Path = ...,
    *,
    backend: str = ...,
    threads: int | None = ...,
    device: str = ...,
    precision: str = ...,
    streams: int = ...,
    compile: bool = ...,
) -> Predictor: ...


def load(
    model: str | Path = "tiny",
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    streams: int = 1,
    compile: bool = False,
) -> Predictor | SemanticPredictor:
    """Make a predictor.

    What is in a bundle or checkpoint decides its class: a promptable model gives a `Predictor`, a semantic one a
    `segship.SemanticPredictor`. Type checkers know it by the names of published models, and take a path for promptable;
    `segship.load_semantic` says the other.

    Parameters
    ----------
    model
        ``tiny``, the model inside the package; the path of a bundle; the path of a checkpoint (backend ``torch``); or
        a known name such as ``vit_b`` or ``semask_s_cityscapes``, whose bundle lies in the cache folder.
    backend
        ``onnxruntime`` and ``openvino`` run bundles, ``torch`` runs checkpoints. ``auto`` takes the fastest that the
        bundle's manifest has found right (`segship.backends.choice`), ONNX Runtime where nothing was measured.
    threads
        Threads of the runtime; all usable cores when left out.
    device
        ``cpu`` or ``cuda``; a device that is not there is an error, never a silent fall back.
    precision
        ``fp32``; ``bf16`` and ``fp16`` with ``openvino`` where the chip has them; ``bf16`` with ``torch``. ``auto``
        takes another than ``fp32`` only where it was measured on this processor, is faster and passed its bar.
    streams
        Calls that are worked on side by side, for programs with several callers; ``openvino`` alone has more than one.
    compile
        With ``torch`` on CUDA, compile the modules and run the decoder as CUDA graphs.

    Raises
    ------
    BundleError
        When there is no such model, or its bundle is incomplete or was changed.
    BackendUnavailable
        When the backend or the device is not here.

    Examples
    --------
    >>> import segship
    >>> predictor = segship.load("tiny", threads=1)
    >>> predictor.precision
    'fp32'
    """
    return open_model(
        model, backend=backend, threads=threads, device=device, precision=precision, streams=streams, compile=compile
    )


def load_promptable(
    model: str | Path = "tiny",
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    streams: int = 1,
    compile: bool = False,
) -> Predictor:
    """Make a predictor of a promptable model; arguments and errors are those of `load`.

    Raises
    ------
    InputError
        ``other_family`` when it is a semantic model.
    """
    opened = open_model(
        model, backend=backend, threads=threads, device=device, precision=precision, streams=streams, compile=compile
    )
    if not isinstance(opened, Predictor):
        opened.close()
        message = (
            f"{model} is a semantic model ({opened.manifest.architecture}), which takes no prompts; use "
            "`segship semantic`, or segship.load_semantic(...).segment(image)"
        )
        raise InputError(message, code="other_family")
    return opened


def open_model(
    model: str | Path,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    streams: int = 1,
    compile: bool = False,
) -> Predictor | SemanticPredictor:
    """Open a model of either family; arguments and errors are those of `load`."""
    from segship.backends.session import SessionOptions

    options = SessionOptions(threads=threads, device=device, precision=precision, streams=streams, compile=compile)
    path = find_model(model)
    return _load_bundle(path, backend, options) if path.is_dir() else _load_checkpoint(path, backend, options)


def find_model(model: str | Path) -> Path:
    """Return the bundle folder or checkpoint file that a name or path means.

    Raises
    ------
    BundleError
        When there is neither.
    """
    path = Path(model)
    if path.exists():
        return path
    if model in EMBEDDED_MODELS:
        return embedded_bundle(str(model))
    if model in KNOWN_CHECKPOINTS:
        bundle = bundle_folder(str(model))
        if bundle.is_dir():
            return bundle
        raise BundleError(
            f"there is no bundle of {model!r} on this machine yet; make one with `segship fetch {model}` and "
            f"`segship export {model}` (it will be written to {bundle})",
            code="no_bundle",
        )
    if model in SEMANTIC_CHECKPOINTS:
        bundle = bundle_folder(str(model))
        if bundle.is_dir():
            return bundle
        raise BundleError(
            f"there is no bundle of {model!r} on this machine yet; `segship fetch {model}` says how to get its "
            f"checkpoint, and `segship export {model}` makes the bundle (it will be written to {bundle})",
            code="no_bundle",
        )
    names = ", ".join((*EMBEDDED_MODELS, *KNOWN_CHECKPOINTS, *SEMANTIC_CHECKPOINTS))
    raise BundleError(f"no model {str(model)!r}: it is no path here and no known name ({names})", code="unknown_model")


def embedded_bundle(name: str) -> Path:
    """Return the folder of a bundle inside the package."""
    return Path(__file__).parent / "bundles" / name


def bundle_folder(name: str) -> Path:
    """Return the folder in the cache where the bundle of a known model lies, or would."""
    return cache_folder() / "bundles" / name


def list_models() -> tuple[ModelInfo, ...]:
    """Return every named model and where it stands on this machine."""
    embedded = (
        ModelInfo(
            name, "in the package", _folder_bytes(embedded_bundle(name)), "Apache-2.0", str(embedded_bundle(name))
        )
        for name in EMBEDDED_MODELS
    )
    return (
        *embedded,
        *(_known_model(name) for name in KNOWN_CHECKPOINTS),
        *(_semantic_model(name) for name in SEMANTIC_CHECKPOINTS),
    )


def _known_model(name: str) -> ModelInfo:
    from segship.fetch import checkpoint_path

    known, bundle, checkpoint = KNOWN_CHECKPOINTS[name], bundle_folder(name), checkpoint_path(name)
    if bundle.is_dir():
        return ModelInfo(name, "bundle ready", _folder_bytes(bundle), known.licence, str(bundle))
    if checkpoint.is_file():
        return ModelInfo(name, "checkpoint fetched", checkpoint.stat().st_size, known.licence, str(checkpoint))
    return ModelInfo(name, "not fetched", known.bytes, known.licence, known.url)


def _semantic_model(name: str) -> ModelInfo:
    from segship.fetch import checkpoint_path

    known, bundle, checkpoint = SEMANTIC_CHECKPOINTS[name], bundle_folder(name), checkpoint_path(name)
    published = f"mIoU {known.miou:.2f} / {known.miou_multi_scale:.2f}"
    if bundle.is_dir():
        return ModelInfo(name, "bundle ready", _folder_bytes(bundle), SEMASK_LICENCE, str(bundle), published)
    if checkpoint.is_file():
        size = checkpoint.stat().st_size
        return ModelInfo(name, "checkpoint fetched", size, SEMASK_LICENCE, str(checkpoint), published)
    return ModelInfo(name, "get by hand", known.bytes, SEMASK_LICENCE, known.url, published)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _load_bundle(path: Path, backend: str, options: SessionOptions) -> Predictor | SemanticPredictor:
    from segship.backends.choice import choose_backend
    from segship.backends.opening import open_sessions
    from segship.bundle import Bundle

    # Opening checks the manifest and the list of files; each graph's bytes are checked as it is loaded.
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    choice = choose_backend(
        manifest.checks,
        backend=backend,
        precision=options.precision,
        device=options.device,
        streams=options.streams,
    )
    sessions = open_sessions(bundle, choice.backend, replace(options, precision=choice.precision))
    return _predictor(manifest, sessions, graph_digest(bundle), choice, options.threads)


def _predictor(
    manifest: Manifest, sessions: Mapping[str, Session], digest: str, choice: BackendChoice, threads: int | None
) -> Predictor | SemanticPredictor:
    from segship.bundle.manifest import task_module

    ran = {"backend": choice.backend, "precision": choice.precision, "backend_reason": choice.reason}
    predictor: Predictor | SemanticPredictor = task_module(manifest.task).open(
        manifest, sessions, digest=digest, threads=threads, **ran
    )
    return predictor


def graph_digest(bundle: Bundle) -> str:
    """Return the digest of a bundle's first graph, weights included: what ties embeddings to their encoder."""
    return bundle.manifest.artifact(bundle.manifest.first_graph).digest


def _load_checkpoint(path: Path, backend: str, options: SessionOptions) -> Predictor | SemanticPredictor:
    from segship.backends import load_backend
    from segship.backends.choice import BackendChoice

    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise BundleError(
            f"{path} is a file; a model is a bundle folder or a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})",
            code="unknown_model",
        )
    if backend not in ("auto", "torch"):
        raise BackendUnavailable(
            f"{path} is a checkpoint and the backend {backend!r} runs bundles; export it first "
            f"(`segship export {path} -o BUNDLE`), or use --backend torch",
            code="not_a_bundle",
        )
    reason = "it was asked for" if backend == "torch" else "checkpoints run in torch alone"
    if options.precision == "auto":
        # A checkpoint has no manifest that could have measured another one.
        options = replace(options, precision="fp32")
    load_backend("torch")
    # By name, so that the use road has no import of the ship road.
    opened = import_module("segship.backends.torch").open_checkpoint(path, options)
    choice = BackendChoice("torch", options.precision, reason)
    return _predictor(opened.manifest, opened.sessions, opened.encoder_sha256, choice, options.threads)
