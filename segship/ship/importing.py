# SPDX-License-Identifier: Apache-2.0
"""Encoders and decoders that others exported, as bundles: recognised, checked by running, and left byte for byte.

The files may come from anywhere: what they hold is checked before a runtime sees them (`segship.bundle.onnx_rules`).
What their interface does not say is found by running them, or asked for; nothing is guessed. Needs neither torch nor
onnx. `segship.promptable.foreign` drives the graphs afterwards; `segship.ship.contracts` writes such graphs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import numpy as np

import segship
from segship.arrays import AnyArray, FloatArray
from segship.backends import DEFAULT_BACKEND, installed_version
from segship.backends.opening import open_session
from segship.backends.session import RunOptions, Session
from segship.bundle import Bundle, write_bundle
from segship.bundle.artifacts import artifact_file, weights_file
from segship.bundle.folder import refuse_stranger
from segship.bundle.manifest import CheckpointFile
from segship.bundle.onnx_file import OnnxGraph, OnnxNode, read_graph
from segship.bundle.onnx_rules import check_graph
from segship.catalog import KNOWN_GRAPHS, KnownGraphs, bundle_folder, identify_graphs
from segship.errors import BackendUnavailable, BundleError, InputError, shown, way
from segship.fetch import fetch_graphs
from segship.fetch.download import Progress
from segship.files import check_target, make_directory, sha256_of
from segship.images.comparison import comparison_images, smooth_mask
from segship.options import check_types
from segship.promptable.foreign import ContractName, ForeignGraphs, Layout
from segship.promptable.manifest import PromptableManifest
from segship.promptable.prompts import PromptRules
from segship.promptable.transforms import Preprocessing, prepare_image, resize_image
from segship.spec import LABEL_EMPTY, GraphSpec, SamGeometry, TensorSpec

GRAPHS = ("image_encoder", "mask_decoder")
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of SAM, MobileSAM and all who follow them; the contracts have no other."""
PIXELS_PER_CELL = 16
"""Of the model frame, for a cell of the embedding; all encoders of the family have it."""

_PROMPTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
_ANSWERS = ("iou_predictions", "low_res_masks")
_ORIGINAL_SIZE, _UPSCALED = "orig_im_size", "masks"
_OTHER_FAMILIES = {
    "batched_images": "EfficientSAM",
    "batched_point_coords": "EfficientSAM",
    "high_res_feats_0": "SAM 2",
    "high_res_features1": "SAM 2",
    "interm_embeddings": "HQ-SAM",
    "input_points": "transformers.js",
    "sparse_prompt_embeddings": "a decoder without its prompt encoder",
}
"""Names of tensors that no graph here has -> whose they are."""
_QUANTIZED = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"})

# Between an image and the network that begins with one of the last.
_RESHAPES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze"})
_TURNS = frozenset({("Transpose", "HWC"), ("Transpose", "NHWC")})
_BEGINNINGS = frozenset(
    {"Conv", "ConvInteger", "DynamicQuantizeLinear", "Gemm", "MatMul", "QLinearConv", "QuantizeLinear"}
)
_NAME = re.compile(r"[A-Za-z0-9_.:/ -]{1,128}", re.ASCII)

ASK = way("contract=", "--contract ")
_SIZE_RULE = "the image-size output `masks` is not used: masks are resized as docs/conventions.md says"
_RULES: dict[ContractName, tuple[str, ...]] = {
    "official": (_SIZE_RULE,),
    "samexporter": (
        "samexporter's own reader adds a padding point to boxes too; here only points without a box have one",
        _SIZE_RULE,
    ),
    "ascend": ("the guide takes foreground points alone; here labels 0, 2 and 3 are used as SAM has them",),
    "osam": (
        "osam gives has_mask_input as -1 where there is no mask; here it is 0, which this graph was seen to understand",
        "osam rounds the shorter side half to even; here it is floor(side * scale + 0.5)",
        _SIZE_RULE,
    ),
    "nndeploy": (
        "nndeploy pads with black before the graph normalises; here the padding is the mean, which becomes 0",
        "nndeploy gives clicks without a padding point; here points without a box have one",
        _SIZE_RULE,
    ),
}
"""Contract -> where its readers do something else than what is done here."""
# What a prompt changes is far above rounding; what it must not change is exact but for dynamic quantization.
_NOTICEABLE = 1e-5
_SAME = 1e-3
_LITTLE = 0.1

