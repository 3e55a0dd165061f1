# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.errors import ImageError, InputError, OutputError
from segship.images.comparison import draw_labelled_scene


def save_photos(folder, count=3, size_hw=(60, 90)):
    """Pictures with their truth, as photographs with human segments lie in folders."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for place in range(count):
        pixels, labels = draw_labelled_scene(size_hw, place)
        Image.fromarray(pixels).save(folder / "images" / f"photo {place}.jpg")
        Image.fromarray(labels * 300).save(folder / "labels" / f"photo {place}.png")
    return folder / "images"


def objects_of(made, kind):
    return [thing for entry in made.listing.images for thing in entry.objects if thing.kind == kind]


def test_clicks_and_boxes_come_from_segments(tmp_path):
    photos = save_photos(tmp_path)
    made = calibrate([photos], tmp_path / "list", CalibrateOptions(truth=tmp_path))
    seen = 0
    for picture in made.pictures():
        for thing in picture.entry.objects:
            segment = picture.truth == thing.segment
            assert 0.01 <= segment.mean() <= 0.6 and thing.segment % 300 == 0
            for (x, y), label in zip(thing.points, thing.labels, strict=True):
                assert segment[int(y), int(x)] == bool(label)
            if thing.box is not None:
                ys, xs = np.nonzero(segment)
                assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            seen += 1
    assert seen > 8
    assert all(2 <= len(thing.points) <= 4 and thing.labels[0] == 1 for thing in objects_of(made, "clicks"))
    assert {label for thing in objects_of(made, "clicks") for label in thing.labels} == {0, 1}


def test_prompts_hang_on_the_seed_and_on_the_picture_alone(tmp_path):
    photos = save_photos(tmp_path)
    all_of_them = calibrate([photos], tmp_path / "all")
    one = calibrate([photos / "photo 1.jpg"], tmp_path / "one")
    other = calibrate([photos], tmp_path / "other", CalibrateOptions(seed=1))
    assert one.listing.images[0] == all_of_them.listing.images[1]
    assert calibrate([photos], tmp_path / "again").sha256 == all_of_them.sha256 != other.sha256


def test_folders_text_files_and_pictures_are_taken_once_and_limited(tmp_path):
    photos = save_photos(tmp_path, 4)
    text = photos / "which.txt"
    text.write_text("photo 0.jpg\n\nphoto 3.jpg\n")
    made = calibrate([text, photos / "photo 3.jpg"], tmp_path / "list")
    assert [entry.file.name for entry in made.listing.images] == ["photo_0.jpg", "photo_3.jpg"]
    few = calibrate([photos], tmp_path / "few", CalibrateOptions(limit=2, seed=3))
    assert len(few) == 2 and few.listing.seed == 3


def test_pictures_of_one_name_stay_apart(tmp_path):
    first, second = save_photos(tmp_path / "a", 1), save_photos(tmp_path / "b", 1)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(second / "photo 0.jpg")
    made = calibrate([first, second], tmp_path / "list")
    assert [entry.file.name for entry in made.listing.images] == ["photo_0.jpg", "photo_0-2.jpg"]
    assert [entry.size_hw for entry in made.listing.images] == [(60, 90), (40, 50)]


def test_semantic_lists_have_no_prompts(tmp_path):
    made = calibrate([save_photos(tmp_path)], tmp_path / "list", CalibrateOptions(task="semantic"))
    assert len(made) == 3 and all(entry.objects == () for entry in made.listing.images)


def test_scenes_are_drawn_where_no_picture_is_given(tmp_path):
    made = calibrate([], tmp_path / "list", CalibrateOptions(limit=3))
    assert [entry.file.name for entry in made.listing.images] == ["scene0.png", "scene1.png", "scene2.png"]
    assert len({entry.size_hw for entry in made.listing.images}) == 3
    assert all(len(picture.entry.objects) >= 4 for picture in made.pictures())


def refuse(images, out, error, code, **options):
    with pytest.raises(error) as caught:
        calibrate(images, out, CalibrateOptions(**options))
    assert caught.value.code == code
    return str(caught.value)


def test_what_cannot_be_listed_is_refused(tmp_path):
    photos, out = save_photos(tmp_path), tmp_path / "list"
    refuse([tmp_path / "none.jpg"], out, InputError, "file_missing")
    assert "give a folder of pictures" in refuse([tmp_path], out, InputError, "no_images")
    (tmp_path / "text.jpg").write_text("no picture")
    assert "text.jpg: " in refuse([tmp_path / "text.jpg"], out, ImageError, "unknown_format")
    assert "photo 0.png" in refuse([photos], out, InputError, "missing_truth", truth=photos)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "labels" / "photo 0.png")
    assert "9 x 9 pixels" in refuse([photos], out, InputError, "bad_label_image", truth=tmp_path)
    assert not out.exists()


def test_only_an_image_list_is_replaced(tmp_path):
    photos, out = save_photos(tmp_path), tmp_path / "list"
    calibrate([photos], out)
    refuse([photos], out, OutputError, "output_exists")
    assert len(calibrate([photos / "photo 0.jpg"], out, CalibrateOptions(overwrite=True))) == 1
    refuse([photos], tmp_path / "labels", OutputError, "not_an_image_list", overwrite=True)
