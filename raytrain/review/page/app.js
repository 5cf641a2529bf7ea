// Starts the page and joins its parts: the ranking and its filter, the tile on the desk, decisions, and what others do.

import { actionsOn } from "./actions.js";
import { Refused, readReview, readUnlabelled } from "./api.js";
import { Deciding } from "./deciding.js";
import { Desk } from "./desk.js";
import { Details, dateOf } from "./details.js";
import { byId, element } from "./dom.js";
import { Drafts } from "./drafts.js";
import { Filters, countWords } from "./filters.js";
import { listen, showKeys } from "./keys.js";
import { List } from "./list.js";
import { crc32, encodeGreyPng, toBase64 } from "./png.js";
import { Progress } from "./progress.js";
import { Ranking } from "./ranking.js";
import { askReviewer, knownReviewer } from "./reviewer.js";
import { fillRow, fillWaiting } from "./rows.js";
import { say, showChanged, showQueue, showRefusals } from "./status.js";
import { Tiles } from "./tiles.js";
import { Unlabelled } from "./unlabelled.js";
import { addVerdicts, maskFor, showVerdict } from "./verdicts.js";
import { LAYERS, VERDICTS } from "./words.js";

const ROW_PX = 46;
const AHEAD = 3;
const SAVED_KEPT = 50;

class ReviewPage {
  constructor(review) {
    this.review = review;
    this.kindWords = Object.fromEntries(review.kinds.map(({ name, words }) => [name, words]));
    this.index = -1; // in the ranking as it is filtered; of the last tile there, where a tile outside of it is shown
    this.rank = 1; // of the tile shown, or that is to be shown
    this.row = null;
    this.detail = null;
    this.saving = false; // while a mask is made ready to be sent
    this.outOfReach = false; // something could not be fetched
    this.filterWaits = false; // the filter could not be set
    this.tiles = new Tiles(review.version);
    this.drafts = new Drafts(review.review_id);
    this.deciding = new Deciding(review.review_id, {
      onQueue: showQueue,
      onStored: (decision, editSum) => this.#stored(decision, editSum),
      onRefused: (decision) => this.#refused(decision),
    });
    this.ranking = new Ranking(() => this.deciding.pending());
    this.saved = new Map(); // masks of this window's fixes and ignores by decision id, to go on with after an undo
    const layers = Object.keys(LAYERS).filter((name) => name !== "false-colour" || review.has_false_colour);
    this.desk = new Desk(layers, this.drafts, {
      say,
      fail: (error) => this.#fail(error),
    });
    this.details = new Details(byId("details"), {
      onUndo: (id) => this.#undo(id, this.row.rank),
      onGo: (rank) => this.#show(rank),
    });
    this.list = new List(byId("list"), ROW_PX, {
      fill: (box, index) => this.#fillRow(box, this.ranking.rowAt(index)),
      load: (first, last) => this.ranking.load(first, last).catch((error) => this.#fail(error)),
      choose: (index) => this.#goTo(index),
    });
    this.filters = new Filters(review, () => this.#filterAnew());
    this.progress = new Progress({
      onDecisions: (tileIds) => this.#decidedElsewhere(tileIds),
      onReached: () => this.#reached(),
      onTrouble: (error) => this.#outOfReach(error),
    });
    this.unlabelled = new Unlabelled(review.num_unlabelled, {
      read: readUnlabelled,
      show: (item) => this.details.showUnlabelled(item),
      leave: () => this.#show(this.rank),
      fail: (error) => this.#fail(error),
    });
    addVerdicts(
      (verdict) => this.decide(verdict),
      () => this.undoLast(),
    );
    showQueue(this.deciding.queue.state);
    showRefusals(this.deciding);
  }

  async start(reviewer) {
    this.#setReviewer(reviewer);
    listen(actionsOn(this), () => this.unlabelled.isOpen);
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
    this.#setReviewer(reviewer);
    await Promise.all([this.#setFilter(), this.progress.refresh()]).catch((error) => this.#fail(error));
  }

  // The ranking

  /** Set the filter; where the server does not answer, when it does again. */
  async #filterAnew() {
    this.filterWaits = true;
    try {
      await this.#setFilter();
      this.filterWaits = false;
    } catch (error) {
      this.#fail(error);
    }
  }

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
    else say("No tile is like that: choose another filter.");
  }

  #fillRow(box, row) {
    if (row) fillRow(box, row, this.ranking.verdictsOn(row), this.reviewer, this.kindWords);
    else fillWaiting(box);
    return row !== undefined;
  }

  #listKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.step(step);
  }

  step(step) {
    const index = this.index + step;
    if (index >= 0 && index < this.ranking.ranks.length) this.#goTo(index);
    else say(step > 0 ? "This is the last tile of the filter." : "This is the first tile of the filter.");
  }

  // The tile

