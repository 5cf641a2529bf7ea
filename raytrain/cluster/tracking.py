"""What long work leaves to look at while it goes on: TensorBoard's event files of a run, and Ray's metrics.

Of a run, on rank 0 only. A store that fails here is a warning, never the end of training.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from io import BytesIO

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter, register_writer_factory

from raytrain import storage
from raytrain.cluster import metrics
from raytrain.errors import first_line
from raytrain.scoring.pace import Progress
from raytrain.training.checkpoint_files import KeptCheckpoint
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


class RunMetrics:
    """Ray's metrics of a run (rank 0 only), each with its tags."""

    def __init__(self, tags: dict[str, str]) -> None:
        self._tags = tags
        self._images_done: int | None = None

    def begin(self, num_ranks: int, images_done: int) -> None:
        """Take that an attempt begins, on so many ranks, behind so many images."""
        self._images_done = images_done
        metrics.set_gauge("raytrain_ranks", num_ranks, **self._tags)
        metrics.set_gauge("raytrain_saved_timestamp_seconds", time.time(), **self._tags)

    def set(self, progress: RunProgress) -> None:
        """Take the values of a run's progress; one that is not known yet stays as it is."""
        tags, epochs = self._tags, progress.epoch + progress.samples_done / max(progress.num_samples, 1)
        if self._images_done is not None:
            metrics.count("raytrain_images", progress.images_done - self._images_done, **tags)
        self._images_done = progress.images_done
        metrics.set_gauge("raytrain_images_per_s", progress.images_per_s, **tags)
        metrics.set_gauge("raytrain_data_wait_fraction", progress.wait_fraction, **tags)
        metrics.set_gauge("raytrain_loss", progress.loss, **tags)
        metrics.set_gauge("raytrain_validation_iou", progress.score, **tags)
        metrics.set_gauge("raytrain_epoch", epochs, **tags)
        metrics.set_gauge("raytrain_epochs", progress.num_epochs, **tags)
        metrics.set_gauge("raytrain_left_seconds", progress.left_s, **tags)

    def saved(self, kept: KeptCheckpoint) -> None:
        """Take that a checkpoint was saved just now."""
        metrics.set_gauge("raytrain_saved_timestamp_seconds", time.time(), **self._tags)
        metrics.set_gauge("raytrain_checkpoint_bytes", kept.num_bytes, **self._tags)
        metrics.observe("raytrain_checkpoint_seconds", kept.write_s, **self._tags)

    def end(self) -> None:
        """Take that this process trains the run no longer; it may go on with another one.

        Its gauges would say for as long as the process lives what was so once.
        """
        metrics.set_gauge("raytrain_ranks", 0, **self._tags)
        metrics.forget_gauges(**self._tags)


class ScoringMetrics:
    """Ray's metrics of a scoring (in its driver), each tagged with the destination."""

    def __init__(self, destination: str) -> None:
        self._destination = destination
        self._last = Progress(units=0, total=0, items=0, casualties=0, megapixels=0, seconds=0)

    def set(self, progress: Progress) -> None:
        """Take the values of a scoring's progress."""
        last, self._last = self._last, progress
        to = {"destination": self._destination}
        metrics.set_gauge("raytrain_score_units_done", progress.units, **to)
        metrics.set_gauge("raytrain_score_units_planned", progress.total, **to)
        metrics.set_gauge("raytrain_score_casualties", progress.casualties, **to)
        metrics.count("raytrain_scored_items", progress.items - last.items, **to)
        metrics.count("raytrain_scored_megapixels", progress.megapixels - last.megapixels, **to)

    def unit_done(self, seconds: float) -> None:
        """Take that a unit is done, which took so long."""
        metrics.observe("raytrain_score_unit_seconds", seconds, destination=self._destination)

    def setback(self, outcome: str) -> None:
        """Take that an attempt at a unit failed, or was lost."""
        metrics.count("raytrain_score_setbacks", destination=self._destination, outcome=outcome)

    def workers(self, states: Mapping[str, int], failing_s: float) -> None:
        """Take how many workers there are in each state, and for how long units fail without a success."""
        for state, number in states.items():
            metrics.set_gauge("raytrain_score_workers", number, destination=self._destination, state=state)
        metrics.set_gauge("raytrain_score_failing_seconds", failing_s, destination=self._destination)
