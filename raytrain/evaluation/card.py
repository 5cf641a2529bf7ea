"""The model card of an ensemble, as Markdown: its nets, what they learnt from, their scores, limits, how to load them.

The same ensemble gives the same text. Must not know Ray, or where the card is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from raytrain.config import RANDOM_WEIGHTS, TIMM_WEIGHTS
from raytrain.evaluation.card_scores import CardEvaluation, MadeBy
from raytrain.evaluation.intervals import FEW_LOCATIONS, LEVEL
from raytrain.evaluation.page import counted, version_facts
from raytrain.evaluation.report import EMPTY_UNION_TEXT
from raytrain.evaluation.trained_on import TrainedOn
from raytrain.evaluation.training_results import TrainingRun
from raytrain.scoring.manifest import EnsembleManifest, TrainedMember

CARD_FILE = "model-card.md"
_UNKNOWN = "unknown"


def model_card(
    name: str,
    manifest: EnsembleManifest,
    runs: Sequence[TrainingRun],
    trained_on: TrainedOn,
    evaluation: CardEvaluation | None = None,
    *,
    licence: str = "",
    versions: Sequence[tuple[str, str]] | None = None,
) -> str:
    """Return the card of the ensemble `name` as Markdown.

    `runs` are those of its nets, in any order; what a run does not know is said to be unknown. `licence` is that of the
    weights. `versions` are those of this process unless they are given.
    """
    of_net = {(run.member.name, run.fold): run for run in runs}
    nets = [(net, of_net.get((net.name, net.fold))) for net in manifest.members]
    sections = [
        _head(name, manifest),
        _nets(nets),
        _learnt(manifest, trained_on),
        _validation(nets),
        _evaluated(manifest, trained_on, evaluation),
        _limits(manifest, nets, trained_on, evaluation),
        _loading(manifest),
        f"## Licence\n\nOf the weights: {_md(licence) or _UNKNOWN}. What pretrained encoders began from "
        "and the imagery have licences of their own.",
        _versions(manifest, version_facts() if versions is None else versions),
    ]
    return "\n\n".join(sections) + "\n"


_Net = tuple[TrainedMember, TrainingRun | None]


def _head(name: str, manifest: EnsembleManifest) -> str:
    count = len(manifest.members)
    bands = ", ".join(manifest.bands)
    return (
        f"# {_md(name)}\n\n"
        f"An ensemble of {counted(count, 'U-Net')} that finds clouds in optical satellite imagery, from {bands}: "
        "the mean of its nets' probabilities is the probability of cloud of each pixel.\n\n"
        f"Digest of the nets (weights and settings): `{manifest.nets_digest()}`"
    )


def _nets(nets: Sequence[_Net]) -> str:
    rows = [
        [
            net.name,
            "none" if net.fold is None else str(net.fold),
            f"{net.settings.encoder}; {_start(net, run)}",
            " ".join(net.settings.bands),
            _normalisation(net),
            f"{net.epoch} of {net.settings.epochs}",
            _score(net.score),
            f"`{net.sha256[:12]}`",
        ]
        for net, run in nets
    ]
    headers = ["Member", "Fold", "Encoder; starts from", "Bands", "Normalisation", "Best epoch", "IoU", "Weights"]
    note = (
        "The IoU is that of the validation on the fold, over locations, at the best epoch: the one whose weights these "
        "are. Weights are named by the beginning of their sha256."
    )
    return f"## Members\n\n{_table(headers, rows)}\n\n{note}"


def _start(net: TrainedMember, run: TrainingRun | None) -> str:
    start = net.settings.encoder_weights
    if start == RANDOM_WEIGHTS:
        return "random weights"
    what = "timm's pretrained weights" if start == TIMM_WEIGHTS else f"weights of {start}"
    sha256 = None if run is None else run.encoder_weights_sha256
    return what if sha256 is None else f"{what} (sha256 {sha256[:12]})"


def _normalisation(net: TrainedMember) -> str:
    found = net.settings.normalisation
    return found.kind if found.maximum is None else f"{found.kind} {found.maximum:g}"


def _learnt(manifest: EnsembleManifest, data: TrainedOn) -> str:
    folds = list(dict.fromkeys(member.fold for member in manifest.members))
    dates = "unknown" if data.first is None or data.last is None else f"{data.first:%Y-%m-%d} to {data.last:%Y-%m-%d}"
    undated = f" ({counted(data.num_undated, 'tile')} without a date)" if data.num_undated else ""
    sizes = ", ".join(f"{size:g}" for size in data.pixel_sizes) or _UNKNOWN
    rows = [
        ["Shards", data.shards],
        ["Digest of the shards", data.digest],
        ["Made from", data.source or _UNKNOWN],
        ["Labelled tiles", f"{data.num_tiles:,} at {counted(len(data.locations), 'location')}"],
        ["Dates", dates + undated],
        ["Bands in the shards", " ".join(data.bands)],
        ["Pixel size, in units of the CRS", sizes],
        ["Values of the source", _BASELINES.get(data.baseline or "", _UNKNOWN)],
    ]
    by_fold = [
        [str(fold), f"{each.num_tiles:,}", str(len(each.locations)), ", ".join(each.locations)]
        for fold, each in sorted(data.folds.items())
    ]
    learnt = "\n".join(
        f"- Nets of fold {'none' if fold is None else fold} learnt from {counted(data.num_learnt(fold), 'tile')} at "
        f"{counted(len(data.learnt(fold)), 'location')}."
        for fold in folds
    )
    never = sorted(set(data.locations) - set().union(*(data.learnt(fold) for fold in folds)))
    never_text = ", ".join(map(_md, never)) if never else "none; every location was learnt from by some net"
    return (
        f"## What it learnt from\n\n{_table(['What', 'Found'], rows)}\n\n"
        f"{_table(['Fold', 'Tiles', 'Locations', 'Names'], by_fold)}\n\n{learnt}\n"
        f"- Locations that no net learnt from: {never_text}."
    )


_BASELINES = {
    "before-04.00": "reflectance x 10000, without the shift of Sentinel-2's processing baseline 04.00",
    "from-04.00": "reflectance x 10000 + 1000 (Sentinel-2 from processing baseline 04.00 on); the shift was taken off",
}


def _validation(nets: Sequence[_Net]) -> str:
    """Return the scores of each net by location, a line each, since nets of several folds share no locations."""
    rows, unknown = [], []
    for net, run in nets:
        locations = (run.locations if run is not None else None) or {}
        if net.fold is not None and not locations:
            unknown.append(_run_name(net))
        worst_first = sorted(locations.items(), key=lambda item: (item[1].iou, item[0]))
        rows += [[_run_name(net), name, f"{each.iou:.4f}", str(each.num_chips)] for name, each in worst_first]
    rules = sorted({net.settings.empty_union_rule for net, _ in nets})
    text = "Each net alone, on the locations of its fold, which it did not learn from but was chosen by. " + " ".join(
        EMPTY_UNION_TEXT[rule] for rule in rules
    )
    if unknown:
        text += f" Not known by location: {', '.join(unknown)}."
    if any(net.fold is None for net, _ in nets):
        text += " Nets of fold none were not validated."
    table = f"\n\n{_table(['Net', 'Location', 'IoU', 'Tiles'], rows)}" if rows else ""
    return f"## Validation by location\n\n{text}{table}"


def _evaluated(manifest: EnsembleManifest, data: TrainedOn, evaluation: CardEvaluation | None) -> str:
    if evaluation is None:
        return (
            "## Scores of the whole ensemble\n\nIt was not evaluated yet. With masks of places that it never saw:\n\n"
            "```bash\nraytrain score SRC MASKS --ensemble FOLDER\n"
            "raytrain evaluate MASKS LABELS --metadata CSV --out SCORES --ensemble FOLDER\n```"
        )
    nets = manifest.of_fold(evaluation.made_by).members
    scores = [[each.name, f"{each.value:.4f}", _interval(each.low, each.high)] for each in evaluation.scores]
    words = {each.name: _word(each.name, nets, data) for each in evaluation.locations}
    worst_first = sorted(evaluation.locations, key=lambda each: (each.iou, each.name))
    places = [[each.name, f"{each.iou:.4f}", str(each.num_chips), words[each.name]] for each in worst_first]
    parts = [
        f"## Scores of {_made_by(evaluation.made_by)}",
        _table(["What", "Found"], _evaluated_rows(manifest, evaluation)),
        _table(["Score", "Value", f"{LEVEL:.0%} interval"], scores),
        _places_text(list(words.values())),
        _table(["Location", "IoU", "Chips", "To these nets"], places),
    ]
    return "\n\n".join(parts)


_LEARNT, _VALIDATED, _NEW = "learnt from", "validated on", "new"


def _made_by(made_by: MadeBy) -> str:
    if made_by == "all":
        return "the whole ensemble"
    return f"the nets of fold {'none' if made_by == -1 else made_by}"


def _evaluated_rows(manifest: EnsembleManifest, evaluation: CardEvaluation) -> list[list[str]]:
    nets, count = len(manifest.of_fold(evaluation.made_by).members), len(manifest.members)
    left_out = f"{evaluation.num_left_out:,}" if evaluation.num_left_out else "none"
    places = counted(len(evaluation.locations), "location")
    return [
        ["Labels", evaluation.labels],
        ["Masks by", f"{_made_by(evaluation.made_by)}: {nets} of {counted(count, 'net')}"],
        ["Rows of the metadata", " and ".join(evaluation.where) or "all"],
        ["Chips", f"{evaluation.num_chips:,} at {places}"],
        ["Left out", f"{left_out}; allowed: {', '.join(evaluation.allowed) or 'nothing'}"],
        ["Threshold", _UNKNOWN if evaluation.threshold is None else f"{evaluation.threshold:g}"],
        ["Empty unions", EMPTY_UNION_TEXT[evaluation.empty_union_rule]],
    ]


def _word(location: str, nets: Sequence[TrainedMember], data: TrainedOn) -> str:
    """Return what a location is to nets: one that some learnt from, one that some were validated on, or new."""
    folds = {net.fold for net in nets}
    if any(location in data.learnt(fold) for fold in folds):
        return _LEARNT
    validated = [each.locations for fold, each in data.folds.items() if fold in folds]
    return _VALIDATED if any(location in names for names in validated) else _NEW


def _places_text(words: Sequence[str]) -> str:
    """Return what scores at such locations say of places that nets never saw."""
    learnt, validated, places = words.count(_LEARNT), words.count(_VALIDATED), counted(len(words), "location")
    texts = []
    if learnt:
        texts.append(
            f"These nets learnt from {learnt:,} of the {places}: scores there say nothing of new places, and nor do "
            "the scores above, which count them."
        )
    if validated:
        texts.append(
            f"They were chosen by their validation on {validated:,} of the {places}: scores there are a little high."
        )
    if not texts:
        texts.append("All locations are new to these nets.")
    return " ".join([*texts, "Locations are told apart by their names."])


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _limits(
    manifest: EnsembleManifest, nets: Sequence[_Net], data: TrainedOn, evaluation: CardEvaluation | None
) -> str:
    validated = {name for _, run in nets if run is not None for name in run.locations or {}}
    texts = [
        "Labels are 0 (clear), 1 (cloud) and 255 (not counted). Cloud is what those who labelled took for it; thin "
        "cloud and haze are found as far as they were labelled. Shadows of clouds are no class.",
        "Nets learnt from reflectance x 10000. `raytrain score` brings other values there where the source says what "
        "they are: the shift of Sentinel-2's processing baseline 04.00 is taken off once, and where nothing says "
        "whether it is there, `--set baseline=...` is asked for. Chips are taken for `before-04.00`. Values that are "
        "used from Python have to be without the shift.",
        "The product level is not recorded: score imagery of the level that the shards were made from.",
        "Pixels should be as large as in training. A scene with pixels coarser than 10 m is scored, with a note that "
        "says so.",
        "Snow, ice and bright sand look like cloud. How often they were among the tiles is not recorded; the tables "
        "by location are all that is known.",
        "The score of a net is that of its best epoch, chosen by the same locations, and so a little high.",
        "The threshold of 0.5 was not tuned; `--set threshold=...` moves it.",
        "Masks are the same bytes for one kind of device, the same `threads` and the same versions, whatever the "
        "number of workers. `--set precision=bfloat16` or `float16` moves pixels near the threshold; the default is "
        "float32.",
    ]
    if evaluation is not None and len(evaluation.locations) < FEW_LOCATIONS:
        texts.append(_few("evaluation", len(evaluation.locations)))
    if validated and len(validated) < FEW_LOCATIONS:
        texts.append(_few("validation", len(validated)))
    if len(data.locations) < FEW_LOCATIONS:
        texts.append(
            f"It learnt from {counted(len(data.locations), 'location')} at most: other landscapes are new to it."
        )
    if len({member.fold for member in manifest.members}) > 1:
        texts.append("`raytrain score` takes the nets of one fold, the lowest, unless `--fold` says otherwise.")
    return "## Limits\n\n" + "\n".join(f"- {text}" for text in texts)


def _few(what: str, count: int) -> str:
    places = f"{counted(count, 'location')}, fewer than {FEW_LOCATIONS}"
    return f"The {what} has {places}: its scores would differ much with others."


def _loading(manifest: EnsembleManifest) -> str:
    bands = ", ".join(f'"{band}"' for band in manifest.of_fold(None).bands)
    return f"""## How to load it

