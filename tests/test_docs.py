# SPDX-License-Identifier: Apache-2.0
"""Every command that README and docs show runs, page by page, with tiny or with small seeded models: ``make docs``."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segship
from recipes.streets.scenes import write_ade20k, write_cityscapes
from segship.cli import main
from segship.datasets.known import ADE20K
from segship.images.comparison import draw_scene
from segship.images.reading import demo_photograph
from segship.ship.export import export_bundle
from segship.ship.options import ExportOptions
from tests.cli.test_main import commands_of_the_docs
from tests.small_models import save_checkpoint
from tests.small_semask import SMALL_SEMASK, seeded_semask
from tests.small_semask import save_checkpoint as save_semask

DOCS = Path(__file__).parents[1] / "docs"
# Words that stand for something of the reader's.
MEANT = {
    "my_finetuned.pth": "small.pth",
    "ROOT": "cityscapes",
    "BUNDLE": "my_bundle",
    "OTHER": "sam_vit_b",
    "CHECKPOINT": "small.pth",
    "frames/*/*.png": "frames/*.png",
}
# Of a page that means another.
MEANT_ON = {"semantic": {"BUNDLE": "street_logits"}}
# What is not run, and why; numbers of the same size of work are lowered.
NOT_RUN = {
    "fetch": "needs the network",
    "run photos/points.csv": "needs a table",
    "run retry": "needs pictures without an answer; tests/run has them",
    "s3://": "needs a store; tests/run/test_stores.py has one",
    "serve": "goes on until it is ended; tests/serve runs it",
    "import encoder.onnx": "needs another program's files; the recipes import our own",
    "--target tensorrt-rtx": "needs an environment of its own, in which its tests build the same",
    "--backend openvino": "runs what onnxruntime runs, on machines that have it",
    "--mode reference": "takes minutes, and the tests of everything mode compare it",
    "bench model.onnx": "any graph; the decoder is measured",
    "--crop-n-layers": "is five times the work of the line above it",
}
LOWERED = {"--repeats": "1", "--seconds": "1", "--deadline": "2", "--loop": "2", "--threads": "1", "--warm-up": "0"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, small_export, small_semantic_export):
    """A folder with all that the pages name, and the cache folder with what has a name."""
    place = tmp_path_factory.mktemp("docs")
    photograph = Image.open(demo_photograph()).convert("RGB")
    photograph.resize((1800, 1200)).save(place / "photo.jpg")
    photograph.save(place / "huge.jpg")
    Image.fromarray(draw_scene((256, 512), seed=1)).save(place / "street.png")
    Image.fromarray(draw_scene((256, 512), seed=1)).save(place / "huge.png")
    for name in ("photos/a.jpg", "photos/deep/b.jpg", "frames/1.png", "frames/2.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        photograph.save(place / name)
    (place / "labels").mkdir()
    halves = np.arange(photograph.width, dtype=np.uint8)[None].repeat(photograph.height, 0) // 128
    Image.fromarray(halves).save(place / "labels" / "a.png")
    (place / "prompts.json").write_text(json.dumps({"boxes": [[100, 100, 300, 300]]}))
    write_cityscapes(place / "cityscapes", {"train": 1, "val": 2}, size_hw=(64, 128))
    write_cityscapes(place / "drawn", {"train": 2, "val": 2}, size_hw=(64, 128))
    write_ade20k(place / "data" / "ade", {"val": 2}, size_hw=(64, 128))
    save_checkpoint(place / "small.pth")
    for name in ("semask_small_fpn_cityscapes.pth", "semask_s.pth", "semask.pth", "small_semask.pth"):
        save_semask(place / name)
    for name, bundle in (
        ("my_bundle", small_export[0]),
        ("sam_vit_b", small_export[0]),
        ("streets", small_semantic_export[0]),
        ("street", small_semantic_export[0]),
    ):
        shutil.copytree(bundle.path, place / name)
    assert main(["quantize", str(place / "my_bundle"), "--precision", "int8"]) == 0
    # Windows and several scales need logits of any size; data sets their own classes.
    options = ExportOptions(output="logits", measure=False)
    export_bundle(save_semask(place / "cityscapes.pth"), place / "street_logits", options)
    ade20k = seeded_semask(replace(SMALL_SEMASK, classes=len(ADE20K.classes)))
    save_semask(place / "ade20k.pth", ade20k, classes=ADE20K.classes, palette=ADE20K.palette)
    shutil.copyfile(place / "my_bundle" / "mask_decoder.onnx", place / "decoder.onnx")
    cache = place / "cache" / "bundles"
    for name, bundle in (
        ("vit_b", small_export[0]),
        ("vit_t", small_export[0]),
        ("semask_s_cityscapes", small_semantic_export[0]),
    ):
        shutil.copytree(bundle.path, cache / name)
    export_bundle(place / "ade20k.pth", cache / "semask_s_ade20k", options)
    shutil.copytree(place / "cityscapes" / "gtFine" / "val", place / "result" / "2026_11_21-10_00_00")
    return place


def tokens_to_run(tokens, page):
    """The words of a page's command as they can be run here; None of what is not run."""
    line = " ".join(tokens)
    if any(words in line for words in NOT_RUN):
        return None
    meant = MEANT | MEANT_ON.get(page, {})
    words = [meant.get(word, word) for word in tokens]
    for option, value in LOWERED.items():
        if option in words:
            words[words.index(option) + 1] = value
    if tokens[0] == "export" and "." not in tokens[1]:
        # A known name: its published file is not at hand.
        words[1] = "small.pth" if tokens[1].startswith("vit") else "semask.pth"
    if tokens[0] == "everything" and "--points-per-side" not in words:
        words += ["--points-per-side", "4"]
    return words


