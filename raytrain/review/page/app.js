// Starts the page and joins its parts: the ranking and its filter, the tile on the desk, decisions, and what others do.

import { Refused, readReview, readUnlabelled } from "./api.js";
import { Deciding } from "./deciding.js";
import { Desk } from "./desk.js";
import { Details, badge, bar, dateOf } from "./details.js";
import { byId, counted, element } from "./dom.js";
import { Drafts } from "./drafts.js";
import { Filters, countWords } from "./filters.js";
import { listen, showKeys } from "./keys.js";
import { List } from "./list.js";
import { crc32, encodeGreyPng, toBase64 } from "./png.js";
import { Progress } from "./progress.js";
import { Ranking } from "./ranking.js";
import { Tiles } from "./tiles.js";
import { Unlabelled } from "./unlabelled.js";
import { LAYERS, VERDICTS } from "./words.js";

const ROW_PX = 46;
const AHEAD = 3;
const REVIEWER_KEY = "raytrain-review/reviewer";

class ReviewPage {
  constructor(review) {
    this.review = review;
    this.kindWords = Object.fromEntries(review.kinds.map(({ name, words }) => [name, words]));
    this.index = -1; // in the ranking as it is filtered; of the last tile there, where a tile outside of it is shown
    this.row = null;
    this.detail = null;
    this.saving = false; // while a mask is made ready to be sent
    this.outOfReach = false; // something could not be fetched
    this.tiles = new Tiles(review.version);
    this.drafts = new Drafts(review.review_id);
    this.deciding = new Deciding(review.review_id, {
      onQueue: (state) => this.#showQueue(state),
      onStored: (decision, editSum) => this.#stored(decision, editSum),
      onRefused: (decision) => this.#refused(decision),
    });
    this.ranking = new Ranking(() => this.deciding.pending());
    this.saved = new Map(); // masks of this window's fixes and ignores by decision id, to go on with after an undo
    const layers = Object.keys(LAYERS).filter((name) => name !== "false-colour" || review.has_false_colour);
    this.desk = new Desk(layers, this.tiles, this.drafts, { say: (text) => this.#say(text), fail: (error) => this.#fail(error) });
    this.details = new Details(byId("details"), {
      onUndo: (id) => this.#undo(id, this.row.rank),
      onGo: (rank) => this.#show(rank),
    });
    this.list = new List(byId("list"), ROW_PX, {
      fill: (box, index) => this.#fillRow(box, index),
      load: (first, last) => this.ranking.load(first, last).catch((error) => this.#fail(error)),
      choose: (index) => this.#goTo(index),
    });
    this.filters = new Filters(review, () => this.#setFilter().catch((error) => this.#fail(error)));
    this.progress = new Progress({
      onDecisions: (tileIds) => this.#decidedElsewhere(tileIds),
      onReached: () => this.#reached(),
      onTrouble: (error) => this.#outOfReach(error),
    });
    this.unlabelled = new Unlabelled(review.num_unlabelled, {
      read: readUnlabelled,
      show: (item) => this.details.showUnlabelled(item),
      fail: (error) => this.#fail(error),
    });
    this.#fillVerdicts();
    this.#showQueue(this.deciding.queue.state);
    this.#showRefusals();
  }

  async start(reviewer) {
    this.#setReviewer(reviewer);
    listen(this.#actions());
    byId("reviewer").addEventListener("click", () => this.#changeReviewer());
    byId("help-open").addEventListener("click", () => byId("help").showModal());
    byId("list").addEventListener("keydown", (event) => this.#listKey(event));
    showKeys();
    await this.#setFilter();
    this.deciding.queue.drain();
    await this.progress.start(this.review.cursor);
  }

  // Who decides

  #setReviewer(reviewer) {
    for (const part of [this, this.desk, this.deciding, this.filters, this.progress]) part.reviewer = reviewer;
    byId("reviewer").textContent = reviewer;
  }

  async #changeReviewer() {
    const reviewer = await askReviewer(this.reviewer);
    if (reviewer === this.reviewer) return;
    localStorage.setItem(REVIEWER_KEY, reviewer);
    this.#setReviewer(reviewer);
    await Promise.all([this.#setFilter(), this.progress.refresh()]).catch((error) => this.#fail(error));
  }

  // The ranking

  /** List what the filter asks for, and go to the tile shown if it is in there, else to the first undecided one. */
  async #setFilter() {
    if (!(await this.ranking.setFilter(this.filters.asked, this.reviewer))) return;
    const count = this.ranking.ranks.length;
    byId("list-count").textContent = countWords(count, this.review.num_tiles);
    byId("list").scrollTop = 0;
    this.list.chosen = -1;
    this.list.setCount(count);
    const here = this.row ? this.ranking.indexOf(this.row.rank) : -1;
    const index = here >= 0 ? here : Math.max(0, this.ranking.nextUndecided(-1));
    if (count) await this.#goTo(index);
    else this.#say("No tile is like that: choose another filter.");
  }

  #fillRow(box, index) {
    const row = this.ranking.rowAt(index);
    if (!row) {
      box.append(element("span", { class: "rank", text: "…" }));
      return false;
    }
    const verdicts = Object.entries(this.ranking.verdictsOn(row));
    const mine = verdicts.some(([reviewer]) => reviewer === this.reviewer);
    const badges = verdicts.map(([reviewer, verdict]) =>
      badge(verdict, reviewer === this.reviewer, `${VERDICTS[verdict].past}, by ${reviewer}`),
    );
    box.classList.toggle("done", mine);
    box.append(
      element("span", { class: "rank", text: row.rank.toLocaleString("en") }),
      element("span", { class: "name", text: row.kind, title: `${row.tile_id}: ${this.kindWords[row.kind] ?? row.kind}` }),
      element("span", { class: "badges" }, ...badges),
      element("span", { class: "second" }, element("span", { text: row.location }), bar(row.suspicion), element("span", { class: "number", text: row.suspicion.toFixed(2) })),
    );
    return true;
  }

  #listKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.#step(step);
  }

  #step(step) {
    const index = this.index + step;
    if (index >= 0 && index < this.ranking.ranks.length) this.#goTo(index);
    else this.#say(step > 0 ? "This is the last tile of the filter." : "This is the first tile of the filter.");
  }

  // The tile

  async #goTo(index) {
    this.index = index;
    await this.#show(this.ranking.ranks[index]);
  }

  /** Show the tile of a rank, whether or not the filter has it. */
  async #show(rank) {
    const shown = (this.shown = {}); // whoever comes later takes the page
    const index = this.ranking.indexOf(rank);
    if (index >= 0) this.index = index;
    this.list.setChosen(index);
    try {
      if (!this.ranking.rows.has(rank)) this.row = null; // until it is known, nothing is there to decide on
      const row = this.ranking.rows.get(rank) ?? (await this.ranking.row(rank));
      if (shown !== this.shown) return;
      await this.#showRow(row, shown);
    } catch (error) {
      if (shown === this.shown) this.#fail(error);
    }
  }

  async #showRow(row, shown) {
    Object.assign(this, { row, detail: null });
    this.#say("");
    this.details.clearReason();
    this.details.showRow(row, this.kindWords);
    byId("tile-name").textContent = row.tile_id;
    byId("tile-where").textContent = `${row.location} · ${dateOf(row.datetime)} · ${row.width} × ${row.height} px`;
    this.#showWarning();
    this.#showVerdicts();
    const tile = this.tiles.open(row);
    const decided = this.ranking.verdictsOn(row)[this.reviewer];
    await Promise.all([this.desk.show(tile, decided), this.#showDetail(tile)]);
    if (shown === this.shown) await this.#prefetch();
  }

  async #showDetail(tile) {
    const detail = await tile.detail();
    if (tile.row.tile_id !== this.row?.tile_id) return;
    this.detail = detail;
    this.details.showDetail(detail, this.kindWords, this.reviewer);
    this.#showWarning();
    // As it is now, to be looked at; decisions are about the tile that was ranked.
    if (detail.hash_changed && detail.sha256_now) await this.desk.show(this.tiles.open({ ...tile.row, sha256: detail.sha256_now }));
  }

  async #prefetch() {
    const next = [];
    for (let at = this.index, i = 0; i < AHEAD; i++) {
      at = this.ranking.nextUndecided(at);
      if (at < 0) break;
      next.push(at);
    }
    for (const index of [...new Set([...next, this.index + 1])]) {
      if (index >= this.ranking.ranks.length) continue;
      const row = this.ranking.rows.get(this.ranking.ranks[index]) ?? (await this.ranking.row(this.ranking.ranks[index]));
      await this.tiles.prefetch(row, this.desk.chosen, this.desk.stretch);
    }
  }

