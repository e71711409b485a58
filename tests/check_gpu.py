"""Holds what runs on a GPU against the CPU's float32 and float64: python tests/check_gpu.py [CHECK …].

A line a check: the worst differences, what each may be, and MISS where one is more, with exit status 1 at the end. It
takes a minute on an H100, most of which is compilation. Without a GPU it runs where JAX does, to be tried.
"""

import dataclasses
import functools
import sys
import time
import traceback
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import gdsd_jax
from gdsd_jax.models import attention, experts
from gdsd_jax.models.attention_kernels import cudnn_attention, padding
from gdsd_jax.models.config import DenoiserConfig, ExpertsConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.models.lora import add_adapter, LoraConfig
from gdsd_jax.objectives.gdsd import GdsdTlc
from gdsd_jax.objectives.objective import ScoredRollouts
from gdsd_jax.objectives.token_scores import Scoring, token_scores
from gdsd_jax.objectives.views import Views
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import distillation_step, score_rollouts

# Two stacks of a kernel's tile would fit neither the chunks of the head nor those of attention by chance.
CONFIG = DenoiserConfig(
  vocab_size=5000, hidden_size=256, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=64, mlp_size=384,
  rope_theta=10000.0, norm_epsilon=1e-5, max_positions=256, mask_token_id=4990, eos_token_id=4991, pad_token_id=4991,
  positions_skip_padding=True,
)
BATCH, PROMPT, LENGTH = 4, 30, 32
IS_GPU = jax.default_backend() == "gpu"
kernel = lambda query, key, value, mask: cudnn_attention(
  query, key, value, padding(mask), implementation="cudnn" if IS_GPU else "xla")


def off(actual, expected) -> float:
  """The norm of a difference over that of what is expected; of trees, of all leaves together."""
  norm = lambda leaves: np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in leaves))
  actual, expected = ([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)] for tree in (actual, expected))
  return float(norm([a - e for a, e in zip(actual, expected, strict=True)]) / norm(expected))


def on_cpu(function, *arguments, **options):
  """What a function gives on the CPU, in full float32, as NumPy arrays."""
  cpu = jax.local_devices(backend="cpu")[0]
  with jax.default_device(cpu), jax.default_matmul_precision("highest"):
    return jax.device_get(function(*jax.device_put(arguments, cpu), **options))


def attention_case(dtype):
  """(query, key, value), mask: 130 tokens, left-padded by 0, 9, …"""
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=(BATCH, 130, heads, 128)) for heads in (4, 2, 2)]
  mask = np.arange(130)[None] >= 9 * np.arange(BATCH)[:, None]
  return [jnp.asarray(array, dtype) for array in arrays], jnp.asarray(mask)


def check_attention():
  """cuDNN's, of left-padded sequences, forward and backward, no further from float32 than bfloat16 is."""
  arrays, mask = attention_case(jnp.bfloat16)
  loss = lambda attend, arrays, mask: jnp.sum(
    jnp.sin(attend(*arrays, mask).astype(jnp.float32)) * mask[:, :, None, None])
  both = lambda attend: lambda *arguments: (
    attend(*arguments[0], arguments[1]) * arguments[1][:, :, None, None],
    jax.grad(functools.partial(loss, attend))(*arguments))
  exact = on_cpu(jax.jit(both(attention.plain_attention)), [np.asarray(x, np.float32) for x in arrays],
                 np.asarray(mask))
  found = jax.jit(both(kernel))(arrays, mask)
  text = jax.jit(kernel).lower(*arrays, mask).compile().as_text()
  return {"forward": (off(found[0], exact[0]), 6e-3), "backward": (off(found[1], exact[1]), 1e-2),
          "without its kernel": (float(IS_GPU and "__cudnn$fmha" not in text), 0)}


