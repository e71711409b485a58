"""The optimizer of every training: AdamW after a clip, and the schedule of its rate."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import optax

from gdsd_jax.checks import require, require_at_least, require_one_of

MOMENTS_DTYPES = ("float32", "bfloat16")
SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW after a clip of the gradient's global norm; section `optimizer`."""

  learning_rate: float = 1e-5  # the highest, after the warm-up
  # What follows a linear warm-up from 0: "constant", or a "cosine" or "linear" decay down to the run's last update.
  schedule: str = "constant"
  warmup_steps: int = 0  # updates of the warm-up
  warmup_ratio: float = 0.0  # or its share of all updates of the run, rounded up
  final_share: float = 0.0  # share of the rate that a decay ends at
  b1: float = 0.9  # decay of AdamW's first moment
  b2: float = 0.99  # and of its second
  weight_decay: float = 0.01  # AdamW's, of every trained weight, times the learning rate
  clip: float = 0.2  # global gradient norm
  # AdamW's first moment: bfloat16 saves 2 of the 8 bytes that both moments take of each trained parameter. The second
  # is float32 always: at b2 = 0.99 it moves by under 1 % an update, much of which bfloat16's 8 bits would lose.
  moments_dtype: str = "float32"
  accumulation: int = 1  # microbatches of each update

  def __post_init__(self):
    require_one_of("optimizer.moments_dtype", self.moments_dtype, MOMENTS_DTYPES)
    require_one_of("optimizer.schedule", self.schedule, SCHEDULES)
    require_at_least(self, "optimizer.", warmup_steps=0, accumulation=1, weight_decay=0)
    ratio, share = self.warmup_ratio, self.final_share
    require(0 <= ratio < 1, "optimizer.warmup_ratio", f"must lie in [0, 1), not {ratio}")
    require(not (ratio and self.warmup_steps), "optimizer.warmup_ratio",
            f"optimizer.warmup_steps says {self.warmup_steps} updates already; set one of them to 0")
    require(0 <= share <= 1, "optimizer.final_share", f"must lie between 0 and 1, not {share}")
    require(self.schedule != "constant" or not share, "optimizer.final_share",
            "a constant rate has none; set optimizer.schedule to cosine or linear")
    for name, value in (("learning_rate", self.learning_rate), ("clip", self.clip)):
      require(value > 0, f"optimizer.{name}", f"must be positive, not {value}")
    for name, value in (("b1", self.b1), ("b2", self.b2)):
      require(0 <= value < 1, f"optimizer.{name}", f"must lie in [0, 1), not {value}")

  @property
  def follows_length(self) -> bool:
    """Whether the rate of an update depends on how many the whole run makes."""
    return self.schedule != "constant" or self.warmup_ratio > 0

  def warmup(self, updates: int) -> int:
    """Updates of the warm-up in a run of `updates`."""
    return math.ceil(self.warmup_ratio * updates) if self.warmup_ratio else self.warmup_steps

  def check_length(self, updates: int) -> None:
    """Raises ValueError if a run of so many updates ends before its rate can decay."""
    warmup = self.warmup(updates)
    require(self.schedule == "constant" or warmup < updates,
            "optimizer.warmup_ratio" if self.warmup_ratio else "optimizer.warmup_steps",
            f"{warmup} updates leave none of the run's {updates} for the {self.schedule} decay")


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
  """AdamW after a global-norm clip, for a run of so many updates; those that are not finite are left out."""
  return _optimizer(config, updates if config.follows_length else None)


@functools.cache  # one object for equal configs: a compiled step is found again by it
def _optimizer(config: OptimizerConfig, updates: int | None) -> optax.GradientTransformation:
  return only_finite(clipped_adamw(config, learning_rate(config, updates)))


def clipped_adamw(config: OptimizerConfig, rate) -> optax.GradientTransformation:
  """AdamW after a global-norm clip, at a rate or schedule in the place of the config's."""
  dtype = None if config.moments_dtype == "float32" else config.moments_dtype  # None is that of the parameters
  adamw = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mu_dtype=dtype)
  return optax.chain(optax.clip_by_global_norm(config.clip), adamw)


def only_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimizer, which leaves out updates that are not finite."""
  # The loop gives up after a number of such updates in a row; optax itself must never let one through.
  return optax.apply_if_finite(optimizer, max_consecutive_errors=jnp.iinfo(jnp.int32).max)


def learning_rate(config: OptimizerConfig, updates: int | None) -> float | optax.Schedule:
  """The rate, or a function from the number of updates so far to that of the next. `updates`: of the whole run."""
  rate, warmup = config.learning_rate, config.warmup(updates)
  if config.schedule == "constant":
    return optax.linear_schedule(0.0, rate, warmup) if warmup else rate
  if config.schedule == "cosine":
    decay = optax.cosine_decay_schedule(rate, updates - warmup, alpha=config.final_share)
  else:
    decay = optax.linear_schedule(rate, rate * config.final_share, updates - warmup)
  return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), decay], [warmup]) if warmup else decay


def last_rate(config: OptimizerConfig, updates: int, opt_state) -> float:
  """The rate of the last update that was made, as the optimizer's state counts them; before the first, that of it."""
  rate = learning_rate(config, updates)
  if not callable(rate):
    return rate
  return float(rate(max(updates_made(opt_state) - 1, 0)))


def updates_made(opt_state) -> int:
  """Updates of the whole run so far whose gradient was finite, as the optimizer's state counts them."""
  return int(optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1])
