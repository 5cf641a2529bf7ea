"""`raytrain review effect`: its options and what it prints. Must not know arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Annotated, Any

import tyro
from pydantic import Field

from raytrain import storage
from raytrain.command import listed, or_dash
from raytrain.command_train import TrainingCommand, tell_news
from raytrain.config import ScoreSettings, change, parse, parse_changes
from raytrain.console import Narrator, OnProgress, print_table
from raytrain.errors import EXIT_DATA_WRONG, EXIT_DONE


class Effect(TrainingCommand):
    """Train on shards before and after cleaning, with the same seeds, and say whether cleaning helped, and where."""

    before: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BEFORE")]
    """The shards as they were."""
    after: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="AFTER")]
    """The cleaned shards, as `raytrain review apply` made them: the same tiles and folds, or fewer tiles."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A folder of its own for nets, masks, effect.json and effect.html; the same command goes on where it stopped."""
    members: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of members, `all` for the eight of the recipe, `small` for two that a CPU trains in minutes. Each trains
    on both versions, with every seed, once a fold."""
    seeds: int = 3
    """With how many seeds, three at least. More of them later train only what they add."""
    first_seed: int = Field(default=0, ge=0)
    """The first of them."""
    test: str | None = None
    """Shards whose labels are right, of places that are in neither version: the nets of all folds together score them,
    and they decide then whether cleaning helped."""
    workers: tuple[int, ...] = Field(default=(1,), min_length=1, max_length=2)
    """Data-parallel ranks of a run; two numbers are the fewest and the most of an elastic one."""
    score_set: tuple[str, ...] = ()
    """path=value settings of the scoring, e.g. threshold=0.4 precision=bfloat16. Others, later, train nothing anew."""
    resamples: int = 10_000
    """Resamples of places for the intervals."""
    resampling_seed: int = 0
    """Seed of these."""

    def run(self, narrator: Narrator) -> int:
        """Find the effect."""
        from raytrain.cluster.review_effect import effect
        from raytrain.review.effect_page import headline, sentences

        report = effect(self._job(), self._cluster, _Told(narrator))
        narrator.problems(report.problems, consequence="in no comparison")
        if not self.json_output:
            print_effect(report.effect)
        result = {**report.effect.model_dump(mode="json"), "uri": report.effect_uri, "page": report.page_uri}
        result["problems"] = listed(report.problems)
        lines = [f"{headline(report.effect)}.", *sentences(report.effect)]
        self._print(result, [*lines, f"effect: {report.effect_uri}", f"report: {report.page_uri}"])
        return EXIT_DATA_WRONG if report.problems else EXIT_DONE

    def _job(self) -> Any:
        from raytrain.cluster.review_effect import EffectJob
        from raytrain.cluster.runs import Checkpointing

        return parse(
            EffectJob,
            {
                "before": storage.normalise(self.before),
                "after": storage.normalise(self.after),
                "out": storage.normalise(self.out),
                "members": self.members,
                "seeds": self.seeds,
                "first_seed": self.first_seed,
                "test": None if self.test is None else storage.normalise(self.test),
                "workers": self.workers[0] if len(self.workers) == 1 else (self.workers[0], self.workers[1]),
                "changes": self._changes(),
                "loader": self._loader(),
                "checkpointing": parse(Checkpointing, {"interval_s": 60 * self.checkpoint_minutes}),
                "weights": self._mirror(),
                "settings": change(ScoreSettings(), parse_changes(self.score_set)),
                "resamples": self.resamples,
                "resampling_seed": self.resampling_seed,
            },
        )

    def writes_to(self) -> str:
        """Return the folder."""
        return storage.normalise(self.out)

    def uris(self) -> list[str]:
        """Return both versions, the folder, the test set, and what encoders start from."""
        return [self.before, self.after, self.out, *([self.test] if self.test else []), *self._weights_uris()]


class _Told:
    """Tells a person of runs and steps."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator

    def step(self, title: str) -> AbstractContextManager[OnProgress]:
        """Show the progress of a step while its body runs."""
        return self._narrator.step(title)

    @contextmanager
    def training(self, name: str) -> Iterator[Callable[[Any], None]]:
        """Show the progress of the runs of an ensemble while the body goes on."""
        self._narrator.say(f"ensemble {name}", event="ensemble", ensemble=name)
        with self._narrator.runs() as runs:
            yield partial(tell_news, runs)


def print_effect(effect: Any) -> None:
    """Print tables of the comparisons and of the places."""
    from raytrain.review.effect import EFFECT_SCORES, PART_WORDS
    from raytrain.review.effect_page import places_of

    rows = [
        [
            PART_WORDS[part.name],
            str(part.num_tiles),
            str(len(part.locations)),
            or_dash(part.deciding.before, ".4f"),
            or_dash(part.deciding.after, ".4f"),
            or_dash(part.deciding.difference, "+.4f"),
            _ends(part.deciding.interval),
            part.deciding.words,
        ]
        for part in effect.parts
    ]
    level = f"{effect.compared.level:.0%} interval"
    title = f"{EFFECT_SCORES[effect.parts[0].deciding.name]}, over {len(effect.compared.seeds)} seeds"
    print_table(title, ["", "tiles", "places", "before", "after", "difference", level, ""], rows)
    rows = [
        [
            name,
            str(each.num_changed),
            str(each.num_dropped),
            str(each.num_tiles),
            f"{each.difference:+.4f}",
            _ends(each.interval),
            each.words,
        ]
        for name, each in places_of(effect)
    ]
    columns = ["place", "changed", "dropped", "tiles", "difference", f"{level} over seeds", ""]
    print_table("Places, from the one that lost most", columns, rows)


def _ends(ends: Any) -> str:
    return "-" if ends is None else f"{ends.low:+.4f} to {ends.high:+.4f}"