def check_attention_in_blocks():
  """A sequence of 512 tokens and two noised copies of its second half, by cuDNN and some queries at a time."""
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.normal(size=(2, 1024, heads, 128)), jnp.bfloat16) for heads in (4, 2, 2)]
  mask = jnp.arange(1024)[None] >= jnp.array([[0], [70]])
  blocks = attention.BlockCausal(32, start=256, width=256)
  loss = lambda attend, arrays, mask: jnp.sum(
    jnp.sin(attend(*arrays, mask, blocks=blocks).astype(jnp.float32)) * mask[:, :, None, None])
  both = lambda attend: lambda *arguments: (
    attend(*arguments[0], arguments[1], blocks=blocks) * arguments[1][:, :, None, None],
    jax.grad(functools.partial(loss, attend))(*arguments))
  exact = on_cpu(jax.jit(both(attention.plain_attention)), [np.asarray(x, np.float32) for x in arrays],
                 np.asarray(mask))
  found = jax.jit(both(attention.tiled_cudnn_attention if IS_GPU else attention.tiled_attention))(arrays, mask)
  return {"forward": (off(found[0], exact[0]), 6e-3), "backward": (off(found[1], exact[1]), 1e-2)}


def model(config=CONFIG, dtype="float32", **options):
  denoiser = Denoiser(config, dtype, mesh=make_mesh(1, 1, 1, jax.local_devices()[:1]), **options)
  params = jax.jit(denoiser.init)(jax.random.key(0))
  return denoiser, {**params, "head": 3 * params["head"]}  # surer of some tokens than of others


def prompts():
  rng = np.random.default_rng(1)
  return rng.integers(0, 4900, (BATCH, PROMPT)), np.arange(PROMPT)[None] >= 7 * np.arange(BATCH)[:, None]


def check_logits():
  """A forward pass: in full float32 as the CPU's, and in bfloat16 with cuDNN's attention as with the plain one."""
  (denoiser, params), (tokens, mask) = model(), prompts()
  exact = on_cpu(jax.jit(dataclasses.replace(denoiser, mesh=None).apply), jax.device_get(params), tokens, mask)
  real = lambda logits: np.where(mask[..., None], logits, 0)
  apply = lambda dtype: real(jax.jit(dataclasses.replace(denoiser, dtype=dtype).apply)(params, tokens, mask))
  with jax.default_matmul_precision("highest"):
    whole = apply("float32")
  chosen = apply("bfloat16")
  with mock.patch.object(attention, "_kernel", lambda *_: attention.plain_attention):
    plain = apply("bfloat16")
  return {"float32": (off(whole, real(exact)), 1e-5), "bfloat16": (off(chosen, real(exact)), 2e-2),
          "over plain": (off(chosen, real(exact)) / off(plain, real(exact)), 1.3)}


def sampled(denoiser, params, **fields):
  config = gdsd_jax.SamplerConfig(**{**dict(completion_length=LENGTH, steps=LENGTH, block_length=8, temperature=0.0),
                                     **fields})
  return gdsd_jax.sample(denoiser, params, *prompts(), jax.random.key(1), config)


def unlike(one, other) -> float:
  """The share of tokens in which two rollouts differ."""
  return float(np.mean(np.asarray(one.tokens) != np.asarray(other.tokens)))


def check_sampling():
  """Greedy completions: in full float32 the CPU's; in bfloat16 as many of these as with plain attention.

  Tokens of random weights are near ties: of 128 that bfloat16 changes with either attention, not all are the same.
  """
  denoiser, params = model()
  exact = on_cpu(functools.partial(sampled, dataclasses.replace(denoiser, mesh=None)), jax.device_get(params))
  with jax.default_matmul_precision("highest"):
    whole = sampled(denoiser, params)
  half = dataclasses.replace(denoiser, dtype="bfloat16")
  chosen = sampled(half, params)
  # A denoiser of its own, so that it is traced anew.
  with mock.patch.object(attention, "_kernel", lambda *_: attention.plain_attention):
    plain = sampled(dataclasses.replace(half, remat="full"), params)
  return {"float32": (unlike(whole, exact), 0), "confidence": (off(whole.confidence, exact.confidence), 1e-4),
          "bfloat16, beyond plain attention": (unlike(chosen, exact) - unlike(plain, exact), 0.1)}


