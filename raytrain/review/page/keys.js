// Which key does what: one table, for the keyboard and for the help that shows it. Knows not how it is done.

import { byId, element } from "./dom.js";

/** Each: the keys as events name them, as people read them, what they do, the name of the action. */
const KEYS = [
  [
    "Decide",
    [
      [["a"], "a", "accept: the label is right", "accept"],
      [["f"], "f", "fix: save the edited mask as the label", "fix"],
      [["i"], "i", "ignore: save the region painted with x", "ignore"],
      [["d"], "d", "drop the tile", "drop"],
      [["u"], "u", "unsure: someone else should look", "unsure"],
      [["z"], "z", "take your last decision back, and go there", "undoDecision"],
      [["r"], "r", "write a reason (Escape returns)", "reason"],
    ],
  ],
  [
    "Go",
    [
      [["n", "j", "ArrowRight"], "n j →", "next tile", "next"],
      [["p", "k", "ArrowLeft"], "p k ←", "previous tile", "previous"],
      [["/"], "/", "search", "search"],
      [["?"], "?", "these keys", "help"],
    ],
  ],
  [
    "Look",
    [
      [["1", "2", "3", "4"], "1 – 4", "layer of the left view", "leftLayer"],
      [["Shift+1", "Shift+2", "Shift+3", "Shift+4"], "Shift 1 – 4", "layer of the right view", "rightLayer"],
      [["l"], "l", "label's outline", "toggleLabel"],
      [["o"], "o", "prediction's outline", "togglePrediction"],
      [["m"], "m", "your edit", "toggleEdit"],
      [[" "], "Space", "hold: the picture without overlays", "hide"],
      [["s"], "s", "stretch: natural or percentile", "toggleStretch"],
      [["v"], "v", "one view or two", "toggleViews"],
      [["+", "="], "+", "zoom in (or the wheel)", "zoomIn"],
      [["-"], "−", "zoom out", "zoomOut"],
      [["0"], "0", "fit the tile to the view", "fit"],
    ],
  ],
  [
    "Repair",
    [
      [["b"], "b", "brush: paint cloud", "brush"],
      [["e"], "e", "eraser: paint clear", "eraser"],
      [["x"], "x", "ignore brush: paint what is not to be learnt from", "ignoreBrush"],
      [["Escape"], "Esc", "put the tool away; drag moves the picture (with a tool: Shift and drag)", "hand"],
      [["["], "[", "smaller brush", "smaller"],
      [["]"], "]", "larger brush", "larger"],
      [
        ["t"],
        "t",
        "take the prediction here: the predicted cloud below the pointer, or the labelled cloud predicted clear goes",
        "take",
      ],
      [["Shift+T"], "Shift t", "take the whole prediction", "takeAll"],
      [["c"], "c", "reset the edit to the label", "reset"],
      [["Ctrl+z"], "Ctrl z", "undo a stroke", "undoStroke"],
      [["Ctrl+Shift+Z", "Ctrl+y"], "Ctrl Shift z", "redo a stroke", "redoStroke"],
    ],
  ],
];

const ACTION_OF = new Map(
  KEYS.flatMap(([, keys]) => keys.flatMap(([names, , , action]) => names.map((name) => [name, action]))),
);

/** Actions that go on while a key is held. */
const REPEATED = ["next", "previous", "zoomIn", "zoomOut", "smaller", "larger", "undoStroke", "redoStroke"];

const SLIDER_KEYS = /^(Arrow|Home|End|Page)/;

function nameOf(event) {
  const digit = event.shiftKey && /^Digit([1-4])$/.exec(event.code);
  if (digit) return `Shift+${digit[1]}`;
  const control = event.ctrlKey || event.metaKey;
  const key = event.key.length === 1 && !event.shiftKey ? event.key.toLowerCase() : event.key;
  if (control) return `Ctrl+${event.shiftKey ? "Shift+" : ""}${key}`;
  return event.shiftKey && /^[A-Z]$/.test(key) ? `Shift+${key}` : key;
}

function isTyping(target) {
  return target instanceof HTMLElement && target.matches("input:not([type=range]), textarea, select");
}

/** Call `actions[name](event)` for each key, or nothing while `isIdle()`; `actions.show()` when Space is let go. */
export function listen(actions, isIdle) {
  document.addEventListener("keydown", (event) => {
    if (event.altKey || document.querySelector("dialog[open]")) return;
    if (isTyping(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.target.matches("[type=range]") && SLIDER_KEYS.test(event.key)) return;
    if (event.target.matches("button, summary") && [" ", "Enter"].includes(event.key)) return;
    const action = ACTION_OF.get(nameOf(event));
    if (!action || (isIdle() && action !== "help")) return;
    event.preventDefault();
    if (!event.repeat || REPEATED.includes(action)) actions[action](event);
  });
  document.addEventListener("keyup", (event) => event.key === " " && actions.show());
  window.addEventListener("blur", () => actions.show());
}

/** Fill the help with the table of keys. */
export function showKeys() {
  const groups = KEYS.map(([heading, keys]) =>
    element(
      "section",
      {},
      element("h3", { text: heading }),
      element(
        "dl",
        {},
        ...keys.map(([, shown, words]) =>
          element(
            "div",
            {},
            element("dt", {}, ...shown.split(" – ").flatMap(withDash)),
            element("dd", { text: words }),
          ),
        ),
      ),
    ),
  );
  byId("help-keys").replaceChildren(...groups);
}

function withDash(part, i) {
  const keys = part.split(" ").map((key) => element("kbd", { text: key }));
  return i ? [" – ", ...keys] : keys;
}
