"""lm-evaluation-harness on a denoiser: a local generation task end to end, and what the harness asks of a model."""

import json
import subprocess
import sys

import jax
import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install 'gdsd_jax[eval]')")

import lm_eval
from lm_eval.api.instance import Instance

import gdsd_jax
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.evaluation.harness import cut_at, DenoiserLM, GenerationDefaults
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.tasks import get_task

EXAMPLES = 16
MODEL_ARGS = {"pretrained": "tiny", "dtype": "float32", "steps_per_token": 1.0, "block_length": 8}


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
  return lm_eval.simple_evaluate(
    model="gdsd_jax", model_args=MODEL_ARGS, tasks=[task], batch_size=8, apply_chat_template=True, bootstrap_iters=0
  )


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


def test_likelihood_tasks_are_refused_with_the_reason(model):
  with pytest.raises(NotImplementedError, match="generate_until"):
    model.loglikelihood([])


@pytest.mark.parametrize("gen_kwargs, expected", [
  ({}, dict(completion_length=256, steps=128, block_length=32, temperature=0.0)),
  ({"max_gen_toks": 100}, dict(completion_length=96, steps=48, block_length=32, temperature=0.0)),
  ({"max_new_tokens": 10}, dict(completion_length=10, steps=5, block_length=10, temperature=0.0)),
  ({"do_sample": True}, dict(temperature=1.0)),
  ({"do_sample": True, "temperature": 0.5}, dict(temperature=0.5)),
  ({"do_sample": False, "temperature": 0.5, "top_p": 0.9}, dict(temperature=0.0, top_p=None)),
])
def test_generation_settings(gen_kwargs, expected):
  sampler = GenerationDefaults(256, 0.5, 32, "llada").sampler(gen_kwargs)
  assert {name: getattr(sampler, name) for name in expected} == expected


def test_dream_takes_the_whole_completion_at_once():
  sampler = GenerationDefaults(256, 0.5, 32, "dream").sampler({"max_gen_toks": 100, "temperature": 0.1, "top_p": 0.9})
  assert (sampler.completion_length, sampler.steps, sampler.top_p) == (100, 50, 0.9)


@pytest.mark.parametrize("until, expected", [
  (None, "a b c"), ("b", "a "), (["c", "b"], "a "), ([], "a b c"), ([""], "a b c"), (["x"], "a b c"),
])
def test_cut_at_the_first_until_string(until, expected):
  assert cut_at("a b c", until) == expected


@pytest.mark.parametrize("arguments, words", [
  ({}, "pretrained="), ({"pretrained": "tiny", "workdir": "run"}, "pretrained="),
  ({"pretrained": "tiny", "batch_size": "auto"}, "--batch_size"),
  ({"pretrained": "tiny", "steps": 3}, "--model_args: no setting 'steps', known are pretrained, workdir, "),
  ({"pretrained": "tiny", "block_length": 0}, "--model_args: block_length: must be at least 1, not 0"),
  ({"pretrained": "tiny", "max_gen_toks": "many"}, "--model_args: .*'many'"),
  ({"pretrained": "tiny", "steps_per_token": 2}, "--model_args: steps_per_token: must lie in"),
  ({"pretrained": "tiny", "kind": "gpt"}, "--model_args: kind: 'gpt' is not one of llada, dream"),
])
def test_bad_arguments_are_named(arguments, words):
  with pytest.raises(ValueError, match=words):
    DenoiserLM(**arguments)


def test_command_line_knows_the_model():
  command = [sys.executable, "-m", "gdsd_jax.evaluation.harness", "--model", "gdsd_jax", "--tasks", "gsm8k",
             "--model_args", "pretrained=no/such/folder/at/all"]
  result = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert result.returncode != 0
  assert result.stderr.strip().splitlines()[-1].startswith("error: model.path: 'no/such/folder/at/all'")
