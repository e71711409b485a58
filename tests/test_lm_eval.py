"""lm-evaluation-harness on a denoiser: local tasks end to end, and what the harness asks of a model."""

from importlib import metadata
import json
import logging
import re
import subprocess
import sys

from conftest import REPOSITORY
import jax
import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install 'gdsd_jax[eval]')")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import gdsd_jax
from gdsd_jax import launch
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.evaluation.harness import DenoiserLM
from gdsd_jax.evaluation.harness_requests import cut_at, GenerationDefaults, stops_of
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.tasks import get_task

EXAMPLES = 16
MODEL_ARGS = {"pretrained": "tiny", "dtype": "float32", "steps_per_token": 1.0, "block_length": 8, "mc_num": 4}


@pytest.fixture(scope="module")
def problems():
  test = get_task("arithmetic").examples("test")
  return [test[i] for i in range(EXAMPLES)]


@pytest.fixture(scope="module")
def completions(problems):
  """What the training code's sampler answers, greedily."""
  denoiser, params = gdsd_jax.load_pretrained("tiny")
  config = SamplerConfig(completion_length=16, steps=16, block_length=8, temperature=0.0)
  tokenizer = load_tokenizer("tiny", denoiser.config)
  sampler = RolloutSampler(denoiser, tokenizer, get_task("arithmetic"), config, (64,))
  return sampler(params, problems, jax.random.key(0)).completions


@pytest.fixture(scope="module")
def model():
  return DenoiserLM(**MODEL_ARGS, batch_size=8)


def evaluate(task):
  """The harness's results on a task of its own; it reads the files of all of its others unless it is told not to."""
  return lm_eval.simple_evaluate(
    model="gdsd_jax", model_args=MODEL_ARGS, tasks=[task], batch_size=8, apply_chat_template=True, bootstrap_iters=0,
    task_manager=TaskManager(include_defaults=False))


def request(context, **gen_kwargs):
  return Instance("generate_until", {}, (context, gen_kwargs), 0)


def prompts(model, problems):
  return [model.apply_chat_template([{"role": "user", "content": problem["question"]}]) for problem in problems]


