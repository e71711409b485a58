"""Our sampling and training as a benchmark runs them, each in a process of its own, and the files they begin from."""

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.benchmark.meter import kilobytes, measured, Memory, process_memory, product_flops, PRODUCT_SIZE
from gdsd_jax.benchmark.setting import Setting
from gdsd_jax.benchmark.update import laid_out, Update
from gdsd_jax.checks import require
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.huggingface.adapters import load_adapter, save_adapter
from gdsd_jax.huggingface.weights import load_pretrained, save_pretrained
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import add_adapter, LoraConfig
from gdsd_jax.objectives.scores import sequence_scores
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.state import split_adapter

_VOCABULARIES = (8192, 32768, 131072)


def prepare(folder: Path, setting: Setting) -> tuple[dict[str, Any], int]:
  """Fills the folder that both sides begin from; returns what the device is, and the number of parameters.

  It gets `model/` and, for LoRA, `adapter/` in the published layouts, and `inputs.npz` of tokens int[B, P+L], masks
  bool[B, M, L] and advantages float[B]. Raises ValueError if the device has too little memory.
  """
  device = jax.local_devices()[0]
  memory = device_memory(device)
  config = setting.architecture
  described = {"platform": device.platform, "kind": device.device_kind, "memory_bytes": memory}
  compiled = {"memory", "views"} if device.platform == "cpu" else {"memory"}
  if set(setting.only) <= compiled:  # and not run: nothing begins from files
    return described, _size(Denoiser(config, lora=setting.lora).abstract_params())
  _check_memory(setting, memory)
  if setting.model == "tiny":
    denoiser, params = load_pretrained("tiny", setting.held_dtype)
  else:
    denoiser = Denoiser(config, param_dtype=setting.held_dtype)
    params = jax.jit(denoiser.init)(jax.random.key(0))
  save_pretrained(folder / "model", denoiser, params)
  if setting.lora:
    denoiser, params = adapted(denoiser, params, setting.lora)
    save_adapter(folder / "adapter", denoiser, params, str(folder / "model"))
  np.savez(folder / "inputs.npz", **random_inputs(setting))
  return described, _size(params)


def adapted(denoiser: Denoiser, params, lora: LoraConfig):
  """(denoiser, params) with an adapter of random A and B: 0 would leave A without a gradient, and student and reference
  the same."""
  denoiser, params = add_adapter(denoiser, params, lora, jax.random.key(1))
  for i, factors in enumerate(params["lora"].values()):
    factors["b"] = 0.01 * jax.random.normal(jax.random.key(i), factors["b"].shape, jnp.float32)
  return denoiser, params


def random_inputs(setting: Setting) -> dict[str, np.ndarray]:
  """The inputs of an update: tokens int[B, P+L], masks bool[B, M, L] and advantages float[B]."""
  config, random = setting.architecture, np.random.default_rng(0)
  special = (config.mask_token_id, config.eos_token_id, config.pad_token_id)
  ordinary = np.setdiff1d(np.arange(config.vocab_size, dtype=np.int32), special)
  tokens = random.choice(ordinary, (setting.batch, setting.prompt_length + setting.completion_length))
  confidence = jnp.asarray(random.random((setting.batch, setting.completion_length), np.float32))
  masks = rollout_masks(jax.random.key(2), confidence, setting.num_mc, **setting.sampler.forward_process)
  return dict(tokens=tokens, masks=np.asarray(masks), advantages=random.standard_normal(setting.batch, np.float32))


def device_memory(device) -> int:
  """Bytes of the accelerator that this process may use, or of the machine where that is the CPU."""
  if device.platform != "cpu":
    return device.memory_stats()["bytes_limit"]
  return kilobytes("/proc/meminfo", "MemAvailable") * 1024


def _size(params) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _check_memory(setting: Setting, available: int) -> None:
  params = Denoiser(setting.architecture, lora=setting.lora).abstract_params()
  adapter = _size(params.get("lora"))
  base = _size(params) - adapter
  needed = base * jnp.dtype(setting.held_dtype).itemsize
  trains = bool({"training", "views"} & set(setting.only))
  if trains:
    # What is trained has, in float32, a gradient, two moments, and the weights of an adapter or of a reference.
    needed += 4 * 4 * (adapter or base)
  require(needed <= available, "--model",
          f"{setting.model} needs more than {needed / 1e9:.0f} GB for its weights"
          f"{' and their training' * trains}, the device has {available / 1e9:.0f} GB;"
          " choose a smaller model, --lora_rank or --only=sampling")


