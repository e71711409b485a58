"""Reward functions with TRL's signature: how they are called, what they may return, and what their mistakes say."""

import asyncio
import functools
import json
import re
import zlib

import numpy as np
import pytest

from gdsd_jax.tasks import get_task, try_out
from gdsd_jax.tasks.base import Grade

ROWS = [{"prompt": "What is 1 + 1?", "answer": 2, "level": "easy"}, {"prompt": "What is 6 × 7?", "answer": 42}]
CHAT = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
TEXTS = ["It is 2.", "41, I guess"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def task(folder):
  """Makes a task `prompts` of a file's rows, graded by the functions."""
  def make(*functions, rows=ROWS, **options):
    with open("rows.jsonl", "w") as file:
      file.writelines(json.dumps(row) + "\n" for row in rows)
    return get_task("prompts", train_source="rows.jsonl", rewards=functions, **options)
  return make


def graded(task, texts=TEXTS, ids=None):
  return [grade.rewards for grade in task.grade(texts, task.examples("train"), ids)]


# Functions as they are written for TRL's GRPO trainer


def short(completions, **kwargs):
  return [-len(completion) / 100 for completion in completions]


def right(prompts, completions, answer, **kwargs):
  assert prompts == [row["prompt"] for row in ROWS]
  return [float(str(a) in completion) for completion, a in zip(completions, answer)]


def polite(completions, **kwargs):
  return [1.0 if completion[0]["role"] == "assistant" and "guess" in completion[0]["content"] else 0.0
          for completion in completions]


def easy_only(completions, level, **kwargs):
  return [0.5 if one == "easy" else None for one in level]


async def slow_judge(completions, **kwargs):
  await asyncio.sleep(0.01)
  return [len(completion) for completion in completions]


def overlong(completion_ids, **kwargs):
  return [-float(len(ids) > 3) for ids in completion_ids]


def test_functions_of_trl_run_as_they_are(task):
  assert graded(task(short, right, easy_only, slow_judge, overlong), ids=[[1, 2, 3], [1, 2, 3, 4]]) == [
    {"short": -0.08, "right": 1.0, "easy_only": 0.5, "slow_judge": 8.0, "overlong": 0.0},
    {"short": -0.11, "right": 0.0, "easy_only": None, "slow_judge": 11.0, "overlong": -1.0},
  ]


def test_chat_prompts_come_with_chat_completions(task):
  assert graded(task(polite, rows=CHAT)) == [{"polite": 0.0}, {"polite": 1.0}]
  assert graded(task(polite, reward_chat=True)) == [{"polite": 0.0}, {"polite": 1.0}]
  assert graded(task(short, rows=CHAT, reward_chat=False)) == [{"short": -0.08}, {"short": -0.11}]


def test_trls_own_functions_run_unchanged(task):
  trl = pytest.importorskip("trl.rewards")
  overlong = trl.get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)
  overlong.__name__ = "overlong"
  grades = graded(task(trl.think_format_reward, overlong, rows=CHAT), ["<think>a</think>b", "b"], [[1], [1] * 9])
  assert grades == [{"think_format_reward": 1.0, "overlong": 0.0}, {"think_format_reward": 0.0, "overlong": -1.0}]


def test_async_functions_run_within_a_running_loop(task):
  rewarded = task(slow_judge)

  async def notebook():
    return graded(rewarded)

  assert asyncio.run(notebook()) == [{"slow_judge": 8.0}, {"slow_judge": 11.0}]


def test_a_function_without_keywords_gets_what_it_names(task):
  assert graded(task(lambda answer: answer)) == [{"<lambda>": 2.0}, {"<lambda>": 42.0}]
  assert graded(task(functools.partial(short, scale=1))) == [{"short": -0.08}, {"short": -0.11}]


def test_arrays_are_lists_of_rewards(task):
  assert graded(task(lambda completions: np.arange(2, dtype=np.float32))) == [{"<lambda>": 0.0}, {"<lambda>": 1.0}]


def test_weights_multiply_and_the_tasks_own_rewards_are_one_of_them(task):
  rewarded = task("task", short, reward_weights=(2.0, 10.0), answer_column="answer", extract="number")
  grades = rewarded.grade(TEXTS, rewarded.examples("train"))
  assert grades == [Grade({"correctness": 2.0, "short": -0.8}, 1.0), Grade({"correctness": 0.0, "short": -1.1}, 0.0)]


