# SPDX-License-Identifier: Apache-2.0
"""What ``segship evaluate`` does: from a data set and a model, or a folder of class maps, to a score and its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import segship
from segship.backends.session import RunOptions
from segship.bundle.manifest import MANIFEST_FILE
from segship.catalog import find_model
from segship.datasets.folders import DATA_SETS, Sample, Truth, find_samples
from segship.errors import InputError, OutputError, option, way
from segship.evaluation.report import Evaluation
from segship.evaluation.scoring import Progress, StateFile, digest_of_samples, score_samples
from segship.evaluation.sources import Ids, ModelSource, RawType, Source, WrittenMaps, WrittenSource, find_written_maps
from segship.files import make_directory, real_path, sha256_of, write_file
from segship.loading import load_semantic
from segship.options import check_types, check_whole
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.views import SemanticOptions
from segship.writers.names import safe_file_name


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What is scored, and how.

    Attributes
    ----------
    bundle
        The model to run: a bundle, a checkpoint (torch backend), or a known name.
    predictions
        Folder of class maps to score instead: .png, .npy or raw .bin, found by the stems of the pictures.
    split
        Folder below those of the data set, such as ``train`` or ``val``.
    truth
        Which files of Cityscapes are the truth; ``auto`` takes the first that is there for each picture.
    batch
        Pictures that the model gets at once.
    semantic
        Windows, ratios and mirrors, see `segship.semantic.views.SemanticOptions`.
    runtime
        What runs the model.
    ids
        What class maps hold: ``train``, classes as models give them; ``label``, the data set's own numbers.
    raw_type
        What .bin files hold; ``auto`` tells it from their length.
    workers
        Processes that read files, 0 for none; one for each core, up to 8, if the split is not small, when left out.
    limit
        Only so many pictures, the first by name.
    strict
        A damaged or missing file ends the evaluation; else such files are listed and count for nothing.
    out
        Folder for the result, a JSON document, and for its counts while the evaluation runs.
    overwrite
        Replace a result that is there.
    fresh
        Begin anew instead of going on where a run has stopped.
    """

    bundle: str | Path | None = None
    predictions: Path | None = None
    split: str = "val"
    truth: Truth = "auto"
    batch: int = 1
    semantic: SemanticOptions = field(default_factory=SemanticOptions)
    runtime: RunOptions = RunOptions()
    ids: Ids = "train"
    raw_type: RawType = "auto"
    workers: int | None = None
    limit: int | None = None
    strict: bool = False
    # None keeps neither.
    out: Path | None = None
    overwrite: bool = False
    fresh: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(self, 1, 100_000, "batch")
        if (self.bundle is None) == (self.predictions is None):
            given = "both were given" if self.bundle is not None else "neither was given"
            bundle, predictions = option("bundle"), option("predictions")
            raise _bad(
                f"{given}: name either a bundle to run, with {bundle}, or class maps to score, with {predictions}"
            )
        if self.predictions is not None and (self.batch != 1 or self.semantic != SemanticOptions()):
            views = ", ".join(map(option, ("batch", "window", "stride", "ratios")))
            raise _bad(f"{views} and {option('flip')} belong to a bundle; leave them out with {option('predictions')}")
        if self.bundle is not None and (self.ids != "train" or self.raw_type != "auto"):
            ids, raw_type = option("ids"), option("raw_type")
            raise _bad(f"{ids} and {raw_type} belong to predictions; leave them out with {option('bundle')}")
        if self.limit is not None and self.limit < 1:
            raise _bad(f"{option('limit')} is {self.limit}; accepted are 1 and more")