  #showWarning() {
    const refused = this.deciding.refusals.filter(({ tile_id, status }) => tile_id === this.row?.tile_id && status === 409);
    const changed = this.detail?.hash_changed || refused.length > 0;
    byId("tile-warning").hidden = !changed;
    byId("tile-warning").textContent = changed
      ? "This tile changed since it was ranked: decisions about it are refused. Rank again to decide on it."
      : "";
  }

  // Decisions

  #fillVerdicts() {
    const buttons = Object.entries(VERDICTS).map(([verdict, { letter, word, means }]) =>
      element("button", { type: "button", id: `verdict-${verdict}`, title: means, on: { click: () => this.#decide(verdict) } }, `${word} `, element("kbd", { text: letter.toLowerCase() })),
    );
    const undo = element("button", { type: "button", id: "verdict-undo", title: "take your last decision back", on: { click: () => this.#undoLast() } }, "undo ", element("kbd", { text: "z" }));
    byId("verdicts").append(...buttons, undo);
  }

  #showVerdicts() {
    const mine = this.row ? this.ranking.verdictsOn(this.row)[this.reviewer] : undefined;
    for (const verdict of Object.keys(VERDICTS)) byId(`verdict-${verdict}`).setAttribute("aria-pressed", verdict === mine);
  }

  /** Decide on the tile shown, and go on to the next undecided one while the server is told. */
  async #decide(verdict) {
    const { row, index } = this;
    if (!row || this.saving) return;
    if (!this.desk.ready) {
      this.#say("Not decided: the tile is not shown yet.");
      return;
    }
    if (this.detail?.hash_changed) {
      this.#say("Not decided: this tile changed since it was ranked.");
      return;
    }
    const mask = this.#maskFor(verdict);
    if (mask === undefined) return;
    const reason = this.details.reason;
    const edited = mask && Uint8Array.from(this.desk.edit.mask);
    const png = mask && (await this.#encode(mask, row));
    const decision = this.deciding.decide(row, verdict, { reason, mask: png, note: edited && crc32(edited) });
    if (edited) this.saved.set(decision.decision_id, edited);
    this.ranking.decided(row.rank, verdict);
    this.#rowChanged(row.rank);
    await this.#goOn(row, index, `${VERDICTS[verdict].past}: ${row.tile_id}`);
  }

  /** Return a mask as the text of a PNG; meanwhile nothing else is decided. */
  async #encode(mask, { height, width }) {
    this.saving = true;
    byId("views").setAttribute("aria-busy", true);
    try {
      return toBase64(await encodeGreyPng(mask, height, width));
    } finally {
      this.saving = false;
      byId("views").setAttribute("aria-busy", !this.desk.ready);
    }
  }

  async #goOn(row, index, words) {
    if (this.row !== row) return; // the person has gone on meanwhile
    const next = this.ranking.nextUndecided(index);
    if (next >= 0) {
      const going = this.#goTo(next);
      this.#say(words);
      await going;
    } else {
      this.#showVerdicts();
      this.#say(`${words}. Nothing undecided is left in this filter.`);
    }
  }

  /** Return the mask that a verdict keeps, null where it keeps none, and undefined where there is nothing to keep. */
  #maskFor(verdict) {
    const { edit } = this.desk;
    if (verdict === "fix") {
      if (edit?.changed) return Uint8Array.from(edit.mask);
      this.#say("Nothing to fix is painted: b is the brush, e the eraser, t takes the prediction; a accepts the label.");
      return undefined;
    }
    if (verdict === "ignore") {
      if (edit?.hasRegion && !edit.changesBesidesRegion) return edit.region;
      this.#say(
        edit?.hasRegion
          ? "This edit also paints cloud or clear: f saves all of it. i saves a region alone; Ctrl z undoes strokes."
          : "No region is painted: x is the brush for what is not to be learnt from.",
      );
      return undefined;
    }
    return null;
  }

  async #undoLast() {
    const last = this.deciding.takeLast();
    if (last) await this.#undo(last.decision_id, last.rank);
    else this.#say("There is no decision of yours here to take back.");
  }

  async #undo(decisionId, rank) {
    try {
      const row = await this.ranking.row(rank);
      this.deciding.forget(decisionId);
      this.deciding.decide(row, "undo", { undoes: decisionId });
      this.ranking.decided(rank, null);
      this.#rowChanged(rank);
      await this.#show(rank);
      const mask = this.saved.get(decisionId);
      if (mask && this.row === row) this.desk.restore(mask);
      this.#say("Taken back.");
    } catch (error) {
      this.#fail(error);
    }
  }

  /** The log has a decision: what was kept for it in this browser can go. */
  async #stored(decision, editSum) {
    const { tile_id, verdict, mask, reviewer } = decision;
    if (reviewer === this.reviewer) this.ranking.stored(tile_id, verdict === "undo" ? null : verdict);
    try {
      if (mask) await this.#forgetDraft(decision, editSum);
      await this.#refreshRows([tile_id]);
      await this.progress.refresh();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Forget the draft that a decision was made of, unless it was edited further. */
  async #forgetDraft({ reviewer, tile_id, tile_sha256 }, editSum) {
    const tile = { tile_id, sha256: tile_sha256 };
    const draft = await this.drafts.read(reviewer, tile);
    if (draft && crc32(draft) === editSum) await this.drafts.forget(reviewer, tile);
  }

  #refused(decision) {
    this.#showRefusals();
    this.#showWarning();
    if (!decision) return;
    const rank = this.ranking.rankOf.get(decision.tile_id);
    if (rank === undefined) return;
    if (decision.verdict !== "undo" && decision.reviewer === this.reviewer) this.ranking.decided(rank, null);
    this.#rowChanged(rank);
  }

  #showRefusals() {
    const lines = this.deciding.refusals.map(({ decision_id, tile_id, verdict, words }) =>
      element(
        "p",
        {},
        element("span", { text: `Not kept: “${verdict}” for ${tile_id}: ${words}` }),
        element("button", { type: "button", text: "Dismiss", on: { click: () => this.deciding.dismiss(decision_id) } }),
      ),
    );
    byId("notices").replaceChildren(...lines);
  }

  #rowChanged(rank) {
    this.list.refresh();
    if (this.row?.rank === rank) this.#showVerdicts();
  }

  // The server and others

  async #decidedElsewhere(tileIds) {
    try {
      await this.#refreshRows(tileIds);
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Fetch anew what is known of some tiles, after decisions about them. */
  async #refreshRows(tileIds) {
    const ranks = tileIds.map((id) => this.ranking.rankOf.get(id)).filter((rank) => rank !== undefined);
    const before = this.row;
    await this.ranking.fetchRows(ranks);
    for (const rank of ranks) this.tiles.open(this.ranking.rows.get(rank)).forgetDetail();
    this.list.refresh();
    if (!before || !tileIds.includes(before.tile_id) || this.row !== before) return;
    this.row = this.ranking.rows.get(before.rank);
    this.#showVerdicts();
    const detail = await this.tiles.open(this.row).detail();
    if (this.row.tile_id !== detail.tile_id) return;
    this.detail = detail;
    this.details.showDecisions(detail, this.reviewer);
    this.#showWarning();
  }

  /** The server does not answer, which the queue tells where decisions wait for it. */
  #outOfReach(error) {
    this.outOfReach = true;
    if (!this.deciding.queue.state.count) this.#showQueue({ count: 0, trouble: error.message, unkept: 0 });
  }

  /** The server answers: send what waits, and fetch the rows that could not be fetched before. */
  #reached() {
    if (this.deciding.queue.state.count) this.deciding.queue.drain();
    if (!this.outOfReach) return;
    this.outOfReach = false;
    this.#showQueue(this.deciding.queue.state);
    this.list.refresh();
    if (this.row) this.#show(this.row.rank);
  }

  #showQueue({ count, trouble, unkept }) {
    const box = byId("queue");
    box.classList.toggle("trouble", trouble !== "");
    const waits = `${counted(count, "decision")} ${count === 1 ? "waits" : "wait"} for the server`;
    const room = unkept ? ` (${unkept} not kept in this browser, which has no room: leave this page open)` : "";
    box.textContent = count ? `${waits}${trouble ? `: ${trouble}` : ""}${room}` : trouble;
  }

  #say(text) {
    byId("said").textContent = text;
  }

  #fail(error) {
    if (!(error instanceof Refused)) this.outOfReach = true;
    this.#say(`Not shown: ${error.message}`);
  }

  #actions() {
    const { desk } = this;
    const decisions = Object.fromEntries(Object.keys(VERDICTS).map((verdict) => [verdict, () => this.#decide(verdict)]));
    return {
      ...decisions,
      undoDecision: () => this.#undoLast(),
      reason: () => byId("reason").focus(),
      next: () => this.#step(1),
      previous: () => this.#step(-1),
      search: () => byId("filter-query").focus(),
      leftLayer: (event) => desk.chooseLayerNumber(0, Number(event.key)),
      rightLayer: (event) => desk.chooseLayerNumber(1, Number(event.code.slice(-1))),
      toggleLabel: () => desk.toggle("label"),
      togglePrediction: () => desk.toggle("prediction"),
      toggleEdit: () => desk.toggle("edit"),
      hide: () => desk.hideOverlays(true),
      show: () => desk.hideOverlays(false),
      toggleStretch: () => desk.toggleStretch(),
      toggleViews: () => desk.toggleViews(),
      zoomIn: () => desk.views.zoom(1),
      zoomOut: () => desk.views.zoom(-1),
      fit: () => desk.views.fit(),
      brush: () => desk.setTool("brush"),
      eraser: () => desk.setTool("eraser"),
      ignoreBrush: () => desk.setTool("ignore"),
      hand: () => desk.setTool(null),
      smaller: () => desk.setSizeIndex(desk.sizeIndex - 1),
      larger: () => desk.setSizeIndex(desk.sizeIndex + 1),
      take: () => desk.takeHere(),
      takeAll: () => desk.takeEverywhere(),
      reset: () => desk.resetEdit(),
      undoStroke: () => desk.undoStroke(),
      redoStroke: () => desk.redoStroke(),
      help: () => byId("help").showModal(),
    };
  }
}

/** Ask for a name until there is one. */
function askReviewer(proposed) {
  const [dialog, input] = [byId("ask-reviewer"), byId("reviewer-name")];
  input.value = proposed;
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(input.checkValidity() ? input.value : proposed), { once: true });
  });
}

async function knownReviewer(proposed) {
  const known = localStorage.getItem(REVIEWER_KEY);
  if (known) return known;
  const reviewer = await askReviewer(proposed);
  localStorage.setItem(REVIEWER_KEY, reviewer);
  return reviewer;
}

try {
  const review = await readReview();
  const page = new ReviewPage(review);
  await page.start(await knownReviewer(review.reviewer));
} catch (error) {
  byId("notices").append(element("p", {}, element("span", { text: `The review can't be shown: ${error.message}` })));
}
