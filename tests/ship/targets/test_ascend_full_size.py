# SPDX-License-Identifier: Apache-2.0
"""Kits for Ascend of the published models, every script of them through the doubles; run by `make slow`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segship
from segship.catalog import embedded_bundle
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.images.comparison import comparison_images, draw_scene
from segship.masks.scores import mask_iou
from segship.ship.families import family_module
from segship.ship.targets import ConvertOptions, convert
from segship.ship.targets.ascend import BATCHES, GUIDE_SIZE
from segship.ship.templates.bundling import bundle_checkpoint
from segship.ship.templates.making import seeded_checkpoint

pytestmark = pytest.mark.slow

STREET_SIZE = GUIDE_SIZE[0] // 2, GUIDE_SIZE[1] // 2
"""Half of the guide's: at that, eight pictures in one call take more than 17 GB in ONNX Runtime."""


def seeded_bundle(family, model, folder, **changes):
    """A bundle of seeded weights in the published layout."""
    config = replace(family_module(family).template_configs()[model], **changes)
    return bundle_checkpoint(seeded_checkpoint(family, config, folder, 1), folder / "bundle")


def run_every_script(machine, kit):
    """Run the scripts of a kit in their order, and return how many models they measured."""
    scripts = sorted((kit / "scripts").iterdir())
    assert [path.stem for path in scripts] == ["00_check", "10_quantize", "20_compile", "30_bench"]
    return [machine.script(kit, path.stem).stdout for path in scripts][-1].count("throughput")


def accepted(machine, kit, precision):
    """Hold the compiled models against the recorded answers, and return the figures by graph and tensor."""
    done = machine.run("python3", kit / "run.py", "accept", "--precision", precision)
    assert "within the bar" in done.stdout
    rows = json.loads((kit / "report.json").read_text())["rows"]
    print(f"{kit}, {precision}: {[(row['graph'], row['what'], row['figures']) for row in rows]}")
    return {(row["graph"], row["what"]): row["figures"] for row in rows}


@pytest.mark.parametrize("model", ["tiny", "vit_b"])
def test_kits_of_sam(model, ascend_machine, tmp_path):
    bundle = embedded_bundle("tiny") if model == "tiny" else seeded_bundle("sam", model, tmp_path).path
    images = calibrate([], tmp_path / "list", CalibrateOptions(limit=1, objects=1))
    kit = tmp_path / "kit"
    convert(bundle, kit, ConvertOptions("ascend", soc="Ascend310P3", int8=True, calibration=images.path))
    assert run_every_script(ascend_machine, kit) == 4
    for precision in ("fp16", "int8"):
        assert accepted(ascend_machine, kit, precision)["mask_decoder", "masks"]["mask_iou_min"] > 0.999
    Image.fromarray(comparison_images()[0]).save(tmp_path / "picture.png")
    command = ["python3", kit / "run.py", "segment", tmp_path / "picture.png", "--point", "120,90"]
    ascend_machine.run(*command, "--out", tmp_path / "out.png")
    predictor = segship.load(bundle, backend="onnxruntime")
    known = predictor.predict(tmp_path / "picture.png", points=[[120, 90]], clean_up=False, edges=False)
    chosen = known.masks[0][int(np.argmax(known.iou_predictions[0]))]
    assert mask_iou(np.asarray(Image.open(tmp_path / "out.mask.png")) > 0, chosen) > 0.99


def add_street(data: Path, number: int) -> None:
    """Add a picture, and labels, in the layout of Cityscapes."""
    labels = np.random.default_rng(number).integers(0, 34, STREET_SIZE, np.uint8)
    for part, suffix, pixels in (
        ("leftImg8bit", "leftImg8bit", draw_scene(STREET_SIZE, seed=number)),
        ("gtFine", "gtFine_labelIds", labels),
    ):
        place = data / part / "val" / "ulm"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"ulm_{number:06d}_000019_{suffix}.png")


def test_kits_of_semask_in_batches_of_1_4_and_8(ascend_machine, tmp_path):
    bundle = seeded_bundle("semask", "semask_s.all", tmp_path, classes=19)
    images = calibrate([], tmp_path / "list", CalibrateOptions(task="semantic", limit=1))
    kit = tmp_path / "kit"
    options = ConvertOptions("ascend", soc="Ascend310P3", cann=6, size=STREET_SIZE, int8=True, calibration=images.path)
    convert(bundle.path, kit, options)
    assert run_every_script(ascend_machine, kit) == 2 * len(BATCHES)
    found = accepted(ascend_machine, kit, "fp16")
    assert {graph for graph, _ in found} == {f"semantic_bs{batch}" for batch in BATCHES}
    assert min(figures["pixels_equal"] for figures in found.values()) > 0.9999
    for number in range(2):
        add_street(tmp_path / "data", number)
    command = ["python3", kit / "run.py", "cityscapes", tmp_path / "data", "--work", tmp_path / "work", "--batch", "4"]
    assert json.loads(ascend_machine.run(*command).stdout)["pictures"] == 2
    sizes = {path.stat().st_size for path in (tmp_path / "work" / "outputs").glob("*.bin")}
    assert sizes == {STREET_SIZE[0] * STREET_SIZE[1]}