def check_block_sampling():
  """A block-causal model's completions with the exact cache are those without; in full float32, and the CPU's."""
  denoiser, params = model(dataclasses.replace(CONFIG, block_length=4, qk_norm=True))
  block = dict(kind="block", block_length=4)
  with jax.default_matmul_precision("highest"):
    cached, whole = sampled(denoiser, params, cache="exact", **block), sampled(denoiser, params, **block)
  exact = on_cpu(functools.partial(sampled, dataclasses.replace(denoiser, mesh=None), cache="exact", **block),
                 jax.device_get(params))
  return {"cached": (unlike(cached, whole), 0), "from the CPU": (unlike(cached, exact), 0)}


def check_scores():
  """Fused scores and their gradients, against float64 of whole logits."""
  rng = np.random.default_rng(2)
  hidden, weight = rng.normal(size=(64, 256)), 0.2 * rng.normal(size=(256, 5000))
  targets, k = rng.integers(0, 5000, 64), 64

  def found(dtype):
    def loss(hidden, weight):
      scores = token_scores(LMHead(weight), hidden, jnp.asarray(targets), Scoring(k))
      return jnp.sum(jnp.sin(scores.plain)), scores
    inputs = jnp.asarray(hidden, dtype), jnp.asarray(weight, dtype)
    (_, scores), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*inputs)
    return (scores.plain, scores.centered), gradients, [np.asarray(x, np.float64) for x in inputs]

  def exact(hidden, weight):
    logits = hidden @ weight
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    rows = np.arange(64)
    centered = logits[rows, targets] - np.sort(logits, axis=1)[:, -k:].mean(1)
    plain = np.log(shares[rows, targets])
    by_logits = -shares * np.cos(plain)[:, None]
    by_logits[rows, targets] += np.cos(plain)
    return (plain, centered), (by_logits @ weight.T, hidden.T @ by_logits)

  told = {}
  for dtype, precision, most in (("float32", "highest", 1e-5), ("bfloat16", None, 1e-2)):
    with jax.default_matmul_precision(precision):
      scores, gradients, inputs = found(dtype)
    expected = exact(*inputs)
    told |= {dtype: (off(scores, expected[0]), most), f"{dtype} gradient": (off(gradients, expected[1]), most)}
  return told


def check_experts():
  """The grouped product of a mixture of experts, forward and backward, against a loop over experts."""
  count, width, inner = 8, 256, 128
  config = ExpertsConfig(count=count, per_token=3, size=inner, normalised=True)
  rng = np.random.default_rng(3)
  shapes = {"router": (width, count), "expert_gate": (count, width, inner), "expert_up": (count, width, inner),
            "expert_down": (count, inner, width)}
  weights = {name: np.asarray(rng.normal(size=shape) / 16, np.float32) for name, shape in shapes.items()}
  x = np.asarray(rng.normal(size=(BATCH, 65, width)), np.float32)

  def loop(x, weights):
    chosen, shares = experts.route(x, weights["router"], None, config)
    total = 0
    for expert in range(count):
      gate, up, down = (weights[name][expert] for name in ("expert_gate", "expert_up", "expert_down"))
      share = jnp.sum(jnp.where(chosen == expert, shares, 0), axis=-1, keepdims=True)
      total += share * ((jax.nn.silu(x @ gate) * (x @ up)) @ down)
    return total

  grouped = lambda x, weights: experts.mixture(x, weights, {}, config, None, None)
  both = lambda function: jax.jit(jax.value_and_grad(
    lambda x, weights: jnp.sum(jnp.sin(function(x, weights).astype(jnp.float32))), (0, 1)))
  exact = on_cpu(both(loop), x, weights)
  with jax.default_matmul_precision("highest"):
    whole = both(grouped)(x, weights)
  half = jax.jit(grouped)(jnp.asarray(x, jnp.bfloat16), weights)
  return {"float32": (off(whole, exact), 1e-4), "bfloat16": (off(half, on_cpu(jax.jit(loop), x, weights)), 3e-2)}


