// The edit of one tile's mask: what was painted over its label, stroke by stroke, to undo and redo. Knows no page.

import { CLOUD, IGNORE, onlyIn, sameMask, strokePixels, takenFromPrediction } from "./mask.js";

export class Edit {
  /**
   * Begin with `label`, `height * width` bytes. `saved` is what a decision made of it, if one did, and `draft` an edit
   * kept from before that no decision has.
   */
  constructor(label, height, width, { saved = null, draft = null } = {}) {
    this.label = label;
    this.height = height;
    this.width = width;
    this.saved = saved ?? label;
    this.mask = Uint8Array.from(draft ?? this.saved);
    this.done = []; // steps, each {pixels, before, after}
    this.undone = [];
    this.stroke = null; // the pixels of the stroke now painted, with what they held before
  }

  get changed() {
    return !sameMask(this.mask, this.label);
  }

  get unsaved() {
    return !sameMask(this.mask, this.saved);
  }

  /** The region painted to be ignored, 1 where it is: pixels ignored in the edit and not in the label. */
  get region() {
    return this.mask.map((value, i) => Number(value === IGNORE && this.label[i] !== IGNORE));
  }

  get hasRegion() {
    return onlyIn(this.mask, this.label, IGNORE).length > 0;
  }

  /** Say whether the edit changes more than an `ignore` of its region would keep. */
  get changesBesidesRegion() {
    return this.mask.some((value, i) => value !== this.label[i] && value !== IGNORE);
  }

  beginStroke(value) {
    this.stroke = { value, before: new Map() };
  }

  /** Paint on from one point to another, in pixels of the tile. */
  paint(x0, y0, x1, y1, size) {
    const { value, before } = this.stroke;
    for (const index of strokePixels(x0, y0, x1, y1, size, this.height, this.width)) {
      if (this.mask[index] === value) continue;
      if (!before.has(index)) before.set(index, this.mask[index]);
      this.mask[index] = value;
    }
  }

  /** End the stroke; return whether it changed anything. */
  endStroke() {
    const { value, before } = this.stroke;
    this.stroke = null;
    const pixels = [...before.keys()];
    return this.#keep({ pixels, before: [...before.values()], after: pixels.map(() => value) });
  }

  /** Take the prediction at a pixel; return whether it changed anything. */
  takePrediction(prediction, index) {
    const { pixels, value } = takenFromPrediction(this.mask, prediction, index, this.height, this.width);
    return this.#set(pixels, () => value);
  }

  /** Take the prediction everywhere, but where there is none; return whether it changed anything. */
  takeWholePrediction(prediction) {
    const pixels = [];
    prediction.forEach((value, i) => value <= CLOUD && value !== this.mask[i] && pixels.push(i));
    return this.#set(pixels, (index) => prediction[index]);
  }

  /** Return to the label, as one step; return whether it changed anything. */
  reset() {
    const pixels = [];
    this.mask.forEach((value, i) => value !== this.label[i] && pixels.push(i));
    return this.#set(pixels, (index) => this.label[index]);
  }

  undo() {
    return this.#move(this.done, this.undone, "before");
  }

  redo() {
    return this.#move(this.undone, this.done, "after");
  }

  #set(pixels, valueOf) {
    const step = { pixels, before: pixels.map((index) => this.mask[index]), after: pixels.map(valueOf) };
    pixels.forEach((index, i) => (this.mask[index] = step.after[i]));
    return this.#keep(step);
  }

  #keep(step) {
    if (!step.pixels.length) return false;
    this.done.push(step);
    this.undone = [];
    return true;
  }

  #move(from, to, which) {
    const step = from.pop();
    if (!step) return false;
    step.pixels.forEach((index, i) => (this.mask[index] = step[which][i]));
    to.push(step);
    return true;
  }
}
