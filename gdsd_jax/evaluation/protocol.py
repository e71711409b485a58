"""The accuracy of a model on a task's test split by the papers' protocol, in a folder that a killed evaluation resumes.

Completions of several lengths, at half a step a token unless the recipe says otherwise, greedy but for Dream's where
that ruins them; the reported accuracy is that of the best length. Problems are asked by the official evaluation's
prompts. Two things are not the official code's: a prompt that exceeds eval.prompt_buckets is refused and none is cut,
and a completion's text ends at its first end of text, where the official code decodes and judges what follows.
"""

from collections.abc import Sequence
import dataclasses
import json
import logging
from pathlib import Path
import time
import zlib

import jax
import numpy as np

from gdsd_jax.checks import require, require_positions
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.evaluation.batches import plan_batches
from gdsd_jax.evaluation.problems import choose
from gdsd_jax.evaluation.records import Records, shown, summarize
from gdsd_jax.generation.generator import Generator
from gdsd_jax.huggingface.tokenizer import chat_prompt, load_tokenizer, token_ids
from gdsd_jax.parallel.mesh import make_mesh, replicated, whole_batch
from gdsd_jax.parallel.processes import share_work
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config import evaluation_samplers, RunConfig
from gdsd_jax.runs.fit import batch_axis, check_blocks, require_rows, require_split, validate_family
from gdsd_jax.runs.lock import check_free, locked
from gdsd_jax.tasks import get_task
from gdsd_jax.tasks.base import Completion
from gdsd_jax.waiting import Wait, waiting

_log = logging.getLogger(__name__)


def evaluate_model(config: RunConfig, evaluated: ChosenModel, out: Path, num_examples: int | None = None) -> dict:
  """Evaluates a model on the test split of `config.task`, by the `eval` section of the config, over its mesh.

  Args:
    out: folder for settings.json, generations.jsonl (a line for every length and example) and summary.json. What it
      holds already of the same evaluation is kept; the rest is generated.
    num_examples: the first of the test split; None for all.

  Returns the summary, see `summarize`. Raises ValueError or OSError, one line with the cause, such as another command
  that writes to `out`; nothing was written unless it came up while generating.
  """
  check_free(out, "--out")
  evaluation = _Evaluation(config, evaluated.resolved(), num_examples)
  with locked(out, "--out"):
    return _go_through(evaluation, out)


def _go_through(evaluation: "_Evaluation", out: Path) -> dict:
  samplers, settings, count = evaluation.samplers, evaluation.settings, len(evaluation.examples)
  records, speeds = Records(out, settings), {}
  _log.info(
    "%s: %d problems × lengths %s with %s, %d of %d completions are there, in %s", evaluation.task.name, count,
    ", ".join(map(str, samplers)), settings["model"]["source"], len(records.rows), count * len(samplers), out,
  )
  total = sum(_cost(length, width) for length in samplers for width, _ in evaluation.pending(length, records))
  with waiting(f"evaluating {evaluation.task.name}", total, last_word=False) as wait:
    for length, sampler in samplers.items():
      wait.what = f"evaluating {evaluation.task.name}, length {length}"
      speeds[length] = evaluation.run(length, sampler, records, wait)
      _log.info("length %d: %s", length, shown([row for (of, _), row in records.rows.items() if of == length]))
  return records.write_summary({**summarize(records.rows, settings), "protocol": evaluation.protocol}, speeds)