@pytest.fixture(scope="module")
def evaluated(problems, tmp_path_factory):
  """Results of the harness on a local task, with the samples that it saw."""
  folder = tmp_path_factory.mktemp("harness")
  rows = [{"question": problem["question"], "answer": str(problem["answer"])} for problem in problems]
  (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  task = {
    "task": "local_arithmetic", "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}, "cache_dir": str(folder / "cache")},
    "test_split": "test", "output_type": "generate_until",
    "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["</answer>"], "max_gen_toks": 16, "do_sample": False},
    "filter_list": [{"name": "answer", "filter": [
      {"function": "regex", "regex_pattern": "<answer>(-?[0-9]+)"}, {"function": "take_first"},
    ]}],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
  }
  return evaluate(task)


def test_harness_reports_the_accuracy_of_the_same_model(evaluated, completions, problems):
  expected = sum(map(get_task("arithmetic").accuracy, completions, problems)) / EXAMPLES
  assert 0 < expected < 1
  assert evaluated["results"]["local_arithmetic"]["exact_match,answer"] == expected


def test_harness_sees_completions_cut_at_until(evaluated, completions):
  samples = sorted(evaluated["samples"]["local_arithmetic"], key=lambda sample: sample["doc_id"])
  assert [sample["resps"][0][0] for sample in samples] == [text.partition("</answer>")[0] for text in completions]


def test_requests_of_different_lengths_come_back_in_order(model, completions, problems):
  contexts = prompts(model, problems)
  requests = [request(contexts[0], max_gen_toks=16), request(contexts[1], max_gen_toks=8),
              request("1 + 1\n" * 12 + contexts[2], max_gen_toks=16), request(contexts[3], max_gen_toks=16)]
  texts = model.generate_until(requests)
  assert (texts[0], texts[3]) == (completions[0], completions[3])
  assert texts[1] != completions[1]


def test_context_that_does_not_fit_is_refused(model):
  with pytest.raises(ValueError, match="has [0-9]+ tokens, at most 240 are allowed"):
    model.generate_until([request("apples " * 300, max_gen_toks=16)])


@pytest.mark.parametrize("gen_kwargs, expected", [
  ({}, dict(completion_length=256, steps=128, block_length=32, temperature=0.0)),
  ({"max_gen_toks": 100}, dict(completion_length=96, steps=48, block_length=32, temperature=0.0)),
  ({"max_new_tokens": 10.0}, dict(completion_length=10, steps=5, block_length=10, temperature=0.0)),
  ({"do_sample": True}, dict(temperature=1.0)),
  ({"temperature": 0.5}, dict(temperature=0.5)),
  ({"do_sample": True, "temperature": "0.5", "top_p": 1, "top_k": 0}, dict(temperature=0.5, top_p=None, top_k=None)),
  ({"do_sample": False, "temperature": 0.0, "until": ["x"]}, dict(temperature=0.0)),
])
def test_generation_settings(gen_kwargs, expected):
  told = []
  sampler = GenerationDefaults().sampler(gen_kwargs, told.append)
  assert {name: getattr(sampler, name) for name in expected} == expected
  assert told == []  # all of it has been obeyed


@pytest.mark.parametrize("gen_kwargs, said", [
  ({"do_sample": False, "temperature": 0.5},
   "temperature=0.5 has no effect where do_sample is false (--gen_kwargs do_sample=true)"),
  ({"do_sample": True, "temperature": 0.0}, "do_sample=true has no effect at temperature=0"),
  ({"top_p": 0.9}, "top_p=0.9 has no effect without a temperature"),
  ({"do_sample": False, "top_k": 5}, "top_k=5 has no effect without a temperature"),
  ({"max_gen_toks": 32, "max_tokens": 64}, "max_tokens=64 has no effect beside max_gen_toks=32"),
  ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 has no effect on a denoiser"),
])
def test_a_setting_without_effect_is_told(gen_kwargs, said):
  told = []
  assert GenerationDefaults().sampler(gen_kwargs, told.append).temperature == 0
  assert told == [said]


@pytest.mark.parametrize("gen_kwargs, words", [
  ({"max_gen_toks": 0}, "max_gen_toks: must be at least 1, not 0"),
  ({"max_gen_toks": "many"}, "max_gen_toks: must be a whole number, not 'many'"),
  ({"max_new_tokens": 2.5}, "max_new_tokens: must be a whole number, not 2.5"),
  ({"temperature": "hot"}, "temperature: must be a number, not 'hot'"),
  ({"temperature": -1}, "temperature: must be a number and not negative"),
  ({"do_sample": "maybe"}, "do_sample: must be true or false, not 'maybe'"),
  ({"temperature": 1, "top_p": 0.9}, "top_p: only the dream or block sampler has it"),
  ({"temperature": float("nan")}, "temperature: must be a number, not nan"),
])
def test_a_setting_that_cannot_be_is_refused(gen_kwargs, words):
  with pytest.raises(ValueError, match=f"^generation_kwargs: {words}"):
    GenerationDefaults().sampler(gen_kwargs)


def test_settings_of_the_model_replace_those_of_the_task():
  """Dream's published evaluation samples, while nearly all tasks ask for greedy completions."""
  told = []
  defaults = GenerationDefaults(kind="dream", temperature=0.1, top_p=0.9, alg="maskgit_plus")
  sampler = defaults.sampler({"do_sample": False, "temperature": 0.7}, told.append)
  assert (sampler.temperature, sampler.top_p, sampler.alg) == (0.1, 0.9, "maskgit_plus")
  assert told == ["temperature=0.7 has no effect beside --model_args temperature=0.1"]


def test_the_harness_shows_what_has_no_effect_once(model, problems, caplog):
  contexts = prompts(model, problems)[:2]
  with caplog.at_level(logging.WARNING):
    model.generate_until([request(context, max_gen_toks=8, do_sample=False, temperature=0.7) for context in contexts])
  assert caplog.text.count("temperature=0.7 has no effect where do_sample is false") == 1


@pytest.mark.parametrize("block_length, expected", [(None, (100, 1, 50, 0.9)), (32, (96, 3, 48, 0.9))])
def test_dream_takes_the_whole_completion_at_once_unless_it_is_given_blocks(block_length, expected):
  defaults = GenerationDefaults(kind="dream", block_length=block_length, eos_penalty=2.0)
  sampler = defaults.sampler({"max_gen_toks": 100, "temperature": 0.1, "top_p": 0.9})
  assert (sampler.completion_length, sampler.num_blocks, sampler.steps, sampler.top_p) == expected
  assert sampler.eos_penalty == 2.0


def test_sampled_completions_depend_on_their_own_batch_alone(model, problems):
  contexts = prompts(model, problems)[:3]
  requests = [request(context, max_gen_toks=16, do_sample=True, temperature=1.0) for context in contexts]
  first, again = model.generate_until(requests), model.generate_until(requests)
  assert first == again  # what was asked before does not matter
  assert len(set(model.generate_until(requests[:1] * 8))) > 1  # while a task may ask for several samples


@pytest.mark.parametrize("until, expected", [
  (None, "a b c"), ("b", "a "), (["c", "b"], "a "), ([], "a b c"), ([""], "a b c"), (["x"], "a b c"),
])
def test_cut_at_the_first_until_string(until, expected):
  assert cut_at("a b c", stops_of({"until": until})) == expected


@pytest.mark.parametrize("until", [5, [None], [["a"]], {"a": 1}])
def test_stops_that_are_no_texts_are_refused(until):
  with pytest.raises(ValueError, match="generation_kwargs: until: must be a text or a list of texts"):
    stops_of({"until": until})


# Likelihoods.


def pair(context, continuation):
  return Instance("loglikelihood", {}, (context, continuation), 0)


@pytest.fixture(scope="module")
def choices(problems, tmp_path_factory):
  """A multiple-choice task as the harness is told it, and its rows."""
  folder, rows = tmp_path_factory.mktemp("choices"), []
  for number, problem in enumerate(problems[:8]):
    answer = lambda wrong, problem=problem: (
      f"<reasoning>{problem['reasoning']}</reasoning><answer>{problem['answer'] + wrong}</answer>")
    offered = [answer(number % 2), answer(1 - number % 2)]
    rows.append({"question": problem["question"], "gold": number % 2, "choices": offered})
  (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  task = {
    "task": "local_choice", "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": f"{folder}/rows.jsonl"}, "cache_dir": f"{folder}/cache"},
    "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}", "doc_to_target": "gold", "target_delimiter": "",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
  }
  return task, rows


