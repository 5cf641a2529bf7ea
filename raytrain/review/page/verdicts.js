// The buttons of the verdicts, and what of an edit each verdict keeps. Knows no decision's way to the server.

import { byId, element } from "./dom.js";
import { VERDICTS } from "./words.js";

/** Put the buttons into the page; `decide(verdict)` and `undo()` are what they do. */
export function addVerdicts(decide, undo) {
  const buttons = Object.entries(VERDICTS).map(([verdict, { letter, word, means }]) =>
    button(verdict, word, letter.toLowerCase(), means, () => decide(verdict)),
  );
  byId("verdicts").append(...buttons, button("undo", "undo", "z", "take your last decision back", undo));
}

function button(verdict, word, key, title, press) {
  const attributes = { type: "button", id: `verdict-${verdict}`, title, on: { click: press } };
  return element("button", attributes, `${word} `, element("kbd", { text: key }));
}

/** Show which verdict stands, if one does. */
export function showVerdict(standing) {
  for (const verdict of Object.keys(VERDICTS)) {
    byId(`verdict-${verdict}`).setAttribute("aria-pressed", verdict === standing);
  }
}

/** Return the `mask` that a verdict keeps of an edit, null for none, or in words what is `missing` for it. */
export function maskFor(verdict, edit) {
  if (verdict === "fix") {
    if (edit?.changed) return { mask: Uint8Array.from(edit.mask) };
    return {
      missing: "Nothing to fix is painted: b is the brush, e the eraser, t takes the prediction; a accepts the label.",
    };
  }
  if (verdict === "ignore") {
    if (!edit?.hasRegion) return { missing: "No region is painted: x is the brush for what is not to be learnt from." };
    if (!edit.changesBesidesRegion) return { mask: edit.region };
    return {
      missing:
        "This edit also paints cloud or clear: f saves all of it. i saves a region alone; Ctrl z undoes strokes.",
    };
  }
  return { mask: null };
}
