// The colours of overlays and values: overlays differ in lightness and in line, not in hue alone. Knows no page.

/** Outlines: solid, dashed and thick, each over a dark line of its own, so that they show on cloud and on sea. */
export const OVERLAYS = {
  label: { colour: [92, 200, 255], width: 1.75, dash: [] },
  prediction: { colour: [230, 54, 0], width: 1.75, dash: [6, 4] },
  edit: { colour: [255, 240, 77], width: 2.75, dash: [] },
};

/** What is ignored is hatched. */
export const HATCHES = { label: [150, 156, 164], edit: [200, 120, 255] };

/** From 0 to the largest value: viridis, as in the reports. */
const RAMP = [
  "#440154",
  "#482374",
  "#414287",
  "#355e8d",
  "#2a768e",
  "#228d8d",
  "#20a386",
  "#37b878",
  "#5cc863",
  "#f1e51d",
];
const NO_DATA = 255;
const LARGEST = 254;
const NO_DATA_COLOUR = [120, 124, 132];

const STEPS = RAMP.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
const COLOUR_OF = Array.from({ length: 256 }, (_, value) =>
  value === NO_DATA ? NO_DATA_COLOUR : between(value / LARGEST),
);

function between(fraction) {
  const at = fraction * (STEPS.length - 1);
  const low = Math.min(Math.floor(at), STEPS.length - 2);
  return STEPS[low].map((channel, i) => Math.round(channel + (at - low) * (STEPS[low + 1][i] - channel)));
}

/** Return a picture of values, a byte a pixel: 0 to 254, and 255 where there is no data. */
export function colouredValues(values) {
  return painted(values, COLOUR_OF);
}

/**
 * Return a picture of bytes in the colours that `colourOf` has for them, and nothing where it has none. With `hatchPx`
 * it has diagonal stripes, one in each so many pixels and half as wide.
 */
export function painted({ bytes, height, width }, colourOf, hatchPx = 0) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new DataView(image.data.buffer);
  const packed = Array.from({ length: 256 }, (_, value) => rgba(colourOf[value]));
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i++) {
      if (!hatchPx || (row + column) % hatchPx < hatchPx / 2) pixels.setUint32(4 * i, packed[bytes[i]]);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function rgba(colour) {
  return colour ? ((colour[0] << 24) | (colour[1] << 16) | (colour[2] << 8) | 255) >>> 0 : 0;
}

/** Return a colour for CSS. */
export function css([red, green, blue]) {
  return `rgb(${red}, ${green}, ${blue})`;
}

/** Draw the scale of values into a canvas, from 0 at its left on. */
export function drawRamp(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = css(between(x / (canvas.width - 1)));
    context.fillRect(x, 0, 1, canvas.height);
  }
}
