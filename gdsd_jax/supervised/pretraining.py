"""Makes a small denoiser from nothing: its tokenizer, its data, and masked-diffusion training (the embedded model)."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import logging
from pathlib import Path
import tempfile
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gdsd_jax.checks import require
from gdsd_jax.compiling import compiling
from gdsd_jax.generation.held_out import evaluate
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.chat_format import PRESETS
from gdsd_jax.huggingface.model_card import is_ours, model_card, NAME
from gdsd_jax.huggingface.origin import NAME as ORIGIN
from gdsd_jax.huggingface.tokenizer import encode_prompts, load_tokenizer, token_ids
from gdsd_jax.huggingface.weights import save_pretrained
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.runs.export import check_layout, check_out, default_layout, origin_of_run
from gdsd_jax.runs.interruption import Interruption
from gdsd_jax.runs.lock import locked
from gdsd_jax.runs.loop import run_training, Training
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.optimizer import make_optimizer
from gdsd_jax.runs.progress import Progress
from gdsd_jax.runs.provenance import check_inputs, provenance_of
from gdsd_jax.runs.routers import moved
from gdsd_jax.runs.saved_config import open_workdir
from gdsd_jax.runs.state import TrainState
from gdsd_jax.supervised.chats import joined
from gdsd_jax.supervised.config import PretrainingConfig
from gdsd_jax.supervised.rows import numbers_of, row_of
from gdsd_jax.tasks import get_task, train_and_validation
from gdsd_jax.waiting import waiting

_log = logging.getLogger(__name__)

# LLaDA's chat format, so that the embedded model takes the same path as the published ones.
BEGIN, END, END_OF_TURN, MASK = "<|startoftext|>", "<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>"
_SPECIAL_TOKENS = (BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN, MASK)


def train_tokenizer(texts: Iterator[str], vocab_size: int, tags: tuple[str, ...], path: Path):
  """A PreTrainedTokenizerFast by byte-level BPE, also written to `path`; digits and tags are single tokens."""
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  bpe, cuts = tokenizers.Tokenizer(tokenizers.models.BPE()), tokenizers.pre_tokenizers
  bpe.pre_tokenizer = cuts.Sequence([cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)])
  bpe.decoder = tokenizers.decoders.ByteLevel()
  size = vocab_size - len(_SPECIAL_TOKENS) - len(tags)
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size, show_progress=False, initial_alphabet=cuts.ByteLevel.alphabet()
  )
  bpe.train_from_iterator(texts, trainer)
  bpe.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in tags])
  bpe.add_special_tokens(list(_SPECIAL_TOKENS))
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bpe, bos_token=BEGIN, eos_token=END, pad_token=END, mask_token=MASK,
    chat_template=PRESETS["llada"], clean_up_tokenization_spaces=False,
  )
  tokenizer.save_pretrained(path)
  return tokenizer


@functools.partial(jax.jit, static_argnames=("denoiser", "optimizer", "prompt_length"), donate_argnames=("state",))
def _train_step(denoiser, optimizer, state: TrainState, tokens, maskable, attention_mask, *, prompt_length: int):
  key = jax.random.fold_in(state.key, state.step)
  loss = functools.partial(masked_cross_entropy, denoiser, prompt_length=prompt_length)
  loss_fn = jax.value_and_grad(loss, has_aux=True)
  (loss, metrics), gradient = loss_fn(state.params, key, tokens, maskable, attention_mask)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, moved(updates, denoiser))
  return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss, **metrics}


def pretrain(config: PretrainingConfig, workdir: epath.Path, out: Path, allow_changed_inputs: bool = False,
             layout: str | None = None) -> None:
  """Runs or resumes the pretraining of a model in `workdir` and writes its Hugging Face folder to `out`.

  Besides what every task has, config.task must offer `tags` (texts that become single tokens), `solution(example)` and
  `careless_solution(example, slips, rng)`. `out` keeps what it holds until the end. A run
  whose problems have changed since it began is refused, unless that is allowed. `layout` is as in `write_model`. Raises
  as `run_training`.
  """
  with Interruption() as interruption:
    check_out(out, workdir, None)
    training = _Pretraining(config, workdir, allow_changed_inputs)
    check_layout(layout, training.denoiser)
    run_training(training, interruption)
    written = dataclasses.replace(training.denoiser, config=dataclasses.replace(
      training.denoiser.config, layout=layout or default_layout(training.denoiser.config)))
    card = {NAME: model_card(out, written, "", False, config.as_given)} if is_ours(out) else None
    beside = {ORIGIN: origin_of_run(workdir, None), **(card or {})}
    with locked(out, "--out", alone=True):
      save_pretrained(out, written, training.state.params, tokenizer=training.tokenizer, extra=beside)


class _Pretraining(Training):
  """A pretraining run: its tokenizer, model and data, made once, and its step."""

  def __init__(self, config: PretrainingConfig, workdir: epath.Path, allow_changed_inputs: bool):
    open_workdir(workdir, config)
    self.config, self.workdir, self._rng = config, workdir, np.random.default_rng(config.seed)
    self.task = get_task(config.task.name, **config.task.options)
    with waiting(f"preparing the problems of {config.task.name}"):
      train, validation = train_and_validation(self.task, config.eval_examples)
    self.held_out = [validation[i] for i in range(config.eval_examples)]
    provenance = provenance_of(None, {"training data": train, "validation data": validation})
    self.provenance = check_inputs(workdir, provenance, allow_changed_inputs)
    with waiting(f"training the tokenizer on {len(train)} problems"):
      model_config, self.tokenizer = self._make_tokenizer(train)
    self.denoiser = Denoiser(model_config, remat="full")  # also faster here: on a CPU, stacking residuals costs more
    self.sampler = RolloutSampler(self.denoiser, self.tokenizer, self.task, config.sampler, (config.max_prompt_length,))
    with waiting(f"encoding {len(train)} problems"):
      self._encode(train)
    # The recipe's rate is constant after the warm-up: `steps` then chooses a point of one and the same run.
    self.optimizer = make_optimizer(config.optimizer, config.steps)
    params = self.denoiser.init(jax.random.key(config.seed))
    self.state = TrainState(
      step=jnp.zeros((), jnp.int32), params=params, frozen={}, opt_state=self.optimizer.init(params), reference=None,
      key=jax.random.key(config.seed),
    )
    self._compiled, self.evaluate_every = False, config.eval_every

  def _make_tokenizer(self, examples) -> tuple[DenoiserConfig, Any]:
    """(config of the model, its tokenizer), trained on the texts of the task."""
    texts = [f"{message['role']}\n\n{message['content']}" for e in examples for message in self.task.messages(e)]
    texts += ["assistant\n\n"] * len(texts)
    with tempfile.TemporaryDirectory() as scratch:
      trained = train_tokenizer(iter(texts), self.config.model.vocab_size, self.task.tags, Path(scratch))
      mask, end = trained.convert_tokens_to_ids([MASK, END])
      model_config = dataclasses.replace(self.config.model, mask_token_id=mask, eos_token_id=end, pad_token_id=end)
      return model_config, load_tokenizer(scratch, model_config)

  def _encode(self, examples) -> None:
    """Lays out the training data, with right and with careless solutions: tokens and masks, see `joined`."""
    texts, pad_token_id = self.sampler.prompts(examples), self.denoiser.config.pad_token_id
    prompts = encode_prompts(self.tokenizer, texts, self.sampler.prompt_buckets, pad_token_id)
    right = [self.task.solution(example) for example in examples]
    careless = [self.task.careless_solution(example, self.config.slips, self._rng) for example in examples]
    self._data, length = [], self.config.sampler.completion_length
    for texts in (right, careless):
      require(any(texts), "task.name", f"{self.config.task.name} has no solution with a text to learn")
      completions = token_ids(self.tokenizer, [text + END_OF_TURN for text in texts])
      longest = max(map(len, completions))
      require(longest <= length, "sampler.completion_length", f"{length} tokens do not hold a solution of {longest}")
      self._data.append(joined(*prompts, completions, length, self.tokenizer.eos_token_id))

  def step(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    data = self._data[int(number > self.config.careless_after)]
    rows = self._rng.integers(0, len(data[0]), self.config.batch_size)
    batch = [part[rows] for part in data]
    with contextlib.nullcontext() if self._compiled else compiling("the step"):
      self.state, metrics = _train_step(
        self.denoiser, self.optimizer, self.state, *batch, prompt_length=self.config.max_prompt_length)
    self._compiled = True
    return row_of(number, metrics, self.config.optimizer, self.config.steps, self.state)

  def evaluation(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    if number == 0 or (number % self.config.eval_every and number < self.config.steps):
      return {}
    key = jax.random.key(self.config.seed)  # the same every time
    result = evaluate(self.sampler, self.state.params, self.held_out, key, self.config.eval_examples)
    shown = "  ".join(f"{name} {value:.3f}" for name, value in result.items())
    _log.info("evaluation after step %d: %s", number, shown)
    return {f"eval/{name}": value for name, value in result.items()}

  def show(self, row: Mapping[str, Any], progress: Progress) -> None:
    progress.show(row["step"], numbers_of(row))

  def saved(self) -> tuple[TrainState, dict[str, Any]]:
    return self.state, {"data_generator": self._rng.bit_generator.state}

  def restore(self, state: TrainState, values: Mapping[str, Any]) -> None:
    self.state, self._rng.bit_generator.state = state, values["data_generator"]
