# SPDX-License-Identifier: Apache-2.0
"""Models by their names: where each lies on this machine, and what is known of the published files.

Sizes and digests of the promptable checkpoints agree across several independent public downloaders; the publishers give
no checksum file. Of the semantic ones neither is published anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from segship.errors import BundleError, InputError
from segship.files import cache_folder, checkpoint_folder

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt")
"""Endings of the weight files that can be read."""
EMBEDDED_MODELS = ("tiny",)

SemanticName = Literal[
    "semask_t_cityscapes",
    "semask_s_cityscapes",
    "semask_b_cityscapes",
    "semask_l_cityscapes",
    "semask_t_ade20k",
    "semask_s_ade20k",
    "semask_b_ade20k",
    "semask_l_ade20k",
    "semask_t_cocostuff",
    "semask_s_cocostuff",
    "semask_b_cocostuff",
    "semask_l_cocostuff",
]
"""The names of semantic models, for type checkers."""


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """One published weight file.

    Attributes
    ----------
    name
        What `segship.load`, ``segship fetch`` and ``segship export`` take.
    task
        ``promptable`` or ``semantic``.
    family, architecture
        How its weights are laid out, and its size in that family; see `segship.ship.families`.
    file
        Its name in the cache folder; for files that can be fetched the published one.
    url
        Where its publisher serves it; the page from which a browser downloads it.
    bytes
        Its exact size; without a digest that of its weights by arithmetic, and files with a training state are larger.
    sha256
        Its digest, 64 hexadecimal digits; None where none is published. Such a file is got by hand, since nothing that
        a program downloads could be checked.
    licence
        SPDX name of the weights' licence.
    source
        The project that published it.
    published
        What its publisher measured: mIoU in percent of whole pictures at one scale, and at six scales and mirrored.
    data_set
        What a semantic model was trained and scored on.
    sizes
        What a file got by hand must have, by the names that `segship inspect` uses.
    """

    name: str
    task: Literal["promptable", "semantic"]
    family: str
    architecture: str
    file: str
    url: str
    bytes: int
    sha256: str | None
    licence: str
    source: str
    published: str = ""
    data_set: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def by_hand(self) -> bool:
        """Only a browser downloads it."""
        return self.sha256 is None


_SAM = "https://github.com/facebookresearch/segment-anything"
_SAM_FILES = "https://dl.fbaipublicfiles.com/segment_anything"
_MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM"
_SEMASK = "https://github.com/Picsart-AI-Research/SeMask-Segmentation"


def _sam(name: str, file: str, size: int, sha256: str, *, source: str = _SAM, at: str = _SAM_FILES) -> KnownCheckpoint:
    return KnownCheckpoint(
        name, "promptable", "sam", name, file, f"{at}/{file}", size, sha256, licence="Apache-2.0", source=source
    )


# Of the head, and of the semantic layers; those of COCO-Stuff were left at ADE20K's number.
_CLASS_COUNTS = {"cityscapes": (19, 19), "ade20k": (150, 150), "cocostuff": (171, 150)}


def _semask(size: str, data_set: str, drive_id: str, miou: float, multi_scale: float, size_mb: int) -> KnownCheckpoint:
    name = f"semask_{size}_{data_set}"
    return KnownCheckpoint(
        name,
        "semantic",
        "semask",
        f"semask_{size}",
        file=f"{name}.pth",
        url=f"https://drive.google.com/file/d/{drive_id}/view",
        bytes=size_mb * 1_000_000,
        sha256=None,
        licence="Apache-2.0",
        source=_SEMASK,
        published=f"mIoU {miou:.2f} / {multi_scale:.2f}",
        data_set=data_set,
        sizes=dict(zip(("classes", "semantic_classes"), _CLASS_COUNTS[data_set], strict=True)),
    )


_ROWS = (
    _sam(
        "vit_b",
        "sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam(
        "vit_l",
        "sam_vit_l_0b3195.pth",
        1_249_524_607,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _sam(
        "vit_h",
        "sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    _sam(
        "vit_t",
        "mobile_sam.pt",
        40_728_226,
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        source=_MOBILE_SAM,
        at=f"{_MOBILE_SAM}/raw/master/weights",
    ),
    _semask("t", "cityscapes", "1_JBOJQSUVes-CWs075XyPnuNfG5psELr", 74.92, 76.56, 137),
    _semask("s", "cityscapes", "1WyT207dZmdwETBUR6aeiqOVfQdUIV_fN", 77.13, 79.14, 223),
    _semask("b", "cityscapes", "1-LzVB6XzD7IR0zzE5qmE0EM4ZTv429b4", 77.70, 79.73, 388),
    _semask("l", "cityscapes", "1R9DDCmucQ_a_6ZkMGufEZCzJ-_qVMqCB", 78.53, 80.39, 844),
    _semask("t", "ade20k", "1L0daUHWQGNGCXHF-cKWEauPSyBV0GLOR", 42.06, 43.36, 139),
    _semask("s", "ade20k", "1QhDG4SyGFtWL5kP9BbBoyPqTuFu7fH_y", 45.92, 47.63, 225),
    _semask("b", "ade20k", "1PXCEhrrUy5TJC4dUp7YDQvaapnMzGT6C", 49.35, 50.98, 390),
    _semask("l", "ade20k", "1u5flfAQCiQJbMZbZPIlGUGTYBz9Ca7rE", 51.89, 53.52, 847),
    _semask("t", "cocostuff", "1qhXsJ8H64JPI_DW7CNzhxpHSEG2sKaIl", 37.53, 38.88, 139),
    _semask("s", "cocostuff", "1ddXSMQu5ClkbLNMyQdyT0ATaOr86vIkL", 40.72, 42.27, 225),
    _semask("b", "cocostuff", "1pGWI7U9bZJoe4ZaDx7ktWELx-uVN7rL0", 44.63, 46.30, 390),
    _semask("l", "cocostuff", "1F6B9x9pX-SYEth7hdtxeNUeQ3XncOH7G", 47.47, 48.54, 847),
)
KNOWN_CHECKPOINTS: dict[str, KnownCheckpoint] = {known.name: known for known in _ROWS}


@dataclass(frozen=True, slots=True)
class GraphFile:
    """One published ONNX file.

    Attributes
    ----------
    file, url, sha256
        Its published name, where it is served, and its digest.
    bytes
        Its size; 0 where nobody publishes it.
    """

    file: str
    url: str
    sha256: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class KnownGraphs:
    """An encoder and a decoder that somebody published as ONNX.

    Attributes
    ----------
    name
        What `segship.load` and ``segship fetch`` take.
    family, architecture
        Of the model; families that are not run yet are there to be recognised.
    contract
        How they are driven, see `segship.promptable.foreign`; None where they are not run yet.
    licence, source
        SPDX name of the weights' licence, and the project that published the files.
    """

    name: str
    family: str
    architecture: str
    contract: Literal["osam"] | None
    encoder: GraphFile
    decoder: GraphFile
    licence: str
    source: str

    @property
    def files(self) -> tuple[GraphFile, GraphFile]:
        """The encoder and the decoder."""
        return self.encoder, self.decoder

    @property
    def bytes(self) -> int | None:
        """Of both files; None where nobody publishes it."""
        sizes = [file.bytes for file in self.files]
        return sum(sizes) if all(sizes) else None


_OSAM = "https://github.com/wkentaro/osam"


def _graphs(
    name: str, family: str, architecture: str, at: str, encoder: tuple[str, str], decoder: tuple[str, str]
) -> KnownGraphs:
    files = [GraphFile(file, f"{at}/{file}", sha256) for file, sha256 in (encoder, decoder)]
    contract: Literal["osam"] | None = "osam" if family == "SAM" else None
    return KnownGraphs(name, family, architecture, contract, files[0], files[1], licence="Apache-2.0", source=_OSAM)


def _quantized_sam(architecture: str, stem: str, encoder: str, decoder: str) -> KnownGraphs:
    return _graphs(
        f"osam_{architecture}_quantized",
        "SAM",
        architecture,
        "https://github.com/wkentaro/labelme/releases/download/sam-20230416",
        (f"{stem}.quantized.encoder.onnx", encoder),
        (f"{stem}.quantized.decoder.onnx", decoder),
    )


def _efficient_sam(size: str, encoder: str, decoder: str) -> KnownGraphs:
    stem = f"efficient_sam_{size}"
    return _graphs(
        f"osam_{stem}",
        "EfficientSAM",
        stem,
        "https://github.com/labelmeai/efficient-sam/releases/download/onnx-models-20231225",
        (f"{stem}_encoder.onnx", encoder),
        (f"{stem}_decoder.onnx", decoder),
    )


def _sam2(size: str, encoder: str, decoder: str) -> KnownGraphs:
    return _graphs(
        f"osam_sam2.1_{size}",
        "SAM 2",
        f"sam2.1_{size}",
        f"{_OSAM}/releases/download/sam2.1",
        (f"sam2.1_{size}_preprocess.onnx", encoder),
        (f"sam2.1_{size}.onnx", decoder),
    )


_GRAPH_ROWS = (
    _quantized_sam(
        "vit_b",
        "sam_vit_b_01ec64",
        "3346b9cc551c9902fbf3b203935e933592b22e042365f58321c17fc12641fd6a",
        "edbcf1a0afaa55621fb0abe6b3db1516818b609ea9368f309746a3afc68f7613",
    ),
    _quantized_sam(
        "vit_l",
        "sam_vit_l_0b3195",
        "f7158a4a1fe7f670ef47ea2f7f852685425c1ed6caa40f5df86cbe2b0502034f",
        "552ebb23bf52c5e5b971ac710d1eb8dccfd88b36cc6aff881d1536d1662e6d7b",
    ),
    _quantized_sam(
        "vit_h",
        "sam_vit_h_4b8939",
        "a5c745fd4279efc5e5436b412200e983dafc2249ce172af6cc0002a71bb5f485",
        "020b385a45ffe51097e1acd10cd791075a86171153505f789a793bc382eef210",
    ),
    _efficient_sam(
        "vitt",
        "7a73ee65aa2c37237c89b4b18e73082f757ffb173899609c5d97a2bbd4ebb02d",
        "e1afe46232c3bfa3470a6a81c7d3181836a94ea89528aff4e0f2d2c611989efd",
    ),
    _efficient_sam(
        "vits",
        "4cacbb23c6903b1acf87f1d77ed806b840800c5fcd4ac8f650cbffed474b8896",
        "4727baf23dacfb51d4c16795b2ac382c403505556d0284e84c6ff3d4e8e36f22",
    ),
    _sam2(
        "tiny",
        "5557482c56565f6a6c8206874b1a11c392cef8a1766477bf035b919092f2b619",
        "11a2c86fabbea9d0268213a9205c99a7f7e379caa0493bd13f5cca8ffaae6777",
    ),
    _sam2(
        "small",
        "06016c6dfb146ce10e4dadfdf49e88a05c8d1f97a6b7c57e150e60d2d46a72e7",
        "153aaef5047a3b95285d90cbb39dad6c7b5821bfd944dbf56483f3f735936941",
    ),
    _sam2(
        "base_plus",
        "ce95c44082b4532c25ae01e11da3c9337dab7b04341455c09ae599dc9ae5c438",
        "2ad091af889b20ad2035503b4355cd8924fcf0e29fa6536924c48dc220ecdc56",
    ),
    _sam2(
        "large",
        "ab676f957528918496990f242163fd6b41a7222ae255862e846d9ab35115c12e",
        "a3ebc6b8e254bd4ca1346901b9472bc2fae9e827cfd67d67e162d0ae2b1ec9a0",
    ),
)
KNOWN_GRAPHS: dict[str, KnownGraphs] = {known.name: known for known in _GRAPH_ROWS}
"""Digests are those that osam 0.8.1 checks its downloads by."""


def importable() -> dict[str, KnownGraphs]:
    """Return the published pairs that are run here, by their names."""
    return {name: known for name, known in KNOWN_GRAPHS.items() if known.contract is not None}


def identify_graphs(encoder_sha256: str, decoder_sha256: str | None = None) -> KnownGraphs | None:
    """Return the published pair of those digests, or None; without the decoder's, the pair of the encoder."""
    return next(
        (
            known
            for known in KNOWN_GRAPHS.values()
            if known.encoder.sha256 == encoder_sha256 and decoder_sha256 in (None, known.decoder.sha256)
        ),
        None,
    )


