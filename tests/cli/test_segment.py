# SPDX-License-Identifier: Apache-2.0
"""segship segment: what it writes, what it says, what it refuses."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import segship
from segship.cli.segment import gather_prompts
from segship.errors import PromptError
from segship.promptable.prompts import Prompts
from segship.writers import WRITERS


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_format_is_written_and_agrees_with_python(run_json, photo, model, tmp_path):
    out = tmp_path / "out"
    formats = "overlay,png,coco,npz,json"
    code, document = run_json("segment", photo, "--point", "50,40", "--model", model, "-o", out, "--format", formats)
    assert code == 0
    stem = "ein süßes Foto"
    suffixes = ["overlay.jpg", "object0.mask0.png", "coco.json", "prediction.npz", "prediction.json"]
    assert document["images"][0]["files"] == [str(out / f"{stem}.{suffix}") for suffix in suffixes]
    expected = segship.load(model).predict(photo, points=[[50, 40]], multimask_output="best").masks[0, 0]
    png = np.array(Image.open(out / f"{stem}.object0.mask0.png"))
    assert np.array_equal(png > 0, expected)
    annotation = json.loads((out / f"{stem}.coco.json").read_text(encoding="utf-8"))["annotations"][0]
    assert np.array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), expected)
    assert annotation["area"] == expected.sum()


def test_text_for_people_names_scores_times_and_files(run, photo, model, tmp_path):
    code, out, _ = run("segment", photo, "--point", "50,40", "--model", model, "-o", tmp_path / "out")
    assert code == 0
    for words in ("180 x 120", "predicted IoU", "encode", "ein süßes Foto.overlay.jpg", "onnxruntime"):
        assert words in out


def test_points_and_one_box_are_one_object(run_json, photo, model, tmp_path):
    arguments = ["--point", "50,40", "--point", "112,62,0", "--box", "42,30,70,87"]
    _, document = run_json("segment", photo, *arguments, "--model", model, "-o", tmp_path / "out")
    (only,) = document["images"][0]["objects"]
    assert only["prompts"]["labels"] == [1, 0] and only["prompts"]["box"] == [42, 30, 70, 87]


def test_several_boxes_are_several_objects(run_json, photo, model, tmp_path):
    arguments = ["--box", "42,30,70,87", "--box", "90,20,140,80"]
    _, document = run_json("segment", photo, *arguments, "--model", model, "-o", tmp_path / "out")
    assert len(document["images"][0]["objects"]) == 2


def test_multimask_gives_three(run_json, photo, model, tmp_path):
    _, document = run_json("segment", photo, "--point", "50,40", "--multimask", "--model", model, "-o", tmp_path / "o")
    assert len(document["images"][0]["objects"][0]["masks"]) == 3


def test_prompts_file_describes_objects_of_any_form(run_json, photo, model, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text('{"objects": [{"points": [[50, 40]]}, {"boxes": [42, 30, 70, 87]}]}')
    _, document = run_json("segment", photo, "--prompts", file, "--model", model, "-o", tmp_path / "out")
    assert len(document["images"][0]["objects"]) == 2


@pytest.mark.parametrize("text", ['{"objects": []}', '{"boxes": []}'])
def test_a_detector_that_found_nothing_is_no_error(run_json, photo, model, tmp_path, text):
    file, out = tmp_path / "prompts.json", tmp_path / "out"
    file.write_text(text)
    arguments = ["--model", model, "-o", out, "--format", ",".join(WRITERS["masks"])]
    code, document = run_json("segment", photo, "--prompts", file, *arguments)
    assert code == 0 and document["images"][0]["objects"] == []
    assert json.loads((out / "ein süßes Foto.coco.json").read_text())["annotations"] == []
    again = ["--mask-input", out / "ein süßes Foto.prediction.npz", "--overwrite"]
    assert run_json("segment", photo, *again, *arguments)[0] == 0


@pytest.mark.parametrize("command", [["segment", "--point", "1,0"], ["everything"], ["everything", "--dry-run"]])
def test_the_aspect_ratio_of_the_model_is_told(run_json, model, tmp_path, command):
    path = tmp_path / "narrow.png"
    Image.new("RGB", (257, 1)).save(path)
    code, document = run_json(command[0], path, *command[1:], "--model", model, "-o", tmp_path / "out")
    assert (code, document["error"]["code"]) == (3, "aspect_ratio")
    assert "at most 256 times the shorter" in document["error"]["message"]


def test_a_prompts_file_has_any_number_of_objects(run_json, photo, model, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"boxes": [[index, 2, index + 20, 30] for index in range(100)]}))
    code, document = run_json("segment", photo, "--prompts", file, "--model", model, "-o", tmp_path / "out")
    assert code == 0 and len(document["images"][0]["objects"]) == 100


def test_earlier_prediction_is_refined(run_json, photo, model, tmp_path):
    out = tmp_path / "first"
    run_json("segment", photo, "--point", "50,40", "--model", model, "-o", out, "--format", "npz")
    npz = out / "ein süßes Foto.prediction.npz"
    arguments = ["--point", "50,40", "--point", "112,62,0", "--mask-input", npz, "--model", model]
    code, document = run_json("segment", photo, *arguments, "-o", tmp_path / "second")
    assert code == 0
    assert document["images"][0]["objects"][0]["prompts"]["mask_input"] is True
    with Image.open(photo) as picture:
        picture.rotate(90, expand=True).save(tmp_path / "other.png")
    code, document = run_json("segment", tmp_path / "other.png", *arguments, "-o", tmp_path / "third")
    assert (
        code == 3
        and document["error"]["code"] == "bad_mask_input"
        and "of another image" in document["error"]["message"]
    )


def test_standard_input_is_an_image(run_json, photo, model, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(photo.read_bytes())))
    code, document = run_json("segment", "-", "--point", "50,40", "--model", model, "-o", tmp_path / "out")
    assert code == 0
    assert document["images"][0]["files"][0].endswith("image.overlay.jpg")


def test_one_bad_image_does_not_stop_the_others(run_json, photo, model, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:200])
    arguments = ["--point", "50,40", "--model", model, "-o", tmp_path / "out"]
    code, document = run_json("segment", broken, photo, *arguments)
    assert code == 3
    assert len(document["images"]) == 1
    assert document["failed"][0]["code"] == "truncated"


def test_images_of_one_name_do_not_overwrite_each_other(run_json, photo, model, tmp_path):
    other = tmp_path / "other" / photo.name
    other.parent.mkdir()
    other.write_bytes(photo.read_bytes())
    _, document = run_json("segment", photo, other, "--point", "50,40", "--model", model, "-o", tmp_path / "out")
    assert len({file for image in document["images"] for file in image["files"]}) == 4


def test_nothing_is_overwritten_unless_asked(run, photo, model, tmp_path):
    arguments = ["segment", photo, "--point", "50,40", "--model", model, "-o", tmp_path / "out"]
    assert run(*arguments)[0] == 0
    code, _, err = run(*arguments)
    assert code == 6 and "output_exists" in err
    assert run(*arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--point", "999,1"], "point_outside"),
        (["--point", "-5,3"], "point_outside"),
        (["--point", "nan,3"], "non_finite"),
        (["--point", "5,3,2"], "bad_label"),
        (["--box", "5,5,5,9"], "empty_box"),
        (["--box", "200,200,300,300"], "box_outside"),
        ([], "no_prompts"),
        (["--point", "1,1", "--box", "1,1,5,5", "--box", "2,2,6,6"], "ambiguous_prompts"),
    ],
)
def test_reason_codes_are_those_of_python(run_json, photo, model, tmp_path, arguments, code):
    exit_code, document = run_json("segment", photo, *arguments, "--model", model, "-o", tmp_path / "out")
    assert (exit_code, document["error"]["code"]) == (3, code)
    assert not list(tmp_path.glob("out/*"))


def test_points_outside_are_moved_to_the_edge_on_request(run_json, photo, model, tmp_path):
    arguments = ["--point", "999,1", "--clip", "--model", model, "-o", tmp_path / "out"]
    code, document = run_json("segment", photo, *arguments)
    assert code == 0
    assert document["images"][0]["notes"] == ["point_clipped"]


def test_unknown_format_is_refused_before_any_work(run_json, photo, tmp_path):
    code, document = run_json("segment", photo, "--point", "1,1", "--format", "gif", "--model", tmp_path / "none")
    assert (code, document["error"]["code"]) == (6, "unknown_format")


def test_no_image_is_told(run_json):
    assert run_json("segment", "--point", "1,1")[1]["error"]["code"] == "no_images"


def test_checkpoint_runs_on_the_torch_backend(run_json, photo, small_checkpoint, model, tmp_path):
    arguments = ["segment", photo, "--point", "50,40", "--format", "png"]
    _, by_torch = run_json(*arguments, "--model", small_checkpoint, "-o", tmp_path / "torch")
    _, by_bundle = run_json(*arguments, "--model", model, "-o", tmp_path / "bundle")
    assert (by_torch["backend"], by_bundle["backend"]) == ("torch", "onnxruntime")
    masks = [document["images"][0]["objects"][0]["masks"][0] for document in (by_torch, by_bundle)]
    assert abs(masks[0]["area"] - masks[1]["area"]) <= 2


def test_errors_of_a_prompts_file_name_it_and_the_help_says_what_it_holds(run, run_json, photo, tmp_path):
    (tmp_path / "p.json").write_text("[]")
    code, document = run_json("segment", photo, "--prompts", tmp_path / "p.json")
    assert (code, document["error"]["code"]) == (3, "bad_json")
    assert document["error"]["message"].startswith(f"--prompts {tmp_path / 'p.json'}: the JSON document is a list")
    assert '{"objects": [{"boxes": ...}, ...]}' in run("segment", "--help")[1]


def test_prompts_given_twice_are_refused(tmp_path):
    with pytest.raises(PromptError, match="--prompts was given together with"):
        gather_prompts(["1,1"], [], tmp_path / "prompts.json", None)


def test_prompts_of_the_command_line_are_those_of_python():
    gathered = gather_prompts(["1,2", "3,4,0"], ["5,6,7,8"], None, None)
    assert isinstance(gathered, Prompts)
    assert gathered.points.tolist() == [[[1, 2], [3, 4]]]
    assert gathered.labels.tolist() == [[1, 0]]
    assert gathered.boxes.tolist() == [[5, 6, 7, 8]]


def test_demo_leaves_an_overlay_and_says_where(run, tmp_path):
    code, out, _ = run("demo", "--out", tmp_path / "demo")
    assert code == 0
    overlay = tmp_path / "demo" / "coffee.overlay.jpg"
    assert overlay.is_file() and "coffee.overlay.jpg" in out and "encode" in out
    assert "for real masks (41 MB, no torch): segship fetch vit_t, then segship demo --model vit_t" in out


def test_demo_shows_the_same_photograph_with_another_model(run, run_json, model, tmp_path):
    code, out, _ = run("demo", "--model", model, "--out", tmp_path)
    assert code == 0 and (tmp_path / "coffee.overlay.jpg").is_file() and "segship fetch" not in out
    code, document = run_json("demo", "--model", "vit_t", "--out", tmp_path / "none")
    assert (code, document["error"]["code"]) == (3, "no_bundle") and not (tmp_path / "none").exists()


def test_edges_and_no_edges_say_what_python_says(run, photo, tmp_path):
    predictor, masks = segship.load("tiny"), {}
    for option, edges in (("--edges", True), ("--no-edges", False)):
        code, _, _ = run("segment", photo, "--point", "50,40", option, "-o", tmp_path / option, "--format", "png")
        (file,) = (tmp_path / option).glob("*.png")
        masks[option] = np.array(Image.open(file)) > 0
        expected = predictor.predict(photo, points=[[50, 40]], multimask_output="best", edges=edges).masks[0, 0]
        assert code == 0 and np.array_equal(masks[option], expected)
    assert (masks["--edges"] != masks["--no-edges"]).any()
