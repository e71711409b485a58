"""lm-evaluation-harness on a denoiser: the model "gdsd_jax" of its command line, for completions and likelihoods.

  pip install "gdsd_jax[eval]"
  gdsd-lm-eval --model gdsd_jax --model_args pretrained=GSAI-ML/LLaDA-8B-Instruct \
    --tasks gsm8k --apply_chat_template --batch_size 32
  gdsd-lm-eval --model gdsd_jax --model_args pretrained=GSAI-ML/LLaDA-8B-Base,mc_num=1 \
    --tasks mmlu --num_fewshot 5 --batch_size 32

Releases of the harness after 0.4.13 find the model by itself, by this package's entry point in `lm_eval.models`: there
it is `lm_eval --model gdsd_jax`, too.
"""

from collections.abc import Sequence
import inspect
import json
import logging
import sys
from typing import Any
import zlib

import jax

from gdsd_jax.checks import did_you_mean, require, require_seed
from gdsd_jax.diffusion.config import KINDS, SamplerConfig
from gdsd_jax.evaluation.batches import plan_batches
from gdsd_jax.evaluation.harness_requests import cut_at, stops_of
from gdsd_jax.evaluation.harness_settings import number, SETTINGS, settings_of
from gdsd_jax.evaluation.likelihood import Likelihood, Pair
from gdsd_jax.generation.generator import Generator
from gdsd_jax.huggingface.chat_format import render
from gdsd_jax.huggingface.tokenizer import load_tokenizer, token_ids
from gdsd_jax.parallel.mesh import make_mesh, MESH_AXES, whole_batch
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.compilation_cache import use_compilation_cache
from gdsd_jax.runs.files import run_folder
from gdsd_jax.runs.model_config import ModelConfig

try:
  from lm_eval.api.model import LM
  from lm_eval.api.registry import register_model
  from tqdm import tqdm  # comes with it
except ImportError as error:
  message = f"lm-evaluation-harness cannot be imported ({error}); pip install 'gdsd_jax[eval]'"
  if __name__ == "__main__":
    sys.exit(f"error: {message}")
  raise ImportError(message) from error

_log = logging.getLogger(__name__)

_WIDTHS = tuple(2**power for power in range(5, 20))  # that prompts are padded to, as far as the model reaches


