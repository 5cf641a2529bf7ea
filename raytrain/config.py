"""Typed settings: frozen, checked at birth, the same in JSON, TOML, on the command line and beside every output.

Settings are changed in one way only, `change` (dotted path -> value), whoever asks: the command line, a job script or
the search. This module must not know torch, Ray or where anything is stored.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raytrain.errors import ConfigError

EmptyUnionRule = Literal["one", "zero"]
Baseline = Literal["before-04.00", "from-04.00"]
TIMM_WEIGHTS, RANDOM_WEIGHTS = "timm", "random"
"""What `encoder_weights` may be besides a path or a URI."""
CellEncoding = Literal["raw", "blosc2-bitshuffle-lz4", "blosc2-bitshuffle-zstd"]
LayerEncoding = Literal["none", "uint8", "float32"]
"""How a raster of probabilities is written beside the mask; `uint8` has steps of 1/254 of the largest value."""
MemberName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
"""What a member is called: a plain name, since keys in stores are made of it."""

PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
PlainName = Annotated[str, Field(pattern=PLAIN_NAME)]
"""What can be the name of one file anywhere, and leads nowhere else; see `storage.is_plain_name`."""
PlainKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199})*$")]
"""Plain names joined by '/': a key that stays below the prefix that it is joined to."""


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"bands must be distinct, found {list(names)}")
    return names


BandName = Annotated[str, Field(min_length=1)]
Bands = Annotated[tuple[BandName, ...], Field(min_length=1), AfterValidator(_distinct)]
Channels = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown name is an error, and so is a number that JSON does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical JSON of these settings."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Normalisation(Settings):
    """How uint16 reflectance becomes [-1, 1]."""

    kind: Literal["band-maximum", "fixed-maximum", "minmax"] = "band-maximum"
    maximum: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _maximum_belongs_to_fixed(self) -> Self:
        if (self.kind == "fixed-maximum") != (self.maximum is not None):
            raise ValueError("maximum is given with kind fixed-maximum, and only with it")
        return self


class OptimiserSettings(Settings):
    """SGD with momentum, and how the learning rate goes over the run.

    `lr` is the highest rate. Every schedule may begin with a warm-up over `warmup_fraction` of all steps: linear, for
    one-cycle along a cosine. `plateau` multiplies the rate by `plateau_factor` after `plateau_epochs` epochs without
    gain of the validation score (of the loss, where nothing is validated), as the published recipe does.
    """

    lr: float = Field(default=2e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=2.999, gt=0)
    schedule: Literal["constant", "plateau", "cosine", "one-cycle"] = "constant"
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    plateau_epochs: int = Field(default=200, ge=1)
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _belongs_to_the_schedule(self) -> Self:
        fields = type(self).model_fields
        for name in ("plateau_epochs", "plateau_factor"):
            if self.schedule != "plateau" and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} is for schedule plateau, not {self.schedule}")
        if self.schedule == "one-cycle" and self.warmup_fraction == 0:
            raise ValueError("schedule one-cycle rises first: warmup_fraction must be above 0")
        return self


class LossWeights(Settings):
    """Weights of the terms of the loss; a term of weight 0 is not computed."""

    jaccard: float = Field(default=1.0, ge=0)
    focal: float = Field(default=0.1, ge=0)
    dice: float = Field(default=0.0, ge=0)
    bce: float = Field(default=0.0, ge=0)
    lovasz: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _some_term_counts(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("at least one weight must be above 0")
        return self


class AugmentationSettings(Settings):
    """The random changes of a training sample, each drawn from (seed, epoch, sample); the defaults are the recipe's.

    `horizontal_flip_fraction`, `affine_fraction`, `shift_fraction`, `gain_fraction`, `elastic_fraction` and
    `rectangle_fraction` say how many of all samples are changed so. Of the affine ones, `scale_fraction` are scaled by
    N(1, `scale_deviation`) and `rotation_fraction` turned by up to `rotation_limit_deg` either way, about a pivot that
    is at most `pivot_fraction` of a side from the centre. Shifts (at most `shift_limit`) and gains (N(1,
    `gain_deviation`)) are of values in [0, 1], one a band. A rectangle has at most `rectangle_side_fraction` of a side.
    """

    horizontal_flip_fraction: Fraction = 0.5
    rotation_by_90: bool = True
    affine_fraction: Fraction = 0.7
    pivot_fraction: Fraction = 0.4
    scale_fraction: Fraction = 0.8
    scale_deviation: Fraction = 0.1
    rotation_fraction: Fraction = 0.8
    rotation_limit_deg: float = Field(default=45.0, ge=0, le=180)
    shift_fraction: Fraction = 0.01
    shift_limit: Fraction = 0.05
    gain_fraction: Fraction = 0.01
    gain_deviation: Fraction = 0.1
    elastic_fraction: Fraction = 0.04
    rectangle_fraction: Fraction = 0.15
    rectangle_side_fraction: Fraction = 0.4


class MemberSettings(Settings):
    """Everything that one member's training depends on.

    `batch_norm_group` is how many images are normalised together, in one pass over all ranks: those of the global batch
    unless it is given; a smaller one takes less memory, and is the same on any number of ranks. `precision` `auto` is
    bfloat16 on a GPU that has it, float16 on another, float32 on a CPU. `compile` is for GPUs, or one rank on a CPU.

    `encoder_weights` is what the encoder starts from: `timm` (the pretrained ones of its tag), `random`, or a path or
    URI of a safetensors file with timm's names. With `first_convolution` `adapted` the pretrained filters of red, green
    and blue stay with their bands, and any other band gets their mean; with `random` the first convolution is a new one
    wherever the bands are not the three visible ones. `decoder_norm` says whether the decoder has batch normalisation.
    """

    name: MemberName
    encoder: str
    encoder_weights: str = Field(default=TIMM_WEIGHTS, min_length=1)
    first_convolution: Literal["adapted", "random"] = "adapted"
    bands: Bands
    normalisation: Normalisation = Normalisation()
    decoder_norm: bool = True
    decoder_channels: tuple[Channels, Channels, Channels, Channels, Channels] = (256, 128, 64, 32, 16)
    epochs: int = Field(default=60, ge=1)
    global_batch: int = Field(default=16, ge=1)
    batch_norm_group: int | None = Field(default=None, ge=1)
    crop_px: int = Field(default=512, ge=32, multiple_of=32)
    crops_per_tile: int = Field(default=1, ge=1)
    optimiser: OptimiserSettings = OptimiserSettings()
    loss: LossWeights = LossWeights()
    augmentation: AugmentationSettings = AugmentationSettings()
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    empty_union_rule: EmptyUnionRule = "one"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _first_convolution_counts(self) -> Self:
        if self.first_convolution == "random" and self.encoder_weights == RANDOM_WEIGHTS:
            raise ValueError("first_convolution random is for pretrained weights; encoder_weights random has no others")
        return self

    @model_validator(mode="after")
    def _group_fits(self) -> Self:
        if self.batch_norm_group is not None and self.batch_norm_group > self.global_batch:
            raise ValueError(
                f"batch_norm_group {self.batch_norm_group} must be at most global_batch {self.global_batch}"
            )
        return self


class LoaderSettings(Settings):
    """How tiles get to a rank: how fast, and never what, so that a run may go on with others.

    With `processes` 0, `threads` of the rank itself read ahead, across batches: what a store with latency wants. Each
    of several processes reads the samples of one batch side by side, by as many threads. `cache_folder` is on a disk of
    each node, shared by its processes, and kept within `cache_limit_gb` (10^9 bytes).
    """

    processes: int = Field(default=0, ge=0)
    threads: int = Field(default=8, ge=1)
    cache_folder: str | None = None
    cache_limit_gb: float = Field(default=100.0, gt=0)


class ShardSettings(Settings):
    """How chips become shards.

    `baseline` says what the values of the source are: with the processing baseline 04.00 of Sentinel-2 (January 2022)
    and later, reflectance x 10000 + 1000, which the shift is taken off again; before, and in archives that were brought
    in line with it, reflectance x 10000.
    """

    bands: Bands = ("B02", "B03", "B04", "B08")
    baseline: Baseline = "before-04.00"
    tiles_per_shard: int = Field(default=64, ge=1)
    cell_encoding: CellEncoding = "blosc2-bitshuffle-zstd"
    folds: str = "4"
    seed: int = Field(default=0, ge=0)


class ScoreSettings(Settings):
    """What a mask depends on besides the ensemble and the source, and what else is made; recorded with the outputs.

    `windows_per_pass` is for a GPU; a CPU takes one window at a time, and `threads` passes side by side. A `precision`
    below float32 is for speed, on devices that compute in it by themselves: it moves pixels near the threshold. What a
    device is best at is not looked up, since workers of several kinds would differ. `compile` has torch compile each
    net for windows of `window_px`, which takes minutes at the start. A scene with a side above `block_px` is scored in
    blocks, which changes no output. `baseline` says of every scene what its values are, where None lets each source say
    so itself. `datetime` is given to scenes that have no date. `missing_bands` says what becomes of members whose bands
    a source lacks. Beside the mask there may be the `probability`, the mean over members and flips, the `disagreement`
    of the members, and the probability of each of the `members` by itself, the mean over its flips; a member that a
    source lacks bands for has none.
    """

    threshold: float = Field(default=0.5, gt=0, lt=1)
    horizontal_flip: bool = True
    window_px: int = Field(default=512, ge=64, multiple_of=32)
    overlap_px: int = Field(default=128, ge=0)
    windows_per_pass: int = Field(default=4, ge=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    threads: int = Field(default=2, ge=1)
    block_px: int = Field(default=12288, ge=512, multiple_of=512)
    baseline: Baseline | None = None
    missing_bands: Literal["error", "leave-out"] = "error"
    probability: LayerEncoding = "none"
    disagreement: LayerEncoding = "none"
    members: LayerEncoding = "none"
    datetime: str | None = None

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if 2 * self.overlap_px > self.window_px:
            raise ValueError(f"overlap_px {self.overlap_px} must be at most half of window_px {self.window_px}")
        return self

    @field_validator("datetime")
    @classmethod
    def _is_a_time(cls, value: str | None) -> str | None:
        if value is None:
            return None
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def one_line(error: ValidationError) -> str:
    """Return pydantic's error as one line: each setting by its dotted path, what is wrong, what was found."""
    parts = []
    for item in error.errors(include_url=False):
        path = ".".join(str(step) for step in item["loc"])
        found = "" if isinstance(item["input"], dict) else f" (found {item['input']!r})"
        text = item["msg"].removeprefix("Value error, ")
        parts.append(f"{path}: {text}{found}" if path else text)
    return "; ".join(parts)


