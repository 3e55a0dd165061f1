# SPDX-License-Identifier: Apache-2.0
"""Conversion for engines and programs that take no bundles: one row of `TARGETS` and one module each.

A module has the verb ``write(source, folder, options, report)``, and ``check_options(options)`` where options of its
own have to fit each other. The first writes its files into an empty folder, holds what it wrote against the float32
graphs wherever the engine runs here, and returns what `EXPORT_FILE` says of it beside what every target says.
``source`` is an opened `segship.bundle.Bundle`, or the path of a checkpoint for targets that start from the network
itself. A target that is one file (``ending``) gets a stream to write to instead of a folder. Nothing is loaded before
it is asked for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import segship
from segship.backends import is_installed
from segship.bundle import Bundle
from segship.bundle.evidence import Row
from segship.bundle.folder import EXPORT_FILE, refuse_taken
from segship.catalog import find_model
from segship.errors import BackendUnavailable, InputError, OutputError, shown, way
from segship.files import atomic_file, check_target, sha256_of, walk_folder, write_directory, write_file
from segship.options import check_types, check_whole
from segship.ship.templates.bundling import bundle_checkpoint

Report = Callable[[str, Sequence[Row]], None]
"""Called with what was done, and the rows of its comparison; none for what needs no comparison."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is known of a target before anything of it is loaded.

    Attributes
    ----------
    module
        Where it is written.
    what
        What comes out, in a line.
    tasks
        Of the models that it takes.
    packages
        What its module imports.
    extra
        What pip installs so that they can be imported.
    takes
        What it starts from; a checkpoint is bundled first where it is a bundle.
    ending
        Of its one file; None where it is a folder.
    """

    module: str
    what: str
    tasks: tuple[str, ...] = ("promptable",)
    packages: tuple[str, ...] = ("onnx",)
    extra: str = "segship[quantize]"
    takes: Literal["bundle", "checkpoint"] = "bundle"
    ending: str | None = None


Capability = Literal["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
"""Of GPUs, as TensorRT for RTX calls them; SM75 goes alone."""

TARGETS: dict[str, Target] = {
    "ckpt": Target(
        "segship.ship.targets.ckpt",
        "a checkpoint of MindSpore, under MindFormers' names",
        packages=(),
        extra="segship",
        takes="checkpoint",
        ending=".ckpt",
    ),
    "mnn": Target(
        "segship.ship.targets.mnn",
        "the encoder and the official decoder as .mnn files, for phones and embedded boards",
        packages=("onnx", "MNN"),
        extra="segship[quantize,mnn]",
    ),
    "ascend": Target(
        "segship.ship.targets.ascend",
        "a kit of graphs and scripts for Ascend NPUs, and what runs and proves them there",
        tasks=("promptable", "semantic"),
    ),
    "nndeploy": Target(
        "segship.ship.targets.nndeploy",
        "graphs, workflow and script for nndeploy and its SAM nodes",
    ),
    "tensorrt-rtx": Target(
        "segship.ship.targets.tensorrt",
        "plans of TensorRT for RTX, built without a GPU",
        tasks=("promptable", "semantic"),
        packages=("tensorrt_rtx",),
        extra="segship[tensorrt-rtx]",
    ),
    "tensorrt": Target(
        "segship.ship.targets.tensorrt",
        "the kit that builds and accepts plans of TensorRT 10 and 11 where the GPU is",
        tasks=("promptable", "semantic"),
        packages=(),
        extra="segship",
    ),
    **{
        name: Target(
            "segship.ship.targets.phones",
            what,
            tasks=("promptable", "semantic"),
            packages=packages,
            # They clash with other packages, or are large: `make target-NAME` makes an environment of its own.
            extra=f"segship[{name}]",
            takes="checkpoint",
        )
        for name, what, packages in (
            ("executorch", "files of fixed sizes for ExecuTorch, computed by XNNPACK", ("torch", "executorch")),
            ("litert", "files of fixed sizes for LiteRT (TensorFlow Lite)", ("torch", "litert_torch")),
            ("ncnn", "files of fixed sizes for ncnn, one object a call", ("torch", "ncnn", "pnnx")),
            ("coreml", "packages of fixed sizes for Core ML, which run on a Mac alone", ("torch", "coremltools")),
        )
    },
}
"""Name -> row."""
TENSORRT = ("tensorrt", "tensorrt-rtx")
PHONES = ("executorch", "litert", "ncnn", "coreml")


def _of(*targets: str, task: str | None = None) -> Any:
    """Return the default of an option that only some targets have, and perhaps only for models of one task."""
    return field(default=None, metadata={"targets": targets, "task": task})


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How a model is converted; None is what the target has by itself.

    Attributes
    ----------
    target
        The engine or program: a name of `TARGETS`; left out, what the ending of the output says (``.ckpt``).
    force
        Replace a folder that an earlier conversion wrote.
    weights
        mnn: what weights are stored in, fp32 (when left out), fp16 or int8.
    single_mask
        mnn: one mask of an object, chosen by the reference's rule, instead of all four.
    soc
        ascend: the chip, as ``npu-smi info`` names it behind Ascend, such as Ascend310P3.
    cann
        ascend: version of CANN on the device, 6, 7 (when left out) or 8; graphs have opset 14, and 18 for 8 in fp16.
    int8
        ascend: also in int8, calibrated on the device.
    calibration
        ascend: an image list of `segship calibrate`, or pictures, for int8; drawn scenes when left out.
    places
        Points and box corners of an object. tensorrt, tensorrt-rtx: the most of a call, 32 when left out; others are
        filled up to so many, 10 when left out.
    objects
        Objects in a call of the decoder; 1 when left out. tensorrt, tensorrt-rtx: the most of a call with clicks, 8.
    gears
        ascend: numbers of places that are compiled instead of a fixed one, such as 2..9.
    size
        (height, width) of a semantic model's pictures; 512,1024 when left out. ascend: the bundle's, or 1024,2048.
    precision
        tensorrt, tensorrt-rtx: fp32 (when left out), or fp16 where the bundle holds it (`segship quantize`).
    capability
        tensorrt-rtx: GPUs that plans are for, such as SM86; all from 8.0 on when left out.
    """

    target: str | None = None
    force: bool = False
    weights: Literal["fp32", "fp16", "int8"] | None = _of("mnn")
    single_mask: bool | None = _of("mnn")
    soc: str | None = _of("ascend")
    cann: Literal[6, 7, 8] | None = _of("ascend")
    int8: bool | None = _of("ascend")
    calibration: Path | None = _of("ascend")
    places: int | None = _of("ascend", *TENSORRT, *PHONES, task="promptable")
    objects: int | None = _of("ascend", *TENSORRT, *PHONES, task="promptable")
    gears: str | None = _of("ascend", task="promptable")
    size: tuple[int, int] | None = _of("ascend", *PHONES, task="semantic")
    precision: Literal["fp32", "fp16"] | None = _of(*TENSORRT)
    capability: tuple[Capability, ...] | None = _of("tensorrt-rtx")

    def __post_init__(self) -> None:
        check_types(self)
        if self.target is None:
            return
        if self.target not in TARGETS:
            message = f"target {self.target!r} is unknown; known are {', '.join(TARGETS)}"
            raise InputError(message, code="unknown_target")
        for other in fields(self):
            targets = other.metadata.get("targets")
            if targets and self.target not in targets and getattr(self, other.name) is not None:
                name = way(other.name, f"--{other.name.replace('_', '-')}")
                message = f"{name} is an option of {', '.join(targets)}, and the target is {self.target}; leave it out"
                raise InputError(message, code="bad_option")
        check_whole(self, 1, 1024, "places", "objects")