def test_any_task_takes_functions_and_keeps_its_accuracy():
  example = get_task("arithmetic").examples("test")[0]
  rewarded = get_task("arithmetic", rewards=(short,))
  text = f"<answer>{example['answer']}</answer>"
  assert rewarded.grade([text], [example]) == [Grade({"short": -len(text) / 100}, 1.0)]
  assert rewarded.messages(example) == get_task("arithmetic").messages(example)


def test_a_function_named_as_one_of_the_tasks_own_rewards_is_refused():

  def format(completions, **kwargs):
    return [0.0] * len(completions)

  alone = get_task("arithmetic", rewards=(format,))
  problem = alone.examples("train")[:1]
  assert alone.grade([""], problem)[0].rewards == {"format": 0}
  for rewards in (("task", format), (format, "task")):
    task = get_task("arithmetic", rewards=rewards)
    with pytest.raises(ValueError, match="^task.rewards: a function and a reward of the task's own are both named"
                                         " format; rename the function$"):
      try_out(task, problem)


def test_what_the_functions_log_is_averaged(task):
  def logs(completions, log_metric, trainer_state):
    for completion in completions:
      log_metric("letters", len(completion))
    return [trainer_state.global_step] * len(completions)

  rewarded = task(logs)
  rewarded.begin_step(7, 10)
  assert graded(rewarded) == [{"logs": 7.0}] * 2
  assert rewarded.metrics() == {"letters": 9.5}
  assert rewarded.metrics() == {}


@pytest.mark.parametrize("options", [{}, {"reward_seconds": 20.0}])
@pytest.mark.parametrize("chat, function, hint", [
  (False, "def own(completions, **kwargs): return [float('2' in one[0]['content']) for one in completions]",
   "TypeError: string indices must be integers, not 'str'; completions are texts here: task.reward_chat=True makes"),
  (True, "import re\ndef own(completions, **kwargs): return [float(bool(re.search('2', one))) for one in completions]",
   "got 'list'; completions are lists of messages here: task.reward_chat=False makes them texts"),
  (True, "async def own(completions, **kwargs): return [float(one.strip() == '2') for one in completions]",
   "'list' object has no attribute 'strip'; completions are lists of messages here: task.reward_chat=False makes"),
])
def test_a_function_that_takes_texts_for_messages_is_told_what_makes_them_these(
  task, folder, chat, function, hint, options):
  rows = CHAT if chat else ROWS
  file = f"own_{zlib.crc32(function.encode())}.py"  # the processes of one are kept for later tests
  (folder / file).write_text(function)
  with pytest.raises(ValueError, match=re.escape(hint)):
    graded(task(f"{file}:own", rows=rows, **options))
  as_told = graded(task(f"{file}:own", rows=rows, reward_chat=not chat, **options))
  assert all(np.isfinite(rewards["own"]) for rewards in as_told)


MISTAKES = """
import math
def a_float(completions, **kwargs): return 1.0
def nothing(completions, **kwargs): pass
def text(completions, **kwargs): return "good"
def texts(completions, **kwargs): return ["good", "bad"]
def not_a_number(completions, **kwargs): return [1.0, math.nan]
def too_few(completions, **kwargs): return [1.0]
def column(completions, solution): return [1.0, 1.0]
def raises(completions, **kwargs):
  return [1 / (len(c) - len(c)) for c in completions]
async def raises_later(completions, **kwargs):
  return [{}["x"]]
def nested(completions, **kwargs): return [[1.0], [2.0]]
def without_order(completions, **kwargs): return {1.0, 2.0}
def huge(completions, **kwargs): return [1e300, 1.0]
def leaves(completions, **kwargs): raise SystemExit(3)
def evaluates(completions, log_metric, **kwargs): log_metric("eval/reward", 1.0)
"""


