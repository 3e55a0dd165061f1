# SPDX-License-Identifier: Apache-2.0
"""SeMask-FPN checkpoints as mmcv writes them: loaded strictly, named, and refused by what is wrong with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from segship.datasets.classes import ClassTable
from segship.datasets.known import CITYSCAPES
from segship.errors import CheckpointError, ExportError
from segship.semantic.class_map import ClassMap
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.describe import describe_checkpoint
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.families.semask.family import choose_table, manifest, published_scale
from segship.ship.loading import load_model
from segship.ship.options import ExportOptions
from tests.small_models import save_checkpoint as save_sam
from tests.small_semask import SMALL_SEMASK, mmcv_checkpoint, save_checkpoint, seeded_semask, small_semask


def refuse(path, words, code):
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path)
    assert caught.value.code == code


def saved(tmp_path, change):
    """Save the small model after a change of its state dict."""
    document = mmcv_checkpoint(small_semask())
    change(document["state_dict"])
    torch.save(document, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def test_every_tensor_of_an_mmcv_checkpoint_is_loaded(tmp_path):
    model = load_model(save_checkpoint(tmp_path / "model.pth", prefix="module."))
    assert model.config == SMALL_SEMASK
    expected = small_semask().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.module.state_dict().items())
    assert not model.module.training


def test_what_was_taken_off_is_said_and_the_training_state_is_not_kept(small_semask_checkpoint, tmp_path):
    model = load_model(save_checkpoint(tmp_path / "model.pth", prefix="module."))
    assert model.changes == (
        "taken from 'state_dict'; left out 'meta', 'optimizer'",
        "prefix 'module.' taken off every name",
        "semantic layers work in windows in all stages, as the published code has it for these sizes",
    )
    assert set(model.checkpoint.state_dict) == set(small_semask().state_dict())


def test_the_window_can_be_asked_for_and_is_written_down(small_semask_checkpoint):
    model = load_model(small_semask_checkpoint, ExportOptions(semantic_window="first-two"))
    assert model.config == model.module.config == replace(SMALL_SEMASK, semantic_window="first-two")
    assert model.changes[-1] == "semantic layers work in windows in first-two stages, as asked for"


def test_a_wrong_window_loads_and_answers_otherwise(small_semask_checkpoint):
    """Why the choice is recorded: nothing in the file can contradict it."""
    right, wrong = (
        load_model(small_semask_checkpoint, ExportOptions(semantic_window=window)) for window in ("all", "first-two")
    )
    image = torch.randn(1, 3, 96, 288, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not torch.allclose(right.module(image), wrong.module(image), atol=1e-2)


def test_heads_of_training_are_left_out_and_said(tmp_path):
    path = saved(tmp_path, lambda state: state.update({"auxiliary_head.conv_seg.weight": torch.ones(19, 8, 1, 1)}))
    assert load_model(path).changes[-1].startswith("left out 1 tensors of a head that is used in training alone")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("backbone.norm3.bias"), "1 missing: backbone.norm3.bias"),
        (lambda state: state.update({"decode_head.extra": torch.ones(1)}), "1 unexpected: decode_head.extra"),
        (
            lambda state: state.update({"decode_head.conv_seg.bias": torch.ones(20)}),
            r"decode_head.conv_seg.bias \(20,\) float32 instead of \(19,\)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path, change, words):
    refuse(saved(tmp_path, change), words, "state_mismatch")


@pytest.mark.parametrize("suffix", ["num_batches_tracked", "relative_position_index"])
def test_tensors_that_carry_nothing_are_not_demanded(tmp_path, suffix):
    def without(state):
        for name in [name for name in state if name.endswith(suffix)]:
            del state[name]

    expected = small_semask().state_dict()
    found = load_model(saved(tmp_path, without)).module.state_dict()
    assert found.keys() == expected.keys() and any(name.endswith(suffix) for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in found if not name.endswith("num_batches_tracked"))


def test_other_tables_of_positions_are_refused(tmp_path):
    key = "backbone.layers.0.blocks.0.attn.relative_position_index"
    path = saved(tmp_path, lambda state: state.update({key: state[key].flip(0)}))
    refuse(path, "does not number the places of a 5 x 5 window", "unsupported_architecture")


def test_a_promptable_checkpoint_is_refused_where_a_semantic_one_is_asked_for(tmp_path):
    path = save_sam(tmp_path / "sam.pth")
    with pytest.raises(
        ExportError, match=r"sam.pth is a promptable model; leave out output \(semantic models alone\)"
    ) as caught:
        load_model(path, ExportOptions(output="logits"))
    assert caught.value.code == "other_family"


def test_more_classes_than_a_map_holds_are_refused(tmp_path):
    many = seeded_semask(replace(SMALL_SEMASK, classes=256))
    refuse(save_checkpoint(tmp_path / "many.pth", many), "256 classes, .* at most 255", "class_count")


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """A model of seven classes, saved without names."""
    model = seeded_semask(replace(SMALL_SEMASK, classes=7))
    return save_checkpoint(tmp_path_factory.mktemp("seven") / "seven.pth", model, classes=(), palette=())


def test_the_number_of_classes_tells_the_data_set(small_semask_checkpoint):
    model = load_model(small_semask_checkpoint)
    assert choose_table(model) == CITYSCAPES and CITYSCAPES.name == "cityscapes"
    found = manifest(model, ExportOptions())
    assert (found.table, found.preprocessing.scale) == (CITYSCAPES, ScaleLimits(2048, 1024))


def test_nineteen_classes_with_names_of_their_own_are_no_cityscapes(tmp_path):
    names = tuple(f"part {index}" for index in range(19))
    table = choose_table(load_model(save_checkpoint(tmp_path / "own.pth", classes=names)))
    assert table == ClassTable("own", names, CITYSCAPES.palette)


def own(tmp_path, **changes):
    """Save the small model with other classes: ``dataset_meta`` as mmsegmentation 1.x has it, or ``CLASSES``."""
    document = mmcv_checkpoint(small_semask(), classes=())
    document["meta"] |= changes
    torch.save(document, tmp_path / "own.pth")
    return tmp_path / "own.pth"


OWN_NAMES = tuple(f"own{index}" for index in range(19))
TRAMS = tuple(name.replace("train", "tram") for name in CITYSCAPES.classes)


@pytest.mark.parametrize("key", ["classes", "CLASSES"])
def test_names_of_mmsegmentation_1_are_the_models_own(tmp_path, key):
    path = own(tmp_path, dataset_meta={key: OWN_NAMES})
    found = manifest(load_model(path), ExportOptions())
    assert (found.table.name, found.table.classes, found.names_assumed) == ("own", OWN_NAMES, False)
    described = describe_checkpoint(path)
    assert (described.data_set, described.class_names) == ("own", "checkpoint")


def test_names_that_were_mended_are_written_down(tmp_path):
    model = load_model(own(tmp_path, CLASSES=["a"] * 19))
    table = choose_table(model)
    assert table.classes == ("a", *(f"a {index}" for index in range(2, 20)))
    assert any(change.startswith("names of classes mended: 'a' of class 1 is 'a 2'") for change in model.changes)
    assert sum(ClassMap(np.arange(19, dtype=np.uint8)[None], table).areas().values()) == 19


def test_one_class_that_differs_keeps_its_name_and_the_data_set_its_scale(tmp_path):
    found = manifest(load_model(own(tmp_path, CLASSES=TRAMS)), ExportOptions())
    assert (found.table.name, found.table.classes) == ("cityscapes", TRAMS)
    assert found.preprocessing.scale == ScaleLimits(2048, 1024)


def test_the_order_of_the_names_is_the_files(tmp_path):
    backwards = CITYSCAPES.classes[::-1]
    table = choose_table(load_model(own(tmp_path, CLASSES=backwards)))
    assert (table.name, table.classes) == ("own", backwards)


@pytest.mark.parametrize(
    ("names", "words"), [(OWN_NAMES[:18], "it names 18"), ("roads", "the names of its classes are a str")]
)
def test_names_that_do_not_fit_are_not_replaced_by_a_data_set(tmp_path, names, words):
    path = own(tmp_path, CLASSES=names)
    with pytest.raises(CheckpointError, match=f"has 19 classes, and {words}.*classes=FILE") as caught:
        choose_table(load_model(path))
    assert caught.value.code == "class_count" and describe_checkpoint(path).class_names == "unknown"
    assert choose_table(load_model(path), CITYSCAPES) == CITYSCAPES


def test_a_data_set_is_assumed_only_without_names_and_that_is_said(tmp_path):
    path = own(tmp_path)
    found = manifest(load_model(path), ExportOptions())
    assert found.table == CITYSCAPES and found.names_assumed
    assert b'"names_assumed": true' in found.to_json()
    described = describe_checkpoint(path)
    assert (described.data_set, described.class_names) == ("cityscapes", "assumed")


def test_other_numbers_need_names(seven, tmp_path):
    with pytest.raises(CheckpointError, match="has 7 classes, whose names are not known.*classes=FILE") as caught:
        choose_table(load_model(seven))
    assert caught.value.code == "class_count"
    names = ClassTable("own", tuple("abcdefg"), ((0, 0, 0),) * 7)
    assert choose_table(load_model(seven), names) == names
    (tmp_path / "classes.json").write_text('["a", "b", "c", "d", "e", "f", "g"]')
    options = ExportOptions(classes=tmp_path / "classes.json", scale=ScaleLimits(640, 480))
    found = manifest(load_model(seven, options), options)
    assert (found.table.name, found.table.classes) == ("own", names.classes)
    assert found.preprocessing.scale == ScaleLimits(640, 480)


def test_as_many_names_as_classes_are_needed(seven):
    with pytest.raises(CheckpointError, match="19 names of classes were given and .* has 7 classes") as caught:
        choose_table(load_model(seven), CITYSCAPES)
    assert caught.value.code == "class_count"


def test_scales_are_those_of_the_published_scores():
    assert published_scale("semask_s", "ade20k") == ScaleLimits(2048, 512)
    assert published_scale("semask_l", "cocostuff") == ScaleLimits(2560, 640)
    assert published_scale("semask_l", "cityscapes") == ScaleLimits(2048, 1024)
    assert published_scale("semask_l", "own") == ScaleLimits(2048, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEMASK_ARCHITECTURES)
def test_full_sizes_load_strictly(name, tmp_path):
    config = SEMASK_ARCHITECTURES[name]
    expected = seeded_semask(config)
    model = load_model(save_checkpoint(tmp_path / f"{name}.pth", expected, prefix="module."))
    assert model.config == config
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.module.state_dict().items())
