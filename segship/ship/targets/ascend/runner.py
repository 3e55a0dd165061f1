# SPDX-License-Identifier: Apache-2.0
"""Run and prove the models of this kit on an Ascend NPU, with numpy, Pillow and ais_bench alone (Python 3.7 and later).

python3 run.py accept                                             compare with what the float32 graphs answered
python3 run.py segment picture.jpg --point 500,375 --out out.png  one object of a picture (SAM)
python3 run.py cityscapes DATA --work WORK --batch 4              pictures to BIN, BIN to BIN, mIoU (SeMask)

``accept`` writes report.json, which `segship verify BUNDLE --kit report.json` takes into the bundle's certificate. Who
wrote this never had an NPU, so begin with ``accept``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
EMPTY, NOT_A_POINT, TOP_LEFT, BOTTOM_RIGHT = -2, -1, 2, 3
IGNORED = 255
COLOR = (30, 144, 255)
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
BILINEAR: Any = 2
"""Pillow's number of it, which all of its versions take."""


class Graph:
    """The compiled models of one graph: inputs in order, filled up to a form that was compiled."""

    def __init__(self, kit: dict[str, Any], names: list[str], precision: str, device: int) -> None:
        from ais_bench.infer.interface import InferSession

        self.models = []
        for name in names:
            path = HERE / "om" / f"{name}_{precision}.om"
            if not path.is_file():
                raise SystemExit(f"{path} is not there; run scripts/20_compile.sh first")
            self.models.append((kit["graphs"][name], InferSession(device, str(path))))

    def run_filled(self, feeds: list[Any]) -> list[Any]:
        """Run feeds that have a compiled form already, such as those of a case."""
        entry, session = self.models[0]
        return self._infer(entry, session, feeds)

    def run_batch(self, images: Any) -> Any:
        """Run pictures (B, 3, H, W) through the model of that batch."""
        for entry, session in self.models:
            if entry["sizes"]["batch"] == len(images):
                return self._infer(entry, session, [images])[0]
        have = ", ".join(str(entry["sizes"]["batch"]) for entry, _ in self.models)
        raise SystemExit(f"no model takes {len(images)} pictures; compiled are {have}")

    def run_prompts(self, embeddings: Any, coords: Any, labels: Any, mask: Any, has_mask: Any) -> list[Any]:
        """Run one object, (P, 2) and (P,), and return its scores (4,) and logits (4, 4h, 4w)."""
        entry, session = self.models[0]
        able = [form for form in entry["forms"] if form["points"] >= len(labels)]
        if not able:
            most = max(form["points"] for form in entry["forms"])
            raise SystemExit(f"the prompt has {len(labels)} places and the kit {most}; give fewer, or convert for more")
        form = min(able, key=lambda one: one["points"])
        objects, places = form["objects"], form["points"]
        all_coords = np.zeros((objects, places, 2), np.float32)
        all_labels = np.full((objects, places), EMPTY, np.float32)
        all_coords[0, : len(labels)], all_labels[0, : len(labels)] = coords, labels
        masks = np.zeros((objects, *mask.shape), np.float32)
        flags = np.zeros(objects, np.float32)
        masks[0], flags[0] = mask, has_mask
        return [array[0] for array in self._infer(entry, session, [embeddings, all_coords, all_labels, masks, flags])]

    @staticmethod
    def _infer(entry: dict[str, Any], session: Any, feeds: list[Any]) -> list[Any]:
        feeds = [np.ascontiguousarray(feed) for feed in feeds]
        answers = session.infer(feeds, mode="dymdims" if entry["gears"] else "static")
        # Their memory is the session's, and names are the compiler's, so they are taken in order.
        return [np.array(array, port["dtype"]) for array, port in zip(answers, entry["outputs"])]


