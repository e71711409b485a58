"""Comparisons: the runs of a config, the choice of learning rates, refusals, and the command after a kill."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from conftest import load_recipe, REPOSITORY
from ml_collections import ConfigDict
import pytest

from gdsd_jax.comparison import compare
from gdsd_jax.comparison.compare import run_comparison
from gdsd_jax.comparison.config import comparison_config
from gdsd_jax.comparison.grid import make_run, rate_runs
from gdsd_jax.comparison.report import report_folder
from gdsd_jax.comparison.results import choose, gave_up, inputs, reported_runs, result
from gdsd_jax.runs.config_dict import config_json, flatten, run_config


def comparison(changes=(), preset="smoke") -> ConfigDict:
  config = load_recipe("compare").get_config(preset)
  config.unlock()
  config.update(dict(changes))
  return config


# ------------------------------------------------------------------------------------------------------- the runs


def test_each_objective_has_its_own_settings_and_none_of_the_recipes():
  config = comparison_config(comparison(preset="tiny"))
  runs = {name: make_run(config, "runs", "sudoku", name, 3e-4, 7) for name in config.objectives}
  assert len(runs) == 8 and len({run.config.rollouts_per_step for run in runs.values()}) == 1
  assert runs["gdsd"].config.objective.psi == 0.04  # the recipe's is 0.1
  assert not hasattr(runs["wd1"].config.objective, "psi")
  assert (runs["spg"].config.num_mc, make_run(config, "runs", "arithmetic", "spg", 3e-4, 7).config.num_mc) == (1, 2)
  for name, run in runs.items():
    assert (run.config.objective.name, run.config.optimizer.learning_rate, run.config.seed) == (name, 3e-4, 7)
    assert run.name == f"runs/sudoku,{name},rate=0.0003,seed=7"


@pytest.mark.parametrize("preset, coupled, passes", [
  ("tiny", True, 4), ("tiny", False, 2), ("tiny_block", True, 2), ("tiny_block", False, 2)])
def test_a_coupled_pair_is_two_passes_but_one_of_a_model_that_goes_block_by_block(preset, coupled, passes):
  recipe = load_recipe("gdsd_math").get_config(preset)
  recipe.objective.coupled, recipe.objective.num_mc = coupled, 2
  assert inputs(run_config(recipe)) == passes


def test_rates_are_tried_on_seeds_that_are_not_reported():
  config = comparison_config(comparison({"seeds": (0, 1), "sweep_seeds": (5, 6)}))
  swept = rate_runs(config, "countdown", "gdsd")
  assert [(run.config.seed, run.config.optimizer.learning_rate) for run in swept] == [
    (5, 1e-4), (5, 1e-3), (6, 1e-4), (6, 1e-3)]
  reported = reported_runs(config, {"countdown": {"gdsd": {"rate": 1e-3}, "wd1": {"rate": None}}})
  assert [run.setting["seed"] for run in reported] == [0, 1]
  assert {run.setting["objective"] for run in reported} == {"gdsd"}


def test_a_rate_that_is_set_is_not_chosen():
  config = comparison_config(comparison({"objectives": {"gdsd": {"optimizer": {"learning_rate": 2e-4}}}}))
  assert rate_runs(config, "countdown", "gdsd") == [] and len(rate_runs(config, "countdown", "wd1")) == 2
  assert choose(config, [])["countdown"]["gdsd"]["rate"] == 2e-4


# ------------------------------------------------------------------------------------------------- learning rates


def swept(rewards, statuses=()):
  return [{"stage": "rates", "task": "countdown", "objective": "gdsd", "learning_rate": rate, "seed": seed,
           "status": dict(statuses).get((rate, seed), "finished"),
           "curve": [0.5, 0.5], "evaluations": [{"step": 2, "sampled_reward": reward}]}
          for (rate, seed), reward in rewards.items()]


@pytest.mark.parametrize("rewards, statuses, rate, at_end", [
  ({(1e-4, 5): 0.1, (1e-4, 6): 0.3, (3e-4, 5): 0.5, (3e-4, 6): 0.2, (1e-3, 5): 0.1, (1e-3, 6): 0.1}, {}, 3e-4, False),
  ({(1e-4, 5): 0.25, (1e-4, 6): 0.25, (3e-4, 5): 0.5, (3e-4, 6): 0.0, (1e-3, 5): 0.1, (1e-3, 6): 0.1}, {}, 1e-4, True),
  ({(1e-4, 5): 0.1, (1e-4, 6): 0.1, (3e-4, 5): 0.2, (3e-4, 6): 0.2, (1e-3, 5): 0.9, (1e-3, 6): 0.9},
   {(1e-3, 6): "gave_up"}, 3e-4, False),
  ({(1e-4, 5): 0.1, (1e-4, 6): 0.1, (3e-4, 5): 0.2, (3e-4, 6): 0.2, (1e-3, 5): 0.9, (1e-3, 6): 0.9},
   {(1e-3, 6): "unfinished"}, None, False),
])
def test_the_rate_with_the_best_mean_is_chosen(rewards, statuses, rate, at_end):
  config = comparison_config(comparison({"learning_rates": (1e-3, 1e-4, 3e-4), "sweep_seeds": (5, 6)}))
  chosen = choose(config, swept(rewards, statuses))["countdown"]["gdsd"]
  assert (chosen["rate"], chosen["at_end"]) == (rate, at_end)


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("changes, message", [
  ({"sweep_seeds": (1, 100)}, "sweep_seeds: must be others than seeds, which are reported; [1] are in both"),
  ({"sweep_seeds": ()}, "sweep_seeds: must name some, by whose runs one of learning_rates is chosen"),
  ({"seeds": (0, 0)}, "seeds: has a value twice: (0, 0)"),
  ({"learning_rates": (1e-4, -1.0)}, "learning_rates: must be positive numbers, not -1.0"),
  ({"seeds": ("a",)}, "seeds: "),
  ({"shared": {"seed": 3}}, "seed of gdsd on countdown: is said by seeds"),
  ({"objectives": {"b": {"rate_of": "c"}}}, "objectives.b.rate_of: 'c' must be one of the objectives"),
  ({"over_others": ("spg",)}, "over_others: spg is none of the objectives, gdsd, wd1"),
  ({"report": "a/b"}, "report: 'a/b' must be letters, digits, _ and -"),
  ({"judged_by": "loss"}, "judged_by: 'loss' is not one of sampled_reward, reward, accuracy"),
  ({"window": 0}, "window: must be at least 1, not 0"),
  ({"windows": 3}, "--config.windows: the config has no field 'windows'"),
  ({"objectives": {"a,b": {}}}, "objectives.a,b: must be letters, digits, _ and -, to name folders"),
  ({"tasks": {"countdown": {"objectives": {"spg": {}}}}}, "tasks.countdown.objectives: spg is none of the objectives"),
  ({"tasks": {"math": {}}}, "--config.tasks.math.recipe: names no recipe, such as gdsd_math:tiny"),
])
def test_a_config_that_does_not_fit_is_one_line(changes, message):
  with pytest.raises(ValueError) as caught:
    comparison_config(comparison(changes))
  assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("changes, message", [
  ({"objectives": {"wd1": {"objective": {"psi": 0.1}}}}, "objective wd1 on task countdown: objective.psi: "),
  ({"tasks": {"countdown": {"recipe": "no_such"}}}, "no recipe 'no_such'"),
  ({"shared": {"step": 3}}, "objective gdsd on task countdown: step: "),
  ({"shared": {"rate_of": "gdsd"}}, "objective gdsd on task countdown: rate_of"),
  ({"shared": {"sampler": {"temperature": 0.0}}}, "judged_by: must be reward or accuracy, since task countdown has"),
  ({"window": 3}, "window: must be at most the 2 steps of a run, not 3"),
  ({"objectives": {"wd1": {"objective": {"name": "wd2"}}}}, "objective wd1 on task countdown: objective.name: 'wd2'"),
])
def test_settings_that_do_not_fit_are_told_before_any_run_starts(tmp_path, changes, message):
  given = comparison(changes)
  with pytest.raises((ValueError, OSError)) as caught:
    run_comparison(comparison_config(given), given.to_dict(), tmp_path / "made", 1)
  assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
  assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------------------------------------------ ablations


def test_ablations_change_one_setting_each_at_the_rate_of_what_they_vary():
  config = comparison_config(comparison(preset="ablations"))
  assert {objective for objective in config.objectives if rate_runs(config, "arithmetic", objective)} == {
    "gdsd", "gdsd_tlc"}
  runs = {name: flatten(make_run(config, "runs", "arithmetic", name, 3e-4, 7).config.as_given)
          for name in config.objectives}
  given = lambda name, of: {path: value for path, value in runs[name].items() if runs[of].get(path) != value}
  assert [len(given(name, config.rate_of(name))) for name in runs] == [
    2 if name == "uncoupled" else 0 if name in ("gdsd", "gdsd_tlc") else 1 for name in runs]
  results = [{**row, "task": "arithmetic"} for row in swept({(rate, 100): rate for rate in config.learning_rates})]
  chosen = choose(config, results)["arithmetic"]
  assert (chosen["gdsd"]["rate"], chosen["psi_0p01"]["rate"], chosen["tlc_k_8"]["rate"]) == (1e-3, 1e-3, None)


# ------------------------------------------------------------------------------------------- from runs to a report


def leave(run, folder: Path, reward: float, skipped: int = 0) -> None:
  """What a run leaves in its folder: at its end, or where no update was finite."""
  steps = run.config.steps
  rows = [{"step": 0, "eval/reward": 0.1, "eval/accuracy": 0.0, "eval/sampled_reward": 0.1}]
  rows += [{"step": step, "reward": reward, "skipped": skipped, "seconds/cpu": 2.0} for step in range(1, steps + 1)]
  if not skipped:
    (folder / "checkpoints" / str(steps)).mkdir(parents=True)
    rows[-1] |= {"eval/reward": reward, "eval/accuracy": reward, "eval/sampled_reward": reward}
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(config_json(run.config))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def compared(tmp_path, monkeypatch):
  """A function that makes the smoke comparison, whose runs are as `outcome` of their setting says, at once."""

  def run(outcome, **changes):
    def run_all(runs, workdir, arguments, jobs, progress, is_done):
      assert arguments == [] and jobs == 3
      statuses = {}
      for run in runs:
        if not is_done(run, workdir / run.name):
          statuses[run.name], *left = outcome(**run.setting)
          if left:
            leave(run, workdir / run.name, *left)
        statuses[run.name] = 0 if is_done(run, workdir / run.name) else statuses[run.name]
      return statuses

    monkeypatch.setattr(compare, "run_all", run_all)
    monkeypatch.setattr("gdsd_jax.comparison.report.picture", lambda report: b"")  # it takes a second
    given = comparison(changes)
    status = run_comparison(comparison_config(given), given.to_dict(), tmp_path, 3)
    return status, json.loads((tmp_path / "comparison.json").read_text())

  return run


def test_runs_are_reported_at_the_rate_that_the_sweep_found(compared, capfd):
  best = {"gdsd": 1e-3, "wd1": 1e-4}
  status, report = compared(lambda objective, learning_rate, **_: (0, 0.9 if learning_rate == best[objective] else 0.4))
  assert status == 0
  reported = [row for row in report["runs"] if row["stage"] == "runs"]
  assert [(row["objective"], row["learning_rate"], row["seed"]) for row in reported] == [
    ("gdsd", 1e-3, 0), ("wd1", 1e-4, 0), ("gdsd", 1e-3, 1), ("wd1", 1e-4, 1)]
  assert {(row["status"], row["curve"][-1], row["cpu_seconds"], row["tokens"]) for row in reported} == {
    ("finished", 0.9, 4.0, 2 * 4 * 12)}
  assert report["summary"]["countdown"]["wd1"]["inputs"] == 1 and report["summary"]["countdown"]["gdsd"]["inputs"] == 4
  shown = capfd.readouterr().out
  assert "gdsd on countdown: learning rate 0.001 (0.0001: 0.400, 0.001: 0.900); the best is at an end" in shown
  hashes = [row["config"] for row in report["runs"]]
  assert len(set(hashes)) == len(hashes) == 8


def test_a_run_that_gave_up_has_collapsed_and_one_that_failed_is_told(compared, capfd):
  def outcome(stage, objective, seed, **_):
    if stage == "runs" and objective == "wd1":
      return (1, 0.7, 2) if seed == 0 else (1,)  # its process ends so
    return 0, 0.5

  status, report = compared(outcome)
  assert status == 1 and "error: 1 of 8 runs failed: runs/countdown,wd1,rate=0.0001,seed=1" in capfd.readouterr().err
  found = report["summary"]["countdown"]["wd1"]
  assert (found["seeds"], found["missing"], found["collapsed"]) == (1, 1, 1.0)
  assert found["sampled_reward"][0] == 0.1  # the last that was evaluated


def test_a_run_whose_rewards_fail_has_not_given_up_and_a_filter_draws_more_tokens(tmp_path):
  run = make_run(comparison_config(comparison()), "runs", "countdown", "gdsd", 1e-4, 0)
  leave(run, tmp_path, None, skipped=run.config.distillation.num_iterations)
  assert not gave_up(run, tmp_path)
  leave(run, tmp_path, 0.5, skipped=run.config.distillation.num_iterations)
  assert gave_up(run, tmp_path) and result(run, tmp_path)["tokens"] == 2 * 4 * 12
  rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  rows[-1]["groups_drawn"] = 6.0
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert result(run, tmp_path)["tokens"] == (2 + 6) * 2 * 12


def test_the_report_of_no_folder_is_refused_and_makes_none(tmp_path):
  given = comparison()
  with pytest.raises(OSError, match="^--workdir: .*/none does not exist$"):
    report_folder(comparison_config(given), given.to_dict(), tmp_path / "none")
  assert not (tmp_path / "none").exists()


def test_nothing_is_reported_at_a_rate_that_could_not_be_chosen(compared, capfd):
  status, report = compared(lambda objective, **_: (1,) if objective == "wd1" else (0, 0.5))
  assert status == 1 and {row["objective"] for row in report["runs"] if row["stage"] == "runs"} == {"gdsd"}
  assert "warning: wd1 on countdown: no learning rate, since runs failed" in capfd.readouterr().err


def test_who_is_asked_to_stop_while_rates_are_chosen_reports_none(compared):
  status, report = compared(lambda stage, **_: (75,))
  assert status == 75 and {row["stage"] for row in report["runs"]} == {"rates"}
  assert compared(lambda **_: (0, 0.5))[0] == 0  # the same command goes on


def test_runs_of_another_config_are_refused(compared, tmp_path):
  compared(lambda **_: (0, 0.5))
  with pytest.raises(ValueError, match=r"^--workdir: .*rates/countdown,gdsd,rate=0.0001,seed=100 is a run with another"
                                       r" config \(group_size: 2 → 4\)"):
    compared(lambda **_: (0, 0.5), shared=comparison().shared.to_dict() | {"group_size": 4})


# ---------------------------------------------------------------------------------------------------- the command


def start(workdir: Path, *arguments: str) -> subprocess.Popen:
  command = [sys.executable, "launch/compare.py", "--config=configs/compare.py:smoke", f"--workdir={workdir}",
             "--jobs=2", *arguments]
  return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"})


def without_times(workdir: Path) -> dict:
  found = json.loads((workdir / "comparison.json").read_text())
  summaries = [of for name, task in found["summary"].items() if name != "all" for of in task.values()]
  for row in [*found["runs"], *summaries]:
    for name in [name for name in row if "seconds" in name or name == "commit"]:  # somebody may commit meanwhile
      row.pop(name)
  return found


@pytest.mark.slow
def test_a_comparison_that_was_stopped_and_killed_reports_the_same(tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  process = start(whole)
  shown, errors = process.communicate(timeout=1800)
  assert process.returncode == 0, errors
  assert "8 of 8 runs done" in shown and shown.count("the best is at an end of learning_rates") == 2
  for stop in (signal.SIGTERM, signal.SIGKILL):  # within the runs that choose rates, then within those reported
    process, stage = start(broken), "rates" if stop == signal.SIGTERM else "runs"
    deadline = time.monotonic() + 1800
    while not list(broken.glob(f"{stage}/*/metrics.jsonl")) and time.monotonic() < deadline:
      time.sleep(0.1)
    process.send_signal(stop)
    process.communicate(timeout=600)
    assert process.returncode == (75 if stop == signal.SIGTERM else -signal.SIGKILL)
  process = start(broken, "--report")
  so_far, errors = process.communicate(timeout=600)
  assert process.returncode == 0 and "| gdsd | 0.0001 (end) | 0 of 2 | – |" in so_far, errors
  process = start(broken)
  again, errors = process.communicate(timeout=1800)
  assert process.returncode == 0 and "finished before" in again, errors
  assert without_times(broken) == without_times(whole)
  assert again[again.index("**countdown**"):].count("|") == shown[shown.index("**countdown**"):].count("|")
