"""What is compiled, and how long that took, by JAX's own events: whatever is dispatched is not waited for."""

from collections.abc import Iterator
import contextlib
import logging

import jax

from gdsd_jax.waiting import clock, format_seconds, waiting

_log = logging.getLogger(__name__)

_EVENTS = "/jax/core/compile/"  # tracing, lowering, and the compiler's work or what it kept
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
_LOGGED_AFTER = 1.0  # seconds
_saved = 0.0  # seconds that programs took to compile which were kept on the disk


def _told(event: str, seconds: float, **_) -> None:
  global _saved
  if event.startswith(_EVENTS):
    clock.leave_out(seconds)
  elif event == _SAVED:
    _saved += seconds


jax.monitoring.register_event_duration_secs_listener(_told)


@contextlib.contextmanager
def compiling(what: str, least: float = 0.0) -> Iterator[None]:
  """Says that `what` is compiled by the first call of it, which is made within `with`, and in the end for how long.

  Nothing is said at the end where that was less than `least` seconds, or nothing was compiled.
  """
  left_out, saved = clock.left_out, _saved
  with waiting(f"compiling {what}", logged_after=_LOGGED_AFTER, last_word=False):
    yield
  seconds, saved = clock.left_out - left_out, _saved - saved
  if seconds > least:
    took = f"{seconds:.1f} s" if seconds < 60 else format_seconds(seconds)
    _log.info("loaded in %s, compiled before: %s" if saved > seconds else "compiled in %s: %s", took, what)
