# SPDX-License-Identifier: Apache-2.0
"""Names of models, where each of them lies on this machine, and `load`, which makes a predictor of one."""

from __future__ import annotations

from dataclasses import dataclass
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
DEFAULT_BACKEND = "onnxruntime"


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
) -> Predictor:
    """Make a predictor.

    Parameters
    ----------
    model
        ``tiny``, the model inside the package; the path of a bundle; the path of a checkpoint (backend ``torch``); or
        a known name such as ``vit_b``, whose bundle lies in the cache folder.
    backend
        ``onnxruntime`` runs bundles, ``torch`` runs checkpoints; ``auto`` takes the one that fits ``model``.
    threads
        Threads of the runtime; all usable cores when left out.
    device
        ``cpu`` or ``cuda``; a device that is not there is an error, never a silent fall back.
    precision
        ``fp32``; ``bf16`` with the backend ``torch``.

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
    >>> predictor.backend
    'onnxruntime'
    """
    from segship.backends.session import SessionOptions

    options = SessionOptions(threads=threads, device=device, precision=precision)
    path = find_model(model)
    if path.is_dir():
        return _load_bundle(path, DEFAULT_BACKEND if backend == "auto" else backend, options)
    return _load_checkpoint(path, "torch" if backend == "auto" else backend, options)


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
    from segship.backends import load_backend
    from segship.bundle import Bundle

    # Opening checks the manifest and the list of files; each graph's bytes are checked as it is loaded.
    bundle = Bundle.open(path)
    if backend == "torch":
        raise BackendUnavailable(
            f"{path} is a bundle and the torch backend runs checkpoints; give the checkpoint's path, "
            f"or use --backend {DEFAULT_BACKEND}"
        )
    if options.precision != bundle.manifest.precision:
        raise BackendUnavailable(
            f"precision {options.precision!r} was asked for and the bundle {path} holds {bundle.manifest.precision}"
        )
    runtime = load_backend(backend)
    sessions = [
        runtime.Session(bundle.verified_graph(name), bundle.manifest.graph_spec(name), options)
        for name in ("image_encoder", "mask_decoder")
    ]
    return Predictor(bundle.manifest, *sessions, encoder_sha256=encoder_digest(bundle), backend=backend)


def encoder_digest(bundle: Bundle) -> str:
    """Return the digest that ties embeddings to a bundle's encoder, weights included."""
    entry = bundle.manifest.graphs["image_encoder"]
    return entry.sha256 if entry.external_data is None else f"{entry.sha256}{entry.external_data.sha256}"


def _load_checkpoint(path: Path, backend: str, options: SessionOptions) -> Predictor:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise BundleError(
            f"{path} is a file; a model is a bundle folder or a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})",
            code="unknown_model",
        )
    if backend != "torch":
        raise BackendUnavailable(
            f"{path} is a checkpoint and the backend {backend!r} runs bundles; export it first "
            f"(`segship export {path} -o BUNDLE`), or use --backend torch"
        )
    from segship.backends import load_backend

    load_backend("torch")
    # By name, so that the use road has no import of the ship road.
    opened = import_module("segship.backends.torch").open_checkpoint(path, options)
    return Predictor(
        opened.manifest, opened.encoder, opened.decoder, encoder_sha256=opened.encoder_sha256, backend="torch"
    )
