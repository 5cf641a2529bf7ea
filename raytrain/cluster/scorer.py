"""An actor that scores: it loads the ensemble once and does units, some at a time. The driver makes and feeds it.

Out of fold it loads the nets of a fold when a unit needs them, and holds those of few folds.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import resource
import socket
import time
from typing import TYPE_CHECKING, Any

from raytrain import logs
from raytrain.cluster import code, metrics
from raytrain.config import parse
from raytrain.errors import ConfigError, DataError, first_line
from raytrain.scoring.destination import Scoring
from raytrain.scoring.fold_nets import FOLDS_HELD, FoldNets
from raytrain.scoring.manifest import EnsembleManifest
from raytrain.scoring.units import Answer, Unit
from raytrain.storage.temporary import remove_folders_of_the_dead

if TYPE_CHECKING:  # it imports torch
    from raytrain.scoring.ensemble import Ensemble
    from raytrain.scoring.work import Work


_logger = logging.getLogger(__name__)


class Scorer:
    """Does units of work with one ensemble on one device.

    What goes wrong is an answer, not an error: an error would be taken for the loss of the actor.
    """

    def __init__(
        self, destination: str, ensemble: str, scoring: dict[str, Any], manifest: dict[str, Any], use_gpu: bool
    ) -> None:
        # Here, since torch and timm take seconds to import and the driver does without.
        import torch

        from raytrain.scoring.ensemble import Ensemble, NetThreads, use_threads
        from raytrain.scoring.open_shards import OpenShards

        logs.begin_worker()
        remove_folders_of_the_dead()
        loaded = parse(EnsembleManifest, manifest)
        self._destination, self._scoring, self._shards = destination, parse(Scoring, scoring), OpenShards()
        settings = self._scoring.settings
        use_threads(settings.threads)
        device = torch.device("cuda" if use_gpu else "cpu")
        asked = {"disagreement": settings.disagreement != "none", "member_maps": settings.members != "none"}
        threads = NetThreads(settings, device)

        def load(fold: int | None) -> Ensemble:
            of_fold = loaded if fold is None else loaded.of_fold(fold)
            return Ensemble.load(ensemble, of_fold, settings, device, threads=threads, **asked)

        self._nets = FoldNets(load)
        self._folds = sorted({each.fold for each in loaded.members if each.fold is not None})
        self._device = device
        self._mistake = ""
        try:
            with metrics.stores_watched(), self._nets.of(self._first_folds[0]):
                pass  # the first unit will most likely need them
        except (ConfigError, DataError) as error:
            self._mistake = str(error)  # anything else, as a store out of reach, ends this actor: another one is tried

    @property
    def _first_folds(self) -> list[int | None]:
        """The folds whose nets the first units need, as many as are held; [None] where one set of nets scores all."""
        return [*self._folds[:FOLDS_HELD]] if self._scoring.out_of_fold else [None]

    def _work(self, nets: Ensemble) -> Work:
        from raytrain.scoring.work import Work

        return Work(self._destination, self._scoring, nets, self._shards)

    def ready(self) -> tuple[str, dict[str, Any]]:
        """Return what keeps this actor from work, or an empty text, and where and by what it computes."""
        if self._mistake:
            return self._mistake, {}
        from raytrain.scoring.devices import device_record

        computed_with = device_record(self._scoring.settings, self._device)
        program = {"code": code.digest()[:12]}
        return "", {"host": socket.gethostname(), "pid": os.getpid(), **program, **computed_with}

    def perform(self, unit: str) -> tuple[str, str]:
        """Return the answer of a unit as JSON and an empty text, or an empty text and why the unit failed."""
        from raytrain.scoring.perform import perform

        asked = Unit.model_validate_json(unit)
        with logs.about(unit=asked.unit_id), metrics.stores_watched():
            _logger.info("unit begins, %d items", len(asked.item_ids), extra=logs.fields(event="unit begins"))
            try:
                with self._nets.of(asked.fold) as nets:
                    answer: Answer = perform(asked, self._work(nets))
            except Exception as error:  # a unit's bulkhead: the others go on, the driver tries it again
                _logger.warning("unit %s failed", asked.unit_id, exc_info=True, extra=logs.fields(event="unit failed"))
                return "", f"{type(error).__name__}: {first_line(error)}"
            came_of_it = {"pixels": answer.pixels, "seconds": round(answer.seconds, 3), "bad": len(answer.problems)}
            _logger.info("unit is done in %.1f s", answer.seconds, extra=logs.fields(event="unit done", **came_of_it))
            return answer.model_dump_json(), ""

    def calibrate(self) -> tuple[float, int]:
        """Return the seconds that a window takes, and the memory of this process with some computed.

        Out of fold, the nets of as many folds are loaded as are held at most.
        """
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(self._nets.of(fold)) for fold in self._first_folds]
            found = [calibrate(self._work(nets)) for nets in held]
        return max(window_s for window_s, _ in found), max(peak_bytes for _, peak_bytes in found)


def calibrate(work: Work) -> tuple[float, int]:
    """Return the seconds that a window takes, and the most memory of this process so far, in bytes.

    All that units import is imported, and passes of the nets are behind it; it has read no raster.
    """
    import numpy as np

    importlib.import_module("raytrain.scoring.perform")
    settings, nets = work.scoring.settings, work.nets
    count, side = settings.windows_per_pass, settings.window_px
    generator = np.random.default_rng(0)
    windows = [generator.integers(1, 10000, (len(nets.bands), side, side)).astype(np.uint16)] * count
    valid = [np.ones((side, side), bool)] * count
    taken_s = 0.0
    for _ in range(2):  # the first pass pays for what is made once
        start = time.monotonic()
        nets.layers(windows, valid, nets.bands)
        taken_s = time.monotonic() - start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return taken_s / count, peak_bytes
