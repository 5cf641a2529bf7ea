// What the page tells: the last thing done, decisions that wait, those that were refused. Knows nothing else.

import { byId, counted, element } from "./dom.js";

/** Tell something, in place of what was told before. */
export function say(text) {
  byId("said").textContent = text;
}

/** Tell how many decisions wait for the server, and why. */
export function showQueue({ count, trouble, unkept }) {
  const box = byId("queue");
  box.classList.toggle("trouble", trouble !== "");
  const waits = `${counted(count, "decision")} ${count === 1 ? "waits" : "wait"} for the server`;
  const room = unkept ? ` (${unkept} not kept in this browser, which has no room: leave this page open)` : "";
  box.textContent = count ? `${waits}${trouble ? `: ${trouble}` : ""}${room}` : trouble;
}

/** Tell of each decision that the server refused, until a person has read it. */
export function showRefusals(deciding) {
  const lines = deciding.refusals.map(({ decision_id, tile_id, verdict, words }) =>
    element(
      "p",
      {},
      element("span", { text: `Not kept: “${verdict}” for ${tile_id}: ${words}` }),
      element("button", { type: "button", text: "Dismiss", on: { click: () => deciding.dismiss(decision_id) } }),
    ),
  );
  byId("notices").replaceChildren(...lines);
}

/** Tell whether the tile shown is another than was ranked. */
export function showChanged(changed) {
  byId("tile-warning").hidden = !changed;
  byId("tile-warning").textContent = changed
    ? "This tile changed since it was ranked: decisions about it are refused. Rank again to decide on it."
    : "";
}
