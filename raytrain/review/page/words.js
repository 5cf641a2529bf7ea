// What verdicts, features and layers are called on the page.

export const VERDICTS = {
  accept: { letter: "A", word: "accept", past: "accepted", means: "the label is right" },
  fix: { letter: "F", word: "fix", past: "fixed", means: "the edited mask is the label" },
  ignore: {
    letter: "I",
    word: "ignore",
    past: "ignored in part",
    means: "the painted region is not to be learnt from",
  },
  drop: { letter: "D", word: "drop", past: "dropped", means: "the tile is not to be learnt from" },
  unsure: { letter: "U", word: "unsure", past: "unsure", means: "someone else should look" },
};

/** Of the features of a tile: words, and how a value is shown. Gains are what a repaired label would explain better. */
export const FEATURES = {
  iou: ["overlap of label and prediction (IoU)", number],
  association: ["correlation of label and prediction", number],
  missing_fraction: ["pixels confidently cloud, labelled clear", share],
  false_fraction: ["pixels confidently clear, labelled cloud", share],
  agreement: ["pixels where all members are sure, and against the label", share],
  surprise: ["surprise of the label, to the prediction", nats],
  whole_gain: ["gain, were the prediction the label", nats],
  missing_gain: ["gain, were missing clouds added", nats],
  false_gain: ["gain, were false clouds removed", nats],
  shift_gain: ["gain, were the label moved", nats],
  outline_gain: ["gain, were the outline narrower or wider", nats],
  boundary_px: ["mean distance of the two outlines", pixels],
  shift_row_px: ["label lies too low by", signedPixels],
  shift_column_px: ["label lies too far right by", signedPixels],
  outline_px: ["label's outline is too wide by", signedPixels],
  label_fraction: ["cloud in the label", share],
  predicted_fraction: ["cloud in the prediction", share],
  cut_fraction: ["of the label's outline: straight along rows or columns, or on the tile's edge", share],
  disagreement_mean: ["disagreement of the members (standard deviation, mean)", number],
};

export const LAYERS = {
  "true-colour": "true colour",
  "false-colour": "false colour (near infrared)",
  probability: "probability of cloud",
  disagreement: "disagreement of the members",
};

function share(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function pixels(value) {
  return `${value.toFixed(1)} px`;
}

function signedPixels(value) {
  return `${value > 0 ? "+" : ""}${value.toFixed(1)} px`;
}

function nats(value) {
  return `${value.toFixed(3)} nats/px`;
}

function number(value) {
  return value.toFixed(3);
}
