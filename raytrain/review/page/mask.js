// Arithmetic on masks, which are bytes row by row: 0 clear, 1 cloud, 255 ignore. Knows no page and no server.

export const CLEAR = 0;
export const CLOUD = 1;
export const IGNORE = 255;

/**
 * Return the pixels that a round brush touches on its way: those whose centre lies within half of `size` of the line
 * from (x0, y0) to (x1, y1), in pixels of the tile, and always the one below the end.
 */
export function strokePixels(x0, y0, x1, y1, size, height, width) {
  const radius = size / 2;
  const found = [];
  const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius));
  const bottom = Math.min(height - 1, Math.ceil(Math.max(y0, y1) + radius));
  const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius));
  const right = Math.min(width - 1, Math.ceil(Math.max(x0, x1) + radius));
  const [dx, dy] = [x1 - x0, y1 - y0];
  const length2 = dx * dx + dy * dy;
  const [endColumn, endRow] = [Math.floor(x1), Math.floor(y1)];
  for (let row = top; row <= bottom; row++) {
    for (let column = left; column <= right; column++) {
      const [px, py] = [column + 0.5 - x0, row + 0.5 - y0];
      const along = length2 ? Math.min(1, Math.max(0, (px * dx + py * dy) / length2)) : 0;
      const distance2 = (px - along * dx) ** 2 + (py - along * dy) ** 2;
      if (distance2 <= radius * radius || (row === endRow && column === endColumn)) found.push(row * width + column);
    }
  }
  return found;
}

/** Return the pixels connected with `start`, by their sides, for which `belongs(index)` is true. */
function connectedPixels(start, height, width, belongs) {
  if (!belongs(start)) return [];
  const seen = new Uint8Array(height * width);
  const found = [start];
  seen[start] = 1;
  for (let i = 0; i < found.length; i++) {
    const index = found[i];
    const column = index % width;
    for (const [next, inside] of [
      [index - 1, column > 0],
      [index + 1, column < width - 1],
      [index - width, index >= width],
      [index + width, index < width * (height - 1)],
    ]) {
      if (inside && !seen[next] && belongs(next)) {
        seen[next] = 1;
        found.push(next);
      }
    }
  }
  return found;
}

/**
 * Return what "take the prediction here" sets, as pixels and their new value: on a predicted cloud, that whole cloud
 * becomes cloud; where clear is predicted, the part of a cloud of the mask there that is predicted clear goes.
 */
export function takenFromPrediction(mask, prediction, start, height, width) {
  if (prediction[start] === CLOUD) {
    const cloud = connectedPixels(start, height, width, (index) => prediction[index] === CLOUD);
    return { pixels: cloud.filter((index) => mask[index] !== CLOUD), value: CLOUD };
  }
  const wrong = (index) => prediction[index] === CLEAR && mask[index] === CLOUD;
  return { pixels: connectedPixels(start, height, width, wrong), value: CLEAR };
}

/** Return the pixels of `value` that have another value in `other`. */
export function onlyIn(mask, other, value) {
  const found = [];
  for (let i = 0; i < mask.length; i++) if (mask[i] === value && other[i] !== value) found.push(i);
  return found;
}

/** Say whether two masks hold the same. */
export function sameMask(one, other) {
  return one.length === other.length && one.every((value, i) => value === other[i]);
}

/**
 * Return the outline of the pixels of `value` as straight lines between pixels, `[x0, y0, x1, y1, ...]`; the edge of
 * the tile closes it.
 */
export function outlineOf(mask, height, width, value) {
  const lines = [];
  for (let row = 0; row <= height; row++) {
    const [above, below] = [(row - 1) * width, row * width];
    let start = -1;
    for (let column = 0; column <= width; column++) {
      const edge =
        column < width &&
        (row > 0 && mask[above + column] === value) !== (row < height && mask[below + column] === value);
      if (edge && start < 0) start = column;
      if (!edge && start >= 0) {
        lines.push(start, row, column, row);
        start = -1;
      }
    }
  }
  for (let column = 0; column <= width; column++) {
    let start = -1;
    for (let row = 0; row <= height; row++) {
      const at = row * width + column;
      const edge = row < height && (column > 0 && mask[at - 1] === value) !== (column < width && mask[at] === value);
      if (edge && start < 0) start = row;
      if (!edge && start >= 0) {
        lines.push(column, start, column, row);
        start = -1;
      }
    }
  }
  return lines;
}
