# SPDX-License-Identifier: Apache-2.0
"""Measure what every precision in every runtime here costs, write it into a bundle as its certificate, and re-prove it.

Beside `segship.tune`, which measures how fast they are: needs no torch. Each is held against the bundle in fp32 in ONNX
Runtime on one thread, on an image list. `segship.bundle.certificate` says what a certificate holds, and its verdicts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

import segship
from segship import tune
from segship.backends import DEFAULT_BACKEND, installed_version
from segship.backends.choice import processor_name
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions, Session, thread_count
from segship.bundle import Bundle
from segship.bundle.artifacts import Name, Sha256
from segship.bundle.certificate import (
    CERTIFICATE_FILE,
    GOLD,
    GOLD_AGREEMENT,
    SILVER,
    VERDICTS,
    Certificate,
    Certified,
    Determinism,
    EvaluationList,
    Reference,
    Verdict,
    identity,
    read_certificate,
    strangeness,
)
from segship.bundle.evidence import Bar, Evidence, Figures, Label, Text, figures_row
from segship.bundle.folder import renew_file
from segship.bundle.manifest import task_module
from segship.catalog import find_model
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.datasets.image_list import ImageList, is_image_list, open_image_list
from segship.errors import BackendUnavailable, BundleError, ComparisonFailed, InputError, SegshipError, way
from segship.evaluation.agreement import Tally, make_tally
from segship.files import read_bytes
from segship.machine import describe_machine
from segship.options import check_types, check_whole

RUNS = 5
"""Times that the same few cases are answered on one thread, to see whether the answers are the same."""
TOLERANCES = {
    "cosine": 1e-3,
    "max_abs": 0.02,
    "mask_iou_mean": 0.002,
    "mask_iou_p5": 0.01,
    "boundary_f": 0.005,
    "pixels_equal": 0.002,
    "map_iou": 0.005,
}
"""By how much a figure may be worse where a certificate is proven anew: runtimes choose other kernels elsewhere."""
SCORE_TOLERANCE = 0.002
KIT_FP16_BARS: dict[str, Bar] = {
    "promptable": {"cosine": 0.999, "mask_iou_mean": 0.99},
    "semantic": {"pixels_equal": 0.97},
}
"""By task, what float16 on a device is held against; int8 has the bar that it has everywhere."""
_MOST_REPORT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyOptions:
    """What a bundle is measured on, where the pictures are no image list yet, and by how many threads.

    Attributes
    ----------
    truth
        Folder with the truth of the pictures, as `segship.datasets.calibration.CalibrateOptions` has it.
    limit
        Most pictures.
    objects
        Most objects of each kind in a picture.
    threads
        Threads of the runtimes that are judged; all usable cores when left out.
    reference
        A bundle of the same checkpoint in fp32, for one that holds lower precisions alone; itself when left out.
    """

    truth: Path | None = None
    limit: int | None = None
    objects: int = 4
    threads: int | None = None
    reference: Path | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(self, 1, 100_000, "limit")
        check_whole(self, 1, 1000, "objects")


Report = Callable[[Certified], None]
"""Called with everything that is certified when it is done."""


@dataclass(frozen=True, slots=True, eq=False)
class Certification:
    """A bundle with its new certificate, and the agreement of each mask or map, by runtime and precision."""

    bundle: Bundle
    certificate: Certificate
    agreements: Mapping[tuple[str, str], list[float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a certificate says: whether it holds here, and what was found."""

    what: str
    holds: bool
    found: str


