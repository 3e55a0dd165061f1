# SPDX-License-Identifier: Apache-2.0
"""One mask of everything in a picture, with the keys of SA-1B, kept as run lengths until somebody asks for pixels.

On the use road between `segship.promptable.everything`, which makes records, and the writers, which put them into
files. The keys and their meaning follow segment_anything/automatic_mask_generator.py ``generate``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, SupportsIndex, get_args, overload

from segship.arrays import BoolArray, IntArray, Pixels, Size
from segship.errors import InputError
from segship.images import FileAsRead, ImageSource
from segship.masks.rle import Rle, compress_runs, runs_to_mask

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
"""What stands under ``segmentation``: (H, W) bool, run lengths as a list, or COCO's compressed string."""

OUTPUT_MODES: tuple[str, ...] = get_args(OutputMode)


@dataclass(frozen=True, slots=True, eq=False)
class MaskRecord:
    """One mask with its scores.

    Attributes
    ----------
    runs
        (n,) int64 run lengths of the mask, column by column, beginning with zeros.
    size
        Height and width of the image, in pixels.
    area
        Pixels of the mask.
    bbox
        x y width height in pixels of the image frame. Width and height are the last set column or row minus the
        first, one less than how many there are: the reference counts so, and so does SA-1B.
    predicted_iou
        The model's own estimate of the mask's IoU.
    point_coords
        The points that asked for it, x y in the image frame.
    stability_score
        IoU between the masks at a higher and at a lower threshold, 0 to 1.
    crop_box
        x y width height of the crop of the image that the model saw.
    """

    runs: IntArray = field(repr=False)
    size: Size
    area: int
    bbox: tuple[float, float, float, float]
    predicted_iou: float
    point_coords: tuple[tuple[float, float], ...]
    stability_score: float
    crop_box: tuple[int, int, int, int]

    @property
    def mask(self) -> BoolArray:
        """(H, W) bool, made anew at every call."""
        return runs_to_mask(self.runs, self.size)

    @property
    def rle(self) -> Rle:
        """The mask as COCO's compressed run lengths."""
        return Rle(size=list(self.size), counts=compress_runs(self.runs))

    @property
    def uncompressed_rle(self) -> Rle:
        """The mask as a plain list of run lengths."""
        return Rle(size=list(self.size), counts=self.runs.tolist())

    def to_dict(self, output_mode: OutputMode = "coco_rle") -> dict[str, Any]:
        """Return the record as the reference has it: a dict with the keys of SA-1B.

        Parameters
        ----------
        output_mode
            See `OutputMode`; with the two forms of run lengths the dict is fit for `json.dumps`.

        Raises
        ------
        InputError
            ``bad_output_mode``.
        """
        return {
            "segmentation": self._segmentation(output_mode),
            "area": self.area,
            "bbox": list(self.bbox),
            "predicted_iou": self.predicted_iou,
            "point_coords": [list(point) for point in self.point_coords],
            "stability_score": self.stability_score,
            "crop_box": list(self.crop_box),
        }

    def _segmentation(self, output_mode: OutputMode) -> Rle | BoolArray:
        if output_mode == "coco_rle":
            return self.rle
        if output_mode == "uncompressed_rle":
            return self.uncompressed_rle
        if output_mode == "binary_mask":
            return self.mask
        raise bad_output_mode(output_mode)


class MaskRecords(list[MaskRecord]):
    """All records of one image, or a slice of them: a list that can be saved.

    ``size``, ``notes`` and ``image_path`` are those of `segship.promptable.everything.search.AmgResult`.
    """

    def __init__(
        self,
        records: Iterable[MaskRecord],
        size: Size,
        notes: tuple[str, ...] = (),
        image_path: str | Path | FileAsRead | None = None,
    ) -> None:
        super().__init__(records)
        self.size, self.notes, self.image_path = size, notes, image_path

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> MaskRecord: ...

    @overload
    def __getitem__(self, index: slice, /) -> MaskRecords: ...

    def __getitem__(self, index: SupportsIndex | slice, /) -> MaskRecord | MaskRecords:
        if isinstance(index, slice):
            return MaskRecords(super().__getitem__(index), self.size, self.notes, self.image_path)
        return super().__getitem__(index)

    def __repr__(self) -> str:
        return f"MaskRecords({len(self)} masks, size={self.size}, notes={self.notes})"

    def save(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        image: ImageSource | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the records to a file as `segship.MaskPrediction.save` does."""
        # By name: writers stand on records.
        writers = import_module("segship.writers")
        return list(writers.save(self, path, format=format, image=image, overwrite=overwrite))


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecords:
    """Every record of one image, ready to be written.

    Attributes
    ----------
    stem
        What the names of its files begin with; `segship.writers.names.output_stems` makes safe ones.
    name
        The input's file name, as documents repeat it; directories in it are left out.
    pixels
        (H, W, 3) uint8 RGB, upright.
    records
        The masks, best first.
    notes
        What was noticed on the way, such as ``deadline_reached``.
    """

    stem: str
    name: str
    pixels: Pixels = field(repr=False)
    records: tuple[MaskRecord, ...] = field(repr=False)
    notes: tuple[str, ...] = ()


def bad_output_mode(found: object) -> InputError:
    """Return the error for an output mode that does not exist."""
    message = f"output_mode is {found!r}; accepted are {', '.join(OUTPUT_MODES)}"
    return InputError(message, code="bad_output_mode")
