# SPDX-License-Identifier: Apache-2.0
"""What the recordings of MindSpore's writer hold; ``python -m tests.ship.checkpoints.record_ckpt`` makes them anew.

Run with mindspore 2.10.0 and numpy < 2 in an environment of its own (``make target-mindspore``).
"""

from pathlib import Path

import numpy as np

RECORDINGS = Path(__file__).with_name("recordings")
PIECE = 32
"""Bytes of an entry in ``split.ckpt``, instead of 512 MiB."""


def tables():
    """Names in the file -> arrays, for each recording."""
    numbers = np.random.default_rng(0).standard_normal(120).astype(np.float32)
    kinds = {
        "image_encoder.blocks.0.norm1.gamma": np.float32([1, -2.5, 3]),
        "image_encoder.blocks.0.norm1.beta": np.float32([0.5, 0.25, -0.0]),
        "image_encoder.patch_embed.proj.weight": numbers[:36].reshape(3, 3, 2, 2),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": numbers[36:44].reshape(2, 4),
        "prompt_encoder.point_embeddings.0.embedding_table": numbers[44:48].reshape(1, 4),
        "half": np.float16([1.5, 65504, -2]),
        "double": np.float64([1.5, np.pi]),
        "flag": np.array([True, False, True]),
        "scalar": np.array(3.25, np.float32),
        "step": np.array(7, np.int64),
        "one": np.float32([9]),
        "größe": np.float32([1]),
    }
    for bits in (8, 16, 32, 64):
        kinds[f"i{bits}"] = np.array([[-1], [2 ** (bits - 2)]], f"int{bits}")
        kinds[f"u{bits}"] = np.array([2**bits - 1], f"uint{bits}")
    return {
        "kinds": kinds,
        "crc": kinds,
        "empty": {"x": np.float32([1, 2]), "none": np.zeros((0, 5), np.float32), "y": np.float32([3])},
        "split": {"a": numbers[60:75].reshape(5, 3), "b": np.float32([1])},
    }


BRAIN = (1, -2.5, 3.140625)
ADDED = {"epoch_num": 3, "lr": 0.5, "note": "hello", "done": True}


def main():
    import mindspore
    from mindspore.train import serialization

    class Kibibytes(int):
        """The least that MindSpore can be told is one."""

        def __rmul__(self, other):
            return PIECE

    def save(name, parameters, **options):
        target = RECORDINGS / f"{name}.ckpt"
        target.unlink(missing_ok=True)
        mindspore.save_checkpoint(parameters, str(target), **options)
        target.chmod(0o644)

    def parameters(table):
        return [{"name": name, "data": mindspore.Tensor(array)} for name, array in table.items()]

    for name, table in tables().items():
        serialization.SLICE_SIZE = Kibibytes() if name == "split" else 512 * 1024
        save(name, parameters(table), crc_check=name == "crc")
    serialization.SLICE_SIZE = 512 * 1024
    brain = mindspore.Tensor(np.float32(BRAIN)).astype(mindspore.bfloat16)
    save("brain", [{"name": "brain", "data": brain}])
    save("added", parameters({"x": np.float32([1, 2])}), append_dict=ADDED)
    named = {name: array for name, array in tables()["kinds"].items() if "." in name}
    mindspore.save_checkpoint(parameters(named), str(RECORDINGS / "named"), format="safetensors")
    (RECORDINGS / "named.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