def certify(
    model: str | Path,
    images: str | Path,
    options: CertifyOptions | None = None,
    report: Report | None = None,
    *,
    out: Path | None = None,
) -> Certification:
    """Measure every precision in every runtime that is here, and write ``certificate.json``.

    Parameters
    ----------
    model
        A bundle's folder, or a name of `segship.load`.
    images
        An image list, or pictures as `segship.datasets.calibration.calibrate` takes them.
    options
        See `CertifyOptions`.
    report
        See `Report`.
    out
        Folder for a copy; without it the certificate is written into the bundle.

    Raises
    ------
    InputError
        ``bundle_in_package``; what is wrong with the pictures.
    BundleError, OutputError
        When the bundle cannot be used, or the certificate cannot be written; ``other_checkpoint`` for a reference of
        other weights.
    """
    options, bundle = options or CertifyOptions(), Bundle.read(find_model(model))
    made: list[Certification] = []

    def fill() -> bytes:
        with _listed(images, bundle, options) as listed:
            made.append(_measure(bundle, listed, options, report))
        return made[0].certificate.to_json()

    renewed = renew_file(bundle, CERTIFICATE_FILE, fill, out)
    return replace(made[0], bundle=renewed)


@contextmanager
def _listed(images: str | Path, bundle: Bundle, options: CertifyOptions) -> Iterator[ImageList]:
    """Yield the image list, or one that is made of pictures for the while."""
    task = bundle.manifest.task
    if is_image_list(images):
        if options.truth is not None:
            advice = f"leave {way('truth', '--truth')} out, or give it to `segship calibrate`"
            raise InputError(f"{images} is an image list, which holds its own truth; {advice}", code="bad_option")
        yield open_image_list(images, task)
        return
    choice: dict[str, Any] = {"task": task, "truth": options.truth, "limit": options.limit, "objects": options.objects}
    with TemporaryDirectory(prefix="segship-list-") as folder:
        yield calibrate([images], Path(folder) / "list", CalibrateOptions(**choice))