Triple = tuple[float, float, float]
Report = Callable[[str], None]
"""Called with what begins, in words."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How an encoder and a decoder are imported.

    Attributes
    ----------
    contract
        The program that the files were written for: official, samexporter, ascend, osam or nndeploy; found by names,
        shapes and running when left out.
    licence
        Licence of the weights, for the manifest of files that are not known ones.
    force
        Replace a bundle that is there.
    """

    contract: ContractName | None = None
    licence: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_types(self)


class _Image(NamedTuple):
    """What an encoder's interface says of its image."""

    tensor: TensorSpec
    layout: Layout
    side: int | None
    """Of the frame; None where any size is declared."""
    values: Literal["normalized", "pixels"] | None
    """What the steps before the network take; None where they say neither."""
    steps: str
    """Those steps in words."""


def import_graphs(
    encoder: Path,
    decoder: Path,
    output: Path,
    options: ImportOptions | None = None,
    report: Report | None = None,
) -> Bundle:
    """Make a bundle of an encoder and a decoder that another program exported from one promptable model.

    Parameters
    ----------
    encoder, decoder
        ONNX files. Weights outside a file must lie beside it under the name that a bundle has for them,
        ``image_encoder.onnx.data`` or ``mask_decoder.onnx.data``, since the files stay as they are.
    output
        The bundle's folder.
    options
        See `ImportOptions`.
    report
        See `Report`.

    Raises
    ------
    BundleError
        ``unknown_contract`` when the interfaces are none of those known, ``other_family`` for graphs of models that are
        not run yet, ``swapped_graphs``, ``other_model`` when the two do not fit each other, ``unclear_preprocessing``
        when it must be asked for, ``contract_differs`` when the files are not of the contract that was asked for,
        ``unexpected_answer`` when running them shows something else; or as `segship.bundle.onnx_rules.check_graph`.
    OutputError
        When the folder exists and ``force`` is off, or cannot be written.
    """
    options, tell = options or ImportOptions(), report or (lambda what: None)
    encoder, decoder, output = (
        _path(name, path) for name, path in (("encoder", encoder), ("decoder", decoder), ("output", output))
    )
    check_target(output, overwrite=options.force, folder=True)
    if options.force:
        refuse_stranger(output)
    tell("reading the files")
    files = dict(zip(GRAPHS, (encoder, decoder), strict=True))
    known = identify_graphs(sha256_of(files["image_encoder"]), sha256_of(files["mask_decoder"]))
    if known is not None and known.contract is None:
        _refuse_family(f"{encoder.name} and {decoder.name} are the published {known.name}", known.family)
    graphs = {name: _read(name, path) for name, path in files.items()}
    names = {name: path.name for name, path in files.items()}
    found = _recognise(names, graphs, options.contract or (known.contract if known else None))
    manifest = _make_manifest(files["image_encoder"], files["mask_decoder"], found, options, known)
    with _opened(files, manifest) as sessions:
        manifest = _checked(manifest, names, sessions, tell)
    tell("writing the bundle")
    stated = {name: {"quantized": True} for name, graph in graphs.items() if _is_quantized(graph)}
    return write_bundle(output, manifest, files, options=stated, force=options.force)


def fetch_bundle(
    name: str, *, destination: Path | None = None, mirror: str | None = None, progress: Progress | None = None
) -> Bundle:
    """Fetch a published encoder and decoder and import them where `segship.load` finds them by their name.

    Parameters
    ----------
    name
        A key of `segship.catalog.KNOWN_GRAPHS`.
    destination, mirror, progress
        As `segship.fetch.fetch_graphs` takes them.

    Raises
    ------
    FetchError
        As `segship.fetch.fetch_checkpoint`.
    BundleError
        ``other_family`` for models that are not run yet; or as `import_graphs`.
    """
    known = KNOWN_GRAPHS[name]
    if known.contract is None:
        _refuse_family(f"{name} are graphs", known.family)
    folder = bundle_folder(name)
    if os.path.isdir(folder):
        return Bundle.open(folder)
    encoder, decoder = fetch_graphs(known, destination=destination, mirror=mirror, progress=progress)
    make_directory(folder.parent)
    return import_graphs(encoder, decoder, folder)


