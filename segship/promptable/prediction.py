# SPDX-License-Identifier: Apache-2.0
"""The values that a predictor takes and gives: the embedding of an image, and the masks predicted for prompts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Literal, Self

import numpy as np

from segship.arrays import BoolArray, FloatArray, IntArray, Pixels
from segship.errors import InputError, PromptError, shown
from segship.files import check_ending, make_directory, read_bytes, write_file
from segship.images import FileAsRead, ImageSource
from segship.masks.cleanup import MaskCleanUp, box_window, clean_low_res, clear_outside_box
from segship.masks.edges import EdgeGuide, EdgePainter
from segship.masks.lazy import ArrayMasks, LazyMasks
from segship.masks.rle import Rle, Runs, compress_runs
from segship.masks.upscaling import MARGIN, LogitsPatch, Upscaler, crop_patch
from segship.promptable.prompts import ObjectPrompt
from segship.promptable.transforms import to_model_frame
from segship.spec import MASK_TOKENS

MaskChoice = bool | Literal["best", "auto"]
"""Which of the decoder's four masks come out.

``True``: the three of the ambiguous set. ``False``: the single-mask token. ``"best"``: of the ambiguous three the one
with the highest predicted IoU. ``"auto"``: ``"best"`` for an object that is a single click, the single-mask token for
any clearer object; the choice counts the points that the caller gave, never the padded length of a tensor.