@pytest.fixture(scope="module")
def right_choices(choices, model):
  """The share of rows whose right choice has the highest likelihood."""
  _, rows = choices
  right = []
  for text, row in zip(prompts(model, rows), rows):
    values = [value for value, _ in model.loglikelihood([pair(text, choice) for choice in row["choices"]])]
    right.append(values.index(max(values)) == row["gold"])
  return sum(right) / len(right)


def test_a_local_multiple_choice_task_runs(choices, right_choices):
  task, _ = choices
  found = evaluate(task)["results"]["local_choice"]
  assert found["acc,none"] == right_choices > 0.5  # which is chance
  assert found["acc_norm,none"] > 0.5


@pytest.mark.slow
def test_a_local_multiple_choice_task_runs_by_the_command(choices, right_choices, tmp_path):
  task, _ = choices
  (tmp_path / "local_choice.yaml").write_text(yaml.safe_dump(task))
  model_args = ",".join(f"{name}={value}" for name, value in MODEL_ARGS.items())
  command = [sys.executable, "-c", "from gdsd_jax.launch import lm_eval; lm_eval()", "--model", "gdsd_jax",
             "--model_args", model_args, "--include_path", tmp_path, "--tasks", "local_choice", "--batch_size", "8",
             "--apply_chat_template", "--output_path", tmp_path / "out"]
  result = subprocess.run(command, capture_output=True, text=True, timeout=500)
  assert result.returncode == 0, result.stderr
  (file,) = (tmp_path / "out").rglob("results*.json")
  assert json.loads(file.read_text())["results"]["local_choice"]["acc,none"] == right_choices


def test_a_wrong_answer_is_less_likely_and_not_the_greedy_one(model, problems):
  text, reasoning = prompts(model, problems)[0], f"<reasoning>{problems[0]['reasoning']}</reasoning><answer>"
  right, wrong = pair(text, f"{reasoning}{problems[0]['answer']}</answer>"), pair(text, f"{reasoning}999</answer>")
  (more, _), (less, greedy) = model.loglikelihood([right, wrong])
  assert less < more < 0 and not greedy