def identify(sha256: str) -> KnownCheckpoint | None:
    """Return the published checkpoint of that digest, or None for any other file."""
    return next((known for known in KNOWN_CHECKPOINTS.values() if known.sha256 == sha256.lower()), None)


BUNDLE_SECONDS: Mapping[str, float] = {"vit_t": 2.4, "vit_b": 9.8, "vit_h": 47.5, "semask_s": 5.1}
"""Architecture -> seconds from its file to its bundle, without torch, as docs/measurements.md has them."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that has a name.

    Attributes
    ----------
    name, licence, published
        As in `KnownCheckpoint`; ``published`` is empty where there is nothing to say.
    status
        ``get by hand`` is a file that is not here and that its publisher lets nobody but browsers download.
    bytes
        Size of the bundle or checkpoint; None where its publisher does not say it.
    location
        Where it lies on this machine, or the address it is fetched from.
    to_fetch
        Bytes that have to be fetched before it can be used; None where its publisher does not say it.
    bundle_seconds
        How long two cores took to make the bundle of such a file without torch (docs/measurements.md); None where there
        is nothing to make, or it was not measured.
    """

    name: str
    status: Literal["in the package", "bundle ready", "checkpoint fetched", "not fetched", "get by hand"]
    bytes: int | None
    licence: str
    location: str
    published: str = ""
    to_fetch: int | None = 0
    bundle_seconds: float | None = None