def _measure(bundle: Bundle, images: ImageList, options: CertifyOptions, report: Report | None) -> Certification:
    certified, agreements = [], {}
    with _reference(_reference_bundle(bundle, options), images) as reference:
        for backend, precision in tune.candidates(bundle.manifest):
            run = RunOptions(backend=backend, precision=precision, threads=options.threads)
            judged, tally = _judge(bundle, images, reference, run)
            certified.append(judged)
            agreements[backend, precision] = [] if tally is None else tally.agreements
            if report is not None:
                report(judged)
    known = any(entry.truth is not None for entry in images.listing.images)
    certificate = Certificate(
        segship=segship.__version__,
        **identity(bundle),
        evaluation=EvaluationList(images.sha256, len(images), known, options.limit, options.objects),
        reference=reference.described,
        certified=tuple(certified),
        machine=describe_machine().to_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Certification(bundle, certificate, agreements)


def _reference_bundle(bundle: Bundle, options: CertifyOptions) -> Bundle:
    """Return the bundle that all is held against."""
    if options.reference is None:
        return bundle
    reference = Bundle.read(find_model(options.reference))
    if reference.manifest.checkpoint.sha256 != bundle.manifest.checkpoint.sha256:
        message = f"{reference.path} was made of another checkpoint than {bundle.path}; give a bundle of the same one"
        raise BundleError(message, code="other_checkpoint")
    return reference


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """The reference's answers, a file for each picture, and what the certificate says of it."""

    described: Reference
    folder: Path

    def answer(self, place: int) -> Any:
        # Written by this very process, into a folder of its own.
        return pickle.loads((self.folder / str(place)).read_bytes())


@contextmanager
def _reference(bundle: Bundle, images: ImageList) -> Iterator[_Known]:
    task, tally = task_module(bundle.manifest.task), make_tally(bundle.manifest)
    run = RunOptions(backend=DEFAULT_BACKEND, threads=1)
    with TemporaryDirectory(prefix="segship-certify-") as name:
        folder = Path(name)
        with _opened(bundle, run) as sessions:
            for place, picture in enumerate(images.pictures()):
                found = task.answer_listed(bundle.manifest, picture, sessions)
                tally.add(picture, found, found)
                (folder / str(place)).write_bytes(pickle.dumps(found))
        version = installed_version(DEFAULT_BACKEND) or "unknown"
        scores: Figures = dict(tally.scores())
        described = Reference(identity(bundle)["model"], DEFAULT_BACKEND, version, tally.outputs, scores)
        yield _Known(described, folder)


@contextmanager
def _opened(bundle: Bundle, run: RunOptions) -> Iterator[dict[str, Session]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(session) for name, session in open_sessions(bundle, run).items()}


def _judge(bundle: Bundle, images: ImageList, reference: _Known, run: RunOptions) -> tuple[Certified, Tally | None]:
    """Measure one precision in one runtime, and give it its verdict."""
    task, tally = task_module(bundle.manifest.task), make_tally(bundle.manifest)
    about: dict[str, Any] = {
        "backend": run.backend,
        "version": installed_version(run.backend) or "unknown",
        "precision": run.precision,
        "cpu": processor_name(),
        "threads": thread_count(run),
    }
    try:
        with _opened(bundle, run) as sessions:
            for place, picture in enumerate(images.pictures()):
                expected = reference.answer(place)
                tally.add(picture, expected, task.answer_listed(bundle.manifest, picture, sessions, expected))
        determinism = _determinism(bundle, run)
    except SegshipError as error:
        return Certified(**about, verdict="fail", reason=f"it does not run: {error}"[:4096]), None
    bar = task.bar(run.precision)
    evidence = Evidence(dict(bar), tuple(tally.rows(f"{run.backend} {run.precision}", bar)))
    verdict, reason = judge(evidence, tally, reference.described)
    scores: Figures = dict(tally.scores())
    return Certified(
        **about,
        verdict=verdict,
        reason=reason,
        outputs=tally.outputs,
        evidence=evidence,
        scores=scores,
        determinism=determinism,
    ), tally


def judge(evidence: Evidence, tally: Tally, reference: Reference) -> tuple[Verdict, str]:
    """Return a verdict, as `segship.bundle.certificate.VERDICTS` defines it, and why."""
    if tally.outputs == reference.outputs:
        return "bit-exact", VERDICTS["bit-exact"]
    failed = [str(row) for row in evidence.rows if not row.passed]
    if failed:
        return "fail", f"misses the bar of its precision: {'; '.join(failed)}"[:4096]
    scores = tally.scores()
    kept = {name: scores[name] / known for name, known in reference.scores.items() if known}
    if kept:
        worst = min(kept, key=lambda name: kept[name])
        part, told = kept[worst], f"keeps {100 * kept[worst]:.2f} % of the reference's score {worst}, its lowest"
        return ("gold" if part >= GOLD else "silver" if part >= SILVER else "fail"), told
    agreement = float(np.mean(tally.agreements)) if tally.agreements else 1.0
    return ("gold" if agreement >= GOLD_AGREEMENT else "silver"), f"agrees with the reference to {agreement:.5f}"


def _determinism(bundle: Bundle, run: RunOptions) -> Determinism:
    """Answer the same few cases again and again, on other threads, and in a process of its own."""
    one = replace(run, threads=1)
    with _opened(bundle, one) as sessions:
        runs = tuple(_digest_of_few(bundle, sessions) for _ in range(RUNS))
    with _opened(bundle, replace(run, threads=2)) as sessions:
        two = _digest_of_few(bundle, sessions)
    parameters = json.dumps({"path": str(bundle.path.absolute()), "run": asdict(one)})
    command = [sys.executable, "-m", "segship.certify", parameters]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no words"])[-1]
        raise BackendUnavailable(f"a fresh process failed: {words}", code="fresh_failed")
    return Determinism(runs, {"1": runs[0], "2": two}, done.stdout.strip())


def _digest_of_few(bundle: Bundle, sessions: Mapping[str, Session]) -> str:
    """Return the digest of what is answered to a few of the built-in cases."""
    task, digest = task_module(bundle.manifest.task), hashlib.sha256()
    _feed(digest.update, task.answer(task.few(task.cases(bundle.manifest)), sessions))
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], answers: Any) -> None:
    """Pass the bytes of all arrays on, wherever they stand in answers."""
    if isinstance(answers, np.ndarray):
        update(np.ascontiguousarray(answers).tobytes())
    elif dataclasses.is_dataclass(answers):
        for field in dataclasses.fields(answers):
            _feed(update, getattr(answers, field.name))
    else:
        for part in answers.values() if isinstance(answers, Mapping) else answers:
            _feed(update, part)