def _path(name: str, path: object) -> Path:
    if not isinstance(path, str | Path):
        raise InputError(f"{name} is {shown(path)}; accepted is a path, of text or pathlib.Path", code="bad_option")
    return Path(path)


def _is_quantized(graph: OnnxGraph) -> bool:
    return any(op_type in _QUANTIZED for _, op_type in graph.operators)


def _read(name: str, path: Path) -> OnnxGraph:
    """Read what a file declares and refuse what no bundle may hold."""
    graph, sidecar = read_graph(path), weights_file(artifact_file(name))
    if not graph.external_locations:
        check_graph(graph, kind=f"foreign {name}", file=path.name, sidecar=None)
        return graph
    if graph.external_locations != (sidecar,):
        places = ", ".join(repr(place[:100]) for place in graph.external_locations[:3])
        raise BundleError(
            f"{path.name} has weights in {places}; files are imported as they are, so accepted is only {sidecar!r} "
            f"beside it; save it again with the onnx package: onnx.save_model(onnx.load(FILE), FILE, "
            f"save_as_external_data=True, location={sidecar!r})",
            code="external_data_location",
        )
    beside = path.with_name(sidecar)
    if not os.path.isfile(beside):
        raise BundleError(f"{path.name} has its weights in {sidecar}, which is not beside it", code="missing_file")
    check_graph(graph, kind=f"foreign {name}", file=path.name, sidecar=sidecar, sidecar_bytes=beside.stat().st_size)
    return graph


def _refuse_family(what: str, family: str) -> NoReturn:
    message = f"{what}, of {family}, which segship does not run yet; accepted are graphs of SAM and MobileSAM"
    raise BundleError(message, code="other_family")


class _Interface(NamedTuple):
    """What the two interfaces say."""

    geometry: SamGeometry
    masks: Literal[4, 1]
    foreign: ForeignGraphs


def _recognise(files: Mapping[str, str], graphs: Mapping[str, OnnxGraph], asked: ContractName | None) -> _Interface:
    """Return what the interfaces of graphs, from files of some names, say."""
    encoder, decoder = (graphs[name] for name in GRAPHS)
    for name, graph in graphs.items():
        for tensor in graph.inputs + graph.outputs:
            if tensor.name in _OTHER_FAMILIES:
                _refuse_family(f"{files[name]} has the tensor {tensor.name!r}", _OTHER_FAMILIES[tensor.name])
    if any(tensor.name == "point_coords" for tensor in encoder.inputs):
        raise BundleError(
            f"{files['image_encoder']} takes points, so it is the decoder; give the encoder first, then the decoder",
            code="swapped_graphs",
        )
    original_size, masks = _decoder_facts(decoder, files["mask_decoder"])
    image = _image(encoder, files["image_encoder"])
    geometry = _geometry(image, encoder, decoder, files)
    contract = asked or _found_contract(image, original_size is not None, files["image_encoder"])
    _check_contract(contract, image, original_size is not None, files)
    foreign = ForeignGraphs(
        contract=contract,
        image=image.tensor.name,
        image_embeddings=encoder.outputs[0].name,
        layout=image.layout,
        dtype="uint8" if image.tensor.dtype == "uint8" else "float32",
        values="pixels" if image.layout == "HWC" or contract == "nndeploy" else "normalized",
        padding="inside" if image.layout == "HWC" and image.side is None else "outside",
        original_size=original_size,
        rules=_RULES[contract],
    )
    return _Interface(geometry, masks, foreign)


