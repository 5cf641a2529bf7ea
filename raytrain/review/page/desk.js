// The tile that is looked at: its layers in the views, its overlays, and the edit of its mask with tools and draft.
// Knows no ranking and no decision.

import { Unreachable } from "./api.js";
import { byId, element } from "./dom.js";
import { Edit } from "./edit.js";
import { CLEAR, CLOUD, IGNORE } from "./mask.js";
import { Overlay } from "./overlay.js";
import { drawRamp } from "./colours.js";
import { IMAGES } from "./tiles.js";
import { Views } from "./views.js";
import { LAYERS } from "./words.js";

const SIZES_PX = [1, 2, 3, 5, 8, 12, 18, 26, 38, 54, 76, 108];
const TOOLS = { brush: CLOUD, eraser: CLEAR, ignore: IGNORE };
const WITH_MASK = ["fix", "ignore"];
const STORED_AS = { 0: "clear", 1: "cloud", 255: "ignored" };

export class Desk {
  /** `say(text)` tells something; `fail(error)` that something could not be fetched or kept. */
  constructor(layers, drafts, { say, fail }) {
    this.layerNames = layers;
    this.drafts = drafts;
    this.tell = { say, fail };
    this.chosen = [layers[0], layers.includes("false-colour") ? "false-colour" : "probability"];
    this.stretch = "natural";
    this.tool = null;
    this.sizeIndex = 5;
    this.shown = { label: true, prediction: true, edit: true };
    this.hidden = false;
    this.reviewer = "";
    this.#forget();
    this.views = new Views([byId("view-0"), byId("view-1")], {
      paints: () => this.tool !== null && this.edit !== null,
      brushPx: () => this.brushPx,
      onStroke: {
        begin: (x, y) => this.#beginStroke(x, y),
        move: (x, y) => this.#paintTo(x, y),
        end: () => this.#endStroke(),
      },
      onHover: (point) => this.#showReadout(point),
    });
    this.#fillControls();
    this.#showTools();
  }

  get brushPx() {
    return SIZES_PX[this.sizeIndex];
  }

