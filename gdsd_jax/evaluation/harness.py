"""Generation tasks of lm-evaluation-harness on a denoiser: its command line, with the model "gdsd_jax" known to it.

  pip install "gdsd_jax[eval]"
  python -m gdsd_jax.evaluation.harness --model gdsd_jax --model_args pretrained=GSAI-ML/LLaDA-8B-Instruct \
    --tasks gsm8k --apply_chat_template --batch_size 32
"""

from collections.abc import Mapping
import dataclasses
import inspect
import logging
import sys
from typing import Any

import jax

from gdsd_jax.checks import require, require_at_least, require_one_of
from gdsd_jax.diffusion.config import KINDS, SamplerConfig
from gdsd_jax.evaluation.batches import plan_batches
from gdsd_jax.evaluation.protocol import Evaluated
from gdsd_jax.generation.generator import Generator
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.parallel.mesh import make_mesh, whole_batch
from gdsd_jax.runs.compilation_cache import use_compilation_cache
from gdsd_jax.runs.config import ModelConfig
from gdsd_jax.runs.files import run_folder

try:
  from lm_eval.api.model import LM
  from lm_eval.api.registry import register_model
except ImportError as error:
  message = f"lm-evaluation-harness cannot be imported ({error}); pip install 'gdsd_jax[eval]'"
  if __name__ == "__main__":
    sys.exit(f"error: {message}")
  raise ImportError(message) from error

_log = logging.getLogger(__name__)

_WIDTHS = tuple(2**power for power in range(5, 20))  # that prompts are padded to, as far as the model reaches
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one setting under four names
_KNOWN = {*_LIMITS, "until", "do_sample", "temperature", "top_p", "top_k"}


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
  """How completions are sampled where a task does not say."""

  max_gen_toks: int  # longest completion
  steps_per_token: float  # denoising steps for each token
  block_length: int  # tokens of a block, for the llada sampler
  kind: str  # which sampler, "llada" or "dream"

  def __post_init__(self):
    require_at_least(self, "", max_gen_toks=1, block_length=1)
    share = self.steps_per_token
    require(0 < share <= 1, "steps_per_token", f"must lie in (0, 1], not {share}")
    require_one_of("kind", self.kind, KINDS)

  def sampler(self, gen_kwargs: Mapping[str, Any]) -> SamplerConfig:
    """The sampler of a request. Without do_sample and a temperature it is greedy. Raises ValueError."""
    limit = int(next((gen_kwargs[name] for name in _LIMITS if gen_kwargs.get(name)), self.max_gen_toks))
    block = min(self.block_length, limit) if self.kind == "llada" else limit
    blocks = limit // block  # the limit is a limit: never rounded up
    temperature, do_sample = gen_kwargs.get("temperature"), gen_kwargs.get("do_sample")
    if do_sample is False or temperature is None:
      temperature = 1.0 if do_sample else 0.0
    # To a greedy request top_p and top_k mean nothing, yet Dream's confidence would depend on them.
    top_p, top_k = (gen_kwargs.get("top_p"), gen_kwargs.get("top_k")) if float(temperature) else (None, None)
    return SamplerConfig(
      kind=self.kind, completion_length=blocks * block, steps=blocks * max(round(block * self.steps_per_token), 1),
      temperature=float(temperature), block_length=block, top_p=None if top_p == 1 else top_p, top_k=top_k or None,
    )


