"""Holds a model against golden data of its authors' code: python tests/check_models.py FOLDER.

FOLDER has hf (config.json, safetensors), goldens.npz and meta.json. A line a case: its worst differences, and MISS if
one is more than it may be, with exit status 1 at the end. What this package cannot compute yet is told as not checked.
Ids and lengths that config.json does not name are those of meta.json.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import json
from pathlib import Path
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import gdsd_jax
from gdsd_jax.huggingface.families import SAMPLED_AS_LLADA
from gdsd_jax.huggingface.stated import FIELDS
from gdsd_jax.huggingface.stored_layers import names_of
from gdsd_jax.models import experts
from gdsd_jax.models.attention import BlockCausal
from gdsd_jax.models.copies import Copies, side_by_side

LOGITS, SCORES, RELATIVE, CONFIDENCE = 2e-4, 2e-4, 1e-4, 1e-4  # what each difference may be
LOSSES = ("gdsd", "gdsd_nokl", "gdsd_unweighted", "gdsd_tlc8", "gdsd_tlc8_sg", "gdsd_tlc64", "gdsd_tlc64_sg",
          "gdsd_tlc512", "gdsd_tlc512_sg", "espo")

apply = jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)


class Difference(float):
  """How far something is from what it should be, and how far it may be."""

  def __new__(cls, value: float, most: float):
    made = super().__new__(cls, value)
    made.most = most
    return made

  @property
  def is_miss(self) -> bool:
    return not self <= self.most


class NotChecked(Exception):
  """Why a case cannot be computed."""


@dataclasses.dataclass(frozen=True)
class Golden:
  """A model and what was recorded of it."""

  denoiser: gdsd_jax.Denoiser
  params: Any
  data: Mapping[str, np.ndarray]
  meta: Mapping[str, Any]

  @property
  def shifted(self) -> bool:
    return self.denoiser.config.shifted_output

  def aligned(self, recorded):
    """Recorded logits are those of the published network, Dream's not yet shifted."""
    return np.concatenate([recorded[:, :1], recorded[:, :-1]], axis=1) if self.shifted else recorded

  def cases(self) -> Iterator[tuple[str, Callable[[], dict[str, Difference]]]]:
    """(name, what gives its differences) of everything that was recorded."""
    yield "forward", self.forward
    yield "forward, left-padded", self.left_padded
    if "forward/experts" in self.data:
      yield "experts", self.experts
    for number in range(len(self.meta.get("generate_cases", ()))):
      yield f"generate {number}", functools.partial(self.generate, number)
    for name in LOSSES:
      if f"losses/loss/{name}" in self.data:
        yield f"loss {name}", functools.partial(self.loss, name)
    if "train/logp" in self.data:
      yield "scores", self.scores
    if "train_rl/logp" in self.data:
      yield "scores of TraceRL", self.trace_rl

  def forward(self) -> dict[str, Difference]:
    logits = apply(self.denoiser, self.params, self.data["forward/input_ids"])
    return {"logits": absolute(logits, self.aligned(self.data["forward/logits"]), LOGITS)}

  def left_padded(self) -> dict[str, Difference]:
    mask, ids = self.data["forward/attention_mask"], "forward/input_ids_left_padded"
    ids = self.data[ids if ids in self.data else "forward/input_ids"]
    logits, expected = apply(self.denoiser, self.params, ids, mask), self.data["forward/logits_left_padded"]
    # What the shift brings from padding is as undefined as the padding itself.
    defined = (mask * self.aligned(mask))[..., None]
    return {"logits": absolute(logits * defined, self.aligned(expected) * defined, LOGITS)}

  def experts(self) -> dict[str, Difference]:
    """The experts of each token, layer by layer, as the router of the forward pass chooses them."""
    chosen, route = [], experts.route

    def seen(*arguments):
      found = route(*arguments)
      jax.debug.callback(lambda layer: chosen.append(np.sort(layer, axis=-1)), found[0], ordered=True)
      return found

    with mock.patch.object(experts, "route", seen):
      jax.block_until_ready(self.denoiser.apply(self.params, self.data["forward/input_ids"]))
    jax.effects_barrier()
    recorded = self.data["forward/experts"]
    if len(chosen) != len(recorded):
      raise ValueError(f"{len(chosen)} layers of experts, and {len(recorded)} were recorded")
    return {"other experts": Difference(int((np.stack(chosen) != recorded).sum()), 0)}

  def generate(self, number: int) -> dict[str, Difference]:
    config, settings = self.denoiser.config, dict(self.meta["generate_cases"][number])
    if config.block_length is not None:
      return self.generate_blocks(number, settings)
    prompt_mask = self.data["generate/prompt_mask"] if settings.pop("use_prompt_mask") else None
    kind = "llada" if config.family in SAMPLED_AS_LLADA else config.family
    sampler = gdsd_jax.SamplerConfig(kind=kind, completion_length=settings.pop("gen_length"), **settings)
    rollout = gdsd_jax.sample(self.denoiser, self.params, self.data["generate/prompt"], prompt_mask, jax.random.key(0),
                              sampler)
    expected, found = f"generate/case{number}", {}
    other = np.asarray(rollout.tokens) != self.data[f"{expected}/completion"]
    found["other tokens"] = Difference(int(other.sum()), 0)
    if f"{expected}/confidence" in self.data:
      found["confidence"] = absolute(rollout.confidence, self.data[f"{expected}/confidence"], CONFIDENCE)
    return found

  def generate_blocks(self, number: int, settings) -> dict[str, Difference]:
    """All prompts in one batch, with the exact cache and without; what the reference leaves masked ours ends."""
    config, data = self.denoiser.config, self.data
    if f"generate/case{number}/completion" not in self.data:
      raise NotChecked(f"generate/case{number}/completion was not recorded")
    strategy = settings.get("remasking_strategy")
    threshold = settings.get("confidence_threshold", settings.get("threshold"))
    threshold = None if threshold is None or threshold > 1 else threshold
    threshold = 0.0 if settings.get("top_k") == 1 else threshold  # which makes the reference sure of everything
    stops = settings.get("stopping_criteria_idx") or [settings.get("eos_id")]
    if stops not in ([None], [-1], [config.eos_token_id]):
      raise NotChecked(f"the model's end of text is {config.eos_token_id}, not {stops}")
    block = settings["block_length"]
    length = settings["gen_length"] + block  # the last block whole
    edits = {name: settings[name] for name in ("editing_threshold", "max_post_steps") if name in settings}
    sampler = gdsd_jax.SamplerConfig(
      kind="block", completion_length=length, block_length=block, cache="exact", threshold=threshold, temperature=0,
      steps=(settings.get("denoising_steps") or settings.get("steps") or block) * (length // block), **edits,
      early_stop=stops == [config.eos_token_id],
      remasking="sequential" if strategy == "sequential" else "low_confidence")
    sample = lambda sampler: gdsd_jax.sample(
      self.denoiser, self.params, data["generate/prompt"], data["generate/prompt_mask"], jax.random.key(0), sampler)
    rollout, uncached = sample(sampler), sample(dataclasses.replace(sampler, cache="none"))
    name = f"generate/case{number}"
    expected = data[f"{name}/completion"]
    columns = expected.shape[1]
    known = (expected >= 0) & (expected != config.mask_token_id)
    tokens, steps = (np.asarray(x)[:, :columns] for x in (rollout.tokens, rollout.steps))
    ended = expected == config.mask_token_id
    times = np.stack([np.searchsorted(np.unique(row), row) + 1 for row in np.asarray(rollout.steps)])[:, :columns]
    other = lambda found, recorded: Difference(int(np.sum((found != recorded)[known])), 0)
    maps = {"other steps": (steps % sampler.block_steps, "step_map"), "other times": (times, "first_unmask_times")}
    return {
      "other tokens": other(tokens, expected),
      **{what: other(found, data[f"{name}/{recorded}"]) for what, (found, recorded) in maps.items()
         if f"{name}/{recorded}" in data},
      "not ended": Difference(int(np.sum(tokens[ended] != config.eos_token_id)), 0),
      "uncached": Difference(int(np.sum(np.asarray(rollout.tokens != uncached.tokens))), 0),
      "confidence": absolute(rollout.confidence, uncached.confidence, 1e-5),
    }

  def loss(self, name: str) -> dict[str, Difference]:
    """Scores, loss and gradients of a loss of ours on recorded rollouts."""
    data, settings = self.data, self.meta["loss_settings"]
    top_k = int(name.removesuffix("_sg").partition("tlc")[2]) if "tlc" in name else None
    suffix = f"_tlc{top_k}" if top_k else "_unweighted" if "unweighted" in name else ""
    beta = 0.0 if name in ("gdsd_nokl", "gdsd_unweighted") else settings["beta"]
    recorded = data[f"losses/old_logp{suffix}"]
    old = gdsd_jax.Scores(data["losses/old_logp"], recorded) if top_k else gdsd_jax.Scores(recorded)
    ref = gdsd_jax.Scores(data["losses/ref_logp"]) if beta else None

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_gradient(params):
      scores = gdsd_jax.sequence_scores(
        self.denoiser, params, data["losses/ids"], data["losses/masks"], prompt_length=self.meta["prompt_length"],
        weighted="unweighted" not in name, center_top_k=top_k, center_gradient=not name.endswith("_sg"),
      )
      shared = dict(completion_length=self.meta["completion_length"], epsilon=settings["epsilon"], beta=beta)
      arguments = scores, old, ref, data["losses/advantages"]
      if name == "espo":
        loss, _ = gdsd_jax.espo_loss(*arguments, **shared)
      else:
        loss, _ = gdsd_jax.gdsd_loss(*arguments, psi=settings["psi"], **shared)
      return loss, scores.centered if top_k else scores.plain

    (loss, scores), gradient = loss_and_gradient(self.params)
    return {
      "scores": relative(scores, data[f"losses/logp{suffix}"]), "loss": relative(loss, data[f"losses/loss/{name}"]),
      **self.gradients(gradient, f"losses/{name}"),
    }

  def scores(self) -> dict[str, Difference]:
    """Log-probabilities of masked tokens, and gradients of their sum; of block diffusion all blocks in one pass."""
    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def summed(params):
      logp = self.token_scores(params) * self.data["train/masked"]
      return jnp.sum(logp), logp

    (_, logp), gradient = summed(self.params)
    found = {"logp": absolute(logp, self.data["train/logp"], SCORES), **self.gradients(gradient, "train")}
    if "train/grad_router" in self.data:
      names = names_of(self.denoiser.config, "blocks.router").tolist()
      router = gradient["blocks"]["router"][names.index(self.meta["train"]["router_parameter"])]
      found["router"] = relative(router.T, self.data["train/grad_router"])
    return found

  def token_scores(self, params):
    """Log-probability of each token of the training set, float32[B, L]."""
    clean, noisy = self.data["train/input_ids"], self.data["train/noisy_ids"]
    if self.denoiser.config.block_length is None:
      return logp_of(self.denoiser.apply(params, noisy), clean)
    splits = self.meta["train"].get("num_tokens_as_the_official_code_splits") or [[len(row)] for row in clean]
    cuts = [np.cumsum([0, *lengths]) for lengths in splits]
    samples = [(row, a, b) for row, ends in enumerate(cuts) for a, b in zip(ends, ends[1:])]
    each = lambda x: np.stack([np.pad(x[row, a:b], (0, x.shape[1] - (b - a))) for row, a, b in samples])
    clean, noisy, real = map(each, (clean, noisy, np.ones(clean.shape, bool)))
    copies = side_by_side(clean, noisy[:, None], real, self.denoiser.config.block_length)
    return self.logp_of_copies(params, copies, clean)[real].reshape(self.data["train/input_ids"].shape)

  def trace_rl(self) -> dict[str, Difference]:
    """As `scores`, of TraceRL's rounds; its blocks are counted from the response, backwards through the prompt."""
    data, prompt = self.data, self.meta["train_rl"]["prompt_length"]
    K, total = self.denoiser.config.block_length, data["train_rl/input_ids"].shape[1]
    before, width = -prompt % K, -(-(total - prompt) // K) * K  # columns that fill up the first block; those of a copy
    laid_out = lambda x: np.concatenate([np.pad(part, [(0, 0), fill]) for part, fill in (
      (x[:, :total], (before, prompt + width - total)), (x[:, total:], (0, prompt + width - total)))], axis=1)
    of_last = data["train_rl/attention"][:, total - 1, :total]  # the last clean token sees all that is no padding
    seen = np.concatenate([of_last, of_last[:, prompt:]], axis=1)
    copies = Copies(*map(laid_out, (data["train_rl/extended_ids"], seen, data["train_rl/position_ids"])),
                    BlockCausal(K, start=prompt + before, width=width),
                    np.broadcast_to(np.arange(total - prompt), (len(seen), total - prompt)), 1)
    responses, scored = data["train_rl/input_ids"][data["train_rl/row"], prompt:], data["train_rl/targets"]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def summed(params):
      logp = jnp.pad(self.logp_of_copies(params, copies, responses), [(0, 0), (prompt, 0)]) * scored
      return jnp.sum(logp), logp

    (_, logp), gradient = summed(self.params)
    return {"logp": absolute(logp, data["train_rl/logp"], SCORES), **self.gradients(gradient, "train_rl")}

  def logp_of_copies(self, params, copies: Copies, tokens):
    """Log-probability of completions' tokens, float32[B, L], in the only copy that there is of each."""
    hidden = self.denoiser.hidden_of_copies(params, copies)[:, 0]
    return logp_of(self.denoiser.head(params).logits(hidden), tokens)

  def gradients(self, gradient, place: str) -> dict[str, Difference]:
    head = np.linalg.norm(gradient["embedding" if self.denoiser.config.tied_head else "head"])
    return {"final norm": relative(gradient["final_norm"], self.data[f"{place}/grad_final_norm"]),
            "head": relative(head, self.data[f"{place}/grad_head_norm"])}


def logp_of(logits, tokens):
  return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[..., None], axis=-1)[..., 0]


def absolute(actual, expected, most: float) -> Difference:
  return Difference(float(np.max(np.abs(np.asarray(actual) - expected))), most)


def relative(actual, expected) -> Difference:
  return Difference(float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))), RELATIVE)


