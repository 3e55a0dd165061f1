# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from segship.backends import torch as backend
from segship.backends.opening import try_devices
from segship.backends.session import RunOptions
from segship.backends.torch import Session, compile, devices
from segship.errors import BackendUnavailable
from segship.ship.families.sam.model import ImageEncoderGraph
from segship.ship.families.semask.model import SemanticGraph
from segship.ship.loading import open_checkpoint
from segship.spec import image_encoder_spec
from tests.oracle import SMALL_VIT
from tests.small_models import save_checkpoint, small_sam
from tests.small_semask import small_semask

SPEC = image_encoder_spec(SMALL_VIT.geometry)


def open_encoder(**options):
    run = RunOptions(**options)
    return Session(compile(ImageEncoderGraph(small_sam()), SPEC, run), SPEC, run)


def test_checkpoint_opens_as_sessions_and_a_manifest(tmp_path):
    opened = open_checkpoint(save_checkpoint(tmp_path / "small.pth"), RunOptions())
    assert opened.manifest.architecture == "custom"
    assert opened.manifest.geometry == SMALL_VIT.geometry
    assert opened.encoder_sha256 == opened.manifest.checkpoint.sha256
    assert list(opened.sessions) == ["image_encoder", "mask_decoder", "image_side", "selective_decoder"]
    assert all(session.spec.name == name for name, session in opened.sessions.items())


def test_semantic_checkpoint_opens_as_logits_of_any_size(small_semask_checkpoint):
    opened = open_checkpoint(small_semask_checkpoint, RunOptions())
    manifest, session = opened.manifest, opened.sessions["semantic"]
    assert (manifest.task, manifest.preprocessing.frame, manifest.output, manifest.graphs) == (
        "semantic", None, "logits", (),
    )  # fmt: skip
    assert opened.encoder_sha256 == manifest.checkpoint.sha256
    for shape in [(1, 3, 75, 107), (2, 3, 64, 96)]:
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        with torch.inference_mode():
            expected = SemanticGraph(small_semask(), "logits")(torch.from_numpy(images)).numpy()
        assert np.array_equal(session.run({"image": images})["logits"], expected)


def test_bf16_is_close_to_fp32_and_said():
    image = {"image": np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)}
    exact = open_encoder().run(image)["image_embeddings"]
    session = open_encoder(precision="bf16")
    rough = session.run(image)["image_embeddings"]
    assert "bf16" in session.description
    assert 0 < np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is not supported by the torch backend; accepted are fp32, bf16"),
        ({"device": "meta"}, "device 'meta' is not supported"),
        ({"compile": True}, "compile is an option of the torch backend on CUDA, and torch on cpu has none"),
        ({"streams": 2}, "2 streams were asked for, and the torch backend has none"),
        ({"device": "abacus"}, "device 'abacus' is unknown to torch"),
    ],
)
def test_what_cannot_be_had_is_refused(options, words):
    with pytest.raises(BackendUnavailable, match=words):
        open_encoder(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_is_an_error_and_no_silent_fall_back():
    with pytest.raises(BackendUnavailable, match="sees no CUDA device; use device='cpu'"):
        open_encoder(device="cuda")


def fake_cuda(monkeypatch, cards, built_for):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.version, "cuda", built_for)


@pytest.mark.parametrize(
    ("cards", "built_for", "found"),
    [
        (2, "12.8", {"cpu": "", "cuda:0": "Card 0", "cuda:1": "Card 1"}),
        (0, None, {"cpu": ""}),
        (0, "12.8", {"cpu": "", "cuda": ""}),
    ],
)
def test_devices_are_those_it_sees_and_the_one_it_was_built_for(monkeypatch, cards, built_for, found):
    fake_cuda(monkeypatch, cards, built_for)
    assert devices() == found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_build_for_cuda_without_a_device_is_told_with_what_to_check(monkeypatch):
    fake_cuda(monkeypatch, 0, "12.8")
    problems = try_devices(backend)
    assert problems["cpu"] is None
    assert "sees no CUDA device" in problems["cuda"] and "nvidia-smi" in problems["cuda"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_agrees_with_the_cpu():
    image = {"image": np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)}
    expected, actual = open_encoder().run(image), open_encoder(device="cuda").run(image)
    assert np.abs(expected["image_embeddings"] - actual["image_embeddings"]).max() < 1e-2
