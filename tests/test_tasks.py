"""Tasks: rewards of completions, the splits of the problems, and what bad input says."""

import collections
import hashlib
import json
import re
import subprocess
import sys

from hypothesis import given, strategies as st
import pytest

from gdsd_jax.tasks import arithmetic, base, get_task

TASK = get_task("arithmetic")
EXAMPLE = {
  "question": "Tom has 12 apples and buys 7 more. How many apples does Tom have?",
  "reasoning": "12+7=19",
  "answer": 19,
}
CORRECT, FORMAT = arithmetic.CORRECTNESS_REWARD, arithmetic.FORMAT_REWARD

# (version, split) -> digest of the problems in their order. After changing a problem, raise Arithmetic.VERSION and
# write the new digests here.
DIGESTS = {
  ("1.1.0", "train"): "25dcec5fe75b5d735a75bd0d7936df853c3cf84233c4a1849b6e82438f98f492",
  ("1.1.0", "validation"): "055f57c54be5c60c42ffb8200bac000fdbbf1d44d14c50988faecbb05258dbd6",
  ("1.1.0", "test"): "2b5ac5271fd2b7c2335ffa029b362aa27a3bf11031212608f0a66639e5320d68",
}


@pytest.fixture(scope="module")
def split_problems():
  return {split: TASK.examples(split) for split in base.SPLITS}


def problem_of(example):
  """(calculation, sentence): the question with its name, thing and numbers blanked."""
  sentence = re.sub("|".join(arithmetic.NAMES), "NAME", example["question"])
  sentence = re.sub(rf"\b({'|'.join(arithmetic.THINGS)})s?\b", "THING", sentence)
  return example["reasoning"], re.sub(r"\d+", "NUMBER", sentence)


def digest(problems):
  lines = "\n".join(json.dumps(problem, sort_keys=True) for problem in problems)
  return hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
  "text, answer",
  [
    ("<answer>19</answer>", "19"),
    ("so <answer>\n 19 \n</answer> done", "19"),
    ("<answer>1</answer><answer>2</answer>", "2"),
    ("<answer>1</answer><answer>2", "1"),
    ("<answer>1<answer>2</answer>", "2"),
    ("<answer>1<answer>2</answer>3</answer>", "2"),
    ("<answer>1</answer></answer>", "1"),
    ("<answer></answer>", ""),
    ("<answer>a\nb</answer>", "a\nb"),
    ("<answer>19", None),
    ("19</answer>", None),
    ("</answer>19<answer>", None),
    ("<ANSWER>19</ANSWER>", None),
    ("19", None),
    ("", None),
  ],
)
def test_extract_answer_reads_the_last_complete_pair(text, answer):
  assert arithmetic.extract_answer(text) == answer


@pytest.mark.parametrize(
  "completion, correctness",
  [
    ("<reasoning>12+7=19</reasoning><answer>19</answer>", CORRECT),
    ("<reasoning>12+7=18</reasoning><answer>18</answer>", 0.0),
    ("<answer>19</answer>", CORRECT),
    ("<answer> 19\n</answer>", CORRECT),
    ("<answer>019</answer>", CORRECT),
    ("<answer>18</answer><answer>19</answer>", CORRECT),
    ("<answer>19</answer><answer>18</answer>", 0.0),
    ("<answer>19</answer> and more", CORRECT),
    ("<answer>-19</answer>", 0.0),
    ("<answer>1 9</answer>", 0.0),
    ("<answer>19.0</answer>", 0.0),
    ("<answer>12+7</answer>", 0.0),
    ("<answer>19 apples</answer>", 0.0),
    ("<answer>１９</answer>", 0.0),
    ("<answer>١٩</answer>", 0.0),
    ("<answer>" + "9" * 10_000 + "</answer>", 0.0),
    ("<answer>" + "0" * 10_000 + "19</answer>", CORRECT),
    ("<answer>" + "0" * 100_000 + "x</answer>", 0.0),
    ("<answer></answer>", 0.0),
    ("<answer>19", 0.0),
    ("19", 0.0),
    ("", 0.0),
  ],
)
def test_correctness_rewards_the_integer_of_the_last_answer(completion, correctness):
  assert TASK.score(completion, EXAMPLE)["correctness"] == correctness


