"""A run on a TPU slice that is not there: its programs compiled for the slice by libtpu, and what they need of a chip.

libtpu compiles on any Linux machine. Weights are abstract throughout: shapes, types and shardings without memory.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
from pathlib import Path
import re
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from gdsd_jax.compiling import compiling
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.huggingface.published import architecture
from gdsd_jax.objectives.abstract import abstract_rollouts, abstract_scored
from gdsd_jax.parallel.mesh import batch_sharding, EXPERT, make_mesh
from gdsd_jax.planning.chips import Chip, slice_devices
from gdsd_jax.planning.hlo_cost import Cost, program_cost
from gdsd_jax.planning.peak import host_bytes, Peak, peak_of
from gdsd_jax.planning.slices import in_words
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.fit import validate_mesh, validate_training
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.runs.optimizer import make_optimizer
from gdsd_jax.runs.state import init_state, state_shardings, TrainState
from gdsd_jax.runs.step import distillation_step, score_rollouts
from gdsd_jax.runs.weights import make_denoiser
from gdsd_jax.training.updates import drawing_of


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a run, compiled; bytes (XLA's), FLOPs and seconds are of one chip."""

  name: str  # sample, score_rollouts, distillation_step; evaluate where evaluation samples more at once than training
  calls: int  # how often an iteration calls it
  resident_bytes: int  # what of the run's state stays in memory meanwhile without being an argument
  argument_bytes: int = 0
  output_bytes: int = 0
  alias_bytes: int = 0  # outputs that lie where donated arguments lay
  temporary_bytes: int = 0
  code_bytes: int = 0
  host_bytes: int = 0  # temporaries in the memory of the chip's host, of which the chip's peak knows nothing
  cost: Cost = dataclasses.field(default_factory=Cost)  # what one call costs
  compile_seconds: float = 0.0
  error: str | None = None  # why it did not compile, in one line: it needs more memory than a chip has
  hlo: str = dataclasses.field(default="", repr=False)
  peak: Peak | None = dataclasses.field(default=None, repr=False)  # what lies in memory then, where that was asked for

  @property
  def peak_bytes(self) -> int:
    """While it runs, without the programs themselves."""
    return self.resident_bytes + self.argument_bytes + self.output_bytes - self.alias_bytes + self.temporary_bytes


@dataclasses.dataclass(frozen=True)
class PodPlan:
  """What a run needs of each chip of a slice. Parameters and rollouts are those of the whole run."""

  topology: str
  chip: Chip
  mesh: dict[str, int]  # axis -> size
  parameters: int
  trained_parameters: int
  rollouts: int  # in a step
  microbatch: int  # rollouts of each of its parts
  prompt_length: int  # tokens of the longest prompts that are compiled
  completion_length: int
  prompt_buckets: int  # how many prompt lengths are compiled; each has its own programs
  state_bytes: dict[str, int]  # what of the state -> bytes on a chip
  programs: tuple[Program, ...]
  slices: int = 1  # how many of the topology

  @property
  def code_bytes(self) -> int:
    """All programs of all prompt lengths, which stay in memory; those of shorter prompts counted as the longest's."""
    return self.prompt_buckets * sum(program.code_bytes for program in self.programs)

  @property
  def peak_bytes(self) -> int | None:
    """The most that a chip holds at a time, in whichever program that is; None if one of them did not compile."""
    if any(program.error for program in self.programs):
      return None
    return max(program.peak_bytes for program in self.programs) + self.code_bytes

  @property
  def fits(self) -> bool:
    return self.peak_bytes is not None and self.peak_bytes <= self.chip.hbm_bytes


def plan(config: RunConfig, topology: str, slices: int = 1, explain: bool = False) -> PodPlan:
  """Compiles a run's programs for one slice or several, at the longest prompt length; `topology` as in `slice_devices`.

  With `explain` they tell what holds their peaks, those that do not fit among them. What a run holds beside them, the
  tokens, masks and scores of a step's rollouts, is left out: some thirty bytes a token. Raises ValueError or OSError,
  one line that names the field.
  """
  devices, chip = slice_devices(topology, slices)
  mesh = make_mesh(**vars(config.mesh), devices=devices)
  validate_mesh(config, mesh)
  run = AbstractRun(config, mesh)
  programs = []
  for name, calls, function, arguments, keywords in run.calls():
    with compiling(f"{name} for {in_words(topology, slices)}"):
      lowered = function.lower(*arguments, **keywords)
      programs.append(_compile(name, calls, run.resident_bytes(name), lowered, mesh.shape.get(EXPERT, 1), explain))
  whole = dataclasses.replace(run.denoiser, quantize=None).abstract_params()  # without the scales of quantised weights
  counts = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (whole, run.state.params)]
  rollouts, buckets = config.rollouts_per_step, config.rollouts.prompt_buckets
  return PodPlan(
    topology, chip, dict(mesh.shape), *counts, rollouts=rollouts, microbatch=rollouts // config.optimizer.accumulation,
    prompt_length=buckets[-1], completion_length=config.sampler.completion_length, prompt_buckets=len(buckets),
    state_bytes=run.state_bytes, programs=tuple(programs), slices=slices,
  )


