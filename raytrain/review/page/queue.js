// Decisions on their way to the server: each waits in this browser's localStorage until the server has it, so that
// neither a reload nor a server that is down loses one. They are sent one after another, in the order they were made.
// Each has a key of its own, so that two windows of one browser don't overwrite each other's. Knows no page.

import { Refused } from "./api.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;

/** Refusals that a decision is not to blame for: it waits until this browser is let in, or the fault is mended. */
const NOT_ITS_FAULT = [401, 403, 500];

export class Queue {
  /**
   * `send` takes a decision to the server. `onChange(state)` is told what waits and why; `onStored(decision, note)`
   * and `onRefused(decision, error)` what became of each; the note was added with it and is not sent.
   */
  constructor(reviewId, send, { onChange, onStored, onRefused }) {
    this.prefix = `raytrain-review/${reviewId}/waiting/`;
    this.send = send;
    this.listeners = { onChange, onStored, onRefused };
    this.unkept = new Map(); // entries that localStorage has no room for, by their key
    this.parsed = new Map(); // what was read before: masks are long
    this.trouble = "";
    this.sending = false;
    this.timer = null;
    this.waitMs = FIRST_WAIT_MS;
  }

  /** The decisions that wait, the oldest first. */
  get waiting() {
    const entries = this.#keys().map((key) => this.#read(key));
    return entries.filter((entry) => entry !== null).map(({ decision }) => decision);
  }

  get state() {
    return { count: this.#keys().length, trouble: this.trouble, unkept: this.unkept.size };
  }

  add(decision, note) {
    const key = `${this.prefix}${String(this.#nextNumber()).padStart(9, "0")}/${decision.decision_id}`;
    try {
      localStorage.setItem(key, JSON.stringify({ decision, note }));
    } catch {
      this.unkept.set(key, { decision, note });
    }
    this.listeners.onChange(this.state);
    this.drain();
  }

  /** Send what waits, until nothing does or the server can't be reached; then try again later. */
  async drain() {
    if (this.sending) return;
    this.sending = true;
    clearTimeout(this.timer);
    try {
      for (let key = this.#keys()[0]; key !== undefined; key = this.#keys()[0]) {
        if (!(await this.#sendOne(key))) break;
      }
    } finally {
      this.sending = false;
    }
    this.listeners.onChange(this.state);
  }

  async #sendOne(key) {
    const entry = this.#read(key);
    if (entry === null) return true; // another window has sent it
    const { decision, note } = entry;
    try {
      await this.send(decision);
      this.#forget(key);
      this.#wentWell();
      this.listeners.onStored(decision, note);
    } catch (error) {
      if (!(error instanceof Refused) || NOT_ITS_FAULT.includes(error.status)) {
        this.trouble = error.message;
        this.timer = setTimeout(() => this.drain(), this.waitMs);
        this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
        return false;
      }
      this.#forget(key);
      this.#wentWell();
      this.listeners.onRefused(decision, error);
    }
    this.listeners.onChange(this.state);
    return true;
  }

  #wentWell() {
    this.trouble = "";
    this.waitMs = FIRST_WAIT_MS;
  }

  #keys() {
    const stored = Object.keys(localStorage).filter((key) => key.startsWith(this.prefix));
    return [...stored, ...this.unkept.keys()].sort();
  }

  #nextNumber() {
    const last = this.#keys().at(-1);
    return last === undefined ? 1 : Number(last.slice(this.prefix.length).split("/")[0]) + 1;
  }

  #read(key) {
    const unkept = this.unkept.get(key);
    if (unkept) return unkept;
    const text = localStorage.getItem(key);
    if (text === null) return null;
    if (!this.parsed.has(key)) this.parsed.set(key, JSON.parse(text));
    return this.parsed.get(key);
  }

  #forget(key) {
    this.unkept.delete(key);
    this.parsed.delete(key);
    localStorage.removeItem(key);
  }
}
