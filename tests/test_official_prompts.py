"""Prompts of training, by name, and of evaluation are the official ones; own tasks are asked as they say."""

import json
import os
from pathlib import Path

from conftest import load_recipe, REPOSITORY
import pytest

import gdsd_jax
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.tasks import get_task
from gdsd_jax.tasks.gsm8k import Gsm8kTask

EXAMPLES = {
  "countdown": {"numbers": [30, 100, 93], "target": 23},
  "sudoku": {"puzzle": "3102200002100320", "solution": "3142243142131324"},
  "gsm8k": {"question": "Why {so}?", "answer": "12"},
  "math500": {"problem": "Why $x^{2}$?", "answer": "12"},
  "code": {"question": "Double it.", "test_cases": ["assert f(1) == 2", "assert f(2) == 4"]},
}
PUBLISHED = ("llada_8b", "dream_7b")


@pytest.fixture(scope="module")
def official() -> dict[str, str]:
  """The prompts of the official release by "training/TASK" or "evaluation/TASK"; skips where they are missing."""
  folder = Path(os.environ.get("GDSD_BENCHMARKS", REPOSITORY.parent / "shared" / "data"))
  if not (path := folder / "official_prompts.json").is_file():
    pytest.skip(f"the official prompts are not at {path} (set GDSD_BENCHMARKS)")
  return json.loads(path.read_text())


def filled(template: str, example) -> str:
  for name, value in example.items():
    template = template.replace(f"{{{name}}}", str(value))
  return template


def user(content: str):
  return [{"role": "user", "content": content}]


@pytest.mark.parametrize("name", ["countdown", "sudoku"])
def test_puzzles_are_asked_as_officially(official, name):
  task, example = get_task(name, prompt="gdsd"), EXAMPLES[name]
  assert task.messages(example) == user(filled(official[f"training/{name}"], example))
  assert task.evaluation_messages(example) == user(filled(official[f"evaluation/{name}"], example))


def test_code_is_asked_as_officially(official):
  system, asked = get_task("code", prompt="gdsd").messages(EXAMPLES["code"])
  assert system == {"role": "system", "content": official["training/code/system"]}
  template = official["training/code/user"].partition("   (")[0].replace("test_cases[0]", "test")
  assert asked["content"] == filled(template, {"question": "Double it.", "test": "assert f(1) == 2"})


@pytest.mark.parametrize("name, published", [("gsm8k_xml", "gsm8k"), ("gsm8k", "gsm8k"), ("math_xml", "math500")])
def test_mathematics_is_evaluated_by_another_prompt_than_it_is_trained_on(official, name, published):
  task, example = get_task(name), EXAMPLES[published]
  assert task.evaluation_messages(example) == user(filled(official[f"evaluation/{published}"], example))
  assert task.messages(example) != task.evaluation_messages(example)


@pytest.mark.parametrize("preset", PUBLISHED)
@pytest.mark.parametrize("recipe", ["countdown", "sudoku", "code"])
def test_published_recipes_train_on_the_official_prompts(official, recipe, preset):
  task = run_config(load_recipe(f"gdsd_{recipe}").get_config(preset)).task
  asked = get_task(task.name, **task.options).messages(EXAMPLES[recipe])
  wanted = official["training/code/system" if recipe == "code" else f"training/{recipe}"]
  assert asked[0]["content"] == filled(wanted, EXAMPLES[recipe])


@pytest.mark.parametrize("name", ["countdown", "sudoku"])
def test_espos_prompts_are_the_longer_ones(name):
  espo, gdsd = (get_task(name, prompt=prompt).messages(EXAMPLES[name])[0]["content"] for prompt in ("espo", "gdsd"))
  assert len(espo) > 1.3 * len(gdsd)
  assert get_task(name).messages(EXAMPLES[name])[0]["content"] == espo  # what it was before there was a choice


@pytest.mark.parametrize("options, content", [
  ({"variant": "small"}, "30 100 93 = 23"), ({"prompt": "bare"}, "30 100 93 = 23"),
  ({"variant": "small", "prompt": "gdsd"}, None),
])
def test_models_that_were_trained_on_problems_alone_are_evaluated_on_them(options, content):
  task = get_task("countdown", **options)
  same = task.messages(EXAMPLES["countdown"]) == task.evaluation_messages(EXAMPLES["countdown"])
  assert same == (content is not None)
  assert content is None or task.messages(EXAMPLES["countdown"]) == user(content)


@pytest.mark.parametrize("name, known", [("sudoku", "gdsd, espo, bare"), ("code", "gdsd, espo")])
def test_an_unknown_prompt_is_named(name, known):
  with pytest.raises(ValueError, match=f"^task.prompt='d1': unknown, known are {known}$"):
    get_task(name, prompt="d1")


class Own(gdsd_jax.Task):
  def messages(self, example):
    return user("training")


class OwnAsked(Own):
  def evaluation_messages(self, example):
    return user("evaluation")


class OwnWords(Gsm8kTask):
  def messages(self, example):
    return user("my words")


@pytest.mark.parametrize("task, asked", [
  (Own(), "training"), (OwnAsked(), "evaluation"), (OwnWords(), "my words"), (get_task("arithmetic"), "1 + 1?"),
])
def test_own_tasks_are_evaluated_as_they_say(task, asked):
  assert get_task(task).evaluation_messages({"question": "1 + 1?"}) == user(asked)


def test_reward_functions_see_what_was_asked():
  seen = []
  def look(prompts, **columns):
    seen.extend(prompts)
    return [0.0]

  task = get_task("gsm8k", rewards=(look,))
  for asked in (None, task.evaluation_messages):
    task.grade(["12"], [EXAMPLES["gsm8k"]], None, asked)
  assert [text.startswith("You are a math expert.") for text in seen] == [False, True]
