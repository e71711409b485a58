"""Answers as rows of rollouts.jsonl, for the page that replays them."""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import Any

from gdsd_jax.chat.answers import Answer, Answering
from gdsd_jax.checks import require
from gdsd_jax.generation.tokens_told import told_tokens
from gdsd_jax.page.replay import replay_page
from gdsd_jax.runs.files import local_folder, write_whole
from gdsd_jax.tasks.base import Grade, total_of


class Replay:
  """An HTML file of all answers so far."""

  def __init__(self, file: str, title: str):
    """Raises ValueError or OSError, one line, where the file cannot be written."""
    self._file, self._title, self._rows = local_folder("--html", file), title, []
    folder = self._file.parent
    require(not self._file.is_dir(), "--html", f"{self._file} is a folder; name a file in it")
    require(self._file.suffix in (".html", ".htm"), "--html", f"{self._file} must end in .html")  # no other is meant
    require(folder.is_dir(), "--html", f"there is no folder {folder}")
    require(os.access(self._file if self._file.exists() else folder, os.W_OK) and os.access(folder, os.W_OK), "--html",
            f"{self._file} cannot be written; choose another folder")

  def add(self, answering: Answering, messages: Sequence[dict[str, str]], answer: Answer, grade: Grade | None = None,
          reference: str | None = None) -> Path:
    """Writes the file anew, with one more answer. Raises OSError where it cannot be."""
    self._rows.append(row_of(answering, messages, answer, grade, reference) | {"group": len(self._rows)})
    write_whole(self._file, replay_page(self._title, self._rows))
    return self._file


def row_of(answering: Answering, messages: Sequence[dict[str, str]], answer: Answer, grade: Grade | None,
           reference: str | None) -> dict[str, Any]:
  """An answer as a row of rollouts.jsonl; a run alone has advantages and log-probabilities."""
  completion = {"text": answer.text, "length": answer.length, "reward": None, "rewards": {}, "accuracy": None,
                "advantage": None}
  if grade is not None:
    completion |= {"reward": total_of(grade.rewards), "rewards": dict(grade.rewards), "accuracy": grade.accuracy}
  completion |= told_tokens(answering.tokenizer, answer.tokens, answer.unmasked, answer.confidence)
  return {"prompt": list(messages), "reference": reference, "completions": [completion]}
