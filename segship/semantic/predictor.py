# SPDX-License-Identifier: Apache-2.0
"""A class map from an image: `SemanticPredictor` reads it, makes its views, runs the graph and takes the argmax.

`GraphRunner` is the graph itself: it fills the frame of a graph of one size with zeros and cuts the answer, cuts
batches, and checks what comes back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from segship.arrays import AnyArray, FloatArray, Size
from segship.datasets.classes import ClassTable
from segship.errors import BackendUnavailable, BundleError, ImageError, InputError
from segship.images import NOTES as IMAGE_NOTES
from segship.images import ImageLimits, ImageSource, LoadedImage, read_image
from segship.semantic.argmax import Argmax, argmax_logits, argmax_probabilities, resize_classes
from segship.semantic.class_map import ClassMap
from segship.semantic.preprocessing import scaled_size
from segship.semantic.views import (
    SemanticOptions,
    class_probabilities,
    list_views,
    resized_logits,
    view_answers,
    view_size,
)

if TYPE_CHECKING:
    from segship.backends.session import Session
    from segship.semantic.manifest import SemanticManifest


class GraphRunner:
    """A session of the graph ``semantic``, whose contract is in `segship.spec`.

    ``frame`` is the (height, width) of the only images that the graph takes, None if it takes any; ``gives_logits``
    says whether it answers with logits, or with class maps.
    """

    def __init__(self, session: Session, classes: int) -> None:
        self.session = session
        self._classes = classes
        batch, _, *sides = session.spec.inputs[0].shape
        self._batch = batch if isinstance(batch, int) else None
        fixed = tuple(side for side in sides if isinstance(side, int))
        self.frame: Size | None = (fixed[0], fixed[1]) if len(fixed) == 2 else None
        self._output = session.spec.outputs[0].name
        self.gives_logits = self._output == "logits"

    def run(self, tensors: FloatArray) -> AnyArray:
        """Run images (B, 3, h, w) that fit into the frame: (B, K, h, w) float32 logits, or (B, h, w) uint8 class maps.

        Raises
        ------
        BackendUnavailable
            ``nonfinite_output``, or when the runtime fails.
        BundleError
            ``graph_interface``: the graph has other classes than the manifest.
        """
        height, width = tensors.shape[2:]
        if self.frame is not None and self.frame != (height, width):
            padded = np.zeros((len(tensors), 3, *self.frame), np.float32)
            padded[:, :, :height, :width] = tensors
            tensors = padded
        # On a CPU pictures together take as long as one by one, and each of them as much memory again.
        step = self._batch or (len(tensors) if self.session.on_gpu else 1)
        parts = [self._run_part(tensors[first : first + step], step) for first in range(0, len(tensors), step)]
        answers = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return answers[..., :height, :width]

    def _run_part(self, tensors: FloatArray, batch: int) -> AnyArray:
        count = len(tensors)
        if count < batch:
            # A graph of a fixed batch gets copies, whose answers are dropped.
            tensors = np.concatenate([tensors, np.repeat(tensors[-1:], batch - count, axis=0)])
        answers = self.session.run({"image": tensors})[self._output][:count]
        self._check(answers)
        return answers

    def _check(self, answers: AnyArray) -> None:
        if not self.gives_logits:
            if int(answers.max()) >= self._classes:
                raise _foreign_graph(f"the class {int(answers.max())}", self._classes)
            return
        if answers.shape[1] != self._classes:
            raise _foreign_graph(f"{answers.shape[1]} planes of logits", self._classes)
        # A NaN never wins a comparison, and would make the first class of every pixel.
        if not np.isfinite(answers).all():
            raise BackendUnavailable(
                f"logits hold values that are not finite (NaN or infinity) in {self.session.description}; "
                "try precision fp32 or another backend, and `segship doctor`",
                code="nonfinite_output",
            )


def _foreign_graph(found: str, known: int) -> BundleError:
    message = f"the graph answers with {found}, and the manifest names {known} classes; export the bundle again"
    return BundleError(message, code="graph_interface")


NOTES = {
    **IMAGE_NOTES,
    "scaled_to_graph": "the graph takes one size only, and the image was made smaller than its test scale to fit in",
    "padded_to_graph": "the graph takes one size only, and the rest of it was filled with zeros",
    "resized_class_map": (
        "the bundle gives class maps, which were resized to the nearest pixel; one made with "
        "`segship export --output logits` gives the reference's exact outlines"
    ),
}
"""What the notes of a class map mean, those of its image included."""

MAX_CLASSES_BYTES = 8 * 2**30
"""Most that logits and probabilities of all classes of one image may take."""


class SemanticPredictor:
    """A semantic model that is ready to run.

    Use `segship.load` to make one. Calls may come from several threads at once; nothing of a call stays in it.

    Parameters
    ----------
    manifest
        What the model is: classes, colors, preprocessing.
    session
        Its graph with the contract ``semantic`` of `segship.spec`, which gives class maps or logits.
    backend
        Name of the backend that runs it.
    precision
        Precision that its arithmetic was asked for.
    backend_reason
        Why this backend was chosen, in words; empty if the caller named it.

    Attributes
    ----------
    table
        Names and colors of the classes.
    gives_logits
        Whether the graph gives logits, which windows, ratios, mirrors and probabilities need, or class maps.
    preprocessing
        What is done to images; its ``frame`` is the only size that the graph takes, if there is one.
    """

    def __init__(
        self,
        manifest: SemanticManifest,
        session: Session,
        *,
        backend: str,
        precision: str = "fp32",
        backend_reason: str = "",
    ) -> None:
        self.manifest = manifest
        self.table: ClassTable = manifest.table
        self.backend = backend
        self.precision = precision
        self.backend_reason = backend_reason
        self._runner = GraphRunner(session, len(self.table.classes))
        self.gives_logits = self._runner.gives_logits
        self.preprocessing = replace(manifest.preprocessing, frame=self._runner.frame)

    def __repr__(self) -> str:
        return f"SemanticPredictor({self.manifest.architecture!r}, {self.precision}, in {self.description})"

    @property
    def description(self) -> str:
        """What really runs the model: runtime, version, device, threads."""
        return self._runner.session.description

    @property
    def session(self) -> Session:
        """The session of the graph, for code that gives it tensors itself."""
        return self._runner.session

    def check_options(self, options: SemanticOptions) -> None:
        """Refuse views that the graph has no answer for, whatever the image.

        Codes are ``needs_logits`` and ``bad_window``, as in `segment`.
        """
        if options.views > 1 or options.ratios != (1.0,) or options.probability or options.window is not None:
            self._require_logits()
        frame = self._runner.frame
        if options.window is not None and frame is not None and options.window != frame:
            message = (
                f"window is {options.window}, and the graph takes {frame[0]},{frame[1]} only; give that size, or a "
                "bundle that was exported for any size"
            )
            raise InputError(message, code="bad_window")

    def segment(
        self, image: ImageSource, options: SemanticOptions | None = None, *, limits: ImageLimits | None = None
    ) -> ClassMap:
        """Find the class of every pixel of one image.

        Parameters
        ----------
        image
            A path, encoded bytes, a PIL image, or an (H, W, 3) uint8 RGB array. Files are turned upright first.
        options
            Its views; the whole image once when left out, as the published single-scale scores have it.
        limits
            Bounds that the image must keep; the defaults of `ImageLimits` when left out.

        Returns
        -------
        ClassMap
            Of the image's own size. See `NOTES` for what may be noted.

        Raises
        ------
        ImageError
            When the image cannot be read or is outside the limits.
        InputError
            ``needs_logits`` when the graph gives class maps and more is asked for; ``bad_window`` or
            ``ratio_too_large`` when it takes one size only and the options ask for another.
        BackendUnavailable
            When the runtime fails, or gives values that are not finite.
        """
        options = options or SemanticOptions()
        self.check_options(options)
        # The sum of softmaxes, and the one that is added to it; one view needs neither.
        loaded = self._read(image, options, limits, stacks=2 if options.views > 1 else 0)
        return self._segment_alike([loaded], options)[0]

    def segment_batch(self, images: Sequence[ImageSource], *, limits: ImageLimits | None = None) -> list[ClassMap]:
        """Find the classes of several images, each seen once and whole.

        On a GPU images that have one size after resizing go through the graph together if it takes a batch; on a CPU
        that would take their number times the memory and no less time. The answers do not depend on it.

        Parameters
        ----------
        images, limits
            Each as `segment` takes it; all of them are held at once.

        Returns
        -------
        list
            Their class maps, in the order of the images.

        Raises
        ------
        ImageError, BackendUnavailable
            As `segment` does, for the first image that is refused.
        """
        options = SemanticOptions()
        loaded = [read_image(image, limits=limits) for image in images]
        groups: dict[Size, list[int]] = {}
        for index, image in enumerate(loaded):
            groups.setdefault(view_size(image.size_hw, self.preprocessing, options), []).append(index)
        answers: dict[int, ClassMap] = {}
        for indices in groups.values():
            maps = self._segment_alike([loaded[index] for index in indices], options)
            answers.update(zip(indices, maps, strict=True))
        return [answers[index] for index in range(len(loaded))]

    def logits(
        self, image: ImageSource, options: SemanticOptions | None = None, *, limits: ImageLimits | None = None
    ) -> FloatArray:
        """Return the logits of every class, (K, H, W) float32 in the image frame, of one view of an image.

        Parameters
        ----------
        image, options, limits
            As `segment` takes them, with one ratio and unmirrored.

        Raises
        ------
        InputError
            ``needs_logits``, or ``bad_option`` for several views, which have probabilities and no logits.
        """
        options = options or SemanticOptions()
        if options.views > 1:
            message = f"{options.views} views of an image have no logits in common; use `probabilities`"
            raise InputError(message, code="bad_option")
        loaded = self._read_for_classes(image, options, limits)
        (view,) = list_views(options)
        return resized_logits(loaded.pixels, self._runner.run, self.preprocessing, options, view)

    def probabilities(
        self, image: ImageSource, options: SemanticOptions | None = None, *, limits: ImageLimits | None = None
    ) -> FloatArray:
        """Return how probable each class is at each pixel: (K, H, W) float32, the mean of the softmaxes of all views.

        Takes what `segment` does, and raises what it raises.
        """
        options = options or SemanticOptions()
        loaded = self._read_for_classes(image, options, limits)
        return class_probabilities(loaded.pixels, self._runner.run, self.preprocessing, options)

    def close(self) -> None:
        """Release the session; the predictor cannot be used afterwards."""
        self._runner.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_logits(self) -> None:
        if not self.gives_logits:
            message = (
                "this bundle gives class maps, and windows, ratios, flip, probabilities and logits need the logits of "
                "every class; make a bundle with `segship export --output logits`"
            )
            raise InputError(message, code="needs_logits")

    def _read(
        self, image: ImageSource, options: SemanticOptions, limits: ImageLimits | None, *, stacks: int
    ) -> LoadedImage:
        loaded = read_image(image, limits=limits)
        self._check_ratios(loaded.size_hw, options)
        self._check_memory(loaded.size_hw, options, stacks)
        return loaded

    def _read_for_classes(
        self, image: ImageSource, options: SemanticOptions, limits: ImageLimits | None
    ) -> LoadedImage:
        self._require_logits()
        self.check_options(options)
        return self._read(image, options, limits, stacks=2 if options.views > 1 else 1)

    def _segment_alike(self, images: Sequence[LoadedImage], options: SemanticOptions) -> list[ClassMap]:
        """Return the class maps of images that have one size in every view, as many at once as the graph takes."""
        maps = []
        for image, found in zip(images, self._argmaxes(images, options), strict=True):
            notes = (*image.notes, *self._notes(image.size_hw, options))
            maps.append(ClassMap(found.classes, self.table, notes, found.probability, image.path))
        return maps

    def _argmaxes(self, images: Sequence[LoadedImage], options: SemanticOptions) -> Iterator[Argmax]:
        run, views = self._runner.run, list_views(options)
        if len(views) > 1:
            for image in images:
                probabilities = class_probabilities(image.pixels, run, self.preprocessing, options)
                yield argmax_probabilities(probabilities, probability=options.probability)
            return
        answers = view_answers([image.pixels for image in images], run, self.preprocessing, options, views[0])
        for image, answer in zip(images, answers, strict=True):
            if self.gives_logits:
                yield argmax_logits(answer, image.size_hw, probability=options.probability)
            else:
                yield Argmax(resize_classes(answer, image.size_hw), None)

    def _check_ratios(self, size_hw: Size, options: SemanticOptions) -> None:
        """Refuse ratios that a graph of one size would quietly undo: ``ratio_too_large``."""
        frame = self._runner.frame
        if frame is None or options.window is not None:
            return
        for ratio in options.ratios:
            scaled = scaled_size(size_hw, self.preprocessing.scale, ratio)
            if ratio != 1 and view_size(size_hw, self.preprocessing, options, ratio) != scaled:
                message = (
                    f"ratio {ratio:g} makes an image of {scaled[0]} x {scaled[1]} (height x width), and the graph "
                    f"takes {frame[0]} x {frame[1]} only; use windows of that size, or a bundle that was exported "
                    "for any size"
                )
                raise InputError(message, code="ratio_too_large")

    def _check_memory(self, size_hw: Size, options: SemanticOptions, stacks: int) -> None:
        """Refuse what would fill the memory: logits of the largest view, and so many arrays of the image's size."""
        views = [view_size(size_hw, self.preprocessing, options, ratio) for ratio in options.ratios]
        pixels = max(height * width for height, width in views) + stacks * size_hw[0] * size_hw[1]
        needed = 4 * len(self.table.classes) * pixels
        if needed > MAX_CLASSES_BYTES:
            message = (
                f"{len(self.table.classes)} classes for each pixel of an image of {size_hw[1]} x {size_hw[0]}, with "
                f"ratios up to {max(options.ratios):g}, take {needed / 1e9:.1f} GB, and at most "
                f"{MAX_CLASSES_BYTES / 1e9:.1f} are used; scale the image down, or take one view of it, at ratio 1"
            )
            raise ImageError(message, code="too_many_pixels")

    def _notes(self, size_hw: Size, options: SemanticOptions) -> tuple[str, ...]:
        frame, notes = self.preprocessing.frame, []
        sizes = [view_size(size_hw, self.preprocessing, options, ratio) for ratio in options.ratios]
        if frame is not None:
            wanted = [scaled_size(size_hw, self.preprocessing.scale, ratio) for ratio in options.ratios]
            # Windows see the image at its test scale.
            notes += ["scaled_to_graph"] if sizes != wanted else []
            notes += ["padded_to_graph"] if any(h < frame[0] or w < frame[1] for h, w in sizes) else []
        if not self.gives_logits and sizes[0] != size_hw:
            notes.append("resized_class_map")
        return tuple(notes)
