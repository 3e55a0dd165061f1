// SPDX-License-Identifier: Apache-2.0
// Files of masks, made here: PNG masks, COCO, LabelMe, SVG, and the cut-out with alpha.
//
// What they hold follows `segship.writers`: COCO with compressed run lengths and iscrowd 1, LabelMe with polygons and a
// mask shape where there is a hole. An item is {name, color, mask, score}; a file is {name, type, parts}.

import { ringArea, simplifyRing } from "./mask.js";
import { decodeUpright } from "./picture.js";

const LABELME_VERSION = "5.5.0";
const LABELME_TOLERANCE = 1;
const LONGEST_STEM = 80;
// What browsers refuse beyond.
const MOST_CANVAS_PIXELS = 2 ** 28;
const LONGEST_CANVAS_SIDE = 16384;

const encoder = new TextEncoder();

/** A name that every file system takes and that reads as what it is; "image" if nothing is left. */
export function safeName(text, nameless = "image") {
  const kept = Array.from(text.normalize("NFC"))
    .map((letter) => (/[\p{L}\p{M}\p{N} ._()-]/u.test(letter) ? letter : "_"))
    .join("");
  const stem = Array.from(kept.replace(/^[\s.-]+|[\s.]+$/g, "")).slice(0, LONGEST_STEM).join("").trim();
  const device = /^(con|prn|aux|nul|com\d|lpt\d)(\.|$)/i.test(stem);
  return stem.replaceAll("_", "") ? (device ? `_${stem}` : stem) : nameless;
}

/** The name of a file without folders and extension, safe. */
export function safeStem(name) {
  return safeName(name.split(/[/\\]/).pop().replace(/\.[^.]{1,8}$/, ""));
}

const safeFileName = (name) => safeName(name.split(/[/\\]/).pop());

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(parts) {
  let crc = 0xffffffff;
  for (const part of parts) for (const byte of part) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 255];
  return (crc ^ 0xffffffff) >>> 0;
}

function bigEndian(...values) {
  const bytes = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, index) => bytes.setUint32(4 * index, value));
  return new Uint8Array(bytes.buffer);
}

/** Return a PNG with one channel of 8 bits. */
export async function grayPng(width, height, pixels) {
  const rows = new Uint8Array((width + 1) * height);
  for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = new Uint8Array([...bigEndian(width, height), 8, 0, 0, 0, 0]);
  const chunk = (kind, body) => {
    const name = encoder.encode(kind);
    return [bigEndian(body.length), name, body, bigEndian(crc32([name, body]))];
  };
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  const chunks = [...chunk("IHDR", header), ...chunk("IDAT", data), ...chunk("IEND", new Uint8Array())];
  return new Uint8Array(await new Blob([signature, ...chunks]).arrayBuffer());
}

/** Return files as one ZIP, not compressed: PNG is already. */
export function zip(files) {
  const [parts, directory] = [[], []];
  let place = 0;
  for (const { name, bytes } of files) {
    const text = encoder.encode(name);
    const shared = new DataView(new ArrayBuffer(26));
    // Version 2.0; bit 11 says that the name is UTF-8; the date is 1980-01-01.
    [[0, 20], [2, 0x800], [8, 0x21], [22, text.length]].forEach(([at, value]) => shared.setUint16(at, value, true));
    [[10, crc32([bytes])], [14, bytes.length], [18, bytes.length]].forEach(([at, value]) => shared.setUint32(at, value, true));
    const entry = new DataView(new ArrayBuffer(14));
    entry.setUint32(10, place, true);
    parts.push(encoder.encode("PK\x03\x04"), new Uint8Array(shared.buffer), text, bytes);
    directory.push(encoder.encode("PK\x01\x02\x14\x00"), new Uint8Array(shared.buffer), new Uint8Array(entry.buffer), text);
    place += 30 + text.length + bytes.length;
  }
  const end = new DataView(new ArrayBuffer(18));
  [4, 6].forEach((at) => end.setUint16(at, files.length, true));
  end.setUint32(8, directory.reduce((sum, part) => sum + part.length, 0), true);
  end.setUint32(12, place, true);
  return [...parts, ...directory, encoder.encode("PK\x05\x06"), new Uint8Array(end.buffer)];
}

async function masksFile({ stem }, items) {
  const files = [];
  for (const [index, { name, mask }] of items.entries()) {
    const number = String(index + 1).padStart(2, "0");
    const bytes = await grayPng(mask.width, mask.height, mask.pixels());
    files.push({ name: `${stem}_${number}_${safeName(name, "mask")}.png`, bytes });
  }
  if (files.length === 1) return { name: files[0].name, type: "image/png", parts: [files[0].bytes] };
  return { name: `${stem}_masks.zip`, type: "application/zip", parts: zip(files) };
}

