# SPDX-License-Identifier: Apache-2.0
"""Names of models, where each of them lies on this machine, and `load`, which makes a predictor of one.

`open_model` opens models of both families. `load` is the same with the types of what it most often opens;
`load_promptable` refuses the other family where only prompts make sense.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from segship.cache import cache_folder
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.known import (
    CHECKPOINT_SUFFIXES,
    KNOWN_CHECKPOINTS,
    SEMANTIC_CHECKPOINTS,
    SEMASK_LICENCE,
    SemanticName,
)
from segship.predictor import Predictor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segship.backend_choice import BackendChoice
    from segship.backends.session import Session, SessionOptions
    from segship.bundle import Bundle
    from segship.bundle.manifest import Manifest
    from segship.semantic.predictor import SemanticPredictor

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
        bundle's manifest has found right (`segship.backend_choice`), ONNX Runtime where nothing was measured.
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
    from segship.backend_choice import choose_backend
    from segship.backends.opening import open_sessions
    from segship.bundle import Bundle

    # Opening checks the manifest and the list of files; each graph's bytes are checked as it is loaded.
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if manifest.precision != "fp32" and options.precision not in (manifest.precision, "auto"):
        raise BackendUnavailable(
            f"precision {options.precision!r} was asked for and the bundle {path} holds {manifest.precision}",
            code="precision_unavailable",
        )
    choice = choose_backend(
        manifest.backends,
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
    if manifest.family == "semantic":
        from segship.semantic.predictor import SemanticPredictor

        return SemanticPredictor(
            manifest,
            sessions["semantic"],
            backend=choice.backend,
            precision=choice.precision,
            backend_reason=choice.reason,
        )
    return Predictor(
        manifest,
        sessions,
        encoder_sha256=digest,
        backend=choice.backend,
        precision=choice.precision,
        backend_reason=choice.reason,
        threads=threads,
    )


def graph_digest(bundle: Bundle) -> str:
    """Return the digest of a bundle's first graph, weights included: what ties embeddings to their encoder."""
    entry = bundle.manifest.graphs["semantic" if bundle.manifest.family == "semantic" else "image_encoder"]
    return entry.sha256 if entry.external_data is None else f"{entry.sha256}{entry.external_data.sha256}"


def _load_checkpoint(path: Path, backend: str, options: SessionOptions) -> Predictor | SemanticPredictor:
    from segship.backend_choice import BackendChoice
    from segship.backends import load_backend

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