@dataclass(frozen=True, slots=True)
class KitRow:
    """What a device's answers of one graph were worth; see `segship.bundle.evidence.FIGURES`."""

    graph: Name
    what: Name
    cases: Annotated[int, Field(ge=1)]
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class KitReport:
    """What ``run.py accept`` of a kit wrote on its device.

    Attributes
    ----------
    bundle
        Digest of the bundle that the kit was made of.
    graphs
        File of the kit -> digest of the bundle's graph.
    kit, models, outputs
        Digests of ``kit.json``, of the compiled models, of all answers.
    soc, machine
        The chip, and what ran there, in words.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    format_version: Literal[1]
    bundle: Sha256
    graphs: Annotated[
        dict[Name, Annotated[str, Field(pattern=r"^[0-9a-f]{64,128}$")]], Field(min_length=1, max_length=64)
    ]
    kit: Sha256
    precision: Literal["fp16", "int8"]
    soc: Name
    machine: Annotated[dict[Label, Text], Field(max_length=32)]
    models: Annotated[dict[Name, Sha256], Field(max_length=64)]
    outputs: Sha256
    rows: Annotated[tuple[KitRow, ...], Field(min_length=1, max_length=256)]
    created: Annotated[str, Field(max_length=64)]


def read_kit_report(path: str | Path) -> KitReport:
    """Read the report of a kit; ``bad_report`` for one that cannot be used."""
    try:
        return TypeAdapter(KitReport).validate_json(read_bytes(Path(path), limit=_MOST_REPORT_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        message = f"{path} is no report of a kit ({where}: {first['msg']}); give the report.json that run.py wrote"
        raise InputError(message, code="bad_report") from error


def certify_kit(model: str | Path, report: str | Path) -> Certified:
    """Take what a kit's own runner measured on a device into the certificate of the bundle that it was made of.

    The figures are those of the report; the bar and the verdict are of this machine.

    Raises
    ------
    BundleError
        ``no_certificate``; ``other_bundle`` when the kit was made of other graphs.
    InputError
        ``bad_report``; ``bundle_in_package``.
    ComparisonFailed
        ``certificate_broken`` when the certificate is of another bundle.
    """
    bundle, found = Bundle.read(find_model(model)), read_kit_report(report)
    certificate = require_certificate(bundle)
    require_held(check_digests(bundle, certificate))
    own = {artifact.digest for artifact in bundle.manifest.artifacts}
    strange = sorted(set(found.graphs.values()) - own)
    if strange:
        message = f"{report} is of a kit that was made of other graphs than those of {bundle.path} ({strange[0]})"
        raise BundleError(f"{message}; give the bundle that was converted", code="other_bundle")
    _require_whole(bundle, found, report)
    row = _certified_kit(bundle, found)
    kept = [one for one in certificate.certified if (one.backend, one.precision) != (row.backend, row.precision)]
    renewed = replace(certificate, certified=(*kept, row))
    renew_file(bundle, CERTIFICATE_FILE, renewed.to_json)
    return row


def _require_whole(bundle: Bundle, found: KitReport, report: str | Path) -> None:
    """Refuse a report that leaves out a graph of the kit, or what its masks or classes are worth."""
    wanted = {bundle.manifest.artifact(graph).digest for graph in bundle.manifest.graph_sets[0]}
    measured = {row.graph for row in found.rows if {"cosine", *_AGREEMENTS} & row.figures.keys()}
    lacking = sorted(found.graphs.keys() - measured)
    if lacking or wanted - set(found.graphs.values()) or not any(map(_agreement, found.rows)):
        what = ", ".join(lacking) or "a graph of the bundle, or its masks or classes"
        message = f"{report} measures too little: figures of {what} are missing; give the report.json that run.py wrote"
        raise InputError(message, code="bad_report")


_AGREEMENTS = ("mask_iou_mean", "pixels_equal")


def _agreement(row: KitRow) -> list[float]:
    """Return the figure that a verdict is given by, where a row has one; NaN for one that is no number."""
    figures = _numbers(row.figures)
    return [figures[name] for name in _AGREEMENTS if name in figures]


def _certified_kit(bundle: Bundle, found: KitReport) -> Certified:
    task = bundle.manifest.task
    bar = KIT_FP16_BARS[task] if found.precision == "fp16" else task_module(task).bar(found.precision)
    rows = tuple(
        figures_row(f"ascend {found.precision}", row.graph, row.what, row.cases, _numbers(row.figures), bar)
        for row in found.rows
    )
    failed = [str(row) for row in rows if not row.passed]
    least = min(value for row in found.rows for value in _agreement(row))
    verdict: Verdict = "fail" if failed else "gold" if least >= GOLD_AGREEMENT else "silver"
    missed = f"misses the bar of its precision: {'; '.join(failed)}"
    about = {name: found.machine.get(name, "unknown") for name in ("cann", "ais_bench", "aclruntime", "platform")}
    return Certified(
        backend="ascend",
        version=", ".join(f"{name} {value}" for name, value in about.items())[:4096],
        precision=found.precision,
        cpu=found.soc,
        threads=1,
        verdict=verdict,
        reason=(missed if failed else f"the device's report agrees with the reference to {least:.5f}")[:4096],
        outputs=found.outputs,
        evidence=Evidence(dict(bar), rows),
    )


def _numbers(figures: Figures) -> dict[str, float]:
    return {name: float("nan") if value is None else value for name, value in figures.items()}


def verify_certificate(
    model: str | Path, images: str | Path | None = None, options: CertifyOptions | None = None
) -> list[Line]:
    """Prove a bundle's certificate anew on this machine: every digest, then what was measured.

    Parameters
    ----------
    model
        A bundle's folder, or a name of `segship.load`.
    images
        The pictures of the certificate, whose figures are then measured again; digests and the few built-in cases
        alone when left out.
    options
        ``truth`` and ``threads`` as `certify` had them; how pictures were chosen stands in the certificate.

    Returns
    -------
    list of Line
        Everything that was looked at, and whether it holds here.

    Raises
    ------
    BundleError
        ``no_certificate``; what is wrong with the bundle or the certificate's file.
    InputError
        What is wrong with the pictures.
    """
    bundle = Bundle.read(find_model(model))
    certificate = require_certificate(bundle)
    options = replace(
        options or CertifyOptions(), limit=certificate.evaluation.limit, objects=certificate.evaluation.objects
    )
    lines, reference = [], _reference_bundle(bundle, options)
    with ExitStack() as stack:
        listed = None if images is None else stack.enter_context(_listed(images, bundle, options))
        lines += check_digests(bundle, certificate, listed, reference if listed else None)
        if not all(line.holds for line in lines):
            return lines
        known = None if listed is None else stack.enter_context(_reference(reference, listed))
        for row in certificate.certified:
            if row.outputs is None or (row.backend, row.precision) not in tune.candidates(bundle.manifest):
                found = "it does not run here" if row.outputs else "it was certified as not running"
                lines.append(Line(f"{row.backend} {row.precision}", True, f"not certified here: {found}"))
                continue
            run = RunOptions(backend=row.backend, precision=row.precision, threads=options.threads)
            judged = None if listed is None or known is None else _judge(bundle, listed, known, run)[0]
            lines += _prove_steady(bundle, row, run, judged)
            lines += () if judged is None else _prove_figures(row, judged)
    return lines


def require_held(lines: Sequence[Line]) -> None:
    """Raise `ComparisonFailed`, as ``certificate_broken``, when something does not hold, naming it."""
    broken = [f"{line.what} ({line.found})" for line in lines if not line.holds]
    if broken:
        message = f"the certificate does not hold here: {'; '.join(broken)}"
        raise ComparisonFailed(f"{message}; certify the bundle anew, or fetch it", code="certificate_broken")


def require_certificate(bundle: Bundle) -> Certificate:
    """Return the certificate in a bundle's folder; ``no_certificate`` where there is none."""
    certificate = read_certificate(bundle.path)
    if certificate is None:
        message = f"{bundle.path} has no certificate; make one with `segship certify`"
        raise BundleError(message, code="no_certificate")
    return certificate


