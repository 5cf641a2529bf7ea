// What the keys do to the page, by the names of `keys.js`. Knows no key.

import { byId } from "./dom.js";
import { VERDICTS } from "./words.js";

/** Return the actions on a page, each given the event of its key. */
export function actionsOn(page) {
  const { desk } = page;
  const decisions = Object.keys(VERDICTS).map((verdict) => [verdict, () => page.decide(verdict)]);
  return {
    ...Object.fromEntries(decisions),
    undoDecision: () => page.undoLast(),
    reason: () => byId("reason").focus(),
    next: () => page.step(1),
    previous: () => page.step(-1),
    search: () => byId("filter-query").focus(),
    leftLayer: (event) => desk.chooseLayerNumber(0, Number(event.key)),
    rightLayer: (event) => desk.chooseLayerNumber(1, Number(event.code.slice(-1))),
    toggleLabel: () => desk.toggle("label"),
    togglePrediction: () => desk.toggle("prediction"),
    toggleEdit: () => desk.toggle("edit"),
    hide: () => desk.hideOverlays(true),
    show: () => desk.hideOverlays(false),
    toggleStretch: () => desk.toggleStretch(),
    toggleViews: () => desk.toggleViews(),
    zoomIn: () => desk.views.zoom(1),
    zoomOut: () => desk.views.zoom(-1),
    fit: () => desk.views.fit(),
    brush: () => desk.setTool("brush"),
    eraser: () => desk.setTool("eraser"),
    ignoreBrush: () => desk.setTool("ignore"),
    hand: () => desk.setTool(null),
    smaller: () => desk.setSizeIndex(desk.sizeIndex - 1),
    larger: () => desk.setSizeIndex(desk.sizeIndex + 1),
    take: () => desk.takeHere(),
    takeAll: () => desk.takeEverywhere(),
    reset: () => desk.resetEdit(),
    undoStroke: () => desk.undoStroke(),
    redoStroke: () => desk.redoStroke(),
    help: () => byId("help").showModal(),
  };
}