class AbstractRun:
  """The state and the programs of a run, as `Trainer` makes and calls them, without memory."""

  def __init__(self, config: RunConfig, mesh):
    self.config, self.mesh = config, mesh
    model = architecture(config.model.path, config.model.layout, config.model.stated)
    validate_training(config, model, config.model.path)
    self.denoiser = make_denoiser(config.model, model, mesh)
    self.optimizer = make_optimizer(config.optimizer, config.updates)
    make = lambda params: init_state(self.denoiser, params, self.optimizer, config.seed,
                                     with_reference=config.objective.needs_reference, mesh=mesh)
    state = jax.eval_shape(make, self.denoiser.abstract_params())
    lay_out = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    shardings = state_shardings(state, self.denoiser, self.optimizer, mesh)
    self.state: TrainState = jax.tree.map(lay_out, state, shardings)

  @property
  def state_bytes(self) -> dict[str, int]:
    bits = lambda dtype: jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize
    on_a_chip = lambda leaf: math.ceil(math.prod(leaf.sharding.shard_shape(leaf.shape)) * bits(leaf.dtype) / 8)
    return {name: sum(map(on_a_chip, jax.tree.leaves(getattr(self.state, name))))
            for name in ("params", "frozen", "opt_state", "reference")}

  def resident_bytes(self, program: str) -> int:
    """Bytes of the state that a program does not take as arguments."""
    if program == "distillation_step":
      return 0
    # Scored is either student or reference. A LoRA run's reference has zeros for an adapter.
    scores_reference = program == "score_rollouts" and self.state.reference is not None
    return self.state_bytes["opt_state"] + self.state_bytes["params" if scores_reference else "reference"]

  def calls(self) -> Iterator[tuple[str, int, Callable, tuple, dict[str, Any]]]:
    """(name, times in an iteration, jitted function, arguments, keywords) of each of the run's programs."""
    config, state, sampler = self.config, self.state, self.config.sampler
    rows, width, length = config.rollouts_per_step, config.rollouts.prompt_buckets[-1], sampler.completion_length

    def batch(dtype, *shape):
      return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

    def sampling(rows, sampler):
      prompts = batch(jnp.int32, rows, width), batch(bool, rows, width)
      record = config.remembered - {"steps"}
      return sample, (self.denoiser, state.student_params, *prompts, state.key, sampler, record), {}

    parts, evaluated = config.rollouts.microbatches, config.eval.batch_size
    yield "sample", parts, *sampling(rows // parts, sampler)
    if evaluated > rows // parts:
      yield "evaluate", 0, *sampling(evaluated, dataclasses.replace(sampler, **config.eval.validation(sampler)))

    laid_out = lambda tree: jax.tree.map(lambda leaf: batch(leaf.dtype, *leaf.shape), tree)
    abstract = abstract_rollouts(config.objective, rows, length, config.group_size, sampler.top_k or 1,
                                 sampler.view_steps, self.denoiser.config.block_length is not None)
    scored = laid_out(abstract_scored(config.objective, abstract, drawing_of(config, width)))
    tokens, attended = batch(jnp.int32, rows, width + length), batch(bool, rows, width + length)
    rollouts = ScoringBatch(tokens, attended, scored.views.inputs, scored.kept)
    static = dict(denoiser=self.denoiser, objective=config.objective, accumulation=config.optimizer.accumulation)
    updates = config.distillation.num_iterations
    drawn = updates if config.masks.fresh else 1
    # Old scores, the reference's, and from the second update on current ones; those of fixed views.
    in_step = config.scored_in_step(self.mesh)
    old = 0 if in_step else drawn if config.objective.needs_old else 1
    times = old + drawn * (state.reference is not None) + updates - 1
    times += 0 if scored.fixed is None else 1 + (state.reference is not None)
    scoring = {"with_entropy": True, "of_reference": in_step, **static}
    if times:
      yield "score_rollouts", times, score_rollouts, (state.student_params, rollouts), scoring

    scores = laid_out(jax.eval_shape(functools.partial(score_rollouts, **scoring), state.student_params, rollouts))
    student = None if in_step else scores
    scored = scored.replace(student=student, old=student if config.objective.needs_old else None,
                            ref=None if state.reference is None else scores)
    batch = DistillationBatch(rollouts, scored)
    yield "distillation_step", updates, distillation_step, (state, batch), {"optimizer": self.optimizer, **static}


def _compile(name: str, calls: int, resident_bytes: int, lowered: jax.stages.Lowered, expert_shards: int,
             explain: bool = False) -> Program:
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    compiled = error = None
    try:
      # Dumped by the compiler: `compiled.as_text()` cannot read back what TPUs with SparseCores run there.
      compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except jax.errors.JaxRuntimeError as raised:
      if "RESOURCE_EXHAUSTED" not in str(raised):
        raise
      error = _out_of_memory(str(raised))
    seconds = time.monotonic() - started
    dumped = max(Path(folder).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size, default=None)
    hlo = "" if dumped is None else dumped.read_text()
    peak, in_host = peak_of(Path(folder)) if explain else None, host_bytes(Path(folder))
  if error is not None:
    return Program(name, calls, resident_bytes, compile_seconds=seconds, error=error, hlo=hlo, peak=peak)
  memory = compiled.memory_analysis()
  return Program(
    name, calls, resident_bytes, argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes, alias_bytes=memory.alias_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes, code_bytes=memory.generated_code_size_in_bytes,
    host_bytes=in_host,
    cost=program_cost(hlo, expert_shards), compile_seconds=seconds, hlo=hlo, peak=peak,
  )


def _out_of_memory(message: str) -> str:
  size = r"([\d.]+[KMGT])"
  for told in (rf"Used {size} of {size} hbm", rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)"):
    if used := re.search(told, message):
      return f"needs {used[1]}iB of memory, of {used[2]}iB that programs may use"
  return " ".join(message.split())[:300]
