"""Training on the enumerable problem by any objective, through the updates of a real run, and its true reward."""

import ast
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gdsd_jax.checks import require
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.exact.enumeration import Completions, enumerate_completions
from gdsd_jax.exact.problem import Problem
from gdsd_jax.generation.rollout import GradedCompletions, PendingCompletions
from gdsd_jax.objectives.own import try_out
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.given import set_fields
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.optimizer import clipped_adamw, only_finite, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.training.updates import drawing_of, Updates

# What the length of these completions asks for; everything else is each objective's own default.
FIELDS = {
  # The official 4e-4 presumes smaller updates, see configs/gdsd_math.py.
  "gdsd": {"epsilon": 0.2},
  "trace_rl": {"shrink": 2},
  "d2": {"segments": 3},
  "agrpo": {"num_mc": 6},  # as many as there are steps
  "bgpo": {"num_mc": 6},
}

@dataclasses.dataclass(frozen=True)
class Budget:
  """How long each objective trains."""

  steps: int = 40
  group_size: int = 16  # rollouts of each of the V prompts in a step
  num_iterations: int = 2  # updates on the rollouts of a step


class Found(NamedTuple):
  """Exact numbers of a policy, means over the prompts."""

  reward: float  # expected under the sampler
  entropy: float  # of the completions, nats
  kl: float  # of the completions from those of the start, nats

  @classmethod
  def of(cls, problem: Problem, now: np.ndarray, start: np.ndarray) -> "Found":
    """From probabilities of completions float64[V, N]."""
    with np.errstate(divide="ignore", invalid="ignore"):
      logs = np.where(now > 0, np.log(now), 0.0)
      of_start = np.where(now > 0, np.log(start), 0.0)
    mean = lambda values: float(np.mean(np.sum(now * values, axis=1)))
    return cls(mean(problem.rewards), -mean(logs), mean(logs - of_start))


def every_completion(problem: Problem, params, sampler: SamplerConfig) -> list[Completions]:
  """The exact distribution of completions to each prompt."""
  return [enumerate_completions(problem.denoiser, params, prompt, sampler) for prompt in problem.prompts]


def probabilities(problem: Problem, params, sampler: SamplerConfig) -> np.ndarray:
  """float64[V, N] of completions to each prompt."""
  return np.stack([each.probability for each in every_completion(problem, params, sampler)])


def parse_objective(text: str) -> tuple[str, dict[str, Any]]:
  """("gdsd", {"psi": 0.4}) of "gdsd:psi=0.4"; fields are parted by colons. Raises ValueError for other texts."""
  name, *settings = text.split(":")
  fields = {}
  for setting in settings:
    field, equals, value = setting.partition("=")
    require(bool(field and equals and value), "--objectives", f"{text!r} must be NAME or NAME:FIELD=VALUE:…")
    try:
      fields[field] = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it raises
      fields[field] = value  # a word
  return name, fields


class Trained:
  """An objective, as `parse_objective` has it, on the problem. What is compiled serves all seeds and learning rates.

  Raises ValueError where the objective does not fit the problem.
  """

  def __init__(self, problem: Problem, objective: str, budget: Budget):
    self.problem, self.budget, self.config = problem, budget, _config(problem, budget, *parse_objective(objective))
    drawing = drawing_of(self.config, problem.prompts.shape[1])
    try_out(self.config.objective, self.config.rollouts_per_step, budget.group_size, problem.length, drawing)
    self.mesh = make_mesh(1, 1, 1, jax.local_devices()[:1])
    self.optimizer = optimizer_with_rate(self.config.optimizer)
    self.updates = Updates(self.config, problem.denoiser, self.optimizer, self.mesh)

  @property
  def sampler(self) -> SamplerConfig:
    return self.config.sampler

  def __call__(self, params, rate: float, seed: int):
    """The parameters after training from `params`, which are left as they are."""
    denoiser, objective = self.problem.denoiser, self.config.objective
    params = jax.tree.map(jnp.copy, params)
    state = init_state(denoiser, params, self.optimizer, seed, objective.needs_reference, self.mesh)
    state.opt_state.inner_state.hyperparams["rate"] = jnp.float32(rate)
    prompt = np.repeat(self.problem.prompts, self.budget.group_size, axis=0)
    mask, rows = np.ones(prompt.shape, bool), np.arange(len(prompt)) // self.budget.group_size
    for _ in range(self.budget.steps):
      key, of_rollouts, of_updates = jax.random.split(state.key, 3)
      rollout = sample(denoiser, state.student_params, prompt, mask, of_rollouts, self.sampler,
                       objective.needs - {"steps"}).only(objective.needs)
      tokens = np.asarray(rollout.tokens)
      rewards = self.problem.rewards[rows, self.problem.space.number(tokens)].astype(np.float32)
      pending = PendingCompletions((), jnp.asarray(prompt), jnp.asarray(mask), rollout, (), 0.0)
      graded = GradedCompletions(
        sampled=pending, sampling_seconds=0.0, completions=[], ids=tokens.tolist(), rewards={"exact": rewards},
        accuracy=np.floor(rewards), accuracy_lenient=np.floor(rewards), metrics={})
      state, row = self.updates(state.replace(key=key), graded, of_updates, Stopwatch())
      require(not row["skipped"], "--objectives", f"{objective.name} has a loss or gradient that is not finite")
    return state.params


def _config(problem: Problem, budget: Budget, name: str, fields: dict[str, Any]) -> RunConfig:
  config = base_config()
  config.update_from_flattened_dict({
    "steps": budget.steps, "group_size": budget.group_size, "prompts_per_step": problem.tokens,
    "objective.name": name, "objective.num_iterations": budget.num_iterations, "optimizer.weight_decay": 0.0,
    "sampler.prompt_buckets": (1,), "sampler.completion_length": problem.length,
    "sampler.steps": problem.denoising_steps, "sampler.block_length": problem.block_length,
    "sampler.temperature": problem.temperature, "log.tensorboard": False,
  })
  set_fields(config, {f"objective.{field}": value for field, value in {**FIELDS.get(name, {}), **fields}.items()})
  if name == "just_grpo":  # whose likelihoods are those of a sampler that goes from left to right
    config.sampler.block_length, config.sampler.steps = 1, problem.length
  return run_config(config)


@functools.cache
def optimizer_with_rate(config: OptimizerConfig) -> optax.GradientTransformation:
  """A run's optimizer with its learning rate in its state, so that one compiled step serves several."""
  return only_finite(optax.inject_hyperparams(functools.partial(clipped_adamw, config))(1.0))


def trained_reward(trained: Trained, params, rate: float, seed: int) -> dict[str, Any]:
  """What training from `params` does: the exact numbers before and after."""
  problem = trained.problem
  start = probabilities(problem, params, trained.sampler)
  after = probabilities(problem, trained(params, rate, seed), trained.sampler)
  return {"before": Found.of(problem, start, start)._asdict(), "after": Found.of(problem, after, start)._asdict()}
