// SPDX-License-Identifier: Apache-2.0
// From the bytes of a picture to upright pixels, as the service reads them.
//
// Browsers turn JPEG and PNG by their EXIF orientation. WebP is turned by some only, so it is turned here: its EXIF
// chunk gets another name in the copy that the browser decodes.

const LARGEST_SIDE = 4096;
const SMALLEST_SIDE = 1024;
const MOST_CHUNKS = 64;
const MOST_EXIF_BYTES = 65536;
const ORIENTATION = 0x0112;

// What takes the stored pixels to upright ones, in units of their sides: x' = a x + c y + e, y' = b x + d y + f.
const UPRIGHT = [
  [1, 0, 0, 1, 0, 0],
  [-1, 0, 0, 1, 1, 0],
  [-1, 0, 0, -1, 1, 1],
  [1, 0, 0, -1, 0, 1],
  [0, 1, 1, 0, 0, 0],
  [0, 1, -1, 0, 1, 0],
  [0, -1, -1, 0, 1, 1],
  [0, -1, 1, 0, 0, 1],
];

const textOf = (view, start, length) => String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + start, length));

async function bytesOf(blob, start, length) {
  return new DataView(await blob.slice(start, start + length).arrayBuffer());
}

/** The place and size of the EXIF chunk of a WebP file; null of anything else. */
async function findExif(blob) {
  const head = await bytesOf(blob, 0, 12);
  if (head.byteLength < 12 || textOf(head, 0, 4) !== "RIFF" || textOf(head, 8, 4) !== "WEBP") return null;
  for (let place = 12, seen = 0; seen < MOST_CHUNKS; seen++) {
    const chunk = await bytesOf(blob, place, 8);
    if (chunk.byteLength < 8) return null;
    const size = chunk.getUint32(4, true);
    if (textOf(chunk, 0, 4) === "EXIF") return { place, size };
    place += 8 + size + (size % 2);
  }
  return null;
}

/** The orientation from 1 to 8 that EXIF says; 1 if it says none. */
function readOrientation(exif) {
  try {
    const start = textOf(exif, 0, 4) === "Exif" ? 6 : 0;
    const isLittle = textOf(exif, start, 2) === "II";
    const directory = start + exif.getUint32(start + 4, isLittle);
    const count = exif.getUint16(directory, isLittle);
    for (let entry = directory + 2; entry < directory + 2 + 12 * count; entry += 12) {
      if (exif.getUint16(entry, isLittle) !== ORIENTATION) continue;
      const value = exif.getUint16(entry + 8, isLittle);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    // An entry beyond the end: nothing is said.
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/** Decode a picture in its full size, upright. */
export async function decodeUpright(blob) {
  const exif = await findExif(blob);
  if (!exif) return createImageBitmap(blob, { imageOrientation: "from-image" });
  const orientation = readOrientation(await bytesOf(blob, exif.place + 8, Math.min(exif.size, MOST_EXIF_BYTES)));
  const plain = new Blob([blob.slice(0, exif.place), "NONE", blob.slice(exif.place + 4)], { type: "image/webp" });
  const stored = await createImageBitmap(plain);
  if (orientation === 1) return stored;
  const { width, height } = stored;
  const [a, b, c, d, e, f] = UPRIGHT[orientation - 1];
  const [w, h] = a ? [width, height] : [height, width];
  const canvas = new OffscreenCanvas(w, h);
  const context = canvas.getContext("2d");
  context.setTransform(a, b, c, d, e * w, f * h);
  context.drawImage(stored, 0, 0);
  stored.close();
  return canvas.transferToImageBitmap();
}

/** Decode a picture upright, no larger than is drawn: {levels, width, height}, sizes in its own pixels. */
export async function readPicture(blob) {
  const bitmap = await decodeUpright(blob);
  const { width, height } = bitmap;
  const levels = [];
  const longest = Math.max(width, height);
  for (let side = Math.min(longest, LARGEST_SIDE); !levels.length || side > SMALLEST_SIDE / 2; side /= 2) {
    const [w, h] = [width, height].map((length) => Math.max(1, Math.round((length * side) / longest)));
    const level = new OffscreenCanvas(w, h);
    const context = level.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(levels.at(-1) ?? bitmap, 0, 0, w, h);
    levels.push(level);
  }
  bitmap.close();
  return { levels, width, height };
}
