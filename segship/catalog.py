# SPDX-License-Identifier: Apache-2.0
"""Names of models, where each of them lies on this machine, and `load`, which makes a predictor of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segship.cache import cache_folder
from segship.errors import BackendUnavailable, BundleError
from segship.known import CHECKPOINT_SUFFIXES, KNOWN_CHECKPOINTS
from segship.predictor import Predictor

if TYPE_CHECKING:
    from segship.backends.session import SessionOptions
    from segship.bundle import Bundle

EMBEDDED_MODELS = ("tiny",)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that has a name.

    Attributes
    ----------
    name
        What `load`, ``segship fetch`` and ``segship export`` take.
    status
        ``in the package``, ``bundle ready``, ``checkpoint fetched`` or ``not fetched``.
    bytes
        Size of the bundle or checkpoint.
    licence
        SPDX name of the weights' licence.
    location
        Where it lies on this machine, or the address it is fetched from.
    """

    name: str
    status: Literal["in the package", "bundle ready", "checkpoint fetched", "not fetched"]
    bytes: int
    licence: str
    location: str


def load(
    model: str | Path = "tiny",
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    streams: int = 1,
    compile: bool = False,
) -> Predictor:
    """Make a predictor.

    Parameters
    ----------
    model
        ``tiny``, the model inside the package; the path of a bundle; the path of a checkpoint (backend ``torch``); or
        a known name such as ``vit_b``, whose bundle lies in the cache folder.
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
    names = ", ".join((*EMBEDDED_MODELS, *KNOWN_CHECKPOINTS))
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
    return (*embedded, *(_known_model(name) for name in KNOWN_CHECKPOINTS))


def _known_model(name: str) -> ModelInfo:
    from segship.fetch import checkpoint_path

    known, bundle, checkpoint = KNOWN_CHECKPOINTS[name], bundle_folder(name), checkpoint_path(name)
    if bundle.is_dir():
        return ModelInfo(name, "bundle ready", _folder_bytes(bundle), known.licence, str(bundle))
    if checkpoint.is_file():
        return ModelInfo(name, "checkpoint fetched", checkpoint.stat().st_size, known.licence, str(checkpoint))
    return ModelInfo(name, "not fetched", known.bytes, known.licence, known.url)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _load_bundle(path: Path, backend: str, options: SessionOptions) -> Predictor:
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
    return Predictor(
        manifest,
        open_sessions(bundle, choice.backend, replace(options, precision=choice.precision)),
        encoder_sha256=encoder_digest(bundle),
        backend=choice.backend,
        precision=choice.precision,
        backend_reason=choice.reason,
    )


def encoder_digest(bundle: Bundle) -> str:
    """Return the digest that ties embeddings to a bundle's encoder, weights included."""
    entry = bundle.manifest.graphs["image_encoder"]
    return entry.sha256 if entry.external_data is None else f"{entry.sha256}{entry.external_data.sha256}"


def _load_checkpoint(path: Path, backend: str, options: SessionOptions) -> Predictor:
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
    return Predictor(
        opened.manifest,
        opened.sessions,
        encoder_sha256=opened.encoder_sha256,
        backend="torch",
        precision=options.precision,
        backend_reason=reason,
    )