@pytest.mark.parametrize(
  "completion, layout",
  [
    ("<reasoning>12+7=19</reasoning><answer>19</answer>", FORMAT),
    ("<reasoning>anything\nat all < 3</reasoning>\n <answer>5</answer>", FORMAT),
    ("\n <reasoning>x</reasoning><answer>-5</answer> \n", FORMAT),
    ("<reasoning>x</reasoning><answer>005</answer>", FORMAT),
    ("<reasoning>x</reasoning><answer>" + "9" * 10_000 + "</answer>", FORMAT),
    ("<reasoning>x</reasoning><answer> 5 </answer>", 0.0),
    ("<reasoning>x</reasoning><answer>five</answer>", 0.0),
    ("<reasoning>x</reasoning><answer>５</answer>", 0.0),
    ("<reasoning>x</reasoning><answer>--5</answer>", 0.0),
    ("<reasoning>x</reasoning><answer></answer>", 0.0),
    ("<reasoning>x</reasoning><answer>5</answer> so 5", 0.0),
    ("so <reasoning>x</reasoning><answer>5</answer>", 0.0),
    ("<reasoning>x</reasoning> is <answer>5</answer>", 0.0),
    ("<reasoning>x</reasoning><answer>5</answer><answer>5</answer>", 0.0),
    ("<reasoning>x</reasoning><reasoning>x</reasoning><answer>5</answer>", 0.0),
    ("<reasoning><reasoning>x</reasoning></reasoning><answer>5</answer>", 0.0),
    ("<reasoning><answer>5</answer></reasoning><answer>5</answer>", 0.0),
    ("<reasoning>x<answer>5</answer>", 0.0),
    ("<reasoning>x</reasoning><answer>5", 0.0),
    ("<answer>5</answer><reasoning>x</reasoning>", 0.0),
    ("<answer>5</answer>", 0.0),
    ("", 0.0),
  ],
)
def test_format_rewards_only_the_exact_layout(completion, layout):
  assert TASK.score(completion, EXAMPLE)["format"] == layout


@pytest.mark.parametrize("answer, text", [(0, "0"), (0, "-0"), (0, "000"), (-3, "-3"), (-3, "-03")])
def test_correctness_ignores_leading_zeros_and_the_sign_of_zero(answer, text):
  assert TASK.accuracy(f"<answer>{text}</answer>", {**EXAMPLE, "answer": answer}) == 1.0


@pytest.mark.parametrize("answer, correct", [("19", True), ("18", False)])
def test_accuracy_counts_a_right_answer_whatever_its_layout(answer, correct):
  assert TASK.accuracy(f"<answer>{answer}</answer> trailing", EXAMPLE) == correct


@given(st.lists(st.one_of(st.text(), st.sampled_from(
  ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "19", "-", "0", " ", "\n"]
))).map("".join))
def test_score_of_any_text_is_one_of_the_known_rewards(completion):
  rewards = TASK.score(completion, EXAMPLE)
  assert rewards["correctness"] in (0.0, CORRECT) and rewards["format"] in (0.0, FORMAT)


@pytest.mark.parametrize("split", base.SPLITS)
def test_solutions_earn_the_full_reward(split_problems, split):
  for example in split_problems[split]:
    assert sum(TASK.score(TASK.solution(example), example).values()) == CORRECT + FORMAT


def test_solution_is_the_reasoning_and_its_result():
  assert TASK.solution(EXAMPLE) == "<reasoning>12+7=19</reasoning><answer>19</answer>"


def test_prompt_is_the_question_alone():
  assert TASK.messages(EXAMPLE) == [{"role": "user", "content": EXAMPLE["question"]}]


def test_splits_share_no_problem(split_problems):
  train, validation, test = ({problem_of(example) for example in split_problems[split]} for split in base.SPLITS)
  assert len(train) > 600 and len(validation) > 30 and len(test) > 30
  assert not train & validation and not train & test and not validation & test


