"""The learning rate over a run: closed forms, what the optimizer takes, and what is told of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gdsd_jax.runs.optimizer import last_rate, learning_rate, make_optimizer, OptimizerConfig

UPDATES, RATE = 20, 1e-2


def config_of(**fields):
  return OptimizerConfig(**{"learning_rate": RATE, "weight_decay": 0.0, **fields})


def expected_rate(update, schedule, warmup=0, final=0.0):
  """The rate of an update, counted from 0, by the formula."""
  if update < warmup:
    return RATE * update / warmup
  done = min((update - warmup) / (UPDATES - warmup), 1)
  left = {"constant": 1, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]
  return RATE * (final + (1 - final) * left)


@pytest.mark.parametrize("fields, formula", [
  ({"warmup_steps": 5}, {"schedule": "constant", "warmup": 5}),
  ({"warmup_ratio": 0.21}, {"schedule": "constant", "warmup": 5}),
  ({"schedule": "linear"}, {"schedule": "linear"}),
  ({"schedule": "linear", "warmup_steps": 4, "final_share": 0.25}, {"schedule": "linear", "warmup": 4, "final": 0.25}),
  ({"schedule": "cosine", "final_share": 0.1}, {"schedule": "cosine", "final": 0.1}),
  ({"schedule": "cosine", "warmup_ratio": 0.2}, {"schedule": "cosine", "warmup": 4}),
])
def test_rates_are_those_of_the_formula(fields, formula):
  expected = [expected_rate(update, **formula) for update in range(UPDATES)]
  np.testing.assert_allclose(learning_rate(config_of(**fields), UPDATES)(jnp.arange(UPDATES)), expected, rtol=1e-5)


def test_the_optimizer_moves_by_the_rate_that_is_told():
  """AdamW moves by the rate where every gradient is 1; an update that is left out counts for none."""
  config, params = config_of(schedule="linear", warmup_steps=2), {"x": jnp.ones(())}
  optimizer = make_optimizer(config, UPDATES)
  state, update, made = optimizer.init(params), jax.jit(optimizer.update), 0
  for gradient in (1.0, 1.0, 1.0, math.nan, 1.0):
    moved, state = update({"x": jnp.asarray(gradient)}, state, params)
    if math.isfinite(gradient):
      assert -float(moved["x"]) == pytest.approx(expected_rate(made, "linear", warmup=2), rel=1e-4)
      made += 1
    assert last_rate(config, UPDATES, state) == pytest.approx(expected_rate(made - 1, "linear", warmup=2), rel=1e-4)


def test_a_constant_rate_stays_the_number_itself():
  """A schedule, even a constant one, would be another program and another state."""
  assert learning_rate(config_of(), UPDATES) == RATE
  plain = optax.adamw(RATE).init({"x": jnp.ones(())})
  _, inner = make_optimizer(config_of(), UPDATES).init({"x": jnp.ones(())}).inner_state
  assert type(inner) is type(plain) and [type(part) for part in inner] == [type(part) for part in plain]


def test_equal_optimizers_are_one_object():
  """A compiled step is found again by it."""
  assert make_optimizer(config_of(), 10) is make_optimizer(config_of(), 20)
  cosine = config_of(schedule="cosine")
  assert make_optimizer(cosine, 10) is make_optimizer(config_of(schedule="cosine"), 10)
  assert make_optimizer(cosine, 10) is not make_optimizer(cosine, 20)
