# SPDX-License-Identifier: Apache-2.0
"""The folder of a bundle: opened, checked byte for byte, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Self, get_args

from segship.bundle.artifacts import Artifact, GraphName, Option, Precision, Weights, artifact_file, weights_file
from segship.bundle.certificate import CERTIFICATE_FILE, is_certificate
from segship.bundle.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from segship.bundle.onnx_file import OnnxGraph, read_graph
from segship.bundle.onnx_rules import check_graph
from segship.catalog import EMBEDDED_MODELS, embedded_bundle, identify, identify_graphs
from segship.errors import BundleError, InputError, OutputError, way
from segship.files import (
    CHUNK_BYTES,
    check_target,
    finish_publishing,
    open_regular,
    read_bytes,
    real_path,
    sha256_of,
    write_directory,
    write_file,
)
from segship.spec import GraphSpec, TensorSpec, check_interface

OPTIONAL_FILES = frozenset({"certificate.json", "LICENSE", "NOTICE", "README.md"})
"""Texts that bundles might hold up to version 0.4, beside the digests; a folder with such may be replaced."""
# The second is one that segship wrote up to version 0.3; such a bundle may be replaced.
_GRAPH_FILE = re.compile(rf"({'|'.join((*get_args(GraphName), 'shared_decoder'))})[a-z0-9_.-]*")
_MEND = "export the bundle again or fetch it anew"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk.

    Attributes
    ----------
    path
        Its folder.
    manifest
        What it says of itself.
    digest
        SHA-256 of ``manifest.json``; since that holds the digests of all other files, it names the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Check the manifest, the list of files, their kinds and sizes; not yet the bytes of the artifacts.

        `verified` checks those of an artifact when it is used.

        Raises
        ------
        BundleError
            Naming the file that is wrong.
        """
        folder = Path(path)
        if not os.path.isdir(folder):
            # Of a process that was killed while it replaced the bundle, where that takes two steps.
            finish_publishing(folder.parent)
        if not os.path.isdir(folder):
            message = f"there is no bundle folder {folder}; name the folder that holds {MANIFEST_FILE}"
            raise BundleError(message, code="missing_bundle")
        if is_contract(folder):
            raise BundleError(
                f"{folder} holds graphs that were exported in a contract for another program, and is no bundle; export "
                "the checkpoint without a contract, or run the graphs in that program",
                code="contract_folder",
            )
        data = _read_file(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
        bundle = cls(folder, parse_manifest(data), hashlib.sha256(data).hexdigest())
        _check_artifacts(bundle.manifest)
        _check_origin(bundle.manifest)
        bundle._check_files()
        return bundle

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Check everything: what `open` checks, and every byte of every artifact.

        Raises
        ------
        BundleError
            Naming the file that is wrong.
        """
        bundle = cls.open(path)
        for artifact in bundle.manifest.artifacts:
            bundle.verified(artifact)
        return bundle

    def verified(self, artifact: Artifact) -> bytes | Path:
        """Check every byte of an artifact and return what a session loads.

        Returns
        -------
        bytes or Path
            The very bytes that were checked, if the file holds its own weights. A path if they lie beside it: the
            runtime reads both files again, so whoever may write in the folder could still change them in between.

        Raises
        ------
        BundleError
            When a byte differs from the manifest, or the graph holds what no bundle may.
        """
        data = _read_file(self.path, artifact.file, artifact.bytes)
        if len(data) != artifact.bytes or hashlib.sha256(data).hexdigest() != artifact.sha256:
            raise _changed(self.path, artifact.file, len(data), artifact.bytes)
        weights = artifact.weights
        if weights is not None:
            self._check_weights(weights)
        name, size = (weights.file, weights.bytes) if weights is not None else (None, 0)
        graph = read_graph(data)
        kind = self.manifest.graph_kind(artifact.graph)
        check_graph(graph, kind=kind, file=artifact.file, sidecar=name, sidecar_bytes=size)
        check_interface(graph.inputs, graph.outputs, self.manifest.graph_spec(artifact.graph))
        return data if weights is None else self.path / artifact.file

    def _check_weights(self, weights: Weights) -> None:
        path = self.path / weights.file
        try:
            digest = sha256_of(path)
        except InputError as error:
            _refuse_file(weights.file, error)
        if digest != weights.sha256:
            raise _changed(self.path, weights.file, path.stat().st_size, weights.bytes)

    def _check_files(self) -> None:
        """Compare what lies in the folder with what the manifest lists: names, kinds, sizes."""
        expected = _expected_sizes(self.manifest)
        for entry in _entries(self.path):
            size = entry.stat(follow_symlinks=False)
            if entry.name == CERTIFICATE_FILE and stat.S_ISREG(size.st_mode) and is_certificate(self.path):
                continue
            if entry.name not in expected:
                message = f"the bundle {self.path} holds {entry.name[:100]!r}, which does not belong there; remove it"
                raise BundleError(message, code="strange_file")
            if not stat.S_ISREG(size.st_mode):
                message = f"{entry.name} in the bundle {self.path} is not a regular file; {_MEND}"
                raise BundleError(message, code="not_a_regular_file")
            wanted = expected.pop(entry.name, None)
            if wanted is not None and wanted != size.st_size:
                raise _changed(self.path, entry.name, size.st_size, wanted)
        if expected:
            message = f"the bundle {self.path} lacks {', '.join(sorted(expected))}; {_MEND}"
            raise BundleError(message, code="missing_file")


def write_bundle(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    graph_files: Mapping[str, str | os.PathLike[str]],
    *,
    options: Mapping[str, Mapping[str, Option]] | None = None,
    force: bool = False,
    move: bool = False,
) -> Bundle:
    """Write a bundle, check it, and only then let it appear under its name.

    Parameters
    ----------
    directory
        The folder to make.
    manifest
        Everything but ``graphs`` and ``artifacts``, which are filled in from the files.
    graph_files
        Graph -> ONNX file in fp32, for one of the manifest's sets of graphs. Weights outside a file must lie beside it
        in a file named like the bundle's, such as ``image_encoder.onnx.data``.
    options
        Graph -> what decided its bytes, for its artifact; ``target`` among them is the artifact's own.
    force
        Replace a folder that is itself a bundle; another folder is never replaced.
    move
        Take the files from where they lie, instead of copies.

    Raises
    ------
    BundleError
        When a graph holds what no bundle may, or does not keep its contract.
    OutputError
        When the folder exists and ``force`` is off, or cannot be written.
    """
    target = Path(directory)
    if frozenset(graph_files) not in manifest.graph_sets:
        raise BundleError(f"{_wanted_graphs(manifest)}; {sorted(graph_files)} were given", code="missing_graph")
    if force:
        refuse_stranger(target)
    finished: list[Bundle] = []
    put = _move if move else _copy
    made_from = manifest.checkpoint.sha256

    def fill(folder: Path) -> None:
        added = [
            _add_graph(folder, manifest, name, Path(file), (options or {}).get(name, {}), made_from, put)
            for name, file in graph_files.items()
        ]
        specs, artifacts = zip(*added, strict=True)
        # The manifest comes last: where it stands, the bundle is whole.
        write_file(folder / MANIFEST_FILE, replace(manifest, graphs=specs, artifacts=artifacts).to_json())
        finished.append(Bundle.read(folder))

    write_directory(target, fill, overwrite=force)
    return replace(finished[0], path=target)


def refuse_package(bundle: Bundle) -> None:
    """Let no model inside the package be changed: ``bundle_in_package``."""
    if any(real_path(bundle.path) == real_path(embedded_bundle(model)) for model in EMBEDDED_MODELS):
        copy = way("out=FOLDER", "--out FOLDER")
        message = f"{bundle.path} lies inside the package, whose files are not changed; write a copy: {copy}"
        raise InputError(message, code="bundle_in_package")


def renew_file(bundle: Bundle, name: str, make: Callable[[], bytes], out: Path | None = None) -> Bundle:
    """Write one file of a bundle anew, in place or into a copy of the bundle.

    ``make`` is called within the writing of a copy, so that a place that cannot be taken is refused before minutes are
    spent.

    Raises
    ------
    InputError
        ``bundle_in_package`` for a model inside the package, whose files are not changed: name a copy with ``out``.
    OutputError
        When the file cannot be written, or ``out`` is there.
    """
    if out is None:
        refuse_package(bundle)
        write_file(bundle.path / name, make(), overwrite=True)
        return Bundle.open(bundle.path)

    def fill(folder: Path) -> None:
        for file in sorted(bundle.path.iterdir()):
            if file.name != name:
                shutil.copyfile(file, folder / file.name)
        write_file(folder / name, make())

    write_directory(out, fill)
    return Bundle.open(out)


def add_artifacts(
    bundle: Bundle,
    manifest: Manifest,
    graph_files: Mapping[str, Path],
    precision: Precision,
    *,
    options: Mapping[str, Mapping[str, Option]],
    directory: Path | None = None,
    only: bool = False,
    lean: bool = False,
    force: bool = False,
) -> Bundle:
    """Write a bundle's graphs in another precision beside those that it has, in place or as another bundle.

    Parameters
    ----------
    bundle
        What they were made from; its files are checked as they are copied.
    manifest
        That of the new bundle but for its artifacts.
    graph_files
        Graph -> ONNX file, named as the bundle will name it, which is moved.
    options
        Graph -> what decided its bytes.
    directory
        Where to write; the bundle is replaced when left out.
    only
        Leave out the artifacts of other precisions, but those of graphs that have none in this one.
    lean
        Leave out the graphs that a bundle can do without.
    force
        Replace a bundle that is already in ``directory``.

    Raises
    ------
    BundleError
        When a graph holds what no bundle may, or does not keep its contract.
    OutputError
        When the folder cannot be written.
    """
    target = directory or bundle.path
    if force:
        refuse_stranger(target)
    finished: list[Bundle] = []
    names = manifest.graph_sets[0] if lean else frozenset(spec.name for spec in manifest.graphs)
    kept = [
        artifact
        for artifact in bundle.manifest.artifacts
        if artifact.graph in names
        if artifact.graph not in graph_files or not (only or artifact.precision == precision)
    ]

    def fill(folder: Path) -> None:
        for name in (name for artifact in kept for name in artifact.files):
            _copy(bundle.path / name, folder / name)
        added = []
        for name, file in ((name, file) for name, file in graph_files.items() if name in names):
            made_from = bundle.manifest.artifact(name).sha256
            added.append(_add_graph(folder, manifest, name, file, options[name], made_from, _move, precision)[1])
        specs = tuple(spec for spec in manifest.graphs if spec.name in names)
        write_file(folder / MANIFEST_FILE, replace(manifest, graphs=specs, artifacts=(*kept, *added)).to_json())
        finished.append(Bundle.read(folder))

    write_directory(target, fill, overwrite=force or directory is None)
    return replace(finished[0], path=target)


def _add_graph(
    folder: Path,
    manifest: Manifest,
    name: str,
    source: Path,
    options: Mapping[str, Option],
    made_from: str,
    put: Put,
    precision: Precision = "fp32",
) -> tuple[GraphSpec, Artifact]:
    """Put a graph and the file of its weights into the bundle; return its contract and its artifact."""
    file = artifact_file(name, precision=precision)
    put(source, folder / file)
    graph = read_graph(folder / file)
    spec = _as_free_as(graph, manifest.contracts[name])
    weights = _add_weights(folder, graph, source, weights_file(file), put)
    check_interface(graph.inputs, graph.outputs, spec)
    artifact = Artifact(
        graph=name,  # type: ignore[arg-type]  # The manifest's contracts have no other names.
        format="onnx",
        precision=precision,
        target=str(options.get("target", "onnxruntime")),
        file=file,
        bytes=(folder / file).stat().st_size,
        sha256=sha256_of(folder / file),
        made_from=made_from,
        weights=weights,
        options={key: value for key, value in options.items() if key != "target"},
    )
    return spec, artifact


def _add_weights(folder: Path, graph: OnnxGraph, source: Path, name: str, put: Put) -> Weights | None:
    if not graph.external_locations:
        return None
    if graph.external_locations != (name,):
        message = (
            f"{source.name} keeps weights in {list(graph.external_locations)[:3]}; a bundle keeps them in {name} "
            "alone, so save the graph with that location"
        )
        raise BundleError(message, code="external_data_location")
    put(source.with_name(name), folder / name)
    path = folder / name
    return Weights(file=name, bytes=path.stat().st_size, sha256=sha256_of(path))


Put = Callable[[Path, Path], None]


def _copy(source: Path, target: Path) -> None:
    write_file(target, _pieces(source))


def _move(source: Path, target: Path) -> None:
    try:
        os.rename(source, target)
    except OSError:
        # On another file system.
        _copy(source, target)


def _pieces(path: Path) -> Iterator[bytes]:
    with open_regular(path) as stream:
        while piece := stream.read(CHUNK_BYTES):
            yield piece


def _as_free_as(graph: OnnxGraph, contract: GraphSpec) -> GraphSpec:
    """Return the contract with the sizes that a graph has fixed where the contract leaves them open."""
    return GraphSpec(
        contract.name,
        tuple(_narrowed(tensor, graph.inputs) for tensor in contract.inputs),
        tuple(_narrowed(tensor, graph.outputs) for tensor in contract.outputs),
    )


def _narrowed(tensor: TensorSpec, found: tuple[TensorSpec, ...]) -> TensorSpec:
    declared = next((other.shape for other in found if other.name == tensor.name), ())
    if len(declared) != len(tensor.shape):
        return tensor
    sizes = zip(declared, tensor.shape, strict=True)
    return TensorSpec(
        tensor.name,
        tensor.dtype,
        tuple(size if isinstance(size, int) and isinstance(wanted, str) else wanted for size, wanted in sizes),
    )


def _check_artifacts(manifest: Manifest) -> None:
    """Check that the manifest lists the task's graphs with their contracts, and files under their own names."""
    graphs = [spec.name for spec in manifest.graphs]
    made = {artifact.graph for artifact in manifest.artifacts}
    if len(set(graphs)) != len(graphs) or set(graphs) != made or frozenset(graphs) not in manifest.graph_sets:
        message = f"{MANIFEST_FILE} lists the graphs {sorted(graphs)}; {_wanted_graphs(manifest)}; {_MEND}"
        raise BundleError(message, code="missing_graph")
    for artifact in manifest.artifacts:
        file = artifact_file(artifact.graph, artifact.format, artifact.precision)
        beside = None if artifact.weights is None else artifact.weights.file
        if artifact.file != file or beside not in (None, weights_file(file)):
            message = (
                f"{MANIFEST_FILE} names the files {artifact.file!r} and {beside!r} for {artifact.graph}; "
                f"accepted are only {file!r} and {weights_file(file)!r}; {_MEND}"
            )
            raise BundleError(message, code="file_name")
    if len({artifact.file for artifact in manifest.artifacts}) != len(manifest.artifacts):
        raise BundleError(f"{MANIFEST_FILE} lists a file twice; {_MEND}", code="file_name")
    for spec in manifest.graphs:
        _check_contract(spec, manifest.contracts[spec.name])


def _check_origin(manifest: Manifest) -> None:
    """Let nothing call itself published whose digest is not."""
    origin = manifest.checkpoint
    if origin.known and identify(origin.sha256) is None and identify_graphs(origin.sha256) is None:
        message = (
            f"{MANIFEST_FILE} calls {origin.name} a published checkpoint, and its SHA-256 {origin.sha256} is none of "
            f"theirs; {_MEND}"
        )
        raise BundleError(message, code="not_published")


def _wanted_graphs(manifest: Manifest) -> str:
    needed, *more = manifest.graph_sets
    stated = f"a bundle needs the graphs {sorted(needed)}"
    optional = " or ".join(str(sorted(graphs - needed)) for graphs in more)
    return f"{stated} and may add {optional}" if optional else f"{stated} and no other"


def _check_contract(stated: GraphSpec, contract: GraphSpec) -> None:
    for found, wanted in ((stated.inputs, contract.inputs), (stated.outputs, contract.outputs)):
        names = [tensor.name for tensor in wanted]
        what = f"{MANIFEST_FILE} states other tensors for {stated.name} than its contract ({names})"
        if [tensor.name for tensor in found] != names:
            raise BundleError(f"{what}; {_MEND}", code="graph_interface")
        for tensor, other in zip(found, wanted, strict=True):
            if not _is_as_narrow(tensor, other):
                stands, due = (f"{one.dtype} ({', '.join(map(str, one.shape))})" for one in (tensor, other))
                message = f"{what}: {tensor.name} is {stands} there, and {due} by the rest of the manifest; {_MEND}"
                raise BundleError(message, code="graph_interface")


def _is_as_narrow(tensor: TensorSpec, contract: TensorSpec) -> bool:
    """Return whether a tensor is that of its contract, or has sizes where that leaves them open."""
    return (tensor.dtype, len(tensor.shape)) == (contract.dtype, len(contract.shape)) and all(
        size == expected or (isinstance(size, int) and isinstance(expected, str))
        for size, expected in zip(tensor.shape, contract.shape, strict=True)
    )


def _expected_sizes(manifest: Manifest) -> dict[str, int | None]:
    """Return every file that must be there, with its size; the manifest's own is not known to it."""
    sizes: dict[str, int | None] = {MANIFEST_FILE: None}
    for artifact in manifest.artifacts:
        sizes[artifact.file] = artifact.bytes
        if artifact.weights is not None:
            sizes[artifact.weights.file] = artifact.weights.bytes
    return sizes


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


EXPORT_FILE = "export.json"
"""What the folder of an export in a contract holds in the place of a manifest."""


def is_contract(folder: Path) -> bool:
    """Return whether a folder is an export in a contract (`segship.ship.contracts`), of graphs for another program."""
    return os.path.isfile(folder / EXPORT_FILE) and not os.path.lexists(folder / MANIFEST_FILE)


def _read_file(folder: Path, name: str, limit: int) -> bytes:
    try:
        return read_bytes(folder / name, limit=limit)
    except InputError as error:
        _refuse_file(name, error)


def _refuse_file(name: str, error: InputError) -> NoReturn:
    """Say about a file of a bundle what the reader said about it as a file."""
    codes = {"file_missing": "missing_file", "file_too_large": "changed_file"}
    code = codes.get(error.code, "not_a_regular_file")
    raise BundleError(f"{name} of the bundle cannot be used: {error}; {_MEND}", code=code) from error


def _changed(folder: Path, name: str, found: int, wanted: int) -> BundleError:
    problem = f"it has {found} bytes instead of {wanted}" if found != wanted else "its SHA-256 differs"
    message = f"{name} in the bundle {folder} is not the file that {MANIFEST_FILE} lists: {problem}; {_MEND}"
    return BundleError(message, code="changed_file")


def refuse_stranger(target: Path) -> None:
    """Let only folders be replaced in which nothing lies but what a bundle may hold."""
    if not os.path.isdir(target) or target.is_symlink():
        return
    texts = {MANIFEST_FILE, *OPTIONAL_FILES}
    names = [entry.name for entry in _entries(target)]
    foreign = [name for name in names if name not in texts and not _GRAPH_FILE.fullmatch(name)]
    if names and (MANIFEST_FILE not in names or foreign):
        message = f"{target} is not a bundle, so it is not replaced; choose another folder, or empty this one yourself"
        raise OutputError(message, code="not_a_bundle")


def refuse_taken(output: Path, *, force: bool) -> None:
    """Refuse a folder that is there already, before minutes of work are spent on it."""
    if os.path.lexists(output) and not force:
        raise OutputError(
            f"{output} exists; choose another folder, or replace a bundle with {way('force=True', '--overwrite')}",
            code="output_exists",
        )
    check_target(output, overwrite=force, folder=True)