def _make_manifest(
    encoder: Path, decoder: Path, found: _Interface, options: ImportOptions, known: KnownGraphs | None
) -> PromptableManifest:
    return PromptableManifest(
        family="sam",
        architecture=known.architecture if known else "imported",
        geometry=found.geometry,
        preprocessing=Preprocessing(found.geometry.image_size, PIXEL_MEAN, PIXEL_STD),
        prompt_rules=PromptRules(padding_point="without_box"),
        decoder_masks=found.masks,
        foreign=found.foreign,
        checkpoint=CheckpointFile(
            name=encoder.name,
            bytes=encoder.stat().st_size,
            sha256=sha256_of(encoder),
            licence=known.licence if known else options.licence or "unknown",
            known=known is not None,
        ),
        changes=(
            f"imported from {encoder.name} and {decoder.name}, byte for byte; nothing here was compared with the torch "
            "model that they were made from",
        ),
        tools={"segship": segship.__version__, DEFAULT_BACKEND: installed_version(DEFAULT_BACKEND) or "unknown"},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _shown(tensors: tuple[TensorSpec, ...]) -> str:
    """Return an interface in words."""
    return ", ".join(
        f"{shown(tensor.name)} {tensor.dtype} ({', '.join(str(size)[:30] for size in tensor.shape)})"
        for tensor in tensors[:12]
    )


def _unknown(file: str, found: str, wanted: str) -> BundleError:
    message = f"{file} is of no contract that is known: {found}; accepted is {wanted}; see docs/ship.md"
    return BundleError(message, code="unknown_contract")


def _decoder_facts(decoder: OnnxGraph, file: str) -> tuple[Literal["float32", "int64"] | None, Literal[4, 1]]:
    """Return the type of the size that a decoder takes, None where it takes none, and how many masks it gives."""
    inputs = {tensor.name: tensor for tensor in decoder.inputs}
    outputs = {tensor.name: tensor for tensor in decoder.outputs}
    sized = _ORIGINAL_SIZE in inputs
    wanted = {*_PROMPTS, _ORIGINAL_SIZE} if sized else {*_PROMPTS}
    answers = {*_ANSWERS, _UPSCALED} if sized else {*_ANSWERS}
    if inputs.keys() != wanted or outputs.keys() != answers:
        found = f"its inputs are {_shown(decoder.inputs)} and its outputs {_shown(decoder.outputs)}"
        accepted = f"{', '.join(_PROMPTS)} to {', '.join(_ANSWERS)}, or with {_ORIGINAL_SIZE} to {_UPSCALED} as well"
        raise _unknown(file, found, accepted)
    count = (outputs["iou_predictions"].shape or ("?",))[-1]
    dtype = inputs[_ORIGINAL_SIZE].dtype if sized else None
    if count not in (1, 4) or dtype not in (None, "float32", "int64"):
        raise _unknown(file, f"it gives {count} masks ({_shown(decoder.outputs)})", "one mask or four")
    return dtype, 1 if count == 1 else 4  # type: ignore[return-value]  # Checked on the line above.


_LAYOUTS: dict[Layout, tuple[int, int, int]] = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2), "HWC": (2, 0, 1)}
"""Which axes channels, rows and columns are."""


def _image(encoder: OnnxGraph, file: str) -> _Image:
    """Return how an encoder takes its image."""
    for tensor in encoder.inputs + encoder.outputs:
        if not _NAME.fullmatch(tensor.name):
            wanted = "1 to 128 letters, digits, spaces and . _ : / -"
            raise _unknown(file, f"one of its tensors is named '{shown(tensor.name)}'", wanted)
    shape = encoder.inputs[0].shape if len(encoder.inputs) == len(encoder.outputs) == 1 else ()
    for layout, (channel, *axes) in _LAYOUTS.items():
        if len(shape) != len(layout) or shape[channel] != 3:
            continue
        sides = {side for side in (shape[axis] for axis in axes) if isinstance(side, int)}
        if encoder.inputs[0].dtype in ("float32", "uint8") and len(sides) <= 1:
            return _Image(encoder.inputs[0], layout, next(iter(sides), None), *_preparation(encoder, layout, file))
    found = f"its inputs are {_shown(encoder.inputs)} and its outputs {_shown(encoder.outputs)}"
    wanted = "one image, (1, 3, S, S), (1, S, S, 3) or (H, W, 3), float32 or uint8, to one embedding (1, C, h, w)"
    raise _unknown(file, found, wanted)


