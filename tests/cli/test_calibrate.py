# SPDX-License-Identifier: Apache-2.0
"""`segship calibrate`."""

from segship.datasets.image_list import read_image_list


def test_list_of_drawn_scenes_and_its_bins(run_json, model, tmp_path):
    out = tmp_path / "list"
    code, document = run_json("calibrate", "--limit", "2", "--objects", "1", "-o", out, "--bins", model)
    made = read_image_list(out)
    assert (code, document["images"], document["objects"]) == (0, 2, 8)
    assert document["sha256"] == made.sha256 and document["path"] == str(out)
    for name, shape in document["bins"].items():
        assert len(list((out / "bins" / name).iterdir())) == (2 if name == "x" else 8) and shape


def test_table_for_people_says_pictures_objects_and_digest(run, photo, tmp_path):
    code, out, _ = run("calibrate", photo, "-o", tmp_path / "list", "--task", "semantic")
    assert code == 0 and f"1 pictures with 0 objects in {tmp_path / 'list'}" in out
    assert read_image_list(tmp_path / "list").sha256 in out


def test_errors_have_their_codes(run_json, tmp_path):
    code, document = run_json("calibrate", tmp_path / "none.png", "-o", tmp_path / "list")
    assert (code, document["error"]["code"]) == (3, "file_missing")
