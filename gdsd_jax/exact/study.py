"""The study of an enumerable problem: every estimator beside the exact likelihood, every objective's true reward.

Results are kept in OUT/found.jsonl as they come, and a study that was interrupted goes on behind them.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax

from gdsd_jax.checks import did_you_mean, require, require_at_least
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.exact.estimators import Estimators, quality
from gdsd_jax.exact.fixed_point import distance_to_teacher
from gdsd_jax.exact.problem import Problem
from gdsd_jax.exact.training import Budget, every_completion, parse_objective, Trained, trained_reward
from gdsd_jax.objectives.named import OBJECTIVES
from gdsd_jax.runs.files import JsonLines
from gdsd_jax.runs.lock import locked
from gdsd_jax.waiting import clock, format_seconds

_log = logging.getLogger(__name__)

TRAINED = tuple(name for name in OBJECTIVES if name != "mdpo")  # MDPO is rewarded for what steps predict
PARTS = ("estimators", "objectives")
_FIRST_TUNING_SEED = 1000  # seeds that learning rates are chosen on are others than those reported
_PSI = 0.05  # of the fixed point


@dataclasses.dataclass(frozen=True)
class Study:
  """What is studied, checked."""

  problem: Problem = Problem()
  budget: Budget = Budget()
  objectives: tuple[str, ...] = TRAINED  # as `parse_objective` has them
  only: tuple[str, ...] = PARTS
  seeds: int = 5  # those reported: of the model's pretraining, and of its rollouts
  tuning_seeds: int = 1
  rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)

  def __post_init__(self):
    require_at_least(self, "--", seeds=2, tuning_seeds=1)
    require_at_least(self.budget, "--", steps=1, group_size=2, num_iterations=1)
    names = [parse_objective(text)[0] for text in self.objectives]
    for name in names:
      require(name in TRAINED, "--objectives", f"{name!r} is not one of {', '.join(TRAINED)}"
              f"{did_you_mean(name, TRAINED)}")
    require(len(set(self.objectives)) == len(self.objectives) > 0, "--objectives", "must be different ones, and some")
    require(0 < len(self.only) and set(self.only) <= set(PARTS), "--only",
            f"must name some of {', '.join(PARTS)}, not {','.join(self.only)!r}")
    require(len(self.rates) > 0 and all(0 < rate < 1 for rate in self.rates), "--rates",
            f"must be numbers between 0 and 1, not {self.rates}")
    pairs = self.budget.group_size % 2 == 0 or "vrpo" not in names or "objectives" not in self.only
    require(pairs, "--group_size", f"must be even for vrpo, which compares pairs, not {self.budget.group_size}")

  @property
  def settings(self) -> dict[str, Any]:
    """What results depend on, beside the objectives and seeds that they are of: by what rates are chosen, too."""
    return {"problem": dataclasses.asdict(self.problem), "budget": dataclasses.asdict(self.budget),
            "rates": list(self.rates), "tuning_seeds": self.tuning_seeds}

  @property
  def samplers(self) -> dict[str, SamplerConfig]:
    """Those that estimators are compared under; the first is the one of the training."""
    length = self.problem.length
    whole = dict(completion_length=length, block_length=length, temperature=self.problem.temperature)
    return {
      "llada": self.problem.sampler,
      "llada_two_tokens_a_step": SamplerConfig(**whole, steps=(length + 1) // 2),
      "llada_random_remasking": SamplerConfig(**whole, steps=length, remasking="random"),
      "dream": SamplerConfig(**whole, steps=length, kind="dream"),
    }


def run_study(study: Study, out: Path) -> list[dict[str, Any]]:
  """All results, those of an earlier call in the same folder among them: rows for `summary.summarize`.

  Raises:
    ValueError: an objective does not fit the problem, or `out` has results of other settings.
    OSError: `out` cannot be written, or another command writes to it.
  """
  trained = {}
  if "objectives" in study.only:  # all are tried before anything is compiled
    trained = {name: Trained(study.problem, name, study.budget) for name in study.objectives}
  with locked(out, "--out", alone=True):
    return _go_through(study, trained, out)


def _go_through(study: Study, trained: dict[str, Trained], out: Path) -> list[dict[str, Any]]:
  found = JsonLines(out / "found.jsonl")
  known = [row["settings"] for row in found.rows if row["kind"] == "settings"]
  require(known in ([], [study.settings]), "--out", f"{out} has results of other settings; choose another folder")
  if not known:
    found.append([{"kind": "settings", "settings": study.settings}])
  jobs, started = list(_jobs(study, trained, found)), clock()
  left = [job for job in jobs if not _rows(found, job[0])]
  for done, (about, work) in enumerate(left, start=1):
    told = work()
    found.append([{**about, **told}])
    seconds = (clock() - started) / done * (len(left) - done)
    _log.info("%d/%d  %s  %s left", done, len(left), _said(about, told), format_seconds(seconds))
  return found.rows


def _rows(found: JsonLines, about: dict[str, Any]) -> list[dict[str, Any]]:
  return [row for row in found.rows if about.items() <= row.items()]


def _jobs(study: Study, trained: dict[str, Trained], found: JsonLines) -> Iterator[tuple[dict[str, Any], Callable]]:
  """(what a row is about, what makes the rest of it) of everything that the study asks for, in order."""
  yield {"kind": "fixed_point"}, lambda: {"psi": _PSI, "difference": distance_to_teacher(_PSI)}
  if "estimators" in study.only:
    for sampler, config in study.samplers.items():
      for seed in range(study.seeds):
        about = {"kind": "estimators", "sampler": sampler, "seed": seed}
        yield about, functools.partial(_compare, study.problem, config, seed)
  tuning = [_FIRST_TUNING_SEED + number for number in range(study.tuning_seeds)]
  for name, trainer in trained.items():
    for rate in study.rates:
      for seed in tuning:
        about = {"kind": "run", "objective": name, "seed": seed, "rate": rate}
        yield about, functools.partial(_train, trainer, rate, seed)
    for seed in range(study.seeds):
      about = {"kind": "reported", "objective": name, "seed": seed}
      yield about, lambda name=name, trainer=trainer, seed=seed: _report(trainer, best_rate(found.rows, name), seed)


def best_rate(rows: list[dict[str, Any]], name: str) -> float:
  """The learning rate with the largest true reward after training, on average over the tuning seeds."""
  rewards: dict[float, list[float]] = {}
  for row in rows:
    if row["kind"] == "run" and row["objective"] == name:
      rewards.setdefault(row["rate"], []).append(row["after"]["reward"])
  return max(rewards, key=lambda rate: sum(rewards[rate]) / len(rewards[rate]))


def _train(trained: Trained, rate: float, seed: int) -> dict[str, Any]:
  return trained_reward(trained, trained.problem.pretrained(seed), rate, seed)


def _report(trained: Trained, rate: float, seed: int) -> dict[str, Any]:
  return {"rate": rate, **_train(trained, rate, seed)}


def _compare(problem: Problem, sampler: SamplerConfig, seed: int) -> dict[str, Any]:
  """The quality of each estimator, averaged over the prompts."""
  params, found = problem.pretrained(seed), []
  key = jax.random.key(seed)
  completions = every_completion(problem, params, sampler)
  for number, (prompt, of_prompt) in enumerate(zip(problem.prompts, completions)):
    estimators = Estimators(problem.denoiser, params, prompt, sampler, of_prompt)
    made = estimators(jax.random.fold_in(key, number))
    found.append({name: quality(each, of_prompt.log_probability) for name, each in made.items()})
  mean = lambda name, field: sum(getattr(each[name], field) for each in found) / len(found)
  farthest = max((float(each.probability.sum()) for each in completions), key=lambda total: abs(total - 1))
  return {"total": farthest,
          "estimators": {name: {field: mean(name, field) for field in found[0][name]._fields} for name in found[0]}}


def _said(about: dict[str, Any], told: dict[str, Any]) -> str:
  words = " ".join(str(value) for name, value in about.items() if name != "kind")
  if "after" in told:
    return f"{words}: true reward {told['before']['reward']:.3f} to {told['after']['reward']:.3f}"
  return f"{about['kind']} {words}".strip()
