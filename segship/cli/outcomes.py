# SPDX-License-Identifier: Apache-2.0
"""What became of the images of one command: told as they come, or as one JSON document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from segship.cli.output import errors_console, plain, print_json, results_console
from segship.predictor import Predictor

if TYPE_CHECKING:
    from segship.semantic.predictor import SemanticPredictor

EXIT_BAD_INPUT = 3


class Outcome(Protocol):
    """An image that was done."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a JSON document says of it."""


Done = TypeVar("Done", bound=Outcome)


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that could not be used, and why."""

    image: str
    code: str
    message: str


def report_outcomes(
    predictor: Predictor | SemanticPredictor,
    model: str,
    outcomes: Iterable[Done | FailedImage],
    print_image: Callable[[Done], None],
    *,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print outcomes as they come, so that no picture is kept, and return the exit code.

    ``more`` is what else a JSON document says of the run.
    """
    documents: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for outcome in outcomes:
        if isinstance(outcome, FailedImage):
            failed.append(asdict(outcome))
            print_failure(outcome)
        elif as_json:
            documents.append(outcome.to_dict())
        else:
            print_image(outcome)
    if as_json:
        print_json({**describe_run(predictor, model), **(more or {}), "images": documents, "failed": failed})
    else:
        results_console().print(f"[dim]{plain(model)} in {plain(predictor.description)}[/]")
    return EXIT_BAD_INPUT if failed else 0


def describe_run(predictor: Predictor | SemanticPredictor, model: str) -> dict[str, Any]:
    """Return what a JSON document says of the model and of what ran it."""
    return {
        "model": model,
        "architecture": predictor.manifest.architecture,
        "backend": predictor.backend,
        "precision": predictor.precision,
        "backend_reason": predictor.backend_reason,
        "runs_on": predictor.description,
    }


def print_failure(failure: FailedImage) -> None:
    """Tell of an image that could not be used, on standard error."""
    line = f"[bold red]error[/] [dim]({failure.code})[/] {plain(failure.image)}: {plain(failure.message)}"
    errors_console().print(line, soft_wrap=True)
