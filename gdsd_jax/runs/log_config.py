"""What the screen and other programs see of a run: section `log`."""

import dataclasses
import importlib.util

from gdsd_jax.checks import require, require_at_least
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.objectives.objective import Objective


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What the screen and other programs see of a run; section `log`."""

  every: int = 1  # iterations between lines on the screen
  rollouts_every: int = 50  # iterations between printed rollouts; 0: never
  # Iterations between those whose rollouts are kept in WORKDIR/rollouts.jsonl (docs/runs.md); 0: none are.
  keep_every: int = 10
  keep_groups: int = 2  # at most so many groups of an iteration, the first ones
  # Size of that file at most. Where it would be larger, every second iteration in it is dropped, and from then on half
  # as many are kept.
  keep_megabytes: float = 16.0
  # Whether a step's row tells the log-probability with which its tokens were drawn beside the ELBO's estimate
  # (docs/metrics.md).
  trajectory: bool = False
  plot_seconds: float = 20.0  # least time between drawings of reward.png
  tensorboard: bool = True  # whether the numbers of metrics.jsonl go to WORKDIR/tensorboard, too
  wandb_project: str = ""  # Weights & Biases, when a project is named

  def __post_init__(self):
    require_at_least(self, "log.", every=1, plot_seconds=0, rollouts_every=0, keep_every=0, keep_groups=1)
    require(self.keep_megabytes > 0, "log.keep_megabytes", f"must be positive, not {self.keep_megabytes}")
    installed = not self.wandb_project or importlib.util.find_spec("wandb") is not None
    require(installed, "log.wandb_project", "wandb is not installed; pip install 'gdsd_jax[wandb]'")

  def check_without_rollouts(self) -> None:
    """Raises ValueError, one line, where something is set of rollouts, which runs of other kinds than RL have not."""
    require(not self.trajectory, "log.trajectory", "must be False: only RL samples what it learns")
    for name in ("rollouts_every", "keep_every", "keep_groups", "keep_megabytes"):
      value, usual = getattr(self, name), getattr(LogConfig, name)
      require(value in (0, usual), f"log.{name}",
              f"{value} has no effect here: only RL samples what it learns; leave it at {usual}")

  def check_trajectory(self, objective: Objective, sampler: SamplerConfig) -> None:
    """Raises ValueError, one line, where `trajectory` cannot be told of an RL run."""
    if not self.trajectory:
      return
    name, scoring = objective.name, objective.scoring
    require(not sampler.is_own, "log.trajectory",
            f"must be False with {sampler.kind}: only samplers of ours tell the log-probability of what they draw")
    require(not sampler.edits, "log.trajectory", "must be False with sampler.editing_threshold: what was replaced has"
            " been drawn, too, and is not remembered")
    require(sampler.temperature > 0, "log.trajectory",
            "must be False with sampler.temperature=0, at which nothing is drawn")
    require("predictions" not in objective.needs, "log.trajectory",
            f"must be False with {name}, which scores predictions and not completions")
    require(scoring.with_plain or not scoring.center_gradient, "log.trajectory",
            f"must be False with {name} at objective.beta=0, which scores no log-probabilities")