def _preparation(encoder: OnnxGraph, layout: Layout, file: str) -> tuple[Literal["normalized", "pixels"] | None, str]:
    """Return what the steps between an image and the network take, and those steps in words.

    Raises
    ------
    BundleError
        ``unclear_preprocessing`` where they are known and of no contract: RGB from 0 to 1, and BGR.
    """
    constants = [np.array(each.values) for each in encoder.initializers + encoder.constants if len(each.values) == 3]
    if any(_is_normalization(PIXEL_STD, each * scale, PIXEL_MEAN[::-1]) for each in constants for scale in (1, 255)):
        raise _other_preparation(file, "SAM's mean color stands in its graph in the order BGR")
    scale, shift = found = _steps(encoder, layout)
    if isinstance(shift, str):
        return None, shift
    if np.allclose(scale, 1) and np.allclose(shift, 0):
        return "normalized", "nothing is done to the image"
    with np.errstate(all="ignore"):
        std, mean = 1 / scale, -shift / scale
    if _is_normalization(std, mean):
        return "pixels", "SAM's mean is taken off and its deviation divided by, of RGB from 0 to 255"
    if _is_normalization(255 * std, 255 * mean):
        raise _other_preparation(file, "its graph normalises RGB from 0 to 1")
    times, plus = (", ".join(f"{number:.4g}" for number in part) for part in found)
    return None, f"the channels are multiplied by ({times}), and ({plus}) is added"


def _is_normalization(std: AnyArray | Triple, mean: AnyArray, wanted: Triple = PIXEL_MEAN) -> bool:
    return np.allclose(std, PIXEL_STD, atol=0.5) and np.allclose(mean, wanted, atol=0.5)


def _other_preparation(file: str, what: str) -> BundleError:
    message = f"{file} prepares images in a way that no contract here knows: {what}; accepted are RGB from 0 to 255"
    message = f"{message}, normalised in the graph ({ASK}nndeploy or samexporter) or before it (official, osam, ascend)"
    return BundleError(message, code="unclear_preprocessing")


def _steps(encoder: OnnxGraph, layout: Layout) -> tuple[AnyArray, AnyArray | str]:
    """Return by what each channel is multiplied before the network begins, and what is added; or words for the sum."""
    known = {tensor.name: np.array(tensor.values) for tensor in encoder.initializers if tensor.values}
    images: dict[str, tuple[AnyArray, AnyArray]] = {encoder.inputs[0].name: (np.ones(3), np.zeros(3))}
    begins: list[tuple[AnyArray, AnyArray]] = []
    for node in encoder.nodes:
        taken = [images[name] for name in node.inputs if name in images]
        if not taken:
            values = np.array(node.values) if node.op_type == "Constant" else None
            values = known.get(node.inputs[0]) if node.op_type in _RESHAPES and node.inputs else values
            known.update({} if values is None or not values.size else {node.outputs[0]: values})
        elif node.op_type in _BEGINNINGS:
            begins += taken
        elif node.op_type != "Shape":
            made = _step(node, images, known, layout)
            if made is None:
                return np.ones(3), f"there is {shown(node.op_type)} in a form that is not followed here"
            images[node.outputs[0]] = made
    if not begins or any(not np.array_equal(begins[0], other) for other in begins):
        return np.ones(3), "there is no convolution, or several that take different images"
    return begins[0]


def _step(
    node: OnnxNode, images: Mapping[str, tuple[AnyArray, AnyArray]], known: Mapping[str, AnyArray], layout: Layout
) -> tuple[AnyArray, AnyArray] | None:
    """Return factor and sum after one step on an image; None where it is another step than those of preparing one."""
    if node.op_type in _RESHAPES or node.op_type in ("Cast", "Pad") or (node.op_type, layout) in _TURNS:
        return images.get(node.inputs[0])
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    image, other = node.inputs if node.inputs[0] in images or node.op_type in ("Sub", "Div") else node.inputs[::-1]
    if image not in images or other not in known or known[other].size not in (1, 3):
        return None
    (scale, shift), number = images[image], known[other]
    if node.op_type in ("Add", "Sub"):
        return scale, shift + (number if node.op_type == "Add" else -number)
    with np.errstate(all="ignore"):
        factor = number if node.op_type == "Mul" else 1 / number
        return scale * factor, shift * factor