def find_model(model: str | Path) -> Path:
    """Return the bundle folder or checkpoint file that a name or path means; a `BundleError` where there is neither."""
    if not isinstance(model, str | os.PathLike):
        message = f"the model is {model!r}; accepted are a known name, the path of a bundle or of a checkpoint"
        raise InputError(message, code="bad_option")
    path, name = Path(model), str(model)
    # Unlike Path.exists it says no to what cannot be a path, such as no name or one that is too long.
    if os.path.exists(model):
        return path
    if name in EMBEDDED_MODELS:
        return embedded_bundle(name)
    pairs = importable()
    if name not in KNOWN_CHECKPOINTS and name not in pairs:
        names = ", ".join((*EMBEDDED_MODELS, *KNOWN_CHECKPOINTS, *pairs))
        raise BundleError(f"no model {name!r}: it is no path here and no known name ({names})", code="unknown_model")
    bundle = bundle_folder(name)
    if bundle.is_dir():
        return bundle
    raise BundleError(f"there is no bundle of {name!r} on this machine yet; {_how_to_get(name)}", code="no_bundle")


def _how_to_get(name: str) -> str:
    """Return the one command after which a known name can be opened."""
    known = KNOWN_CHECKPOINTS.get(name)
    if known is None:
        return f"get it with `segship fetch {name}`, without torch"
    if (checkpoint_folder() / known.file).is_file():
        return f"its checkpoint is; make the bundle with `segship bundle {name}`, without torch"
    size = f"{known.bytes / 1e6:,.0f} MB, without torch"
    if known.by_hand:
        return f"`segship fetch {name}` says how to get its checkpoint, and makes the bundle (about {size})"
    return f"get it with `segship fetch {name}` ({size})"


