// SPDX-License-Identifier: Apache-2.0
// One mask as COCO's run lengths: what lies under a pixel, its outline, its pixels, without a picture-sized array.
//
// Run lengths go column by column from the top, and begin with pixels that are not set. A ring is a list of corners
// x0 y0 x1 y1 ... along the edges of pixels: clockwise around pixels, counterclockwise around a hole. Pixels that touch
// in a corner alone are apart.

const LARGEST_RUN = 2 ** 32 - 1;

/** Return run lengths of COCO's compressed string or of a plain list, checked against the size. */
function readRuns({ size: [height, width], counts }) {
  const runs = typeof counts === "string" ? readCompressed(counts) : counts;
  const sum = runs.reduce((total, run) => (Number.isInteger(run) && run >= 0 ? total + run : NaN), 0);
  if (sum !== height * width) throw new Error(`runs of ${sum} pixels, the mask has ${height} x ${width}`);
  return runs;
}

function readCompressed(text) {
  const runs = [];
  for (let place = 0; place < text.length; ) {
    let value = 0;
    let group;
    let shift = 1;
    do {
      group = text.charCodeAt(place++) - 48;
      if (!(group >= 0 && group < 64)) throw new Error(`no run lengths: "${text.slice(0, 20)}"`);
      value += (group & 31) * shift;
      shift *= 32;
    } while (group & 32);
    if (group & 16) value -= shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    if (runs[runs.length - 1] > LARGEST_RUN) throw new Error("a run is too long");
  }
  return runs;
}

/** The parts of intervals a that are in none of b; both sorted, without overlaps. */
function subtract(a, b, use) {
  let other = 0;
  for (const [from, to] of a) {
    let start = from;
    while (other < b.length && b[other][1] <= start) other++;
    for (let place = other; place < b.length && b[place][0] < to; place++) {
      if (b[place][0] > start) use(start, b[place][0]);
      start = Math.max(start, b[place][1]);
    }
    if (start < to) use(start, to);
  }
}

export class Mask {
  constructor(segmentation) {
    this.rle = segmentation;
    [this.height, this.width] = segmentation.size;
    const runs = readRuns(segmentation);
    // starts[i] is the pixel at which run i begins.
    this.starts = new Float64Array(runs.length + 1);
    this.area = 0;
    runs.forEach((run, index) => {
      this.starts[index + 1] = this.starts[index] + run;
      if (index % 2) this.area += run;
    });
  }

  /** Whether the pixel at x, y is set. */
  has(x, y) {
    if (!(x >= 0 && y >= 0 && x < this.width && y < this.height)) return false;
    const pixel = Math.floor(x) * this.height + Math.floor(y);
    let low = 0;
    let high = this.starts.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.starts[middle] <= pixel) low = middle;
      else high = middle;
    }
    return low % 2 === 1;
  }

  /** Call use(x, [[y0, y1], ...]) for every column with set pixels, from the left. */
  eachColumn(use) {
    let column = -1;
    let spans = [];
    const add = (x, from, to) => {
      if (x !== column) {
        if (spans.length) use(column, spans);
        column = x;
        spans = [];
      }
      const last = spans[spans.length - 1];
      if (last && last[1] === from) last[1] = to;
      else spans.push([from, to]);
    };
    for (let index = 1; index < this.starts.length - 1; index += 2) {
      let pixel = this.starts[index];
      const end = this.starts[index + 1];
      while (pixel < end) {
        const x = Math.floor(pixel / this.height);
        const top = x * this.height;
        add(x, pixel - top, Math.min(end - top, this.height));
        pixel = top + this.height;
      }
    }
    if (spans.length) use(column, spans);
  }

  /** The box around the set pixels: x0 y0 x1 y1, half-open; zeros if there are none. */
  get box() {
    if (!this.knownBox) {
      const box = [Infinity, Infinity, 0, 0];
      this.eachColumn((x, spans) => {
        box[0] = Math.min(box[0], x);
        box[1] = Math.min(box[1], spans[0][0]);
        box[2] = x + 1;
        box[3] = Math.max(box[3], spans[spans.length - 1][1]);
      });
      this.knownBox = this.area ? box : [0, 0, 0, 0];
    }
    return this.knownBox;
  }

  /** Bytes of a part of the mask, row by row: 255 where it is set. */
  pixels([x0, y0, x1, y1] = [0, 0, this.width, this.height]) {
    const width = x1 - x0;
    const bytes = new Uint8Array(width * (y1 - y0));
    this.eachColumn((x, spans) => {
      if (x < x0 || x >= x1) return;
      for (const [from, to] of spans) {
        for (let y = Math.max(from, y0); y < Math.min(to, y1); y++) bytes[(y - y0) * width + x - x0] = 255;
      }
    });
    return bytes;
  }

  /** Outlines along the edges of pixels. */
  get rings() {
    this.knownRings ??= linkEdges(outlineEdges(this), this.width + 1);
    return this.knownRings;
  }

  /** The outlines as a path in pixels of the picture, to fill by the even-odd rule. */
  get path() {
    if (!this.knownPath) {
      const path = new Path2D();
      for (const ring of this.rings) {
        path.moveTo(ring[0], ring[1]);
        for (let place = 2; place < ring.length; place += 2) path.lineTo(ring[place], ring[place + 1]);
        path.closePath();
      }
      this.knownPath = path;
    }
    return this.knownPath;
  }
}