  async #goTo(index) {
    this.index = index;
    await this.#show(this.ranking.ranks[index]);
  }

  /** Show the tile of a rank, whether or not the filter has it. */
  async #show(rank) {
    const shown = (this.shown = {}); // whoever comes later takes the page
    this.rank = rank;
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
    say("");
    this.details.beginReason(row.tile_id);
    this.details.showRow(row, this.kindWords);
    byId("tile-name").textContent = row.tile_id;
    byId("tile-where").textContent = `${row.location} · ${dateOf(row.datetime)} · ${row.width} × ${row.height} px`;
    this.#showWarning();
    this.#showVerdict();
    const tile = this.tiles.open(row);
    const decided = this.ranking.verdictsOn(row)[this.reviewer];
    await Promise.all([this.desk.show(tile, decided), this.#showDetail(tile)]);
    if (shown === this.shown) this.#prefetch(shown).catch((error) => this.#outOfReach(error));
  }

  async #showDetail(tile) {
    const detail = await tile.detail();
    if (tile.row.tile_id !== this.row?.tile_id) return;
    this.detail = detail;
    this.details.showDetail(detail, this.kindWords, this.reviewer);
    this.#showWarning();
    // As it is now, to be looked at; decisions are about the tile that was ranked.
    if (detail.hash_changed && detail.sha256_now)
      await this.desk.show(this.tiles.open({ ...tile.row, sha256: detail.sha256_now }));
  }

  /** Fetch ahead the next undecided tiles and the next one at all, until another tile is shown. */
  async #prefetch(shown) {
    const next = [];
    for (let at = this.index, i = 0; i < AHEAD; i++) {
      at = this.ranking.nextUndecided(at);
      if (at >= 0) next.push(at);
    }
    for (const index of new Set([...next, this.index + 1])) {
      if (index >= this.ranking.ranks.length || shown !== this.shown) continue;
      const row = await this.ranking.row(this.ranking.ranks[index]);
      await this.tiles.prefetch(row, this.desk.chosen, this.desk.stretch);
    }
  }

  #showWarning() {
    const refused = this.deciding.refusals.filter(
      ({ tile_id, status }) => tile_id === this.row?.tile_id && status === 409,
    );
    showChanged(this.detail?.hash_changed || refused.length > 0);
  }

  // Decisions

  #showVerdict() {
    showVerdict(this.row ? this.ranking.verdictsOn(this.row)[this.reviewer] : undefined);
  }

  /** Decide on the tile shown, and go on to the next undecided one while the server is told. */
  async decide(verdict) {
    const { row, index } = this;
    if (!row || this.saving) return;
    if (!this.desk.ready) {
      say("Not decided: the tile is not shown yet.");
      return;
    }
    if (this.detail?.hash_changed) {
      say("Not decided: this tile changed since it was ranked.");
      return;
    }
    const { mask, missing } = maskFor(verdict, this.desk.edit);
    if (missing) {
      say(missing);
      return;
    }
    const reason = this.details.reason;
    const edited = mask && Uint8Array.from(this.desk.edit.mask);
    const png = mask && (await this.#encode(mask, row));
    const decision = this.deciding.decide(row, verdict, { reason, mask: png, note: edited && crc32(edited) });
    if (edited) this.#keepSaved(decision.decision_id, edited);
    this.details.clearReason();
    this.ranking.decided(row.rank, verdict);
    this.#rowChanged(row.rank);
    await this.#goOn(row, index, `${VERDICTS[verdict].past}: ${row.tile_id}`);
  }

  #keepSaved(decisionId, edited) {
    this.saved.set(decisionId, edited);
    if (this.saved.size > SAVED_KEPT) this.saved.delete(this.saved.keys().next().value);
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
    if (this.row?.tile_id !== row.tile_id) return; // the person has gone on meanwhile
    const next = this.ranking.nextUndecided(index);
    if (next >= 0) {
      const going = this.#goTo(next);
      say(words);
      await going;
    } else {
      this.#showVerdict();
      say(`${words}. Nothing undecided is left in this filter.`);
    }
  }

  async undoLast() {
    const last = this.deciding.takeLast();
    if (last) await this.#undo(last.decision_id, last.rank);
    else say("There is no decision of yours here to take back.");
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
      if (mask && this.row?.tile_id === row.tile_id) this.desk.restore(mask);
      say("Taken back.");
    } catch (error) {
      this.#fail(error);
    }
  }

  /** The log has a decision: what was kept for it in this browser can go. */
  async #stored(decision, editSum) {
    const { tile_id, verdict, mask, reviewer } = decision;
    if (reviewer === this.reviewer) this.ranking.stored(tile_id, verdict);
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
    showRefusals(this.deciding);
    this.#showWarning();
    if (!decision) return;
    const rank = this.ranking.rankOf.get(decision.tile_id);
    if (rank === undefined) return;
    if (decision.verdict !== "undo" && decision.reviewer === this.reviewer) this.ranking.decided(rank, null);
    this.#rowChanged(rank);
  }

  #rowChanged(rank) {
    this.list.refresh();
    if (this.row?.rank === rank) this.#showVerdict();
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
    for (const rank of ranks) this.tiles.forgetDetail(this.ranking.rows.get(rank));
    this.list.refresh();
    if (!before || !tileIds.includes(before.tile_id) || this.row !== before) return;
    this.row = this.ranking.rows.get(before.rank);
    this.#showVerdict();
    const detail = await this.tiles.open(this.row).detail();
    if (this.row?.tile_id !== detail.tile_id) return;
    this.detail = detail;
    this.details.showDecisions(detail, this.reviewer);
    this.#showWarning();
  }

  /** The server does not answer, which the queue tells where decisions wait for it. */
  #outOfReach(error) {
    this.outOfReach = true;
    if (!this.deciding.queue.state.count) showQueue({ count: 0, trouble: error.message, unkept: 0 });
  }

  /** The server answers: send what waits, and fetch the rows that could not be fetched before. */
  #reached() {
    if (this.deciding.queue.state.count) this.deciding.queue.drain();
    if (!this.outOfReach) return;
    this.outOfReach = false;
    showQueue(this.deciding.queue.state);
    if (this.filterWaits) this.#filterAnew();
    this.list.refresh();
    if (!this.row || !this.desk.ready || !this.detail) this.#show(this.rank);
  }

  #fail(error) {
    if (!(error instanceof Refused)) this.outOfReach = true;
    say(`Not shown: ${error.message}`);
  }
}

try {
  const review = await readReview();
  const page = new ReviewPage(review);
  await page.start(await knownReviewer(review.reviewer));
} catch (error) {
  byId("notices").append(element("p", {}, element("span", { text: `The review can't be shown: ${error.message}` })));
}
