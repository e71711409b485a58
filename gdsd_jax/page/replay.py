"""A page of completions alone, each replayed as it was unmasked."""

from collections.abc import Sequence
import datetime
from typing import Any

from gdsd_jax.page.document import page
from gdsd_jax.page.rollouts import group_of


def replay_page(title: str, rows: Sequence[dict[str, Any]]) -> str:
  """One self-contained HTML file that replays completions; it needs no chart library.

  Args:
    title: heading of the page, shown as text.
    rows: as a run's rollouts.jsonl has them (docs/report.md), a prompt each; without "step", "group" or rewards, too.

  Raises ValueError where no row has a completion.
  """
  groups = [group for row in rows if (group := group_of(row)) is not None]
  if not groups:
    raise ValueError("rows: none of them has a completion")
  data = {"kind": "replay", "title": title, "made": made_at(), "runs": [{"name": title, "rollouts": groups}]}
  return page(title, data, charts=False)


def made_at() -> str:
  return f"Made by gdsd_jax, {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
