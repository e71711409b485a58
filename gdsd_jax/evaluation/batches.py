"""Batches of prompts that are evaluated together: few shapes, so that few are compiled."""

from collections.abc import Sequence
import json

from gdsd_jax.huggingface.tokenizer import prompt_lengths


def plan_batches(
  tokenizer, prompts: Sequence[str], widths: Sequence[int], batch_size: int, field: str
) -> list[tuple[int, list[int]]]:
  """Batches of at most `batch_size` prompts, narrow ones first. They depend on nothing but the arguments.

  Each is the tokens that its prompts are padded to, one of the `widths` (ascending), and their indices. Raises
  ValueError, naming `field`, where a prompt exceeds the last width.
  """
  by_width = {}
  for index, length in enumerate(prompt_lengths(tokenizer, prompts).tolist()):
    width = next((width for width in widths if width >= length), None)
    if width is None:
      shown = json.dumps(prompts[index][:200])
      raise ValueError(f"{field}: a prompt has {length} tokens, at most {widths[-1]} are allowed: {shown}")
    by_width.setdefault(width, []).append(index)
  return [
    (width, indices[start:start + batch_size])
    for width, indices in sorted(by_width.items())
    for start in range(0, len(indices), batch_size)
  ]
