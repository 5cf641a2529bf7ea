// Decisions as they are made: put into the queue at once, remembered to be taken back, refused ones told until a person
// has read it. Knows no tile's pixels and no list.

import { sendDecision } from "./api.js";
import { Queue } from "./queue.js";

const REMEMBERED = 200;

/** Return 32 hexadecimal digits that nobody has drawn before. */
function newDecisionId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Deciding {
  /**
   * What becomes of decisions is told to `onQueue(state)`, `onStored(decision, note)` and `onRefused(decision)`,
   * which is null where a refusal was dismissed.
   */
  constructor(reviewId, { onQueue, onStored, onRefused }) {
    this.prefix = `raytrain-review/${reviewId}/`;
    this.reviewer = "";
    this.refusals = this.#read(`${this.prefix}refused`); // what the server refused, with its reason, the latest last
    this.listeners = { onQueue, onStored, onRefused };
    this.queue = new Queue(reviewId, sendDecision, {
      onChange: onQueue,
      onStored,
      onRefused: (decision, error) => this.#refuse(decision, error),
    });
  }

  /** Put a decision into the queue; `note` comes back with it when it is stored. */
  decide(row, verdict, { reason = "", mask = null, undoes = null, note = null } = {}) {
    const decision = {
      decision_id: newDecisionId(),
      reviewer: this.reviewer,
      tile_id: row.tile_id,
      tile_sha256: row.sha256,
      verdict,
      reason,
      kind: row.kind,
      mask,
      undoes,
    };
    if (verdict !== "undo") this.#remember({ decision_id: decision.decision_id, rank: row.rank });
    this.queue.add(decision, note);
    return decision;
  }

  /** This reviewer's verdicts that wait, by tile id; null is an undo. */
  pending() {
    const own = this.queue.waiting.filter((decision) => decision.reviewer === this.reviewer);
    return new Map(own.map(({ tile_id, verdict }) => [tile_id, verdict === "undo" ? null : verdict]));
  }

  /** Return this reviewer's last decision here, `{decision_id, rank}`, and forget it; null where there is none. */
  takeLast() {
    const made = this.#made();
    const last = made.pop() ?? null;
    this.#write(this.#madeKey(), made);
    return last;
  }

  forget(decisionId) {
    this.#write(
      this.#madeKey(),
      this.#made().filter((each) => each.decision_id !== decisionId),
    );
  }

  #remember(made) {
    this.#write(this.#madeKey(), [...this.#made(), made].slice(-REMEMBERED));
  }

  #made() {
    return this.#read(this.#madeKey());
  }

  #madeKey() {
    return `${this.prefix}made/${this.reviewer}`;
  }

  dismiss(decisionId) {
    this.#keepRefusals(this.refusals.filter((each) => each.decision_id !== decisionId));
    this.listeners.onRefused(null);
  }

  #refuse(decision, error) {
    const { decision_id, tile_id, verdict } = decision;
    const words = error.message;
    this.#keepRefusals([...this.refusals, { decision_id, tile_id, verdict, words, status: error.status }]);
    this.forget(decision_id);
    this.listeners.onRefused(decision);
  }

  #keepRefusals(refusals) {
    this.refusals = refusals;
    this.#write(`${this.prefix}refused`, refusals);
  }

  #read(key) {
    return JSON.parse(localStorage.getItem(key) ?? "[]");
  }

  #write(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch {
      // No room is left, which the queue tells of what it holds: this browser forgets these at the next reload only.
    }
  }
}