A decoder that gives one mask answers each of these with it.
"""

AMBIGUOUS_MASKS = slice(1, 4)

# The largest of SAM 1's is 4 MiB.
MAX_EMBEDDING_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class ImageEmbedding:
    """One encoded image.

    Attributes
    ----------
    image_embeddings
        (1, C, h, w) float32, the encoder's output.
    original_size
        Height and width of the upright image, in pixels.
    input_size
        Height and width of the resized image inside the model frame, without padding.
    encoder_sha256
        Digest of the encoder that made it; only the decoder of the same bundle accepts it.
    notes
        What was noticed while reading the image, such as ``animated_first_frame``.
    image_side
        What all prompts of the image share, by the names of the graph ``image_side`` (`segship.spec`): 27 MiB with SAM,
        seven times the embedding itself. None if the bundle has no such graph, or to save that memory: then it is
        made anew in every call, ``dataclasses.replace(embedding, image_side=None)``.
    image_path
        The file that the image was read from, if it was one; `MaskPrediction.save` draws over it.
    guide
        The picture itself, its longer side at most 2048 pixels, for masks that follow its edges; None saves that
        memory, and masks then have the borders of the decoder's cells.
    """

    image_embeddings: FloatArray = field(repr=False)
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    encoder_sha256: str
    notes: tuple[str, ...] = ()
    image_side: Mapping[str, FloatArray] | None = field(default=None, repr=False)
    image_path: str | Path | FileAsRead | None = field(default=None, repr=False)
    guide: EdgeGuide | None = field(default=None, repr=False)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the embedding, without ``image_side`` and ``image_path``, to an ``.npz`` file; its folder is made."""
        check_ending(path, [".npz"], "an npz file")
        stream = io.BytesIO()
        np.savez(
            stream,
            image_embeddings=self.image_embeddings,
            original_size=self.original_size,
            input_size=self.input_size,
            encoder_sha256=np.array(self.encoder_sha256),
            notes=np.array(self.notes, np.str_),
            guide=np.zeros((0, 0, 3), np.uint8) if self.guide is None else self.guide.pixels,
        )
        make_directory(Path(path).parent)
        write_file(path, stream.getvalue(), overwrite=overwrite)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an embedding that `save` has written, or refuse the file as ``bad_embedding``.

        Only a predictor with the same encoder takes it.

        Examples
        --------
        >>> import segship, tempfile
        >>> predictor = segship.load("tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = predictor.encode(segship.demo_photograph()).save(f"{folder}/coffee.npz")
        ...     embedding = segship.ImageEmbedding.load(path)
        >>> predictor.decode(embedding, segship.Prompts(points=[[365, 290]])).masks.shape
        (1, 3, 400, 600)
        """
        # A link that the user names is followed.
        data = read_bytes(Path(path).resolve(), limit=MAX_EMBEDDING_BYTES)
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                # No more than that is inflated.
                if sum(entry.file_size for entry in file.zip.infolist()) > MAX_EMBEDDING_BYTES:
                    raise ValueError("too large")
                (height, width), (input_height, input_width) = (
                    file["original_size"].tolist(),
                    file["input_size"].tolist(),
                )
                sizes = (int(height), int(width)), (int(input_height), int(input_width))
                digest, notes = str(file["encoder_sha256"]), tuple(map(str, file["notes"].tolist()))
                guide = _read_guide(file["guide"]) if "guide" in file else None
                embeddings = np.asarray(file["image_embeddings"], np.float32)
                found = cls(embeddings, *sizes, digest, notes, guide=guide)
        except Exception as error:
            # numpy reads headers as Python, and raises almost anything for what is none.
            raise _bad_embedding(path) from error
        sides = (*found.original_size, *found.input_size)
        if found.image_embeddings.ndim != 4 or min(sides) < 1 or not np.isfinite(found.image_embeddings).all():
            raise _bad_embedding(path)
        return found


def _read_guide(pixels: Pixels) -> EdgeGuide | None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError("no picture")
    return EdgeGuide(pixels) if pixels.size else None


def _bad_embedding(path: str | Path) -> InputError:
    message = f"{path} is no embedding that ImageEmbedding.save has written, or damaged; encode the image again"
    return InputError(message, code="bad_embedding")


@dataclass(frozen=True, slots=True, eq=False)
class MaskPrediction:
    """Masks for some objects of one image.

    Pixels and run lengths are made when they are asked for; threads may share a prediction.

    Attributes
    ----------
    held
        The masks themselves, as `segship.masks.lazy` keeps them.
    iou_predictions
        (objects, masks) float32, the model's own estimate of each mask's IoU.
    low_res_masks
        (objects, masks, 4h, 4w) float32 logits in the model frame, h x w the embedding grid; usable as mask input.
    original_size
        Height and width of the image, in pixels.
    objects
        The prompts as they were used, in the image frame: boxes ordered and clipped.
    notes
        What was noticed, such as ``box_clipped`` or ``no_positive_prompt``.
    image_path
        The file that the image was read from, if it was one.
    """

    held: LazyMasks | ArrayMasks
    iou_predictions: FloatArray
    low_res_masks: FloatArray
    original_size: tuple[int, int]
    objects: tuple[ObjectPrompt, ...] = ()
    notes: tuple[str, ...] = ()
    image_path: str | Path | FileAsRead | None = None

    def save(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        image: ImageSource | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the prediction to a file, in the format that its name or ``format`` says.

        Parameters
        ----------
        path
            ``x.jpg`` is the overlay, ``x.json`` the document, ``x.npz`` all arrays, ``x.txt`` YOLO, ``x.parquet`` a
            table; the whole endings of docs/files.md say more, such as ``x.coco.json``. Its folder is made.
        format
            A key of ``WRITERS["masks"]`` of `segship.writers`, where the name does not say it; another
            format's ending is refused. ``png`` writes a file a mask and puts the masks' numbers into the names.
        image
            What the masks belong to: only an overlay needs it, and only if it was not read from a file, which is read
            again.
        overwrite
            Replace what is there.

        Returns
        -------
        list
            The files that were written, or the folder.

        Raises
        ------
        InputError, ImageError
            ``needs_image``, ``bad_source`` for an image of another size, or what `segship.read_image` says of it.
        OutputError
            ``unknown_format``, or as `segship.writers.write_result`.

        Examples
        --------
        >>> import segship, tempfile
        >>> predictor = segship.load("tiny")
        >>> prediction = predictor.predict(segship.demo_photograph(), points=[[365, 290]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in prediction.save(f"{folder}/new/cup.coco.json")]
        ['cup.coco.json']
        """
        # By name: writers stand on predictions.
        writers = import_module("segship.writers")
        return list(writers.save(self, path, format=format, image=image, overwrite=overwrite))

    def __repr__(self) -> str:
        objects, masks = self.held.shape
        return (
            f"MaskPrediction(objects={objects}, masks={masks}, original_size={self.original_size}, notes={self.notes})"
        )

    @property
    def masks(self) -> BoolArray | FloatArray:
        """(objects, masks, H, W) bool in the image frame; float32 logits when they were asked for.

        Made at the first call and kept. A mask or two cost less through `mask`, run lengths through `mask_runs`.
        """
        return self.held.pixels

    @property
    def areas(self) -> IntArray:
        """(objects, masks) int64, the set pixels of each mask."""
        areas = [self.held.area(*place) for place in np.ndindex(self.held.shape)]
        return np.array(areas, np.int64).reshape(self.held.shape)

    @property
    def boxes(self) -> IntArray:
        """(objects, masks, 4) int64, the box around each mask: x0 y0 x1 y1 half-open; zeros without a pixel."""
        boxes = [self.held.box(*place) for place in np.ndindex(self.held.shape)]
        return np.array(boxes, np.int64).reshape(*self.held.shape, 4)

    @property
    def rles(self) -> list[list[Rle]]:
        """Of each object a list, of each mask COCO's compressed run lengths."""
        objects, masks = self.held.shape
        return [[self.mask_rle(entry, index) for index in range(masks)] for entry in range(objects)]

    def mask(self, entry: int, index: int) -> BoolArray:
        """Return mask ``index`` of object ``entry``: (H, W) bool, also if logits were asked for."""
        return self.held.mask(entry, index)

    def mask_runs(self, entry: int, index: int) -> Runs:
        """Return the run lengths (n,) int64 of one mask; see `segship.masks.rle.mask_to_runs`."""
        return self.held.runs(entry, index)

    def mask_rle(self, entry: int, index: int) -> Rle:
        """Return one mask as COCO's compressed run lengths."""
        return Rle(size=list(self.original_size), counts=compress_runs(self.mask_runs(entry, index)))

    @property
    def empty(self) -> BoolArray:
        """(objects, masks) bool, True where a mask has no pixel."""
        return np.asarray(self.areas == 0, np.bool_)


def check_choice(choice: MaskChoice) -> None:
    """Refuse what is no `MaskChoice`."""
    if choice is not True and choice is not False and choice not in ("best", "auto"):
        found = f"multimask_output is {shown(repr(choice))}"
        raise PromptError(f"{found}; accepted are True, False, 'best' and 'auto'", code="bad_multimask_output")


def count_masks(choice: MaskChoice, masks: int = MASK_TOKENS) -> int:
    """Return how many masks of an object come out of a decoder that gives so many."""
    return len(range(masks)[AMBIGUOUS_MASKS]) if choice is True and masks > 1 else 1


def choose_masks(
    ious: FloatArray,
    low_res: FloatArray,
    objects: Sequence[ObjectPrompt],
    choice: MaskChoice,
) -> tuple[FloatArray, FloatArray]:
    """Pick masks from all that the decoder gives: (N, 4) and (N, 4, h, w) to (N, k) and (N, k, h, w)."""
    if low_res.shape[1] == 1:
        return ious, low_res
    if choice is True:
        return ious[:, AMBIGUOUS_MASKS], low_res[:, AMBIGUOUS_MASKS]
    if choice is False:
        return ious[:, :1], low_res[:, :1]
    # argmax takes the first of equals, so ties go to the lower index.
    best = 1 + ious[:, AMBIGUOUS_MASKS].argmax(axis=1)
    if choice == "auto":
        ambiguous = np.array([prompt.ambiguous for prompt in objects], np.bool_)
        best = np.where(ambiguous, best, 0)
    rows = np.arange(len(ious))
    return ious[rows, best][:, None], low_res[rows, best][:, None]


def best_masks(prediction: MaskPrediction) -> MaskPrediction:
    """Keep of every object the mask with the highest predicted IoU, ready to be given as ``mask_input``.

    ``Prompts(mask_input=best_masks(prediction).low_res_masks)`` refines all objects of an earlier prediction.
    """
    best = prediction.iou_predictions.argmax(axis=1)
    rows = np.arange(len(best))
    return replace(
        prediction,
        held=prediction.held.take(best),
        iou_predictions=prediction.iou_predictions[rows, best][:, None],
        low_res_masks=prediction.low_res_masks[rows, best][:, None],
    )


def make_masks(
    low_res: FloatArray,
    embedding: ImageEmbedding,
    objects: Sequence[ObjectPrompt],
    upscaler: Upscaler,
    clean_up: MaskCleanUp | None,
    *,
    painters: Sequence[EdgePainter] | None,
    pixels_per_cell: float,
    return_logits: bool,
) -> LazyMasks | ArrayMasks:
    """Clean masks (N, k, 4h, 4w) of some objects unless ``clean_up`` is None, and keep what their pixels depend on.

    ``painters`` of the objects make masks follow the picture. ``pixels_per_cell`` are pixels of the model frame. With
    ``return_logits`` (N, k, H, W) float32 logits are made at once, instead of masks when somebody asks for them.
    """
    masks = [[upscaler.valid(logits) for logits in entry] for entry in low_res]
    limits = [upscaler.everything] * len(objects)
    if clean_up is not None:
        for index, prompt in enumerate(objects):
            masks[index] = [_cleaned(patch, prompt, embedding, clean_up, pixels_per_cell) for patch in masks[index]]
            if clean_up.box_margin is not None and prompt.box is not None:
                limits[index] = box_window(prompt.box, clean_up.box_margin, embedding.original_size)
    margin = painters[0].edges.margin if painters else MARGIN
    lazy = LazyMasks([[crop_patch(patch, margin) for patch in entry] for entry in masks], upscaler, limits, painters)
    if not return_logits and objects:
        return lazy
    pixels = np.empty((*low_res.shape[:2], *embedding.original_size), np.float32 if return_logits else np.bool_)
    for entry, index in np.ndindex(low_res.shape[:2]):
        pixels[entry, index] = upscaler.enlarge(masks[entry][index])
        clear_outside_box(pixels[entry, index], limits[entry])
        if painters:
            _take_sides(pixels[entry, index], lazy.mask(entry, index))
    return ArrayMasks(pixels)


def _take_sides(logits: FloatArray, mask: BoolArray) -> None:
    """Give logits (H, W) the sign that a mask has, and leave their magnitude."""
    np.abs(logits, out=logits)
    # What was 0 exactly is above it where the mask is set.
    np.maximum(logits, np.float32(1e-3), out=logits, where=mask)
    np.negative(logits, out=logits, where=~mask)


def _cleaned(
    patch: LogitsPatch, prompt: ObjectPrompt, embedding: ImageEmbedding, clean_up: MaskCleanUp, pixels_per_cell: float
) -> LogitsPatch:
    """Clean the part of a low-resolution mask that is not padding."""
    height, width = (int(np.ceil(side / pixels_per_cell)) for side in embedding.input_size)
    points = to_model_frame(prompt.points, embedding.original_size, embedding.input_size) / np.float32(pixels_per_cell)
    part = patch.logits[:height, :width]
    cleaned = clean_low_res(part, clean_up, points_xy=points, labels=prompt.labels, has_box=prompt.box is not None)
    if cleaned is part:
        return patch
    # A cell of padding may lie next to the image, and the image depends on it a little.
    whole = patch.logits.copy()
    whole[:height, :width] = cleaned
    return patch._replace(logits=whole)
