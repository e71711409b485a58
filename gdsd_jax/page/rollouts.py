"""Rows of rollouts.jsonl as a page takes them: all in its type, whatever a file holds, and as many as have room."""

from collections.abc import Iterable, Sequence
import json
import math
from typing import Any

_DIGITS = 3  # significant ones of a confidence or log-probability on a page


def group_of(row: Any) -> dict[str, Any] | None:
  """A row as the page has it; None where it tells no completion.

  What is missing or of another type is left out: a page is for looking at what there is. `tokens` that do not fit their
  numbers have none, and a completion without tokens has its text as the only one.
  """
  if not isinstance(row, dict) or not isinstance(row.get("completions"), list):
    return None
  completions = [_completion(told) for told in row["completions"] if isinstance(told, dict)]
  if not completions:
    return None
  for number, told in enumerate(completions):
    told["number"] = number
  messages = row.get("prompt") if isinstance(row.get("prompt"), list) else []
  reference = row.get("reference")
  return {
    "step": _whole(row.get("step")), "group": _whole(row.get("group")),
    "prompt": [{"role": _text(each.get("role")), "content": _text(each.get("content"))}
               for each in messages if isinstance(each, dict)],
    "reference": None if reference is None else _text(reference), "completions": completions,
  }


def _completion(told: dict[str, Any]) -> dict[str, Any]:
  text, tokens = _text(told.get("text")), told.get("tokens")
  if not isinstance(tokens, list) or not tokens:
    tokens, told = [text], {**told, "unmasked": None, "logp": None, "confidence": None}
  tokens = [_text(token) for token in tokens]
  unmasked = _numbers(told.get("unmasked"), len(tokens))
  if unmasked and not all(isinstance(step, int) and 0 <= step < 10**6 for step in unmasked):
    unmasked = None
  length, rewards = _whole(told.get("length")), told.get("rewards")
  return {
    "text": text, "tokens": tokens, "unmasked": unmasked,
    "confidence": _rounded(_numbers(told.get("confidence"), len(tokens))),
    "logp": _rounded(_numbers(told.get("logp"), len(tokens))),
    "length": len(tokens) if length is None or length < 0 else length,
    "rewards": {str(name): _number(value) for name, value in rewards.items()} if isinstance(rewards, dict) else {},
    **{name: _number(told.get(name)) for name in ("reward", "accuracy", "advantage")},
  }


def _text(value: Any) -> str:
  return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _whole(value: Any) -> int | None:
  return value if type(value) is int and abs(value) <= 2**53 else None


def _number(value: Any) -> float | int | None:
  plain = isinstance(value, int | float) and not isinstance(value, bool)
  return value if plain and abs(value) < 1e300 and math.isfinite(value) else None


def _numbers(values: Any, count: int) -> list[float | int | None] | None:
  """A number for each token; None where these are others."""
  if not isinstance(values, list) or len(values) != count:
    return None
  return [_number(value) for value in values]


def _rounded(values: Sequence[float | int | None] | None) -> list[float | None] | None:
  return values and [None if value is None else float(f"{value:.{_DIGITS}g}") for value in values]


def that_fit(groups: Sequence[dict[str, Any]], most_bytes: int) -> tuple[list[dict[str, Any]], int]:
  """(groups that have room, how many have none), in their order.

  The first, the last and others evenly between them; of a group that alone is too long, its first completions, and
  `left_out` tells how many are not there.
  """
  sizes = [len(json.dumps(group)) for group in groups]
  if sum(sizes) <= most_bytes:
    return list(groups), 0
  kept, room = set(), most_bytes
  for at in _from_coarse_to_fine(len(groups)):
    if sizes[at] <= room:
      kept.add(at)
      room -= sizes[at]
  if kept:
    return [groups[at] for at in sorted(kept)], len(groups) - len(kept)
  return [_cut(groups[-1], most_bytes)], len(groups) - 1


def _from_coarse_to_fine(count: int) -> Iterable[int]:
  """Every index once: the last, the first, the one in the middle, those in the middle of what is left, and so on."""
  told, parts = set(), 1
  while len(told) < count:
    for part in range(parts, -1, -1):
      at = round(part * (count - 1) / parts)
      if at not in told:
        told.add(at)
        yield at
    parts *= 2


def _cut(group: dict[str, Any], most_bytes: int) -> dict[str, Any]:
  completions, room = [], most_bytes
  for told in group["completions"]:
    room -= len(json.dumps(told))
    if completions and room < 0:
      break
    completions.append(told)
  return {**group, "completions": completions, "left_out": len(group["completions"]) - len(completions)}
