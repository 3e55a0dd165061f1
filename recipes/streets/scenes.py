# SPDX-License-Identifier: Apache-2.0
"""Small data sets in the official layouts of Cityscapes and ADE20K, drawn from a seed: for tests and for first steps.

    python -m recipes.streets.scenes ROOT --layout cityscapes --train 200 --val 40 --size 256x512

Streets are made of a road with kerbs, houses with windows, trees, poles, signs and traffic in the perspective of a
car's camera. No photograph goes in. The same seed gives the same files. They are no measure of how good a model is in
real streets.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.streets.street import Size, StreetScene, draw_street
from segship.datasets.classes import IGNORED
from segship.datasets.folders import IMAGE_SUFFIX, TRUTH_FILES, TruthKind, encode_label_image
from segship.datasets.known import ADE20K, LABELS, classes_to_label_ids, polygons_to_label_ids, polygons_to_train_ids
from segship.errors import SegshipError
from segship.files import write_file

ADE20K_NAMES = {
    "traffic sign": "signboard", "vegetation": "tree", "terrain": "grass", "rider": "person", "motorcycle": "minibike",
}  # fmt: skip
"""What labels of Cityscapes are called in ADE20K where it has another word; those it does not have are ignored."""

_JPEG_QUALITY = 92


def write_cityscapes(
    root: str | Path,
    counts: Mapping[str, int],
    *,
    size_hw: Size = (256, 512),
    seed: int = 0,
    truths: Sequence[TruthKind] = ("polygons", "labelIds", "labelTrainIds"),
) -> None:
    """Write streets in the layout of Cityscapes.

    Parameters
    ----------
    root
        Folder for ``leftImg8bit`` and ``gtFine``; made if it is not there.
    counts
        Number of streets of each split, such as ``{"train": 100, "val": 20}``.
    size_hw
        (height, width) of the pictures.
    seed
        What the streets are drawn from; splits differ with the same seed.
    truths
        Which files of truth are written.

    Raises
    ------
    OutputError
        ``output_exists`` when a file is there already.
    """
    for split, index, scene in _scenes(counts, size_hw, seed):
        # A city belongs to one split, as in Cityscapes, so no name turns up twice.
        city = f"{split}ville"
        stem, document = f"{city}_{index:06d}_000000", scene.to_json()
        write_file(_folder(root, "leftImg8bit", split, city) / f"{stem}{IMAGE_SUFFIX}", _encode(scene.pixels, ".png"))
        for kind in truths:
            truth = _folder(root, "gtFine", split, city) / f"{stem}{TRUTH_FILES[kind]}"
            write_file(truth, _TRUTHS[kind](document))


_TRUTHS: dict[TruthKind, Callable[[str], bytes]] = {
    "polygons": str.encode,
    "labelIds": lambda document: encode_label_image(polygons_to_label_ids(document)),
    "labelTrainIds": lambda document: encode_label_image(polygons_to_train_ids(document)),
}


def write_ade20k(root: str | Path, counts: Mapping[str, int], *, size_hw: Size = (256, 512), seed: int = 0) -> None:
    """Write streets in the layout of ADE20K; parameters as those of `write_cityscapes`, ``val`` is ``validation``."""
    table = np.full(256, IGNORED, np.uint8)
    for label in LABELS:
        name = ADE20K_NAMES.get(label.name, label.name)
        if label.id >= 0 and label.train_id != IGNORED and name in ADE20K.classes:
            table[label.id] = ADE20K.classes.index(name)
    for split, index, scene in _scenes(counts, size_hw, seed):
        folder = {"train": "training", "val": "validation"}.get(split, split)
        name = f"ADE_{split}_{index + 1:08d}"
        write_file(_folder(root, "images", folder) / f"{name}.jpg", _encode(scene.pixels, ".jpg"))
        classes = table[polygons_to_label_ids(scene.to_json())]
        truth = _folder(root, "annotations", folder) / f"{name}.png"
        write_file(truth, encode_label_image(classes_to_label_ids(classes, ADE20K)))


LAYOUTS: dict[str, Callable[..., None]] = {"cityscapes": write_cityscapes, "ade20k": write_ade20k}


def _scenes(counts: Mapping[str, int], size_hw: Size, seed: int) -> Iterator[tuple[str, int, StreetScene]]:
    for split, count in counts.items():
        for index in range(count):
            yield split, index, draw_street([seed, zlib.crc32(split.encode()), index], size_hw)


def _folder(root: str | Path, *parts: str) -> Path:
    folder = Path(root, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _encode(pixels: NDArray[np.uint8], suffix: str) -> bytes:
    settings = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix == ".jpg" else []
    done, data = cv2.imencode(suffix, pixels[..., ::-1], settings)
    assert done
    return data.tobytes()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a data set of streets."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.streets.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, help="folder for the data set")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="cityscapes")
    parser.add_argument("--train", type=int, default=200, help="streets of the split train")
    parser.add_argument("--val", type=int, default=40, help="streets of the split val")
    parser.add_argument("--size", default="256x512", help="height x width")
    parser.add_argument("--seed", type=int, default=0)
    given: Any = parser.parse_args(arguments)
    counts = {split: count for split, count in (("train", given.train), ("val", given.val)) if count > 0}
    try:
        height, width = (int(part) for part in given.size.split("x"))
        LAYOUTS[given.layout](given.root, counts, size_hw=(height, width), seed=given.seed)
    except ValueError:
        parser.error(f"--size is {given.size!r}; accepted is HEIGHTxWIDTH, such as 256x512")
    except SegshipError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