@functools.cache
def read(folder: Path) -> Golden:
  """Raises OSError or ValueError where a file is missing or the model cannot be read."""
  meta = json.loads((folder / "meta.json").read_text())
  # What config.json names must be what the model is; the rest is said by meta.json.
  named = json.loads((folder / "hf" / "config.json").read_text())
  stated = {name: meta[name] for name in FIELDS if meta.get(name) is not None and named.get(name) is None}
  denoiser, params = gdsd_jax.load_pretrained(folder / "hf", stated=stated)
  return Golden(denoiser, params, np.load(folder / "goldens.npz"), meta)


def main(folder: str) -> int:
  try:
    golden = read(Path(folder))
  except (OSError, ValueError) as error:
    sys.exit(f"{folder}: {error}")
  misses = 0
  for name, differences in golden.cases():
    try:
      found = differences()
    except NotChecked as reason:
      print(f"{name:22} not checked: {reason}", flush=True)
      continue
    missed = any(difference.is_miss for difference in found.values())
    misses += missed
    shown = "  ".join(f"{name} {difference:.1e}" for name, difference in found.items())
    print(f"{name:22} {shown}{'  MISS' * missed}", flush=True)
  return 1 if misses else 0


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python tests/check_models.py FOLDER")
  sys.exit(main(sys.argv[1]))
