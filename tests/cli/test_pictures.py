# SPDX-License-Identifier: Apache-2.0
"""Which pictures words mean, where their files go, and what is told of them."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from segship.cli import segment
from segship.cli.output import STANDARD_INPUT
from segship.cli.pictures import NOTES, BatchOptions, find_pictures, settle_pictures
from segship.errors import InputError, OutputError
from segship.images.comparison import draw_scene
from segship.jobs import SegmentOptions
from segship.writers import Result


def names(words, **batch):
    return [picture.name for picture in find_pictures(words, BatchOptions(**batch))]


def places(words, **batch):
    found = find_pictures(words, BatchOptions(out="out", **batch))
    return [(picture.folder / picture.stem).relative_to("out").as_posix() for picture in found]


@pytest.fixture
def album(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "day1/c.jpeg", "day2/d.png", "[odd].png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_folders_are_the_pictures_in_them_by_name(album):
    assert names([str(album)]) == [str(album / name) for name in ("[odd].png", "a.jpg", "b.PNG")]


def test_patterns_that_no_shell_expanded_are_expanded(album):
    assert names([f"{album}/day*/*"]) == [str(album / "day1/c.jpeg"), str(album / "day2/d.png")]
    assert names([f"{album}/**/?.png"]) == [str(album / "day2/d.png")]
    assert names([f"{album}/day?/*.p?g"]) == [str(album / "day2/d.png")]


def test_files_stay_as_they_are_whatever_their_names(album):
    words = [str(album / "[odd].png"), str(album / "notes.txt"), "missing.png", STANDARD_INPUT]
    assert names(words) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "no image was given"), (["{}/*.gif"], "no picture fits"), (["{}/folder.png"], "holds no picture")],
)
def test_what_means_nothing_is_refused(album, words, message):
    with pytest.raises(InputError, match=message) as caught:
        names([word.format(album) for word in words])
    assert caught.value.code == "no_images"


def test_folders_below_are_read_on_request_without_what_is_hidden_and_without_going_in_circles(album):
    for name in (".hidden.jpg", "._a.jpg", ".trash/e.jpg", "day1/deep/f.png"):
        (album / name).parent.mkdir(exist_ok=True)
        (album / name).write_bytes(b"x")
    (album / "day1" / "again").symlink_to(album)
    found = ["[odd].png", "a.jpg", "b.PNG", "day1/c.jpeg", "day1/deep/f.png", "day2/d.png"]
    assert names([str(album)]) == [str(album / name) for name in found[:3]]
    assert names([str(album)], recursive=True) == [str(album / name) for name in found]
    assert names([str(album / ".hidden.jpg")]) == [str(album / ".hidden.jpg")]
    assert places([str(album)], recursive=True) == ["[odd]", "a", "b", "day1/c", "day1/deep/f", "day2/d"]


def test_what_a_run_has_left_is_no_picture_of_the_next(album):
    for name in ("out/a.overlay.jpg", "out/deep/g.png"):
        (album / name).parent.mkdir(exist_ok=True, parents=True)
        (album / name).write_bytes(b"x")
    found = ["[odd].png", "a.jpg", "b.PNG", "day1/c.jpeg", "day2/d.png"]
    assert names([str(album)], recursive=True, out=album / "out") == [str(album / name) for name in found]
    # Asked for in so many words, they are pictures like others.
    assert names([str(album / "out" / "deep")], out=album / "out") == [str(album / "out/deep/g.png")]
    for name in ("a.overlay.jpg", "a.object0.mask1.png", "a.mask0.png", "b.classes.png", "a.instances.png"):
        (album / name).write_bytes(b"x")
    assert names([str(album)], out=album) == [str(album / name) for name in found[:3]]


# What runs have left beside a.jpg and day1/c.jpeg, in folders of formats, in a folder for files, and in a data set.
WRITTEN = (
    "a.overlay.jpg",
    "a.overlay.overlay.jpg",
    "a.object0.mask2.png",
    "a.jpg.classes.png",
    "a.masks/0.png",
    "a.panoptic/panoptic.png",
    "day1/c.mask0.png",
    "masks/a.overlay.jpg",
    "masks/day1/c.instances.png",
    "dataset/yolo/images/a.jpg",
)


@pytest.mark.parametrize("word", ["{}", "{}/**/*.*g"])
@pytest.mark.parametrize("out", [".", "masks", "elsewhere"])
def test_what_was_written_is_no_picture_of_a_folder_or_a_pattern_wherever_files_go(album, word, out):
    mine = ["[odd].png", "a.jpg", "b.PNG", "day1/c.jpeg", "day2/d.png", "nobody.overlay.jpg", "x.masks/0.png"]
    for name in (*WRITTEN, *mine[-2:]):
        (album / name).parent.mkdir(exist_ok=True, parents=True)
        (album / name).write_bytes(b"x")
    (album / "dataset/yolo/data.yaml").write_bytes(b"# made by segship\n")
    found = names([word.format(album)], recursive=True, out=album / out)
    # In the folder for files an ending is enough.
    expected = [str(album / name) for name in mine if out != "." or name != "nobody.overlay.jpg"]
    assert sorted(found) == sorted(name for name in expected if "**" not in word or not name.endswith(".PNG"))
    with pytest.raises(InputError, match="no picture fits .* but files that segship wrote"):
        names([f"{album}/a.o*"])


def test_a_written_file_is_taken_when_it_is_named_and_not_when_a_shell_names_it_beside_its_picture(album, capsys):
    written = [str(album / "a.overlay.jpg"), str(album / "a.object0.mask0.png")]
    for name in written:
        (album / name).write_bytes(b"x")
    assert names(written, out=album) == written
    assert names([str(album / "day2"), written[0]], out=album) == [str(album / "day2/d.png"), written[0]]
    assert capsys.readouterr().err == ""
    assert names([str(album / "a.jpg"), *written]) == [str(album / "a.jpg")]
    assert f"left out, since segship wrote it: {written[0]} and 1 more" in capsys.readouterr().err


def test_the_place_of_files_does_not_depend_on_the_other_pictures(album):
    for name in ("day2/c.png", "day2/c.gif"):
        (album / name).write_bytes(b"x")
    alone = {word: places([str(album / word)])[0] for word in ("a.jpg", "b.PNG", "day2/d.png")}
    assert list(alone.values()) == ["a", "b", "d"] == places([str(album / word) for word in alone])
    # Of pictures with one place each gets what tells them apart, whatever their order.
    twins = [str(album / word) for word in ("day1/c.jpeg", "day2/c.png")]
    assert places(twins) == ["day1/c", "day2/c"] and places(twins[::-1]) == ["day2/c", "day1/c"]
    assert places([str(album)], recursive=True)[3:] == ["day1/c", "day2/c.gif", "day2/c.png", "day2/d"]
    assert places([twins[0], "-"]) == ["c", "image"]


def test_a_file_is_taken_once_however_often_it_is_named(album):
    words = [str(album), str(album / "a.jpg"), f"{album}/day1/../a.jpg", f"{album}/*.jpg", str(album / "day1/c.jpeg")]
    assert places(words) == ["[odd]", "a", "b", "c"]
    assert names(words[1:]) == [words[1], words[4]]


def test_what_is_there_is_refused_before_any_work_or_left_out(album, tmp_path):
    options, out = SegmentOptions(), tmp_path / "out"
    out.mkdir()
    settle = lambda words, **more: settle_pictures(words, BatchOptions(out=out, **more), options, Result)  # noqa: E731
    words = [str(album / name) for name in ("a.jpg", "b.PNG", "day1/c.jpeg")]
    for name in ("a.overlay.jpg", "a.object0.mask0.png", "b.overlay.jpg"):
        (out / name).write_bytes(b"x")
    with pytest.raises(OutputError, match=r"a.overlay.jpg exists \(and files of 1 more of 3 .*--skip-existing"):
        settle(words)
    # Without a mask a picture has no file of png.
    assert [picture.done for picture in settle(words, skip_existing=True)] == [True, True, False]
    (out / "c.object0.mask0.png").write_bytes(b"x")
    with pytest.raises(OutputError, match="c.object0.mask0.png exists, .*other formats"):
        settle(words, skip_existing=True)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("a.png", "b.png", "deep/a.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(draw_scene((60, 90), seed=5)).save(folder / name)
    return folder


def test_a_run_goes_on_where_it_has_stopped(run, run_json, pictures, tmp_path, monkeypatch):
    arguments = ["segment", pictures, "--recursive", "--point", "20,20", "-o", tmp_path / "out"]
    answer, calls = segment.answer_prompts, []

    def answer_once(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*given)

    monkeypatch.setattr(segment, "answer_prompts", answer_once)
    code, out, err = run(*arguments)
    assert code == 130 and "interrupted after 1 of 3; run again with --skip-existing" in err
    assert "1 done, 0 skipped, 0 failed; files in" in out
    code, document = run_json(*arguments, "--skip-existing")
    assert code == 0 and document["skipped"] == [str(pictures / "a.png")]
    assert document["summary"] == {"done": 2, "skipped": 1, "failed": 0, "out": str(tmp_path / "out")}
    assert [image["path"] for image in document["images"]] == [str(pictures / "b.png"), str(pictures / "deep/a.png")]
    assert (tmp_path / "out" / "deep" / "a.overlay.jpg").is_file()
    # Nothing is computed for a run that is refused.
    assert run(*arguments)[0] == 6 and len(calls) == 4


def test_an_interrupted_run_still_prints_one_document(run_json, pictures, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "answer_prompts", interrupt)
    code, document = run_json("segment", pictures, "--point", "20,20", "-o", tmp_path / "out")
    assert code == 130 and document["error"]["code"] == "interrupted" and document["images"] == []
    assert not (tmp_path / "out").exists()


def test_lines_of_json_come_one_a_picture_and_tell_them_apart(run, pictures, tmp_path):
    (pictures / "b.png").write_bytes(b"x")
    arguments = ["segment", pictures, "--recursive", "--point", "20,20", "-o", tmp_path / "out", "--jsonl"]
    code, out, _ = run(*arguments)
    first, failed, deep, end = map(json.loads, out.splitlines())
    assert code == 3 and failed["error"]["code"] == "unknown_format"
    assert [line["path"] for line in (first, failed, deep)] == [
        str(pictures / name) for name in ("a.png", "b.png", "deep/a.png")
    ]
    assert first["image"]["file_name"] == deep["image"]["file_name"] and first["files"] != deep["files"]
    assert end["summary"]["failed"] == 1 and end["model"] == "tiny"
    code, out, _ = run("segment", "--jsonl")
    assert code == 3 and json.loads(out)["error"]["code"] == "no_images"
    assert run("segment", pictures, "--json", "--jsonl")[0] == 3


@pytest.mark.parametrize(
    ("more", "code"),
    [(["--point", "999,1"], 3), (["--max-pixels", "10"], 3), (["--format", "yolo", "--point", "1,1"], 6)],
)
def test_one_cause_has_one_exit_code_for_one_picture_and_for_many(run, pictures, tmp_path, more, code):
    out = tmp_path / "out"
    out.mkdir()
    if code == 6:
        (out / "a.txt").symlink_to("nowhere")
    arguments = [*more, "-o", out]
    assert run("segment", pictures / "a.png", *arguments)[0] == code
    assert run("segment", pictures, *arguments)[0] == code


def test_an_error_of_one_picture_names_it_and_leaves_nothing(run, pictures, tmp_path):
    (pictures / "b.png").write_bytes(b"")
    code, _, err = run("segment", pictures / "b.png", "--point", "1,1", "-o", tmp_path / "out")
    assert code == 3 and f"{pictures / 'b.png'}: the image is empty" in err.replace("\n", "")
    assert not (tmp_path / "out").exists()


def test_an_error_of_many_names_its_picture_once_and_the_document_gives_its_path(run, run_json, pictures, tmp_path):
    (pictures / "b.png").write_bytes(b"")
    arguments = ["segment", pictures, "--point", "1,1", "-o", tmp_path / "out"]
    _, out, err = run(*arguments)
    assert err.count(str(pictures / "b.png")) == 1 and "the image is empty" in err
    assert "1 done, 0 skipped, 1 failed; files in" in out
    code, document = run_json(*arguments, "--overwrite")
    (failed,) = document["failed"]
    assert code == 3 and failed["path"] == failed["image"] == str(pictures / "b.png")
    # Nothing was made.
    (pictures / "a.png").write_bytes(b"")
    assert run(*arguments, "--overwrite")[1].endswith("0 done, 0 skipped, 2 failed\n")


def test_every_note_has_a_sentence(run, pictures, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text("utf-8")
    (line,) = re.findall(r"notes, not refusals \|(.*)\|", page)
    assert set(re.findall(r"`(\w+)`", line)) <= set(NOTES)
    prompts = ("--point", "95,5,0", "--clip", "-o", tmp_path / "out")
    out = run("segment", pictures / "a.png", *prompts)[1]
    assert "note: point_clipped: a point outside" in out and "note: no_positive_prompt: an object has" in out


def test_a_quiet_run_prints_errors_and_json_alone(run, pictures, tmp_path):
    arguments = ["segment", pictures / "a.png", "--point", "1,1", "-o", tmp_path / "out", "-q"]
    assert run(*arguments) == (0, "", "")
    assert "exists" in run(*arguments)[2]
    assert json.loads(run(*arguments, "--json", "--overwrite")[1])["images"]


def merge(*more, format="coco,yolo,npz"):
    return ("segment", "--point", "20,20", "--format", format, "--merge", *more)


def test_pictures_of_folders_become_one_data_set(run_json, pictures, tmp_path):
    out = tmp_path / "out"
    code, document = run_json(*merge(pictures, "-r", "--coco-polygons", "-o", out))
    assert code == 0 and document["summary"]["merged"] == [str(out / "coco.json"), str(out / "yolo")]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(out / "coco.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.png", "b.png", "deep/a.png"]
    assert sorted(coco.getAnnIds()) == list(range(1, len(coco.getAnnIds()) + 1))
    assert all(isinstance(one["segmentation"], list) for one in coco.loadAnns(coco.getAnnIds()))
    assert sorted(path.name for path in (out / "yolo" / "labels").iterdir()) == ["a-2.txt", "a.txt", "b.txt"]
    # What is no data set is still written for each.
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.npz")) == [
        "a.prediction.npz",
        "b.prediction.npz",
        "deep/a.prediction.npz",
    ]


def test_data_sets_lack_the_pictures_that_failed_and_the_exit_code_says_so(run_json, pictures, tmp_path):
    (pictures / "b.png").write_bytes(b"no picture")
    code, document = run_json(*merge(pictures, "-r", "-o", tmp_path / "out"))
    assert code != 0 and [entry["image"] for entry in document["failed"]] == [str(pictures / "b.png")]
    images = json.loads((tmp_path / "out" / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png", "deep/a.png"]


@pytest.mark.parametrize(
    ("format", "more", "code", "words"),
    [
        ("npz", (), 3, "--merge makes one data set of coco, panoptic, yolo; name one of them in --format"),
        ("coco", ("--skip-existing",), 3, "--merge needs all pictures in one run, and --skip-existing leaves some out"),
        ("coco,yolo", (), 6, "coco.json exists"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_a_model_is_opened(run, pictures, tmp_path, format, more, code, words):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "coco.json").touch()
    arguments = merge(pictures, "-o", tmp_path / "out", "--model", "no such model", *more, format=format)
    found, _, err = run(*arguments)
    assert found == code and words in " ".join(err.split())


def test_an_interrupted_data_set_is_not_kept(run, pictures, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "answer_prompts", interrupt)
    code, _, err = run(*merge(pictures, "-o", tmp_path / "out"))
    assert code == 130 and "these were not kept" in " ".join(err.split())
    assert not list((tmp_path / "out").iterdir())
