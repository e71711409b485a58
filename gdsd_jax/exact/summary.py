"""What a study found: numbers with intervals over seeds, as a dict, as tables, as a picture."""

from collections.abc import Sequence
import io
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from gdsd_jax.exact.estimators import Quality

ESTIMATORS = {
  "elbo": "ELBO, one mask", "coupled_elbo": "coupled ELBO, uniform masks", "coupled_elbo_states":
  "coupled ELBO, the sampler's states", "spg_elbo": "SPG's lower bound", "eubo": "SPG's upper bound (EUBO)",
  "mean_field": "mean field, one pass", "trajectory": "trajectory",
}
SAMPLERS = {
  "llada": "LLaDA, in blocks, the surest token first", "llada_two_tokens_a_step": "LLaDA, two tokens a step",
  "llada_random_remasking": "LLaDA, random remasking", "dream": "Dream, by entropy",
}
_COLUMNS = {"bias": "bias", "spread": "spread of the bias", "noise": "noise of one estimate",
            "correlation": "correlation", "rank": "rank correlation"}


class Interval(NamedTuple):
  """A mean over seeds and half of its 95 % interval, Student's t."""

  mean: float
  half: float | None  # None of a single seed

  @classmethod
  def of(cls, values: Sequence[float]) -> "Interval":
    half = None
    if len(values) > 1:
      half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return cls(float(np.mean(values)), half)

  def __str__(self) -> str:
    return f"{self.mean:.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """The results as nested dicts of numbers; intervals are (mean, half).

  "estimators" has for each sampler and estimator the fields of `Quality`; "objectives" for each objective its learning
  rate, the numbers before and after training, the gain, and the rewards of the single seeds.
  """
  settings = next(row["settings"] for row in rows if row["kind"] == "settings")
  summary: dict[str, Any] = {**settings, "estimators": {}, "objectives": {}}
  for row in rows:
    if row["kind"] == "fixed_point":
      summary["fixed_point"] = {name: row[name] for name in ("psi", "difference")}
  for sampler in _in_order(rows, "estimators", "sampler"):
    found = [row for row in rows if row["kind"] == "estimators" and row["sampler"] == sampler]
    summary["estimators"][sampler] = {
      "largest_distance_of_total_from_1": max(abs(row["total"] - 1) for row in found),
      **{name: {field: Interval.of([row["estimators"][name][field] for row in found]) for field in Quality._fields}
         for name in found[0]["estimators"]}}
  for name in _in_order(rows, "reported", "objective"):
    found = [row for row in rows if row["kind"] == "reported" and row["objective"] == name]
    summary["objectives"][name] = {"rate": found[0]["rate"], "seeds": len(found), **_of_runs(found)}
  return summary


def _of_runs(found: list[dict[str, Any]]) -> dict[str, Any]:
  numbers = lambda when, field: [row[when][field] for row in found]
  before, after = numbers("before", "reward"), numbers("after", "reward")
  return {
    "before": Interval.of(before), "after": Interval.of(after),
    "gain": Interval.of([new - old for old, new in zip(before, after)]), "kl": Interval.of(numbers("after", "kl")),
    "entropy": Interval.of(numbers("after", "entropy")), "rewards": after,
  }


def _in_order(rows: list[dict[str, Any]], kind: str, field: str) -> list[str]:
  return list(dict.fromkeys(row[field] for row in rows if row["kind"] == kind))


def markdown(summary: dict[str, Any]) -> str:
  """The tables, as Markdown."""
  lines = []
  for sampler, found in summary["estimators"].items():
    lines += [f"**{SAMPLERS[sampler]}**", "", _row("estimator", *_COLUMNS.values()), _row(*["---"] * 6)]
    lines += [_row(said, *(str(found[name][field]) for field in _COLUMNS)) for name, said in ESTIMATORS.items()]
    lines.append("")
  if summary["objectives"]:
    lines += [_row("objective", "learning rate", "true reward before", "after", "gain", "KL from the start", "entropy"),
              _row(*["---"] * 7)]
    for name, found in sorted(summary["objectives"].items(), key=lambda item: -item[1]["after"].mean):
      numbers = (str(found[field]) for field in ("before", "after", "gain", "kl", "entropy"))
      lines.append(_row(f"`{name}`", f"{found['rate']:g}", *numbers))
    lines.append("")
  if "fixed_point" in summary:
    psi, difference = summary["fixed_point"]["psi"], summary["fixed_point"]["difference"]
    lines += [f"GDSD-TLC's minimiser differs from the closed-form teacher by at most {difference:.1e} (ψ {psi:g}).", ""]
  return "\n".join(lines)


def _row(*cells: str) -> str:
  return f"| {' | '.join(cells)} |"


def picture(summary: dict[str, Any]) -> bytes:
  """A PNG: the estimators' bias under each sampler, and the true reward that each objective ends with."""
  from matplotlib.figure import Figure

  parts = [part for part in ("estimators", "objectives") if summary[part]]
  figure = Figure(figsize=(6 * len(parts), 5), layout="constrained")
  axes = figure.subplots(1, len(parts), squeeze=False)
  for part, ax in zip(parts, axes[0]):
    (_draw_estimators if part == "estimators" else _draw_objectives)(ax, summary)
    ax.grid(alpha=0.3)
  image = io.BytesIO()
  figure.savefig(image, format="png", dpi=90)
  return image.getvalue()


def _draw_estimators(ax, summary: dict[str, Any]) -> None:
  samplers, places = summary["estimators"], np.arange(len(ESTIMATORS))
  for number, (sampler, found) in enumerate(samplers.items()):
    biases = [found[name]["bias"].mean for name in ESTIMATORS]
    spreads = [found[name]["spread"].mean for name in ESTIMATORS]
    shift = 0.6 * (number / max(len(samplers) - 1, 1) - 0.5)
    ax.errorbar(biases, places + shift, xerr=spreads, fmt="o", markersize=4, capsize=2, label=SAMPLERS[sampler])
  ax.axvline(0, color="black", linewidth=0.8)
  ax.set_yticks(places, ESTIMATORS.values())
  ax.invert_yaxis()
  ax.set(xlabel="estimate − exact log-likelihood, nats\nmean, and deviation over completions")
  ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.35, -0.2), ncols=2)


def _draw_objectives(ax, summary: dict[str, Any]) -> None:
  found = sorted(summary["objectives"].items(), key=lambda item: item[1]["after"].mean)
  for place, (_, each) in enumerate(found):
    ax.plot(each["rewards"], [place] * len(each["rewards"]), ".", color="tab:gray", alpha=0.6)
    ax.errorbar(each["after"].mean, place, xerr=each["after"].half, fmt="o", color="tab:blue", capsize=3)
    ax.plot(each["before"].mean, place, "|", color="tab:orange", markersize=12)
  ax.set_yticks(range(len(found)), [name for name, _ in found])
  ax.set(xlabel="true expected reward\nbefore (|), after with its 95 % interval; dots are seeds")
