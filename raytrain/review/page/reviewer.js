// The name that decisions are kept under: asked once in a browser, and whenever it is to be another. Knows no decision.

import { byId } from "./dom.js";

const KEY = "raytrain-review/reviewer";

/** Ask for a name, and remember it; who closes the question keeps the proposed one. */
export async function askReviewer(proposed) {
  const [dialog, input] = [byId("ask-reviewer"), byId("reviewer-name")];
  input.value = proposed;
  dialog.returnValue = "";
  dialog.showModal();
  input.select();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const reviewer = dialog.returnValue === "given" ? input.value : proposed;
  localStorage.setItem(KEY, reviewer);
  return reviewer;
}

/** Return the name that this browser knows, or ask for one. */
export async function knownReviewer(proposed) {
  return localStorage.getItem(KEY) ?? askReviewer(proposed);
}
