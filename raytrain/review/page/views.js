// Two canvases that show the same part of a tile: zoomed and moved together by wheel, drag, pinch and keys. Knows
// what to draw and where the pointer is, and not what the pointer means.

const LARGEST_SCALE = 64;
const ZOOM_STEP = 1.35;
const MARGIN_PX = 8;

export class Views {
  /**
   * `paints()` says whether a drag paints instead of moving, and `brushPx()` how wide the brush is. `onStroke` has
   * `begin(x, y)`, `move(x, y)` and `end()`, `onHover(x, y)` is told where the pointer is, in pixels of the tile, or
   * null where it left.
   */
  constructor(canvases, { paints, brushPx, onStroke, onHover }) {
    this.canvases = canvases;
    this.options = { paints, brushPx, onStroke, onHover };
    this.size = { height: 1, width: 1 };
    this.layers = canvases.map(() => null);
    this.overlays = [];
    this.fillOpacity = 0;
    this.at = { scale: 1, x: 0, y: 0 }; // of the tile's corner on the screen, in CSS pixels
    this.fitted = true;
    this.pointer = null; // in pixels of the tile
    this.pointers = new Map(); // those pressed, by their id
    this.waiting = false;
    for (const canvas of canvases) this.#listen(canvas);
    new ResizeObserver(() => (this.fitted ? this.fit() : this.draw())).observe(canvases[0].parentElement);
  }

  setSize(height, width) {
    const same = this.size.height === height && this.size.width === width;
    this.size = { height, width };
    if (!same) this.fit();
  }

  fit() {
    const { height, width } = this.size;
    const box = this.#box();
    const scale = Math.max(0.01, Math.min((box.width - MARGIN_PX) / width, (box.height - MARGIN_PX) / height));
    this.at = { scale, x: (box.width - scale * width) / 2, y: (box.height - scale * height) / 2 };
    this.fitted = true;
    this.draw();
  }

  /** Zoom in by whole steps (out for negative ones), keeping the point under the pointer, or the middle. */
  zoom(steps, point = null) {
    const box = this.#box();
    const [x, y] = point ?? [box.width / 2, box.height / 2];
    const smallest = 0.5 * Math.min(box.width / this.size.width, box.height / this.size.height);
    const scale = Math.min(LARGEST_SCALE, Math.max(smallest, this.at.scale * ZOOM_STEP ** steps));
    const ratio = scale / this.at.scale;
    this.at = { scale, x: x - ratio * (x - this.at.x), y: y - ratio * (y - this.at.y) };
    this.fitted = false;
    this.draw();
  }

  move(dx, dy) {
    this.at = { ...this.at, x: this.at.x + dx, y: this.at.y + dy };
    this.fitted = false;
    this.draw();
  }

  /** Draw at the next frame. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.canvases.forEach((canvas, i) => this.#drawOne(canvas, this.layers[i]));
    });
  }

  #box() {
    return this.canvases[0].getBoundingClientRect();
  }

  #drawOne(canvas, layer) {
    const [ratio, box] = [devicePixelRatio, canvas.getBoundingClientRect()];
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.resetTransform();
    context.clearRect(0, 0, width, height);
    const { scale, x, y } = this.at;
    context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
    context.imageSmoothingEnabled = scale * ratio < 1;
    context.imageSmoothingQuality = "high";
    if (layer) context.drawImage(layer, 0, 0, this.size.width, this.size.height);
    context.imageSmoothingEnabled = false;
    for (const overlay of this.overlays) overlay.draw(context, scale, this.fillOpacity);
    this.#drawPointer(context, scale);
  }

  #drawPointer(context, scale) {
    if (!this.pointer) return;
    const [x, y] = this.pointer;
    const radius = this.options.paints() ? this.options.brushPx() / 2 : 4 / scale;
    for (const [colour, width] of [
      ["rgba(0, 0, 0, 0.7)", 3],
      ["#fff", 1.25],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = width / scale;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  #listen(canvas) {
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoom(-Math.sign(event.deltaY) * (event.ctrlKey ? 0.35 : 0.7), [event.offsetX, event.offsetY]);
      },
      { passive: false },
    );
    canvas.addEventListener("pointerdown", (event) => this.#down(canvas, event));
    canvas.addEventListener("pointermove", (event) => this.#moved(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => this.#hover(null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  #tilePoint(event) {
    return [(event.offsetX - this.at.x) / this.at.scale, (event.offsetY - this.at.y) / this.at.scale];
  }

  #down(canvas, event) {
    canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    const paints = this.options.paints() && event.button === 0 && !event.shiftKey && this.pointers.size === 1;
    if (this.painting) this.options.onStroke.end(); // a second finger moves the picture
    this.painting = paints;
    if (paints) this.options.onStroke.begin(...this.#tilePoint(event));
  }

  #moved(event) {
    const before = this.pointers.get(event.pointerId);
    if (before) {
      const point = [event.offsetX, event.offsetY];
      if (this.painting) this.options.onStroke.move(...this.#tilePoint(event));
      else if (this.pointers.size === 2) this.#pinch(event.pointerId, point);
      else this.move(point[0] - before[0], point[1] - before[1]);
      this.pointers.set(event.pointerId, point);
    }
    this.#hover(this.#tilePoint(event));
  }

  #pinch(id, point) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, at]) => at);
    const before = this.pointers.get(id);
    const distance = ([x, y]) => Math.max(1, Math.hypot(x - other[0], y - other[1]));
    this.zoom(Math.log(distance(point) / distance(before)) / Math.log(ZOOM_STEP), other);
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (this.painting) this.options.onStroke.end();
    this.painting = false;
  }

  #hover(point) {
    this.pointer = point;
    this.options.onHover(point);
    this.draw();
  }
}
