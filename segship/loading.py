# SPDX-License-Identifier: Apache-2.0
"""From a name or a path to a predictor: which model it is, what runs it, and its graphs as sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack, overload

from segship.backends.session import RunOptions, RunSettings
from segship.catalog import CHECKPOINT_SUFFIXES, SemanticName, find_model
from segship.errors import BackendUnavailable, BundleError, InputError, way
from segship.options import make_options
from segship.promptable.predictor import Predictor
from segship.semantic.predictor import SemanticPredictor

if TYPE_CHECKING:
    from segship.backends.choice import BackendChoice
    from segship.backends.session import Session
    from segship.bundle import Bundle
    from segship.bundle.manifest import Manifest

Task = TypeVar("Task", Predictor, SemanticPredictor)

_NO_PROMPTS = "takes no prompts; use " + way("segship.load_semantic(...).segment(image)", "`segship semantic`")


@overload
def load(  # type: ignore[overload-overlap]  # The names of semantic models are strings, too.
    model: SemanticName, **run: Unpack[RunSettings]
) -> SemanticPredictor: ...


@overload
def load(model: str | Path = ..., **run: Unpack[RunSettings]) -> Predictor: ...


def load(model: str | Path = "tiny", **run: Unpack[RunSettings]) -> Predictor | SemanticPredictor:
    """Make a predictor.

    What is in a bundle or checkpoint decides its class: a promptable model gives a `Predictor`, a semantic one a
    `segship.SemanticPredictor`. Type checkers know it by the names of published models, and take a path for promptable;
    `segship.load_semantic` says the other.

    Parameters
    ----------
    model
        ``tiny``, the model inside the package; the path of a bundle; the path of a checkpoint (backend ``torch``); or
        a known name such as ``vit_b`` or ``semask_s_cityscapes``, whose bundle lies in the cache folder.
    run
        ``backend``, ``device``, ``precision``, ``threads``, ``streams``, ``compile`` and ``accept_accuracy``, all with
        defaults; see `segship.backends.session.RunOptions`.

    Raises
    ------
    BundleError
        When there is no such model, or its bundle is incomplete or was changed.
    BackendUnavailable
        When the backend or the device is not here; ``accuracy_failed`` when the bundle's certificate says that this
        precision misses its bar there.

    Examples
    --------
    >>> import segship
    >>> predictor = segship.load("tiny", threads=1)
    >>> predictor.precision
    'fp32'
    """
    return open_model(model, make_options("load", RunOptions, run))


def load_promptable(model: str | Path = "tiny", **run: Unpack[RunSettings]) -> Predictor:
    """Make a predictor of a promptable model, as `load` does; a semantic one is refused as ``other_family``."""
    return _open_only(Predictor, model, make_options("load_promptable", RunOptions, run), _NO_PROMPTS)


def load_decoder(model: str | Path = "tiny", **run: Unpack[RunSettings]) -> Predictor:
    """Make a predictor that only decodes embeddings, which another one of the same bundle has made.

    Of a bundle the encoder, which is most of a model, is not loaded, and whoever calls ``encode`` gets a KeyError; a
    checkpoint is loaded whole. Errors are those of `load_promptable`.
    """
    options = make_options("load_decoder", RunOptions, run)
    return _open_only(Predictor, model, options, _NO_PROMPTS, leave_out=("image_encoder",))


def load_semantic(model: str | Path, **run: Unpack[RunSettings]) -> SemanticPredictor:
    """Make a predictor of class maps, as `load` does.

    Raises
    ------
    InputError
        ``other_family`` when it is a promptable model.
    """
    others = way("segship.load(...).predict or segship.generate_masks", "`segship segment` or `segship everything`")
    advice = f"knows no classes; give a semantic bundle, or use {others}"
    return _open_only(SemanticPredictor, model, make_options("load_semantic", RunOptions, run), advice)


def _open_only(
    kind: type[Task], model: str | Path, run: RunOptions, advice: str, leave_out: Sequence[str] = ()
) -> Task:
    """Open a model of one task, or close it and say what it is."""
    opened = open_model(model, run, leave_out)
    if isinstance(opened, kind):
        return opened
    opened.close()
    manifest = opened.manifest
    message = f"{model} is a {manifest.task} model ({manifest.architecture}), which {advice}"
    raise InputError(message, code="other_family")


def open_model(model: str | Path, run: RunOptions, leave_out: Sequence[str] = ()) -> Predictor | SemanticPredictor:
    """Open a model of either task, of a bundle without some of its graphs; errors are those of `load`."""
    path = find_model(model)
    return _open_bundle(path, run, leave_out) if path.is_dir() else _open_checkpoint(path, run)


def _open_bundle(path: Path, run: RunOptions, leave_out: Sequence[str]) -> Predictor | SemanticPredictor:
    from segship.backends.opening import choose_artifact, open_sessions
    from segship.bundle import Bundle

    # Opening checks the manifest and the list of files; each graph's bytes are checked as it is loaded.
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    choice = _accepted_choice(bundle, run)
    threads = choice.threads if run.threads is None else run.threads
    run = replace(run, backend=choice.backend, precision=choice.precision, threads=threads)
    sessions = open_sessions(bundle, run, leave_out)
    # What ties embeddings to their encoder.
    digest = choose_artifact(manifest, manifest.first_graph, run)[0].digest
    return _predictor(manifest, sessions, digest, choice, run.threads)


def _accepted_choice(bundle: Bundle, run: RunOptions) -> BackendChoice:
    """Choose what runs a bundle; what its certificate says fails needs a word from the caller."""
    from segship.backends.choice import choose_backend, recorded_choice
    from segship.bundle.certificate import failed

    refused = set() if run.accept_accuracy else failed(bundle)
    checks = [check for check in bundle.manifest.checks if (check.backend, check.precision) not in refused]
    held = {artifact.precision for artifact in bundle.manifest.artifacts}
    taken = bundle.manifest.choice
    allowed = None if taken is None or (taken.backend, taken.precision) in refused else taken
    choice = recorded_choice(allowed, run) or choose_backend(checks, run, held)
    if (choice.backend, choice.precision) in refused:
        message = (
            f"the certificate of {bundle.path} says that {choice.precision} in {choice.backend} fails its bar; "
            f"`segship inspect {bundle.path}` says by how much; ask for another precision or backend, or take it with "
            f"{way('accept_accuracy=True', '--accept-accuracy')}"
        )
        raise BackendUnavailable(message, code="accuracy_failed")
    return choice


def _open_checkpoint(path: Path, run: RunOptions) -> Predictor | SemanticPredictor:
    from segship.backends import BACKENDS, backends_of, load_backend
    from segship.backends.choice import AUTO, BackendChoice
    from segship.bundle.evidence import EXACT

    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise BundleError(
            f"{path} is a file; a model is a bundle folder or a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})",
            code="unknown_model",
        )
    able = backends_of(checkpoints=True)
    if run.backend not in (AUTO, *able):
        raise BackendUnavailable(
            f"{path} is a checkpoint and the backend {run.backend!r} runs bundles; make one first "
            f"(`segship bundle {path} -o BUNDLE`), or use {way('backend=', '--backend ')}"
            f"{' or '.join(able)}",
            code="not_a_bundle",
        )
    backend, reason = run.backend, "it was asked for"
    if backend == AUTO:
        backend, reason = able[0], f"checkpoints run in {able[0]} unless another is named"
    # A checkpoint has no manifest that could have measured another precision.
    choice = BackendChoice(backend, EXACT if run.precision == AUTO else run.precision, reason)
    try:
        load_backend(backend)
    except BackendUnavailable as error:
        if error.code != "backend_missing":
            raise
        message = f"{error}; or make a bundle of {path} without torch: `segship bundle {path} -o BUNDLE`"
        raise BackendUnavailable(message, code=error.code) from error
    # By its name: the use road has no import of the ship road.
    opened = import_module(BACKENDS[backend].opener).open_checkpoint(path, replace(run, precision=choice.precision))
    return _predictor(opened.manifest, opened.sessions, opened.encoder_sha256, choice, run.threads)


def _predictor(
    manifest: Manifest, sessions: Mapping[str, Session], digest: str, choice: BackendChoice, threads: int | None
) -> Predictor | SemanticPredictor:
    from segship.bundle.manifest import task_module

    ran = {"backend": choice.backend, "precision": choice.precision, "backend_reason": choice.reason}
    predictor: Predictor | SemanticPredictor = task_module(manifest.task).open(
        manifest, sessions, digest=digest, threads=threads, **ran
    )
    return predictor
