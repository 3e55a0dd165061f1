# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes with the truth of every leaf, object and group: what ``tiny`` learns from.

A scene is layers of things that cover each other (dead leaves), on a background of stuff regions, a room, a table or
open ground, then photographed. With a bank of photographs some surfaces and backgrounds are pieces of them. The same
seed gives the same scene from the same banks.

    python -m recipes.tiny.scenes --count 2000 --out POOL --processes 2
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.tiny.backgrounds import BACKGROUNDS, draw_outline, photograph_behind
from recipes.tiny.drawings import DrawingBank
from recipes.tiny.figures import put_figure
from recipes.tiny.painting import Canvas, Material
from recipes.tiny.photograph import photograph
from recipes.tiny.shapes import BODIES, SHAPES, Mask, Part, Placement, pick, rasterise
from recipes.tiny.surfaces import PhotographBank
from recipes.tiny.textures import TextureBank

SHARD_SCENES = 250
BANK_SEED = 1
FIGURES = 0.55
"""How often a thing, or a group of things, is a drawing, if there is a bank of them."""
PHOTOGRAPH_BEHIND = 0.22
"""How often things stand before a photograph, if there is a bank of them."""
SUBJECT = 0.4
"""How often a few things were what the photographer looked at: whole and near the middle."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture and what is in it.

    Attributes
    ----------
    image
        (S, S, 3) uint8 RGB.
    leaves
        (S, S) uint8, the number of the visible piece at every pixel; 0 is none.
    object_of_leaf, group_of_leaf
        (251,) uint8, number of the object and of the group of alike objects a leaf belongs to; group 0 is none.
    """

    image: NDArray[np.uint8]
    leaves: NDArray[np.uint8]
    object_of_leaf: NDArray[np.uint8]
    group_of_leaf: NDArray[np.uint8]


@functools.cache
def _bank(seed: int) -> TextureBank:
    return TextureBank(seed)


