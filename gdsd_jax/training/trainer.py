"""The steps of an RL run: rollouts, rewards, advantages, scores, updates."""

from collections.abc import Callable, Mapping, Sequence
import functools
import logging
import os
import re
from typing import Any

from etils import epath
import jax
from ml_collections import ConfigDict

from gdsd_jax.checks import require, require_seed
from gdsd_jax.diffusion.slots import batch_axis
from gdsd_jax.generation.held_out import evaluate
from gdsd_jax.generation.rollout import GradedCompletions, RewardError
from gdsd_jax.huggingface.tokenizer import chat_prompt
from gdsd_jax.parallel.mesh import whole_batch
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.data import ExampleStream
from gdsd_jax.runs.export import check_out, origin_of_run, write_model
from gdsd_jax.runs.files import local_folder, read_rows, run_folder, step_row
from gdsd_jax.runs.given import as_run_config, with_own
from gdsd_jax.runs.interruption import Interruption
from gdsd_jax.runs.loop import run_training, Training, TrainingError
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.progress import Progress
from gdsd_jax.runs.recipe_files import run_name
from gdsd_jax.runs.saved_config import open_workdir
from gdsd_jax.runs.state import sync_reference, TrainState
from gdsd_jax.tasks import Task
from gdsd_jax.training.callbacks import Callback
from gdsd_jax.training.group_filter import GroupFilter
from gdsd_jax.training.idle import IdleSteps
from gdsd_jax.training.kept_rollouts import KeptRollouts
from gdsd_jax.training.overlap import Overlap
from gdsd_jax.training.prepare import prepare
from gdsd_jax.training.report import announce, evaluation_row, Learning, numbers_of, rollout_metrics, show_rollouts
from gdsd_jax.training.updates import Updates

_log = logging.getLogger(__name__)


