"""A run on a TPU slice that is not there: its programs compiled for the slice by libtpu, and what they need of a chip.

libtpu compiles on any Linux machine. Weights are abstract throughout: shapes, types and shardings without memory.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import logging
import math
from pathlib import Path
import re
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.huggingface.published import architecture
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh
from gdsd_jax.planning.chips import Chip, slice_devices
from gdsd_jax.planning.hlo_cost import Cost, program_cost
from gdsd_jax.runs.config import RunConfig, validate_mesh
from gdsd_jax.runs.state import init_state, make_optimizer, state_shardings, TrainState
from gdsd_jax.runs.weights import make_denoiser
from gdsd_jax.training.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.training.step import distillation_step, score_rollouts

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a run, compiled; bytes, FLOPs and seconds are of one chip.

  Attributes:
    name: sample, score_rollouts or distillation_step; evaluate where evaluation samples more at once than training.
    calls: how often an iteration calls it.
    argument_bytes, output_bytes, alias_bytes, temporary_bytes, code_bytes: as XLA assigned them; aliased outputs lie
      where donated arguments lay.
    resident_bytes: what of the run's state stays in memory meanwhile without being an argument.
    cost: what one call costs.
    compile_seconds: how long this machine took.
    error: why it did not compile, in one line: it needs more memory than a chip has. All else is empty then.
    hlo: its optimised HLO.
  """

  name: str
  calls: int
  resident_bytes: int
  argument_bytes: int = 0
  output_bytes: int = 0
  alias_bytes: int = 0
  temporary_bytes: int = 0
  code_bytes: int = 0
  cost: Cost = dataclasses.field(default_factory=Cost)
  compile_seconds: float = 0.0
  error: str | None = None
  hlo: str = dataclasses.field(default="", repr=False)

  @property
  def peak_bytes(self) -> int:
    """While it runs, without the programs themselves."""
    return (
      self.resident_bytes + self.argument_bytes + self.output_bytes - self.alias_bytes + self.temporary_bytes
    )

  def seconds(self, chip: Chip) -> dict[str, float]:
    """Time of one call if nothing but its FLOPs, its memory traffic or its collectives took time, each at its peak."""
    return {
      "compute": self.cost.flops / chip.flops_per_second,
      "memory": self.cost.hbm_bytes / chip.hbm_bytes_per_second,
      "interconnect": self.cost.collective_bytes / chip.ici_bytes_per_second,
    }


@dataclasses.dataclass(frozen=True)
class PodPlan:
  """What a run needs of each chip of a slice.

  Attributes:
    topology: name of the slice.
    chip: what each chip has.
    mesh: axis -> size.
    parameters, trained: numbers of the whole model.
    rollouts, microbatch: how many rollouts a step has, and each of its parts.
    prompt_length, completion_length: tokens, the longest that are compiled.
    prompt_buckets: how many prompt lengths are compiled; each has its own programs.
    state_bytes: what of the state -> bytes on a chip.
    programs: see `Program`.
  """

  topology: str
  chip: Chip
  mesh: dict[str, int]
  parameters: int
  trained: int
  rollouts: int
  microbatch: int
  prompt_length: int
  completion_length: int
  prompt_buckets: int
  state_bytes: dict[str, int]
  programs: tuple[Program, ...]

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


def plan(config: RunConfig, topology: str) -> PodPlan:
  """Compiles a run's programs for a slice.

  Its state is made by the run's own functions, and its programs are called as `Trainer` calls them, at the longest
  prompt length. What a run holds beside them, the tokens, masks and scores of a step's rollouts, is left out: some
  thirty bytes a token.

  Args:
    config: the run's.
    topology: see `slice_devices`.

  Raises:
    ValueError, OSError: one line, naming the field.
  """
  devices, chip = slice_devices(topology)
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
  validate_mesh(config, mesh)
  run = AbstractRun(config, mesh)
  compiled = []
  for name, times, function, arguments, keywords in run.calls():
    _log.info("compiling %s for %s", name, topology)
    lowered = function.lower(*arguments, **keywords)
    compiled.append(_compile(name, times, run.resident_bytes(name), lowered))
  counts = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (run.state.student_params, run.state.params)]
  return PodPlan(
    topology=topology,
    chip=chip,
    mesh=dict(mesh.shape),
    parameters=counts[0],
    trained=counts[1],
    rollouts=run.rows,
    microbatch=run.rows // config.optimizer.accumulation,
    prompt_length=run.prompt_length,
    completion_length=run.sampler.completion_length,
    prompt_buckets=len(config.rollouts.prompt_buckets),
    state_bytes=run.state_bytes,
    programs=tuple(compiled),
  )