@pytest.mark.parametrize("name, message", [
  ("a_float", "own.py, line 3: a_float() must return a list of 2 rewards, one for each completion, not 1.0"),
  ("nothing", "own.py, line 4: nothing() must return a list of 2 rewards, one for each completion, not None"),
  ("text", "own.py, line 5: text() must return a list of 2 rewards, one for each completion, not 'good'"),
  ("texts", "own.py, line 6: texts(): each reward: must be a number, not 'good'"),
  ("not_a_number", "own.py, line 7: not_a_number(): each reward: must be a finite number, not nan; None says"),
  ("too_few", "own.py, line 8: too_few() returned 1 rewards for 2 completions"),
  ("column", "own.py, line 9: column() asks for 'solution'; the rows have the columns prompt, answer, level"),
  ("raises", "own.py, line 11: ZeroDivisionError: division by zero"),
  ("raises_later", "own.py, line 13: KeyError: 'x'"),
  ("nested", "own.py, line 14: nested(): each reward: must be a number, not [1.0]"),
  ("without_order", "own.py, line 15: without_order() must return a list of 2 rewards, one for each completion, not"),
  ("huge", "own.py, line 16: huge(): each reward: must be a number of 32 bits, at most 1e+37, not 1e+300"),
  ("leaves", "own.py, line 17: SystemExit: 3"),
  ("evaluates", "own.py, line 18: ValueError: metric 'eval/reward': must have another name: the run's own begin so"),
])
def test_mistakes_are_one_line_with_file_and_line(folder, task, name, message):
  (folder / "own.py").write_text(MISTAKES)
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    graded(task(f"own.py:{name}"))
  assert len(str(caught.value).splitlines()) == 1


def test_mistakes_in_a_process_are_told_as_well(folder, task):
  (folder / "own.py").write_text(MISTAKES)
  with pytest.raises(ValueError, match="^own.py, line 11: ZeroDivisionError: division by zero$"):
    graded(task("own.py:raises", reward_seconds=30.0))


def test_functions_in_processes_have_a_time_limit(folder, task):
  (folder / "own.py").write_text(
    "import time\n"
    "def sleepy(completions, answer, **kwargs):\n"
    "  assert len(completions) == len(answer) == 1\n"
    "  print('noise')\n"
    "  if answer == [42]:\n"
    "    time.sleep(60)\n"
    "  return [len(completions[0])]\n"
    "async def later(completions, **kwargs): return [None]\n")
  rewarded = task("own.py:sleepy", "own.py:later", reward_seconds=1.0, reward_late=-3.0)
  assert graded(rewarded) == [{"sleepy": 8.0, "later": None}, {"sleepy": -3.0, "later": None}]


@pytest.mark.parametrize("functions, options, message", [
  ((), {}, "task.rewards: prompts has no reward of its own without task.answer_column; give one"),
  ((short, short), {}, "task.rewards: two have the same name (short, short)"),
  ((short,), {"reward_weights": (1.0, 2.0)}, "task.reward_weights: must be one for each of the 1 rewards"),
  ((short,), {"reward_weights": ("a",)}, "task.reward_weights: must be a number, not 'a'"),
  ((short,), {"reward_seconds": 1.0}, "task.reward_seconds: short can run in a process of its own only when it is"),
  ((short,), {"reward_seconds": 0.0}, "task.reward_seconds: must be positive, not 0.0"),
  ((short,), {"reward_late": -1.0}, "task.reward_late: needs task.reward_seconds, after which it is earned"),
  ((), {"answer_column": "answer", "reward_seconds": 1.0}, "task.reward_seconds: needs task.rewards, of whose"),
  ((), {"answer_column": "answer", "reward_chat": False}, "task.reward_chat: needs task.rewards, of whose"),
  ((3,), {}, "task.rewards: 3 is no function"),
  (("rewards.py:short",), {}, "task.rewards: rewards.py: there is no such file"),
  (("task", short), {}, "task.rewards: prompts has no reward of its own without task.answer_column"),
])
def test_settings_that_do_not_fit_are_one_line(task, functions, options, message):
  with pytest.raises((ValueError, OSError), match=re.escape(message)):
    task(*functions, **options)


def test_a_completion_that_no_reward_applies_to_is_told_once(task, caplog):
  rewarded = task(lambda completions: [None, 1.0])
  for _ in range(2):
    assert graded(rewarded) == [{"<lambda>": None}, {"<lambda>": 1.0}]
  assert [record.getMessage() for record in caplog.records] == [
    "no reward applies to a completion, whose advantage is 0: 'It is 2.'"]