def accept(kit: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Compare every model with the recorded answers, and write the report."""
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    for name, entry in kit["graphs"].items():
        graph = Graph(kit, [name], arguments.precision, arguments.device)
        pairs: list[list[tuple[Any, Any]]] = [[] for _ in entry["outputs"]]
        for case in entry["cases"]:
            found = graph.run_filled([np.load(str(HERE / path)) for path in case["inputs"]])
            for place, path in enumerate(case["outputs"]):
                known = np.load(str(HERE / path))[: case["rows"]]
                pairs[place].append((known, found[place][: case["rows"]]))
                digest.update(np.ascontiguousarray(found[place]).tobytes())
        for port, compared in zip(entry["outputs"], pairs):
            rows.extend(measured(kit, name, port["name"], compared))
    bar = kit["bars"][arguments.precision]
    passed = all(within(figure, value, bar) for row in rows for figure, value in row["figures"].items())
    for row in rows:
        # JSON has no other numbers.
        row["figures"] = {name: value if np.isfinite(value) else None for name, value in row["figures"].items()}
    report = {
        "format_version": 1,
        "bundle": kit["bundle"],
        "graphs": {name: entry["made_from"] for name, entry in kit["graphs"].items()},
        "kit": sha256(HERE / "kit.json"),
        "precision": arguments.precision,
        "soc": kit["soc"],
        "machine": machine(),
        "models": {name: sha256(HERE / "om" / f"{name}_{arguments.precision}.om") for name in kit["graphs"]},
        "outputs": digest.hexdigest(),
        "rows": rows,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    arguments.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        figures = " ".join(f"{name} {value}" for name, value in sorted(row["figures"].items()))
        print(row["graph"], row["what"], figures)
    print(f"{'within' if passed else 'PAST'} the bar {bar}; written to {arguments.report}")
    return 0 if passed else 1


def measured(kit: dict[str, Any], graph: str, what: str, pairs: list[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what an output is worth: of tensors cosine and largest difference, of masks and maps what agrees."""
    row = {"graph": graph, "what": what, "cases": len(pairs)}
    if what == "class_map":
        yield {**row, "figures": {"pixels_equal": float(np.min([np.mean(one == two) for one, two in pairs]))}}
        return
    cosines, differences, scales = [], [], []
    for known, found in pairs:
        one, two = known.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        norm = float(np.linalg.norm(one) * np.linalg.norm(two))
        cosines.append(float(one @ two) / norm if norm else float(np.array_equal(one, two)))
        scales.append(float(np.abs(one).max()))
        differences.append(float(np.abs(one - two).max()) / (scales[-1] or 1.0))
    # numpy's min and max pass a NaN on, Python's may drop it.
    figures = {"cosine": np.min(cosines), "max_abs": np.max(differences), "scale": np.max(scales)}
    yield {**row, "figures": {name: float(value) for name, value in figures.items()}}
    if what == "low_res_masks":
        ious = np.array([mask_iou(kit, one, two) for pair in pairs for one, two in planes(*pair)])
        figures = {"mask_iou_mean": ious.mean(), "mask_iou_p5": np.percentile(ious, 5), "mask_iou_min": ious.min()}
        masks = {"graph": graph, "what": "masks", "cases": len(ious)}
        yield {**masks, "figures": {name: float(value) for name, value in figures.items()}}


def planes(known: Any, found: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every mask of every object, as answered by both."""
    side = known.shape[-1]
    yield from zip(known.reshape(-1, side, side), found.reshape(-1, side, side))


def mask_iou(kit: dict[str, Any], known: Any, found: Any) -> float:
    """Compare two masks in the model's frame; two that are empty are equal."""
    size = (kit["image_size"], kit["image_size"])
    one, two = (resized(plane, size) > 0 for plane in (known, found))
    union = np.count_nonzero(one | two)
    return float(np.count_nonzero(one & two) / union) if union else 1.0


def within(figure: str, value: float, bar: dict[str, float]) -> bool:
    """Return whether a figure holds the bar; NaN holds none."""
    if figure not in bar:
        return True
    return value <= bar[figure] if figure == "max_abs" else value >= bar[figure]


def segment(kit: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Segment one object of a picture, and write the picture with its mask, and the mask."""
    need(kit, "promptable")
    if arguments.out.suffix.lower() not in ENDINGS or not arguments.out.absolute().parent.is_dir():
        raise SystemExit(f"{arguments.out} cannot be written; give --out a name in a folder, on {', '.join(ENDINGS)}")
    try:
        with Image.open(arguments.image) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{arguments.image} cannot be read as a picture: {error}") from error
    image, size = prepared(kit, picture)
    coords, labels = prompts(kit, arguments, picture.size, size)
    encoder = Graph(kit, ["image_encoder"], arguments.precision, arguments.device)
    embeddings = encoder.run_filled([image])[0]
    side = next(port["shape"] for port in kit["graphs"]["mask_decoder"]["inputs"] if port["name"] == "mask_input")[-1]
    decoder = Graph(kit, ["mask_decoder"], arguments.precision, arguments.device)
    scores, logits = decoder.run_prompts(embeddings, coords, labels, np.zeros((1, side, side), np.float32), 0.0)
    # One click may mean a part or the whole: of those three masks the best; all else has the mask of its own.
    ambiguous = len(arguments.point) == 1 and arguments.box is None and len(scores) > 1
    chosen = 1 + int(np.argmax(scores[1:])) if ambiguous else 0
    frame = resized(logits[chosen], (kit["image_size"], kit["image_size"]))[: size[0], : size[1]]
    mask = resized(frame, (picture.height, picture.width)) > 0
    pixels = np.asarray(picture).astype(np.float32)
    pixels[mask] = 0.4 * pixels[mask] + 0.6 * np.array(COLOR, np.float32)
    Image.fromarray(pixels.astype(np.uint8)).save(str(arguments.out))
    beside = arguments.out.with_name(arguments.out.stem + ".mask.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(str(beside))
    print(f"score {scores[chosen]:.4f}, {mask.sum()} pixels; written to {arguments.out} and {beside}")
    return 0


def prepared(kit: dict[str, Any], picture: Any) -> tuple[Any, tuple[int, int]]:
    """Return a picture as the encoder takes it, and its size in the frame, (height, width)."""
    side = kit["image_size"]
    scale = side / max(picture.size)
    height, width = (int(length * scale + 0.5) for length in (picture.height, picture.width))
    if min(height, width) < 1:
        raise SystemExit(f"a picture of {picture.width} x {picture.height} pixels shrinks to nothing; cut it up")
    image = np.zeros((1, 3, side, side), np.float32)
    image[0, :, :height, :width] = normalised(kit, np.asarray(picture.resize((width, height), BILINEAR)))
    return image, (height, width)


def normalised(kit: dict[str, Any], pixels: Any) -> Any:
    """Return pixels (H, W, 3) as (3, H, W) float32 with mean and deviation taken off."""
    mean, std = (np.array(kit[name], np.float32) for name in ("pixel_mean", "pixel_std"))
    return ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)


def prompts(kit: dict[str, Any], arguments: argparse.Namespace, size: Any, resized_hw: Any) -> tuple[Any, Any]:
    """Return the places of one object in the frame, (P, 2), and their labels (P,)."""
    places = [tuple(point[:2]) for point in arguments.point]
    labels = [int(point[2]) if len(point) > 2 else 1 for point in arguments.point]
    box = arguments.box
    if not places and box is None:
        raise SystemExit("there is no prompt; give --point X,Y or --box X0,Y0,X1,Y1")
    coords = [(x * resized_hw[1] / size[0], y * resized_hw[0] / size[1]) for x, y in places]
    if places and (kit["padding_point"] == "always" or (kit["padding_point"] == "without_box" and box is None)):
        coords.append((0.0, 0.0))
        labels.append(NOT_A_POINT)
    if box is not None:
        corners = [(box[0], box[1]), (box[2], box[3])]
        coords += [(x * resized_hw[1] / size[0], y * resized_hw[0] / size[1]) for x, y in corners]
        labels += [TOP_LEFT, BOTTOM_RIGHT]
    return np.array(coords, np.float32), np.array(labels, np.float32)


def resized(plane: Any, size_hw: tuple[int, int]) -> Any:
    """Resize (H, W) bilinearly, corners not aligned, as torch's interpolate does."""
    for axis, length in enumerate(size_hw):
        own = plane.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * own / length - 0.5, 0, own - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, own - 1)
        part = (at - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        plane = plane.take(low, axis) * (1 - part) + plane.take(high, axis) * part
    return plane


def cityscapes(kit: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Do what the guide does in three steps: pictures to BIN, BIN through the model, BIN to mIoU."""
    need_batch(kit, arguments)
    inputs, outputs = arguments.work / "inputs", arguments.work / "outputs"
    write_bins(kit, arguments.data, arguments.split, inputs)
    infer_bins(kit, inputs, outputs, arguments)
    return score(kit, arguments.data, arguments.split, outputs)


def preprocess(kit: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Write pictures as BIN, for ais_bench."""
    write_bins(kit, arguments.data, arguments.split, arguments.work)
    return 0


def score_bins(kit: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Score BINs of ais_bench."""
    return score(kit, arguments.data, arguments.split, arguments.work)


def pictures_of(data: Path, split: str) -> list[Path]:
    found = sorted((data / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    if not found:
        raise SystemExit(f"{data} holds no leftImg8bit/{split}/*/*_leftImg8bit.png")
    return found


def write_bins(kit: dict[str, Any], data: Path, split: str, folder: Path) -> None:
    """Write every picture as the graph takes it, float32 (1, 3, H, W)."""
    need(kit, "semantic")
    folder.mkdir(parents=True, exist_ok=True)
    height, width = kit["frame"]
    for path in pictures_of(data, split):
        with Image.open(str(path)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if pixels.shape[:2] != (height, width):
            found = " x ".join(map(str, pixels.shape[1::-1]))
            raise SystemExit(f"{path} has {found} pixels and the kit takes {width} x {height}; convert with --size")
        normalised(kit, pixels).tofile(str(folder / (path.stem + ".bin")))


def infer_bins(kit: dict[str, Any], inputs: Path, outputs: Path, arguments: argparse.Namespace) -> None:
    """Run every BIN, so many at once; the last ones alone. Files are called as ais_bench calls them."""
    outputs.mkdir(parents=True, exist_ok=True)
    names = sorted({f"semantic_bs{batch}" for batch in (1, arguments.batch)} & set(kit["graphs"]))
    graph = Graph(kit, names, arguments.precision, arguments.device)
    height, width = kit["frame"]
    paths = [inputs / (path.stem + ".bin") for path in pictures_of(arguments.data, arguments.split)]
    whole = len(paths) - len(paths) % arguments.batch
    parts = [paths[at : at + arguments.batch] for at in range(0, whole, arguments.batch)]
    for part in parts + [[path] for path in paths[whole:]]:
        images = np.stack([np.fromfile(str(path), np.float32).reshape(3, height, width) for path in part])
        for path, classes in zip(part, graph.run_batch(images)):
            classes.tofile(str(outputs / (path.stem + "_0.bin")))


def score(kit: dict[str, Any], data: Path, split: str, folder: Path) -> int:
    """Count every pixel's class against the truth, and print the measures of the guide."""
    need(kit, "semantic")
    classes, (height, width) = len(kit["classes"]), kit["frame"]
    counts = np.zeros((classes, classes), np.int64)
    for path in pictures_of(data, split):
        found = folder / (path.stem + "_0.bin")
        if not found.is_file():
            raise SystemExit(f"{found} is not there; is {folder} the folder of the answers?")
        # The type follows from the size: other exports of this model answer in int64.
        width_of = {1: np.uint8, 4: np.int32, 8: np.int64}.get(found.stat().st_size // (height * width))
        if width_of is None or found.stat().st_size % (height * width):
            raise SystemExit(f"{found} holds {found.stat().st_size} bytes, no class map of {width} x {height}")
        answer = np.fromfile(str(found), width_of).reshape(height, width).astype(np.int64)
        truth = truth_of(kit, data, split, path)
        if truth.shape != answer.shape or max(answer.max(), truth[truth != IGNORED].max(initial=0)) >= classes:
            words = f"{found} and the truth of {path.name} do not fit each other, or a kit of {classes} classes"
            raise SystemExit(f"{words}; give the folders that belong together")
        known = truth != IGNORED
        pairs = truth[known].astype(np.int64) * classes + answer[known]
        counts += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    right, of_class = np.diag(counts).astype(np.float64), counts.sum(1)
    union = of_class + counts.sum(0) - right
    there = union > 0
    measures = {
        "aAcc": right.sum() / max(1, counts.sum()),
        "mAcc": np.mean(right[of_class > 0] / of_class[of_class > 0]),
        "mIoU": np.mean(right[there] / union[there]),
    }
    print(
        json.dumps({"pictures": len(pictures_of(data, split)), **{k: round(float(v), 6) for k, v in measures.items()}})
    )
    return 0


def truth_of(kit: dict[str, Any], data: Path, split: str, path: Path) -> Any:
    """Return the train ids of a picture, from labelTrainIds or from labelIds."""
    stem = path.name[: -len("_leftImg8bit.png")]
    folder = data / "gtFine" / split / path.parent.name
    for kind in ("labelTrainIds", "labelIds"):
        file = folder / f"{stem}_gtFine_{kind}.png"
        if file.is_file():
            with Image.open(str(file)) as picture:
                labels = np.asarray(picture)
            if kind == "labelTrainIds":
                return labels
            table = np.full(256, IGNORED, np.uint8)
            for number, train_id in kit["label_ids"].items():
                table[int(number) % 256] = train_id
            return table[labels]
    raise SystemExit(f"{folder} holds no truth of {stem}")


def need_batch(kit: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Refuse a batch that no model takes, or that leaves pictures over which none takes alone."""
    need(kit, "semantic")
    have = sorted(entry["sizes"]["batch"] for entry in kit["graphs"].values())
    left = len(pictures_of(arguments.data, arguments.split)) % max(arguments.batch, 1)
    if arguments.batch not in have or (left and 1 not in have):
        words = ", ".join(map(str, have))
        raise SystemExit(f"--batch is {arguments.batch}, and models take {words} pictures; {left} would be left over")


def need(kit: dict[str, Any], task: str) -> None:
    if kit["task"] != task:
        raise SystemExit(f"this kit is of a {kit['task']} model")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """Return what runs here, in words."""
    return {
        "cann": cann_version(),
        "ais_bench": package_version("ais_bench"),
        "aclruntime": package_version("aclruntime"),
        "npu_smi": said("npu-smi", "info"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def cann_version() -> str:
    """Return the version that the toolkit's own file says."""
    root = os.environ.get("ASCEND_TOOLKIT_HOME") or os.environ.get("ASCEND_HOME_PATH") or ""
    for path in sorted(Path(root).glob("*/ascend_toolkit_install.info")) if root else []:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("version="):
                return line.split("=", 1)[1].strip()
    return "unknown"


def package_version(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "show", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Version:")), "unknown")


def said(*command: str) -> str:
    try:
        done = subprocess.run(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        return done.stdout.decode("utf-8", "replace")[:4000]
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"


def numbers(text: str) -> list[float]:
    found = [float(part) for part in text.split(",")]
    if not np.isfinite(found).all():
        raise ValueError("no number")
    return found


def point(text: str) -> list[float]:
    """Return X,Y or X,Y,LABEL."""
    found = numbers(text)
    if len(found) not in (2, 3) or found[2:] not in ([], [0.0], [1.0]):
        raise argparse.ArgumentTypeError(f"{text!r} is no point; give X,Y or X,Y,LABEL, label 1 inside and 0 outside")
    return found


def box(text: str) -> list[float]:
    """Return X0,Y0,X1,Y1."""
    found = numbers(text)
    if len(found) != 4 or found[0] >= found[2] or found[1] >= found[3]:
        raise argparse.ArgumentTypeError(f"{text!r} is no box; give X0,Y0,X1,Y1, left and top before right and bottom")
    return found


def parser(kit: dict[str, Any]) -> argparse.ArgumentParser:
    """Return what the command line takes."""
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = words.add_subparsers(dest="verb")
    for name, verb in VERBS.items():
        one = verbs.add_parser(name, help=(verb.__doc__ or "").split("\n")[0])
        if name not in ("preprocess", "score"):
            one.add_argument("--precision", choices=kit["precisions"], default=kit["precisions"][0])
            one.add_argument("--device", type=int, default=0, help="number of the NPU")
        if name == "accept":
            one.add_argument("--report", type=Path, default=HERE / "report.json")
        elif name == "segment":
            one.add_argument("image")
            one.add_argument(
                "--point", type=point, action="append", default=[], help="X,Y or X,Y,LABEL; again for more"
            )
            one.add_argument("--box", type=box, help="X0,Y0,X1,Y1")
            one.add_argument("--out", type=Path, default=Path("segmented.png"))
        else:
            one.add_argument("data", type=Path, help="folder with leftImg8bit/ and gtFine/")
            one.add_argument("--split", default="val")
            one.add_argument("--work", type=Path, required=True, help="folder for the BIN files, or with them")
            if name == "cityscapes":
                one.add_argument("--batch", type=int, default=1)
    return words


VERBS = {
    "accept": accept,
    "segment": segment,
    "cityscapes": cityscapes,
    "preprocess": preprocess,
    "score": score_bins,
}


def main() -> int:
    kit = json.loads((HERE / "kit.json").read_text(encoding="utf-8"))
    words = parser(kit)
    arguments = words.parse_args()
    if arguments.verb is None:
        words.error(f"which of {', '.join(VERBS)}?")
    return VERBS[arguments.verb](kit, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
