// What belongs to a tile, fetched once and kept while it is near: its row in full, pictures, masks, values, as layers
// to draw. The next tiles are fetched ahead, so that going on waits for nothing. Knows no page.

import { readImage, readRaster, readTile } from "./api.js";
import { colouredValues } from "./colours.js";

const KEPT = 12;
export const IMAGES = ["true-colour", "false-colour"];

class Tile {
  constructor(row, version) {
    this.row = row;
    this.version = version;
    this.asked = new Map();
  }

  /** Return the promise of what `ask` gives, made once; after a failure the next call asks again. */
  #once(key, ask) {
    if (!this.asked.has(key)) {
      const promise = ask();
      promise.catch(() => this.asked.delete(key));
      this.asked.set(key, promise);
    }
    return this.asked.get(key);
  }

  detail() {
    return this.#once("detail", () => readTile(this.row));
  }

  forgetDetail() {
    this.asked.delete("detail");
  }

  /** Return a mask, `{bytes, height, width}`: label or prediction. */
  mask(name) {
    return this.#once(`mask/${name}`, () => readRaster(this.row, `mask/${name}`, { v: this.version }));
  }

  /** Return the label with what stands of a reviewer's decision about it; asked anew each time. */
  labelNow(reviewer) {
    return readRaster(this.row, "mask/label-now", { reviewer });
  }

  /** Return the stored values, `{bytes, height, width}`: probability or disagreement. */
  values(name) {
    return this.#once(`values/${name}`, () => readRaster(this.row, `values/${name}`, { v: this.version }));
  }

  /** Return what a view draws of a layer: something a canvas takes as an image. */
  layer(name, stretch) {
    if (IMAGES.includes(name)) return this.#once(`${name}/${stretch}`, () => readImage(this.row, name, stretch));
    return this.#once(`coloured/${name}`, async () => colouredValues(await this.values(name)));
  }
}

function keyOf(row) {
  return `${row.tile_id}/${row.sha256}`;
}

export class Tiles {
  /** `version` is that of the review. */
  constructor(version) {
    this.version = version;
    this.kept = new Map(); // the most recently used last
  }

  open(row) {
    const key = keyOf(row);
    const tile = this.kept.get(key) ?? new Tile(row, this.version);
    tile.row = row; // what was decided about it changes
    this.kept.delete(key);
    this.kept.set(key, tile);
    if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
    return tile;
  }

  /** Have what the server says of a tile asked again, where it is kept. */
  forgetDetail(row) {
    this.kept.get(keyOf(row))?.forgetDetail();
  }

  /** Fetch ahead what looking at a tile needs; what fails is asked again, and told, when it is looked at. */
  async prefetch(row, layers, stretch) {
    const tile = this.open(row);
    const wanted = [tile.mask("label"), tile.mask("prediction"), ...layers.map((name) => tile.layer(name, stretch))];
    await Promise.allSettled([...wanted, tile.detail()]);
  }
}