def peak_flops(dtype: str) -> float:
  """FLOP/s of a large matrix product."""
  size = PRODUCT_SIZE[jax.default_backend()]
  x, product = jnp.full((size, size), 0.5, dtype), jax.jit(jnp.matmul)
  return product_flops(size, lambda: jax.block_until_ready(product(x, x)))


def sampling(folder: Path, setting: Setting, fast: bool = False) -> dict[str, Any]:
  """One batch of completions, exact or by `setting.fast_sampler`: seconds, memory, tokens int[B, L]."""
  sampler = setting.fast_sampler if fast else setting.sampler
  denoiser, params, _, rollouts, _ = _load(folder, setting)
  prompt = rollouts.tokens[:, :setting.prompt_length]
  arguments = params, prompt, rollouts.attention_mask[:, :setting.prompt_length], jax.random.key(0)
  compiled = sample.lower(denoiser, *arguments, sampler).compile()
  jax.block_until_ready(jax.jit(denoiser.hidden)(params, rollouts.tokens))  # warm-up
  work = lambda: jax.block_until_ready(compiled(*arguments))
  rollout, cost = _measured(work, None if fast else setting.profile, "sampling")
  return {**cost, "tokens": np.asarray(rollout.tokens)}


def training(folder: Path, setting: Setting) -> dict[str, Any]:
  """The second of two updates: seconds, memory; and of the first its loss, gradient norm and mean old score."""
  denoiser, params, mesh, rollouts, advantages = _load(folder, setting)
  update = Update(setting, denoiser, params, mesh, rollouts, advantages)
  del params
  first = update()
  _, cost = _measured(update, setting.profile, "training")
  return {**cost, **{name: float(first[name]) for name in ("loss", "grad_norm", "score")}}


def _load(folder: Path, setting: Setting):
  """(denoiser, params, mesh, rollouts, advantages) as a run on one device has them."""
  mesh = make_mesh(1, 1, 1, jax.local_devices()[:1])
  denoiser, params = load_pretrained(folder / "model", setting.dtype, mesh, setting.held_dtype, setting.remat)
  if setting.lora:
    denoiser, params = load_adapter(folder / "adapter", denoiser, params)
  with np.load(folder / "inputs.npz") as inputs:
    arrays = dict(inputs)
  return denoiser, params, mesh, *laid_out(setting, arrays, mesh)


def _measured(work: Callable[[], Any], profile: str | None, name: str) -> tuple[Any, dict[str, float]]:
  """`measured`, and a trace of one more run in the folder `profile`."""
  device = jax.local_devices()[0]
  allocated = lambda field: device.memory_stats()[field]
  # The peak is that since the process began: JAX cannot reset it.
  on_device = Memory(lambda: None, lambda: allocated("bytes_in_use"), lambda: allocated("peak_bytes_in_use"))
  found = measured(work, process_memory() if device.platform == "cpu" else on_device)
  if profile:
    with jax.profiler.trace(str(Path(profile) / name)):
      work()
  return found


def scoring_memory(setting: Setting) -> dict[int, dict[str, int]]:
  """Vocabulary -> peak temporary bytes of the scores of one rollout, and of these with the gradient of an adapter.

  XLA assigned them to the compiled programs; nothing is run. The adapter has rank 8 where the setting has none.
  """
  found = {}
  for vocabulary in _VOCABULARIES:
    special = dict.fromkeys(("mask_token_id", "eos_token_id", "pad_token_id"), 0)
    config = dataclasses.replace(setting.architecture, vocab_size=vocabulary, **special)
    lora = setting.lora or LoraConfig(rank=8, dropout=0.0)
    denoiser = Denoiser(config, setting.dtype, setting.dtype, setting.remat, lora)
    adapter, params = split_adapter(denoiser.abstract_params())
    tokens = jax.ShapeDtypeStruct((1, setting.prompt_length + setting.completion_length), jnp.int32)
    masks = jax.ShapeDtypeStruct((setting.num_mc, 1, setting.completion_length), bool)

    def scores(adapter, params, tokens, masks, denoiser=denoiser):
      found = sequence_scores(denoiser, {**params, **adapter}, tokens, masks, setting.prompt_length,
                              center_top_k=setting.loss.scoring.center_top_k)
      return jnp.sum(found.policy)

    programs = {"scores": scores, "scores_and_gradient": jax.value_and_grad(scores)}
    found[vocabulary] = {
      name: jax.jit(program).lower(adapter, params, tokens, masks).compile().memory_analysis().temp_size_in_bytes
      for name, program in programs.items()
    }
  return found
