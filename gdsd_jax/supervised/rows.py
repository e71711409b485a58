"""What a step of fine-tuning and of pretraining tells: its row of metrics.jsonl, and its line on the screen."""

from collections.abc import Mapping
import math
from typing import Any

import jax

from gdsd_jax.runs.digits import significant
from gdsd_jax.runs.loop import TrainingError
from gdsd_jax.runs.optimizer import last_rate, OptimizerConfig
from gdsd_jax.runs.state import TrainState


def row_of(number: int, metrics: Mapping[str, Any], config: OptimizerConfig, steps: int, state: TrainState):
  """A step's numbers, as floats by name. Raises TrainingError, one line, where one of them is not finite."""
  row = {name: float(value) for name, value in jax.device_get(metrics).items()}
  for name, value in row.items():
    if not math.isfinite(value):
      raise TrainingError(f"step {number}: {name} is {value}; lower optimizer.learning_rate", row)
  return {**row, "learning_rate": last_rate(config, steps, state.opt_state)}


def numbers_of(row: Mapping[str, Any], share: str = "masked_accuracy") -> str:
  """What a line of progress tells of a step: its loss, and a share by its name in the row."""
  return f"loss {significant(row['loss'])}  {share.replace('_', ' ')} {row[share]:.3f}"
