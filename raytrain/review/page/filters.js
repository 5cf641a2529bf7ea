// The form that says which tiles are listed. Knows no list.

import { byId, counted, element } from "./dom.js";
import { VERDICTS } from "./words.js";

const TYPING_MS = 250;

/** Of the choice of decisions: its words, and what it asks the server for. */
function decisionChoices(reviewer) {
  const choices = {
    all: ["all", {}],
    "undecided-mine": ["undecided by you", { verdict: "none", reviewer }],
    "undecided-any": ["undecided by anyone", { verdict: "none" }],
    mine: ["decided by you", { verdict: "any", reviewer }],
    others: ["decided by others", { others: reviewer }],
    disputed: ["reviewers disagree", { verdict: "disputed" }],
  };
  for (const [verdict, { past }] of Object.entries(VERDICTS)) choices[verdict] = [past, { verdict }];
  return choices;
}

export class Filters {
  /** `onChange()` is called when another filter is set. */
  constructor(review, onChange) {
    this.onChange = onChange;
    this.reviewer = "";
    fillCounted(
      byId("filter-kind"),
      review.kinds.map((kind) => [kind.name, kind.name, kind.count]),
    );
    fillCounted(
      byId("filter-location"),
      review.locations.map(({ name, count }) => [name, name, count]),
    );
    const choices = Object.entries(decisionChoices("")).map(([value, [words]]) =>
      element("option", { value, text: words }),
    );
    byId("filter-decision").append(...choices);
    for (const name of ["kind", "location", "decision"]) {
      byId(`filter-${name}`).addEventListener("change", (event) => {
        if (!event.target.matches(":focus-visible")) event.target.blur(); // keys are for the tile again
        onChange();
      });
    }
    let timer;
    byId("filter-query").addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(onChange, TYPING_MS);
    });
    byId("filter").addEventListener("submit", (event) => event.preventDefault());
  }

  /** What the form asks the server for. */
  get asked() {
    const [, decision] = decisionChoices(this.reviewer)[byId("filter-decision").value];
    return {
      kind: byId("filter-kind").value,
      location: byId("filter-location").value,
      query: byId("filter-query").value.trim(),
      ...decision,
    };
  }
}

function fillCounted(select, choices) {
  const all = element("option", { value: "", text: "all" });
  select.replaceChildren(
    all,
    ...choices.map(([value, words, count]) =>
      element("option", { value, text: `${words} (${count.toLocaleString("en")})` }),
    ),
  );
}

/** Say how many tiles a filter has. */
export function countWords(count, total) {
  return count === total ? counted(count, "tile") : `${count.toLocaleString("en")} of ${counted(total, "tile")}`;
}
