"""A model that answers one prompt at a time, and what is known of each of its answers."""

import abc
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import functools
import time

import jax
import numpy as np

from gdsd_jax.chat.config import SampleConfig
from gdsd_jax.checks import require, require_positions, require_seed
from gdsd_jax.compiling import compiling
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.generation.generator import Generator
from gdsd_jax.huggingface.tokenizer import chat_prompt, completion_ids, load_tokenizer, prompt_lengths, texts_of
from gdsd_jax.parallel.mesh import make_mesh, whole_batch
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.fit import validate_family


class View(contextlib.AbstractContextManager):
  """Sees an answer as it comes; entered while the sampler runs, and not while it is compiled."""

  @abc.abstractmethod
  def see(self, step: int, tokens: np.ndarray, confidence: np.ndarray) -> None:
    """An answer before a step: int[L], masks among them, and float[L]. The device waits for it."""


@dataclasses.dataclass(frozen=True)
class Answer:
  """A completion, with how it came to be."""

  prompt: str  # with its special tokens
  text: str  # up to its end
  tokens: np.ndarray  # int[L], with what is behind the end; masks among them where it was stopped
  length: int  # tokens up to the end
  confidence: np.ndarray  # float[L], as in `Rollout`
  unmasked: np.ndarray | None  # int[L], as the steps of `Rollout`; None of one's own sampler
  is_stopped: bool  # whether it was ended before it was whole
  seconds: float  # that sampling took, without compiling
  compiling: float  # seconds that compiling took before; 0 where the program was there
  seed: int
  sampler: SamplerConfig

  @functools.cached_property
  def computed(self) -> np.ndarray:
    """bool[L], tokens that were unmasked in some step: not those that early stopping filled in, nor masks."""
    return np.ones(len(self.tokens), bool) if self.unmasked is None else self.unmasked < self.sampler.most_steps

  @property
  def steps(self) -> int | None:
    """Denoising steps that it took; None of one's own sampler, and where what a step wrote may have been replaced."""
    if self.unmasked is None or self.sampler.edits:
      return None
    steps, each = np.unique(self.unmasked[self.computed]), self.sampler.block_steps
    if self.is_stopped or not self.sampler.has_fixed_steps:
      return len(steps)
    return len(np.unique(steps // each)) * each  # a step of dream's "origin" may unmask nothing

  @property
  def tokens_per_second(self) -> float:
    return self.computed.sum() / self.seconds


class Answering:
  """A model with its tokenizer, which answers prompts by one program for each sampler and width of prompts."""

  def __init__(self, config: SampleConfig, chosen: ChosenModel):
    """Loads the model that was chosen. Raises ValueError or OSError, one line, before anything is compiled."""
    require(config.mesh.context == 1, "mesh.context", "must be 1: a prompt of any length is answered, by itself")
    mesh = make_mesh(**vars(config.mesh))
    base, _ = chosen.base(config.model)
    architecture = base.architecture
    validate_family(config, architecture, base.path)
    self.path, self._positions, self._buckets = base.path, architecture.max_positions, config.rollouts.prompt_buckets
    self.check_room(config.sampler)
    denoiser, self.params, base = chosen.load(config.model, mesh)
    self.tokenizer = load_tokenizer(base.folder, denoiser.config)
    self.generator, self._programs = Generator(denoiser, self.tokenizer, mesh), {}
    self._view, self.is_stopped = None, False  # who sees the answer that comes, and whether it is to end

  def check_room(self, sampler: SamplerConfig) -> None:
    """Raises ValueError where a completion leaves no position for a prompt."""
    said = f"sampler.completion_length: a prompt and {sampler.completion_length} tokens"
    require_positions(said, 1 + sampler.completion_length, self._positions, self.path)

  @property
  def mask_token_id(self) -> int:
    return self.generator.denoiser.config.mask_token_id

  def length(self, tokens: np.ndarray) -> int:
    """How many of the tokens, int[L], are before the first end of a completion."""
    return len(completion_ids(tokens[None], self.generator.stop_ids)[0])

  def prompt(self, messages: Sequence[Mapping[str, str]], sampler: SamplerConfig, prefill: str = "") -> str:
    """The text of a chat, ready for an answer that begins with `prefill`.

    Raises ValueError, one line, where it forges the chat format, or exceeds the model's positions.
    """
    prompt = chat_prompt(self.tokenizer, messages) + prefill
    [length] = prompt_lengths(self.tokenizer, [prompt])
    said = f"prompt: its {length} tokens and {sampler.completion_length} of the answer"
    require_positions(said, length + sampler.completion_length, self._positions, self.path)
    return prompt

  def answer(self, prompt: str, sampler: SamplerConfig, seed: int, view: View | None = None) -> Answer:
    """The completion of one prompt, as `Trainer.sample` draws it with this seed.

    `view` sees it as it comes; then `stop` may end it before it is whole.
    """
    require_seed("seed", seed)
    generator, mesh = self.generator, self.generator.mesh
    rows = np.zeros(whole_batch(1, mesh), int)
    [(encoded, mask)] = generator.encode([prompt], [rows], self._widths(sampler))
    arguments = self.params, encoded, mask, jax.random.key(seed)
    self._view, self.is_stopped = view, False
    program, compiling = self._program(arguments, sampler, watched=view is not None)
    with view or contextlib.nullcontext():
      started = time.monotonic()
      rollout = jax.block_until_ready(program(*arguments))
      seconds = time.monotonic() - started
    first = lambda array: None if array is None else np.asarray(array)[0]  # the others only fill the mesh
    tokens, confidence, unmasked = map(first, (rollout.tokens, rollout.confidence, rollout.steps))
    [ids] = completion_ids(tokens[None], (*generator.stop_ids, self.mask_token_id))
    [text] = texts_of(self.tokenizer, [ids])
    is_stopped = bool(np.any(tokens == self.mask_token_id)) or self.is_stopped and view is None
    return Answer(prompt, text, tokens, len(ids), confidence, unmasked, is_stopped, seconds, compiling, seed, sampler)

  def stop(self) -> None:
    """Ends the answer that comes before its next step; from any thread."""
    self.is_stopped = True

  def _watch(self, step, tokens, confidence) -> bool:
    self._view.see(int(step), tokens[0], confidence[0])
    return not self.is_stopped

  def _widths(self, sampler: SamplerConfig) -> tuple[int, ...]:
    """Widths that prompts are padded to: the recipe's, then twice the last each, up to what the model has room for."""
    room = self._positions - sampler.completion_length
    widths = list(self._buckets)
    while widths[-1] < room:
      widths.append(2 * widths[-1])
    return *(width for width in widths if width < room), room

  def _program(self, arguments, sampler: SamplerConfig, watched: bool):
    """(the sampler, compiled, and the seconds that this took, 0 where it was there)."""
    shape, started = arguments[1].shape, time.monotonic()
    which = sampler, shape, watched
    if which in self._programs:
      return self._programs[which], 0.0
    watcher = self._watch if watched else None
    with compiling(f"the sampler for prompts of up to {shape[1]} tokens"):
      sample.lower(self.generator.denoiser, *arguments, sampler, watcher=watcher).compile()
    # `jax.jit` takes what is compiled already. Called by itself, that refuses weights of 4 bits that lie on a mesh.
    self._programs[which] = lambda *arguments: sample(self.generator.denoiser, *arguments, sampler, watcher=watcher)
    return self._programs[which], time.monotonic() - started
