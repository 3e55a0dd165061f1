# SPDX-License-Identifier: Apache-2.0
"""The folder of a bundle: opened, checked byte for byte, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self, cast

from segship.backends.session import check_interface
from segship.bundle.entries import GRAPH_FILES, ExternalData, GraphEntry, GraphName, TensorEntry, sidecar_of
from segship.bundle.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from segship.bundle.onnx_file import OnnxGraph, read_graph
from segship.bundle.onnx_rules import check_graph
from segship.errors import BundleError, InputError, OutputError
from segship.files import CHUNK_BYTES, open_regular, read_bytes, sha256_of, write_directory, write_file
from segship.spec import GraphSpec, TensorSpec

OPTIONAL_FILES = frozenset({"certificate.json", "LICENSE", "NOTICE", "README.md"})
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
        """Check the manifest, the list of files, their kinds and sizes; not yet the bytes of the graphs.

        `verified_graph` checks those of a graph when it is used.

        Raises
        ------
        BundleError
            Naming the file that is wrong.
        """
        folder = Path(path)
        if not folder.is_dir():
            message = f"there is no bundle folder {folder}; name the folder that holds {MANIFEST_FILE}"
            raise BundleError(message, code="missing_bundle")
        data = _read_file(folder, MANIFEST_FILE, MAX_MANIFEST_BYTES)
        bundle = cls(folder, parse_manifest(data), hashlib.sha256(data).hexdigest())
        _check_entries(bundle.manifest)
        bundle._check_files()
        return bundle

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Check everything: what `open` checks, and every byte of every graph.

        Raises
        ------
        BundleError
            Naming the file that is wrong.
        """
        bundle = cls.open(path)
        for name in bundle.manifest.graphs:
            bundle.verified_graph(name)
        return bundle

    def verified_graph(self, name: str) -> bytes | Path:
        """Check every byte of a graph and return what a session loads.

        Returns
        -------
        bytes or Path
            The very bytes that were checked, if the graph holds its own weights. A path if they lie in a sidecar: the
            runtime reads both files again, so whoever may write in the folder could still change them in between.

        Raises
        ------
        BundleError
            When a byte differs from the manifest, or the graph holds what no bundle may.
        """
        if name not in self.manifest.graphs:
            message = f"the bundle {self.path} has no graph {name!r}; it has {', '.join(self.manifest.graphs)}"
            raise BundleError(message, code="unknown_graph")
        entry = self.manifest.graphs[name]
        data = _read_file(self.path, entry.file, entry.bytes)
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _changed(self.path, entry.file, len(data), entry.bytes)
        external = entry.external_data
        if external is not None:
            self._check_sidecar(external)
        sidecar, size = (external.file, external.bytes) if external is not None else (None, 0)
        graph = read_graph(data)
        check_graph(graph, file=entry.file, sidecar=sidecar, sidecar_bytes=size)
        check_interface(graph.inputs, graph.outputs, self.manifest.graph_spec(name))
        return data if external is None else self.path / entry.file

    def _check_sidecar(self, external: ExternalData) -> None:
        path = self.path / external.file
        try:
            digest = sha256_of(path)
        except InputError as error:
            _refuse_file(external.file, error)
        if digest != external.sha256:
            raise _changed(self.path, external.file, path.stat().st_size, external.bytes)

    def _check_files(self) -> None:
        """Compare what lies in the folder with what the manifest lists: names, kinds, sizes."""
        expected = _expected_sizes(self.manifest)
        for entry in _entries(self.path):
            size = entry.stat(follow_symlinks=False)
            if entry.name not in expected and entry.name not in OPTIONAL_FILES:
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
    variants: Mapping[str, str] | None = None,
    force: bool = False,
) -> Bundle:
    """Write a bundle, check it, and only then let it appear under its name.

    Parameters
    ----------
    directory
        The folder to make.
    manifest
        Everything but ``graphs``, which is filled in from the files.
    graph_files
        Graph -> ONNX file, for every graph that the family needs, and for all optional ones or none. Weights outside a
        file must lie beside it in a file named like the bundle's, such as ``image_encoder.onnx.data``.
    variants
        Graph -> which of the equal ways of computing it, where one was chosen (`segship.ship.variants`).
    force
        Replace a folder that is itself a bundle; another folder is never replaced.

    Raises
    ------
    BundleError
        When a graph holds what no bundle may, or does not keep its contract.
    OutputError
        When the folder exists and ``force`` is off, or cannot be written.
    """
    target = Path(directory)
    if not _is_whole_set(manifest, graph_files):
        raise BundleError(f"{_wanted_graphs(manifest)}; {sorted(graph_files)} were given", code="missing_graph")
    if force:
        _refuse_stranger(target)
    finished: list[Bundle] = []

    def fill(folder: Path) -> None:
        graphs = {
            name: _add_graph(folder, manifest, cast(GraphName, name), Path(file), (variants or {}).get(name, "plain"))
            for name, file in graph_files.items()
        }
        # The manifest comes last: where it stands, the bundle is whole.
        write_file(folder / MANIFEST_FILE, manifest.model_copy(update={"graphs": graphs}).to_json())
        finished.append(Bundle.read(folder))

    write_directory(target, fill, overwrite=force)
    return Bundle(target, finished[0].manifest, finished[0].digest)


