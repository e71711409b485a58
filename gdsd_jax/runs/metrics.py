"""Where a run's numbers go: metrics.jsonl, TensorBoard, W&B, reward.png and lines on the screen."""

from collections.abc import Callable, Mapping
import contextlib
import io
import logging
import math
import sys
import time

from absl import logging as absl_logging
from etils import epath

from gdsd_jax import screen
from gdsd_jax.parallel.processes import is_first_process
from gdsd_jax.runs import weights_and_biases
from gdsd_jax.runs.files import JsonLines, step_row, write_whole
from gdsd_jax.runs.tensorboard import EventFile
from gdsd_jax.waiting import waiting

_log = logging.getLogger(__name__)

_PHASES = {"rollout": "sampling completions", "reward": "computing rewards", "score": "scoring completions",
           "update": "updating the parameters"}  # what an evaluation is at, it says itself


def log_to_stdout(stream=None) -> None:
  """Shows this package's messages as plain lines on standard output; below them, in a terminal, what is waited for.

  A `stream` takes them where standard output is for other things. Among several processes the first shows them: what it
  warns of the others would warn of, too.
  """
  if is_first_process():
    screen.open_line()
  handler = logging.StreamHandler(stream or sys.stdout)
  handler.setFormatter(screen.HarmlessFormatter())
  logger = logging.getLogger("gdsd_jax")
  logger.handlers[:] = [handler]
  logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)
  logger.propagate = False
  absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax and TFDS tell every step they take, and errors twice


class MetricsWriter:
  """Appends one row a step to metrics.jsonl, and the same numbers to TensorBoard and W&B; redraws reward.png.

  Opening it drops the rows after `last_step`: a resumed run writes them again. Of several processes only the first
  writes anything. A row that cannot be written raises OSError; where a picture of the rows cannot, for want of space
  say, that is told once and the run goes on.
  """

  def __init__(self, workdir: epath.Path, last_step: int, config):
    self._file = self._events = self._wandb = None
    self._for_tensorboard = []  # rows that it has not been given
    if not is_first_process():
      return
    if config.log.wandb_project:
      self._wandb = weights_and_biases.open_run(workdir, config, resumed=last_step >= 0)
    self._file = JsonLines(workdir / "metrics.jsonl", lambda row: row["step"] <= last_step, step_row)
    self._plot_path, self._plot_seconds, self._plotted = workdir / "reward.png", config.log.plot_seconds, -math.inf
    self._tensorboard_folder = workdir / "tensorboard" if config.log.tensorboard else None
    self._first_step = last_step + 1

  def write(self, row: Mapping[str, float | int | str]) -> None:
    """Writes one row; it must have "step". Returns once it is on the disk."""
    if self._file is None:
      return
    # Not-a-number is no JSON.
    row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    self._file.append([row])
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
    self._for_tensorboard.append((row["step"], numbers))
    if self._wandb and not _told("W&B", lambda: self._wandb.log(numbers, step=row["step"])):
      self._wandb = None

  def draw(self) -> None:
    """Gives TensorBoard the rows that it has not, and redraws reward.png if it is due: it need not be waited for."""
    if self._file is None:
      return
    if self._for_tensorboard:
      self._feed_tensorboard()
    if time.monotonic() - self._plotted > self._plot_seconds:
      self.plot()

  def _feed_tensorboard(self) -> None:

    def feed():
      self._events = self._events or EventFile(self._tensorboard_folder, self._first_step)
      for step, numbers in self._for_tensorboard:
        self._events.write(step, numbers)

    if self._tensorboard_folder is not None and not _told(str(self._tensorboard_folder), feed):
      self._tensorboard_folder = self._events = None
    self._for_tensorboard.clear()

  def plot(self) -> None:
    """Draws reward.png from all rows so far, if they tell a reward: supervised training has none."""
    self._plotted = time.monotonic()
    if self._file is not None and any("reward" in row for row in self._file.rows):
      if not _told(str(self._plot_path), lambda: plot_reward(self._file.rows, self._plot_path)):
        self._plot_seconds = math.inf

  def close(self) -> None:
    """Ends what is written to TensorBoard and W&B."""
    if self._for_tensorboard:
      self._feed_tensorboard()
    if self._events:
      _told(str(self._tensorboard_folder), self._events.close)
    if self._wandb:
      _told("W&B", self._wandb.finish)


def _told(what: str, act: Callable[[], None]) -> bool:
  """Calls `act`, and says whether it succeeded: the run's rows and checkpoints matter more than pictures of them."""
  try:
    act()
    return True
  except Exception as error:  # libraries raise many kinds
    cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
    _log.warning("%s: cannot be written (%s); the run goes on, and metrics.jsonl has all numbers", what, cause)
    return False


def plot_reward(rows, path: epath.Path, window: int = 10) -> None:
  """Draws the sampled reward of each step, its running mean, and the accuracy of the evaluations."""
  from matplotlib.figure import Figure  # not pyplot, whose backend is that of the program or notebook around us

  sampled = [(row["step"], row["reward"]) for row in rows if row["step"] > 0 and row.get("reward") is not None]
  evaluated = [(row["step"], row["eval/accuracy"]) for row in rows if "eval/accuracy" in row]
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  if sampled:
    steps, rewards = zip(*sampled)
    means = [sum(rewards[max(0, i + 1 - window):i + 1]) / min(window, i + 1) for i in range(len(rewards))]
    axes.plot(steps, rewards, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(steps, means, color="tab:blue", label=f"reward of sampled rollouts (mean of {window} steps)")
  if evaluated:
    axes.plot(*zip(*evaluated), "o--", color="tab:orange", label="greedy accuracy on held-out problems")
  shown = [value for _, value in [*sampled, *evaluated] if value is not None and math.isfinite(value)]
  axes.set(xlabel="step", ylabel="reward, accuracy")
  if min(shown, default=0) >= 0:  # the axis begins at 0, unless a reward lies below it
    axes.set_ylim(0, None)
  axes.grid(alpha=0.3)
  if sampled or evaluated:
    axes.legend(loc="lower right")
  image = io.BytesIO()
  figure.savefig(image, format="png", dpi=120)
  write_whole(path, image.getvalue())


class Stopwatch:
  """Seconds that the host spent in each phase of a step."""

  def __init__(self):
    self.seconds, self._started, self._cpu = {}, time.monotonic(), time.process_time()

  @contextlib.contextmanager
  def phase(self, name: str):
    """Times what is done within `with`, and adds it to the phase. In a terminal it is told, if it takes long."""
    started = time.monotonic()
    told = waiting(_PHASES[name], logged_after=math.inf, last_word=False) if name in _PHASES else None
    with told or contextlib.nullcontext():
      yield
    self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

  def metrics(self) -> dict[str, float]:
    """seconds/PHASE of each phase and seconds/step of all since the start; empty where no phase was timed.

    And seconds/cpu, of all threads of this process: what a step costs a CPU that others use, too.
    """
    if not self.seconds:
      return {}
    phases = {f"seconds/{name}": seconds for name, seconds in self.seconds.items()}
    cpu = time.process_time() - self._cpu
    return {**phases, "seconds/step": time.monotonic() - self._started, "seconds/cpu": cpu}
