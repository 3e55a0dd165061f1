# SPDX-License-Identifier: Apache-2.0
"""The verbs of the task promptable: which cases there are, how a model answers them, how two answers are compared.

A torch module, an exported graph and a backend answer alike, as sessions by graph name; so one comparison serves the
check of an export, ``segship tune``, and whoever proves a bundle elsewhere. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segship.arrays import AnyArray, BoolArray, FloatArray, IntArray, Pixels, Size
from segship.backends.session import Recorder, Session
from segship.bundle.evidence import EXACT, Bar, Row, mask_row, tensor_row
from segship.datasets.image_list import KINDS, ImageList, ListedPicture, open_image_list
from segship.images.comparison import comparison_images, smooth_mask
from segship.masks.rle import Runs
from segship.masks.scores import mask_iou
from segship.promptable.decoder import Decoded, Decoder
from segship.promptable.manifest import PromptableManifest
from segship.promptable.prediction import ImageEmbedding
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import (
    ObjectPrompt,
    PromptRules,
    Prompts,
    ResolvedPrompts,
    encode_prompts,
    resolve_prompts,
)
from segship.promptable.transforms import Preprocessing, prepare_image, resized_size, upscale_mask
from segship.spec import SamGeometry

Manifest = PromptableManifest
Arrays = dict[str, AnyArray]

EXACT_BAR: Bar = {"cosine": 0.999999, "max_abs": 1e-3, "mask_iou_mean": 0.9995, "mask_iou_min": 0.99}
REDUCED_BAR: Bar = {"cosine": 0.998, "max_abs": 0.1, "mask_iou_mean": 0.97, "mask_iou_min": 0.75}
"""How far bfloat16 and float16 may move things.

bfloat16 has 8 significant bits, so each operation rounds by up to 0.4 %; through the blocks of an encoder that grew to
0.8 % of the embedding's largest value in tiny and 7 % in a vit_b with random weights, whose embedding still had a
cosine of 0.9991. What a user sees is pixels along the outlines of masks: their mean IoU with the float32 masks was
0.982 in both, of all four masks of each prompt, sure and unsure ones alike. The bar leaves room for other models and
stays far above the 0.85 to 0.91 to which two people agree who outline the same object (Segment Anything,
arXiv 2304.02643, section 5); the lowest IoU is that of masks of few pixels, and was 0.872.
"""

LOWER_BARS: dict[str, Bar] = {
    "fp16-weights": {"mask_iou_mean": 0.998, "mask_iou_p5": 0.99},
    "int8-weights": {"mask_iou_mean": 0.985, "mask_iou_p5": 0.95},
    "int8": {"mask_iou_mean": 0.97, "mask_iou_p5": 0.9},
    "int4-weights": {"mask_iou_mean": 0.97, "mask_iou_p5": 0.9},
}
"""How far artifacts in lower precisions may move masks, of all four masks of each prompt; tensors are told alone.

