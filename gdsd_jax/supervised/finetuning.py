"""Supervised fine-tuning of a loaded model by masked diffusion, on the assistant's turns of chats."""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import logging
from pathlib import Path
from typing import Any, ClassVar

from etils import epath
import jax
import jax.numpy as jnp
import optax

from gdsd_jax.checks import require_positions
from gdsd_jax.compiling import compiling
from gdsd_jax.huggingface.adapter_modules import require_whole_modules
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.models.gradient_sums import added, with_sums
from gdsd_jax.objectives.load_balance import balance_loss, balanced_bias, load_metrics
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.parallel.processes import gather_json, is_first_process
from gdsd_jax.parallel.rows import fetch_whole, local_rows, spread
from gdsd_jax.runs.data import ExampleStream, warn_of_shared
from gdsd_jax.runs.digits import significant
from gdsd_jax.runs.export import check_layout, check_out, origin_of_run, write_model
from gdsd_jax.runs.fit import require_rows, require_split
from gdsd_jax.runs.interruption import Interruption
from gdsd_jax.runs.loop import run_training, Training
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.optimizer import make_optimizer
from gdsd_jax.runs.progress import Progress
from gdsd_jax.runs.provenance import check_inputs, provenance_of
from gdsd_jax.runs.routers import moved, said_of_routers
from gdsd_jax.runs.saved_config import open_workdir
from gdsd_jax.runs.state import init_state, TrainState
from gdsd_jax.runs.weights import load_model
from gdsd_jax.supervised.chats import batch_of, Fitting, read_chats
from gdsd_jax.supervised.config import FinetuningConfig, RouterConfig
from gdsd_jax.supervised.rows import numbers_of, row_of
from gdsd_jax.waiting import waiting

_log = logging.getLogger(__name__)


@functools.partial(
  jax.jit, static_argnames=("denoiser", "optimizer", "router", "prompt_length", "accumulation"),
  donate_argnames=("state",)
)
def _finetuning_step(state: TrainState, batch, *, denoiser, optimizer, router: RouterConfig, prompt_length: int,
                     accumulation: int):
  """One update on a batch of chats (`joined`), whose gradient is averaged over `accumulation` microbatches."""
  next_key, key = jax.random.split(state.key)
  has_experts = denoiser.config.experts is not None

  def loss_fn(params, total, part, key):
    noise_key, dropout_key = jax.random.split(key)
    options = {"prompt_length": prompt_length, "dropout_key": dropout_key, "with_load": has_experts}
    params = {**state.frozen, **with_sums(params, total)}
    loss, metrics = masked_cross_entropy(denoiser, params, noise_key, *part, **options)
    metrics = {"loss": loss, **metrics}
    if router.balance_coefficient:
      metrics["router/balance_loss"] = balance_loss(metrics["load"])
      loss += router.balance_coefficient * metrics["router/balance_loss"]
    return loss, metrics

  def accumulate(total, scanned):
    gradient, metrics = jax.grad(loss_fn, has_aux=True)(state.params, total, *scanned)
    return added(total, gradient), metrics

  parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  gradient, metrics = jax.lax.scan(accumulate, zeros, (parts, jax.random.split(key, accumulation)))
  gradient = moved(jax.tree.map(lambda g: g / accumulation, gradient), denoiser)
  metrics = jax.tree.map(functools.partial(jnp.mean, axis=0), metrics)
  metrics["grad_norm"] = optax.global_norm(gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, moved(updates, denoiser))
  if has_experts:
    load = metrics.pop("load")
    metrics |= load_metrics(load)
    if router.bias_rate:
      blocks = params["blocks"]
      blocks = {**blocks, "router_bias": balanced_bias(blocks["router_bias"], load, router.bias_rate)}
      params = {**params, "blocks": blocks}
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state, key=next_key), metrics


