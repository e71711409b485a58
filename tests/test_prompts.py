r"""Problems that are rows, told by configuration: how they are asked, and what counts as right."""

import json
import math
import re

import pytest

from gdsd_jax.tasks import get_task
from gdsd_jax.tasks.base import Grade


@pytest.fixture
def made(tmp_path):
  """Makes the task of these rows."""
  def make(*rows, **options):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return get_task("prompts", train_source=str(tmp_path / "rows.jsonl"), **{"answer_column": "answer", **options})
  return make


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize("row, options, messages", [
  ({"prompt": "2 + 2?"}, {}, [{"role": "user", "content": "2 + 2?"}]),
  ({"prompt": CHAT}, {}, CHAT),
  ({"messages": CHAT}, {}, CHAT),
  ({"messages": CHAT}, {"system_prompt": "Be long."}, CHAT),
  ({"prompt": "2 + 2?"}, {"system_prompt": "Be brief."}, CHAT),
  ({"question": "2 + 2?"}, {"prompt_column": "question", "system_prompt": "Be brief."}, CHAT),
  ({"a": 2, "b": 2}, {"prompt_template": "{a} + {b}?", "system_prompt": "Be brief."}, CHAT),
  ({"a": 2}, {"prompt_template": "{{{a:.1f}}}"}, [{"role": "user", "content": "{2.0}"}]),
])
def test_rows_become_messages(made, row, options, messages):
  task = made(row | {"answer": 4}, **options)
  [example] = task.examples("train")
  assert task.messages(example) == messages
  assert example["answer"] == 4


@pytest.mark.parametrize("answer, options, text, right", [
  ("4", {}, r"so \boxed{4}", True),
  (4, {}, r"so \boxed{ 4.0 }", True),
  ("4", {}, "4", False),
  (r"\frac{1}{2}", {}, r"\boxed{\frac12}", True),
  ("1,234", {"extract": "number"}, "first 7, then 1234.", True),
  ("1234", {"extract": "number"}, "first 1234, then 7.", False),
  ("Paris", {"extract": "tag"}, "<answer> Paris </answer>", True),
  ("Paris", {"extract": "text"}, " Paris\n", True),
  ("B", {"extract": r"answer is \(?([A-D])"}, "The answer is (B).", True),
  ("B", {"extract": r"[A-D]$"}, "C or B", True),
  ("So we add. #### 4", {"answer_after": "####", "extract": "number"}, "4", True),
])
def test_the_answer_is_found_and_compared(made, answer, options, text, right):
  task = made({"prompt": "?", "answer": answer}, **options)
  assert task.grade([text], task.examples("train")) == [Grade({"correctness": right}, right)]


@pytest.mark.parametrize("row, options, message", [
  ({"answer": 1}, {}, "task.train_source: .*rows.jsonl, line 2: no column 'prompt', it has 'answer'"),
  ({"prompt": "?"}, {}, "rows.jsonl, line 2: no column 'answer', it has 'prompt'"),
  ({"prompt": 3, "answer": 1}, {}, "rows.jsonl, line 2: column 'prompt' must be text, it is 3"),
  ({"prompt": [], "answer": 1}, {}, r"line 2: column 'prompt' must be text or messages, each with role and content"),
  ({"prompt": [{"role": "user"}], "answer": 1}, {}, "line 2: column 'prompt' must be text or messages"),
  ({"prompt": [*CHAT, {"role": "assistant", "content": "4"}], "answer": 1}, {}, "line 2: column 'prompt' ends with"),
  ({"answer": 1}, {"prompt_template": "{prompt} {b}"}, "line 2: task.prompt_template asks for the column 'prompt', it"),
  ({"prompt": "?", "answer": 1}, {"prompt_template": "{prompt"}, "line 1: task.prompt_template cannot be filled: "),
  ({"prompt": "?", "answer": None}, {}, "line 2: column 'answer' must be text or a number, it is None"),
  ({"prompt": "?", "answer": ["4"]}, {}, r"line 2: column 'answer' must be text or a number, it is \['4'\]"),
  ({"prompt": "?", "answer": math.nan}, {}, "line 2: column 'answer' must be text or a number, it is nan"),
  ({"prompt": "?", "answer": " "}, {}, "line 2: column 'answer' holds no answer, it is ' '"),
  ({"prompt": "?", "answer": "so 4"}, {"answer_after": "####"}, "line 1: column 'answer' lacks '####', which task.ans"),
  ({"prompt": "?", "answer": 1, "b": None}, {"prompt_template": "{prompt} {b}"},
   "line 2: column 'b', which task.prompt_template asks for, is empty"),
  ({"prompt": "?", "answer": 1}, {"prompt_template": "{prompt:d}"}, "line 1: task.prompt_template cannot be filled: "),
])
def test_a_row_that_does_not_fit_is_named(made, row, options, message):
  with pytest.raises(ValueError, match=message):
    made({"prompt": "?", "answer": 1, "b": 2}, row, **options).examples("train")


@pytest.mark.parametrize("options, message", [
  ({"extract": "(box"}, "task.extract: '(box' is none of boxed, tag, number, text, and no regular expression"),
  ({"prompt_column": "a", "prompt_template": "{a}"}, "task.prompt_template: takes the place of task.prompt_column"),
  ({"answer_column": None, "rewards": (len,), "answer_after": "####"}, "task.answer_after: needs task.answer_column"),
  ({"answer_column": None, "rewards": (len,), "extract": "tag"}, "task.extract: needs task.answer_column"),
  ({"system_prompt": 3}, "task.system_prompt: must be text, not 3"),
  ({"answer_after": ""}, "task.answer_after: must not be empty; None takes all of the column"),
  ({"answer_column": None}, "task.rewards: prompts has no reward of its own without task.answer_column"),
  ({"templat": "x"}, "task.templat: unknown option of task 'prompts', known are "),
])
def test_an_option_that_does_not_fit_is_named(made, options, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    made({"prompt": "?", "answer": 1}, **options)
