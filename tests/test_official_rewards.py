"""Rewards equal those of the official code, case by case."""

import json

import pytest

from gdsd_jax import get_task

# (reward, completion, example, official value, ours, why). The first ones are golden cases.
DIFFERENT_ON_PURPOSE = (
  ("gsm8k_xml/correctness", "<answer>\n$12\n</answer>", {"answer": "12"}, 0.0, 2.0,
   "the official evaluation, too, reads 12 there; the official reward compares text"),
  ("gsm8k_xml/correctness", "<answer>\n12.0\n</answer>", {"answer": "12"}, 0.0, 2.0, "the same number, as above"),
  ("gsm8k_xml/strict_format", "<reasoning>\n7+5=12\n</reasoning>\n<answer>\n12\n</answer>", {}, 0.0, 0.5,
   "the official pattern wants one more line, which a model that ends its turn after the tag never writes"),
  ("gsm8k_xml/xmlcount", "<reasoning>\n7+5=12\n</reasoning>\n<answer>\n12\n</answer>\n", {}, 0.487, 0.5,
   "what follows the answer costs 0.001 a character; the official code counts from the opening tag on"),
  ("gsm8k_xml/xmlcount", "<reasoning>\n7+5=12\n</reasoning>\n<answer>\n12\n</answer>\ntrailing words", {}, 0.459,
   0.472, "as above: 14 characters follow, and count for both answer tags"),
  # No golden cases.
  ("countdown", "<answer>2**3*1</answer>", {"numbers": [2, 3, 1], "target": 8}, 1.0, 0.1,
   "the prompt allows +, -, * and /; the official code evaluates any Python, and 9**9**9 never ends"),
  ("countdown", "<answer>7//2*1</answer>", {"numbers": [7, 2, 1], "target": 3}, 1.0, 0.1, "not allowed by the prompt"),
  ("countdown", "<answer>1.5*2</answer>", {"numbers": [1, 5, 2], "target": 3}, 1.0, 0.1, "1.5 is not 1 and 5"),
  ("gsm8k/correctness", "The answer is 12", {"answer": "12"}, 0.0, 1.0,
   "the official pattern wants a character after the number, and makes its last digit that"),
  ("gsm8k/correctness", "The answer is 12. So", {"answer": "12"}, 0.0, 1.0, "the full stop is no part of the number"),
  ("gsm8k/correctness", "so \\boxed{1,200}", {"answer": "1,200"}, 0.0, 1.0, "the number is not 200"),
  ("gsm8k/correctness", "\\boxed{12.00}", {"answer": "12"}, 0.0, 1.0, "the same number, and not 00"),
  ("gsm8k/correctness", "\\boxed{13} apples in 3 years", {"answer": "13"}, 0.0, 1.0,
   "the official reward takes the last number of the text, the official evaluation that of the box"),
  ("gsm8k_xml/correctness", "<answer>1200</answer>", {"answer": "1,200"}, 0.0, 2.0, "the same number"),
  ("gsm8k_xml/int", "<answer>１２</answer>", {"answer": "12"}, 0.5, 0.0,
   "the right number, as officially, but in digits that a reader of the answer does not expect"),
  ("math_xml/correctness", "\\boxed{2} so <answer>1</answer>", {"answer": "2"}, 0.0, 2.0,
   "the official evaluation counts the last box, whatever the tag says"),
)
_SETTLED = {(name, completion) for name, completion, *_ in DIFFERENT_ON_PURPOSE}

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


def test_every_family_is_tested(cases):
  assert {case["reward"] for case in cases} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_equal_the_official_ones(cases, family, request):
  if family == "math/correctness":
    pytest.importorskip("math_verify")
  if family == "code/format":
    request.getfixturevalue("bubblewrap")
  wrong = []
  ours = (case for case in cases if case["reward"] == family and (family, case["completion"]) not in _SETTLED)
  for case in ours:
    if reward(case) != pytest.approx(case["value"], abs=1e-12):
      wrong.append((case, reward(case)))
  assert not wrong


@pytest.mark.parametrize("name, completion, example, official, ours, why", DIFFERENT_ON_PURPOSE)
def test_differences_are_the_listed_ones(name, completion, example, official, ours, why):
  assert reward({"reward": name, "completion": completion, **example}) == pytest.approx(ours) != official


def test_golden_differences_have_the_official_value(cases):
  listed = {(name, completion): official for name, completion, _, official, _, _ in DIFFERENT_ON_PURPOSE}
  golden = {(case["reward"], case["completion"]): case["value"] for case in cases}
  shared = listed.keys() & golden.keys()
  assert len(shared) == 5 and all(listed[key] == pytest.approx(golden[key]) for key in shared)
