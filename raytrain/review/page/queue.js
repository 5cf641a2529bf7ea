// Decisions on their way to the server: each waits in this browser's localStorage until the server has it, so that
// neither a reload nor a server that is down loses one. They are sent one after another, in the order they were made.
// Each has a key of its own, so that two windows of one browser don't overwrite each other's. Knows no page.

import { Refused } from "./api.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;

/** Refusals that a decision is not to blame for: it waits until this browser is let in, or the fault is mended. */
const NOT_ITS_FAULT = [401, 403, 500];

/** After so many faults of the server in a row, a decision lets those about other tiles pass, and is tried on. */
const FAULTS_BEFORE_OTHERS = 3;

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
    this.faults = new Map(); // how often in a row the server failed at an entry, by its key
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
    const passed = new Set(); // the tiles of which a decision is let wait, and so all that follow it
    try {
      for (let key = this.#next(passed); key !== undefined; key = this.#next(passed)) {
        if (!(await this.#sendOne(key, passed))) break;
      }
    } finally {
      this.sending = false;
    }
    this.listeners.onChange(this.state);
  }

  /** The key of the oldest entry about none of these tiles. */
  #next(passed) {
    return this.#keys().find((key) => !passed.has(this.#read(key)?.decision.tile_id));
  }

  /** Send an entry; return whether to go on with the next. One that others pass puts its tile into `passed`. */
  async #sendOne(key, passed) {
    const entry = this.#read(key);
    if (entry === null) return true; // another window has sent it
    const { decision, note } = entry;
    try {
      await this.send(decision);
      this.#forget(key);
      this.#wentWell(passed);
      this.listeners.onStored(decision, note);
    } catch (error) {
      if (!(error instanceof Refused) || NOT_ITS_FAULT.includes(error.status)) {
        const faults = error.status === 500 ? (this.faults.get(key) ?? 0) + 1 : 0;
        this.faults.set(key, faults);
        this.trouble = error.message;
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.drain(), this.waitMs);
        this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
        if (faults < FAULTS_BEFORE_OTHERS) return false;
        this.trouble = `the server fails at ${decision.tile_id}, and is asked again: ${error.message}`;
        passed.add(decision.tile_id);
        return true;
      }
      this.#forget(key);
      this.#wentWell(passed);
      this.listeners.onRefused(decision, error);
    }
    this.listeners.onChange(this.state);
    return true;
  }

  #wentWell(passed) {
    if (passed.size) return; // what is told of those that wait stays
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
    this.faults.delete(key);
    localStorage.removeItem(key);
  }
}
