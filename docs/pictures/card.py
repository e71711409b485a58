"""What the pictures of the documentation share: a white card that fits a phone, and completions as rows of tokens."""

import argparse
from pathlib import Path

import matplotlib
from matplotlib.patches import FancyBboxPatch
import matplotlib.pyplot as plt

matplotlib.use("Agg")

INK, PALE, GRAY = "#1f2430", "#e3e6ec", "#6b7280"
BLUE, ORANGE, GREEN = "#2f6fde", "#d9631e", "#1b8a5a"
COLORS = matplotlib.colormaps["plasma"]  # colours steps, from the first to the last
_WIDTH, _DPI = 7.8, 100  # 780 dots: two for each of a phone's 390
# Rows of tokens: width of a letter and distance of rows, in sizes of the monospaced font; letters left free in a
# token's box; how far below the middle of a row letters stand, in rows.
_LETTER, _APART, _PADDING, _BELOW = 0.602, 1.7, 0.45, 0.2
_ENDS = {"<|endoftext|>": "▪", "<|eot_id|>": "▪"}  # the embedded model's; a row has many

plt.rcParams.update({
  "font.size": 15, "axes.edgecolor": GRAY, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
  "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white",
})


def arguments(description: str, picture: str, **defaults):
  """The flags of a script: --out, and those in `defaults`."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--out", type=Path, default=Path(__file__).parent / picture)
  for name, value in defaults.items():
    parser.add_argument(f"--{name}", default=value)
  return parser.parse_args()


def card(height: float, **layout):
  """(figure, axes) of a card so many inches high; `layout` is as in `plt.subplots`."""
  return plt.subplots(figsize=(_WIDTH, height), layout="constrained", **layout)


def save(figure, path: Path) -> None:
  figure.savefig(path, dpi=_DPI, metadata={"Software": None})
  plt.close(figure)


class Rows:
  """An axis whose unit is a letter across and a row down, on which tokens are written."""

  def __init__(self, rows: float, letters: float):
    self._size = _WIDTH * 72 / letters / _LETTER
    self.figure = plt.figure(figsize=(_WIDTH, rows * self._size * _APART / 72))
    self.ax = self.figure.add_axes((0, 0, 1, 1))
    self.ax.set(xlim=(0, letters), ylim=(rows, 0))
    self.ax.axis("off")

  def say(self, x: float, y: float, text: str, scale: float = 1.0, **style) -> None:
    """Plain text that begins at a letter, on the line of a row."""
    self.ax.text(x, y + _BELOW, text, size=self._size * scale, va="baseline", **style)

  def tokens(self, x: float, y: float, pieces, colors, framed=()) -> None:
    """Tokens one after the other, each on its color, and a mask where that is None; `framed` are places of some."""
    for place, (piece, color) in enumerate(zip(map(shown, pieces), colors)):
      width = len(piece) + _PADDING
      edge = INK if place in framed else "none"
      self.ax.add_patch(FancyBboxPatch(
        (x + 0.07, y - 0.4), width - 0.14, 0.8, boxstyle="round,pad=0,rounding_size=0.15", edgecolor=edge,
        facecolor=PALE if color is None else color, linewidth=1.5))
      if color is not None:
        self.say(x + width / 2, y, piece, family="monospace", ha="center", color=ink_on(color))
      x += width


def shown(piece: str) -> str:
  """A token as rows show it: ends of text are short, since a completion is filled with them."""
  return _ENDS.get(piece, piece)


def letters_of(pieces) -> float:
  """How wide a row of tokens is."""
  return sum(len(shown(piece)) + _PADDING for piece in pieces)


def ink_on(color) -> str:
  """Dark or white, whichever is easier to read on a color."""
  red, green, blue = matplotlib.colors.to_rgb(color)
  return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