def _geometry(image: _Image, encoder: OnnxGraph, decoder: OnnxGraph, files: Mapping[str, str]) -> SamGeometry:
    """Return the sizes, which the interfaces must agree on."""
    taken = next(tensor for tensor in decoder.inputs if tensor.name == "image_embeddings").shape
    given = encoder.outputs[0].shape
    # Exporters leave axes open on one side that the other side states.
    stated = [shape[1:] for shape in (taken, given) if len(shape) == 4 and all(isinstance(x, int) for x in shape[1:])]
    if not stated:
        found = f"its embedding is ({_sizes(given)}), and {files['mask_decoder']} takes ({_sizes(taken)})"
        raise _unknown(files["image_encoder"], found, "an embedding whose sizes one of the two states")
    channels, rows, columns = (int(size) for size in stated[0])
    side = image.side or PIXELS_PER_CELL * rows
    fits = len(taken) == len(given) == 4 and all(
        first == second or isinstance(first, str) or isinstance(second, str)
        for first, second in zip(taken[1:], given[1:], strict=True)
    )
    if not fits or rows != columns or side != PIXELS_PER_CELL * rows:
        raise BundleError(
            f"{files['image_encoder']} takes images of {image.side or 'any'} pixels and gives ({_sizes(given)}), and "
            f"{files['mask_decoder']} takes ({_sizes(taken)}); they are not of one model, or one was exported for "
            "another image size; give two files of the same export",
            code="other_model",
        )
    return SamGeometry(image_size=side, embedding_channels=channels, embedding_size=rows)


def _sizes(shape: tuple[int | str, ...]) -> str:
    return ", ".join(str(size)[:30] for size in shape)


def _found_contract(image: _Image, sized: bool, file: str) -> ContractName:
    """Return the contract that an interface is of, or ask for it."""
    floats = image.tensor.dtype == "float32"
    if image.layout == "HWC" and (image.values == "pixels" or (floats and image.side is None)):
        return "samexporter"
    if image.layout != "HWC" and image.values == "pixels":
        return "nndeploy"
    contracts: dict[str, ContractName] = {
        "x": "osam" if sized else "ascend",
        "image": "official" if sized else "ascend",
        "input_image": "samexporter",
    }
    if image.layout == "NCHW" and floats and image.values == "normalized" and image.tensor.name in contracts:
        return contracts[image.tensor.name]
    raise BundleError(
        f"{file} takes {_shown((image.tensor,))}, and neither that name nor what stands in the graph says whether it "
        f"normalises images itself: before its network begins, {image.steps}; ask for a contract with {ASK}NAME: "
        "official, osam and ascend normalise outside the "
        "graph, nndeploy inside, samexporter inside where the image is (H, W, 3)",
        code="unclear_preprocessing",
    )


def _check_contract(contract: ContractName, image: _Image, sized: bool, files: Mapping[str, str]) -> None:
    """Refuse files that contradict a contract."""
    if sized == (contract == "ascend"):
        found = f"{files['mask_decoder']} has {'an' if sized else 'no'} input {_ORIGINAL_SIZE}"
        wanted = "has none" if sized else "has one"
    else:
        plain = image.layout == "NCHW" and image.tensor.dtype == "float32" and image.values != "pixels"
        # An encoder that takes any size pads by itself, and running it says what it takes.
        raw = image.values != "normalized" or (image.layout == "HWC" and image.side is None)
        fits = {"nndeploy": raw and image.layout != "HWC", "samexporter": plain or (raw and image.layout == "HWC")}
        if fits.get(contract, plain):
            return
        found = f"{files['image_encoder']} takes {_shown((image.tensor,))}; before its network begins, {image.steps}"
        wanted = {
            "nndeploy": "takes raw pixels with a batch axis, which the graph normalises",
            "samexporter": "takes raw pixels (H, W, 3), or (1, 3, S, S) float32 that were normalised before",
        }.get(contract, "takes (1, 3, S, S) float32 that were normalised before")
    message = f"{found}, and the contract {contract} {wanted}; ask for another with {ASK}NAME"
    raise BundleError(message, code="contract_differs")


