// The tab of what has no label and is most worth one, and the switch between the two tabs. Knows no tile's pixels.

import { bar } from "./details.js";
import { byId, counted, element } from "./dom.js";
import { List } from "./list.js";
import { fillWaiting } from "./rows.js";

const ROW_PX = 46;
const CHUNK = 100;
const LARGEST_DISAGREEMENT = 0.5;

export class Unlabelled {
  /**
   * `read(offset, limit)` asks the server, `show(item)` shows one that was chosen, `leave()` what the ranking shows,
   * `fail(error)` tells of trouble.
   */
  constructor(count, { read, show, leave, fail }) {
    this.options = { read, show, leave };
    this.isOpen = false;
    this.items = new Map(); // by index
    this.list = new List(byId("unlabelled"), ROW_PX, {
      fill: (box, index) => this.#fill(box, index),
      load: (first, last) => this.#load(first, last).catch(fail),
      choose: (index) => this.#choose(index),
    });
    this.list.setCount(count);
    byId("unlabelled-count").textContent = count
      ? `${counted(count, "item")}, those that the members disagree on most first`
      : "Everything scored has a label.";
    byId("unlabelled").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.#choose(Math.min(count - 1, Math.max(0, this.list.chosen + step)));
    });
    const tabs = ["ranking", "unlabelled"];
    tabs.forEach((name, i) => {
      const tab = byId(`tab-${name}`);
      tab.addEventListener("click", () => this.#openTab(name));
      tab.addEventListener("keydown", (event) => {
        if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
        event.preventDefault();
        event.stopPropagation();
        this.#openTab(tabs[1 - i]);
        byId(`tab-${tabs[1 - i]}`).focus();
      });
    });
  }

  #openTab(chosen) {
    for (const name of ["ranking", "unlabelled"]) {
      byId(`tab-${name}`).setAttribute("aria-selected", name === chosen);
      byId(`tab-${name}`).tabIndex = name === chosen ? 0 : -1;
      byId(`panel-${name}`).hidden = name !== chosen;
    }
    this.isOpen = chosen === "unlabelled";
    document.body.classList.toggle("unlabelled", this.isOpen);
    if (!this.isOpen) this.options.leave();
    else if (this.items.size) this.#choose(Math.max(0, this.list.chosen));
  }

  async #load(first, last) {
    const start = Math.floor(first / CHUNK) * CHUNK;
    for (let offset = start; offset <= last; offset += CHUNK) {
      if (this.items.has(offset)) continue;
      const { items } = await this.options.read(offset, CHUNK);
      items.forEach((item, i) => this.items.set(offset + i, item));
    }
  }

  #choose(index) {
    this.list.setChosen(index);
    const item = this.items.get(index);
    if (item) this.options.show(item);
  }

  #fill(box, index) {
    const item = this.items.get(index);
    if (!item) {
      fillWaiting(box);
      return false;
    }
    const fraction = item.disagreement_mean / LARGEST_DISAGREEMENT;
    box.append(
      element("span", { class: "rank", text: item.rank.toLocaleString("en") }),
      element("span", { class: "name", text: item.item_id, title: item.item_id }),
      element("span", { class: "quiet", text: item.kind }),
      element(
        "span",
        { class: "second" },
        element("span", { text: item.location ?? "" }),
        bar(fraction),
        element("span", { class: "number", text: item.disagreement_mean.toFixed(3) }),
      ),
    );
    return true;
  }
}
