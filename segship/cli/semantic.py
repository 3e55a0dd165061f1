# SPDX-License-Identifier: Apache-2.0
"""The command that finds the class of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.cli.evaluate import parse_look
from segship.cli.look import Json
from segship.cli.output import (
    DEFAULT_RUNTIME,
    FailedImage,
    Runtime,
    make_table,
    plain,
    report_outcomes,
    results_console,
)
from segship.cli.pictures import each_picture, expand_pictures
from segship.draw import percent
from segship.images import ImageLimits
from segship.jobs import MapOptions, MappedImage, map_image
from segship.semantic.predictor import NOTES, SemanticPredictor, open_semantic
from segship.writers import check_formats

DEFAULT_FORMATS = "overlay,classes"


def semantic(
    *images: str,
    model: str,
    window: str | None = None,
    stride: str | None = None,
    ratios: str | None = None,
    flip: bool = False,
    multi_scale: bool = False,
    runtime: Runtime = DEFAULT_RUNTIME,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("segship-output"),
    format: str = DEFAULT_FORMATS,
    overwrite: bool = False,
    max_pixels: int | None = None,
    json: Json = False,
) -> int:
    """Find the class of every pixel of images.

    Parameters
    ----------
    images
        Image files, folders of them, patterns; - is standard input.
    model
        A semantic bundle, a SeMask checkpoint (torch backend), or a known name such as semask_s_cityscapes.
    window
        HEIGHT,WIDTH of sliding windows; the whole image at once when left out.
    stride
        ROWS,COLUMNS from window to window; two thirds of the window when left out.
    ratios
        Comma-separated factors of the test scale; answers are averaged.
    flip
        Look at each ratio mirrored too.
    multi_scale
        The published multi-scale test: ratios 0.5 to 1.75 and mirrored.
    out
        Folder for the files.
    format
        Comma-separated: overlay, classes, label-ids, colours, json.
    overwrite
        Replace files that are there.
    max_pixels
        Take images of up to this many pixels; 50,000,000 when left out.
    """
    pictures = expand_pictures(images)
    options = MapOptions(
        look=parse_look(window, stride, ratios, flip=flip, multi_scale=multi_scale),
        formats=check_formats((part.strip() for part in format.split(",")), "class maps"),
        overwrite=overwrite,
        limits=ImageLimits() if max_pixels is None else ImageLimits(pixels=max_pixels),
    )
    predictor = open_semantic(model, **runtime.settings())
    predictor.check_options(options.look)
    out.mkdir(parents=True, exist_ok=True)
    outcomes = _map_all(predictor, pictures, out, options)
    return report_outcomes(predictor, model, outcomes, _print_image, as_json=json)


def _map_all(
    predictor: SemanticPredictor, images: Sequence[str], out: Path, options: MapOptions
) -> Iterator[MappedImage | FailedImage]:
    def work(source: str | bytes, name: str, stem: str) -> MappedImage:
        return map_image(predictor, source, out, options, stem=stem, name=name)

    return each_picture(images, options.limits, work, description="finding classes")


def _print_image(image: MappedImage) -> None:
    console = results_console()
    height, width = image.class_map.array.shape
    times = ", ".join(f"{stage} {value:.0f} ms" for stage, value in image.milliseconds.items())
    console.print(f"[bold]{plain(image.result.name)}[/] {width} x {height}: {times}")
    shares = image.class_map.shares()
    rows = [(name, f"{area:,} px", percent(shares[name])) for name, area in image.class_map.areas().items()]
    console.print(make_table(("class", ">area", ">of image"), rows))
    for note in image.class_map.notes:
        console.print(f"note: {plain(note)}" + (f": {plain(NOTES[note])}" if note in NOTES else ""))
    for path in image.files:
        console.print(f"  {plain(str(path))}")