def check_digests(
    bundle: Bundle, certificate: Certificate, images: ImageList | None = None, reference: Bundle | None = None
) -> list[Line]:
    """Return whether a certificate is of a bundle, whose own bytes were checked, of an image list, of a reference."""
    strange = list(strangeness(certificate, bundle))
    files = f"{len(certificate.artifacts)} files, checkpoint, model and calibration lists"
    lines = [Line("digests", False, text) for text in strange] or [Line("digests", True, files)]
    if images is not None:
        images.check()
        lines.append(_same("image list", images.sha256, certificate.evaluation.sha256))
    if reference is not None:
        lines.append(_same("reference", identity(reference)["model"], certificate.reference.model))
    return lines


def _same(what: str, found: str, stated: str) -> Line:
    is_same = found == stated
    return Line(what, is_same, f"its SHA-256 is {found}" + ("" if is_same else f", and was {stated}"))


def _prove_steady(bundle: Bundle, row: Certified, run: RunOptions, judged: Certified | None) -> Iterator[Line]:
    """Yield whether the few built-in cases are answered as they were, byte for byte, where that is to be expected."""
    name, stated = f"{row.backend} {row.precision}, bytes of the built-in cases", row.determinism
    if stated is None or (row.cpu, row.version) != (processor_name(), installed_version(row.backend)):
        yield Line(name, True, f"certified on {row.cpu}, {row.version}; not compared byte for byte here")
        return
    try:
        found = _determinism(bundle, run) if judged is None else judged.determinism
    except SegshipError as error:
        yield Line(name, False, str(error))
        return
    yield Line(name, found == stated or not stated.is_steady, "the same" if found == stated else "other bytes")


