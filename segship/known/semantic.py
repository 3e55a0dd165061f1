# SPDX-License-Identifier: Apache-2.0
"""The published SeMask-FPN checkpoints: where each is, and what it scores.

Their publisher keeps them on Google Drive, which has no stable download, and gives neither sizes nor digests. So they
are got by hand, and what can be checked is that a file is readable, of this architecture, and of so many classes.
Scores are those of the project's README (mIoU in percent on the validation sets; COCO-Stuff is the 10k set).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SemanticName = Literal[
    "semask_t_cityscapes",
    "semask_s_cityscapes",
    "semask_b_cityscapes",
    "semask_l_cityscapes",
    "semask_t_ade20k",
    "semask_s_ade20k",
    "semask_b_ade20k",
    "semask_l_ade20k",
    "semask_t_cocostuff",
    "semask_s_cocostuff",
    "semask_b_cocostuff",
    "semask_l_cocostuff",
]
"""The names, for type checkers."""

SOURCE = "https://github.com/Picsart-AI-Research/SeMask-Segmentation"
SEMASK_LICENCE = "Apache-2.0"
CLASS_COUNTS = {"cityscapes": (19, 19), "ade20k": (150, 150), "cocostuff": (171, 150)}
"""Data set -> classes of the head, and of the semantic layers; those of COCO-Stuff were left at ADE20K's number."""


@dataclass(frozen=True, slots=True)
class SemanticCheckpoint:
    """One published weight file of a semantic model.

    Attributes
    ----------
    name
        What `segship.load`, ``segship fetch`` and ``segship export`` take.
    architecture
        Its name in `segship.models.config.SEMASK_ARCHITECTURES`.
    data_set
        What it was trained and scored on.
    drive_id
        Its number on Google Drive.
    miou, miou_multi_scale
        Published mIoU in percent: of whole pictures at one scale; at six scales and mirrored.
    bytes
        Size of its weights by arithmetic; files with a training state are larger.
    """

    name: str
    architecture: str
    data_set: str
    drive_id: str
    miou: float
    miou_multi_scale: float
    bytes: int

    @property
    def file(self) -> str:
        """The name that the file has in the cache folder."""
        return f"{self.name}.pth"

    @property
    def url(self) -> str:
        """The page from which a browser downloads it."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"

    @property
    def classes(self) -> int:
        """Classes of the head."""
        return CLASS_COUNTS[self.data_set][0]

    @property
    def semantic_classes(self) -> int:
        """Classes of the semantic layers."""
        return CLASS_COUNTS[self.data_set][1]


_ROWS = (
    ("t", "cityscapes", "1_JBOJQSUVes-CWs075XyPnuNfG5psELr", 74.92, 76.56),
    ("s", "cityscapes", "1WyT207dZmdwETBUR6aeiqOVfQdUIV_fN", 77.13, 79.14),
    ("b", "cityscapes", "1-LzVB6XzD7IR0zzE5qmE0EM4ZTv429b4", 77.70, 79.73),
    ("l", "cityscapes", "1R9DDCmucQ_a_6ZkMGufEZCzJ-_qVMqCB", 78.53, 80.39),
    ("t", "ade20k", "1L0daUHWQGNGCXHF-cKWEauPSyBV0GLOR", 42.06, 43.36),
    ("s", "ade20k", "1QhDG4SyGFtWL5kP9BbBoyPqTuFu7fH_y", 45.92, 47.63),
    ("b", "ade20k", "1PXCEhrrUy5TJC4dUp7YDQvaapnMzGT6C", 49.35, 50.98),
    ("l", "ade20k", "1u5flfAQCiQJbMZbZPIlGUGTYBz9Ca7rE", 51.89, 53.52),
    ("t", "cocostuff", "1qhXsJ8H64JPI_DW7CNzhxpHSEG2sKaIl", 37.53, 38.88),
    ("s", "cocostuff", "1ddXSMQu5ClkbLNMyQdyT0ATaOr86vIkL", 40.72, 42.27),
    ("b", "cocostuff", "1pGWI7U9bZJoe4ZaDx7ktWELx-uVN7rL0", 44.63, 46.30),
    ("l", "cocostuff", "1F6B9x9pX-SYEth7hdtxeNUeQ3XncOH7G", 47.47, 48.54),
)
_BYTES = {
    "cityscapes": {"t": 137_000_000, "s": 223_000_000, "b": 388_000_000, "l": 844_000_000},
    "ade20k": {"t": 139_000_000, "s": 225_000_000, "b": 390_000_000, "l": 847_000_000},
}

SEMANTIC_CHECKPOINTS: dict[str, SemanticCheckpoint] = {
    f"semask_{size}_{data_set}": SemanticCheckpoint(
        name=f"semask_{size}_{data_set}",
        architecture=f"semask_{size}",
        data_set=data_set,
        drive_id=drive_id,
        miou=miou,
        miou_multi_scale=multi_scale,
        # 21 classes more in the head are less than 0.1 MB.
        bytes=_BYTES["cityscapes" if data_set == "cityscapes" else "ade20k"][size],
    )
    for size, data_set, drive_id, miou, multi_scale in _ROWS
}
