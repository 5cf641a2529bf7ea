// What a row of the ranking shows. Knows no list and no server.

import { badge, bar } from "./details.js";
import { element } from "./dom.js";
import { VERDICTS } from "./words.js";

/** Show that a row is on its way. */
export function fillWaiting(box) {
  box.append(element("span", { class: "rank", text: "…" }));
}

/** Show a tile: its rank, the error suspected, where it is, how suspicious, and the verdicts on it by reviewer. */
export function fillRow(box, row, verdicts, reviewer, kindWords) {
  const badges = Object.entries(verdicts).map(([name, verdict]) =>
    badge(verdict, name === reviewer, `${VERDICTS[verdict].past}, by ${name}`),
  );
  box.classList.toggle("done", reviewer in verdicts);
  box.append(
    element("span", { class: "rank", text: row.rank.toLocaleString("en") }),
    element("span", { class: "name", text: row.kind, title: `${row.tile_id}: ${kindWords[row.kind] ?? row.kind}` }),
    element("span", { class: "badges" }, ...badges),
    element(
      "span",
      { class: "second" },
      element("span", { text: row.location }),
      bar(row.suspicion),
      element("span", { class: "number", text: row.suspicion.toFixed(2) }),
    ),
  );
}