@contextmanager
def _opened(files: Mapping[str, Path], manifest: PromptableManifest) -> Iterator[dict[str, Session]]:
    """Open the files in ONNX Runtime, with any size of image where they are to take any."""
    foreign = manifest.foreign
    assert foreign is not None
    specs = manifest.contracts
    if foreign.padding == "inside":
        anything = TensorSpec(foreign.image, foreign.dtype, ("height", "width", 3))
        specs["image_encoder"] = replace(specs["image_encoder"], inputs=(anything,))
    with ExitStack() as stack:
        run = RunOptions(backend=DEFAULT_BACKEND)
        yield {name: stack.enter_context(_session(path, specs[name], run)) for name, path in files.items()}


def _session(path: Path, spec: GraphSpec, run: RunOptions) -> Session:
    try:
        return open_session(path, spec, run)
    except BundleError as error:
        if error.code != "graph_interface":
            raise
        differs = str(error).partition(": ")[2].removesuffix("; export it again")
        message = f"{path.name} cannot be driven: {differs}; have it written so by the program that it comes from"
        raise BundleError(message, code="graph_interface") from error


def _checked(
    manifest: PromptableManifest, files: Mapping[str, str], sessions: dict[str, Session], tell: Report
) -> PromptableManifest:
    """Run the graphs, and return the manifest with what only running them shows."""
    foreign, encoder_file = manifest.foreign, files["image_encoder"]
    assert foreign is not None
    if foreign.padding == "inside":
        tell("finding how the encoder prepares images")
        foreign = replace(foreign, values=_values_taken(sessions["image_encoder"], manifest, encoder_file))
        manifest = replace(manifest, foreign=foreign)
    adapted = manifest.adapt(sessions)
    tell("encoding two images")
    images = [prepare_image(pixels, manifest.preprocessing) for pixels in comparison_images()[1:]]
    embeddings = [adapted["image_encoder"].run({"image": image})["image_embeddings"] for image in images]
    geometry = manifest.geometry
    shape = (1, geometry.embedding_channels, geometry.embedding_size, geometry.embedding_size)
    for embedding in embeddings:
        _require(encoder_file, "the embedding", embedding, shape)
    if not _differ(*embeddings):
        raise _unexpected(encoder_file, "it gave the same embedding for two images")
    tell("asking the decoder")
    decoder = _Questions(files["mask_decoder"], adapted["mask_decoder"], embeddings, manifest)
    decoder.check()
    return replace(manifest, foreign=replace(foreign, empty_prompts=decoder.takes_empty()))


def _unexpected(what: str, found: str) -> BundleError:
    message = f"{what} does not answer as its contract says: {found}; nothing was written"
    return BundleError(message, code="unexpected_answer")


def _require(file: str, name: str, array: AnyArray, shape: tuple[int, ...]) -> None:
    """Refuse an answer of another shape, or with values that are not finite."""
    finite = bool(np.isfinite(array).all())
    if array.shape != shape or not finite:
        found = f"{name} was {array.shape}, {'finite' if finite else 'not finite'}"
        raise _unexpected(file, f"{found}, where {shape}, finite, was expected")


def _differ(first: AnyArray, second: AnyArray, part: float = _NOTICEABLE) -> bool:
    """Return whether two answers differ by more than a part of the scale of the first."""
    return bool(np.abs(first - second).max() > part * np.abs(first).max())


def _values_taken(encoder: Session, manifest: PromptableManifest, file: str) -> Literal["normalized", "pixels"]:
    """Find whether an encoder that pads by itself normalises as well: the padding that changes nothing says it."""
    foreign, side = manifest.foreign, manifest.geometry.image_size
    assert foreign is not None
    picture = resize_image(comparison_images()[1], side)

    def embed(padding: tuple[float, ...] | None) -> AnyArray:
        image = picture.astype(np.float32)
        if padding is not None:
            image = np.tile(np.array(padding, np.float32), (side, side, 1))
            image[: picture.shape[0], : picture.shape[1]] = picture
        return encoder.run({foreign.image: image.astype(foreign.dtype)})[foreign.image_embeddings]

    alone = embed(None)
    if not _differ(alone, embed(PIXEL_MEAN), _SAME):
        return "pixels"
    if not _differ(alone, embed((0.0, 0.0, 0.0)), _SAME):
        return "normalized"
    raise BundleError(
        f"{file} takes images of any size, and neither padding them with the mean color nor with zero gives the same "
        "embedding; it resizes them, or prepares them in another way, which no contract here knows",
        code="unclear_preprocessing",
    )


