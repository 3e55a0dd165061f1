# SPDX-License-Identifier: Apache-2.0
"""Convert models for every target whose packages are here, and keep what became of it.

    python -m benchmarks.targets [--targets mnn ...] [--models tiny vit_t vit_b semask_s.all] [--no-save]

Rows of other targets and models stay as they are, so that each environment adds what it can. Weights but those of tiny
are seeded, in the published layouts. The table of README.md is made of the file, and a test holds them together.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import segship
from segship.backends import is_installed
from segship.bundle.evidence import Row, describe_figures
from segship.catalog import embedded_bundle
from segship.errors import SegshipError
from segship.ship.families import family_module
from segship.ship.targets import TARGETS, ConvertOptions, convert
from segship.ship.targets.results import (
    RESULTS_FILE,
    Result,
    markdown_table,
    merge_results,
    read_results,
    results_json,
)
from segship.ship.templates.bundling import BundleOptions, bundle_checkpoint
from segship.ship.templates.making import seeded_checkpoint

SEMANTIC_SIZE = (512, 1024)
CITYSCAPES = 19
"""Classes, whose names are known."""
README, MARK = Path(__file__).parents[1] / "README.md", "<!-- targets -->"
FAMILIES = {"tiny": "sam", "vit_t": "sam", "vit_b": "sam", "semask_s.all": "semask"}
"""Model, as its template is called -> family."""
GIVEN: dict[str, dict[str, Any]] = {"ascend": {"soc": "Ascend310P3"}}
"""What a target does not go without."""


def main() -> None:
    """Convert, print the table, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [name for name, row in TARGETS.items() if all(map(is_installed, row.packages))]
    parser.add_argument("--targets", nargs="+", default=here, choices=list(TARGETS))
    parser.add_argument("--models", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="segship-targets-") as folder:
        for model in arguments.models:
            sources = _sources(model, Path(folder))
            for target in arguments.targets:
                found.append(_try(target, model, sources, Path(folder) / f"{target}-{model}"))
                print(markdown_table(found[-1:]).splitlines()[-1], flush=True)
    if not arguments.no_save:
        save(merge_results(read_results(), found))


def save(results: Sequence[Result]) -> None:
    """Write the results into the package, and their table into README.md."""
    RESULTS_FILE.write_text(results_json(results))
    before, _, after = README.read_text().split(MARK)
    README.write_text(f"{before}{MARK}\n{markdown_table(results)}{MARK}{after}")


def _sources(model: str, folder: Path) -> dict[str, Path]:
    """Return the bundle of a model, and its checkpoint."""
    if model == "tiny":
        checkpoint = Path(__file__).parents[1] / "recipes" / "tiny" / "tiny.safetensors"
        return {"bundle": embedded_bundle("tiny"), "checkpoint": checkpoint}
    family, bundle = FAMILIES[model], folder / f"{model}.bundle"
    config = family_module(family).template_configs()[model]
    if family == "semask":
        config = replace(config, classes=CITYSCAPES)
    checkpoint = seeded_checkpoint(family, config, folder, 1)
    size = SEMANTIC_SIZE if family == "semask" else None
    bundle_checkpoint(checkpoint, bundle, BundleOptions(size=size))
    return {"bundle": bundle, "checkpoint": checkpoint}


def _try(target: str, model: str, sources: Mapping[str, Path], output: Path) -> Result:
    row, rows = TARGETS[target], []

    def report(step: str, compared: Sequence[Row]) -> None:
        rows.extend(compared)

    result = Result(
        target,
        model,
        FAMILIES[model],
        None,
        None,
        None,
        False,
        time.strftime("%Y-%m-%d"),
        f"segship {segship.__version__}",
    )
    try:
        options = ConvertOptions(target=target, **GIVEN.get(target, {}))
        output = output.with_suffix(row.ending or "")
        document = convert(sources[row.takes], output, options, report)
    except SegshipError as error:
        said = str(error).replace(f"{output.parent}/", "")
        return replace(result, refused=said.split(";")[0][:160])
    ran = document.get("ran")
    said = f"{rows[-1].what}: {describe_figures(rows[-1].figures)}" if rows else None
    versions = ran["engine"] if ran else document.get("engine", {}).get("version", result.versions)
    return replace(
        result, compared=said, ran=ran and ran["engine"], own=bool(ran and ran["own"]), versions=str(versions)
    )


if __name__ == "__main__":
    main()
