"""TensorBoard's files of a run's numbers, written here and now: what cannot be written raises OSError."""

import os
import time

from etils import epath

from gdsd_jax.runs.files import is_remote

_SECONDS = 120.0  # between writes to an object store, each of which is the whole file


class EventFile:
  """An event file of its own for each start of a run. tensorboardX's writer has a thread, where errors are lost."""

  def __init__(self, folder: epath.Path, first_step: int):
    from tensorboardX.event_file_writer import EventsWriter  # it imports PyTorch where that is installed
    from tensorboardX.proto import event_pb2, summary_pb2
    from tensorboardX.record_writer import directory_check

    self._event, self._summary, self.folder = event_pb2.Event, summary_pb2.Summary, folder
    directory_check(os.fspath(folder))
    self._writer, self._flushed = EventsWriter(os.path.join(os.fspath(folder), "events")), 0.0
    self._seconds = _SECONDS if is_remote(folder) else 0.0
    # What an earlier start has written from this step on is hidden.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._writer.write_event(self._event(wall_time=time.time(), step=first_step, session_log=start))

  def write(self, step: int, numbers: dict[str, float]) -> None:
    """Writes the numbers of a step, each a curve."""
    values = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in numbers.items()]
    self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
    if time.monotonic() - self._flushed >= self._seconds:
      self._flushed = time.monotonic()
      self._writer.flush()

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()
