// A long list of which only the rows in sight are in the document. Knows nothing of what its rows show.

const ROWS_AROUND = 6;

export class List {
  /**
   * `box` scrolls. `fill(row, index)` shows an index in an emptied row and returns whether it could;
   * `load(first, last)` fetches what it could not show; `choose(index)` is called when a row is pressed.
   */
  constructor(box, rowPx, { fill, load, choose }) {
    this.box = box;
    this.rowPx = rowPx;
    this.options = { fill, load, choose };
    this.count = 0;
    this.chosen = -1;
    this.shown = new Map(); // rows in the document, by index
    this.space = document.createElement("div");
    this.space.className = "list-space";
    this.space.setAttribute("role", "presentation");
    box.append(this.space);
    box.addEventListener("scroll", () => this.#arrange(), { passive: true });
    new ResizeObserver(() => this.#arrange()).observe(box);
  }

  setCount(count) {
    this.count = count;
    this.space.style.height = `${count * this.rowPx}px`;
    this.refresh();
  }

  setChosen(index) {
    const before = this.chosen;
    this.chosen = index;
    if (index >= 0) this.#bringIntoSight(index);
    this.#arrange();
    for (const at of [before, index]) if (this.shown.has(at)) this.#fill(at);
    if (this.shown.has(index)) this.box.setAttribute("aria-activedescendant", this.shown.get(index).id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** Show all rows in sight anew. */
  refresh() {
    for (const row of this.shown.values()) row.remove();
    this.shown.clear();
    this.#arrange();
  }

  #bringIntoSight(index) {
    const [top, height] = [index * this.rowPx, this.box.clientHeight];
    const [first, last] = [this.box.scrollTop, this.box.scrollTop + height - this.rowPx];
    if (top < first || top > last) this.box.scrollTop = top - (top < first ? 0 : height - 2 * this.rowPx);
  }

  #arrange() {
    if (!this.box.clientHeight) return;
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.rowPx) - ROWS_AROUND);
    const inSight = Math.ceil(this.box.clientHeight / this.rowPx) + 2 * ROWS_AROUND;
    const last = Math.min(this.count - 1, first + inSight);
    for (const [index, row] of this.shown) {
      if (index < first || index > last) {
        row.remove();
        this.shown.delete(index);
      }
    }
    let missing = false;
    for (let index = first; index <= last; index++) {
      if (!this.shown.has(index)) this.#add(index);
      missing ||= this.shown.get(index).classList.contains("loading");
    }
    if (missing) this.#load(first, last);
  }

  #add(index) {
    const row = document.createElement("div");
    row.id = `${this.box.id}-${index}`;
    row.style.transform = `translateY(${index * this.rowPx}px)`;
    row.style.height = `${this.rowPx}px`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-posinset", index + 1);
    row.setAttribute("aria-setsize", this.count);
    row.addEventListener("click", () => this.options.choose(index));
    this.shown.set(index, row);
    this.#fill(index);
    this.space.append(row);
  }

  #fill(index) {
    const row = this.shown.get(index);
    row.replaceChildren();
    row.className = "row";
    row.setAttribute("aria-selected", index === this.chosen);
    row.classList.toggle("loading", !this.options.fill(row, index));
  }

  async #load(first, last) {
    const count = this.count;
    await this.options.load(first, last);
    if (count !== this.count) return;
    for (const [index, row] of this.shown) if (row.classList.contains("loading")) this.#fill(index);
  }
}