def _add_graph(folder: Path, manifest: Manifest, name: GraphName, source: Path, variant: str) -> GraphEntry:
    """Copy a graph and its sidecar into the bundle and return their entry."""
    file = GRAPH_FILES[name]
    write_file(folder / file, _pieces(source))
    graph = read_graph(folder / file)
    external = _add_sidecar(folder, graph, source, sidecar_of(file))
    contract = manifest.contracts[name]
    check_interface(graph.inputs, graph.outputs, _as_free_as(graph, contract))
    return GraphEntry(
        file=file,
        bytes=(folder / file).stat().st_size,
        sha256=sha256_of(folder / file),
        external_data=external,
        variant=variant,
        inputs=[_tensor_entry(tensor, graph.inputs) for tensor in contract.inputs],
        outputs=[_tensor_entry(tensor, graph.outputs) for tensor in contract.outputs],
    )


def _add_sidecar(folder: Path, graph: OnnxGraph, source: Path, sidecar: str) -> ExternalData | None:
    if not graph.external_locations:
        return None
    if graph.external_locations != (sidecar,):
        message = (
            f"{source.name} keeps weights in {list(graph.external_locations)[:3]}; a bundle keeps them in {sidecar} "
            "alone, so save the graph with that location"
        )
        raise BundleError(message, code="external_data_location")
    write_file(folder / sidecar, _pieces(source.with_name(sidecar)))
    path = folder / sidecar
    return ExternalData(file=sidecar, bytes=path.stat().st_size, sha256=sha256_of(path))


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


def _tensor_entry(tensor: TensorSpec, found: tuple[TensorSpec, ...]) -> TensorEntry:
    narrowed = _narrowed(tensor, found)
    # A contract's dtype is any text to the type checker; validation holds it against the manifest's list.
    return TensorEntry.model_validate({"name": narrowed.name, "dtype": narrowed.dtype, "shape": list(narrowed.shape)})


def _check_entries(manifest: Manifest) -> None:
    """Check that the manifest lists the family's graphs, under their fixed names and with their contracts."""
    contracts = manifest.contracts
    if not _is_whole_set(manifest, manifest.graphs):
        message = f"{MANIFEST_FILE} lists the graphs {sorted(manifest.graphs)}; {_wanted_graphs(manifest)}; {_MEND}"
        raise BundleError(message, code="missing_graph")
    for name, entry in manifest.graphs.items():
        file = GRAPH_FILES[name]
        sidecar = None if entry.external_data is None else entry.external_data.file
        if entry.file != file or sidecar not in (None, sidecar_of(file)):
            message = (
                f"{MANIFEST_FILE} names the files {entry.file!r} and {sidecar!r} for {name}; "
                f"accepted are only {file!r} and {sidecar_of(file)!r}; {_MEND}"
            )
            raise BundleError(message, code="file_name")
        _check_contract(manifest.graph_spec(name), contracts[name])


def _is_whole_set(manifest: Manifest, graphs: Collection[str]) -> bool:
    """Tell whether these are the graphs that a family needs, with one of the optional sets or none of them."""
    required = set(manifest.required_graphs)
    return set(graphs) in [required, *(required.union(chosen) for chosen in manifest.optional_graphs)]


def _wanted_graphs(manifest: Manifest) -> str:
    needed = f"a bundle needs the graphs {sorted(manifest.required_graphs)}"
    optional = " or ".join(str(sorted(chosen)) for chosen in manifest.optional_graphs)
    return f"{needed} and may add {optional}" if optional else f"{needed} and no other"


def _check_contract(stated: GraphSpec, contract: GraphSpec) -> None:
    for found, wanted in ((stated.inputs, contract.inputs), (stated.outputs, contract.outputs)):
        names = [tensor.name for tensor in wanted]
        same = [tensor.name for tensor in found] == names and all(
            tensor.dtype == other.dtype
            and len(tensor.shape) == len(other.shape)
            and all(
                size == expected or (isinstance(size, int) and isinstance(expected, str))
                for size, expected in zip(tensor.shape, other.shape, strict=True)
            )
            for tensor, other in zip(found, wanted, strict=True)
        )
        if not same:
            message = f"{MANIFEST_FILE} states other tensors for {stated.name} than its contract ({names}); {_MEND}"
            raise BundleError(message, code="graph_interface")


def _expected_sizes(manifest: Manifest) -> dict[str, int | None]:
    """Return every file that must be there, with its size; the manifest's own is not known to it."""
    sizes: dict[str, int | None] = {MANIFEST_FILE: None}
    for entry in manifest.graphs.values():
        sizes[entry.file] = entry.bytes
        if entry.external_data is not None:
            sizes[entry.external_data.file] = entry.external_data.bytes
    return sizes


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


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


def _refuse_stranger(target: Path) -> None:
    """Let only folders be replaced in which nothing lies but what a bundle may hold."""
    if not target.is_dir() or target.is_symlink():
        return
    own = {MANIFEST_FILE, *GRAPH_FILES.values(), *map(sidecar_of, GRAPH_FILES.values()), *OPTIONAL_FILES}
    names = [entry.name for entry in _entries(target)]
    if names and (MANIFEST_FILE not in names or not own.issuperset(names)):
        message = f"{target} is not a bundle, so it is not replaced; choose another folder, or empty this one yourself"
        raise OutputError(message, code="not_a_bundle")