@functools.partial(jax.jit, static_argnames=("denoiser", "prompt_length"))
def _validation_loss(params, key, batch, *, denoiser, prompt_length: int):
  """(loss on a batch of chats (`joined`) in nats per token, how many tokens were learnt if it were trained on)."""
  loss, _ = masked_cross_entropy(denoiser, params, key, *batch, prompt_length=prompt_length)
  return loss, jnp.sum(batch[1])


def finetune(config: FinetuningConfig, workdir: epath.Path, out: Path, allow_changed_inputs: bool = False,
             layout: str | None = None, kind: "type[Finetuning] | None" = None) -> None:
  """Runs or resumes fine-tuning in `workdir` and writes the model, or adapter, to `out`. Raises as `run_training`.

  A run that is resumed with other weights or data than it was begun with is refused, unless that is allowed. `layout`
  is as in `write_model`; `kind` is the run's class, `Finetuning` on chats where it is None.
  """
  with Interruption() as interruption:
    training = (kind or Finetuning)(config, workdir, out, allow_changed_inputs)
    check_layout(layout, training.denoiser)
    run_training(training, interruption)
    params = training.state.params  # the adapter alone, if there is one
    if jax.process_count() > 1:
      params = fetch_whole(params)
    if is_first_process():
      origin = origin_of_run(workdir, config.model)
      write_model(out, training.denoiser, params, config.model, False, layout, config.as_given, origin)
    gather_json(None)  # nobody leaves before the model is written