class AbstractRun:
  """The state and the programs of a run, as `Trainer` makes and calls them, without memory."""

  def __init__(self, config: RunConfig, mesh):
    self.config, self.mesh = config, mesh
    self.denoiser = make_denoiser(config.model, architecture(config.model.path), mesh)
    self.objective, self.optimizer = config.objective, make_optimizer(config.optimizer)
    self.sampler = config.sampler
    self.rows = config.rollouts_per_step
    self.prompt_length = config.rollouts.prompt_buckets[-1]
    self.static = dict(denoiser=self.denoiser, objective=self.objective, accumulation=config.optimizer.accumulation)
    make = lambda params: init_state(
      self.denoiser, params, self.optimizer, config.seed, with_reference=self.objective.beta > 0, mesh=mesh
    )
    state = jax.eval_shape(make, self.denoiser.abstract_params())
    self.state: TrainState = _laid_out(state, state_shardings(state, self.denoiser, self.optimizer, mesh))

  def _batch(self, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

  @property
  def state_bytes(self) -> dict[str, int]:
    names = ("params", "frozen", "opt_state", "reference")
    return {name: _bytes_on_a_chip(getattr(self.state, name)) for name in names}

  def resident_bytes(self, program: str) -> int:
    """Bytes of the state that a program does not take as arguments."""
    state = self.state_bytes
    if program == "distillation_step":
      return 0
    if program == "score_rollouts" and self.state.reference is not None:
      # The argument is either student or reference. A LoRA run's reference has zeros for an adapter.
      return state["opt_state"] + state["params"]
    return state["opt_state"] + state["reference"]

  def calls(self) -> Iterator[tuple[str, int, Callable, tuple, dict[str, Any]]]:
    """(name, times in an iteration, jitted function, arguments, keywords) of each of the run's programs."""
    config, state, width = self.config, self.state, self.prompt_length
    length, updates = self.sampler.completion_length, config.distillation.num_iterations

    def prompts(rows):
      return self._batch((rows, width), jnp.int32), self._batch((rows, width), bool)

    of_student = self.denoiser, state.student_params
    parts = config.rollouts.microbatches
    yield "sample", parts, sample, (*of_student, *prompts(self.rows // parts), state.key, self.sampler), {}
    if (rows := config.eval.batch_size) > self.rows // parts:
      greedy = dataclasses.replace(self.sampler, temperature=0.0)
      yield "evaluate", 0, sample, (*of_student, *prompts(rows), state.key, greedy), {}

    rollouts = ScoringBatch(
      self._batch((self.rows, width + length), jnp.int32), prompts(self.rows)[1],
      self._batch((self.rows, config.distillation.num_mc, length), bool),
    )
    # Old scores, the reference's, and from the second update on current ones.
    times = updates + updates * (state.reference is not None) + updates - 1
    yield "score_rollouts", times, score_rollouts, (state.student_params, rollouts), self.static

    scores = jax.eval_shape(functools.partial(score_rollouts, **self.static), state.student_params, rollouts)
    scores = jax.tree.map(lambda leaf: self._batch(leaf.shape, leaf.dtype), scores)
    reference = None if state.reference is None else scores
    batch = DistillationBatch(rollouts, self._batch((self.rows,), jnp.float32), scores, reference, scores)
    yield "distillation_step", updates, distillation_step, (state, batch), {"optimizer": self.optimizer, **self.static}


def _laid_out(tree, shardings):
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
  )


def _bytes_on_a_chip(tree) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
  )


def _compile(name: str, calls: int, resident_bytes: int, lowered: jax.stages.Lowered) -> Program:
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    try:
      # Dumped by the compiler: `compiled.as_text()` cannot read back what TPUs with SparseCores run there.
      compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      return Program(name, calls, resident_bytes, error=_out_of_memory(str(error)),
                     compile_seconds=time.monotonic() - started)
    dumped = Path(folder).glob("*after_optimizations.txt")
    hlo = max(dumped, key=lambda file: file.stat().st_size).read_text()
  memory = compiled.memory_analysis()
  return Program(
    name=name,
    calls=calls,
    resident_bytes=resident_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes,
    alias_bytes=memory.alias_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    code_bytes=memory.generated_code_size_in_bytes,
    cost=program_cost(hlo),
    compile_seconds=time.monotonic() - started,
    hlo=hlo,
  )


def _out_of_memory(message: str) -> str:
  size = r"([\d.]+[KMGT])"
  for told in (rf"Used {size} of {size} hbm", rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)"):
    if used := re.search(told, message):
      return f"needs {used[1]}iB of memory, of {used[2]}iB that programs may use"
  return " ".join(message.split())[:300]
