"""What holds a program's peak: arrays that are in memory at once, and the lines that made them."""

import dataclasses
import json
import re

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.planning import plan as pod_plan
from gdsd_jax.planning.chips import CHIPS
from gdsd_jax.planning.peak import Buffer, host_bytes, Peak, peak_of
from gdsd_jax.planning.report import explanation, report


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture
def compiled_anew():
  """A program that is found in the cache is dumped nowhere."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


def compiled_into(folder, function, *arguments):
  return jax.jit(function).lower(*arguments).compile({"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True})


def loss(weights, x):
  def layer(x, w):
    return x + jnp.tanh(x @ w["in"]) @ w["out"], None

  x, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
  return jnp.sum(x)


def test_the_saved_inputs_of_layers_are_told_with_the_line_of_their_scan(compiled_anew, tmp_path):
  weights = {"in": array(8, 64, 256), "out": array(8, 256, 64)}
  memory = compiled_into(tmp_path, jax.grad(loss), weights, array(512, 64)).memory_analysis()
  peak = peak_of(tmp_path)
  assert peak.temporary_bytes == memory.temp_size_in_bytes and 0.9 < peak.live_bytes / peak.temporary_bytes <= 1
  of = lambda kind: [buffer for buffer in peak.buffers if buffer.kind == kind]
  saved, *others = of("temporary")
  assert (saved.shape, saved.nbytes) == ("f32[8,512,64]", 4 * 8 * 512 * 64)
  scan = loss.__code__.co_firstlineno + 4
  assert saved.lines[0] == f"{__file__}:{scan} loss"
  assert others[0].shape == "f32[512,256]" and others[0].lines[0].endswith(" loss.layer")
  assert sum(buffer.nbytes for buffer in of("argument")) == memory.argument_size_in_bytes
  assert {buffer.made_by for buffer in of("argument")} >= {"weights['in']", "weights['out']"}
  assert sum(buffer.nbytes for buffer in of("output") if buffer.shape.startswith("f32[8,")) == 2 * 4 * 8 * 64 * 256


def test_the_inputs_of_blocks_are_kept_in_the_host_s_memory(tiny_config):
  def kept(remat):
    """What the scan over blocks leaves for the backward pass, of the size of all inputs, and where."""
    denoiser = Denoiser(tiny_config, remat=remat)
    loss = lambda params, tokens: jnp.sum(denoiser.hidden(params, tokens))
    arguments = denoiser.abstract_params(), jax.ShapeDtypeStruct((2, 16), jnp.int32)
    traced = str(jax.make_jaxpr(jax.grad(loss))(*arguments))
    return re.findall(rf":(\S+)\[{tiny_config.num_layers},2,16,{tiny_config.hidden_size}\] = scan", traced)

  assert kept("full") == ["f32"] and kept("offload") == ["f32<host>"]


def test_a_program_that_got_to_no_assignment_has_no_peak(tmp_path):
  assert peak_of(tmp_path) is None


# Text as TPUs' compiler writes it.

HLO = """HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/run.py"
2 "/env/lib/python3.13/site-packages/jax/lax.py"

FunctionNames
1 "step"
2 "step.<locals>.inner"
3 "dot"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=0 end_column=0}
2 {file_name_id=1 function_name_id=2 line=3 end_line=3 column=0 end_column=0}
3 {file_name_id=2 function_name_id=3 line=99 end_line=99 column=0 end_column=0}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%body (p: (f32[8], f32[8])) -> (f32[8], f32[8]) {
  %p = (f32[8]{0}, f32[8]{0}) parameter(0)
  %taken = f32[8]{0} get-tuple-element(%p), index=1
  %half = bf16[8]{0} convert(%taken)
  ROOT %next = (f32[8]{0}, f32[8]{0}) tuple(%taken, %taken)
}

ENTRY %main (w: f32[8]) -> f32[8] {
  %w = f32[8]{0} parameter(0), metadata={op_name="state.params[\\'w\\']"}
  %first = f32[8]{0} dot(%w, %w), metadata={op_name="jit(step)/while/body/jvp(f/g)/dot_general" stack_frame_id=3}
  %both = (f32[8]{0}, f32[8]{0}) tuple(%first, %w)
  %loop = (f32[8]{0}, f32[8]{0}) while(%both), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=0
}
"""
ASSIGNMENT = """BufferAssignment:
allocation 0: size 4096, page 0, thread-local:
 value: <1 scratch @0> (size=4096,offset=0): f32[]