FOLDER is the folder of this card, where `ensemble.json` lies too: a path, or `s3://...`. Masks of an archive of chips
or scenes:

```bash
raytrain score SRC DST --ensemble FOLDER
```

In Python, `pixels` are `[C, H, W] uint16`, reflectance x 10000, 0 where there is no data, in the order of `nets.bands`
({bands}):

```python
import torch

from raytrain.config import ScoreSettings
from raytrain.scoring.ensemble import Ensemble
from raytrain.scoring.manifest import read_manifest

settings = ScoreSettings()
nets = Ensemble.load(FOLDER, read_manifest(FOLDER).of_fold(None), settings, torch.device("cpu"))
valid = (pixels != 0).any(0)
probability = nets.layers([pixels], [valid])[0][0]
cloud = (probability >= settings.threshold) & valid
```"""


def _versions(manifest: EnsembleManifest, versions: Iterable[tuple[str, str]]) -> str:
    rows = [["raytrain that wrote the ensemble", manifest.raytrain_version], *([name, text] for name, text in versions)]
    return f"## Versions\n\nOf what wrote this card, where nothing else is said.\n\n{_table(['What', 'Version'], rows)}"


def _run_name(net: TrainedMember) -> str:
    return f"{net.name}, fold {'none' if net.fold is None else net.fold}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return _md(text).replace("|", "\\|")


def _md(text: str) -> str:
    """Return text that ends no line, and begins no tag, link or image."""
    return re.sub(r"([\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