def embedded_bundle(name: str) -> Path:
    """Return the folder of a bundle inside the package."""
    return Path(__file__).parent / "bundles" / name


def bundle_folder(name: str) -> Path:
    """Return the folder in the cache where the bundle of a known model lies, or would."""
    return cache_folder() / "bundles" / name


def list_models() -> tuple[ModelInfo, ...]:
    """Return every named model and where it stands on this machine."""
    embedded = ((name, embedded_bundle(name)) for name in EMBEDDED_MODELS)
    return (
        *(ModelInfo(name, "in the package", _folder_bytes(path), "Apache-2.0", str(path)) for name, path in embedded),
        *map(_describe, KNOWN_CHECKPOINTS.values()),
        *map(_describe_graphs, importable().values()),
    )


def _describe(known: KnownCheckpoint) -> ModelInfo:
    bundle, checkpoint = bundle_folder(known.name), checkpoint_folder() / known.file
    licence, published = known.licence, known.published
    if bundle.is_dir():
        return ModelInfo(known.name, "bundle ready", _folder_bytes(bundle), licence, str(bundle), published)
    if checkpoint.is_file():
        size = checkpoint.stat().st_size
        seconds = BUNDLE_SECONDS.get(known.architecture)
        return ModelInfo(
            known.name, "checkpoint fetched", size, licence, str(checkpoint), published, bundle_seconds=seconds
        )
    status: Literal["get by hand", "not fetched"] = "get by hand" if known.by_hand else "not fetched"
    seconds = BUNDLE_SECONDS.get(known.architecture)
    return ModelInfo(known.name, status, known.bytes, licence, known.url, published, known.bytes, seconds)


def _describe_graphs(known: KnownGraphs) -> ModelInfo:
    bundle = bundle_folder(known.name)
    if bundle.is_dir():
        return ModelInfo(known.name, "bundle ready", _folder_bytes(bundle), known.licence, str(bundle))
    return ModelInfo(known.name, "not fetched", known.bytes, known.licence, known.encoder.url, to_fetch=known.bytes)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
