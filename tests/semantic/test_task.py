# SPDX-License-Identifier: Apache-2.0
import numpy as np

from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.semantic import task
from segship.spec import check_arrays

RUN = RunOptions(backend="onnxruntime", threads=1)


def test_feeds_are_what_a_predictor_gives_the_graph(small_semantic_bundle, tmp_path):
    images = calibrate([], tmp_path / "list", CalibrateOptions(limit=2, task="semantic"))
    manifest, sessions = small_semantic_bundle.manifest, open_sessions(small_semantic_bundle, RUN)
    feeds = list(task.feeds(manifest, images, sessions))
    assert len(feeds) == 2
    with task.open(manifest, sessions) as predictor:
        for feed, picture in zip(feeds, images.pictures(), strict=True):
            ((inputs,),) = (feed["semantic"],)
            check_arrays(inputs, manifest.graph_spec("semantic").inputs, "semantic")
            classes = sessions["semantic"].run(inputs)["class_map"]
            assert set(np.unique(predictor.segment(picture.loaded).array)) <= set(np.unique(classes))
