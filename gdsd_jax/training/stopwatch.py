"""Where the time of a step goes."""

import contextlib
import time


class Stopwatch:
  """Seconds that the host spent in each phase of a step."""

  def __init__(self):
    self.seconds, self._started = {}, time.monotonic()

  @contextlib.contextmanager
  def phase(self, name: str):
    started = time.monotonic()
    yield
    self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

  def metrics(self) -> dict[str, float]:
    phases = {f"seconds/{name}": seconds for name, seconds in self.seconds.items()}
    return {**phases, "seconds/step": time.monotonic() - self._started}
