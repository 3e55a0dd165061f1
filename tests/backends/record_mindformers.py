# SPDX-License-Identifier: Apache-2.0
"""What MindFormers' own SAM and pipeline answer; ``python record_mindformers.py small.ckpt`` records it anew.

Run with Python 3.9, mindspore 2.0.0, mindformers 0.8.0 and mindpet 1.0.2 (the last two with ``--no-deps``), and of what
they import: numpy < 1.24, opencv-python-headless 4.8.1.78, pillow < 10, pyyaml, tqdm, jieba, nltk, regex, ftfy,
sentencepiece, rouge_chinese, requests, setproctitle. ``small.ckpt`` is what ``segship convert`` makes of
`tests.small_models.save_checkpoint`.

Everything is in float32, where the shipped configuration has float16; Fourier codes and tables of relative positions
are float16 all the same, and GELU is the approximation by tanh. Masks as prompts are left out: the cells of 0.8.0
answer them 2e-2 off the reference.
"""

import multiprocessing
import sys
from pathlib import Path

import numpy as np

RECORDING = Path(__file__).with_name("recordings") / "mindformers-0.8.0.npz"
SIDE, GRID, CHANNELS = 128, 8, 32
SHAPE = (150, 200, 3)


def picture():
    """A smooth picture with an edge, of which the model's frame has another size."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    waves = np.stack([np.sin(x / 17 + y / 29), np.cos(x / 23), np.sin(y / 13)], axis=-1)
    return np.uint8(110 + 60 * waves + 60 * ((x - 120) ** 2 + (y - 70) ** 2 < 1600)[..., None])


def cases():
    """Of the task card's examples those that its pipeline answers as it says: a name -> inputs and parameters.

    Coordinates are not whole where there are several objects, since those are cut to whole ones there.
    """
    boxes = [[20.5, 20.5, 90.5, 120.5], [100.5, 30.5, 180.5, 110.5]]
    return {
        "one point": ({"points": [[120, 70]], "labels": [1]}, {"multimask_output": True}),
        "two points": ({"points": [[120, 70], [135, 80]], "labels": [1, 1]}, {"multimask_output": False}),
        "two objects": (
            {"points": [[[120.5, 70.5]], [[30.5, 30.5]]], "labels": [[1], [1]]},
            {"multimask_output": False},
        ),
        "background": ({"points": [[120, 70], [20, 20]], "labels": [1, 0]}, {"multimask_output": False}),
        "one box": ({"boxes": [80, 30, 160, 110]}, {"multimask_output": False}),
        "box and point": (
            {"boxes": [80, 30, 160, 110], "points": [[90, 40]], "labels": [0]},
            {"multimask_output": False},
        ),
        "two boxes": ({"boxes": boxes}, {"multimask_output": False}),
    }


def arrays(inputs):
    """Inputs as the pipeline takes them: labels are whole numbers."""
    return {name: np.array(value, np.int32 if name == "labels" else None) for name, value in inputs.items()}


def config():
    """The YAML's section ``model``, at the size of the small model and in float32."""
    kinds = {
        "layer_norm_eps": 1e-6,
        "compute_dtype": "float32",
        "layernorm_compute_type": "float32",
        "softmax_compute_type": "float32",
    }
    encoder = dict(
        img_size=SIDE, patch_size=16, in_chans=3, embed_dim=32, depth=3, num_heads=2, mlp_ratio=4, out_chans=CHANNELS,
        qkv_bias=True, use_abs_pos=True, use_rel_pos=True, rel_pos_zero_init=True, window_size=3,
        global_attn_indexes=[1], **kinds,
    )  # fmt: skip
    prompts = dict(
        prompt_embed_dim=CHANNELS, image_embedding_size=[GRID, GRID], input_image_size=[SIDE, SIDE], mask_in_chans=16,
        compute_dtype="float32",
    )  # fmt: skip
    decoder = dict(
        num_multimask_outputs=3, decoder_depth=2, decoder_embed_dim=CHANNELS, decoder_mlp_dim=48, decoder_num_heads=8,
        transformer_dim=CHANNELS, iou_head_depth=3, iou_head_hidden_dim=24, **kinds,
    )  # fmt: skip

    def section(arch, kind, values):
        return {"arch": {"type": arch}, "model_config": {"type": kind, **values}}

    return section(
        "Sam",
        "SAMConfig",
        {
            "image_encoder": section("SAMImageEncoder", "ImageEncoderConfig", encoder),
            "prompt_config": section("SAMPromptEncoder", "PromptEncoderConfig", prompts),
            "decoder_config": section("SAMMaskDecoder", "MaskDecoderConfig", decoder),
            "checkpoint_name_or_path": "",
        },
    )


def answer(job):
    """Load the network from a checkpoint and answer one case; arrays by their name in the recording."""
    checkpoint, name = job
    import mindspore
    from mindformers import MindFormerConfig
    from mindformers.models.build_model import build_model
    from mindformers.models.sam import SAMImageProcessor
    from mindformers.pipeline import SegmentAnythingPipeline

    mindspore.set_context(mode=mindspore.PYNATIVE_MODE, device_target="CPU")
    model = build_model(MindFormerConfig(**config()))
    tensors = mindspore.load_checkpoint(checkpoint)
    left = mindspore.load_param_into_net(model, tensors)
    names = [parameter.name for parameter in model.get_parameters()]
    assert left == ([], []) and sorted(names) == sorted(tensors), set(names) ^ set(tensors)
    assert all(parameter.shape == tensors[parameter.name].shape for parameter in model.get_parameters())

    task = SegmentAnythingPipeline(model, image_processor=SAMImageProcessor(img_size=SIDE))
    task.set_image(picture())
    inputs, parameters = cases()[name]
    found = {f"{name}/{kind}": array for kind, array in task(arrays(inputs), **parameters).items() if kind != "masks"}
    found = {name: np.asarray(getattr(array, "asnumpy", lambda array=array: array)()) for name, array in found.items()}
    return {**found, "names": np.array(sorted(names)), "embedding": task.get_image_embedding().asnumpy()}


def main(checkpoint):
    """Record every case in a process of its own.

    After a call with two objects the same process answers a box otherwise, by a tenth of the largest logit.
    """
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(answer, [(checkpoint, name) for name in cases()], chunksize=1)
    assert all(np.array_equal(one["embedding"], found[0]["embedding"]) for one in found)
    recording = {name: array for one in found for name, array in one.items()}
    np.savez_compressed(RECORDING, **recording)
    print(f"{len(recording['names'])} parameters, {len(found)} cases: {RECORDING.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