class _Questions:
    """What a decoder is asked to see that it is one."""

    def __init__(
        self, file: str, decoder: Session, embeddings: Sequence[FloatArray], manifest: PromptableManifest
    ) -> None:
        self._file = file
        self._decoder = decoder
        self._embeddings = embeddings
        geometry, self._masks = manifest.geometry, manifest.decoder_masks
        self._side, self._low_res = geometry.image_size, geometry.low_res_size

    def ask(
        self,
        points: Sequence[tuple[float, float]],
        labels: Sequence[int],
        *,
        mask: FloatArray | None = None,
        flag: float = 0.0,
        image: int = 0,
    ) -> FloatArray:
        """Return the logits (1, masks, 4h, 4w) for one object, whose points are parts of the frame."""
        low_res = self._low_res
        answer = self._decoder.run(
            {
                "image_embeddings": self._embeddings[image],
                "point_coords": (self._side * np.array(points, np.float32).reshape(1, -1, 2)),
                "point_labels": np.array(labels, np.float32)[None],
                "mask_input": np.zeros((1, 1, low_res, low_res), np.float32) if mask is None else mask[None, None],
                "has_mask_input": np.array([flag], np.float32),
            }
        )
        wanted = {"iou_predictions": (1, self._masks), "low_res_masks": (1, self._masks, low_res, low_res)}
        for name, shape in wanted.items():
            _require(self._file, name, answer[name], shape)
        return answer["low_res_masks"]

    def check(self) -> None:
        """Refuse a decoder whose answers do not depend on what they must, or depend on what they must not."""
        here, there = (0.3, 0.3), (0.6, 0.55)
        mask = smooth_mask(self._low_res, 0)
        masked = self.ask([here], [1], mask=mask, flag=1.0)
        click = self.ask([here], [1])
        moved = self.ask([there], [1])
        changed = {
            "the image": (click, self.ask([here], [1], image=1)),
            "where a point is": (click, moved),
            "whether a point is foreground": (click, self.ask([here], [0])),
            "whether two points are a box": (self.ask([here, there], [2, 3]), self.ask([here, there], [1, 1])),
            "whether there is a mask input": (click, masked),
            "what the mask input holds": (masked, self.ask([here], [1], mask=-mask, flag=1.0)),
        }
        for what, pair in changed.items():
            if not _differ(*pair):
                raise _unexpected(self._file, f"its masks do not depend on {what}")
        answers = np.concatenate([answer.ravel() for pair in changed.values() for answer in pair])
        if not answers.min() < 0 < answers.max():
            found = f"its masks lie between {answers.min():.4g} and {answers.max():.4g}"
            raise _unexpected(self._file, f"{found}, where logits, which have both signs, were expected")
        if _differ(click, self.ask([here], [1], mask=mask), _SAME):
            raise _unexpected(self._file, "a mask input changes its masks though has_mask_input is 0")
        # Between the other two, so that graphs that quantize by the range of a tensor see the same range.
        tokens = [self.ask([here, there, place], [1, 0, -1]) for place in ((0.35, 0.35), (0.4, 0.5))]
        if np.abs(tokens[0] - tokens[1]).max() > _LITTLE * np.abs(click - moved).max():
            raise _unexpected(self._file, "its masks depend on where a point with label -1, no point, is")

    def takes_empty(self) -> bool:
        """Return whether an object may have a mask input and nothing else."""
        try:
            self.ask([(0.0, 0.0)], [LABEL_EMPTY], mask=smooth_mask(self._low_res, 0), flag=1.0)
        except (BackendUnavailable, BundleError):
            return False
        return True
