"""An answer that unmasks before one's eyes: drawn beside the device's work, at most twenty times a second."""

import collections
import contextlib
import math
import threading
import time

import numpy as np
from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from gdsd_jax import signals
from gdsd_jax.chat.answers import Answering, View
from gdsd_jax.chat.shown import coloured, DIM, MASK, sureness
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.generation.tokens_told import token_pieces

_SECONDS_BETWEEN = 0.05
_LAST = 20  # states that are shown of what a quick device was done with before it could be seen: a second's
_SHARE = 0.2  # share of the time that drawing may take: it needs a core of the host, and Python's lock


class LiveView(View):
  """The last screenful of an answer that has something unmasked; it is gone when the answer is whole.

  It shows the latest state. A small model is done before anybody has seen one: of its last states some follow at the
  end, for a second at most, while the device is free.
  """

  def __init__(self, console: Console, answering: Answering, sampler: SamplerConfig):
    self._console, self._answering, self._sampler = console, answering, sampler
    self._states = collections.deque(maxlen=256)  # that were not drawn
    self._came, self._over = threading.Event(), threading.Event()
    self._drawn, self._width = [], console.width  # cells of each line on the screen, and of the screen then
    self._entered = contextlib.ExitStack()
    self._thread = threading.Thread(target=self._draw_on, name="live view", daemon=True)

  def see(self, step, tokens, confidence):
    self._states.append((step, tokens, confidence))
    self._came.set()

  def __enter__(self):
    # The cursor is not seen while lines are drawn, and however the process ends it must be.
    self._entered.enter_context(signals.at_leaving(lambda: self._console.show_cursor(True)))
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._over.set()
    self._came.set()
    self._thread.join()
    self._entered.close()

  @property
  def is_drawing(self) -> bool:
    """Whether it is on the screen."""
    return self._thread.is_alive()

  def _draw_on(self) -> None:
    plain = dict(redirect_stdout=False, redirect_stderr=False)  # nothing else speaks meanwhile
    with Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop", **plain) as live:
      while True:
        self._came.wait()
        self._came.clear()
        if self._over.is_set():
          break
        state, started = self._states.pop(), time.monotonic()
        self._states.clear()
        self._draw(live, *state)
        took = time.monotonic() - started
        self._over.wait(max(_SECONDS_BETWEEN - took, took / _SHARE - took))
      rest, ended = list(self._states), time.monotonic()
      for state in rest[::math.ceil(len(rest) / _LAST) or 1]:
        if self._answering.is_stopped or time.monotonic() - ended > _LAST * _SECONDS_BETWEEN:
          return
        self._draw(live, *state)
        time.sleep(_SECONDS_BETWEEN)

  def _draw(self, live: Live, *state) -> None:
    lines = self.lines(*state)
    width = self._console.width
    if width < self._width:  # the terminal has broken lines that were longer
      more = sum(max(math.ceil(cells / width), 1) - 1 for cells in self._drawn)
      self._console.control(Control(*[(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * more))
    self._drawn, self._width = [line.cell_len for line in lines], width
    live.update(Text("\n").join(lines), refresh=True)

  def lines(self, step: int, tokens: np.ndarray, confidence: np.ndarray) -> list[Text]:
    """What fits the screen: up to the line with the last unmasked token, masks behind it, and the step's number.

    What is behind an end of the text will not be part of the answer, whatever is still to come.
    """
    count = self._answering.length(tokens)
    pieces = token_pieces(self._answering.tokenizer, tokens[:count])
    masked = tokens[:count] == self._answering.mask_token_id
    text = coloured(pieces, sureness(confidence[:count], self._sampler), masked)
    lines = list(text.wrap(self._console, self._console.width, overflow="fold"))
    known = [number for number, line in enumerate(lines, start=1) if line.plain.strip(f"{MASK} ")]
    room = max(self._console.height - 2, 1)
    end = max(known[-1] if known else 0, room)
    said = f"step {step} of {'at most ' * (not self._sampler.has_fixed_steps)}{self._sampler.most_steps}"
    return [*lines[max(end - room, 0):end], Text(said, DIM)]
