// What the page asks the server, and its answers; what went wrong comes in words for people. Knows no page.

/** The server did not answer, or not now: the same may be asked again. */
export class Unreachable extends Error {}

/** The server refused what was asked; `status` is that of HTTP. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const NOT_NOW = [429, 502, 503, 504];

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("the server does not answer");
  }
  if (response.ok) return response;
  const words = await reasonOf(response);
  if (NOT_NOW.includes(response.status)) throw new Unreachable(words);
  throw new Refused(response.status, words);
}

async function reasonOf(response) {
  if (response.status === 401) {
    return "the server does not know this browser; open the address that it printed when it started";
  }
  try {
    return (await response.json()).error;
  } catch {
    return `the server answered ${response.status} ${response.statusText}`;
  }
}

async function json(path) {
  return (await ask(path)).json();
}

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return new URLSearchParams(given).toString();
}

function tilePath(tile) {
  return `/api/tiles/${encodeURIComponent(tile.tile_id)}`;
}

function versionPath(tile) {
  return `${tilePath(tile)}/${encodeURIComponent(tile.sha256)}`;
}

export const readReview = () => json("/api/review");
export const readRanks = (filter) => json(`/api/ranks?${query(filter)}`);
export const readRows = (ranks) => json(`/api/tiles?${query({ ranks: ranks.join(",") })}`);
export const readTile = (tile) => json(tilePath(tile));
export const readUnlabelled = (offset, limit) => json(`/api/unlabelled?${query({ offset, limit })}`);
export const readProgress = () => json("/api/progress");
export const readDecisions = (after) => json(`/api/decisions?${query({ after })}`);

/** Return a picture of a tile, decoded; `name` is true-colour or false-colour. */
export async function readImage(tile, name, stretch) {
  const response = await ask(`${versionPath(tile)}/image/${name}?${query({ stretch })}`);
  return createImageBitmap(await response.blob());
}

/** Return the address of a small picture of a tile. */
export function thumbnailPath(tile, maxPx) {
  return `${versionPath(tile)}/image/true-colour?${query({ max_px: maxPx })}`;
}

/**
 * Return a raster of a tile, a byte a pixel; `path` is as in `mask/label` and `values/probability`. `values` go into
 * the query: `v`, the version of the review, lets the browser keep the answer.
 */
export async function readRaster(tile, path, values) {
  const response = await ask(`${versionPath(tile)}/${path}?${query(values)}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const [height, width] = ["X-Height", "X-Width"].map((name) => Number(response.headers.get(name)));
  if (bytes.length !== height * width) {
    throw new Refused(502, `${tile.tile_id}: ${path} has ${bytes.length} pixels, expected ${height} x ${width}`);
  }
  return { bytes, height, width };
}

/** Send a decision; return it as the log has it. */
export async function sendDecision(decision) {
  const headers = { "Content-Type": "application/json" };
  return (await ask("/api/decisions", { method: "POST", headers, body: JSON.stringify(decision) })).json();
}