const json = (name, value) => ({ name, type: "application/json", parts: [JSON.stringify(value)] });

/** The box as COCO has it: x y width height. */
function cocoBox(mask) {
  const [x0, y0, x1, y1] = mask.box;
  return [x0, y0, x1 - x0, y1 - y0];
}

async function cocoFile({ stem, fileName, width, height }, items) {
  const names = [...new Set(items.map((item) => item.name))];
  const annotations = items.map(({ name, mask, score }, index) => ({
    id: index + 1,
    image_id: 1,
    category_id: names.indexOf(name) + 1,
    iscrowd: 1,
    area: mask.area,
    bbox: cocoBox(mask),
    segmentation: mask.rle,
    score,
  }));
  return json(`${stem}.coco.json`, {
    images: [{ id: 1, width, height, file_name: safeFileName(fileName) }],
    annotations,
    categories: names.map((name, index) => ({ id: index + 1, name, supercategory: "object" })),
  });
}

async function labelmeShapes({ name, mask, score }, group) {
  const shared = { label: name, group_id: group, description: "", flags: {}, score };
  if (!mask.rings.some((ring) => ringArea(ring) < 0)) {
    return mask.rings.map((ring) => {
      const corners = simplifyRing(ring, LABELME_TOLERANCE);
      const points = Array.from({ length: corners.length / 2 }, (_, i) => [corners[2 * i], corners[2 * i + 1]]);
      return { ...shared, points, shape_type: "polygon", mask: null };
    }).filter((shape) => shape.points.length > 2);
  }
  const [x0, y0, x1, y1] = mask.box;
  const png = await grayPng(x1 - x0, y1 - y0, mask.pixels(mask.box));
  const text = btoa(Array.from(png, (byte) => String.fromCharCode(byte)).join(""));
  // LabelMe names the first and the last pixel of the box.
  return [{ ...shared, points: [[x0, y0], [x1 - 1, y1 - 1]], shape_type: "mask", mask: text }];
}

async function labelmeFile({ stem, fileName, width, height }, items) {
  const shapes = await Promise.all(items.map(labelmeShapes));
  return json(`${stem}.json`, {
    version: LABELME_VERSION,
    flags: {},
    shapes: shapes.flat(),
    imagePath: safeFileName(fileName),
    imageData: null,
    imageHeight: height,
    imageWidth: width,
  });
}

/** Text for XML: what it cannot hold is left out. */
function xml(text) {
  const allowed = text.toWellFormed().replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "");
  return allowed.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

function svgPath(ring) {
  let text = `M${ring[0]} ${ring[1]}`;
  for (let i = 2; i < ring.length; i += 2) {
    text += ring[i] === ring[i - 2] ? `V${ring[i + 1]}` : `H${ring[i]}`;
  }
  return `${text}Z`;
}

async function svgFile({ stem, width, height }, items) {
  const paths = items.map(({ name, color, mask }) => {
    const outline = mask.rings.map(svgPath).join("");
    return `  <path fill="${xml(color)}" fill-opacity="0.6" fill-rule="evenodd" d="${outline}"><title>${xml(name)}</title></path>`;
  });
  const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`;
  return { name: `${stem}.svg`, type: "image/svg+xml", parts: [[head, ...paths, "</svg>", ""].join("\n")] };
}

/** The pixels under any of the masks, in the box around all of them; the rest is transparent. */
async function cutOutFile({ stem, blob }, items) {
  const boxes = items.filter(({ mask }) => mask.area).map(({ mask }) => mask.box);
  const box = [Math.min, Math.min, Math.max, Math.max].map((end, i) => end(...boxes.map((one) => one[i])));
  const [width, height] = [box[2] - box[0], box[3] - box[1]];
  if (!(width * height <= MOST_CANVAS_PIXELS && Math.max(width, height) <= LONGEST_CANVAS_SIDE)) throw new RangeError(`${width} x ${height}`);
  const picture = await decodeUpright(blob);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, -box[0], -box[1]);
  picture.close();
  const image = context.getImageData(0, 0, width, height);
  const inside = new Uint8Array(width * height);
  for (const { mask } of items) mask.pixels(box).forEach((byte, index) => (inside[index] |= byte));
  const colors = new Uint32Array(image.data.buffer);
  inside.forEach((byte, index) => {
    if (!byte) colors[index] = 0;
  });
  context.putImageData(image, 0, 0);
  const bytes = await canvas.convertToBlob({ type: "image/png" });
  return { name: `${stem}_cutout.png`, type: "image/png", parts: [bytes] };
}

export const FORMATS = { png: masksFile, coco: cocoFile, labelme: labelmeFile, svg: svgFile, cutout: cutOutFile };

/** Give a file to the browser's downloads. */
export function download({ name, type, parts }) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
