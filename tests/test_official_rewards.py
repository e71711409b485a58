"""Rewards equal those of the official code, case by case."""

import json

import pytest

from gdsd_jax import get_task
from gdsd_jax.tasks import sandbox

# (reward, completion) -> our value and why it is not the official one.
DIFFERENT_ON_PURPOSE = {}

FAMILIES = (
  "code/format", "countdown", "gsm8k/correctness", "gsm8k_xml/correctness", "gsm8k_xml/int", "gsm8k_xml/soft_format",
  "gsm8k_xml/strict_format", "gsm8k_xml/xmlcount", "math/correctness", "math_xml/correctness", "math_xml/format",
  "sudoku",
)


@pytest.fixture(scope="module")
def cases(goldens):
  return json.loads((goldens / "rewards.json").read_text())


def reward(case):
  """Our value of a case: the named reward of the named task, which has but one where no reward is named."""
  task, _, name = case["reward"].partition("/")
  example = {"answer": "", **{key: value for key, value in case.items() if key not in ("reward", "value")}}
  rewards = get_task(task).score(case["completion"], example)
  return rewards[name] if name else sum(rewards.values())


def skip_without_bubblewrap():
  try:
    sandbox.check_available()
  except RuntimeError as error:
    pytest.skip(str(error))


def test_every_family_is_tested(cases):
  assert {case["reward"] for case in cases} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_equal_the_official_ones(cases, family):
  if family == "math/correctness":
    pytest.importorskip("math_verify")
  if family == "code/format":
    skip_without_bubblewrap()
  wrong = []
  for case in (case for case in cases if case["reward"] == family):
    expected, _ = DIFFERENT_ON_PURPOSE.get((family, case["completion"]), (case["value"], ""))
    if reward(case) != pytest.approx(expected, abs=1e-12):
      wrong.append((case, reward(case)))
  assert not wrong
