"""Which metrics a page shows together, in which order, and what the documentation says of each."""

from collections.abc import Collection
import fnmatch
import functools
from pathlib import Path
import re
from typing import Any

# Groups, and the charts of each: a metric or pattern alone, or a name and the metrics that are laid over each other.
GROUPS = (
  ("Reward", (
    ("reward", ("reward", "eval/sampled_reward", "eval/reward")), ("reward by name", ("reward/*",)),
    ("evaluated reward by name", ("eval/reward/*",)), "reward_std", "groups_without_spread", "unique_rewards",
    "groups_drawn", "groups_kept",
  )),
  ("Accuracy", (
    ("accuracy", ("eval/accuracy", "eval/accuracy_lenient")), "masked_accuracy",
    ("preference accuracy", ("preference_accuracy", "eval/preference_accuracy")), ("margin", ("margin", "eval/margin")),
  )),
  ("Diversity", ("diversity", "group_entropy", "token_agreement", "distinct_1", "entropy")),
  ("Length", ("completion_length", "completion_length_std", "completions_cut")),
  ("KL", ("kl", "largest_kl", "kl_old", "largest_kl_old")),
  ("Log-ratio and clip", ("clip_fraction", ("log-ratio", ("log_ratio", "log_ratio_abs")), "largest_log_ratio")),
  ("Scores and their noise", ("score_noise", ("score", ("score", "score_plain")), "largest_score", "bound_gap")),
  ("Sampler beside the ELBO", (
    ("trajectory and ELBO", ("trajectory_logp", "elbo")), "elbo_gap", "elbo_gap_std", "elbo_correlation",
  )),
  ("Loss and gradient", (
    ("loss", ("loss", "eval/loss")), "grad_norm", "learning_rate", "skipped", "target_abs", "residual_abs",
    "gradient_scale", "gradient_scale_std", "gradient_snr", "largest_weight",
  )),
  ("Experts", ("router/largest_load", "router/load_entropy", "router/idle_experts", "router/balance_loss")),
  ("Slots", (("share of slots that worked", ("slot_occupancy", "slot_occupancy_queued")), "sampler_passes")),
  ("Speed", ("tokens_per_second", "seconds/step", ("seconds by phase", (
    "seconds/rollout", "seconds/reward", "seconds/score", "seconds/update", "seconds/evaluate")), "seconds/*")),
)
OTHERS = "Your own and others"


def groups_of(names: Collection[str]) -> list[dict[str, Any]]:
  """The groups of a page whose runs tell these metrics; those that are in none have one of their own."""
  left, groups = sorted(names), []

  def take(pattern: str) -> list[str]:
    taken = [name for name in left if name == pattern or "*" in pattern and fnmatch.fnmatchcase(name, pattern)]
    left[:] = [name for name in left if name not in taken]
    return taken

  for title, parts in GROUPS:
    charts = []
    for part in parts:
      if isinstance(part, str):
        charts += [_chart(name, [name]) for name in take(part)]
      elif together := [name for pattern in part[1] for name in take(pattern)]:
        charts.append(_chart(part[0], together))
    groups.append({"title": title, "charts": charts})
  groups.append({"title": OTHERS, "charts": [_chart(name, [name]) for name in left]})
  return [group for group in groups if group["charts"]]


def _chart(title: str, names: list[str]) -> dict[str, Any]:
  return {"title": title if len(names) > 1 else names[0],
          "metrics": [{"name": name, **dict(zip(("about", "healthy"), explained(name)))} for name in names]}


def explained(name: str) -> tuple[str, str]:
  """What docs/metrics.md says a metric is, and when it is healthy, as plain text; empty where it does not know it."""
  return next((said for pattern, *said in _table() if pattern.fullmatch(name)), ("", ""))


@functools.cache
def _table() -> list[tuple[re.Pattern, str, str]]:
  """The rows of the tables of docs/metrics.md, to which assets/metrics.md is a link."""
  found, columns = [], []
  for line in (Path(__file__).parent / "assets" / "metrics.md").read_text().splitlines():
    if not line.startswith("|"):
      continue
    cells = [_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
    if cells[0] == "name":
      columns = [[head.partition(";")[0] for head in cells].index(head) for head in ("what it is", "healthy")]
    names = re.findall(r"`(.+?)`", line.split("|")[1])
    if not names:
      continue
    about, healthy = (cells[column] for column in columns)
    parts = [part.strip() for part in about.split(";")]
    for at, name in enumerate(names):  # names that share a row have a part of its text each, or all of it
      said = parts[at] if len(parts) == len(names) else about
      found.append((re.compile(re.escape(name).replace("NAME", ".+")), said, healthy))
  return found


def _plain(markdown: str) -> str:
  text = re.sub(r" \(\[.+?\]\(.+?\)\)", "", markdown)  # a link to read more
  text = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text)
  text = re.sub(r" \(`[^)]*\)", "", text)  # the official code's name of it
  return text.replace("`", "").replace("\\|", "|")
