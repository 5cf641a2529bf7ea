// How far the review is, and what others decide meanwhile: asked every few seconds. Knows no tile.

import { readDecisions, readProgress } from "./api.js";
import { byId, percent } from "./dom.js";

const POLL_MS = 3000;

export class Progress {
  /**
   * `onDecisions(tileIds)` is told which tiles have new decisions; `onReached()` that the server answers,
   * `onTrouble(error)` that it does not.
   */
  constructor({ onDecisions, onReached, onTrouble }) {
    this.listeners = { onDecisions, onReached, onTrouble };
    this.reviewer = "";
    this.cursor = "";
  }

  /** Ask now, and again and again; a window that nobody sees asks nothing. `cursor` is what the page knows already. */
  async start(cursor) {
    this.cursor = cursor;
    await this.refresh();
    setInterval(() => document.hidden || this.#poll(), POLL_MS);
  }

  async #poll() {
    if (this.polling) return;
    this.polling = true;
    try {
      const tileIds = new Set();
      for (let more = true; more;) {
        const answer = await readDecisions(this.cursor);
        for (const { tile_id } of answer.decisions) tileIds.add(tile_id);
        ({ cursor: this.cursor, more } = answer);
      }
      this.listeners.onReached();
      if (tileIds.size) {
        this.listeners.onDecisions([...tileIds]);
        await this.refresh();
      }
    } catch (error) {
      this.listeners.onTrouble(error);
    } finally {
      this.polling = false;
    }
  }

  async refresh() {
    this.show(await readProgress());
  }

  show({ total, decided_by_anyone, by_reviewer, pairs }) {
    const mine = by_reviewer.find(({ reviewer }) => reviewer === this.reviewer)?.decided ?? 0;
    byId("progress-all").style.width = `${(100 * decided_by_anyone) / Math.max(1, total)}%`;
    byId("progress-mine").style.width = `${(100 * mine) / Math.max(1, total)}%`;
    const words = [`${mine.toLocaleString("en")} of ${total.toLocaleString("en")} decided by you`];
    if (decided_by_anyone > mine) words.push(`${decided_by_anyone.toLocaleString("en")} by anyone`);
    const own = pairs.filter(({ a, b, both }) => both && [a, b].includes(this.reviewer));
    const withEach = own.map(({ a, b, both, same }) => agreementWords(a === this.reviewer ? b : a, both, same));
    const sum = (name) => own.reduce((total, pair) => total + pair[name], 0);
    if (own.length === 1) words.push(withEach[0]);
    if (own.length > 1) words.push(agreementWords(`${own.length} others`, sum("both"), sum("same")));
    byId("progress-words").textContent = words.join(" · ");
    byId("progress-words").title = [words.join(" · "), ...withEach].join("\n");
  }
}

function agreementWords(name, both, same) {
  return `${percent(same / both)} agreement with ${name} on ${both.toLocaleString("en")}`;
}