PAGES = {}
for shown in commands_of_the_docs():
    PAGES.setdefault(shown.id.partition(":")[0], []).append(shown.values[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_run_one_after_the_other(page, prepared, tmp_path, monkeypatch, capsys, small_templates):
    place = tmp_path / "place"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("SEGSHIP_CACHE", str(place / "cache"))
    failed = {}
    for tokens in filter(None, (tokens_to_run(shown, page) for shown in PAGES[page])):
        if tokens[0] == "export" and "-o" not in tokens:
            tokens = [*tokens, "-o", "exported"]
        for option in ("-o", "--out"):
            if tokens[0] == "export" and option in tokens:
                shutil.rmtree(tokens[tokens.index(option) + 1], ignore_errors=True)
        known = {"--overwrite"} if tokens[0] in ("segment", "everything", "semantic", "evaluate") else set()
        code = main([*tokens, *(known if "--skip-existing" not in tokens else ())])
        err = capsys.readouterr().err
        if code:
            failed[" ".join(tokens)] = code, err[-300:]
    assert failed == {}, failed


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_python_of_the_recipes_runs(prepared, tmp_path, monkeypatch):
    place = tmp_path / "place"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    for contract in ("ascend", "official"):
        more = ["--single-mask"] if contract == "official" else []
        assert main(["export", "small.pth", "--contract", contract, *more, "-o", contract]) == 0
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / "recipes.md").read_text("utf-8"), re.M | re.S):
        exec(compile(block, "recipes.md", "exec"), names)
    assert names["mask"].shape == (1200, 1800) and names["mask"].dtype == np.bool_
    assert os.path.isfile("small_semask.pth") and os.path.isfile("out/a.coco.json")
    expected = segship.load("sam_vit_b").predict("photo.jpg", points=[[300, 200]], multimask_output="best")
    both = np.stack([names["mask"], expected.masks[0, 0]])
    assert both.all(0).sum() >= 0.9 * both.any(0).sum()


def test_what_is_not_run_is_still_shown():
    lines = [" ".join(tokens) for page in PAGES.values() for tokens in page]
    assert all(any(words in line for line in lines) for words in NOT_RUN)