def test_no_two_questions_are_equal(split_problems):
  questions = [problem["question"] for split in base.SPLITS for problem in split_problems[split]]
  assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("split, size", [("train", 9_000), ("validation", 400), ("test", 400)])
def test_splits_have_their_size(split_problems, split, size):
  assert len(split_problems[split]) == size


def test_problems_of_a_split_are_equally_frequent(split_problems):
  counts = collections.Counter(problem_of(example) for example in split_problems["train"])
  assert max(counts.values()) - min(counts.values()) <= 1


def test_about_a_tenth_of_the_problems_is_held_out_half_of_them_for_test(split_problems):
  train, validation, test = (
    len({problem_of(example) for example in split_problems[split]}) for split in base.SPLITS)
  assert validation == test and 2 * test / (train + 2 * test) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("split", base.SPLITS)
def test_reasoning_is_right_and_about_the_numbers_of_the_question(split_problems, split):
  for example in split_problems[split]:
    left, operation, right, result = re.fullmatch(r"(\d+)([+-])(\d+)=(\d+)", example["reasoning"]).groups()
    expected = int(left) + int(right) if operation == "+" else int(left) - int(right)
    assert int(result) == example["answer"] == expected >= 0
    assert re.findall(r"\d+", example["question"]) == [left, right]


@pytest.mark.parametrize("split", base.SPLITS)
def test_questions_are_short(split_problems, split):
  assert all(10 <= len(problem["question"].split()) <= 18 for problem in split_problems[split])


@pytest.mark.parametrize("split", base.SPLITS)
def test_one_thing_is_singular(split_problems, split):
  plurals = [f" 1 {thing}s" for thing in arithmetic.THINGS]
  assert not any(plural in problem["question"] for problem in split_problems[split] for plural in plurals)


@pytest.mark.parametrize("split", base.SPLITS)
def test_problems_of_a_version_never_change(split_problems, split):
  pytest.importorskip("tensorflow_datasets")
  from gdsd_jax.tasks import tfds_source

  assert digest(split_problems[split]) == DIGESTS[str(tfds_source.Arithmetic.VERSION), split]


def test_examples_are_plain_python_values(split_problems):
  example = split_problems["test"][0]
  assert {name: type(value) for name, value in example.items()} == {
    "question": str, "reasoning": str, "answer": int
  }


def test_examples_have_random_access(split_problems):
  examples = split_problems["test"]
  assert examples[-1] == examples[len(examples) - 1] != examples[0]


def test_index_past_the_end_is_an_index_error(split_problems):
  with pytest.raises(IndexError):
    split_problems["test"][400]


def test_the_embedded_task_needs_no_accelerator_library_no_tfds_and_no_disk(tmp_path):
  program = """
import sys
from gdsd_jax import tasks
task = tasks.get_task("arithmetic", data_dir=sys.argv[1])
example = task.examples("train")[0]
task.score(task.solution(example), example)
print(sorted({"jax", "flax", "tensorflow", "tensorflow_datasets"} & set(sys.modules)))
"""
  result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
  assert result.stdout == "[]\n"
  assert list(tmp_path.iterdir()) == []


def test_unknown_task_names_the_known_ones():
  with pytest.raises(ValueError, match=r"^task.name='chess': unknown task, known are arithmetic, "):
    get_task("chess")


def test_unknown_option_names_the_known_ones():
  with pytest.raises(ValueError, match=r"^task.memory_mb: must be a whole number, not '512MB'$"):
    get_task("code", memory_mb="512MB")
  with pytest.raises(ValueError, match=r"^task.reward_late: must be a number, not 'never'$"):
    get_task("arithmetic", reward_late="never")
  with pytest.raises(ValueError, match=r"^task.colour: unknown option of task 'arithmetic', known are data_dir$"):
    get_task("arithmetic", colour="red")


def test_unknown_split_names_the_known_ones():
  with pytest.raises(ValueError, match=r"^unknown split 'dev', known are train, validation, test$"):
    TASK.examples("dev")
  with pytest.raises(ValueError, match=r"^unknown split 'validation', known are train, test$"):
    get_task("gsm8k").examples("validation")