def require_options_of(task: str, options: ConvertOptions) -> None:
    """Refuse options, as ``bad_option``, that mean nothing for models of a task."""
    for one in fields(options):
        only = one.metadata.get("task")
        if only not in (None, task) and getattr(options, one.name) is not None:
            name = way(one.name, f"--{one.name}")
            message = f"{name} is an option of {only} models, and this is a {task} one; leave it out"
            raise InputError(message, code="bad_option")


def convert(
    model: str | Path, output: str | Path, options: ConvertOptions | None = None, report: Report | None = None
) -> dict[str, Any]:
    """Convert a model for a target, and return what `EXPORT_FILE` in the new folder says.

    Parameters
    ----------
    model
        A bundle's folder, a checkpoint, or a name of `segship.load`.
    output
        Folder to make, or file where the target is one. Nothing is left behind when anything fails.
    options
        See `ConvertOptions`.
    report
        See `Report`.

    Raises
    ------
    InputError
        ``bad_option``; ``no_target`` when neither the options nor the ending of ``output`` say one; ``other_task`` when
        the target takes no models of this kind; ``needs_checkpoint`` when it starts from a checkpoint and got a bundle.
    BackendUnavailable
        ``target_missing`` when a package of the target is not installed.
    ComparisonFailed
        When what was made answers otherwise than the float32 graphs.
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written; ``unknown_format`` when the target is one
        file and ``output`` has another ending.
    """
    output = Path(output)
    target, options = _choose_target(output, options or ConvertOptions())
    row, report = TARGETS[target], report or (lambda *_: None)
    require_packages(target)
    _refuse_output(output, row, target, force=options.force)
    document: dict[str, Any] = {}
    module = import_module(row.module)
    if hasattr(module, "check_options"):
        module.check_options(options)
    with _source(model, row, options) as source:
        write, made_from = module.write, _digest(source)

        def fill(folder: Path) -> None:
            written = write(source, folder, options, report)
            document.update(_document(made_from, options, written, folder))
            write_file(folder / EXPORT_FILE, (json.dumps(document, indent=2) + "\n").encode())

        if row.ending is None:
            write_directory(output, fill, overwrite=options.force)
            return document
        with atomic_file(output, overwrite=options.force) as stream:
            written = write(source, stream, options, report)
        return _document(made_from, options, written, output)


