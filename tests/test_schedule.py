"""The learning rate over a run: closed forms, what the optimizer takes, and what is told of it."""

import math

import jax.numpy as jnp
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


def rates_of(config):
  """The rate that each update of a run takes: AdamW moves by it where every gradient is 1."""
  optimizer = make_optimizer(config, UPDATES)
  params = {"x": jnp.ones(())}
  state, rates = optimizer.init(params), []
  for _ in range(UPDATES):
    moved, state = optimizer.update({"x": jnp.ones(())}, state, params)
    rates.append(-float(moved["x"]))
    assert last_rate(config, UPDATES, state) == pytest.approx(rates[-1], rel=1e-4, abs=1e-9)
  return rates


@pytest.mark.parametrize("fields, formula", [
  ({}, {"schedule": "constant"}),
  ({"warmup_steps": 5}, {"schedule": "constant", "warmup": 5}),
  ({"warmup_ratio": 0.21}, {"schedule": "constant", "warmup": 5}),
  ({"schedule": "linear"}, {"schedule": "linear"}),
  ({"schedule": "linear", "warmup_steps": 4, "final_share": 0.25}, {"schedule": "linear", "warmup": 4, "final": 0.25}),
  ({"schedule": "cosine", "final_share": 0.1}, {"schedule": "cosine", "final": 0.1}),
  ({"schedule": "cosine", "warmup_ratio": 0.2}, {"schedule": "cosine", "warmup": 4}),
])
def test_the_optimizer_moves_by_the_rate_of_the_formula(fields, formula):
  expected = [expected_rate(update, **formula) for update in range(UPDATES)]
  assert rates_of(config_of(**fields)) == pytest.approx(expected, rel=1e-4, abs=1e-9)


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


def test_an_update_that_is_left_out_counts_for_no_rate():
  config = config_of(schedule="linear")
  optimizer, params = make_optimizer(config, UPDATES), {"x": jnp.ones(())}
  state = optimizer.init(params)
  for gradient in (1.0, math.nan, 1.0):
    _, state = optimizer.update({"x": jnp.asarray(gradient)}, state, params)
  assert last_rate(config, UPDATES, state) == pytest.approx(expected_rate(1, "linear"))
