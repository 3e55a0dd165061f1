# SPDX-License-Identifier: Apache-2.0
import functools
import hashlib
import json
import os
import random
import shutil
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segship import files
from segship.bundle import Bundle, write_bundle
from segship.bundle.manifest import parse_manifest
from segship.bundle.onnx_file import read_graph
from segship.catalog import KNOWN_CHECKPOINTS
from segship.errors import BundleError, InputError, OutputError
from segship.files import tidy_directory
from tests.kills import each_kill, forks, make_old
from tests.small_bundle import GEOMETRY, decoder_model, encoder_model, make_bundle, save_models, small_manifest

SIDECAR = "image_encoder.onnx.data"
INLINE_FILES = ["image_encoder.onnx", "manifest.json", "mask_decoder.onnx"]


@pytest.fixture(params=[False, True], ids=["inline", "sidecar"])
def bundle(request, tmp_path):
    return make_bundle(tmp_path, external=request.param)


@pytest.fixture
def inline(tmp_path):
    return make_bundle(tmp_path)


@pytest.fixture
def with_sidecar(tmp_path):
    return make_bundle(tmp_path, external=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(folder, code, words=None):
    with pytest.raises(BundleError, match=words) as caught:
        Bundle.read(folder)
    assert caught.value.code == code
    return str(caught.value)


def rewrite_manifest(bundle, **changes):
    """Change the manifest and give it a digest that fits, as somebody would who tampers."""
    manifest = parse_manifest((bundle.path / "manifest.json").read_bytes())
    (bundle.path / "manifest.json").write_bytes(replace(manifest, **changes).to_json())


def with_artifact(bundle, graph, **changes):
    """Return the manifest's artifacts, that of a graph changed."""
    return tuple(replace(item, **changes) if item.graph == graph else item for item in bundle.manifest.artifacts)


def rewrite_graph(bundle, name, model):
    """Replace a graph and make the manifest fit it."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (bundle.path / bundle.manifest.artifact(name).file).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    rewrite_manifest(bundle, artifacts=with_artifact(bundle, name, bytes=len(data), sha256=digest))


def test_bundle_is_read_as_it_was_written(bundle):
    read = Bundle.read(bundle.path)
    assert read == bundle == Bundle.open(bundle.path)
    assert read.manifest.geometry == GEOMETRY
    assert read.digest == hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()


def test_manifest_lists_every_file_with_its_digest(with_sidecar):
    entry = with_sidecar.manifest.artifact("image_encoder")
    assert names(with_sidecar.path) == sorted([*INLINE_FILES, SIDECAR])
    for part in (entry, entry.weights):
        data = (with_sidecar.path / part.file).read_bytes()
        assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_inline_graph_comes_as_the_bytes_that_were_checked(inline):
    assert inline.verified(inline.manifest.artifact("mask_decoder")) == (inline.path / "mask_decoder.onnx").read_bytes()


def test_graph_with_sidecar_comes_as_a_path(with_sidecar):
    assert (
        with_sidecar.verified(with_sidecar.manifest.artifact("image_encoder"))
        == with_sidecar.path / "image_encoder.onnx"
    )


def test_unknown_graph_lists_the_known(inline):
    with pytest.raises(BundleError, match="no graph 'semantic'; it has image_encoder, mask_decoder"):
        inline.verified(inline.manifest.artifact("semantic"))


def test_flipped_bits_are_always_seen(with_sidecar):
    rng, seen = random.Random(0), 0
    for name in names(with_sidecar.path):
        path = with_sidecar.path / name
        data = path.read_bytes()
        # A digest sees any bit of the others alike; the manifest is also parsed.
        for _ in range(250 if name == "manifest.json" else 50):
            flipped = bytearray(data)
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(BundleError, match=r"manifest\.json|onnx"):
                Bundle.read(with_sidecar.path)
            seen += 1
        path.write_bytes(data)
    assert seen == 400
    assert Bundle.read(with_sidecar.path) == with_sidecar


def test_flipped_bit_names_the_file(with_sidecar):
    for name in (SIDECAR, "image_encoder.onnx", "mask_decoder.onnx"):
        path = with_sidecar.path / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert f"{name} in the bundle" in refused(with_sidecar.path, "changed_file", "its SHA-256 differs")
        path.write_bytes(data)


def test_truncated_files_are_refused(with_sidecar):
    for name in (SIDECAR, "image_encoder.onnx", "mask_decoder.onnx"):
        path = with_sidecar.path / name
        data = path.read_bytes()
        for length in (0, 1, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            refused(with_sidecar.path, "changed_file", f"{name} .* has {length} bytes instead of {len(data)}")
        path.write_bytes(data + b"\0")
        refused(with_sidecar.path, "changed_file", "bytes instead of")
        path.write_bytes(data)


def test_sizes_are_checked_before_any_graph_is_read(inline, monkeypatch):
    with open(inline.path / "mask_decoder.onnx", "ab") as stream:
        stream.truncate(1 << 40)
    refused(inline.path, "changed_file", "has 1099511627776 bytes instead of")


def test_missing_files_are_named(with_sidecar):
    for name in names(with_sidecar.path):
        os.rename(with_sidecar.path / name, with_sidecar.path.parent / "aside")
        assert name in refused(with_sidecar.path, "missing_file")
        os.rename(with_sidecar.path.parent / "aside", with_sidecar.path / name)


def test_folder_that_is_not_there_is_named(tmp_path):
    refused(tmp_path / "absent", "missing_bundle", "there is no bundle folder .*absent")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "missing_bundle")


@pytest.mark.parametrize("name", ["extra.so", "image_encoder.onnx.data", ".hidden", "a\nb", "-rf", "manifest.json~"])
def test_strange_files_are_refused(inline, name):
    (inline.path / name).touch()
    refused(inline.path, "strange_file", "which does not belong there; remove it")


def test_strange_folder_is_refused(inline):
    (inline.path / "sub").mkdir()
    refused(inline.path, "strange_file", "'sub'")


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE", "README.md", "certificate.json"])
def test_no_byte_lies_in_the_folder_that_no_digest_covers(inline, name):
    (inline.path / name).write_text("planted")
    refused(inline.path, "strange_file", name)


def test_only_published_digests_are_called_published(inline):
    origin = inline.manifest.checkpoint
    rewrite_manifest(inline, checkpoint=replace(origin, known=True))
    refused(inline.path, "not_published", f"calls {origin.name} a published checkpoint")
    rewrite_manifest(inline, checkpoint=replace(origin, known=True, sha256=KNOWN_CHECKPOINTS["vit_t"].sha256))
    Bundle.open(inline.path)


@pytest.mark.parametrize("name", [*INLINE_FILES, SIDECAR])
def test_links_are_refused_even_to_the_right_bytes(with_sidecar, name):
    path = with_sidecar.path / name
    os.rename(path, with_sidecar.path.parent / "elsewhere")
    path.symlink_to("../elsewhere")
    assert name in refused(with_sidecar.path, "not_a_regular_file")


@pytest.mark.parametrize("name", ["image_encoder.onnx", SIDECAR])
def test_file_swapped_for_a_link_after_opening_is_refused(with_sidecar, name):
    os.rename(with_sidecar.path / name, with_sidecar.path.parent / "elsewhere")
    (with_sidecar.path / name).symlink_to("../elsewhere")
    with pytest.raises(BundleError, match=f"{name} of the bundle cannot be used: .* is a link"):
        with_sidecar.verified(with_sidecar.manifest.artifact("image_encoder"))


def test_folder_in_place_of_a_file_is_refused(inline):
    (inline.path / "mask_decoder.onnx").unlink()
    (inline.path / "mask_decoder.onnx").mkdir()
    refused(inline.path, "not_a_regular_file", "mask_decoder.onnx")


def test_fifo_in_place_of_a_file_is_refused(inline):
    (inline.path / "manifest.json").unlink()
    os.mkfifo(inline.path / "manifest.json")
    refused(inline.path, "not_a_regular_file", "manifest.json")


def test_hard_links_are_allowed(inline):
    # Package installers link files from their cache.
    os.link(inline.path / "mask_decoder.onnx", inline.path.parent / "cache")
    assert Bundle.read(inline.path) == inline


@pytest.mark.parametrize(
    "file", ["../graphs/mask_decoder.onnx", "/etc/hostname", "image_encoder.onnx", "./mask_decoder.onnx"]
)
def test_manifest_cannot_name_other_files(inline, file):
    rewrite_manifest(inline, artifacts=with_artifact(inline, "mask_decoder", file=file))
    refused(inline.path, "file_name", "accepted are only 'mask_decoder.onnx'")


@pytest.mark.parametrize("file", ["../elsewhere", "mask_decoder.onnx.data", "image_encoder.onnx"])
def test_manifest_cannot_name_another_sidecar(with_sidecar, file):
    weights = replace(with_sidecar.manifest.artifact("image_encoder").weights, file=file)
    rewrite_manifest(with_sidecar, artifacts=with_artifact(with_sidecar, "image_encoder", weights=weights))
    refused(with_sidecar.path, "file_name", "image_encoder.onnx.data")


def test_manifest_needs_every_graph(inline):
    manifest = inline.manifest
    rewrite_manifest(
        inline, graphs=(manifest.graph_spec("mask_decoder"),), artifacts=(manifest.artifact("mask_decoder"),)
    )
    refused(
        inline.path,
        "missing_graph",
        "lists the graphs .'mask_decoder'.; a bundle needs the graphs .'image_encoder', 'mask_decoder'.",
    )


def test_manifest_cannot_state_another_contract(inline):
    rewrite_manifest(inline, geometry=replace(GEOMETRY, embedding_channels=8))
    refused(inline.path, "graph_interface", "states other tensors for image_encoder")


def test_graph_with_foreign_operator_is_refused_though_its_digest_fits(inline):
    model = encoder_model()
    model.graph.node[0].domain = "com.example"
    rewrite_graph(inline, "image_encoder", model)
    refused(inline.path, "onnx_operator", "image_encoder.onnx uses com.example::Conv")


def test_graph_of_another_contract_is_refused_though_its_digest_fits(inline):
    model = encoder_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    rewrite_graph(inline, "image_encoder", model)
    refused(inline.path, "graph_interface", "input image has shape .batch, 4, 32, 32.; expected .batch, 3, 32, 32.")


@pytest.mark.parametrize("location", ["../image_encoder.onnx.data", "/etc/hostname", "mask_decoder.onnx"])
def test_graph_cannot_point_outside_though_its_digest_fits(with_sidecar, location):
    model = onnx.load(str(with_sidecar.path / "image_encoder.onnx"), load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    rewrite_graph(with_sidecar, "image_encoder", model)
    refused(with_sidecar.path, "external_data_location", "only 'image_encoder.onnx.data' is accepted")


def test_bytes_that_are_no_graph_are_refused_though_their_digest_fits(inline):
    rewrite_graph(inline, "image_encoder", b"no graph at all")
    refused(inline.path, "onnx_malformed", "not a well-formed ONNX file")


def test_unknown_format_version_is_named(inline):
    data = (inline.path / "manifest.json").read_bytes().replace(b'"format_version": 2', b'"format_version": 9')
    (inline.path / "manifest.json").write_bytes(data)
    refused(inline.path, "unknown_format_version", "format_version 9, and this segship reads 2")


def test_large_manifest_is_not_read(inline):
    with open(inline.path / "manifest.json", "ab") as stream:
        stream.truncate(1 << 30)
    refused(inline.path, "changed_file", "at most 1048576 are read")


def test_existing_folder_is_kept_unless_asked(inline, tmp_path):
    paths = {name: tmp_path / "graphs" / f"{name}.onnx" for name in ("image_encoder", "mask_decoder")}
    with pytest.raises(OutputError, match="exists"):
        write_bundle(inline.path, small_manifest(), paths)
    replaced = write_bundle(inline.path, small_manifest(changes=("again",)), paths, force=True)
    assert Bundle.read(inline.path).manifest.changes == ("again",)
    assert replaced.digest != inline.digest
    assert names(tmp_path) == ["bundle", "graphs"]


@forks
@pytest.mark.parametrize("has_exchange", [True, False])
def test_bundle_that_is_killed_while_it_is_replaced_is_the_old_one_or_the_new(
    inline, tmp_path, monkeypatch, has_exchange
):
    if not has_exchange:
        monkeypatch.setattr(files, "_renameat2", lambda: None)
    paths = save_models(tmp_path / "models")
    before, seen = Bundle.read(inline.path).digest, set()
    write = functools.partial(write_bundle, inline.path, small_manifest(changes=("again",)), paths, force=True)
    # Where names change, and what comes before and after.
    for _ in each_kill(write, ("os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree", "segship."), least=4):
        if has_exchange:
            assert inline.path.is_dir(), "it is never away, not even before anything mends it"
        seen.add(Bundle.read(inline.path).digest == before)
        make_old(inline.path.parent)
        tidy_directory(inline.path.parent)
        assert not list(inline.path.parent.glob(".*"))
        write_bundle(inline.path, small_manifest(), paths, force=True)
    assert seen == {True, False}
    assert Bundle.read(inline.path).digest != before


def test_force_replaces_only_bundles(tmp_path):
    paths = save_models(tmp_path / "graphs")
    home = tmp_path / "home"
    home.mkdir()
    write_bundle(home, small_manifest(), paths, force=True)
    (home / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not a bundle, so it is not replaced") as caught:
        write_bundle(home, small_manifest(), paths, force=True)
    assert caught.value.code == "not_a_bundle"
    assert "diary.txt" in names(home)


def test_nothing_is_left_when_a_graph_is_refused(tmp_path):
    model = decoder_model()
    model.graph.node[0].op_type = "Loop"
    paths = save_models(tmp_path / "graphs", decoder=model)
    with pytest.raises(BundleError, match="control flow"):
        write_bundle(tmp_path / "bundle", small_manifest(), paths)
    assert names(tmp_path) == ["graphs"]


def test_every_graph_must_be_given(tmp_path):
    paths = save_models(tmp_path / "graphs")
    del paths["mask_decoder"]
    with pytest.raises(
        BundleError, match="needs the graphs .'image_encoder', 'mask_decoder'..*; .'image_encoder'. were given"
    ):
        write_bundle(tmp_path / "bundle", small_manifest(), paths)


def test_graph_that_breaks_its_contract_is_not_written(tmp_path):
    paths = save_models(tmp_path / "graphs", encoder=decoder_model())
    with pytest.raises(BundleError, match="does not keep the contract 'image_encoder'"):
        write_bundle(tmp_path / "bundle", small_manifest(), paths)


def test_sidecar_of_another_name_is_not_written(tmp_path):
    paths = save_models(tmp_path / "graphs")
    onnx.save_model(
        encoder_model(), str(paths["image_encoder"]), save_as_external_data=True, location="w", size_threshold=0
    )
    with pytest.raises(
        BundleError, match="keeps weights in .'w'.; a bundle keeps them in image_encoder.onnx.data alone"
    ):
        write_bundle(tmp_path / "bundle", small_manifest(), paths)


def test_missing_source_is_named(tmp_path):
    paths = save_models(tmp_path / "graphs", external=True)
    (tmp_path / "graphs" / SIDECAR).unlink()
    with pytest.raises(InputError, match="there is no file .*image_encoder.onnx.data"):
        write_bundle(tmp_path / "bundle", small_manifest(), paths)


def test_fixed_sizes_of_a_graph_become_its_contract(tmp_path):
    decoder = decoder_model()
    for value in decoder.graph.input[1:3]:
        value.type.tensor_type.shape.dim[1].dim_value = 9
    paths = save_models(tmp_path / "graphs", decoder=decoder)
    written = write_bundle(tmp_path / "bundle", small_manifest(), paths)
    assert written.manifest.graph_spec("mask_decoder").inputs[1].shape == ("objects", 9, 2)
    assert Bundle.read(written.path) == written


def test_names_that_an_exporter_made_up_become_the_contracts(tmp_path):
    decoder = decoder_model()
    for value in [*decoder.graph.input, *decoder.graph.output]:
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = f"{value.name}_dim_{index}"
    paths = save_models(tmp_path / "graphs", decoder=decoder)
    manifest = write_bundle(tmp_path / "bundle", small_manifest(), paths).manifest
    assert manifest.graph_spec("mask_decoder") == manifest.contracts["mask_decoder"]


def test_bundle_may_be_moved(inline, tmp_path):
    shutil.move(inline.path, tmp_path / "moved")
    assert Bundle.read(tmp_path / "moved").manifest == inline.manifest


def test_manifest_is_readable_json(inline):
    document = json.loads((inline.path / "manifest.json").read_text(encoding="utf-8"))
    assert list(document)[0] == "format_version"
    assert read_graph(inline.path / document["artifacts"][1]["file"]).ir_version == 8


def test_constant_outside_the_file_is_refused_though_digests_fit(with_sidecar):
    model = onnx.load(str(with_sidecar.path / "image_encoder.onnx"), load_external_data=False)
    value = numpy_helper.from_array(numpy_helper.to_array(TensorProto(data_type=1, dims=[0])), "c")
    value.data_location = 1
    value.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    rewrite_graph(with_sidecar, "image_encoder", model)
    refused(with_sidecar.path, "external_data_location", "a constant of a node has its data outside the file")


def test_optional_graphs_come_together_or_not_at_all(tmp_path):
    paths = save_models(tmp_path / "graphs")
    paths["image_side"] = paths["mask_decoder"]
    with pytest.raises(BundleError, match="may add .'image_side', 'selective_decoder'..*were given") as caught:
        write_bundle(tmp_path / "bundle", small_manifest(), paths)
    assert caught.value.code == "missing_graph"


def test_an_artifact_says_what_it_is_and_was_made_from(tmp_path):
    paths = save_models(tmp_path / "graphs")
    options = {"image_encoder": {"target": "openvino", "variant": "openvino", "opset": 17}}
    manifest = write_bundle(tmp_path / "bundle", small_manifest(), paths, options=options).manifest
    encoder, decoder = manifest.artifacts
    assert (encoder.graph, encoder.format, encoder.precision, encoder.target) == (
        "image_encoder", "onnx", "fp32", "openvino",
    )  # fmt: skip
    assert encoder.made_from == manifest.checkpoint.sha256 and encoder.options == {"variant": "openvino", "opset": 17}
    assert (decoder.target, decoder.options) == ("onnxruntime", {})


def test_artifact_of_another_precision_is_taken_only_where_it_can_be(inline):
    manifest = inline.manifest
    assert manifest.artifact("mask_decoder", "bf16") is manifest.artifact("mask_decoder")
    halved = replace(manifest, artifacts=with_artifact(inline, "mask_decoder", precision="int8"))
    assert halved.artifact("mask_decoder", "int8").precision == "int8"
    with pytest.raises(
        BundleError, match="precision 'fp32' was asked for, .* holds mask_decoder in int8; ask for that: precision=int8"
    ) as caught:
        halved.artifact("mask_decoder")
    assert caught.value.code == "precision_unavailable"


def test_bundle_of_version_1_says_how_to_export_again(inline):
    data = (inline.path / "manifest.json").read_bytes().replace(b'"format_version": 2', b'"format_version": 1')
    (inline.path / "manifest.json").write_bytes(data)
    refused(
        inline.path, "unknown_format_version", "an older segship wrote it; export it again: `segship export CHECKPOINT"
    )


def test_bundle_of_an_older_version_may_be_replaced(tmp_path, inline):
    (inline.path / "shared_decoder.onnx").touch()
    paths = {name: tmp_path / "graphs" / f"{name}.onnx" for name in ("image_encoder", "mask_decoder")}
    write_bundle(inline.path, small_manifest(), paths, force=True)
    assert names(inline.path) == INLINE_FILES
