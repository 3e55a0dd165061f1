# SPDX-License-Identifier: Apache-2.0
"""``segship export``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from segship.catalog import KNOWN_CHECKPOINTS, SEMANTIC_CHECKPOINTS, SEMASK_LICENCE
from segship.cli.options import Json, command
from segship.errors import BackendUnavailable, ExportError

Contract = Literal["segship", "official", "ascend", "samexporter"]
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnxslim", "safetensors")


@command
def export(
    checkpoint: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    contract: Contract = "segship",
    opset: int | None = None,
    simplify: Annotated[bool, Parameter(negative="--no-simplify")] = True,
    single_mask: bool | None = None,
    image_size: int | None = None,
    licence: str | None = None,
    clean_masks: bool | None = None,
    target: str | None = None,
    size: str | None = None,
    batch: str | None = None,
    output: Literal["class_map", "logits"] | None = None,
    classes: Path | None = None,
    scale: str | None = None,
    semantic_window: Literal["all", "first-two"] | None = None,
    measure: Annotated[bool, Parameter(negative="--no-measure")] = True,
    force: bool = False,
    json: Json = False,
) -> None:
    """Export a checkpoint to a checked bundle.

    Or, with --contract, to the graphs that another program expects. Every step is compared with the torch model on
    several images and prompts; past the bar nothing is written.

    Parameters
    ----------
    checkpoint
        A .pth, .pt or .safetensors file, or a known name that was fetched (vit_b, semask_s_cityscapes, ...).
    out
        Folder to make; for a known name the bundle goes to the cache folder when left out.
    contract
        segship: a bundle. official: the reference's decoder. ascend: the Ascend guides' graphs. samexporter: its pair.
    opset
        ONNX opset, 14 to 24; the contract's own when left out (segship 18, official and samexporter 17, ascend 14).
    simplify
        Run onnxslim on the traced graph.
    single_mask
        Promptable models, the other contracts: one mask, chosen by the reference's rule.
    image_size
        Promptable models: export for another model frame; position tables are resized and the change is recorded.
    licence
        Licence of the weights, for the manifest of a checkpoint that is not a published one.
    clean_masks
        Promptable models: whether the bundle cleans masks: keeps the clicked piece, fills small holes, clears outside
        the box. Off for all but tiny when left out.
    target
        Promptable models: the engine that the encoder is written for: onnxruntime (when left out), openvino, or plain;
        any engine runs each of them.
    size
        Semantic models: HEIGHT,WIDTH of the only pictures that the graph takes, or dynamic; dynamic when left out.
    batch
        Semantic models: dynamic (when left out) or 1; with --contract ascend any number.
    output
        Semantic models: class_map (when left out), or logits, which windows and several scales need.
    classes
        Semantic models: JSON file with the names of the classes, where they are none of a known data set's.
    scale
        Semantic models: LONG,SHORT, the most that the longer and the shorter side of a picture become; what the model
        was published with when left out.
    semantic_window
        Semantic models: stages whose semantic layer works in windows. No weight shows it, and a wrong choice gives
        wrong class maps without complaint; the published rule when left out.
    measure
        Compare and time every installed backend on the finished bundle, for --backend auto; see `segship tune`.
    force
        Replace a bundle that is already there.

    Examples
    --------
    segship export vit_b -o sam_vit_b
    """
    source, folder = _checkpoint_file(checkpoint), out or _default_bundle(checkpoint)
    # torch and onnx take seconds to import and are not installed everywhere.
    _require_exporter()
    from segship.cli.export import run_export

    given: dict[str, Any] = {
        "contract": contract, "opset": opset, "simplify": simplify, "licence": licence or _known_licence(checkpoint),
        "measure": measure, "force": force, "single_mask": single_mask, "image_size": image_size,
        "clean_masks": clean_masks, "target": target, "size": size, "batch": batch, "output": output,
        "classes": classes, "scale": scale, "semantic_window": semantic_window,
    }  # fmt: skip
    run_export(source, folder, given, json=json)


def _known_licence(checkpoint: str) -> str | None:
    return SEMASK_LICENCE if checkpoint in SEMANTIC_CHECKPOINTS and not Path(checkpoint).exists() else None


def _checkpoint_file(checkpoint: str) -> Path:
    if _is_known(checkpoint) and not Path(checkpoint).exists():
        from segship.fetch import checkpoint_path

        path = checkpoint_path(checkpoint)
        if not path.is_file():
            raise ExportError(
                f"the checkpoint {checkpoint!r} is not on this machine; run: segship fetch {checkpoint}",
                code="no_checkpoint",
            )
        return path
    return Path(checkpoint)


def _is_known(checkpoint: str) -> bool:
    return checkpoint in KNOWN_CHECKPOINTS or checkpoint in SEMANTIC_CHECKPOINTS


def _default_bundle(checkpoint: str) -> Path:
    if _is_known(checkpoint):
        from segship.catalog import bundle_folder

        folder = bundle_folder(checkpoint)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder
    raise ExportError("say where the bundle goes: -o BUNDLE", code="no_output")


def _require_exporter() -> None:
    missing = [name for name in EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f'exporting needs {", ".join(missing)}, not installed here; run: pip install "segship[export]"',
            code="export_packages_missing",
        )