def make_scene(
    seed: int, size: int = 320, drawings: DrawingBank | None = None, photographs: PhotographBank | None = None
) -> Scene:
    """Make one scene; the same for the same seed, size, drawings and photographs."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, 7])
    bank = _bank(BANK_SEED)
    canvas = Canvas(rng, bank, size, photographs)
    if photographs is not None and rng.random() < PHOTOGRAPH_BEHIND:
        ground = photograph_behind(canvas)
    else:
        ground = BACKGROUNDS[str(rng.choice(list(BACKGROUNDS), p=[0.36, 0.14, 0.16, 0.34]))](canvas)
    if rng.random() < 0.3:
        canvas.blur(rng.uniform(0.8, 3.5) * size / 256)
    _populate(canvas, ground, drawings)
    x, y = rng.uniform(0, size, 2)
    patch = draw_outline(canvas, Placement(x, y, rng.uniform(40, 140) * size / 256))
    picture = photograph(canvas.image, patch, rng, bank)
    return Scene(picture, canvas.leaves, canvas.object_of_leaf, canvas.group_of_leaf)


# Things


def _thing_material(canvas: Canvas) -> Material:
    """Draw a material; now and then nearly that of something already there, which is camouflage."""
    rng = canvas.rng
    if canvas.last_materials and rng.random() < 0.1:
        near = canvas.last_materials[rng.integers(len(canvas.last_materials))]
        shift = np.float32(rng.normal(0, 14) + rng.choice([-12, 12]))
        table, colour = (np.clip(colours + shift, 0, 255) for colours in (near.table, near.colour))
        return replace(near, table=table, angle=rng.uniform(0, 6), colour=colour)
    return canvas.material()


def _body(canvas: Canvas, placement: Placement, parts: list[Part], materials: list[Material], group: int) -> None:
    """Put down a thing of named parts."""
    rng, owner = canvas.rng, (canvas.new_object(), group)
    masks = [rasterise(part.polygons, placement, canvas.size) for part in parts]
    silhouette = np.maximum.reduce(masks)
    if rng.random() < 0.35:
        canvas.cast_shadow(silhouette)
    elif rng.random() < 0.6:
        canvas.ground_shadow(silhouette)
    rounded = rng.random() < 0.7
    for part, mask in zip(parts, masks, strict=True):
        canvas.put(mask, materials[part.slot % len(materials)], owner, shaded=rounded)


def _body_materials(canvas: Canvas) -> list[Material]:
    """Draw four materials; slots may share one, so that a part is told by its form alone."""
    rng = canvas.rng
    materials = [_thing_material(canvas) for _ in range(4)]
    for slot in (1, 2, 3):
        if rng.random() < 0.2:
            materials[slot] = materials[0]
        elif rng.random() < 0.25:
            materials[slot] = canvas.material(materials[0].colour * np.float32(rng.uniform(0.6, 1.3)))
    return materials


def _blob(canvas: Canvas, placement: Placement, group: int, material: Material, name: str | None, detail: bool) -> None:
    """Put down a thing of one outline, with attached pieces and things drawn on it when ``detail``."""
    rng, owner, r = canvas.rng, (canvas.new_object(), group), placement.radius
    mask = draw_outline(canvas, placement, name)
    extra: list[tuple[Mask, Material]] = []
    if detail and rng.random() < 0.4:
        for _ in range(int(rng.integers(1, 5))):
            angle, reach = rng.uniform(0, 2 * np.pi), r * rng.uniform(0.6, 1.1)
            x, y = placement.x + reach * np.cos(angle), placement.y + reach * np.sin(angle)
            piece = draw_outline(canvas, Placement(x, y, r * rng.uniform(0.2, 0.6), rng.uniform(0, 6)))
            extra.append((piece, material if rng.random() < 0.5 else _thing_material(canvas)))
    if rng.random() < 0.35:
        canvas.cast_shadow(np.maximum.reduce([mask, *(piece for piece, _ in extra)]))
    behind = rng.random() < 0.5
    layers = [*extra, (mask, material)] if behind else [(mask, material), *extra]
    for layer, its_material in layers:
        canvas.put(layer, its_material, owner)
    if detail and r > 14 * canvas.size / 256:
        _decorate(canvas, placement, owner, mask, material)


def _decorate(canvas: Canvas, placement: Placement, owner: tuple[int, int], mask: Mask, material: Material) -> None:
    """Cut a thing in two tones, or draw smaller things inside it; all stay parts of it."""
    rng, (x, y, r) = canvas.rng, placement[:3]
    choice = rng.random()
    if choice < 0.35:
        along = np.linspace(-1.6, 1.6, 9)
        edge = rng.normal(0, 0.12, 9) + rng.normal() * 0.3
        far = np.stack([[*along, 2, -2], [*edge, 3, 3]], 1)
        half = rasterise([far], Placement(x, y, r, rng.uniform(0, 2 * np.pi)), canvas.size)
        base = material.colour if rng.random() < 0.3 else None
        canvas.put(np.minimum(half, mask), canvas.material(base), owner)
    if choice < 0.2:
        return
    alike, name, its_material = rng.random() < 0.35, pick(rng, SHAPES), canvas.material()
    radius = r * rng.uniform(0.12, 0.5)
    for _ in range(int(rng.integers(1, 5))):
        dx, dy = rng.normal(0, 0.5, 2) * r
        here = Placement(x + dx, y + dy, radius if alike else r * rng.uniform(0.12, 0.55), rng.uniform(0, 6))
        piece = np.minimum(draw_outline(canvas, here, name if alike else None), mask)
        canvas.put(piece, its_material if alike else canvas.material(), owner, shaded=not alike)


def _draw_placement(canvas: Canvas, radius: float, ground: float | None) -> Placement:
    rng, size = canvas.rng, canvas.size
    x, y = rng.uniform(-0.05, 1.05, 2) * size
    if ground is not None and rng.random() < 0.7:
        # Standing on the ground: feet between the horizon and the lower edge, nearer things lower.
        y = rng.uniform(ground, 1.1 * size) - 0.8 * radius
    return Placement(x, y, radius, rng.uniform(0, 2 * np.pi), float(np.exp(rng.normal(0, 0.45))))


def _upright(canvas: Canvas, placement: Placement) -> Placement:
    rng = canvas.rng
    angle = rng.normal() * 0.12 if rng.random() < 0.85 else rng.uniform(0, 2 * np.pi)
    aspect = float(np.exp(rng.normal(0, 0.2)))
    return Placement(placement.x, placement.y, placement.radius, angle, aspect, bool(rng.random() < 0.5))


def _figure_materials(canvas: Canvas) -> list[Material]:
    """Draw what a drawing wears; now and then nearly what stands beside it, which is camouflage."""
    return [_thing_material(canvas), *_body_materials(canvas)[1:]]


def _one(canvas: Canvas, placement: Placement, drawings: DrawingBank | None) -> None:
    rng = canvas.rng
    if drawings is not None and rng.random() < FIGURES:
        drawing = drawings[int(rng.integers(len(drawings)))]
        put_figure(canvas, drawing, _upright(canvas, placement), 0, _figure_materials(canvas), style=rng.random())
    elif rng.random() < 0.45:
        parts = BODIES[pick(rng, BODIES)][1](rng)
        _body(canvas, _upright(canvas, placement), parts, _body_materials(canvas), 0)
    else:
        _blob(canvas, placement, 0, _thing_material(canvas), None, rng.random() < 0.55)


def _several(canvas: Canvas, placement: Placement, drawings: DrawingBank | None) -> None:
    """Put down a group of alike things, in a row or in a heap."""
    rng, group, r = canvas.rng, canvas.new_group(), placement.radius
    drawing = None
    if drawings is not None and rng.random() < FIGURES:
        drawing = drawings[int(rng.integers(len(drawings)))]
    style = rng.random()
    body = pick(rng, BODIES) if rng.random() < 0.4 else None
    name, material, materials = pick(rng, SHAPES), _thing_material(canvas), _body_materials(canvas)
    detail, in_row, turn = rng.random() < 0.3, rng.random() < 0.5, rng.uniform(0, 2 * np.pi)
    turn = turn if rng.random() < 0.5 else 0.0
    step = r * rng.uniform(0.9, 2.2)
    for i in range(int(rng.integers(2, 8))):
        dx, dy = (np.cos(turn) * step * i, np.sin(turn) * step * i) if in_row else rng.normal(0, 1.4, 2) * r
        angle = placement.angle if rng.random() < 0.5 else rng.uniform(0, 6)
        here = Placement(placement.x + dx, placement.y + dy, r * rng.uniform(0.8, 1.2), angle, placement.aspect)
        if drawing is not None:
            put_figure(canvas, drawing, _upright(canvas, here), group, materials, style=style)
        elif body:
            alike = materials if rng.random() < 0.6 else _body_materials(canvas)
            _body(canvas, _upright(canvas, here), BODIES[body][1](rng), alike, group)
        else:
            same = rng.random() < 0.7
            _blob(canvas, here, group, material if same else _thing_material(canvas), name if same else None, detail)


def _populate(canvas: Canvas, ground: float | None, drawings: DrawingBank | None) -> None:
    rng, scale = canvas.rng, canvas.size / 256
    count = int(rng.integers(1, 5)) if rng.random() < 0.3 else int(rng.integers(2, 13) * rng.uniform(0.5, 1.4))
    radii = np.exp(rng.uniform(np.log(12), np.log(110), count)) * scale
    if rng.random() < 0.6:
        radii = np.sort(radii)[::-1]
    looked_at = int(rng.integers(1, 4)) if rng.random() < SUBJECT else 0
    focus = int(rng.integers(1, count)) if count > 2 and rng.random() < 0.25 else -1
    for i, radius in enumerate(radii):
        if i == focus:
            canvas.blur(rng.uniform(0.8, 3) * scale)
        placement = _draw_placement(canvas, float(radius), ground)
        if i < looked_at:
            x, y = rng.normal(0.5, 0.16, 2).clip(0.15, 0.85) * canvas.size
            placement = placement._replace(x=x, y=y, radius=rng.uniform(0.12, 0.34) * canvas.size)
        if radius < 45 * scale and rng.random() < 0.22:
            _several(canvas, placement, drawings)
        else:
            _one(canvas, placement, drawings)


# The pool on disk


class ShardJob(NamedTuple):
    """What one shard is made with."""

    folder: Path
    first: int
    count: int
    size: int
    drawings: Path | None
    photographs: Path | None
    held_out: bool


@functools.cache
def _drawings(path: Path | None, held_out: bool) -> DrawingBank | None:
    return DrawingBank(path, held_out=held_out) if path else None


@functools.cache
def _photographs(path: Path | None, held_out: bool) -> PhotographBank | None:
    return PhotographBank(path, held_out=held_out) if path else None


def write_shard(job: ShardJob) -> Path:
    """Write the arrays ``FIRST_{image,leaves,tables}.npy`` of ``count`` scenes from seed ``first`` on."""
    folder, first, count, size = job[:4]
    banks = _drawings(job.drawings, job.held_out), _photographs(job.photographs, job.held_out)
    images = np.zeros((count, size, size, 3), np.uint8)
    leaves = np.zeros((count, size, size), np.uint8)
    tables = np.zeros((count, 2, 251), np.uint8)
    for i in range(count):
        scene = make_scene(first + i, size, *banks)
        images[i], leaves[i] = scene.image, scene.leaves
        tables[i] = scene.object_of_leaf, scene.group_of_leaf
    stem = folder / f"{first:08d}"
    # The tables come last: a shard counts once they are there.
    for name, values in (("image", images), ("leaves", leaves), ("tables", tables)):
        partial = stem.with_name(f"{stem.name}_{name}.part")
        with partial.open("wb") as file:
            np.save(file, values)
        partial.rename(stem.with_name(f"{stem.name}_{name}.npy"))
    return stem


def write_pool(
    folder: Path,
    count: int,
    *,
    first: int = 0,
    size: int = 320,
    processes: int = 1,
    drawings: Path | None = None,
    photographs: Path | None = None,
    held_out: bool = False,
) -> None:
    """Write ``count`` scenes as shards of `SHARD_SCENES`; shards that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(first, first + count, SHARD_SCENES)
    jobs = [
        ShardJob(folder, start, min(SHARD_SCENES, first + count - start), size, drawings, photographs, held_out)
        for start in starts
    ]
    jobs = [job for job in jobs if not (folder / f"{job.first:08d}_tables.npy").exists()]
    begun = time.monotonic()
    with multiprocessing.Pool(processes) as pool:
        for done, stem in enumerate(pool.imap_unordered(write_shard, jobs), 1):
            print(f"{done}/{len(jobs)} {stem.name} {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    """Write a pool of scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drawings", type=Path, help="a bank that recipes.tiny.drawings wrote")
    parser.add_argument("--photographs", type=Path, help="a bank that recipes.tiny.surfaces wrote")
    parser.add_argument("--held-out", action="store_true", help="use only drawings and photographs kept for validation")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    write_pool(
        args.out,
        args.count,
        first=args.first,
        size=args.size,
        processes=args.processes,
        drawings=args.drawings,
        photographs=args.photographs,
        held_out=args.held_out,
    )


if __name__ == "__main__":
    main()