def test_blanks_at_the_end_of_a_context_belong_to_the_answer(model):
  assert model.loglikelihood([pair("1 + 1 = ", "2")]) == model.loglikelihood([pair("1 + 1 =", " 2")])


def test_an_empty_context_and_an_empty_answer_are_no_errors(model):
  (whole,), (nothing,) = model.loglikelihood([pair("", "1 + 1 = 2")]), model.loglikelihood([pair("1 + 1", "")])
  assert whole[0] < 0 and nothing == (0.0, True)


def test_the_likelihood_of_a_text_is_that_of_its_parts(model):
  text = "Tom has 3 apples. "
  rolling = lambda text: model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
  assert rolling(text.strip()) == pytest.approx([model.loglikelihood([pair("", text.strip())])[0][0]], rel=1e-6)
  long = text * 40  # more than the positions of the model
  assert rolling(long)[0] < 10 * rolling(text)[0]


def test_a_pair_that_does_not_fit_is_refused(model):
  with pytest.raises(ValueError, match="^--tasks: a context and its continuation have [0-9]+ tokens, at most 255 are"):
    model.loglikelihood([pair("apples " * 300, "2")])


@pytest.mark.parametrize("arguments, words", [
  ({}, "pretrained="), ({"pretrained": "tiny", "workdir": "run"}, "pretrained="),
  ({"pretrained": "tiny", "batch_size": "auto"}, "--batch_size"),
  ({"pretrained": "tiny", "step": 3, "mc": 3}, "--model_args: no setting 'mc', known are pretrained, workdir, "),
  ({"pretrained": "tiny", "mc_nums": 3}, "did you mean 'mc_num'?"),
  ({"pretrained": "no/folder", "block_length": 0}, "--model_args: block_length: must be at least 1, not 0"),
  ({"pretrained": "no/folder", "max_gen_toks": "many"}, "--model_args: max_gen_toks: must be a whole number, not"),
  ({"pretrained": "no/folder", "steps_per_token": 2}, "--model_args: steps_per_token: must lie in"),
  ({"pretrained": "no/folder", "kind": "gpt"}, "--model_args: kind: 'gpt' is not one of llada, dream"),
  ({"pretrained": "no/folder", "likelihood": "gpt"}, "--model_args: likelihood: 'gpt' is not one of llada, dream,"),
  ({"pretrained": "no/folder", "mc_num": 0}, "--model_args: mc_num: must be at least 1, not 0"),
  ({"pretrained": "no/folder", "cfg": 1, "likelihood": "dream"}, "--model_args: cfg: only likelihood=llada has it"),
  ({"pretrained": "no/folder", "temperature": -1}, "--model_args: temperature: must be a number and not negative"),
  ({"pretrained": "no/folder", "check_greedy": "no"}, "--model_args: check_greedy: must be True or False"),
  ({"pretrained": "tiny", "top_p": 0.9}, "--model_args: top_p: only kind=dream has it"),
])
def test_bad_arguments_are_named(arguments, words):
  with pytest.raises(ValueError, match=words):
    DenoiserLM(**arguments)


def test_the_harness_finds_the_model_by_its_entry_point():
  """Releases after 0.4.13 look there; here it is declared, and loads what the name stands for."""
  (line,) = re.findall(r'"lm_eval.models": \["(.+?)"\]', (REPOSITORY / "setup.py").read_text())
  name, _, value = line.partition(" = ")
  assert metadata.EntryPoint(name, value, "lm_eval.models").load() is get_model(name) is DenoiserLM


def test_without_the_harness_its_command_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "gdsd_jax.evaluation.harness", None)
  with pytest.raises(SystemExit, match="^error: .*gdsd_jax.evaluation.harness"):
    launch.lm_eval()


@pytest.mark.slow
def test_command_line_knows_the_model():
  command = [sys.executable, "-m", "gdsd_jax.evaluation.harness", "--model", "gdsd_jax", "--tasks", "gsm8k",
             "--model_args", "pretrained=no/such/folder/at/all"]
  result = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert result.returncode != 0
  assert result.stderr.strip().splitlines()[-1].startswith("error: --model: 'no/such/folder/at/all'")
