// The panel beside the views: why a tile is suspicious, who decided what, and its neighbours. Knows no canvas.

import { thumbnailPath } from "./api.js";
import { counted, element, percent } from "./dom.js";
import { FEATURES, VERDICTS } from "./words.js";

const THUMBNAIL_PX = 144;

export class Details {
  /** `onUndo(decisionId)` and `onGo(rank)` are called when a person asks for it. */
  constructor(box, { onUndo, onGo }) {
    this.box = box;
    this.options = { onUndo, onGo };
    this.reasonOf = null; // the id of the tile that a reason is written for
    this.reasonBox = element("textarea", { id: "reason", rows: "2", maxlength: "1000", placeholder: "why (optional)" });
    this.parts = {
      why: element("div"),
      decisions: element("div"),
      neighbours: element("div"),
      measured: element("div"),
    };
    const reason = element("label", { class: "reason" }, "Reason ", element("kbd", { text: "r" }), this.reasonBox);
    box.append(this.parts.why, this.parts.decisions, reason, this.parts.neighbours, this.parts.measured);
  }

  get reason() {
    return this.reasonBox.value.trim();
  }

  /** Begin a reason for a tile; what was written for that very tile stays. */
  beginReason(tileId) {
    if (this.reasonOf !== tileId) this.clearReason();
    this.reasonOf = tileId;
  }

  clearReason() {
    this.reasonBox.value = "";
  }

  /** Show what the row says, before its tile is known in full. */
  showRow(row, kindWords) {
    this.parts.why.replaceChildren(
      element("h2", { text: "Why" }),
      element("p", { class: "why", text: kindWords[row.kind] ?? row.kind }),
      element("p", {
        class: "quiet",
        text: `Suspicion ${row.suspicion.toFixed(2)} of 1, rank ${row.rank.toLocaleString("en")}`,
      }),
    );
    for (const name of ["decisions", "neighbours", "measured"]) this.parts[name].replaceChildren();
  }

  showDetail(detail, kindWords, reviewer) {
    this.parts.why.append(this.#kinds(detail, kindWords));
    this.parts.measured.replaceChildren(element("h2", { text: "What was measured" }), features(detail));
    this.showDecisions(detail, reviewer);
    this.#showNeighbours(detail.neighbours, kindWords, reviewer);
  }

  #kinds(detail, kindWords) {
    const kinds = Object.entries(detail.judgement).sort(([, a], [, b]) => b - a);
    const rows = kinds.map(([kind, suspicion]) =>
      element(
        "li",
        { title: kindWords[kind] ?? "" },
        element("span", { text: kind }),
        bar(suspicion),
        element("span", { class: "number", text: suspicion.toFixed(2) }),
      ),
    );
    return element("ul", { class: "kinds" }, ...rows);
  }

  /** Show the standing decisions and the history of a tile. */
  showDecisions(detail, reviewer) {
    const standing = Object.values(detail.decisions).map((decision) => this.#decision(decision, reviewer, true));
    const past = detail.history.map((decision) => this.#decision(decision, reviewer, false));
    this.parts.decisions.replaceChildren(
      element("h2", { text: "Decisions" }),
      standing.length
        ? element("ul", { class: "decisions" }, ...standing)
        : element("p", { class: "quiet", text: "Nobody has decided yet." }),
    );
    if (past.length <= standing.length) return;
    const summary = element("summary", { text: `${counted(past.length, "decision")} in all` });
    this.parts.decisions.append(element("details", {}, summary, element("ul", { class: "decisions" }, ...past)));
  }

  #decision(decision, reviewer, standing) {
    const word = VERDICTS[decision.verdict]?.past ?? "took a decision back";
    const when = new Date(decision.time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const item = element(
      "li",
      {},
      element(
        "p",
        {},
        badge(decision.verdict, decision.reviewer === reviewer),
        element("b", { text: decision.reviewer }),
        ` ${word}`,
      ),
      element("p", { class: "quiet", text: when }),
      decision.reason ? element("p", { class: "said-reason", text: decision.reason }) : null,
    );
    if (standing && decision.reviewer === reviewer) {
      const undo = () => this.options.onUndo(decision.decision_id);
      item.append(element("button", { type: "button", text: "Take back", on: { click: undo } }));
    }
    return item;
  }

  #showNeighbours(neighbours, kindWords, reviewer) {
    if (!neighbours.length) return;
    const items = neighbours.map((each) => {
      const words = `${each.tile_id}, rank ${each.rank}: ${kindWords[each.kind] ?? each.kind}`;
      const verdict = each.decisions[reviewer];
      return element(
        "button",
        {
          type: "button",
          class: "neighbour",
          title: words,
          "aria-label": words,
          on: { click: () => this.options.onGo(each.rank) },
        },
        element("img", { src: thumbnailPath(each, THUMBNAIL_PX), alt: "", loading: "lazy", width: "72", height: "72" }),
        element("span", { text: `${each.rank.toLocaleString("en")}${verdict ? ` ${VERDICTS[verdict].letter}` : ""}` }),
      );
    });
    this.parts.neighbours.replaceChildren(
      element("h2", { text: "Of the same scene" }),
      element("div", { class: "neighbours" }, ...items),
    );
  }

  /** Show what is known of something without a label. */
  showUnlabelled(item) {
    const facts = [
      ["Location", item.location ?? "–"],
      ["Taken", dateOf(item.datetime)],
      ["Size", `${item.width} × ${item.height} px`],
      ["Disagreement of the members, mean", item.disagreement_mean.toFixed(3)],
      ["Cloud in the prediction", percent(item.cloud_fraction)],
      ["Source", item.source_uri],
    ];
    this.parts.why.replaceChildren(
      element("h2", { text: item.item_id }),
      element("p", {
        class: "why",
        text: `A ${item.kind} without a label: the members disagree on it, so a label would teach them something.`,
      }),
      factList(facts),
    );
    for (const name of ["decisions", "neighbours", "measured"]) this.parts[name].replaceChildren();
  }
}

/** Return when something was taken, in words. */
export function dateOf(text) {
  return text ? new Date(text).toLocaleDateString([], { dateStyle: "medium" }) : "date unknown";
}

/** Return a bar for a fraction. */
export function bar(fraction) {
  const filled = element("span");
  filled.style.width = `${(100 * Math.min(1, Math.max(0, fraction))).toFixed(1)}%`;
  return element("span", { class: "track", "aria-hidden": "true" }, filled);
}

/** Return a verdict as a letter in a frame, filled if it is one's own. */
export function badge(verdict, mine, label = VERDICTS[verdict]?.past ?? verdict) {
  return element("span", {
    class: `badge ${mine ? "mine" : ""}`,
    role: "img",
    title: label,
    "aria-label": label,
    text: VERDICTS[verdict]?.letter ?? "–",
  });
}

function features(detail) {
  const known = Object.entries(FEATURES).filter(([name]) => name in detail.features);
  return factList(
    known.map(([name, [words, shown]]) => {
      const value = detail.features[name];
      return [words, value === null ? "–" : shown(value)];
    }),
  );
}

function factList(facts) {
  return element(
    "dl",
    { class: "facts" },
    ...facts.map(([name, value]) => element("div", {}, element("dt", { text: name }), element("dd", { text: value }))),
  );
}