def _prove_figures(stated: Certified, found: Certified) -> Iterator[Line]:
    """Yield whether the figures are no worse than they were, but for a tolerance."""
    name = f"{stated.backend} {stated.precision}"
    if stated.evidence is None or found.evidence is None:
        yield Line(name, False, found.reason)
        return
    order = list(VERDICTS)
    is_as_good = order.index(found.verdict) <= max(1, order.index(stated.verdict))
    yield Line(f"{name}, verdict", is_as_good, f"{found.verdict}, and was {stated.verdict}: {found.reason}")
    rows = {(row.graph, row.what): row.figures for row in found.evidence.rows}
    for row in stated.evidence.rows:
        made = rows.get((row.graph, row.what), {})
        worse = [text for text in _worse(row.figures, made)]
        yield Line(f"{name}, {row.graph} {row.what}", not worse, "; ".join(worse) or "as certified")
    lost = [
        f"{key} {found.scores.get(key)}, and was {value}"
        for key, value in stated.scores.items()
        if value is not None and (found.scores.get(key) or 0.0) < value - SCORE_TOLERANCE
    ]
    yield Line(f"{name}, scores", not lost, "; ".join(lost) or "as certified")


def _worse(stated: Figures, found: Figures) -> Iterator[str]:
    for name, tolerance in TOLERANCES.items():
        if (value := stated.get(name)) is not None:
            other = found.get(name)
            sign = -1 if name == "max_abs" else 1
            if other is None or sign * (value - other) > tolerance:
                yield f"{name} {other}, and was {value}"


def main(arguments: list[str]) -> int:
    """Print the digest of a bundle's answers to the few built-in cases: what a fresh process does."""
    parameters = json.loads(arguments[0])
    bundle = Bundle.open(parameters["path"])
    with _opened(bundle, RunOptions(**parameters["run"])) as sessions:
        print(_digest_of_few(bundle, sessions))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
