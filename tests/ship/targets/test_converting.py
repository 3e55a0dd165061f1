# SPDX-License-Identifier: Apache-2.0
"""`segship convert`: what all targets share."""

import json
import zlib

import pytest

from segship.catalog import EMBEDDED_MODELS
from segship.cli.main import main
from segship.errors import InputError, OutputError
from segship.files import sha256_of
from segship.ship.checkpoints.reading import read_checkpoint
from segship.ship.targets import TARGETS, ConvertOptions, convert, require_options_of
from tests.small_models import save_checkpoint
from tests.small_semask import save_checkpoint as save_semask


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path / "small.pth")
    return tmp_path / "small.pth"


def refuse(error, code, *given, words="", **options):
    with pytest.raises(error, match=words) as refusal:
        convert(*given, ConvertOptions(**options))
    assert refusal.value.code == code


@pytest.mark.parametrize("target", [None, "ckpt"])
def test_a_checkpoint_goes_to_mindspore_and_back(checkpoint, target):
    output = checkpoint.with_suffix(".ckpt")
    document = convert(checkpoint, output, ConvertOptions(target))
    ours, theirs = read_checkpoint(checkpoint), read_checkpoint(output)
    assert [*ours.state_dict] == [*theirs.state_dict] and theirs.notes == ()
    for name, array in ours.state_dict.items():
        assert array.tobytes() == theirs.state_dict[name].tobytes() and array.shape == theirs.state_dict[name].shape
    assert document["files"] == {"small.ckpt": {"bytes": theirs.bytes, "sha256": theirs.sha256}}
    assert document["made_from"] == {"checkpoint": ours.sha256} and document["options"] == {"target": "ckpt"}
    assert (document["architecture"], document["tensors"]) == ("custom", len(ours.state_dict))


def test_the_command_says_what_was_written(checkpoint, capsys):
    output = checkpoint.with_suffix(".ckpt")
    assert main(["convert", str(checkpoint), "-o", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == str(output) and document["files"]["small.ckpt"]["bytes"] == output.stat().st_size
    assert main(["convert", str(checkpoint), "-o", str(output)]) != 0
    assert "exists" in capsys.readouterr().err


def test_what_was_left_out_or_taken_off_is_said(tmp_path, capsys):
    def wrap(state):
        return {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}

    source, output = save_checkpoint(tmp_path / "trained.pth", wrap=wrap), tmp_path / "trained.ckpt"
    reported = []
    document = convert(source, output, report=lambda step, rows: reported.append(step))
    notes = list(read_checkpoint(source).notes)
    assert notes and document["changes"] == notes and reported[:-1] == notes
    assert main(["convert", str(source), "-o", str(tmp_path / "again.ckpt")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert all(note in said for note in notes)


def test_a_file_is_replaced_only_when_that_is_asked_for(checkpoint):
    output = checkpoint.with_suffix(".ckpt")
    output.write_bytes(b"mine")
    refuse(OutputError, "output_exists", checkpoint, output, words="exists")
    assert output.read_bytes() == b"mine"
    convert(checkpoint, output, ConvertOptions(force=True))
    assert read_checkpoint(output).bytes == output.stat().st_size


def test_a_checkpoint_may_be_replaced_by_itself(checkpoint):
    output = checkpoint.with_suffix(".ckpt")
    convert(checkpoint, output)
    output.write_bytes(output.read_bytes() + b"crc_num" + zlib.crc32(output.read_bytes()).to_bytes(10, "big"))
    before = sha256_of(output)
    document = convert(output, output, ConvertOptions(force=True))
    assert document["made_from"] == {"checkpoint": before} and document["files"][output.name]["sha256"] != before


def test_a_folder_with_strange_files_is_not_replaced(tmp_path):
    convert("tiny", tmp_path / "kit", ConvertOptions("tensorrt"))
    (tmp_path / "kit" / "report.json").write_text("mine")
    refuse(OutputError, "not_an_export", "tiny", tmp_path / "kit", target="tensorrt", force=True, words="report.json")
    (tmp_path / "kit" / "report.json").unlink()
    convert("tiny", tmp_path / "kit", ConvertOptions("tensorrt", force=True))


def test_options_of_other_models_are_refused():
    with pytest.raises(InputError, match="gears is an option of promptable models, and this is a semantic one"):
        require_options_of("semantic", ConvertOptions("ascend", soc="Ascend310P3", gears="2..4"))
    require_options_of("semantic", ConvertOptions("litert", size=(8, 16)))


def test_sizes_are_typed_as_everywhere(tmp_path, capsys):
    refused = "--size is an option of semantic models, and this is a promptable one"
    for text, words in (("8x16", "--size is '8x16'; accepted is HEIGHT,WIDTH"), ("8,16", refused)):
        command = ["convert", "tiny", "--target", "ascend", "--soc", "Ascend310P3", "--size", text]
        assert main([*command, "-o", str(tmp_path / "x")]) != 0
        assert words in " ".join(capsys.readouterr().err.split())


def test_nothing_is_left_behind_when_it_fails(tmp_path):
    save_semask(tmp_path / "semantic.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\3\4")
    refuse(InputError, "other_task", tmp_path / "semantic.pth", tmp_path / "x.ckpt", words="a semantic model")
    with pytest.raises(Exception, match="broken.pth"):
        convert(tmp_path / "broken.pth", tmp_path / "x.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.pth", "semantic.pth"]


def test_a_target_must_be_said(checkpoint, tmp_path):
    refuse(InputError, "no_target", checkpoint, tmp_path / "out", words=r"give target=, one of .*ckpt.* \.ckpt")
    refuse(OutputError, "unknown_format", checkpoint, tmp_path / "out.mnn", target="ckpt", words=r"end in \.ckpt")
    with pytest.raises(InputError, match="target 'abacus' is unknown; known are .*ckpt") as refusal:
        ConvertOptions("abacus")
    assert refusal.value.code == "unknown_target"


def test_a_bundle_is_no_checkpoint(tmp_path):
    refuse(InputError, "needs_checkpoint", EMBEDDED_MODELS[0], tmp_path / "x.ckpt", words="starts from a checkpoint")


@pytest.mark.parametrize("name", TARGETS)
def test_every_row_says_what_comes_out(name):
    assert TARGETS[name].what and TARGETS[name].extra.startswith("segship")
