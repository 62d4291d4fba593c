// Screenshots as small PNG files: 256 colours are enough for an interface, and take a third of the
// bytes. The palette is made by the page's own colours, the most frequent ones first.
import { writeFileSync } from "node:fs";
import { crc32, deflateSync, inflateSync } from "node:zlib";
import type { Page } from "playwright-core";

export async function packed(page: Page, path: string): Promise<void> {
  writeFileSync(path, withPalette(await page.screenshot({ type: "png" })));
}

interface Image {
  width: number;
  height: number;
  /** Red, green, blue, one byte each. */
  pixels: Uint8Array;
}

function chunksOf(png: Buffer): { type: string; data: Buffer }[] {
  const chunks = [];
  for (let at = 8; at < png.length; ) {
    const length = png.readUInt32BE(at);
    const type = png.toString("latin1", at + 4, at + 8);
    chunks.push({ type, data: png.subarray(at + 8, at + 8 + length) });
    at += 12 + length;
  }
  return chunks;
}

/** Reads a PNG of 8 bits a channel, as Chromium writes them. */
function decode(png: Buffer): Image {
  const chunks = chunksOf(png);
  const head = chunks.find((it) => it.type === "IHDR")!.data;
  const [width, height] = [head.readUInt32BE(0), head.readUInt32BE(4)];
  const channels = head[9] === 6 ? 4 : 3;
  const data = chunks.filter((it) => it.type === "IDAT").map((it) => it.data);
  const raw = unfiltered(inflateSync(Buffer.concat(data)), width * channels, height, channels);
  const pixels = new Uint8Array(width * height * 3);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    pixels.set(raw.subarray(pixel * channels, pixel * channels + 3), pixel * 3);
  }
  return { width, height, pixels };
}

/** Undoes the filters of the rows (PNG specification, section 9). */
function unfiltered(raw: Buffer, stride: number, height: number, step: number): Uint8Array {
  const out = new Uint8Array(stride * height);
  for (let row = 0; row < height; row += 1) {
    const kind = raw[row * (stride + 1)]!;
    for (let at = 0; at < stride; at += 1) {
      const here = row * stride + at;
      const left = at >= step ? out[here - step]! : 0;
      const above = row > 0 ? out[here - stride]! : 0;
      const corner = row > 0 && at >= step ? out[here - stride - step]! : 0;
      const guess = [0, left, above, (left + above) >> 1, paeth(left, above, corner)][kind]!;
      out[here] = raw[row * (stride + 1) + 1 + at]! + guess;
    }
  }
  return out;
}

function paeth(left: number, above: number, corner: number): number {
  const guess = left + above - corner;
  const [a, b, c] = [guess - left, guess - above, guess - corner].map(Math.abs);
  if (a! <= b! && a! <= c!) return left;
  return b! <= c! ? above : corner;
}

const COLOURS = 256;

function withPalette(png: Buffer): Buffer {
  const { width, height, pixels } = decode(png);
  const counts = new Map<number, number>();
  for (let at = 0; at < pixels.length; at += 3) {
    const colour = (pixels[at]! << 16) | (pixels[at + 1]! << 8) | pixels[at + 2]!;
    counts.set(colour, (counts.get(colour) ?? 0) + 1);
  }
  const palette = choose(counts);
  const nearest = new Map<number, number>();
  const rows = Buffer.alloc((width + 1) * height);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    const at = pixel * 3;
    const colour = (pixels[at]! << 16) | (pixels[at + 1]! << 8) | pixels[at + 2]!;
    let index = nearest.get(colour);
    if (index === undefined) nearest.set(colour, (index = closest(palette, colour)));
    rows[Math.floor(pixel / width) * (width + 1) + 1 + (pixel % width)] = index;
  }
  return encode(width, height, palette, rows);
}

/** Frequent colours, each unlike those before it, so that rare ones of their own get a place. */
function choose(counts: Map<number, number>): number[] {
  const sorted = [...counts].sort((a, b) => b[1] - a[1]).map(([colour]) => colour);
  const chosen: number[] = [];
  for (const apart of [24, 12, 6, 0]) {
    for (const colour of sorted.slice(0, 6_000)) {
      if (chosen.length === COLOURS) return chosen;
      if (chosen.every((it) => distance(it, colour) > apart)) chosen.push(colour);
    }
  }
  return chosen;
}

function distance(a: number, b: number): number {
  const channel = (shift: number) => Math.abs(((a >> shift) & 255) - ((b >> shift) & 255));
  return channel(16) + channel(8) + channel(0);
}

function closest(palette: number[], colour: number): number {
  let [found, least] = [0, Infinity];
  palette.forEach((it, index) => {
    const apart = distance(it, colour);
    if (apart < least) [found, least] = [index, apart];
  });
  return found;
}

function encode(width: number, height: number, palette: number[], rows: Buffer): Buffer {
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([8, 3, 0, 0, 0], 8);
  const colours = palette.flatMap((it) => [(it >> 16) & 255, (it >> 8) & 255, it & 255]);
  return Buffer.concat([
    Buffer.from("\x89PNG\r\n\x1a\n", "latin1"),
    chunk("IHDR", head),
    chunk("PLTE", Buffer.from(colours)),
    chunk("IDAT", deflateSync(rows, { level: 9 })),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  sum.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, sum]);
}
