# SPDX-License-Identifier: Apache-2.0
"""Class maps of other programs: every form is read, and what does not fit is refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

from recipes.streets.scenes import write_cityscapes
from segship.datasets.folders import Sample, encode_label_image, find_samples
from segship.datasets.known import ADE20K, CITYSCAPES, classes_to_label_ids
from segship.errors import InputError
from segship.evaluation import WrittenMaps, WrittenSource, find_written_maps, score_samples
from segship.evaluation.sources import read_written_map

RNG = np.random.default_rng(3)
MAP = RNG.integers(0, 19, (6, 10)).astype(np.uint8)
MAP[0, 0] = 255
STEM = "frankfurt_000000_000294"
SAMPLE = Sample(f"frankfurt/{STEM}", None, None, "labelIds")


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read(path, data, *, data_set="cityscapes", size=MAP.shape, **options):
    path.write_bytes(data)
    return read_written_map([path], SAMPLE, size, WrittenMaps(path.parent, **options), data_set)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "_0",
        "_leftImg8bit",
        "_leftImg8bit_0",
        "_gtFine_labelTrainIds",
        "_pred",
        "_leftImg8bit_prediction",
        ".classes",
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".npy", ".bin"])
def test_names_of_usual_tools_are_found(tmp_path, name, suffix):
    (tmp_path / "frankfurt").mkdir()
    path = tmp_path / "frankfurt" / f"{STEM}{name}{suffix}"
    path.write_bytes(b"x")
    found = find_written_maps(WrittenMaps(tmp_path), [SAMPLE])
    assert found.files == ((path,),) and found.strangers == 0


def test_names_that_tell_other_numbers_and_other_files_are_passed_over(tmp_path):
    for name in ("_gtFine_labelIds.png", "_gtFine_color.png", "_labelTrainIds.png", "_0.txt", "1.png"):
        (tmp_path / f"{STEM}{name}").write_bytes(b"x")
    train = find_written_maps(WrittenMaps(tmp_path), [SAMPLE])
    assert [path.name for path in train.files[0]] == [f"{STEM}_labelTrainIds.png"] and train.strangers == 3
    label = find_written_maps(WrittenMaps(tmp_path, ids="label"), [SAMPLE])
    assert [path.name for path in label.files[0]] == [f"{STEM}_gtFine_labelIds.png"]


def test_a_stem_that_ends_like_a_tail_is_a_stem(tmp_path):
    (tmp_path / "scene_0.bin").write_bytes(b"x")
    samples = [Sample("scene_0", None, None, "annotation"), Sample("scene", None, None, "annotation")]
    first, second = find_written_maps(WrittenMaps(tmp_path), samples).files
    assert len(first) == 1 and second == ()


@pytest.mark.parametrize("names_repeat", [False, True])
def test_maps_of_another_split_are_never_taken(tmp_path, names_repeat):
    write_cityscapes(tmp_path, {"train": 4, "val": 3}, size_hw=(32, 64))
    if names_repeat:
        for path in sorted(tmp_path.rglob("*train*"), reverse=True):
            if path.name != "train":
                path.rename(path.with_name(path.name.replace("train", "val", 1)))
    samples = find_samples("cityscapes", tmp_path)
    found = find_written_maps(WrittenMaps(tmp_path / "gtFine"), samples)
    assert [[path.parts[-3] for path in files] for files in found.files] == [["val"]] * 3
    for files in found.files[1:]:
        files[0].unlink()
    partly = find_written_maps(WrittenMaps(tmp_path / "gtFine"), find_samples("cityscapes", tmp_path, truth="polygons"))
    assert [len(files) for files in partly.files] == [1, 0, 0]


def test_the_digest_tells_changed_files(tmp_path):
    path = tmp_path / f"{STEM}.bin"
    path.write_bytes(b"x")
    first = find_written_maps(WrittenMaps(tmp_path), [SAMPLE]).digest
    assert find_written_maps(WrittenMaps(tmp_path), [SAMPLE]).digest == first
    path.write_bytes(b"xy")
    assert find_written_maps(WrittenMaps(tmp_path), [SAMPLE]).digest != first


def test_folders_without_maps_are_refused(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        find_written_maps(WrittenMaps(tmp_path / "none"), [SAMPLE])
    (tmp_path / f"{STEM}_labelIds.png").write_bytes(b"x")
    with pytest.raises(InputError, match="ids=label") as caught:
        find_written_maps(WrittenMaps(tmp_path), [SAMPLE])
    assert caught.value.code == "no_predictions"
    twins = [Sample("a/x", None, None, "labelIds"), Sample("b/x", None, None, "labelIds")]
    with pytest.raises(InputError, match="share their stem"):
        find_written_maps(WrittenMaps(tmp_path), twins)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "float32"])
@pytest.mark.parametrize("told", [False, True])
def test_raw_numbers_of_every_kind_are_read(tmp_path, kind, told):
    raw_type = kind if told else "auto"
    for array in (MAP, np.zeros_like(MAP), np.full_like(MAP, 18), np.full_like(MAP, 255)):
        answer = read(tmp_path / "a.bin", array.astype(kind).tobytes(), raw_type=raw_type)
        assert answer.dtype == np.uint8 and np.array_equal(answer, array)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "float32", "int16", "uint16", "float64", ">i4"])
@pytest.mark.parametrize("shape", [(6, 10), (1, 6, 10), (1, 1, 6, 10), (6, 10, 1)])
def test_npy_of_every_kind_is_read(tmp_path, kind, shape):
    array = MAP.reshape(shape).astype(kind)
    assert np.array_equal(read(tmp_path / "a.npy", npy(array)), MAP)
    assert np.array_equal(read(tmp_path / "a.npy", npy(np.asfortranarray(array))), MAP)


def test_png_holds_train_ids_or_label_ids(tmp_path):
    assert np.array_equal(read(tmp_path / "a.png", encode_label_image(MAP)), MAP)
    labels = classes_to_label_ids(MAP, CITYSCAPES)
    assert np.array_equal(read(tmp_path / "a.png", encode_label_image(labels), ids="label"), MAP)


def test_label_ids_of_ade20k_are_its_annotations(tmp_path):
    classes = RNG.integers(0, len(ADE20K.classes), (6, 10)).astype(np.uint8)
    annotation = (classes.astype(np.int64) + 1).astype(np.uint8)
    annotation[1, 1] = 0
    classes[1, 1] = 255
    data = annotation.astype(np.int64).tobytes()
    assert np.array_equal(read(tmp_path / "a.bin", data, ids="label", data_set="ade20k"), classes)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.bin", MAP.tobytes()[:-1], "has 59 bytes, and a map of 6 x 10 has 480 as int64, 240 as int32, 60 as uint8"),
        ("a.bin", bytes(60 * 19 * 4), r"4,560 bytes \(76 bytes a pixel\).*logits and batches"),
        ("a.bin", bytes(120), r"2 bytes a pixel"),
        ("a.bin", b"", "has 0 bytes"),
        ("a.bin", np.full(60, -1, np.int64).tobytes(), "from -1 to -1"),
        ("a.bin", np.full(60, 300, np.int64).tobytes(), "from 300 to 300"),
        ("a.bin", np.full(60, 0.5, np.float32).tobytes(), "fractions"),
        ("a.bin", np.full(60, np.nan, np.float32).tobytes(), "from nan"),
        ("a.bin", np.full(60, 26, np.uint8).tobytes(), "holds 26; train ids are 0 to 18 and 255, perhaps ids=label"),
        ("a.npy", npy(MAP.T), r"shape \(10, 6\)"),
        ("a.npy", npy(np.zeros((2, 6, 10), np.uint8)), r"shape \(2, 6, 10\)"),
        ("a.npy", npy(np.zeros((19, 6, 10), np.float32)), "number of the largest one"),
        ("a.npy", npy(np.zeros((6, 10), np.complex64)), "holds complex64"),
        ("a.npy", npy(MAP)[:-3], "damaged or no .npy"),
        ("a.npy", b"PK", "damaged or no .npy"),
        ("a.npy", npy(np.array([[None] * 10] * 6, object)), "holds object"),
        ("a.png", encode_label_image(MAP.T.copy()), "is 10 x 6, and its truth 6 x 10"),
        ("a.png", b"\x89PNG", "damaged"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, name, data, words):
    with pytest.raises(InputError, match=rf"{name}.*{words}"):
        read(tmp_path / name, data)


def test_a_header_that_asks_for_more_memory_than_there_is_is_refused_unread(tmp_path):
    data = npy(MAP).replace(b"(6, 10)", b"(6000000, 1000000)")
    with pytest.raises(InputError, match="shape|damaged"):
        read(tmp_path / "a.npy", data)


def test_label_ids_past_the_last_are_refused(tmp_path):
    with pytest.raises(InputError, match="label ids are 0 to 33 and 255, perhaps ids=train"):
        read(tmp_path / "a.png", encode_label_image(np.full((6, 10), 34, np.uint8)), ids="label")


def test_colours_are_no_class_map(tmp_path):
    Image.new("RGB", (10, 6)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="'RGB'"):
        read_written_map([tmp_path / "a.png"], SAMPLE, (6, 10), WrittenMaps(tmp_path), "cityscapes")


def test_none_and_two_maps_of_a_sample_are_refused(tmp_path):
    written = WrittenMaps(tmp_path)
    for files, code in (
        ([], "missing_prediction"),
        ([tmp_path / "a.png", tmp_path / "a_0.bin"], "several_predictions"),
    ):
        with pytest.raises(InputError, match=STEM) as caught:
            read_written_map(files, SAMPLE, (6, 10), written, "cityscapes")
        assert caught.value.code == code


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_an_offline_tool_scores_what_the_slow_count_says(
    samples, truths, shifted, check_score, tmp_path, workers
):
    """The guide's last step: int64 numbers, one file a picture, named after the input and the output's number."""
    for sample, prediction in zip(samples, shifted, strict=True):
        (tmp_path / f"{sample.stem}_leftImg8bit_0.bin").write_bytes(prediction.astype(np.int64).tobytes())
    (tmp_path / "sumary.json").write_text("{}")
    written = WrittenMaps(tmp_path)
    source = WrittenSource(written, find_written_maps(written, samples))
    evaluation = score_samples("cityscapes", samples, source, workers=workers)
    check_score(evaluation, shifted, truths)


def test_missing_and_damaged_maps_are_named_and_counted(samples, shifted, truths, check_score, tmp_path):
    for sample, prediction in list(zip(samples, shifted, strict=True))[1:]:
        (tmp_path / f"{sample.stem}.npy").write_bytes(npy(prediction))
    (tmp_path / f"{samples[2].stem}.npy").write_bytes(b"")
    written = WrittenMaps(tmp_path)
    evaluation = score_samples("cityscapes", samples, WrittenSource(written, find_written_maps(written, samples)))
    assert [failure.code for failure in evaluation.failed] == ["missing_prediction", "bad_prediction"]
    kept = [1, 3, 4]
    check_score(evaluation, [shifted[index] for index in kept], [truths[index] for index in kept])