allocation 1: size 32, page 0, parameter 0, shape |f32[8]| at ShapeIndex {}:
 value: <2 w @0> (size=32,offset=0): f32[8]{0:T(8,128)}
allocation 2: size 999999, color 1, page 0, preallocated-temp:
 value: <3 in_vmem @1> (size=999999,offset=0): f32[8]{0:T(8,128)S(1)}
allocation 4: size 4096, color 5, page 0, preallocated-temp:
 value: <8 first @5> (size=4096,offset=0): f32[8,4,32]{0:T(8,128)S(5)}
allocation 3: size 128, page 0, preallocated-temp:
 value: <4 first @0> (size=32,offset=0): f32[8]{0:T(8,128)}
 value: <5 loop{0} (phi) @0> (size=32,offset=0): f32[8]{0:T(8,128)}
 value: <6 half @0> (size=16,offset=96): bf16[8]{0:T(8,128)}
 value: <7 late @0> (size=64,offset=32): f32[16]{0:T(8,128)}
"""
RANGES = """HloLiveRange (max 9):
  BufferLiveRange:
    w{}:0-9
    in_vmem{}:0-9
    first{}:1-4
    loop{0}:4-8
    half{}:2-4
    late{}:9-9
"""


def dumped(folder, hlo=HLO, ranges=RANGES):
  for suffix, text in (("", hlo), ("-buffer-assignment", ASSIGNMENT), ("-live-range", ranges)):
    (folder / f"module_0.jit_step.after_optimizations{suffix}.txt").write_text(text)
  return peak_of(folder)


def test_only_what_is_in_main_memory_at_the_moment_counts(tmp_path):
  """Values that follow each other in one place are one array; JAX's own frames are left out."""
  late = dumped(tmp_path)
  assert (late.temporary_bytes, late.live_bytes, host_bytes(tmp_path)) == (128, 64, 4096)
  peak = dumped(tmp_path, ranges=RANGES.replace("late{}:9-9", "late{}:4-9"))
  assert (peak.temporary_bytes, peak.live_bytes) == (128, 64 + 32 + 16)
  assert peak.buffers == (
    Buffer(64, "temporary", "f32[16]", "temporary", ()),  # the text has no such instruction
    Buffer(32, "argument", "f32[8]", "state.params['w']", ()),
    Buffer(32, "temporary", "f32[8]", "jvp(f/g)/dot_general",
           ("/somewhere/run.py:3 step.inner", "/somewhere/run.py:7 step")),
    Buffer(16, "temporary", "bf16[8]", "convert of state.params['w']", ()),  # through the loop
  )


def test_an_explanation_names_the_largest_and_sums_the_rest():
  lines = ("a.py:1 f", "b.py:2 g")
  temporary = lambda nbytes, count=1: Buffer(nbytes, "temporary", "f32[4,8]", f"add{nbytes}", lines, count)
  argument = lambda name: Buffer(10**9, "argument", "f32[8]", name, ())
  peak = Peak(8 * 10**9, 7 * 10**9, (
    temporary(3 * 10**9), temporary(2 * 10**9, 2), temporary(10**9), argument("state.params['a']['b']"),
    argument("state.params['c']"), argument("rollouts.tokens"), temporary(10**9)))
  program = pod_plan.Program("step", 1, 0, error="needs 20GiB of memory, of 15.75GiB that programs may use", peak=peak)
  plan = pod_plan.PodPlan("v5e:1x1", CHIPS["TPU v5 lite"], {"fsdp": 1}, 1, 1, 16, 16, 8, 8, 2, {},
                          (program, dataclasses.replace(program, name="sample", peak=None)))
  fields = json.loads(json.dumps(report(plan)))
  assert fields["programs"]["step"]["peak"]["buffers"][0]["lines"] == ["a.py:1 f", "b.py:2 g"]
  assert "peak" not in fields["programs"]["sample"]
  assert explanation(fields, longest=2).splitlines() == [
    "step, when most of its temporaries are in use, 7.000 of 8.000 GB:",
    "2.000  argument             state.params",
    "1.000  argument             rollouts.tokens",
    "3.000  f32[4,8]             add3000000000    a.py:1 f < b.py:2 g",
    "2.000  f32[4,8] and 1 more  add2000000000    a.py:1 f < b.py:2 g",
    "2.000  the rest",
    "",
    "sample: the compiler got to no assignment of memory",
  ]
