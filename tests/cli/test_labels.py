# SPDX-License-Identifier: Apache-2.0
"""The labels of segship everything: votes of a semantic model in every file, and what is refused."""

import json

import pytest
from PIL import Image

import segship


@pytest.fixture
def bundle(small_semantic_bundle):
    return small_semantic_bundle.path


@pytest.fixture
def logits_bundle(small_semantic_logits):
    return small_semantic_logits.path


LOW = ["--points-per-side", "4", "--pred-iou-thresh", "0", "--stability-score-thresh", "0.1"]


def test_everything_with_labels_says_the_class_of_every_mask(run_json, run, photo, logits_bundle, tmp_path):
    out = tmp_path / "out"
    arguments = ["everything", photo, *LOW, "--labels", logits_bundle, "-o", out]
    code, document = run_json(*arguments, "--format", "json,panoptic,overlay")
    (image,) = document["images"]
    records = json.loads((out / "ein süßes Foto.prediction.json").read_bytes())["records"]
    assert code == 0 and len(records) == image["masks"] > 2 and list(image["milliseconds"])[2] == "label"
    options = segship.SemanticOptions(probability=True)
    class_map = segship.load_semantic(logits_bundle).segment(photo, options)
    counts = {}
    for record in records:
        counts[record["category"]] = counts.get(record["category"], 0) + 1
        assert record["category"] in class_map.classes
        assert 0 < record["label_confidence"] <= record["label_purity"] <= 1
    assert image["labels"] == counts and "padded_to_graph" in image["notes"]
    assert document["labels_by"]["model"] == str(logits_bundle) and document["labels_by"]["architecture"] == "custom"
    panoptic = json.loads((out / "ein süßes Foto.panoptic" / "panoptic.json").read_bytes())
    assert {category["isthing"] for category in panoptic["categories"]} == {0, 1}
    assert len(panoptic["categories"]) == 19
    with Image.open(out / "ein süßes Foto.overlay.jpg") as overlay:
        assert overlay.size[0] >= 180 and overlay.size[1] > 120
    code, text, _ = run(*arguments, "--format", "sa1b")
    assert code == 0 and "labels: " in text


def test_everything_votes_as_python_does(photo, small_semantic_bundle):
    from segship.jobs import EverythingOptions, answer_everything, read

    options = EverythingOptions(
        amg=segship.AmgOptions(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0.1), formats=("sa1b",)
    )
    labels = segship.load_semantic(small_semantic_bundle.path)
    image = answer_everything(segship.load("tiny"), labels, read(photo, options), options)
    votes = segship.label_masks(image.result.records, labels.segment(photo))
    assert len(votes) == len(image.source.entries) > 2
    for vote, entry in zip(votes, image.source.entries, strict=True):
        assert image.source.categories[entry.category] == vote.name
        assert entry.label_purity == round(vote.label_purity, 6) == entry.label_confidence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--things", "car"], "without --labels"),
        (["--label-backend", "torch"], "without --labels"),
        (["--labels", "BUNDLE", "--label-backend", "torch"], "torch backend runs checkpoints"),
        (["--labels", "BUNDLE", "--things", "lorry"], "'lorry' is no class"),
        (["--labels", "tiny"], "promptable model"),
    ],
)
def test_labels_that_cannot_be_are_refused_before_any_work(run_json, photo, bundle, tmp_path, arguments, words):
    arguments = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    code, document = run_json("everything", photo, *LOW, *arguments, "-o", tmp_path / "out")
    assert code in (3, 4) and words in document["error"]["message"] and not (tmp_path / "out").exists()


def test_commands_for_prompts_refuse_a_semantic_bundle(run_json, photo, bundle, tmp_path):
    for arguments in (["everything", photo], ["segment", photo, "--point", "5,5"]):
        code, document = run_json(*arguments, "--model", bundle, "-o", tmp_path / "out")
        assert code == 3 and document["error"]["code"] == "other_family"
        assert "segship semantic" in document["error"]["message"]
