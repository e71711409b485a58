"""The report of a comparison: statistics against known values, what counts as what, and that it can be made again."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from gdsd_jax.comparison.report import report_file
from gdsd_jax.comparison.statistics import (
  collapsed,
  Interval,
  largest_drop,
  mean_interval,
  mean_probability,
  probability_of_improvement,
  smoothed,
)
from gdsd_jax.comparison.summary import summarize
from gdsd_jax.comparison.table import BEGIN, END

# ------------------------------------------------------------------------------------------------------ statistics


def test_the_interval_of_a_mean_is_students():
  value, low, high = mean_interval([1, 2, 3])
  half = 4.302653 / math.sqrt(3)  # the quantile of a table, two degrees of freedom
  assert (value, low, high) == pytest.approx((2, 2 - half, 2 + half), rel=1e-6)
  values = [0.4, 0.7, 0.1, 0.9, 0.5]
  assert mean_interval(values)[1:] == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval())


def test_one_run_has_no_interval_and_none_no_mean():
  assert mean_interval([0.5]) == (0.5, None, None) and mean_interval([]) == (None, None, None)
  assert probability_of_improvement([], [1.0]) == (None, None, None)


def test_the_probability_of_improvement_counts_pairs():
  ours, theirs = [0.1, 0.5, 0.5, 0.9], [0.5, 0.2, 0.7]
  won = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(ours, theirs)]
  assert probability_of_improvement(ours, theirs).value == pytest.approx(np.mean(won))


@pytest.mark.parametrize("ours, theirs", [
  ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]), ([1, 4, 2, 8, 5], [3, 7, 6, 0, 9]), ([2, 9, 5], [1, 3, 7, 4])])
def test_the_interval_of_a_probability_is_where_its_score_test_does_not_refuse(ours, theirs):
  value, low, high = probability_of_improvement(ours, theirs)
  m, n = len(ours), len(theirs)
  kept = [theta for theta in np.linspace(0, 1, 10_001)
          if (theta - value) ** 2 <= 1.959964**2 * theta * (1 - theta) / (m * n) * (
            1 + ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta)))]
  assert (low, high) == pytest.approx((kept[0], kept[-1]), abs=2e-4)
  other = probability_of_improvement(theirs, ours)
  assert other == pytest.approx((1 - value, 1 - high, 1 - low))


def test_the_interval_of_a_probability_covers_it():
  rng, shift = np.random.default_rng(0), 1.0
  truth = stats.norm.cdf(shift / math.sqrt(2))
  found = [probability_of_improvement(shift + rng.standard_normal(5), rng.standard_normal(5)) for _ in range(150)]
  assert np.mean([each.low <= truth <= each.high for each in found]) > 0.92


def test_a_mean_over_tasks_is_surer_than_one_task():
  task = Interval(0.8, 0.5, 0.9)
  assert mean_probability([task]) == task
  assert mean_probability([task] * 4) == pytest.approx((0.8, 0.8 - 0.3 / 2, 0.8 + 0.1 / 2))
  assert mean_probability([task, Interval(None)]) == (None, None, None)


def test_a_smoothed_curve_is_a_running_mean_of_the_steps_that_have_a_number():
  curve = [0.1, 0.5, 0.9, 0.2, 0.4]
  assert smoothed(curve, 2) == pytest.approx(np.convolve(curve, [0.5, 0.5], "valid"))
  assert smoothed([0.2, None, 0.6, None, None], 2) == pytest.approx([0.2, 0.6, 0.6])
  assert smoothed(curve, 6) == []


def test_the_largest_drop_is_from_the_best_before():
  curve = [0.3, 0.1, 0.6, 0.5, 0.9, 0.7, 0.75]
  brute = max(curve[i] - curve[j] for i in range(len(curve)) for j in range(i, len(curve)))
  assert largest_drop(curve) == pytest.approx(brute)
  assert largest_drop([0.1, 0.2]) == 0 and largest_drop([]) is None


@pytest.mark.parametrize("curve, status, expected", [
  ([0.2, 0.8, 0.39, 0.39], "finished", True), ([0.2, 0.8, 0.41, 0.8], "finished", False),
  ([0.2, 0.3], "gave_up", True), ([0.0, 0.0], "finished", False),
  ([-0.4, -0.3, -0.35], "finished", False), ([-0.4, 0.3, -0.1], "finished", True),
])
def test_a_run_that_loses_half_of_its_best_or_gives_up_has_collapsed(curve, status, expected):
  assert collapsed({"curve": curve, "status": status}, 1) is expected


# ------------------------------------------------------------------------------------------------------ the report


def run(objective, seed, reward, task="sudoku", rate=3e-4, status="finished", stage="runs"):
  evaluations = [{"step": 0, "accuracy": 0.1, "reward": 0.1, "sampled_reward": 0.2}]
  if status == "finished":
    evaluations += [{"step": 4, "accuracy": reward / 2, "reward": reward, "sampled_reward": reward}]
  return {"name": f"{stage}/{task},{objective},{seed}", "stage": stage, "task": task, "objective": objective,
          "learning_rate": rate, "seed": seed, "status": status, "curve": [0.2, 0.4, 0.6, reward],
          "evaluations": evaluations, "skipped": 0, "seconds": 8.0, "cpu_seconds": 4.0, "tokens": 64}


@pytest.fixture
def report():
  choice = {"rate": 3e-4, "means": {"0.0003": 0.5}, "at_end": True, "inputs": 4}
  return {"config": {"seeds": [0, 1, 2], "window": 2, "over_others": []},
          "choices": {"sudoku": {"gdsd": choice, "wd1": {**choice, "inputs": 1}}},
          "runs": [*(run("gdsd", seed, 0.8 + seed / 100) for seed in range(3)),
                   run("wd1", 0, 0.5), run("wd1", 1, 0.7, status="gave_up"), run("wd1", 2, 0.9, status="unfinished"),
                   run("gdsd", 100, 0.0, stage="rates"), run("gdsd", 0, 0.0, rate=1e-3)]}


def test_only_reported_runs_at_the_chosen_rate_count_and_one_that_gave_up_does(report):
  found = summarize(report)["sudoku"]
  assert found["gdsd"]["sampled_reward"] == pytest.approx(mean_interval([0.8, 0.81, 0.82]), abs=1e-4)
  assert (found["gdsd"]["seeds"], found["gdsd"]["missing"], found["gdsd"]["collapsed"]) == (3, 0, 0)
  assert (found["wd1"]["seeds"], found["wd1"]["missing"], found["wd1"]["collapsed"]) == (2, 1, 0.5)
  assert found["wd1"]["sampled_reward"] == pytest.approx(mean_interval([0.5, 0.2]), abs=1e-4)  # what it last was
  assert found["gdsd"]["better_than"]["wd1"][0] == 1 and found["wd1"]["better_than"]["gdsd"][0] == 0
  assert (found["gdsd"]["cpu_seconds_a_step"], found["gdsd"]["tokens"], found["wd1"]["inputs"]) == (1.0, 192, 1)


def test_an_evaluation_that_failed_is_no_other_number(report):
  report["runs"][0]["evaluations"].pop()  # after the last step
  report["runs"][1]["evaluations"].pop(0)  # before the first
  found = summarize(report)["sudoku"]["gdsd"]
  assert found["sampled_reward"] == pytest.approx(mean_interval([0.81, 0.82]), abs=1e-4)
  assert found["before"] == pytest.approx((0.2, 0.2, 0.2))


def test_a_report_makes_the_same_tables_and_picture_again(tmp_path, report):
  file = tmp_path / "comparison.json"
  file.write_text(json.dumps(report))
  text = report_file(file)
  assert "| gdsd | 0.0003 (end) | 3 | 0.810 [0.785, 0.835] | 0.405 [0.393, 0.417] |" in text
  assert "| wd1 | 0.0003 (end) | 2 of 3 |" in text and (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
  before = file.read_bytes()
  assert report_file(file) == text and file.read_bytes() == before
  assert json.loads(before)["runs"] == report["runs"]


def test_tables_go_between_the_marks_of_a_document_and_nowhere_else(tmp_path, report, monkeypatch):
  monkeypatch.setattr("gdsd_jax.comparison.report.picture", lambda report: b"")  # it takes a second
  file, document = tmp_path / "comparison.json", tmp_path / "comparison.md"
  file.write_text(json.dumps(report))
  document.write_text(f"# Found\n\n{BEGIN}\nold\n{END}\n\nafter\n")
  text = report_file(file)
  assert document.read_text() == f"# Found\n\n{BEGIN}\n{text}\n{END}\n\nafter\n"
  document.write_text("# Mine\n")
  with pytest.raises(ValueError, match="^--report: .*comparison.md is there, and lacks the two lines"):
    report_file(file)
  assert document.read_text() == "# Mine\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": {}, "choices": {}, "runs": []}'])
def test_a_file_that_is_no_report_is_told_in_one_line(tmp_path, content):
  file = tmp_path / "comparison.json"
  file.write_text(content)
  with pytest.raises(ValueError, match="^--report: .* is no report of a comparison: [^\n]*$"):
    report_file(file)
