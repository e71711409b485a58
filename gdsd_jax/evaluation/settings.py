"""What an evaluation is told twice: by a run's own config.json, and by the recipe and flags of the command."""

from collections.abc import Mapping
import logging
from typing import Any

from etils import epath

from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import flatten
from gdsd_jax.runs.saved_config import read_saved

_log = logging.getLogger(__name__)

# Fields of the sampler that only rollouts have, and the evaluation's own field in the place of each.
_ROLLOUTS_ONLY = {
  "sampler.completion_length": "eval.lengths", "sampler.steps": "eval.steps_per_token",
  **{f"sampler.{name}": f"eval.{name}" for name in (
    "temperature", "top_p", "top_k", "alg_temp", "remasking", "cfg_scale", "block_length", "prompt_buckets")},
}
_BLOCKS = "sampler.block_length"
_VALIDATION = ("eval.every", "eval.num_examples")  # of training alone
_EVALUATED = ("task.", "eval.", "sampler.kind", "sampler.eps", "sampler.cache", "sampler.threshold", "sampler.factor")


def warn_of_flags(flags: Mapping[str, Any], kind: str, workdir: epath.Path | None) -> None:
  """Warns of --config flags that are without effect in an evaluation.

  Args:
    flags: path -> value of each --config.path=value.
    kind: that of the sampler; dream's evaluation has the blocks of its rollouts.
    workdir: the run that is evaluated, whose own fields need no word; None for no run.
  """
  saved = flatten(read_saved(workdir)) if workdir is not None else {}
  for path, value in flags.items():
    value = list(value) if isinstance(value, tuple) else value
    if path in _ROLLOUTS_ONLY and saved.get(path) != value and not (path == _BLOCKS and kind == "dream"):
      _log.warning("--config.%s is of rollouts, and without effect here: evaluations have --config.%s", path,
                   _ROLLOUTS_ONLY[path])


def tell_differences(config: RunConfig, flags: Mapping[str, Any], recipe: str, workdir: epath.Path) -> None:
  """Says in which settings an evaluation by another recipe than the run's own differs from that, flags apart."""
  saved, given = flatten(read_saved(workdir)), flatten(config.as_given)
  differing = [path for path in sorted(saved.keys() & given.keys())
               if path.startswith(_EVALUATED) and path not in {*flags, *_VALIDATION} and saved[path] != given[path]]
  if differing:
    _log.info("evaluated by %s, and so with another %s than the run's own, which holds without --config", recipe,
              ", ".join(differing))
