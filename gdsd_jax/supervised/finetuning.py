"""Supervised fine-tuning of a loaded model by masked diffusion, on the assistant's turns of chats."""

import contextlib
import functools
import json
import logging
import math
from pathlib import Path
import time

from etils import epath
import jax
import jax.numpy as jnp
import optax

from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.parallel.processes import gather_json, is_first_process
from gdsd_jax.parallel.rows import fetch_whole, local_rows, spread
from gdsd_jax.runs.checkpoints import Checkpoints
from gdsd_jax.runs.config_dict import config_json, refuse_contradictions
from gdsd_jax.runs.data import ExampleStream
from gdsd_jax.runs.export import check_out, write_model
from gdsd_jax.runs.files import check_workdir, LineFile, write_whole
from gdsd_jax.runs.interruption import Interrupted, Interruption
from gdsd_jax.runs.metrics import format_seconds, read_metrics
from gdsd_jax.runs.state import init_state, make_optimizer, TrainState
from gdsd_jax.runs.weights import load_model
from gdsd_jax.supervised.chats import batch_of, read_chats
from gdsd_jax.supervised.config import FinetuningConfig

_log = logging.getLogger(__name__)


@functools.partial(
  jax.jit, static_argnames=("denoiser", "optimizer", "prompt_length", "accumulation"), donate_argnames=("state",)
)
def finetuning_step(state: TrainState, batch, *, denoiser, optimizer, prompt_length: int, accumulation: int = 1):
  """One update on a batch of chats.

  Args:
    state: donated.
    batch: (tokens int[B, T], maskable bool[B, T], attention_mask bool[B, T]), B divisible by `accumulation`.
    denoiser, optimizer: what is trained, and how.
    prompt_length: P, tokens of the prompts.
    accumulation: microbatches whose gradients are averaged.

  Returns:
    (state, metrics): the state after the update, and float32 scalars.
  """
  next_key, key = jax.random.split(state.key)

  def loss_fn(params, part, key):
    noise_key, dropout_key = jax.random.split(key)
    return masked_cross_entropy(
      denoiser, {**state.frozen, **params}, noise_key, *part, prompt_length=prompt_length, dropout_key=dropout_key
    )

  def accumulate(total, scanned):
    (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, *scanned)
    return jax.tree.map(jnp.add, total, gradient), {"loss": loss, **metrics}

  parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), batch)
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  gradient, metrics = jax.lax.scan(accumulate, zeros, (parts, jax.random.split(key, accumulation)))
  gradient = jax.tree.map(lambda g: g / accumulation, gradient)
  metrics = jax.tree.map(jnp.mean, metrics)
  metrics["grad_norm"] = optax.global_norm(gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  state = state.replace(
    step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state, key=next_key
  )
  return state, metrics


def finetune(config: FinetuningConfig, workdir: epath.Path, out: Path) -> None:
  """Runs or resumes fine-tuning in `workdir` and writes the model, or the adapter of a LoRA run, to `out`.

  Raises:
    ValueError, OSError, CheckpointError: one line with the cause.
    Interrupted: SIGTERM came, and the step that was under way is saved.
  """
  with Interruption() as interruption:
    _finetune(config, workdir, out, interruption)


def _finetune(config, workdir: epath.Path, out: Path, interruption: Interruption) -> None:
  check_workdir(workdir)
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  microbatch = config.batch_size // config.optimizer.accumulation
  if microbatch % shards:
    raise ValueError(f"batch_size: {microbatch} chats of a microbatch cannot be split over {shards} devices")
  refuse_contradictions(workdir, config)
  check_out(out, workdir, config.model)
  denoiser, params = load_model(config.model, config.seed, mesh)
  tokenizer = load_tokenizer(config.model.path, denoiser.config)
  longest = config.data.prompt_buckets[-1] + config.data.completion_buckets[-1]
  if longest > denoiser.config.max_positions:
    raise ValueError(
      f"data.prompt_buckets, data.completion_buckets: {longest} tokens exceed the {denoiser.config.max_positions}"
      f" positions of {config.model.path}"
    )
  chats, left_out = read_chats(config.data, tokenizer)
  _log.info("fine-tuning %s on %d chats (%d are too long and left out)", config.model.path, len(chats), left_out)
  optimizer = make_optimizer(config.optimizer)
  state = init_state(denoiser, params, optimizer, config.seed, with_reference=False, mesh=mesh)
  del params  # the state has its own copy, and this one would stay until the end
  stream = ExampleStream(chats, config.seed)

  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(f"--workdir: cannot make {workdir}: {error}") from error
  checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
  restored = checkpoints.restore(state, check=lambda run: None)  # config.json was compared above
  if restored is not None:
    state, run = restored
    stream.position = run["data_position"]
    _log.info("RESUMING the run in %s from step %d of %d", workdir, int(state.step), config.steps)
  if is_first_process():
    write_whole(workdir / "config.json", config_json(config) + "\n")
  state = _run_steps(config, workdir, state, stream, checkpoints, denoiser, optimizer, mesh, interruption)
  checkpoints.close()
  # Of a LoRA run the adapter alone is written.
  params = fetch_whole(state.params) if jax.process_count() > 1 else state.params
  if is_first_process():
    write_model(out, denoiser, params, config.model.path)
  gather_json(None)  # nobody leaves before the model is written


def _run_steps(
  config, workdir: epath.Path, state, stream, checkpoints, denoiser, optimizer, mesh, interruption: Interruption,
) -> TrainState:
  first = int(state.step)
  rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["step"] <= first]
  special = denoiser.config.pad_token_id, denoiser.config.eos_token_id
  started, compiled = time.monotonic(), set()
  with contextlib.ExitStack() as stack:
    if is_first_process():
      file = LineFile(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
      stack.callback(file.close)
    for step in range(first + 1, config.steps + 1):
      chats = stream.take(config.batch_size)
      *arrays, width = batch_of(chats, config.data.prompt_buckets, config.data.completion_buckets, *special)
      if arrays[0].shape not in compiled:
        compiled.add(arrays[0].shape)
        _log.info("compiling the step for %d chats of up to %d tokens", *arrays[0].shape)
      held = local_rows(mesh, config.batch_size)
      batch = tuple(spread(mesh, config.batch_size, array[held]) for array in arrays)
      state, metrics = finetuning_step(
        state, batch, denoiser=denoiser, optimizer=optimizer, prompt_length=width,
        accumulation=config.optimizer.accumulation,
      )
      row = {"step": step, **{name: float(value) for name, value in jax.device_get(metrics).items()}}
      for name in ("loss", "grad_norm"):
        if not math.isfinite(row[name]):
          raise ValueError(f"step {step}: {name} is {row[name]}; lower optimizer.learning_rate")
      if is_first_process():
        file.append(json.dumps(row) + "\n")  # a checkpoint of this step must never be on disk before its row
      interrupted = step < config.steps and interruption.asked()
      if step % config.checkpoint.every == 0 or step == config.steps or interrupted:
        checkpoints.save(state, {"config": json.loads(config_json(config)), "data_position": stream.position}, None)
      if interrupted:
        checkpoints.close()
        raise Interrupted(step, config.steps)
      if step % config.log.every == 0 or step in (first + 1, config.steps):
        speed = (time.monotonic() - started) / (step - first)
        _log.info("step %d/%d  loss %.4f  masked accuracy %.3f  %s left", step, config.steps, row["loss"],
                  row["masked_accuracy"], format_seconds(speed * (config.steps - step)))
  return state
