// Elements of the page, made without HTML text: names of tiles and places may hold anything.

/** Return a new element; `attributes` may hold `text`, `on` (listeners by event) and any attribute of HTML. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name === "on")
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Return the element of the page with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Return a number of things in words, as in `1 tile` and `11,748 tiles`. */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Return a fraction in per cent, or a dash where there is none. */
export function percent(fraction, digits = 0) {
  return fraction === null || fraction === undefined ? "–" : `${(100 * fraction).toFixed(digits)} %`;
}
