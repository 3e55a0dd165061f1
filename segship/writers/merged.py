# SPDX-License-Identifier: Apache-2.0
"""One data set of many images: COCO, COCO panoptic, YOLO-seg with its folders; image by image, whole or not at all.

`merge_results` gives a `MergedWriter`, which takes one result after the other and keeps none of them; when its block
ends well, the data sets are put in place together. What stands in them of an image is what its own file of the format
would hold, with numbers that are unique in the data set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from segship.errors import InputError, OutputError
from segship.files import check_target, explained, make_directory, partial_folder, write_together
from segship.writers.documents import coco_categories, coco_document, encode_json
from segship.writers.instances import Instances, Source, as_instances, check_reduced
from segship.writers.names import check_stem, compared, free_stem, safe_file_name
from segship.writers.pictures import PANOPTIC_DOCUMENT, PANOPTIC_PICTURE, PanopticWriter, encode_jpeg
from segship.writers.shapes import Outlines, YoloWriter

MERGED = {"coco": "coco.json", "panoptic": "panoptic", "yolo": "yolo"}
"""The formats that can be merged, and the file or folder that each becomes."""

# What a document and a data.yaml of ours begin with; only a folder with one of them is replaced.
_INFO = b'{"info": {"description": "made by segship"},'
_YAML = b"# made by segship\n"
_FIRST_FILE = {"panoptic": (PANOPTIC_DOCUMENT, _INFO), "yolo": ("data.yaml", _YAML)}


class MergedWriter:
    """Data sets that grow by one result at a time; `merge_results` opens and closes it.

    Attributes
    ----------
    images
        How many there are by now.
    files
        Where the data sets will be: a file or folder for each format.
    """

    def __init__(self, staging: Path, files: Mapping[str, Path], root: Path | None, outlines: Outlines) -> None:
        self.images = 0
        self.files = tuple(files.values())
        self._formats, self._place = tuple(files), staging.parent
        self._root = root
        self._called: set[str] = set()
        self._names: set[str] = set()
        self._stems: set[str] = set()
        self._categories: dict[str, dict[str, Any]] = {}
        self._is_damaged = False
        makers: dict[str, type[_Coco | _Panoptic | _Yolo]] = {"coco": _Coco, "panoptic": _Panoptic, "yolo": _Yolo}
        self._sets = [makers[name](staging, outlines) for name in files]

    def add(self, source: Source) -> None:
        """Take the masks of one more image; an image that is refused leaves nothing in any data set.

        Images are called by their path below the root, or by their file name if there is none. Files of panoptic and
        YOLO begin with the stem, and with ``-2`` and so on behind it if an earlier image has it.

        Raises
        ------
        InputError
            ``bad_source``, ``bad_option`` for a reduced image, or ``same_image``: another image has this name.
        OutputError
            ``cannot_encode``, ``too_many_masks``; ``cannot_write`` or ``disk_full``, and then nothing can be finished.
        """
        instances = as_instances(source)
        check_reduced(self._formats, instances.notes)
        called = self._below_root(source.name)
        name = "/".join(map(safe_file_name, called.split("/")))
        if called in self._called:
            message = f"another image of the data set is called {name!r}; give a root above both, or name them apart"
            raise InputError(message, code="same_image")
        name = self._free_name(name)
        stem = free_stem(check_stem(source.stem), self._stems)
        source = replace(source, stem=stem)
        height, width = instances.size
        image = {"id": self.images + 1, "file_name": name, "width": width, "height": height}
        numbers = self._number(instances)
        writes = [one.encode(source, image, numbers) for one in self._sets]
        self.images += 1
        self._called.add(called)
        self._names.add(name)
        self._stems.add(compared(stem))
        try:
            with explained(self._place / "merged"):
                for write in writes:
                    write()
        except BaseException:
            self._is_damaged = True
            raise

    def _number(self, instances: Instances) -> dict[str, int]:
        """Return the number of every category that is known by now, those of this image among them."""
        palette = () if instances.labels is None else instances.labels.class_map.palette
        for index, category in enumerate(coco_categories(instances)):
            color = {"color": list(palette[index])} if index < len(palette) else {}
            self._categories.setdefault(category["name"], {**category, "id": len(self._categories) + 1, **color})
        return {name: category["id"] for name, category in self._categories.items()}

    def _below_root(self, name: str) -> str:
        parts = () if self._root is None else Path(os.path.relpath(name, self._root)).parts
        return "/".join(parts) if parts and ".." not in parts else PurePath(name).name

    def _free_name(self, name: str) -> str:
        """Return a name, with a number if another image differs from it only in characters that no file may have."""
        path, number, free = PurePosixPath(name), 1, name
        while free in self._names:
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
        return free

    def finish(self) -> None:
        """Write what could not be known before all images were there."""
        if self._is_damaged:
            message = f"the data sets in {self._place} lack a part that could not be written, and were not kept"
            raise OutputError(f"{message}; free some space and run again", code="cannot_write")
        for one in self._sets:
            one.finish(list(self._categories.values()))


class _Document:
    """A COCO document that is written as its images come; their own list waits in a file beside it."""

    def __init__(self, path: Path) -> None:
        self._path, self._aside = path, path.with_name(f"{path.name}.images")
        path.write_bytes(_INFO + b' "annotations": [')
        self._aside.touch()
        self._is_first = True

    def add(self, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> None:
        with self._path.open("ab") as stream:
            for annotation in annotations:
                stream.write((b"\n" if self._is_first else b",\n") + encode_json(dict(annotation)).rstrip())
                self._is_first = False
        with self._aside.open("ab") as stream:
            stream.write((b"\n" if stream.tell() == 0 else b",\n") + encode_json(dict(image)).rstrip())

    def finish(self, categories: list[dict[str, Any]]) -> None:
        with self._path.open("ab") as stream, self._aside.open("rb") as images:
            stream.write(b'],\n"images": [')
            shutil.copyfileobj(images, stream)
            # The braces of a document, but for its own first.
            stream.write(b"],\n" + encode_json({"categories": categories})[1:])
        self._aside.unlink()


class _Coco:
    """``coco.json``: annotations of all images, with ids of their own."""

    def __init__(self, staging: Path, outlines: Outlines) -> None:
        self._document = _Document(staging / MERGED["coco"])
        self._outlines = outlines
        self._count = 0

    def encode(self, source: Source, image: Mapping[str, Any], numbers: Mapping[str, int]) -> Callable[[], None]:
        tolerance = self._outlines.tolerance or 0.0
        found = coco_document(source, polygons=self._outlines.coco_polygons, tolerance=tolerance)
        ids = _numbers_of(found["categories"], numbers)
        annotations = [
            {**one, "id": self._count + one["id"], "image_id": image["id"], "category_id": ids[one["category_id"]]}
            for one in found["annotations"]
        ]
        return partial(self._write, image, annotations)

    def _write(self, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> None:
        self._count += len(annotations)
        self._document.add(image, annotations)

    def finish(self, categories: list[dict[str, Any]]) -> None:
        self._document.finish([{key: one[key] for key in ("id", "name", "supercategory")} for one in categories])


class _Panoptic:
    """``panoptic/panoptic.json`` and the folder of PNGs ``panoptic/panoptic/`` that goes with it."""

    def __init__(self, staging: Path, _outlines: Outlines) -> None:
        folder = staging / MERGED["panoptic"]
        self._pictures = folder / "panoptic"
        self._pictures.mkdir(parents=True)
        self._document = _Document(folder / PANOPTIC_DOCUMENT)

    def encode(self, source: Source, image: Mapping[str, Any], numbers: Mapping[str, int]) -> Callable[[], None]:
        files = {name.partition("/")[2]: data for name, data in PanopticWriter().write(source).items()}
        found = json.loads(files[PANOPTIC_DOCUMENT])
        ids = _numbers_of(found["categories"], numbers)
        (annotation,) = found["annotations"]
        segments = [{**segment, "category_id": ids[segment["category_id"]]} for segment in annotation["segments_info"]]
        described = {"image_id": image["id"], "file_name": f"{source.stem}.png", "segments_info": segments}
        return partial(self._write, image, described, files[PANOPTIC_PICTURE])

    def _write(self, image: Mapping[str, Any], annotation: Mapping[str, Any], picture: bytes) -> None:
        (self._pictures / annotation["file_name"]).write_bytes(picture)
        self._document.add(image, [annotation])

    def finish(self, categories: list[dict[str, Any]]) -> None:
        self._document.finish([{**one, "isthing": int(one["supercategory"] != "stuff")} for one in categories])


class _Yolo:
    """``yolo/data.yaml`` with ``images/`` and ``labels/``; images upright, as JPEG, since labels are in that frame."""

    def __init__(self, staging: Path, outlines: Outlines) -> None:
        self._folder = staging / MERGED["yolo"]
        self._writer = YoloWriter(tolerance=outlines.tolerance or 0.0)
        for part in ("images", "labels"):
            (self._folder / part).mkdir(parents=True)

    def encode(self, source: Source, image: Mapping[str, Any], numbers: Mapping[str, int]) -> Callable[[], None]:
        instances = as_instances(source, best_only=True)
        places = [numbers[name] - 1 for name in instances.categories]
        entries = tuple(replace(entry, category=places[entry.category]) for entry in instances.entries)
        (labels,) = self._writer.write(replace(instances, entries=entries)).values()
        return partial(self._write, source.stem, labels, encode_jpeg(instances.pixels))

    def _write(self, stem: str, labels: bytes, picture: bytes) -> None:
        (self._folder / "labels" / f"{stem}.txt").write_bytes(labels)
        (self._folder / "images" / f"{stem}.jpg").write_bytes(picture)

    def finish(self, categories: list[dict[str, Any]]) -> None:
        # A string of JSON is one of YAML too.
        names = [f"  {one['id'] - 1}: {json.dumps(one['name'])}\n" for one in categories]
        text = "train: images\nval: images\nnames:" + ("\n" + "".join(names) if names else " {}\n")
        (self._folder / "data.yaml").write_bytes(_YAML + text.encode("ascii"))


def _numbers_of(categories: Iterable[Mapping[str, Any]], numbers: Mapping[str, int]) -> dict[int, int]:
    """Return the data set's number of each category of one image."""
    return {category["id"]: numbers[category["name"]] for category in categories}