def _refuse_output(output: Path, row: Target, target: str, *, force: bool) -> None:
    """Refuse now what could not be written after minutes of work."""
    if row.ending is None:
        refuse_taken(output, force=force)
        refuse_stranger(output)
        return
    if output.suffix != row.ending:
        message = f"target {target!r} writes one file, and {output} does not end in {row.ending}; give it that ending"
        raise OutputError(message, code="unknown_format")
    check_target(output, overwrite=force)


def _choose_target(output: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    """Return the target, named by the options or by the ending of what is to be written."""
    endings = {row.ending: name for name, row in TARGETS.items() if row.ending}
    target = options.target or endings.get(output.suffix)
    if target is None:
        named = ", ".join(f"{ending} ({name})" for ending, name in endings.items())
        message = (
            f"no target is named, and {output} has the ending of none; give {way('target=', '--target')}, one of "
            f"{', '.join(TARGETS)}, or an output that ends in {named}"
        )
        raise InputError(message, code="no_target")
    return target, replace(options, target=target)


def require_packages(target: str) -> None:
    """Refuse to begin without the packages of a target."""
    row = TARGETS[target]
    missing = [name for name in row.packages if not is_installed(name)]
    if missing:
        message = f'target {target!r} needs {", ".join(missing)}, not installed here; run: pip install "{row.extra}"'
        raise BackendUnavailable(message, code="target_missing")


def refuse_stranger(output: Path) -> None:
    """Let only folders be replaced in which nothing lies but what a conversion wrote.

    Raises
    ------
    OutputError
        ``not_an_export``.
    """
    if not os.path.isdir(output):
        return
    found = {path.relative_to(output).as_posix() for path in walk_folder(output) if not path.is_dir()}
    strange = sorted(found - _written_files(output))
    if strange:
        message = (
            f"{output} holds {shown(strange[0])}, which no conversion wrote, so it is not replaced; choose another"
        )
        raise OutputError(f"{message} folder, or empty this one yourself", code="not_an_export")


def _written_files(output: Path) -> set[str]:
    try:
        document = json.loads((output / EXPORT_FILE).read_bytes())
        return {EXPORT_FILE, *document["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


@contextmanager
def _source(model: str | Path, row: Target, options: ConvertOptions) -> Iterator[Bundle | Path]:
    """Give what a target starts from, of a model of a task that it takes."""
    path, target = find_model(model), options.target
    if row.takes == "checkpoint":
        if os.path.isdir(path):
            message = f"target {target!r} starts from a checkpoint, and {path} is a bundle; give the checkpoint"
            raise InputError(message, code="needs_checkpoint")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="segship-convert-") as folder:
        bundle = Bundle.open(path) if os.path.isdir(path) else bundle_checkpoint(path, Path(folder) / "bundle")
        task = bundle.manifest.task
        if task not in row.tasks:
            message = f"{path} is a {task} model, and target {target!r} takes {' and '.join(row.tasks)} ones"
            raise InputError(message, code="other_task")
        require_options_of(task, options)
        yield bundle


def _digest(source: Bundle | Path) -> dict[str, str]:
    """Return what a target is made from; taken before it is written, which may be in place of its checkpoint."""
    return {"bundle": source.digest} if isinstance(source, Bundle) else {"checkpoint": sha256_of(source)}


def _document(
    made_from: Mapping[str, str], options: ConvertOptions, written: Mapping[str, Any], output: Path
) -> dict[str, Any]:
    """Return what every target says of what it wrote, and after it what this one does."""
    given = {name: value for name, value in asdict(options).items() if name != "force" and value is not None}
    one = output.is_file()
    folder, files = (output.parent, [output]) if one else (output, sorted(filter(Path.is_file, walk_folder(output))))
    return {
        "segship": segship.__version__,
        "made_from": made_from,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
        **written,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files
        },
    }