class Finetuning(Training):
  """A fine-tuning run on chats: everything that its steps need, built and checked once."""

  examples: ClassVar[str] = "chats"  # what it learns from
  with_reference: ClassVar[bool] = False  # whether the model that it starts from is kept beside the one in training
  shown: ClassVar[str] = "masked_accuracy"  # the share that a line of progress tells

  def __init__(self, config: FinetuningConfig, workdir: epath.Path, out: Path, allow_changed_inputs: bool = False):
    self.config, self.workdir = config, workdir
    self.mesh = make_mesh(**vars(config.mesh))
    microbatch = config.batch_size // config.optimizer.accumulation
    require_rows(self.mesh, "batch", "batch_size / optimizer.accumulation", microbatch, self.examples)
    buckets = config.data.prompt_buckets, "data.completion_buckets", config.data.completion_buckets
    require_split(self.mesh, "data.prompt_buckets", *buckets)
    check_out(out, workdir, config.model)
    open_workdir(workdir, config)
    config.router.check_model(config.model, config.model.architecture)
    if config.model.lora is not None:  # which is written when the run is done
      require_whole_modules(config.model.architecture, config.model.lora.leaves)
    self.denoiser, params = load_model(config.model, config.seed, self.mesh)
    if said := said_of_routers(self.denoiser):
      _log.info("%s", said)
    tokenizer = load_tokenizer(config.model.folder, self.denoiser.config)
    longest = config.data.prompt_buckets[-1] + config.data.completion_buckets[-1]
    said = f"data.prompt_buckets, data.completion_buckets: {longest} tokens"
    require_positions(said, longest, self.denoiser.config.max_positions, config.model.path)
    with waiting(f"preparing the {self.examples}"):
      train, self.validation = self.read(tokenizer)
    for what, part in ((f"fine-tuning {config.model.path}", train), ("validation", self.validation)):
      if part:
        _log.info("%s on %d %s (%d are too long and left out)", what, len(part.fitting), self.examples, part.too_long)
    if self.validation is not None:
      tokens = lambda part: (tuple(map(tuple, example)) for example in part.fitting)
      warn_of_shared(tokens(train), list(tokens(self.validation)), self.examples, "data.validation_source")
    data = {"training data": train.fitting, **({"validation data": self.validation.fitting} if self.validation else {})}
    self.provenance = check_inputs(workdir, provenance_of(config.model, data), allow_changed_inputs)
    self.stream = ExampleStream(train.fitting, config.seed)
    self.optimizer = make_optimizer(config.optimizer, config.steps)
    self.state = init_state(self.denoiser, params, self.optimizer, config.seed, self.with_reference, self.mesh)
    self._compiled, self.evaluate_every = set(), config.eval.every if self.validation is not None else None

  def read(self, tokenizer) -> tuple[Fitting, Fitting | None]:
    """What is learnt, and what is validated on."""
    return read_chats(self.config.data, tokenizer)

  def step(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    config = self.config
    static = {"denoiser": self.denoiser, "optimizer": self.optimizer, "accumulation": config.optimizer.accumulation,
              "router": config.router}
    with watch.phase("update"):
      batch, width = self._batch(self.stream.take(config.batch_size))
      with self.telling("the step", batch[0]):
        self.state, metrics = _finetuning_step(self.state, batch, prompt_length=width, **static)
      return row_of(number, metrics, config.optimizer, config.steps, self.state)

  def telling(self, what: str, tokens: jax.Array):
    """A context for the call of `what`, which says that it is compiled if it is the first on tokens of this shape."""
    if (what, tokens.shape) in self._compiled:
      return contextlib.nullcontext()
    self._compiled.add((what, tokens.shape))
    return compiling("{} of {} texts of up to {} tokens".format(what, *tokens.shape))

  def evaluation(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    """Means over the validation examples, with the same masks every time; nothing where there are none."""
    if self.validation is None or number % self.config.eval.every and number < self.config.steps:
      return {}
    examples, size = self.validation.fitting, self.config.batch_size // self.config.optimizer.accumulation
    keys, total, count = jax.random.split(jax.random.key(self.config.seed), len(examples)), {}, 0
    with watch.phase("evaluate"), waiting("evaluating", len(examples), self.examples, last_word=False) as wait:
      for start in range(0, len(examples), size):
        sums, counted = self.validate(examples[start:start + size], size, keys[start])
        total = {name: total.get(name, 0.0) + float(value) for name, value in sums.items()}
        count += int(counted)
        wait.advance(size)
    means = {name: value / count for name, value in total.items()}
    _log.info("evaluation after step %d: %s", number, "  ".join(f"{k} {significant(v)}" for k, v in means.items()))
    return {f"eval/{name}": value for name, value in means.items()}

  def validate(self, chats, size: int, key) -> tuple[dict[str, Any], Any]:
    """Sums over validation examples, `size` at most, by name; and what to divide them by for means, such as tokens."""
    batch, width = self._batch(chats, size)
    with self.telling("the validation loss", batch[0]):
      loss, tokens = _validation_loss(
        self.state.student_params, key, batch, denoiser=self.denoiser, prompt_length=width)
    return {"loss": float(loss) * int(tokens)}, tokens

  def _batch(self, chats, size: int | None = None):
    """What `joined` gives of chats, spread over the mesh, and P; filled up to `size` by chats that do not count."""
    filled = filled_up(chats, size or len(chats))
    tokens, maskable, attended, width = self.joined(filled)
    maskable[len(chats):] = False
    return self.spread(tokens, maskable, attended), width

  def joined(self, chats):
    """What `batch_of` gives of chats, in the run's buckets."""
    special = (self.denoiser.config.pad_token_id, self.denoiser.config.eos_token_id)
    return batch_of(chats, self.config.data.prompt_buckets, self.config.data.completion_buckets, *special)

  def spread(self, *arrays) -> tuple[jax.Array, ...]:
    """Arrays of a batch, which every process has whole, over the mesh."""
    rows = len(arrays[0])
    held = local_rows(self.mesh, rows)
    return tuple(spread(self.mesh, rows, array[held]) for array in arrays)

  def show(self, row: Mapping[str, Any], progress: Progress) -> None:
    progress.show(row["step"], numbers_of(row, self.shown))

  def saved(self) -> tuple[TrainState, dict[str, Any]]:
    return self.state, {"data_position": self.stream.position}

  def restore(self, state: TrainState, values: Mapping[str, Any]) -> None:
    self.state, self.stream.position = state, values["data_position"]


def filled_up(examples: Sequence, size: int) -> list:
  """Examples, and copies of the first behind them, up to `size`."""
  return [*examples, *[examples[0]] * (size - len(examples))]
