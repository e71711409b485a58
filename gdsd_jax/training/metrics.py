"""Where a run's numbers go: metrics.jsonl, TensorBoard, W&B, reward.png and lines on the screen."""

import logging
import sys

from absl import logging as absl_logging


def log_to_stdout() -> None:
  """Shows this package's messages as plain lines on standard output, in a terminal or a log file alike."""
  handler = logging.StreamHandler(sys.stdout)
  handler.setFormatter(logging.Formatter("%(message)s"))
  logger = logging.getLogger("gdsd_jax")
  logger.handlers[:] = [handler]
  logger.setLevel(logging.INFO)
  logger.propagate = False
  absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax and TFDS tell every step they take
