"""The few numbers of a run that stand at the top of its page."""

import statistics

from gdsd_jax.page.folders import Run
from gdsd_jax.waiting import format_seconds

LAST = 10  # steps whose mean is told as a run's last


def tiles(run: Run) -> list[dict[str, str | None]]:
  """`label`, `value`, `before` and `note` of each, as text: reward and accuracy, or the loss; steps, time, speed."""
  steps = [row for row in run.rows if row["step"] > 0]
  tell = _tell_rl if any("reward" in row for row in run.rows) else _tell_supervised
  told = (*tell(run.rows, steps), _steps(run, steps), _time(steps), _speed(steps))
  return [tile for tile in told if tile is not None]


def _tell_rl(rows, steps):
  last = f"mean of the last {min(LAST, len(steps))} steps" if steps else "on validation problems"
  return (_change("Reward", _first(rows, "reward"), _recent(steps, "reward"), f"sampled; {last}"),
          _evaluated("Accuracy", rows, "eval/accuracy", "greedy, on validation problems"))


def _tell_supervised(rows, steps):
  last = f"mean of the last {min(LAST, len(steps))} steps"
  return (_change("Loss", _values(steps, "loss")[0] if _values(steps, "loss") else None, _recent(steps, "loss"), last),
          _evaluated("Validation loss", rows, "eval/loss", "on validation rows"),
          _change("Masked accuracy", None, _recent(steps, "masked_accuracy"), last))


def _values(rows, name: str) -> list[float]:
  return [row[name] for row in rows if row.get(name) is not None]


def _first(rows, name: str) -> float | None:
  """The number of step 0, before training."""
  return rows[0].get(name) if rows and rows[0]["step"] == 0 else None


def _recent(steps, name: str) -> float | None:
  values = _values(steps[-LAST:], name)
  return sum(values) / len(values) if values else None


def _change(label: str, before: float | None, after: float | None, note: str) -> dict[str, str | None] | None:
  if after is None:
    before, after = None, before
  if after is None:
    return None
  said = None if before is None else f"{before:.3g}"
  return {"label": label, "before": said, "value": f"{after:.3g}", "note": note}


def _evaluated(label: str, rows, name: str, note: str):
  told = [row for row in rows if row.get(name) is not None]
  if not told:
    return None
  return _change(label, told[0][name] if len(told) > 1 else None, told[-1][name], f"{note}, step {told[-1]['step']}")


def _steps(run: Run, steps) -> dict[str, str | None]:
  asked, done = run.config.get("steps"), steps[-1]["step"] if steps else 0
  return {"label": "Steps", "before": None, "value": f"{done:,}" + (f" of {asked:,}" if isinstance(asked, int) else ""),
          "note": "finished" if run.is_done else "as far as it is written"}


def _time(steps) -> dict[str, str | None] | None:
  seconds = _values(steps, "seconds/step")
  if not seconds:
    return None
  return {"label": "Time", "before": None, "value": format_seconds(sum(seconds)),
          "note": f"{statistics.median(seconds):.3g} s a step"}


def _speed(steps) -> dict[str, str | None] | None:
  speeds = _values(steps, "tokens_per_second")
  return {"label": "Tokens/s", "before": None, "value": f"{statistics.median(speeds):,.0f}",
          "note": "sampled, median of steps"} if speeds else None