class Trainer(Training):
  """A run in its folder: `train`, then `evaluate`, `sample` and `save_pretrained` use what it has learnt.

  Args:
    config: a recipe, by name ("gdsd_math:tiny") or as `load_config` gives it, or a checked `RunConfig`.
    workdir: the run's folder, made if it is missing; the run that is there is gone on with by `train`. None is
      runs/RECIPE_PRESET for the name of a recipe, and otherwise runs/TASK.
    task: a `Task` in place of the recipe's.
    rewards: reward functions in place of the task's own rewards, see `get_task`.
    reward_weights: one for each of them.
    callbacks: told of what happens, see `Callback`.
    allow_changed_inputs: whether the run may go on with other weights, data or code than it was begun with.

  Raises ValueError or OSError, one line with the cause, before anything is compiled or overwritten.
  """

  def __init__(self, config: str | ConfigDict | RunConfig, workdir: epath.PathLike | None = None, *,
               task: Task | None = None, rewards: Sequence[str | Callable] = (), reward_weights: Sequence[float] = (),
               callbacks: Sequence[Callback] = (), allow_changed_inputs: bool = False):
    told = [name for name in vars(Callback) if name.startswith("after_")]
    listed = isinstance(callbacks, Sequence) and all(hasattr(each, name) for each in callbacks for name in told)
    require(listed, "callbacks", f"must be a list of gdsd_jax.Callback, not {callbacks!r:.80}")
    name = run_name(config) if isinstance(config, str) else None
    config = with_own(as_run_config(config), task, rewards, reward_weights)
    workdir = run_folder(workdir or epath.Path("runs") / (name or re.sub(r"\W+", "_", config.task.name)))
    open_workdir(workdir, config)
    self.config, self.workdir, start = config, workdir, prepare(config, workdir, allow_changed_inputs)
    self.callbacks, self._interruption = tuple(callbacks), Interruption()
    self.mesh, self.denoiser, self.sampler, self.held_out = start.mesh, start.denoiser, start.sampler, start.held_out
    self.optimizer, self.state, self.provenance = start.optimizer, start.state, start.provenance
    self.overlap = Overlap(self.sampler, ExampleStream(start.train, config.seed), config)
    self.updates = Updates(config, self.denoiser, self.optimizer, self.mesh)
    self.filter = GroupFilter(config, self.sampler)
    self.evaluate_every = config.eval.every
    self._idle, self._learning = IdleSteps(config.group_size), Learning()
    self._kept = KeptRollouts(config, self.sampler)
    self._failures = 0  # steps in a row that were skipped
    self._scored: GradedCompletions | None = None  # what the last step trained on, None if its rewards failed
    self._sync_reference = jax.jit(functools.partial(sync_reference, mix=config.distillation.reference_sync_mix))

  def train(self) -> None:
    """Runs or resumes the run. Raises as `run_training`."""
    with self._interruption:
      announce(self.config, self.state, self.mesh)
      run_training(self, self._interruption)

  def stop(self) -> None:
    """Ends `train` after the step under way, which is saved, by `Interrupted`."""
    self._interruption.ask()

  def evaluate(self) -> dict[str, float]:
    """What `generation.held_out.evaluate` finds on the validation problems, with the parameters as they are now.

    The random key is the same every time.
    """
    key, batch_size = jax.random.key(self.config.seed), self.config.eval.batch_size
    judged = self.config.eval.validation(self.config.sampler)
    return evaluate(self.sampler, self.state.student_params, self.held_out, key, batch_size, judged)

  def sample(self, prompts: Sequence[str | list[dict[str, str]]], seed: int = 0, **changes) -> list[str]:
    """A completion for each prompt, a user's text or a chat, with the parameters as they are now.

    `changes` are fields of the recipe's `SamplerConfig`, such as `temperature=0.0`; it has no slots unless they say so.
    Raises ValueError, one line, where prompts, the seed or a value does not fit.
    """
    require_seed("seed", seed)
    require(not isinstance(prompts, str) and len(prompts) > 0, "prompts",
            f"must be a list of texts or chats, at least one, not {prompts!r:.80}")
    generator, sampler = self.sampler.generator, self.sampler.with_config(**{"slots": None, **changes})
    chats = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    texts = [chat_prompt(generator.tokenizer, chat) for chat in chats]
    return generator.complete(self.state.student_params, texts, sampler.prompt_buckets, sampler.config,
                              jax.random.key(seed), whole_batch(len(texts), self.mesh, batch_axis(sampler.config)))[0]

  def save_pretrained(self, out: epath.PathLike, merged: bool = False, layout: str | None = None) -> None:
    """Writes the model as it is now with its tokenizer, or the adapter of a LoRA run unless `merged`.

    `layout` is as in `write_model`: what is written opens in transformers with nothing asked, or as "published" is.
    """
    out = local_folder("out", os.fspath(out))
    check_out(out, self.workdir, self.config.model, merged)
    made = {**self.config.as_given, "step": int(self.state.step)}
    origin = origin_of_run(self.workdir, self.config.model, merged)
    write_model(out, self.denoiser, self.state.student_params, self.config.model, merged, layout, made, origin)

  def saved(self) -> tuple[TrainState, dict[str, int]]:
    values = {"data_position": self.overlap.position, "failures": self._failures,
              "remembered": sorted(self.sampler.needs)}
    return self.state.replace(ahead=self.overlap.saved()), values

  def laid_out(self, state: TrainState, values: Mapping[str, Any]) -> TrainState:
    if state.ahead is None:
      return state
    remembered = values.get("remembered", self.config.learnt)  # earlier versions remembered no more
    return state.replace(ahead=self.overlap.laid_out(remembered))

  def restore(self, state: TrainState, values: Mapping[str, Any]) -> None:
    self.overlap.restore(values["data_position"], state.ahead)
    self.state, self._failures = state.replace(ahead=None), values.get("failures", 0)
    for row in read_rows(self.workdir / "metrics.jsonl", step_row):
      if row["step"] <= int(self.state.step):
        self._learning.see(row)

  def open_files(self, last_step: int) -> None:
    self._kept.open(self.workdir, last_step)

  def write_files(self) -> None:
    self._kept.write()

  def begin(self, watch: Stopwatch) -> None:
    with watch.phase("rollout"):
      self.overlap.begin(self.state)

  def step(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    """One iteration. If it fails it is skipped, and too many of these in a row end the run."""
    updates, cause = self.config.distillation.num_iterations, None
    self.sampler.task.begin_step(number, self.config.steps)
    try:
      row, self._scored = self.iterate(watch)
      self._idle.see(number, self._scored)
      if row["skipped"] == updates:
        cause = f"no update had a finite loss and gradient (loss {row['loss']})"
    except RewardError as error:
      row, self._scored, cause = {"reward": None, "loss": None, "skipped": updates}, None, str(error)
    self._failures, self.failure = self._failures + 1 if cause else 0, cause
    if row["skipped"]:
      _log.info("step %d: skipped %d of %d updates: %s", number, row["skipped"], updates,
                cause or "their gradient is not finite")
    if self._failures >= self.config.max_skipped_steps:
      raise TrainingError(
        f"giving up at step {number}: {self._failures} steps in a row were skipped; the last: {cause}", row
      )
    for callback in self.callbacks:
      callback.after_updates(self, number, row)
    return row

  def iterate(self, watch: Stopwatch) -> tuple[dict[str, float], GradedCompletions]:
    """Samples, rewards, and updates `distillation.num_iterations` times. Raises RewardError before any update."""
    distillation = self.config.distillation
    with watch.phase("rollout"):
      key, mask_key, sampled = self.overlap.take(self.state)
      self.state = self.state.replace(key=key, step=self.state.step + 1)
      jax.block_until_ready(sampled.parts[0])
    with watch.phase("reward"):
      scored = self.sampler.grade(sampled)
    for callback in self.callbacks:
      callback.after_rollouts(self, int(self.state.step), scored)
    row, chosen = rollout_metrics(scored, self.config.group_size, self.config.sampler.slots), scored
    if distillation.filters_groups:
      keys = iter(jax.random.split(jax.random.fold_in(key, 1), max(distillation.redraws, 1)))
      with watch.phase("rollout"):
        chosen, told = self.filter(scored, lambda: self.sampler.grade(self.overlap.more(self.state, next(keys))))
      row |= told
    self.state, updates = self.updates(self.state, chosen, mask_key, watch)
    self._kept.note(int(self.state.step), chosen)
    sync_every = distillation.reference_sync_every
    if self.state.reference is not None and sync_every and int(self.state.step) % sync_every == 0:
      self.state = self.state.replace(reference=self._sync_reference(self.state.reference, self.state.params))
    return {**row, **updates}, scored

  def evaluation(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    """Held-out accuracy and rewards; the same problems and random key every time; none if the task's grader raises."""
    if number % self.config.eval.every and number < self.config.steps:
      return {}
    with watch.phase("evaluate"):
      row = evaluation_row(number, self.evaluate, self._learning)
    for callback in self.callbacks:
      callback.after_evaluation(self, number, row)
    if number == 0:  # there are no rollouts before the first step, whose reward its row would have
      row = {"reward": row.get("eval/sampled_reward", row.get("eval/reward")), **row}
      self._learning.see({"step": 0, **row})
    return row

  def show(self, row: Mapping[str, Any], progress: Progress) -> None:
    if self._scored is None:
      return
    self._learning.see(row)
    progress.show(row["step"], *numbers_of(row, self._learning.gain))
    every = self.config.log.rollouts_every
    if every and (row["step"] - 1) % every == 0:
      show_rollouts(self._scored)
