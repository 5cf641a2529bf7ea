"""What long work leaves to look at while it goes on: TensorBoard's event files of a run, and Ray's metrics.

Of a run, on rank 0 only. A store that fails here is a warning, never the end of training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from io import BytesIO

from ray.util.metrics import Gauge
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter, register_writer_factory

from raytrain import storage
from raytrain.errors import first_line
from raytrain.scoring.pace import Progress
from raytrain.training.progress import RunProgress

FOLDER = "tensorboard"
"""Below a run's folder."""
_logger = logging.getLogger(__name__)


class _InMemory:
    """What tensorboardX writes records to."""

    SCHEME = "raytrain-memory"

    def open(self, path: str) -> BytesIO:
        """Return an empty file."""
        return BytesIO()


register_writer_factory(_InMemory.SCHEME, _InMemory())


class EventFile:
    """TensorBoard's events of one attempt at a run (rank 0 only): gathered in memory, published as one object.

    A step is a number of images over all epochs so far, so that the curves of attempts lie one behind the other on any
    number of ranks. `first_step` is how many images were done when this attempt began. TensorBoard reads the files of a
    folder in the order of their names, which are functions of `attempt`, and drops what earlier files say of later
    steps: those were thrown away. An attempt that publishes nothing leaves nothing. One thread may add while another
    publishes.
    """

    def __init__(self, run_uri: str, attempt: int, first_step: int, clock: Callable[[], float] = time.time) -> None:
        self._uri = storage.join(run_uri, FOLDER, f"events.out.tfevents.attempt-{attempt:06d}")
        self._clock = clock
        # In memory, so that a full disk of a node ends no training; hundreds of kB a day.
        self._records = RecordWriter(f"{_InMemory.SCHEME}:events")
        self._buffer: BytesIO = self._records._writer
        self._published_bytes = 0
        self._lock = threading.Lock()
        self._write(Event(file_version="brain.Event:2"))
        # TensorBoard drops what it has of this step and later; what was done when the checkpoint was made stays.
        self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each name, at `step` images."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def publish(self) -> None:
        """Put the file as it is now into the run's folder, in place of what was published before.

        To be called with each checkpoint, and at the end of each epoch. A store that fails is a warning: the next call
        writes all of it.
        """
        with self._lock:
            data = self._buffer.getvalue()
        if len(data) == self._published_bytes:
            return
        try:
            storage.write_bytes(self._uri, data)
        except Exception as error:
            if not storage.is_out_of_reach(error):
                raise
            _logger.warning("%s: not written, training goes on: %s", self._uri, first_line(error))
        else:
            self._published_bytes = len(data)

    def _write(self, event: Event) -> None:
        event.wall_time = self._clock()
        with self._lock:
            self._records.write(event.SerializeToString())


class Gauges:
    """Ray's metrics of a run (rank 0 only), each tagged with its name; Prometheus sees them with `ray_` in front."""

    def __init__(self, run: str) -> None:
        self._images_per_s = _gauge("raytrain_images_per_s", "Images trained a second, over all ranks.", run)
        self._wait = _gauge("raytrain_data_wait_fraction", "Share of step time spent waiting for samples.", run)
        self._score = _gauge("raytrain_validation_iou", "Validation IoU, weighted by location.", run)

    def set(self, progress: RunProgress) -> None:
        """Take the values of a run's progress; one that is not known yet stays as it is."""
        self._images_per_s.set(progress.images_per_s)
        self._wait.set(progress.wait_fraction)
        self._score.set(progress.score)


class ScoringGauges:
    """Ray's metrics of a scoring (in its driver), each tagged with the destination."""

    def __init__(self, destination: str) -> None:
        self._megapixels_per_s = _gauge(
            "raytrain_scored_megapixels_per_s", "Megapixels scored a second, since the start.", destination
        )
        self._items_per_h = _gauge("raytrain_scored_items_per_h", "Chips or scenes finished an hour.", destination)
        self._done = _gauge("raytrain_scored_fraction", "Share of the planned units that is done.", destination)
        self._casualties = _gauge("raytrain_score_casualties", "Chips or scenes that can't be scored.", destination)

    def set(self, progress: Progress) -> None:
        """Take the values of a scoring's progress."""
        seconds = max(progress.seconds, 1e-3)
        self._megapixels_per_s.set(progress.megapixels / seconds)
        self._items_per_h.set(progress.items * 3600 / seconds)
        self._done.set(progress.units / max(progress.total, 1))
        self._casualties.set(progress.casualties)


def _gauge(name: str, description: str, run: str) -> Gauge:
    gauge = Gauge(name, description, tag_keys=("run",))
    gauge.set_default_tags({"run": run})
    return gauge