@register_model("gdsd_jax")
class DenoiserLM(LM):
  """A denoiser as the harness sees a language model. It generates; it has no likelihoods."""

  def __init__(
    self, pretrained: str | None = None, workdir: str | None = None, step: str | int = "latest",
    dtype: str = "bfloat16", batch_size: int | str = 1, max_gen_toks: int = 256, steps_per_token: float = 0.5,
    block_length: int = 32, kind: str | None = None, data: int = -1, fsdp: int = 1, tensor: int = 1, seed: int = 0,
    layout: str | None = None, device: str | None = None, max_batch_size: int | None = None, **unknown: Any,
  ):
    """--model_args, and what the harness adds to them.

    Args:
      pretrained: model folder (also of a PEFT adapter) or hub name.
      workdir, step: instead of it, a run and its checkpoint: latest, best, or a number.
      batch_size: prompts at a time, raised to a multiple of the devices that they are split over.
      max_gen_toks, steps_per_token, block_length: see `GenerationDefaults`.
      kind: which sampler; by default that of the model's family.
      layout: of a model in a layout of one's own, see docs/own.md.
      data, fsdp, tensor, seed: the mesh, and the random seed of sampled completions.
      device, max_batch_size: not used; JAX chooses the device, and batches have one size.
    """
    super().__init__()
    if unknown:
      known = ", ".join(list(inspect.signature(type(self)).parameters)[:-1])
      raise ValueError(f"--model_args: no setting {next(iter(unknown))!r}, known are {known}")
    given_one = (pretrained is None) != (workdir is None)
    require(given_one, "--model_args", "needs pretrained=FOLDER_OR_HUB_NAME, or workdir=RUN")
    is_number = str(batch_size).isdecimal() and int(batch_size) >= 1
    require(is_number, "--batch_size", f"must be a positive number, not {batch_size!r}")
    try:
      defaults = GenerationDefaults(int(max_gen_toks), float(steps_per_token), int(block_length), kind or KINDS[0])
    except ValueError as error:
      raise ValueError(f"--model_args: {error}") from None
    mesh = make_mesh(data, fsdp, tensor)
    evaluated = Evaluated(run_folder(workdir, "--model_args: workdir") if workdir else None, str(step), pretrained)
    denoiser, self._params, model = evaluated.load(ModelConfig(dtype=dtype, layout=layout), mesh)
    self.tokenizer, self._path = load_tokenizer(model.folder, denoiser.config), model.path
    self.batch_size = whole_batch(int(batch_size), mesh)
    self._generator = Generator(denoiser, self.tokenizer, mesh)
    family = denoiser.config.family if denoiser.config.family in KINDS else KINDS[0]
    self._defaults = defaults if kind else dataclasses.replace(defaults, kind=family)
    self._key, self._batches = jax.random.key(seed), 0

  @property
  def tokenizer_name(self) -> str:
    return self._path.replace("/", "__")

  def chat_template(self, chat_template: bool | str = False) -> str:
    return self.tokenizer.chat_template if chat_template else ""

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    reply = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    return self.tokenizer.apply_chat_template(chat_history, tokenize=False, **reply)

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """Completions of requests with args (context, gen_kwargs). A context that does not fit is refused, not cut."""
    by_sampler, plan, texts = {}, [], [""] * len(requests)
    contexts, settings = [request.args[0] for request in requests], [request.args[1] for request in requests]
    for index, gen_kwargs in enumerate(settings):
      by_sampler.setdefault(self._defaults.sampler(gen_kwargs), []).append(index)
    if ignored := set().union(*settings) - _KNOWN:
      _log.warning("generation settings without effect on a denoiser: %s", ", ".join(sorted(ignored)))
    for sampler, indices in by_sampler.items():  # all before anything is generated: a context may be too long
      part = [contexts[i] for i in indices]
      batches = plan_batches(self.tokenizer, part, self._widths(sampler), self.batch_size, field="--tasks")
      plan += [(sampler, width, [indices[i] for i in batch]) for width, batch in batches]
    for sampler, width, indices in plan:
      self._batches += 1
      key, prompts = jax.random.fold_in(self._key, self._batches), [contexts[i] for i in indices]
      completions, _ = self._generator.complete(self._params, prompts, (width,), sampler, key, self.batch_size)
      for index, completion in zip(indices, completions):
        texts[index] = cut_at(completion, settings[index].get("until"))
        self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
    return texts

  def _widths(self, sampler: SamplerConfig) -> list[int]:
    length, positions = sampler.completion_length, self._generator.denoiser.config.max_positions
    room = positions - length
    require(room >= 1, "max_gen_toks",
            f"{length} tokens leave no room for a prompt in the {positions} positions of {self._path}")
    return [*(width for width in _WIDTHS if width < room), room]

  def loglikelihood(self, requests):
    raise NotImplementedError("a masked diffusion model has no tractable likelihood, and bounds on it are not"
                              " comparable with other models'; choose tasks with output_type: generate_until")

  loglikelihood_rolling = loglikelihood


def cut_at(text: str, until: str | list[str] | None) -> str:
  """The text before the first of the `until` strings."""
  for stop in [until] if isinstance(until, str) else until or []:
    if stop:
      text = text.partition(stop)[0]
  return text


def main() -> None:
  """The harness's command line; a foreseen error is one line on standard error."""
  from lm_eval.__main__ import cli_evaluate

  try:
    use_compilation_cache()
    cli_evaluate()
  except (ValueError, OSError, NotImplementedError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
  main()
