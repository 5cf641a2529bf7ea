// The ranking as a filter shows it: the ranks it had when the filter was set, so that nothing moves while decisions are
// made, and the rows of those that were looked at. Knows no page.

import { readRanks, readRows } from "./api.js";

const CHUNK = 100;

export class Ranking {
  /** `pending()` gives this reviewer's verdicts that wait for the server, by tile id; null is an undo. */
  constructor(pending) {
    this.pending = pending;
    this.reviewer = "";
    this.ranks = [];
    this.places = new Map(); // index in `ranks` by rank
    this.undecided = new Set(); // ranks that this reviewer has no decision on
    this.rows = new Map(); // by rank
    this.rankOf = new Map(); // by tile id
    this.loading = new Map(); // promises by chunk
  }

  /** Take the ranks of a filter; return false if another filter was set while the server answered. */
  async setFilter(filter, reviewer) {
    const token = (this.token = {});
    this.reviewer = reviewer;
    const [{ ranks }, undecided] = await Promise.all([
      readRanks(filter),
      readRanks({ ...filter, verdict: "none", reviewer }),
    ]);
    if (token !== this.token) return false;
    this.ranks = ranks;
    this.places = new Map(ranks.map((rank, i) => [rank, i]));
    this.undecided = new Set(undecided.ranks.filter((rank) => this.places.has(rank)));
    this.loading.clear();
    return true;
  }

  /** Return the index of a rank in this filter, or -1. */
  indexOf(rank) {
    return this.places.get(rank) ?? -1;
  }

  rowAt(index) {
    return this.rows.get(this.ranks[index]);
  }

  /** Fetch the rows of some indexes, in chunks that begin at the same places always. */
  async load(first, last) {
    const chunks = [];
    for (let chunk = Math.floor(first / CHUNK); chunk * CHUNK <= last; chunk++) {
      if (!this.loading.has(chunk)) this.loading.set(chunk, this.#loadChunk(chunk));
      chunks.push(this.loading.get(chunk));
    }
    await Promise.all(chunks);
  }

  async #loadChunk(chunk) {
    const wanted = this.ranks.slice(chunk * CHUNK, (chunk + 1) * CHUNK).filter((rank) => !this.rows.has(rank));
    const loading = this.loading;
    try {
      await this.fetchRows(wanted);
    } catch (error) {
      loading.delete(chunk);
      throw error;
    }
  }

  /** Fetch the rows of some ranks, again if they are known. */
  async fetchRows(ranks) {
    for (let start = 0; start < ranks.length; start += CHUNK) {
      const { tiles } = await readRows(ranks.slice(start, start + CHUNK));
      for (const row of tiles) {
        this.rows.set(row.rank, row);
        this.rankOf.set(row.tile_id, row.rank);
      }
    }
  }

  async row(rank) {
    if (!this.rows.has(rank)) await this.fetchRows([rank]);
    return this.rows.get(rank);
  }

  /** Return the standing verdicts on a row by reviewer, with what waits to be sent. */
  verdictsOn(row) {
    const verdicts = { ...row.decisions };
    const pending = this.pending().get(row.tile_id);
    if (pending) verdicts[this.reviewer] = pending;
    if (pending === null) delete verdicts[this.reviewer];
    return verdicts;
  }

  /** Note that this reviewer decided on a rank, or took it back. */
  decided(rank, verdict) {
    if (verdict === null) {
      if (this.places.has(rank)) this.undecided.add(rank);
    } else {
      this.undecided.delete(rank);
    }
  }

  /** Note that the log has this reviewer's decision on a tile; what stands after an undo, the server says. */
  stored(tileId, verdict) {
    const row = this.rows.get(this.rankOf.get(tileId));
    if (row && verdict !== "undo") row.decisions = { ...row.decisions, [this.reviewer]: verdict };
  }

  /** Return the index of the next rank that this reviewer has not decided on, from the start again, or -1. */
  nextUndecided(index) {
    for (let step = 1; step <= this.ranks.length; step++) {
      const at = (index + step) % this.ranks.length;
      if (this.undecided.has(this.ranks[at])) return at;
    }
    return -1;
  }
}