def check_update():
  """An update of an adapter: in full float32 the CPU's loss, gradient norm and weights; in bfloat16 near them."""
  rng = np.random.default_rng(4)
  tokens = np.concatenate([prompts()[0], rng.integers(0, 4900, (BATCH, LENGTH))], axis=1)
  attended = np.concatenate([prompts()[1], np.ones((BATCH, LENGTH), bool)], axis=1)
  masks, advantages = rng.random((BATCH, 2, LENGTH)) < 0.5, rng.normal(size=BATCH).astype(np.float32)
  objective, optimizer = GdsdTlc(beta=0.1), make_optimizer(OptimizerConfig(), updates=1)

  def update(dtype, device):
    mesh = make_mesh(1, 1, 1, [device])
    denoiser = Denoiser(CONFIG, dtype, remat="full", mesh=mesh)
    params = jax.device_put(jax.device_get(model()[1]), device)
    denoiser, params = add_adapter(denoiser, params, LoraConfig(8, 16.0, 0.0), jax.random.key(1))
    factors = params["lora"].values()
    for number, factor in enumerate(factors):
      factor["b"] = 0.02 * jax.random.normal(jax.random.key(number), factor["b"].shape)
    state = init_state(denoiser, jax.device_put(params, device), optimizer, 0, True, mesh)
    rollouts = jax.device_put(ScoringBatch(tokens, attended, Views(masks, coupled=True)), device)
    static = dict(denoiser=denoiser, objective=objective, accumulation=2)
    old = score_rollouts(state.student_params, rollouts, **static)
    ref = score_rollouts(state.reference_params, rollouts, **static)
    row = jax.device_put(advantages, device)
    scored = ScoredRollouts(
      tokens=rollouts.tokens[:, PROMPT:], lengths=jnp.full(BATCH, LENGTH, jnp.int32), rewards=row, advantages=row,
      confidence=jnp.ones((BATCH, LENGTH)), group_size=2, views=rollouts.views, student=old, old=old, ref=ref)
    state, metrics = distillation_step(state, DistillationBatch(rollouts, scored), optimizer=optimizer, **static)
    return jax.device_get((old, {name: metrics[name] for name in ("loss", "grad_norm")}, state.params))

  cpu, device = jax.local_devices(backend="cpu")[0], jax.local_devices()[0]
  with jax.default_matmul_precision("highest"):
    with jax.default_device(cpu):
      exact = update("float32", cpu)
    whole = update("float32", device)
  half = update("bfloat16", device)
  return {"scores": (off(whole[0], exact[0]), 1e-5), "loss, norm": (off(whole[1], exact[1]), 1e-4),
          "weights": (off(whole[2], exact[2]), 1e-4), "bfloat16 scores": (off(half[0], exact[0]), 2e-2),
          "bfloat16 loss, norm": (off(half[1], exact[1]), 5e-2)}


CHECKS = {name.removeprefix("check_"): function for name, function in list(globals().items())
          if name.startswith("check_")}


def main(names) -> int:
  device, missed = jax.local_devices()[0], 0
  print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}", flush=True)
  for name in names or CHECKS:
    started = time.perf_counter()
    try:
      found = CHECKS[name]()
    except Exception:  # the others are worth knowing
      traceback.print_exc()
      found = {"failed": (1.0, 0)}
    misses = [what for what, (value, most) in found.items() if not value <= most]
    said = ", ".join(f"{what} {value:.1e} (at most {most:g})" for what, (value, most) in found.items())
    print(f"{name}: {said}{'  MISS: ' * bool(misses)}{', '.join(misses)}  [{time.perf_counter() - started:.1f} s]",
          flush=True)
    missed += bool(misses)
  return int(missed > 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
