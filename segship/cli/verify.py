# SPDX-License-Identifier: Apache-2.0
"""``segship verify``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from segship.bundle.evidence import EXACT, require_passed
from segship.certify import CertifyOptions, Line, certify_kit, require_held, verify_certificate
from segship.cli.export import comparison_table, require_exporter
from segship.cli.options import LOCATE_GROUP, Fields, Force, Json, command
from segship.cli.output import check_plot, make_table, plain, print_json, progress_console, results_console
from segship.errors import ExportError, InputError
from segship.files import write_file
from segship.ship.options import LocateOptions

if TYPE_CHECKING:
    from segship.ship.locate import Located, TensorError

CERTIFIED = Fields(limit=None, objects=None)
"""How pictures were chosen stands in the certificate."""
EXIT_DIFFERS = 5
"""That of `ExportError`; a document of JSON has been printed then, and there is only one."""
WHERE = Fields(None, LOCATE_GROUP, memory_bytes=None)


@command
def verify(
    bundle: Path,
    /,
    *,
    torch: Annotated[Path | None, Parameter(name="--torch")] = None,
    images: Path | None = None,
    kit: Path | None = None,
    options: Annotated[CertifyOptions, CERTIFIED],
    locate: Annotated[bool, Parameter(group=LOCATE_GROUP)] = False,
    where: Annotated[LocateOptions, WHERE],
    precision: Annotated[str, Parameter(group=LOCATE_GROUP)] = EXACT,
    against: Annotated[Path | None, Parameter(group=LOCATE_GROUP)] = None,
    plot: Annotated[Path | None, Parameter(group=LOCATE_GROUP)] = None,
    overwrite: Force = False,
    json: Json = False,
) -> int:
    """Prove a certificate anew, or hold graphs against a torch model.

    With --locate it says where graphs leave torch, or other graphs. Exits with 5 when something that the certificate
    says does not hold here, a graph differs from torch by more than the bar of an export, or a tensor by more than the
    factor.

    Parameters
    ----------
    bundle
        A bundle that was certified; or, with --torch, one that was made of the checkpoint by `segship bundle`,
        `segship fetch` or `segship export`, or graphs of `segship import` that are believed to be.
    torch
        Compare with this checkpoint; it is run in torch, which must be installed.
    images
        The pictures of the certificate: measures its figures again. Digests and a few built-in cases when left out.
    kit
        The report.json that a kit's run.py wrote on its device: takes it into the certificate instead.
    locate
        Compare the tensors inside the graphs in the order of computing, and name the first that leaves its reference:
        that of --torch, of --against, or the graph in fp32.
    precision
        With --locate: of the bundle's graphs.
    against
        With --locate: another bundle, or an .onnx file for the graph with its inputs.
    plot
        With --locate: draw the error along depth into this .svg file.
    overwrite
        Replace the .svg file if it is there.

    Examples
    --------
    segship verify sam_vit_b --images evaluation
    segship verify sam_vit_b --torch sam_vit_b_01ec64.pth
    segship verify sam_vit_b --kit report.json
    segship verify sam_vit_b --locate --precision int8 --plot depth.svg
    segship verify sam_vit_b --locate --against changed.onnx
    """
    if locate:
        check_plot(plot, overwrite=overwrite)
        require_exporter("looking into graphs")
        from segship.ship.locate import locate_in_bundle

        graphs = locate_in_bundle(bundle, precision=precision, against=against, checkpoint=torch, options=where)
        return _show_located(bundle, _each(graphs), json, plot, overwrite)
    if against is not None or plot is not None or precision != EXACT:
        message = "--against, --precision and --plot belong to --locate, which was not given; give it too"
        raise InputError(message, code="bad_option")
    if kit is not None:
        return _take_kit(bundle, kit, json, alone=torch is None and images is None)
    if torch is not None:
        if images is not None:
            message = "--images are of the certificate and --torch compares with torch; give one of them"
            raise InputError(message, code="bad_option")
        _compare(bundle, torch, json)
        return 0
    with progress_console().status(f"proving {plain(bundle.name)}"):
        lines = verify_certificate(bundle, images, options)
    if json:
        print_json({"path": str(bundle), "certificate": [asdict(line) for line in lines]})
        return 0 if all(line.holds for line in lines) else EXIT_DIFFERS
    results_console().print(_lines_table(lines))
    require_held(lines)
    return 0


def _take_kit(bundle: Path, report: Path, json: bool, *, alone: bool) -> int:
    if not alone:
        message = "--kit takes a report into the certificate; leave --images and --torch out"
        raise InputError(message, code="bad_option")
    row = certify_kit(bundle, report)
    if json:
        print_json({"path": str(bundle), "certified": asdict(row)})
    else:
        console = results_console()
        console.print(comparison_table(row.evidence.rows if row.evidence else ()))
        console.print(plain(f"{row.backend} {row.precision} on {row.cpu}: {row.verdict}, {row.reason}"))
    return EXIT_DIFFERS if row.verdict == "fail" else 0


def _compare(bundle: Path, torch: Path, json: bool) -> None:
    require_exporter("comparing with the torch model")
    # torch takes seconds to import and is not installed everywhere.
    from segship.ship.verify import verify_bundle

    with progress_console().status(f"comparing {plain(bundle.name)} with {plain(torch.name)}"):
        rows = verify_bundle(bundle, torch)
    if json:
        print_json({"path": str(bundle), "comparison": [asdict(row) for row in rows]})
    else:
        results_console().print(comparison_table(rows))
    require_passed(rows)


def _lines_table(lines: Sequence[Line]) -> object:
    rows = [(line.what, "holds" if line.holds else "DOES NOT HOLD", line.found) for line in lines]
    return make_table(("certified", "here", "found"), rows)


def _each(graphs: Iterable[Located]) -> list[Located]:
    """Return all graphs, and say which are done."""
    found = []
    for located in graphs:
        progress_console().print(f"{plain(located.graph)}: {len(located.depth)} of {located.tensors} tensors compared")
        found.append(located)
    return found


def _show_located(bundle: Path, graphs: list[Located], json: bool, plot: Path | None, overwrite: bool) -> int:
    """Print graphs beside their references, and return the exit code."""
    from segship.ship.locate import draw_depth

    if plot is not None:
        write_file(plot, draw_depth(graphs).encode(), overwrite=overwrite)
    left = [located.graph for located in graphs if located.first is not None]
    if json:
        print_json({"path": str(bundle), "graphs": [_document(located) for located in graphs]})
        return EXIT_DIFFERS if left else 0
    columns = ("graph", ">compared", "first tensor", "node", "dtype", "expected", "found", ">error", ">before")
    compared = (f"{len(located.depth)} of {located.tensors}" for located in graphs)
    rows = [(located.graph, many, *_cells(located.first)) for located, many in zip(graphs, compared, strict=True)]
    results_console().print(make_table(columns, rows))
    if left:
        message = f"tensors of {', '.join(left)} leave their reference; what computes the first of each is named above"
        raise ExportError(message, code="tensors_differ")
    return 0


def _document(located: Located) -> dict[str, Any]:
    """Return a graph without the infinities that JSON has no word for."""
    document = asdict(located)
    for entry in filter(None, (document["first"], *document["depth"])):
        for name in ("expected", "found"):
            entry[name] = [value if isfinite(value) else str(value) for value in entry[name]]
        entry.update({name: str(entry[name]) for name in ("error", "before") if not isfinite(entry[name])})
    return document


def _cells(first: TensorError | None) -> tuple[str, ...]:
    if first is None:
        return ("none", *[""] * 6)
    ranges = (f"{low:.4g} to {high:.4g}" for low, high in (first.expected, first.found))
    node = f"{first.op_type} {first.node}" if first.node != first.tensor else first.op_type
    return (first.tensor, node, first.dtype, *ranges, f"{first.error:.2g}", f"{first.before:.2g}")