/** Directed edges x0 y0 x1 y1 of the mask's outline, each as long as it is straight, set pixels to the right. */
function outlineEdges(mask) {
  const edges = [];
  let tops = new Map();
  let bottoms = new Map();
  let before = [];
  let last = -1;
  const step = (x, spans) => {
    subtract(before, spans, (from, to) => edges.push(x, from, x, to));
    subtract(spans, before, (from, to) => edges.push(x, to, x, from));
    const nextTops = new Map();
    const nextBottoms = new Map();
    for (const [from, to] of spans) {
      nextTops.set(from, tops.get(from) ?? x);
      nextBottoms.set(to, bottoms.get(to) ?? x);
    }
    for (const [y, start] of tops) if (!nextTops.has(y)) edges.push(start, y, x, y);
    for (const [y, start] of bottoms) if (!nextBottoms.has(y)) edges.push(x, y, start, y);
    [tops, bottoms, before, last] = [nextTops, nextBottoms, spans, x];
  };
  mask.eachColumn((x, spans) => {
    if (before.length && last + 1 < x) step(last + 1, []);
    step(x, spans);
  });
  if (before.length) step(last + 1, []);
  return edges;
}

/** Join directed edges to rings; where two begin in one corner, the one that turns right goes on. */
function linkEdges(edges, stride) {
  const first = new Map();
  const second = new Map();
  for (let edge = 0; edge < edges.length; edge += 4) {
    const corner = edges[edge + 1] * stride + edges[edge];
    (first.has(corner) ? second : first).set(corner, edge);
  }
  const used = new Uint8Array(edges.length / 4);
  const direction = (edge) => [edges[edge + 2] - edges[edge], edges[edge + 3] - edges[edge + 1]];
  const turnsRight = (edge, other) => {
    const [[ax, ay], [bx, by]] = [direction(edge), direction(other)];
    return ax * by - ay * bx > 0;
  };
  const next = (edge) => {
    const corner = edges[edge + 3] * stride + edges[edge + 2];
    const other = second.get(corner);
    return other !== undefined && turnsRight(edge, other) ? other : first.get(corner);
  };
  const rings = [];
  for (let start = 0; start < edges.length; start += 4) {
    if (used[start / 4]) continue;
    const ring = [];
    for (let edge = start; !used[edge / 4]; edge = next(edge)) {
      used[edge / 4] = 1;
      ring.push(edges[edge], edges[edge + 1]);
    }
    rings.push(ring);
  }
  return rings;
}

/** Twice the area inside a ring: negative for a hole. */
export function ringArea(ring) {
  let sum = 0;
  for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) sum += ring[j] * ring[i + 1] - ring[i] * ring[j + 1];
  return sum;
}

/** Leave out corners that are within a tolerance in pixels of the line between others (Douglas and Peucker). */
export function simplifyRing(ring, tolerance) {
  const count = ring.length / 2;
  const distance = (place, a, b) => {
    const [dx, dy] = [ring[2 * b] - ring[2 * a], ring[2 * b + 1] - ring[2 * a + 1]];
    const [px, py] = [ring[2 * place] - ring[2 * a], ring[2 * place + 1] - ring[2 * a + 1]];
    const along = Math.max(0, Math.min(1, (px * dx + py * dy) / (dx * dx + dy * dy || 1)));
    return Math.hypot(px - along * dx, py - along * dy);
  };
  const farthest = (a, b) => {
    let [best, place] = [0, a];
    for (let i = a + 1; i < b; i++) {
      const found = distance(i % count, a % count, b % count);
      if (found > best) [best, place] = [found, i];
    }
    return [best, place];
  };
  const opposite = farthest(0, count)[1] || Math.floor(count / 2);
  const kept = new Set([0, opposite]);
  const parts = [[0, opposite], [opposite, count]];
  while (parts.length) {
    const [a, b] = parts.pop();
    const [best, place] = farthest(a, b);
    if (best > tolerance) {
      kept.add(place);
      parts.push([a, place], [place, b]);
    }
  }
  return [...kept].sort((a, b) => a - b).flatMap((i) => [ring[2 * i], ring[2 * i + 1]]);
}