class _Evaluation:
  """An evaluation's model, problems and batches, built and checked once, and its loop over them."""

  def __init__(self, config: RunConfig, evaluated: ChosenModel, num_examples: int | None):
    self.samplers, self.prefill = evaluation_samplers(config), config.eval.prefill
    self.key, drawn = jax.random.key(config.seed), any(map(draws, self.samplers.values()))
    mesh = make_mesh(**vars(config.mesh))
    self.batch_size, buckets = config.eval.batch_size, config.eval.prompt_buckets
    [axis] = {batch_axis(sampler) for sampler in self.samplers.values()}
    slots = max(sampler.slots or 0 for sampler in self.samplers.values())
    require_rows(mesh, axis, "eval.batch_size", self.batch_size)
    require_rows(mesh, axis, "sampler.slots", slots, "slots")
    require_split(mesh, "eval.prompt_buckets", buckets, "eval.lengths", list(self.samplers))
    for sampler in self.samplers.values():
      check_blocks(sampler, mesh)
    self.task = get_task(config.task.name, **config.task.options)
    self.asked = self.task.messages if config.eval.prompt == "training" else self.task.evaluation_messages
    with waiting(f"preparing the test problems of {config.task.name}"):
      test = self.task.examples("test")
    require(len(test) > 0, "task.name", f"{config.task.name} has an empty test split")
    self.examples, problems = choose(test, config.eval.test_size, num_examples)
    model, _ = evaluated.base(config.model)
    validate_family(config, model.architecture, model.path)
    blocks = model.architecture.block_length
    as_long = config.sampler.kind != "block" or {each.block_length for each in self.samplers.values()} == {blocks}
    require(as_long, "eval.block_length", f"{config.eval.block_length} is not the model's block length; give {blocks}")
    denoiser, self.params, model = evaluated.load(config.model, mesh)
    tokenizer = load_tokenizer(model.folder, denoiser.config)
    try:
      self.prompts = [chat_prompt(tokenizer, self.asked(example)) + self.prefill for example in self.examples]
    except ValueError as error:  # a problem whose text forges the chat format
      raise ValueError(str(error) if self.task.is_own else f"task.test_source: {error}") from None
    self.generator = Generator(denoiser, tokenizer, mesh)
    # A batch of fewer problems than slots is filled up with its own.
    self.batch_size = min(self.batch_size, whole_batch(max(len(self.examples), slots), mesh, axis))
    self.plan = plan_batches(tokenizer, self.prompts, buckets, self.batch_size, field="eval.prompt_buckets")
    width, longest = self.plan[-1][0], max(self.samplers)
    said = f"eval.lengths: {longest} tokens after prompts of up to {width} (eval.prompt_buckets)"
    require_positions(said, width + longest, denoiser.config.max_positions, model.path)
    asked = json.dumps([self.prompts, self.examples], default=str)
    by_key = (f"drawn at temperature {config.eval.temperature}, each batch of {self.batch_size} by a random key made of"
              f" the seed {config.seed}, the length and the batch's first problem")
    self.protocol = {"problems": problems, "prompt": config.eval.prompt, "prefill": self.prefill,
                     "completions": by_key if drawn else "greedy"}
    self.settings = {
      "model": {**evaluated.describe(config.model), "weights": fingerprint(self.params)},
      "task": {"name": config.task.name, **config.task.options},
      "examples": f"{zlib.crc32(asked.encode()):08x}", "num_examples": len(self.examples),
      "grading": "official",  # an evaluation of earlier releases, whose accuracy was lenient, is another one
      "batch_size": self.batch_size, "prompt_buckets": list(buckets), "prefill": self.prefill,
      "samplers": {str(length): sampler.settings for length, sampler in self.samplers.items()},
      **({"seed": config.seed} if drawn else {}),
    }

  def pending(self, length: int, records: Records) -> list[tuple[int, Sequence[int]]]:
    """(width of the prompts, problems) of the batches of which some records are missing."""
    return [(width, batch) for width, batch in self.plan if any((length, i) not in records.rows for i in batch)]

  def run(self, length: int, sampler: SamplerConfig, records: Records, wait: Wait) -> float | None:
    """Adds the records of one length that are missing; returns tokens a second of batches that needed no compiling."""
    tokens, seconds = 0, 0.0
    for width, indices in self.pending(length, records):
      compiled, started = (sampler, (self.batch_size, width)) in self.generator.compiled, time.monotonic()
      # A batch that was cut short is generated whole, as it was the first time, and the missing part is kept.
      prompts = [self.prompts[i] for i in indices]
      key = jax.random.fold_in(jax.random.fold_in(self.key, length), indices[0])
      texts, counts = self.generator.complete(self.params, prompts, (width,), sampler, key, self.batch_size)
      if compiled:
        tokens, seconds = tokens + length * len(texts), seconds + time.monotonic() - started
      rows = self._grade(length, indices, [self.prefill + text for text in texts], counts)
      records.append([row for row in rows if (length, row["index"]) not in records.rows])
      wait.advance(_cost(length, width))
    return tokens / seconds if seconds else None

  def _grade(self, length, indices, completions, counts) -> list[dict]:
    """The records of a batch's completions, each graded once, by one of the processes."""

    def grade(items):
      texts = [Completion(completions[i], ended=counts[i] < length) for i in items]
      examples = [self.examples[indices[i]] for i in items]
      ids = [token_ids(self.generator.tokenizer, texts), self.asked] if self.task.takes_ids else []
      try:
        grades = self.task.grade(texts, examples, *ids)
      except Exception as error:
        message = str(error) if self.task.is_own else f"{type(error).__name__}: {error}"
        raise ValueError(f"task.name: reward of {self.task.name}: {message}") from error
      return [dataclasses.asdict(grade) for grade in grades]

    grades = share_work(len(completions), grade)
    return [
      {"length": length, "index": i, "prompt": self.prompts[i], "completion": text, "tokens": int(count), **grade}
      for i, text, count, grade in zip(indices, completions, counts, grades)
    ]


def _cost(length: int, width: int) -> int:
  """What a batch takes in proportion to others: as many steps as tokens, or half, each over prompt and completion."""
  return length * (width + length)


def draws(sampler: SamplerConfig) -> bool:
  """Whether its completions depend on the random key."""
  if sampler.is_own or sampler.temperature > 0:
    return True
  return sampler.remasking == "random" if sampler.kind != "dream" else sampler.alg == "origin" or sampler.alg_temp > 0


def fingerprint(params) -> str:
  """A short word that differs between trained weights, made of the first values of every leaf, wherever they lie."""
  checksum = 0
  for leaf in jax.tree.leaves(params):
    lies = leaf.sharding
    everywhere = replicated(lies.mesh) if isinstance(lies, jax.sharding.NamedSharding) else lies
    first = jax.jit(_first_values, out_shardings=everywhere)(leaf)
    checksum = zlib.crc32(np.asarray(first).tobytes(), checksum)
  return f"{checksum:08x}"


def _first_values(leaf):
  return leaf[(0,) * (leaf.ndim - 1)][:64]
