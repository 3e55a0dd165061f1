# SPDX-License-Identifier: Apache-2.0
import onnx

from segship.ship.graph.store import save_graph


def test_small_graph_is_one_file(decoder_proto, tmp_path):
    save_graph(decoder_proto, tmp_path / "mask_decoder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["mask_decoder.onnx"]


def test_large_graph_has_one_sidecar_of_the_fixed_name(decoder_proto, tmp_path):
    path = tmp_path / "mask_decoder.onnx"
    for _ in range(2):
        save_graph(onnx.ModelProto.FromString(decoder_proto.SerializeToString()), path, largest_bytes=10_000)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["mask_decoder.onnx", "mask_decoder.onnx.data"]
    # Writing again replaces the sidecar and does not add to it.
    assert path.with_name("mask_decoder.onnx.data").stat().st_size < 1.1 * len(decoder_proto.SerializeToString())
    assert len(onnx.load(str(path)).graph.node) == len(decoder_proto.graph.node)
