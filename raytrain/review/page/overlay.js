// A mask drawn over a view: its outline as a path, its fill, and what it ignores as a hatch. Knows no page.

import { HATCHES, OVERLAYS, css, painted } from "./colours.js";
import { CLOUD, IGNORE, outlineOf } from "./mask.js";

const HATCH_PX = 8;
const HATCH_OPACITY = 0.55;
const STRIDE = 2 ** 20; // more than any tile has rows
const CASING = "rgba(0, 0, 0, 0.55)";
const CASING_PX = 1.5;

export class Overlay {
  /** `name` is label, prediction or edit; `mask` is `{bytes, height, width}`, and drawn as it is now. */
  constructor(name, mask) {
    const { bytes, height, width } = mask;
    this.style = OVERLAYS[name];
    this.path = pathOf(outlineOf(bytes, height, width, CLOUD));
    this.fill = painted(mask, { [CLOUD]: this.style.colour });
    const hatch = HATCHES[name];
    this.ignored = null;
    if (hatch && bytes.includes(IGNORE)) {
      const path = pathOf(outlineOf(bytes, height, width, IGNORE));
      this.ignored = { path, colour: hatch, fill: painted(mask, { [IGNORE]: hatch }, HATCH_PX) };
    }
  }

  /** Draw in pixels of the tile, `scale` screen pixels each; `opacity` is that of the fill. */
  draw(context, scale, opacity) {
    context.globalAlpha = opacity;
    if (opacity > 0) context.drawImage(this.fill, 0, 0);
    context.globalAlpha = HATCH_OPACITY;
    if (this.ignored) context.drawImage(this.ignored.fill, 0, 0);
    context.globalAlpha = 1;
    if (this.ignored) this.#line(context, scale, this.ignored.path, this.ignored.colour, 1.5, [2, 3]);
    this.#line(context, scale, this.path, this.style.colour, this.style.width, this.style.dash);
  }

  #line(context, scale, path, colour, width, dash) {
    context.setLineDash([]);
    context.strokeStyle = CASING;
    context.lineWidth = (width + CASING_PX) / scale;
    context.stroke(path);
    context.setLineDash(dash.map((length) => length / scale));
    context.strokeStyle = css(colour);
    context.lineWidth = width / scale;
    context.stroke(path);
    context.setLineDash([]);
  }
}

/** Return straight lines between pixels as a path, each joined to the next, so that dashes run around corners. */
function pathOf(lines) {
  const path = new Path2D();
  const linesAt = new Map(); // by their ends
  const keyOf = (x, y) => x * STRIDE + y;
  for (let i = 0; i < lines.length; i += 4) {
    for (const key of [keyOf(lines[i], lines[i + 1]), keyOf(lines[i + 2], lines[i + 3])]) {
      if (linesAt.has(key)) linesAt.get(key).push(i);
      else linesAt.set(key, [i]);
    }
  }
  const isDrawn = new Uint8Array(lines.length);
  for (let first = 0; first < lines.length; first += 4) {
    if (isDrawn[first]) continue;
    let [x, y] = [lines[first], lines[first + 1]];
    path.moveTo(x, y);
    for (let i = first; i !== undefined; i = linesAt.get(keyOf(x, y)).find((each) => !isDrawn[each])) {
      isDrawn[i] = 1;
      const isAtStart = lines[i] === x && lines[i + 1] === y;
      [x, y] = isAtStart ? [lines[i + 2], lines[i + 3]] : [lines[i], lines[i + 1]];
      path.lineTo(x, y);
    }
    path.closePath();
  }
  return path;
}