  #forget() {
    this.tile = null;
    this.label = null;
    this.prediction = null;
    this.edit = null;
    this.values = {};
    this.overlays = {};
    this.lastPoint = null;
    this.#setReady(false);
  }

  /** Say whether all of the tile is shown that can be: what the server has not, it will not have soon. */
  #setReady(ready) {
    this.ready = ready;
    byId("views").setAttribute("aria-busy", !ready);
  }

  /**
   * Show a tile; what it needs comes as it arrives, unless another is shown meanwhile. Resolves when it is whole.
   * `decided` is this reviewer's verdict on it, if there is one: its mask is gone on with.
   */
  async show(tile, decided) {
    if (this.edit?.stroke) this.#endStroke();
    this.#forget();
    this.tile = tile;
    const { height, width } = tile.row;
    this.views.setSize(height, width);
    this.views.layers = [null, null];
    this.views.overlays = [];
    this.views.draw();
    this.#showEditWords();
    const came = await Promise.all([this.#showLayers(), this.#showMasks(tile, decided)]);
    if (tile === this.tile && came.every(Boolean)) this.#setReady(true);
  }

  /** Tell of what can't be shown of a tile; return whether that is final. */
  #failed(tile, error) {
    if (tile === this.tile) this.tell.fail(error);
    return !(error instanceof Unreachable);
  }

  /** Fetch and draw the layers chosen; return whether none is still to be had. */
  async #showLayers() {
    const came = await Promise.all(this.chosen.map((name, view) => this.#showLayer(this.tile, view, name)));
    return came.every(Boolean);
  }

  async #showLayer(tile, view, name) {
    const { stretch } = this;
    const isWanted = () => tile === this.tile && this.chosen[view] === name && this.stretch === stretch;
    try {
      const layer = await tile.layer(name, stretch);
      const values = IMAGES.includes(name) ? null : (await tile.values(name)).bytes;
      if (!isWanted()) return true;
      if (values) this.values[name] = values;
      this.views.layers[view] = layer;
    } catch (error) {
      if (!isWanted()) return true;
      this.views.layers[view] = null;
      return this.#failed(tile, error);
    } finally {
      this.views.draw();
    }
    return true;
  }

  /** Fetch and draw the masks and the edit; return whether none is still to be had. */
  async #showMasks(tile, decided) {
    let isFinal = true;
    const got = (promise) => promise.catch((error) => ((isFinal &&= this.#failed(tile, error)), null));
    const draft = got(this.drafts.read(this.reviewer, tile.row));
    const saved = WITH_MASK.includes(decided) ? got(tile.labelNow(this.reviewer)) : null;
    const [label, prediction] = await Promise.all(["label", "prediction"].map((name) => got(tile.mask(name))));
    const kept = { saved: (await saved)?.bytes, draft: await draft };
    if (tile !== this.tile) return true;
    Object.assign(this, { label, prediction });
    if (label) this.edit = new Edit(label.bytes, label.height, label.width, kept);
    if (label) this.overlays.label = new Overlay("label", label);
    if (prediction) this.overlays.prediction = new Overlay("prediction", prediction);
    this.#editChanged();
    if (kept.draft && this.edit?.unsaved) this.tell.say("This is your edit from before: f saves it, c resets it.");
    return isFinal;
  }

  // Look

  chooseLayer(view, name) {
    this.chosen[view] = name;
    byId(`layer-${view}`).value = name;
    if (this.tile) this.#showLayer(this.tile, view, name);
    this.#showRamp();
  }

  chooseLayerNumber(view, number) {
    if (number <= this.layerNames.length) this.chooseLayer(view, this.layerNames[number - 1]);
  }

  setStretch(stretch) {
    this.stretch = stretch;
    byId("stretch").value = stretch;
    if (this.tile) this.#showLayers();
  }

  toggleStretch() {
    this.setStretch(this.stretch === "natural" ? "percentile" : "natural");
  }

  toggleViews() {
    byId("views").classList.toggle("single");
  }

  toggle(name) {
    this.shown[name] = !this.shown[name];
    this.#showTools();
    this.#draw();
  }

  hideOverlays(hidden) {
    if (this.hidden === hidden) return;
    this.hidden = hidden;
    this.#draw();
  }

  #draw() {
    const order = ["label", "prediction", "edit"].filter((name) => this.shown[name] && this.overlays[name]);
    this.views.overlays = this.hidden ? [] : order.map((name) => this.overlays[name]);
    this.views.draw();
  }

  // Repair

  setTool(tool) {
    this.tool = this.tool === tool ? null : tool;
    this.#showTools();
    this.views.draw();
  }

  setSizeIndex(index) {
    this.sizeIndex = Math.min(SIZES_PX.length - 1, Math.max(0, index));
    this.#showTools();
    this.views.draw();
  }

  #beginStroke(x, y) {
    this.edit.beginStroke(TOOLS[this.tool]);
    this.lastPoint = [x, y];
    this.#paintTo(x, y);
  }

  #paintTo(x, y) {
    this.edit.paint(...this.lastPoint, x, y, this.brushPx);
    this.lastPoint = [x, y];
    this.#drawEdit();
  }

  #endStroke() {
    if (this.edit.endStroke()) this.#editChanged(true);
  }

  undoStroke() {
    if (this.edit?.undo()) this.#editChanged(true);
  }

  redoStroke() {
    if (this.edit?.redo()) this.#editChanged(true);
  }

  resetEdit() {
    if (this.edit?.reset()) this.#editChanged(true);
  }

  /** Take the prediction below the pointer. */
  takeHere() {
    const [x, y] = (this.views.pointer ?? [-1, -1]).map(Math.floor);
    const { height, width } = this.tile?.row ?? { height: 0, width: 0 };
    if (x < 0 || y < 0 || x >= width || y >= height)
      this.tell.say("Point at a cloud first: t takes what is predicted below the pointer.");
    else this.#take((prediction) => this.edit.takePrediction(prediction, y * width + x));
  }

  takeEverywhere() {
    this.#take((prediction) => this.edit.takeWholePrediction(prediction));
  }

  #take(change) {
    if (!this.edit || !this.prediction) this.tell.say("There is no prediction to take.");
    else if (change(this.prediction.bytes)) this.#editChanged(true);
    else this.tell.say("The prediction says the same here.");
  }

  /** Make `mask` the edit of the tile shown, as a fix that was taken back. */
  restore(mask) {
    if (!this.edit || mask.length !== this.edit.mask.length) return;
    this.edit = new Edit(this.label.bytes, this.label.height, this.label.width, { draft: mask });
    this.#editChanged(true);
  }

  #drawEdit() {
    const { mask, height, width, changed } = this.edit;
    this.overlays.edit = changed ? new Overlay("edit", { bytes: mask, height, width }) : null;
    this.#draw();
  }

  #editChanged(byHand = false) {
    if (this.edit) this.#drawEdit();
    else this.#draw();
    this.#showEditWords();
    if (byHand) this.#keepDraft();
  }

  #keepDraft() {
    const { row } = this.tile;
    const kept = this.edit.unsaved
      ? this.drafts.keep(this.reviewer, row, this.edit.mask)
      : this.drafts.forget(this.reviewer, row);
    kept.catch((error) =>
      this.tell.fail(new Error(`this edit can't be kept in this browser (${error.message}): save it before you leave`)),
    );
  }

  // Controls and words

  #fillControls() {
    for (const view of [0, 1]) {
      const select = byId(`layer-${view}`);
      select.append(
        ...this.layerNames.map((name, i) => element("option", { value: name, text: `${i + 1} ${LAYERS[name]}` })),
      );
      select.value = this.chosen[view];
      select.addEventListener("change", () => this.chooseLayer(view, select.value));
    }
    const pressed = {
      "show-label": () => this.toggle("label"),
      "show-prediction": () => this.toggle("prediction"),
      "show-edit": () => this.toggle("edit"),
      "tool-brush": () => this.setTool("brush"),
      "tool-eraser": () => this.setTool("eraser"),
      "tool-ignore": () => this.setTool("ignore"),
      "edit-undo": () => this.undoStroke(),
      "edit-redo": () => this.redoStroke(),
      "edit-reset": () => this.resetEdit(),
      "zoom-in": () => this.views.zoom(1),
      "zoom-out": () => this.views.zoom(-1),
      "zoom-fit": () => this.views.fit(),
    };
    for (const [id, action] of Object.entries(pressed)) byId(id).addEventListener("click", action);
    byId("stretch").addEventListener("change", (event) => this.setStretch(event.target.value));
    byId("brush-size").addEventListener("input", (event) => this.setSizeIndex(Number(event.target.value)));
    byId("fill").addEventListener("input", (event) => {
      this.views.fillOpacity = Number(event.target.value) / 100;
      this.views.draw();
    });
    drawRamp(byId("ramp"));
    this.#showRamp();
  }

  #showTools() {
    for (const tool of Object.keys(TOOLS)) byId(`tool-${tool}`).setAttribute("aria-pressed", this.tool === tool);
    for (const [name, shown] of Object.entries(this.shown)) byId(`show-${name}`).setAttribute("aria-pressed", shown);
    byId("brush-size").value = this.sizeIndex;
    byId("brush-words").textContent = `${this.brushPx} px`;
    byId("views").classList.toggle("painting", this.tool !== null);
  }

  #showRamp() {
    const name = this.chosen.find((each) => !IMAGES.includes(each));
    byId("ramp").parentElement.hidden = !name;
    byId("ramp-low").textContent = `${name ?? ""} 0`;
    byId("ramp-high").textContent = name === "disagreement" ? "0.5" : "1";
  }

  #showEditWords() {
    const edit = this.edit;
    byId("edit-undo").disabled = !edit?.done.length;
    byId("edit-redo").disabled = !edit?.undone.length;
    const changed = edit?.changed ?? false;
    byId("edit-reset").disabled = !changed;
    const count = changed ? edit.mask.reduce((sum, value, i) => sum + (value !== edit.label[i]), 0) : 0;
    byId("edit-words").textContent = changed
      ? `${count.toLocaleString("en")} px edited, ${edit.unsaved ? "not saved" : "saved"}`
      : "";
  }

  #showReadout(point) {
    const { height, width } = this.tile?.row ?? { height: 0, width: 0 };
    const [column, row] = (point ?? [-1, -1]).map(Math.floor);
    const inside = column >= 0 && row >= 0 && column < width && row < height;
    byId("readout").textContent = inside ? this.#readoutAt(row, column, row * width + column) : "";
  }

  #readoutAt(row, column, index) {
    const words = [`row ${row}, column ${column}`];
    if (this.label) words.push(`label ${STORED_AS[this.label.bytes[index]]}`);
    if (this.prediction)
      words.push(
        `prediction ${this.prediction.bytes[index] === IGNORE ? "no data" : STORED_AS[this.prediction.bytes[index]]}`,
      );
    for (const [name, largest] of [
      ["probability", 1],
      ["disagreement", 0.5],
    ]) {
      const value = this.values[name]?.[index];
      if (value !== undefined)
        words.push(`${name} ${value === 255 ? "no data" : ((value / 254) * largest).toFixed(2)}`);
    }
    return words.join(" · ");
  }
}