def evaluate(
    data_set: str, root: str | Path, options: EvaluateOptions, *, progress: Progress | None = None
) -> Evaluation:
    """Score a model or written class maps on a split of a data set, and go on where a run of the same has stopped.

    Data set and root are as `segship.datasets.folders.find_samples` takes them.

    Raises
    ------
    InputError
        When folders, options or, with ``strict``, files cannot be used, or none could.
    OutputError
        ``output_exists`` before anything runs, or when the result cannot be written.
    BundleError, BackendUnavailable
        When the model cannot be loaded.
    """
    whole = find_samples(data_set, root, options.split, options.truth)
    samples = whole[: options.limit]
    result = _result_file(data_set, options)
    if result is not None and os.path.exists(result) and not options.overwrite:
        replace_it = way(
            "replace it with overwrite=True, or choose another out", "use --overwrite, or choose another --out"
        )
        message = f"{result} exists; {replace_it}"
        raise OutputError(message, code="output_exists")
    source, identity = _open_source(data_set, samples, options)
    identity = {
        "data_set": data_set,
        "split": options.split,
        "root": str(real_path(root)),
        "truth": options.truth,
        **({"limited": f"{len(samples)} of {len(whole)}"} if len(samples) < len(whole) else {}),
        "samples_digest": digest_of_samples(samples, Path(root)),
        **identity,
        "segship": segship.__version__,
    }
    state = None
    if result is not None:
        make_directory(result.parent)
        state = StateFile(result.with_suffix(".state"), identity)
        if options.fresh:
            state.remove()
    evaluation = score_samples(
        data_set,
        samples,
        source,
        workers=options.workers,
        strict=options.strict,
        state=state,
        progress=progress,
    )
    evaluation = replace(evaluation, identity=identity, file=result)
    if result is not None and state is not None:
        write_file(result, evaluation.encode(), overwrite=options.overwrite)
        # Last, so that a result that could not be written costs no second run.
        state.remove()
    return evaluation


def _result_file(data_set: str, options: EvaluateOptions) -> Path | None:
    if options.out is None:
        return None
    subject = options.bundle if options.predictions is None else options.predictions
    name = real_path(subject or "").name
    return options.out / safe_file_name(f"{data_set}.{options.split}.{name}.evaluation.json")


def _open_source(data_set: str, samples: Sequence[Sample], options: EvaluateOptions) -> tuple[Source, dict[str, str]]:
    """Return where predictions come from, and what tells this source from others."""
    if options.predictions is not None:
        written = WrittenMaps(options.predictions, options.ids, options.raw_type)
        found = find_written_maps(written, samples)
        identity = {
            "predictions": str(real_path(options.predictions)),
            "predictions_digest": found.digest,
            "ids": options.ids,
            "raw_type": options.raw_type,
        }
        return WrittenSource(written, found), identity
    assert options.bundle is not None
    path = find_model(options.bundle)
    predictor = load_semantic(path, **asdict(options.runtime))
    if predictor.table.classes != DATA_SETS[data_set].table.classes:
        message = (
            f"{path} has the {len(predictor.table.classes)} classes of {predictor.table.name}, and {data_set} has "
            "other ones; evaluate it on its own data set"
        )
        raise InputError(message, code="other_classes")
    predictor.check_options(options.semantic)
    identity = {
        "model": str(options.bundle),
        "model_digest": sha256_of(path / MANIFEST_FILE if os.path.isdir(path) else path),
        # Neither the batch nor threads: they do not change class maps, and a run that stopped for lack of memory is
        # best finished with a smaller batch.
        "runs_on": f"{predictor.backend} {predictor.precision} {options.runtime.device}",
        "look": repr(options.semantic),
    }
    return _model_source(predictor, options), identity


def _model_source(predictor: SemanticPredictor, options: EvaluateOptions) -> ModelSource:
    if options.semantic != SemanticOptions():
        return ModelSource(lambda pixels: predictor.segment(pixels, options.semantic).array, batch=options.batch)
    return ModelSource(
        lambda pixels: predictor.segment(pixels).array,
        lambda pictures: [answer.array for answer in predictor.segment_batch(pictures)],
        options.batch,
    )


def _bad(message: str) -> InputError:
    return InputError(message, code="bad_option")
