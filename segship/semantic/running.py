# SPDX-License-Identifier: Apache-2.0
"""One semantic graph, run on tensors of any size and number that its own size and batch can be brought to.

On the use road below `segship.semantic.predictor`: fills the frame of a graph of one size with zeros and cuts the
answer, cuts batches, checks what comes back, and says what the graph cannot do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segship.errors import BackendUnavailable, BundleError, InputError
from segship.semantic.inference import SemanticOptions, view_size
from segship.semantic.preprocessing import SemanticPreprocessing, Size, scaled_size

if TYPE_CHECKING:
    from segship.backends.session import Session


class GraphRunner:
    """A session of the graph ``semantic``.

    Parameters
    ----------
    session
        With that contract of `segship.spec`.
    classes
        How many there are.

    Attributes
    ----------
    frame
        (height, width) of the only images that the graph takes; None if it takes any.
    gives_logits
        Whether it answers with logits, or with class maps.
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

    def run(self, tensors: NDArray[np.float32]) -> NDArray[Any]:
        """Run images (B, 3, h, w) that fit into the frame.

        Returns
        -------
        ndarray
            (B, K, h, w) float32 logits, or (B, h, w) uint8 class maps.

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
        step = self._batch or len(tensors)
        parts = [self._run_part(tensors[first : first + step], step) for first in range(0, len(tensors), step)]
        answers = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return answers[..., :height, :width]

    def _run_part(self, tensors: NDArray[np.float32], batch: int) -> NDArray[Any]:
        count = len(tensors)
        if count < batch:
            # A graph of a fixed batch gets copies, whose answers are dropped.
            tensors = np.concatenate([tensors, np.repeat(tensors[-1:], batch - count, axis=0)])
        answers = self.session.run({"image": tensors})[self._output][:count]
        self._check(answers)
        return answers

    def _check(self, answers: NDArray[Any]) -> None:
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

    def check_options(self, options: SemanticOptions, *, needs_logits: bool = False) -> None:
        """Refuse what the graph cannot answer whatever the image: ``needs_logits``, ``bad_window``."""
        more = needs_logits or options.probability or options.window is not None
        if not self.gives_logits and (more or options.ratios != (1.0,) or options.flip):
            message = (
                "this bundle gives class maps, and windows, ratios, flip, probabilities and logits need the logits of "
                "every class; make a bundle with `segship export --output logits`"
            )
            raise InputError(message, code="needs_logits")
        if options.window is not None and self.frame is not None and options.window != self.frame:
            height, width = self.frame
            message = (
                f"window is {options.window}, and the graph takes {height},{width} only; give that size, or a bundle "
                "that was exported without --size"
            )
            raise InputError(message, code="bad_window")

    def check_ratios(self, size_hw: Size, preprocessing: SemanticPreprocessing, options: SemanticOptions) -> None:
        """Refuse ratios that a graph of one size would quietly undo: ``ratio_too_large``."""
        if self.frame is None or options.window is not None:
            return
        for ratio in options.ratios:
            scaled = scaled_size(size_hw, preprocessing.scale, ratio)
            if ratio != 1 and view_size(size_hw, preprocessing, options, ratio) != scaled:
                message = (
                    f"ratio {ratio:g} makes an image of {scaled[0]} x {scaled[1]} (height x width), and the graph "
                    f"takes {self.frame[0]} x {self.frame[1]} only; look through windows of that size, or use a "
                    "bundle that was exported without --size"
                )
                raise InputError(message, code="ratio_too_large")


def _foreign_graph(found: str, known: int) -> BundleError:
    message = f"the graph answers with {found}, and the manifest names {known} classes; export the bundle again"
    return BundleError(message, code="graph_interface")