Integers move an embedding by several parts in a hundred, and masks along their outlines. The bars are far above the
agreement of two people, and were chosen so that scores against human segments move by less than 0.005.
"""

CLICKS = 8
"""One-point objects in the call that is timed: a handful of things in a picture, and what everything mode asks at once
on CPUs."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageCase:
    """One image as the encoder takes it, and the prompt tensors of every mix by the mix's name."""

    image: FloatArray
    original_size: Size
    input_size: Size
    prompts: Mapping[str, Arrays]


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """Three images, and for each the forms of prompt that exist."""

    geometry: SamGeometry
    images: tuple[ImageCase, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ImageAnswer:
    """What was answered to one image."""

    image_embeddings: FloatArray
    """(1, C, h, w), by the encoder."""
    image_side: Arrays
    """What the graph of that name gives for the given embedding; empty where there is no such graph."""
    decoded: dict[str, list[tuple[FloatArray, FloatArray]]]
    """Graph -> one pair of scores (N, 4) and logits (N, 4, 4h, 4w) a mix, for the given embedding."""
    chained: list[FloatArray] = field(default_factory=list)
    """Logits of every mix, all graphs behind each other as a predictor runs them."""


Answers = tuple[ImageAnswer, ...]


def bar(precision: str) -> Bar:
    """Return the bar that a precision is held against."""
    return EXACT_BAR if precision == EXACT else LOWER_BARS.get(precision, REDUCED_BAR)


def cases(manifest: PromptableManifest) -> Cases:
    """Return the cases for a model: images, and prompts of every form in one call and beside each other."""
    images = tuple(
        _image_case(pixels, manifest.preprocessing, manifest.geometry.low_res_size, manifest.prompt_rules)
        for pixels in comparison_images()
    )
    return Cases(manifest.geometry, images)


def _image_case(pixels: Pixels, preprocessing: Preprocessing, low_res_size: int, rules: PromptRules) -> ImageCase:
    size_hw = (pixels.shape[0], pixels.shape[1])
    tensors = prompt_tensors(size_hw, preprocessing.image_size, low_res_size, rules)
    input_size = resized_size(size_hw, preprocessing.image_size)
    return ImageCase(prepare_image(pixels, preprocessing), size_hw, input_size, tensors)


def prompt_tensors(size_hw: Size, image_size: int, low_res_size: int, rules: PromptRules) -> dict[str, Arrays]:
    """Return the decoder's prompt tensors of every mix of `prompt_mixes` on an image."""
    return {
        name: encode_prompts(
            resolve_prompts(list(prompts), size_hw).objects,
            original_size=size_hw,
            input_size=resized_size(size_hw, image_size),
            low_res_size=low_res_size,
            rules=rules,
        )
        for name, prompts in prompt_mixes(size_hw, low_res_size).items()
    }


def answer(cases: Cases, sessions: Mapping[str, Session], given: Answers | None = None) -> Answers:
    """Let graphs, those that a bundle needs or more, answer all cases.

    ``given`` are the answers whose embeddings each graph by itself gets, so that it answers for its own errors alone;
    its own when left out.
    """
    answers = []
    for index, case in enumerate(cases.images):
        own = sessions["image_encoder"].run({"image": case.image})["image_embeddings"]
        base = own if given is None else given[index].image_embeddings
        side = sessions["image_side"].run({"image_embeddings": base}) if "image_side" in sessions else {}
        own_side = side
        if side and own is not base:
            own_side = sessions["image_side"].run({"image_embeddings": own})
        answered = ImageAnswer(own, side, {})
        # A model that decodes in one way only has then answered already.
        is_chained = own is base and "selective_decoder" not in sessions
        for tensors in case.prompts.values():
            decoder = Decoder(sessions, per_call=len(tensors["point_labels"]))
            for graph, pair in _decoded(decoder, sessions, base, side, tensors):
                answered.decoded.setdefault(graph, []).append(pair)
            chained = answered.decoded["mask_decoder"][-1] if is_chained else decoder.decode(own, own_side, tensors)
            answered.chained.append(chained[1])
        answers.append(answered)
    return tuple(answers)


def _listed_objects(
    picture: ListedPicture, sessions: Mapping[str, Session], manifest: PromptableManifest, embeddings: FloatArray
) -> dict[str, tuple[ObjectPrompt, ...]]:
    """Return the objects of a picture of a list by their kind.

    What refines a mask gets the best that the sessions, those of the reference, first give for its point.
    """
    found: dict[str, tuple[ObjectPrompt, ...]] = {}
    for kind in KINDS:
        prompts = [
            Prompts(points=entry.points or None, labels=entry.labels or None, boxes=entry.box)
            for entry in picture.entry.objects
            if entry.kind == kind
        ]
        if prompts:
            found[kind] = resolve_prompts(prompts, picture.loaded.size_hw).objects
    if "refined" in found:
        tensors = _object_tensors(found["refined"], picture.loaded.size_hw, manifest)
        ious, masks = _run_whole(sessions, embeddings, tensors)
        # Of several masks the first is for prompts that leave no doubt.
        best = ious[:, 1:].argmax(axis=1) + 1 if ious.shape[1] > 1 else np.zeros(len(ious), np.int64)
        found["refined"] = tuple(
            replace(prompt, mask_input=masks[row, best[row]][None]) for row, prompt in enumerate(found["refined"])
        )
    return found


def _object_tensors(objects: Sequence[ObjectPrompt], size_hw: Size, manifest: PromptableManifest) -> Arrays:
    return encode_prompts(
        objects,
        original_size=size_hw,
        input_size=resized_size(size_hw, manifest.geometry.image_size),
        low_res_size=manifest.geometry.low_res_size,
        rules=manifest.prompt_rules,
    )


def listed_case(
    manifest: PromptableManifest, picture: ListedPicture, sessions: Mapping[str, Session]
) -> tuple[ImageCase, FloatArray]:
    """Return a picture of a list as a case, a call of the decoder for each kind of prompt, and its embedding.

    ``sessions`` are those of the reference, whose first masks are refined.
    """
    size_hw = picture.loaded.size_hw
    image = prepare_image(picture.loaded.picture, manifest.preprocessing)
    embeddings = sessions["image_encoder"].run({"image": image})["image_embeddings"]
    objects = _listed_objects(picture, sessions, manifest, embeddings)
    asked = {kind: _object_tensors(prompts, size_hw, manifest) for kind, prompts in objects.items()}
    return ImageCase(image, size_hw, resized_size(size_hw, manifest.geometry.image_size), asked), embeddings


@dataclass(frozen=True, slots=True, eq=False)
class ListedAnswer:
    """What was answered to one picture of an image list.

    Attributes
    ----------
    objects
        Its objects by kind, as the reference's first masks complete them.
    tensors
        Graph -> what it gave for the reference's embedding: ``image_embeddings``, and for each kind the decoder's
        ``low_res_masks`` and ``iou_predictions``, all of an object's masks; of ``image_side`` all its tensors.
    masks
        Kind -> the masks of each object as people get them, as run lengths: three of a click, one of anything else.
    scores
        Kind -> what the model says of these masks: (objects, masks) float32.
    """

    objects: Mapping[str, tuple[ObjectPrompt, ...]]
    tensors: Mapping[str, Mapping[str, list[AnyArray]]]
    masks: Mapping[str, list[list[Runs]]]
    scores: Mapping[str, FloatArray]


def answer_listed(
    manifest: PromptableManifest,
    picture: ListedPicture,
    sessions: Mapping[str, Session],
    given: ListedAnswer | None = None,
) -> ListedAnswer:
    """Let a model answer a picture of an image list; ``given`` is what the reference answered, where this is another.

    Raises
    ------
    BackendUnavailable
        ``nonfinite_output``, or what the runtime says.
    """
    predictor = open(manifest, sessions)
    embedding = predictor.encode_loaded(picture.loaded)
    own = base = embedding.image_embeddings
    objects = given.objects if given else _listed_objects(picture, sessions, manifest, own)
    if given:
        (base,) = given.tensors["image_encoder"]["image_embeddings"]
    tensors: dict[str, dict[str, list[AnyArray]]] = {"image_encoder": {"image_embeddings": [own]}}
    side = sessions["image_side"].run({"image_embeddings": base}) if "image_side" in sessions else {}
    if side:
        tensors["image_side"] = {name: [array] for name, array in side.items()}
    for prompts in objects.values():
        asked = _object_tensors(prompts, picture.loaded.size_hw, manifest)
        decoder = Decoder(sessions, per_call=len(prompts))
        for graph, (ious, masks) in _decoded(decoder, sessions, base, side, asked):
            outputs = tensors.setdefault(graph, {"low_res_masks": [], "iou_predictions": []})
            outputs["low_res_masks"].append(masks)
            outputs["iou_predictions"].append(ious)
    found = {
        kind: predictor.decode_resolved(embedding, ResolvedPrompts(prompts), multimask_output=kind == "click")
        for kind, prompts in objects.items()
    }
    runs = {
        kind: [[one.mask_runs(entry, index) for index in range(one.held.shape[1])] for entry in range(len(one.objects))]
        for kind, one in found.items()
    }
    return ListedAnswer(objects, tensors, runs, {kind: one.iou_predictions for kind, one in found.items()})


def listed_cases(
    manifest: PromptableManifest, images: ImageList | str | Path, sessions: Mapping[str, Session]
) -> Cases:
    """Return the pictures of an image list as cases; see `listed_case`."""
    pictures = open_image_list(images, manifest.task).pictures()
    return Cases(manifest.geometry, tuple(listed_case(manifest, picture, sessions)[0] for picture in pictures))


def feeds(
    manifest: PromptableManifest, images: ImageList | str | Path, sessions: Mapping[str, Session]
) -> Iterator[dict[str, list[Arrays]]]:
    """Yield for each picture of an image list what every graph is given: the inputs of its calls, by its name.

    They are computed with ``sessions``, which are those of the graphs in fp32. All prompts go through each decoder that
    takes them.
    """
    recorders = {name: Recorder(session) for name, session in sessions.items()}
    for picture in open_image_list(images, manifest.task).pictures():
        case, embeddings = listed_case(manifest, picture, sessions)
        side: Arrays = {}
        if "image_side" in recorders:
            side = recorders["image_side"].run({"image_embeddings": embeddings})
        for tensors in case.prompts.values():
            decoder = Decoder(recorders, per_call=len(tensors["point_labels"]))
            list(_decoded(decoder, recorders, embeddings, side, tensors))
        calls = {name: [asked for asked, _ in recorder.take()] for name, recorder in recorders.items()}
        yield {**calls, "image_encoder": [{"image": case.image}]}


def _run_whole(sessions: Mapping[str, Session], image_embeddings: FloatArray, tensors: Arrays) -> Decoded:
    found = sessions["mask_decoder"].run({"image_embeddings": image_embeddings, **tensors})
    return found["iou_predictions"], found["low_res_masks"]


def _decoded(
    decoder: Decoder,
    sessions: Mapping[str, Session],
    image_embeddings: FloatArray,
    image_side: Arrays,
    tensors: Arrays,
) -> Iterator[tuple[str, tuple[FloatArray, FloatArray]]]:
    """Yield what each decoder graph gives for one mix; graphs for objects without a mask input get only those."""
    yield "mask_decoder", _run_whole(sessions, image_embeddings, tensors)
    rows = _unmasked(tensors)
    if "selective_decoder" in sessions and len(rows):
        prompts = {name: tensors[name][rows] for name in ("point_coords", "point_labels")}
        yield "selective_decoder", decoder.share(image_embeddings, image_side, prompts)


def _unmasked(tensors: Arrays) -> IntArray:
    return np.flatnonzero(tensors["has_mask_input"] == 0)


def compare(step: str, cases: Cases, expected: Answers, found: Answers, bar: Bar) -> list[Row]:
    """Return a row for every graph by itself, and one for masks end to end at image size.

    ``selective_decoder`` is held against what ``mask_decoder`` answered, which it promises to repeat.
    """
    pairs = [(known.image_embeddings, made.image_embeddings) for known, made in zip(expected, found, strict=True)]
    rows = [tensor_row(step, "image_encoder", "image_embeddings", pairs, bar)]
    sides = [
        (known.image_side[name], made.image_side[name])
        for known, made in zip(expected, found, strict=True)
        for name in made.image_side
    ]
    if sides:
        rows.append(tensor_row(step, "image_side", "all tensors", sides, bar))
    for graph in found[0].decoded:
        scores, logits = _decoder_pairs(graph, cases, expected, found)
        rows.append(tensor_row(step, graph, "low_res_masks", logits, bar))
        rows.append(tensor_row(step, graph, "iou_predictions", scores, bar))
    return [
        *rows,
        mask_row(step, ", ".join(("image_encoder", *found[0].decoded)), list(_mask_ious(cases, expected, found)), bar),
    ]


def few(cases: Cases) -> Cases:
    """Return so many cases that they show whether a model works at all: an image, one point, and a box with another."""
    image = cases.images[0]
    prompts = {name: image.prompts[name] for name in ("one click", "box and background click")}
    return replace(cases, images=(replace(image, prompts=prompts),))


def agreement(step: str, cases: Cases, answers: Answers, bar: Bar) -> list[Row]:
    """Return rows of how far the graphs of one model agree that answer the same question."""
    return compare(step, cases, answers, answers, bar)


def remember(answers: Answers) -> Arrays:
    """Return what is kept of answers, to know them again: scores, and masks as bits."""
    pairs = [pair for answer in answers for pair in answer.decoded["mask_decoder"]]
    scores = np.concatenate([ious.ravel() for ious, _ in pairs])
    return {"scores": scores, "masks": np.packbits(np.concatenate([(logits > 0).ravel() for _, logits in pairs]))}


def compare_stored(step: str, answers: Answers, stored: Arrays, bar: Bar) -> list[Row]:
    """Return rows of how far answers are those of which `remember` kept something."""
    found = remember(answers)
    if any(found[name].shape != stored[name].shape for name in found):
        found = {name: np.zeros_like(array) for name, array in stored.items()}
    masks = [np.unpackbits(arrays["masks"]).astype(bool) for arrays in (stored, found)]
    return [
        tensor_row(step, "mask_decoder", "iou_predictions", [(stored["scores"], found["scores"])], bar),
        mask_row(step, "image_encoder, mask_decoder", [mask_iou(*masks)], bar),
    ]


def _decoder_pairs(graph: str, cases: Cases, expected: Answers, found: Answers) -> tuple[list[Any], list[Any]]:
    scores, logits = [], []
    for case, known, made in zip(cases.images, expected, found, strict=True):
        whole = zip(case.prompts.values(), known.decoded["mask_decoder"], strict=True)
        if graph == "mask_decoder":
            wanted = [pair for _, pair in whole]
        else:
            chosen = ((_unmasked(tensors), pair) for tensors, pair in whole)
            wanted = [(ious[rows], masks[rows]) for rows, (ious, masks) in chosen if len(rows)]
        for (ious, masks), (found_ious, found_masks) in zip(wanted, made.decoded[graph], strict=True):
            scores.append((ious, found_ious))
            logits.append((masks, found_masks))
    return scores, logits


def _mask_ious(cases: Cases, expected: Answers, found: Answers) -> Iterator[float]:
    for case, known, made in zip(cases.images, expected, found, strict=True):
        for (_, logits), chained in zip(known.decoded["mask_decoder"], made.chained, strict=True):
            for place in np.ndindex(logits.shape[:2]):
                masks = [_mask(entry[place], case, cases.geometry.image_size) for entry in (logits, chained)]
                yield mask_iou(*masks)


def _mask(low_res: FloatArray, case: ImageCase, image_size: int) -> BoolArray:
    upscaled = upscale_mask(
        np.ascontiguousarray(low_res),
        image_size=image_size,
        input_size=case.input_size,
        original_size=case.original_size,
    )
    return np.asarray(upscaled > 0.0)


def open(
    manifest: PromptableManifest,
    sessions: Mapping[str, Session],
    *,
    digest: str = "",
    threads: int | None = None,
    **ran: str,
) -> Predictor:
    """Return a predictor over sessions; ``ran`` says what runs them, as `Predictor` takes it."""
    return Predictor(manifest, sessions, encoder_sha256=digest, threads=threads, **{"backend": "", **ran})


def timed(manifest: PromptableManifest) -> str:
    """Return in words what `timings` are the time of, all together."""
    return "an image and eight clicks"


def timings(manifest: PromptableManifest, sessions: Mapping[str, Session]) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name: one picture through ``encode``, and `CLICKS` objects through the decoder."""
    predictor = open(manifest, sessions)
    pixels = comparison_images()[0]
    height, width = pixels.shape[:2]
    places = np.linspace(0.1, 0.9, CLICKS)[:, None, None] * np.array([width, height])
    clicks = Prompts(points=places)
    # Of the last encode, whose first run is needed by itself: encoders take seconds.
    embeddings: list[ImageEmbedding] = []

    def decode() -> object:
        if not embeddings:
            encode()
        return predictor.decode_low_res(embeddings[-1], clicks)

    def encode() -> None:
        embeddings[:] = [predictor.encode(pixels)]

    return {"encode": encode, "decode": decode}


def prompt_mixes(size_hw: Sequence[int], low_res_size: int, seed: int = 0) -> dict[str, tuple[Prompts, ...]]:
    """Return the prompts of every call of the decoder on an image of some (height, width), by the call's name."""
    height, width = size_hw
    mask = smooth_mask(low_res_size, seed)

    def at(x: float, y: float) -> list[float]:
        return [x * width, y * height]

    box = [*at(0.2, 0.15), *at(0.8, 0.75)]
    click = Prompts(points=[at(0.5, 0.45)])
    both = Prompts(points=[at(0.5, 0.45), at(0.1, 0.1)], labels=[1, 0])
    three = Prompts(points=[at(0.3, 0.3), at(0.4, 0.35), at(0.9, 0.9)], labels=[1, 1, 0])
    boxed = Prompts(boxes=box)
    cut = Prompts(boxes=box, points=[at(0.7, 0.7)], labels=[0])
    refined = Prompts(points=[at(0.5, 0.45)], mask_input=mask)
    masked = Prompts(mask_input=mask)
    return {
        "one click": (click,),
        "two clicks": (both,),
        "box": (boxed,),
        "box and background click": (cut,),
        "click and mask": (refined,),
        "mask alone": (masked,),
        "seven objects in one call": (click, both, three, boxed, cut, refined, masked),
    }
