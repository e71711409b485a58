"""Answers as a terminal shows them: tokens in colours of their confidence, and nothing that the terminal would obey."""

from collections.abc import Sequence
import itertools

import numpy as np
from rich.text import Text

from gdsd_jax.chat.answers import Answer
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.screen import harmless

MASK = "░"
DIM = "bright_black"
# Least sureness of a colour, highest first; what is sure has the terminal's own. Readable on black and on white.
_COLOURS, _UNSURE = ((0.9, ""), (0.5, "orange3")), "red3"
LEGEND = f"{MASK} masked; [orange3]less than 0.9[/] or [red3]0.5[/] sure"


def sureness(confidence: np.ndarray, sampler: SamplerConfig) -> np.ndarray:
  """Confidence as a share between 0 and 1, float[L]: of dream's entropy, that of as many equally likely tokens."""
  by_entropy = sampler.kind == "dream" and sampler.alg == "entropy"  # which is negative where it is a confidence
  return np.clip(np.exp(confidence) if by_entropy else confidence, 0, 1)


def coloured(pieces: Sequence[str], sure: np.ndarray, masked: np.ndarray) -> Text:
  """Pieces of a completion (`token_pieces`) with float[L] sureness and bool[L] masks as one text."""
  styles = [DIM if is_masked else next((colour for least, colour in _COLOURS if value >= least), _UNSURE)
            for value, is_masked in zip(sure.tolist(), masked.tolist())]
  shown = [MASK if is_masked else harmless(piece) for piece, is_masked in zip(pieces, masked.tolist())]
  text = Text(tab_size=4)
  for style, run in itertools.groupby(zip(shown, styles, strict=True), key=lambda each: each[1]):
    text.append("".join(piece for piece, _ in run), style)
  return text


def statistics(answer: Answer) -> str:
  """One line on how an answer came to be."""
  sampler = answer.sampler
  said = [f"{answer.length} of {len(answer.tokens)} tokens"]
  if answer.is_stopped:
    said = [f"stopped with {answer.computed.sum()} of {len(answer.tokens)} tokens"]
  if answer.steps is not None:
    said[0] += f" in {answer.steps} steps"
  known = answer.confidence[:answer.length]
  if len(known):
    name = "negative entropy" if sampler.kind == "dream" and sampler.alg == "entropy" else "confidence"
    said.append(f"{name} {known.mean():.2f}, at least {known.min():.2f}")
  compiling = f" without compiling ({answer.compiling:.1f} s)" if answer.compiling else ""
  said.append(f"{answer.tokens_per_second:,.0f} tokens/s{compiling}")
  return "; ".join([*said, f"seed {answer.seed}"])