@register_model("gdsd_jax")
class DenoiserLM(LM):
  """A denoiser as the harness sees a language model. What it answers to a request depends on no other request."""

  def __init__(
    self, pretrained: str | None = None, workdir: str | None = None, step: str | int = "latest",
    dtype: str = "bfloat16", batch_size: int | str = 1, kind: str | None = None, likelihood: str | None = None,
    check_greedy: bool = True, add_bos_token: bool = False, data: int = -1, fsdp: int = 1, tensor: int = 1,
    seed: int = 0, layout: str | None = None, mask_token_id: int | None = None, eos_token_id: int | None = None,
    device: str | None = None, max_batch_size: int | None = None,
    **settings: Any,
  ):
    """--model_args, and what the harness adds to them. ValueError or OSError, one line, where they cannot be.

    Args:
      pretrained: model folder (also of a PEFT adapter) or hub name.
      workdir, step: instead of it, a run and its checkpoint: latest, best, or a number.
      batch_size: prompts, or states of answers, at a time; raised to a multiple of the devices that share them.
      kind: which sampler; by default that of the model's family.
      likelihood: which estimate, see `LikelihoodConfig`; by default that of the model's family.
      check_greedy: whether likelihoods tell if an answer is the greedy one, as LAMBADA's accuracy needs. It costs a
        pass or more; multiple choice does without.
      add_bos_token: whether likelihoods have the beginning of text before the context, as Dream's base model is scored.
      layout: that of a model in a layout of one's own, see docs/own.md.
      mask_token_id, eos_token_id: of a model whose files name none.
      data, fsdp, tensor, seed: the mesh, and the random seed of completions and of likelihoods' states.
      device, max_batch_size: not used; JAX chooses the device, and batches have one size.
      settings: other fields of `GenerationDefaults` and `LikelihoodConfig`. Dream's published evaluation has
        temperature=0.1,top_p=0.9,alg=entropy; LLaDA's, mc_num=1 where all answers are single tokens.
    """
    super().__init__()
    names = [*list(inspect.signature(type(self)).parameters)[:-1], *SETTINGS]
    for name in settings.keys() - set(names):
      raise ValueError(f"--model_args: no setting {name!r}, known are {', '.join(names)}{did_you_mean(name, names)}")
    given_one = (pretrained is None) != (workdir is None)
    require(given_one, "--model_args", "needs pretrained=FOLDER_OR_HUB_NAME, or workdir=RUN")
    is_number = str(batch_size).isdecimal() and int(batch_size) >= 1
    require(is_number, "--batch_size", f"must be a positive number, not {batch_size!r}")
    for name, value in {"check_greedy": check_greedy, "add_bos_token": add_bos_token}.items():
      require(isinstance(value, bool), f"--model_args: {name}", f"must be True or False, not {value!r}")
    settings_of(KINDS, kind, likelihood, settings)  # before a model is loaded that tells which family it is of
    mesh = make_mesh(*(number(name, value, int) for name, value in zip(MESH_AXES, (data, fsdp, tensor))))
    seed = number("seed", seed, int)
    require_seed("--model_args: seed", seed)
    evaluated = ChosenModel(run_folder(workdir, "--model_args: workdir") if workdir else None, str(step), pretrained)
    told = {"layout": layout, "mask_token_id": mask_token_id, "eos_token_id": eos_token_id}
    for name, value in told.items():
      require(workdir is None or value is None, f"--model_args: {name}", "is of pretrained=; a run knows its own")
    denoiser, self._params, model = evaluated.load(ModelConfig(dtype=dtype, **told), mesh)
    self.tokenizer, self._path = load_tokenizer(model.folder, denoiser.config), model.path
    self.batch_size = whole_batch(int(batch_size), mesh)
    self._generator = Generator(denoiser, self.tokenizer, mesh)
    denoiser.config.require_bidirectional("--model_args: pretrained", "the harness")
    family = denoiser.config.family
    self._defaults, config = settings_of([family if family in KINDS else KINDS[0]], kind, likelihood, settings)
    self._likelihood = Likelihood(denoiser, self._params, mesh, self.batch_size, config, seed)
    self._check_greedy, self._bos = check_greedy, [self.tokenizer.bos_token_id] if add_bos_token else []
    require(None not in self._bos, "--model_args: add_bos_token", f"the tokenizer of {self._path} has no such token")
    self._key, self._told = jax.random.key(seed), set()

  @property
  def tokenizer_name(self) -> str:
    return self._path.replace("/", "__")

  def chat_template(self, chat_template: bool | str = False) -> str:
    return self.tokenizer.chat_template if chat_template else ""

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    return render(self.tokenizer, chat_history, add_generation_prompt, continued=not add_generation_prompt)

  def _tell(self, said: str) -> None:
    if said not in self._told:
      self._told.add(said)
      _log.warning("generation_kwargs: %s", said)

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """Completions of requests with args (context, gen_kwargs). A context that does not fit is refused, not cut."""
    by_sampler, plan, texts = {}, [], [""] * len(requests)
    contexts, settings = [request.args[0] for request in requests], [request.args[1] for request in requests]
    stops = [stops_of(gen_kwargs) for gen_kwargs in settings]
    for index, gen_kwargs in enumerate(settings):
      by_sampler.setdefault(self._defaults.sampler(gen_kwargs, self._tell), []).append(index)
    for sampler, indices in by_sampler.items():  # all before anything is generated: a context may be too long
      part = [contexts[i] for i in indices]
      batches = plan_batches(self.tokenizer, part, self._widths(sampler), self.batch_size, field="--tasks")
      plan += [(sampler, width, [indices[i] for i in batch]) for width, batch in batches]
    for place, (sampler, width, indices) in enumerate(plan):
      prompts = [contexts[i] for i in indices]
      # The key belongs to the batch and to its place: where a task asks the same several times, the answers differ.
      key = jax.random.fold_in(jax.random.fold_in(self._key, place), zlib.crc32(json.dumps(prompts).encode()))
      completions, _ = self._generator.complete(self._params, prompts, (width,), sampler, key, self.batch_size)
      for index, completion in zip(indices, completions):
        texts[index] = cut_at(completion, stops[index])
        self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
    return texts

  def _widths(self, sampler: SamplerConfig) -> list[int]:
    length, positions = sampler.completion_length, self._generator.denoiser.config.max_positions
    room = positions - length
    require(room >= 1, "max_gen_toks",
            f"{length} tokens leave no room for a prompt in the {positions} positions of {self._path}")
    return [*(width for width in _WIDTHS if width < room), room]

  def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """(log-likelihood, whether it is the greedy answer) of requests with args (context, continuation).

    Raises ValueError where both do not fit into the model's positions.
    """
    pairs = [self._pair(*request.args) for request in requests]
    greedy = self._likelihood.greedy(pairs) if self._check_greedy else [False] * len(pairs)
    found = list(zip(self._estimate(pairs, disable_tqdm), greedy))
    for request, value in zip(requests, found):
      self.cache_hook.add_partial("loglikelihood", request.args, value)
    return found

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    """Log-likelihoods of whole texts, in parts of half the model's positions where a text has more.

    Each part has the one before as its context.
    """
    parts, owners, found = [], [], [0.0] * len(requests)
    for owner, request in enumerate(requests):
      (ids,) = self._ids(request.args)
      room = self._positions - len(self._start([]))
      size = room if len(ids) <= room else self._positions // 2
      for start in range(0, len(ids), size):
        parts.append((ids[start - size:start] if start else self._start([]), ids[start:start + size]))
        owners.append(owner)
    for owner, value in zip(owners, self._estimate(parts, disable_tqdm)):
      found[owner] += value
    for request, value in zip(requests, found):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
    return found

  def _estimate(self, pairs: Sequence[Pair], quiet: bool) -> list[float]:
    with tqdm(total=self._likelihood.states(pairs), desc="states of answers", disable=quiet) as bar:
      return self._likelihood.estimate(pairs, bar.update)

  @property
  def _positions(self) -> int:
    return self._generator.denoiser.config.max_positions - 1  # an end of text may come along

  def _pair(self, context: str, continuation: str) -> Pair:
    """Token ids of both; blanks at the context's end begin the continuation, as they do in a token."""
    kept = context.rstrip()
    text = context + continuation
    whole, before = self._ids([text, kept])
    pair = self._start(before), whole[len(before):]
    tokens = sum(map(len, pair))
    require(tokens <= self._positions, "--tasks", f"a context and its continuation have {tokens} tokens, at most"
            f" {self._positions} are allowed: {json.dumps(text[:200])}")
    return pair

  def _ids(self, texts: Sequence[str]) -> list[list[int]]:
    found = token_ids(self.tokenizer, texts)
    for text, ids in zip(texts, found):
      require(self._generator.denoiser.config.mask_token_id not in ids, "--tasks",
              f"a text holds the mask token {self.tokenizer.mask_token}: {json.dumps(text[:200])}")
    return found

  def _start(self, context: list[int]) -> list[int]:
    """A context with what comes before it. A model with shifted outputs needs a token to predict the first by."""
    config = self._generator.denoiser.config
    if not context and not self._bos and config.shifted_output:
      return [config.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id]
    return self._bos + context


def main() -> None:
  """The harness's command line; a foreseen error is one line on standard error."""
  from lm_eval.__main__ import cli_evaluate

  try:
    use_compilation_cache()
    cli_evaluate()
  except (ValueError, OSError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
  main()