def check_merged(directory: str | os.PathLike[str], formats: Iterable[str], *, overwrite: bool = False) -> None:
    """Refuse now what `merge_results` would refuse about formats and what is there."""
    for name in formats:
        if name not in MERGED:
            message = f"the format {name!r} cannot be merged; accepted are {', '.join(MERGED)}"
            raise OutputError(message, code="unknown_format")
        path = Path(directory) / MERGED[name]
        if not os.path.lexists(path):
            continue
        check_target(path, overwrite=overwrite, folder=name in _FIRST_FILE)
        if name in _FIRST_FILE and not is_data_set(path):
            message = f"{path} is not a data set that segship made, and is not replaced; move it away"
            raise OutputError(message, code="output_not_ours")


@contextmanager
def merge_results(
    directory: str | os.PathLike[str],
    formats: Iterable[str],
    *,
    root: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    outlines: Outlines | None = None,
) -> Iterator[MergedWriter]:
    """Open data sets that results are added to; they appear together when the block ends well, or not at all.

    Parameters
    ----------
    directory
        Where they shall be; it is made.
    formats
        Keys of `MERGED`.
    root
        The folder that all images lie in: they are then called by their path below it, else by their file names.
    overwrite
        Replace data sets of these names that segship made.
    outlines
        As `segship.writers.encode_result` takes them.

    Raises
    ------
    OutputError
        ``unknown_format``, ``output_exists``, ``output_not_ours``, before the block begins; or what `segship.files`
        says about the place.
    """
    place, wanted = Path(directory), tuple(dict.fromkeys(formats))
    check_merged(place, wanted, overwrite=overwrite)
    make_directory(place)
    files = {name: place / MERGED[name] for name in wanted}
    with partial_folder(place, "merged") as staging:
        merged = MergedWriter(staging, files, None if root is None else Path(root), outlines or Outlines())
        yield merged
        with explained(place / "merged"):
            merged.finish()
        write_together(place, {MERGED[name]: staging / MERGED[name] for name in wanted}, overwrite=overwrite)


def is_data_set(folder: Path) -> bool:
    """Tell whether a folder is a data set that `merge_results` made."""
    for file, begin in _FIRST_FILE.values():
        with suppress(OSError), (folder / file).open("rb") as stream:
            if stream.read(len(begin)) == begin:
                return True
    return False