def parse(kind: type[SettingsT], values: Mapping[str, Any], source: str = "") -> SettingsT:
    """Return settings of `kind` from plain values; raise `ConfigError` in one line, which names their `source`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {one_line(error)}" if source else one_line(error)) from error


def known_paths(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted paths of all settings below `kind`, in the order of their declaration."""
    paths: list[str] = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            paths += known_paths(annotation, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def resolve(kind: type[BaseModel], name: str) -> str:
    """Return the dotted path that `name` stands for: itself, or the only one that ends with it (`lr`: `optimiser.lr`).

    Raises `ConfigError` for an unknown name, with the known ones.
    """
    known = known_paths(kind)
    if name in known:
        return name
    found = [path for path in known if path.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"setting {name!r} could be {' or '.join(found)}")
    raise ConfigError(f"unknown setting {name!r}; known are {', '.join(known)}")


def change(settings: SettingsT, changes: Mapping[str, Any]) -> SettingsT:
    """Return `settings` with each dotted path set to its value; the result is checked as a whole.

    Raises `ConfigError` for an unknown path, with the known ones, and for a value that does not fit.
    """
    values = settings.model_dump(mode="json")
    known = known_paths(type(settings))
    for path, value in changes.items():
        if path not in known:
            raise ConfigError(f"unknown setting {path!r}; known are {', '.join(known)}")
        *parents, last = path.split(".")
        target = values
        for step in parents:
            target = target[step]
        target[last] = value
    return parse(type(settings), values)


def parse_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """Return `{path: value}` from `path=value` texts; a value is JSON where it reads as JSON, else a string."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"expected path=value, found {assignment!r}")
        try:
            changes[path] = json.loads(text)
        except json.JSONDecodeError:
            changes[path] = text
    return changes


def toml_changes(text: str, source: str) -> dict[str, Any]:
    """Return `{dotted path: value}` from a TOML text of settings; raise `ConfigError`, which names its `source`."""
    try:
        return dict(_flatten(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not a TOML file: {error}") from error
    except RecursionError as error:
        raise ConfigError(
            f"{source}: not a TOML file of settings: tables or lists in each other without end"
        ) from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def flat(settings: Settings) -> dict[str, Any]:
    """Return `{dotted path: plain value}` of all settings."""
    return dict(_flatten(settings.model_dump(mode="json")))


def differences(left: Settings, right: Settings) -> list[str]:
    """Return one text per setting that differs: `path: left -> right`."""
    ours, theirs = flat(left), flat(right)
    return [f"{p}: {ours.get(p)} -> {theirs.get(p)}" for p in sorted(ours | theirs) if ours.get(p) != theirs.get(p)]


def choose(kind: str, wanted: Sequence[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` that lists the known names unless every one of `wanted` is known."""
    names = sorted(known)
    for name in wanted:
        if name not in names:
            raise ConfigError(f"unknown {kind} {name!r}; known are {', '.join(names)}")
