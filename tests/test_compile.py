"""What a compiled program costs, counted from its HLO; runs planned for slices that are not there."""

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys

from block_folder import SAMPLED, write_block_folder
from conftest import load_recipe, REPOSITORY
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import pytest

from gdsd_jax.generation import generator
from gdsd_jax.huggingface.published import architecture, PUBLISHED
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.planning import plan as pod_plan
from gdsd_jax.planning.chips import CHIPS
from gdsd_jax.planning.hlo_cost import Cost, program_cost
from gdsd_jax.planning.report import report, table
from gdsd_jax.planning.slices import check_shape
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.training import trainer as training, updates

V5E = CHIPS["TPU v5 lite"]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def cost_of(function, *arguments) -> Cost:
  return program_cost(jax.jit(function).lower(*arguments).compile().as_text())


def array(*shape, sharding=None, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def repeated(x, weights, times=3):
  """Three times through all layers."""
  layer = lambda x, w: (jnp.tanh(x @ w), None)
  return jax.lax.scan(lambda x, _: (jax.lax.scan(layer, x, weights)[0], None), x, length=times)[0]


# The parser, on programs of the CPU's compiler.


def test_a_matrix_product_in_a_loop_in_a_loop_counts_as_often_as_it_runs():
  assert cost_of(repeated, array(64, 128), array(5, 128, 128)).flops == 3 * 5 * 2 * 64 * 128 * 128


def test_xla_itself_counts_the_body_of_a_loop_once():
  """Why this package counts: if XLA ever does, there is no need to."""
  compiled = jax.jit(repeated).lower(array(64, 128), array(5, 128, 128)).compile()
  assert compiled.cost_analysis()["flops"] < 2 * (2 * 64 * 128 * 128)


def test_recomputed_products_count():
  def loss(x, weights, remat):
    layer = lambda x, w: (jnp.sin(x @ w) @ w, None)
    return jnp.sum(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False) if remat else layer, x, weights)[0])

  arguments = array(64, 128), array(5, 128, 128)
  product = 5 * 2 * 64 * 128 * 128
  gradient = lambda remat: jax.grad(functools.partial(loss, remat=remat), argnums=(0, 1))
  assert cost_of(gradient(False), *arguments).flops == 6 * product  # two forward, four backward
  assert cost_of(gradient(True), *arguments).flops == 7 * product  # the first again; nothing needs the second


def test_of_a_batched_product_every_contraction_counts():
  einsum = lambda x, y: jnp.einsum("bnqh,bnkh->bnqk", x, y)
  assert cost_of(einsum, array(2, 3, 16, 8), array(2, 3, 32, 8)).flops == 2 * 2 * 3 * 16 * 32 * 8


def test_a_branch_counts_as_the_dearest():
  def choose(small, x, y):
    return jax.lax.cond(small, lambda: x[:8] @ y, lambda: (x @ y)[:8])

  assert cost_of(choose, array(dtype=bool), array(64, 128), array(128, 128)).flops == 2 * 64 * 128 * 128


def test_a_product_over_a_split_axis_is_shared_and_summed_around_a_ring():
  mesh = make_mesh(1, 8, 1)
  x = array(64, 128, sharding=NamedSharding(mesh, P(None, "fsdp")))
  y = array(128, 256, sharding=NamedSharding(mesh, P("fsdp", None)))
  whole = NamedSharding(mesh, P())
  cost = cost_of(lambda x, y: jax.lax.with_sharding_constraint(x @ y, whole), x, y)
  assert cost.flops == 2 * 64 * 128 * 256 / 8
  assert cost.collectives == {"all-reduce": (1, 2 * 7 / 8 * 64 * 256 * 4)}


def test_gathers_in_a_loop_count_for_each_layer_in_their_own_group():
  mesh = make_mesh(2, 4, 1)
  x = array(64, 128, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
  weights = array(5, 128, 128, sharding=NamedSharding(mesh, P(None, "fsdp")))

  def layers(x, weights):
    whole = lambda w: jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
    split = lambda x: jax.lax.with_sharding_constraint(x, x_sharding)
    return jax.lax.scan(lambda x, w: (split(jnp.tanh(x @ whole(w))), None), x, weights)[0]

  x_sharding = x.sharding
  cost = cost_of(layers, x, weights)
  assert cost.flops == 5 * 2 * 64 * 128 * 128 / 8
  assert cost.collectives == {"all-gather": (5, 5 * 3 / 4 * 128 * 128 * 4)}


def test_text_that_is_no_hlo_is_refused():
  with pytest.raises(ValueError, match="no HLO module"):
    program_cost("nothing")


# The parser, on what TPU's compiler writes.


def module(*computations: str, header="HloModule test, num_partitions=4") -> str:
  return "\n\n".join([header, *computations])


def test_a_batched_product_written_as_a_dilated_convolution_counts_what_falls_on_the_input():
  text = module("""ENTRY %main (x: bf16[8,656,32,128], y: bf16[8,656,32,128]) -> f32[32,8,656,656] {
  %x = bf16[32,656,8,128]{3,1,2,0:T(8,128)(2,1)} parameter(0)
  %y = bf16[32,656,8,128]{3,1,2,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = f32[32,8,656,656]{3,2,1,0:T(8,128)} convolution(%x, %y), """
                """window={size=32x8 stride=31x7 lhs_dilate=32x8}, dim_labels=0b1f_0o1i->01bf
}""")
  assert program_cost(text).flops == 2 * 32 * 8 * 656 * 656 * 128


def test_a_projection_to_heads_written_as_a_padded_convolution_counts_what_falls_on_the_input():
  text = module("""ENTRY %main (x: bf16[16,656,128], w: bf16[128,32,128]) -> bf16[16,656,32,128] {
  %x = bf16[16,656,128,1]{2,1,0,3:T(8,128)(2,1)} parameter(0)
  %w = bf16[128,32,128,1]{2,1,0,3:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[16,656,32,128]{3,1,2,0:T(8,128)(2,1)} convolution(%x, %w), """
                """window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=b0f1_i1o0->b01f
}""")
  assert program_cost(text).flops == 2 * 16 * 656 * 128 * 32 * 128


LOOP = ("""%body (s: (s32[], f32[4,8,8])) -> (s32[], f32[4,8,8]) {
  %s = (s32[]{:T(128)}, f32[4,8,8]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %w = f32[4,8,8]{2,1,0} get-tuple-element(%s), index=1
  %step = s32[] constant(2)
  %next = s32[]{:T(128)} add(%i, %step)
  %layer = f32[1,8,8]{2,1,0} fusion(%w, %i), kind=kLoop, calls=%slice
  %kept = f32[1,8,8]{2,1,0:S(1)} fusion(%layer), kind=kLoop, calls=%square
  ROOT %t = (s32[]{:T(128)}, f32[4,8,8]{2,1,0}) tuple(%next, %w)
}""", """%slice (p: f32[4,8,8], i: s32[]) -> f32[1,8,8] {
  %p = f32[4,8,8]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %d = f32[1,8,8]{2,1,0} dynamic-slice(%p, %i.1, %zero, %zero), dynamic_slice_sizes={1,8,8}
}""", """%square (p: f32[1,8,8]) -> f32[1,8,8] {
  %p.1 = f32[1,8,8]{2,1,0} parameter(0)
  ROOT %m = f32[1,8,8]{2,1,0} multiply(%p.1, %p.1)
}""", """%condition (s: (s32[], f32[4,8,8])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, f32[4,8,8]{2,1,0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %limit = s32[] constant(%LIMIT)
  ROOT %less = pred[] compare(%i.2, %limit), direction=LT
}""", """ENTRY %main (w: f32[4,8,8]) -> f32[4,8,8] {
  %w.1 = f32[4,8,8]{2,1,0} parameter(0)
  %first = s32[] constant(1)
  %state = (s32[], f32[4,8,8]{2,1,0}) tuple(%first, %w.1)
  %loop = (s32[]{:T(128)}, f32[4,8,8]{2,1,0}) while(%state), condition=%condition, body=%body
  ROOT %result = f32[4,8,8]{2,1,0} get-tuple-element(%loop), index=1
}""")


@pytest.mark.parametrize("limit, trips", [(1, 0), (2, 1), (7, 3), (8, 4)])
def test_loops_run_as_often_as_their_counter_says_and_slices_alone_are_read(limit, trips):
  """From 1 in steps of 2; what lies in the chip's vector memory, S(1), is no traffic."""
  cost = program_cost(module(*LOOP).replace("%LIMIT", str(limit)))
  scalar, layer = 4, 8 * 8 * 4
  # A layer is read and written, then read; the counter is added to, compared (to a byte), and read by the slice.
  assert cost.hbm_bytes == trips * (3 * layer + 3 * scalar + (2 * scalar + 1) + scalar)


def test_a_collective_that_is_spread_over_fusions_counts_once():
  gather = "all-gather(%{0}), channel_id=7, replica_groups=[2,2]<=[4], dimensions={{0}}, use_global_device_ids=true"
  text = module(
    """%start (p: bf16[8,16]) -> (bf16[8,16], bf16[16,16], u32[]) {
  %p = bf16[8,16]{1,0} parameter(0)
  %g = bf16[16,16]{1,0} """ + gather.format("p") + """
  ROOT %c = (bf16[8,16]{1,0}, bf16[16,16]{1,0}, u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}""", """%between (p: bf16[8,16], q: bf16[16,16]) -> (bf16[16,16], bf16[16,16]) {
  %p.1 = bf16[8,16]{1,0} parameter(0)
  %q.1 = bf16[16,16]{1,0} parameter(1)
  %g.1 = bf16[16,16]{1,0} """ + gather.format("p.1") + """
  ROOT %t.1 = (bf16[16,16]{1,0}, bf16[16,16]{1,0}) tuple(%q.1, %g.1)
}""", """ENTRY %main (x: bf16[8,16]) -> bf16[16,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %s = (bf16[8,16]{1,0}, bf16[16,16]{1,0}, u32[]) fusion(%x), kind=kCustom, calls=%start
  %a = bf16[8,16]{1,0} get-tuple-element(%s), index=0
  %b = bf16[16,16]{1,0} get-tuple-element(%s), index=1
  %m = (bf16[16,16]{1,0}, bf16[16,16]{1,0}) fusion(%a, %b), kind=kOutput, calls=%between
  ROOT %r = bf16[16,16]{1,0} get-tuple-element(%m), index=1
}""")
  assert program_cost(text).collectives == {"all-gather": (1, 8 * 16 * 2)}


def test_a_grouped_product_counts_each_row_once_on_the_shard_of_its_expert():
  """Written as a product of all rows with each group's weights, of which TPUs skip the tiles of others."""
  text = module("""%grouped (x: bf16[1,4096,64], w: bf16[8,64,32]) -> bf16[4096,32] {
  %x = bf16[8,4096,64]{2,1,0} parameter(0)
  %w = bf16[8,64,32]{2,1,0} parameter(1)
  %c = bf16[8,4096,32]{2,1,0} convolution(%x, %w), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
  ROOT %r = bf16[4096,32]{1,0} bitcast(%c)
}""", """ENTRY %main (x: bf16[8,4096,64], w: bf16[8,64,32]) -> bf16[4096,32] {
  %x = bf16[8,4096,64]{2,1,0} parameter(0)
  %w = bf16[8,64,32]{2,1,0} parameter(1)
  ROOT %f = bf16[4096,32]{1,0} fusion(%x, %w), kind=kOutput, calls=%grouped, """
                """backend_config={"convolution_algorithm_config":{"is_ragged_dot":true,"num_groups_in_ragged_dot":"8"}}
}""")
  assert program_cost(text).flops == 2 * 4096 * 64 * 32
  assert program_cost(text, expert_shards=4).flops == 2 * 4096 * 64 * 32 / 4


def test_a_loop_that_may_end_earlier_counts_as_often_as_it_may():
  def loop(x, w):
    body = lambda state: (state[0] + 1, jnp.tanh(state[1] @ w))
    return jax.lax.while_loop(lambda state: (state[0] < 7) & jnp.any(state[1] > 0), body, (0, x))[1]

  cost = cost_of(loop, array(64, 128), array(128, 128))
  assert cost.flops == 7 * 2 * 64 * 128 * 128 and cost.loops_of_unknown_length == 0


@pytest.mark.parametrize("kernel, products", [
  ("splash_mha_fwd_segmented_no_residuals", 2), ("splash_mha_dq_segmented_no_residuals", 3),
  ("splash_mha_dkv_segmented_no_residuals", 4), ("another", 0),
])
def test_a_kernel_reads_and_writes_its_arrays_and_counts_its_products(kernel, products):
  array = "bf16[2,4,256,128]{3,2,1,0}"
  text = module(f"""ENTRY %main (q: bf16[2,4,256,128], k: bf16[2,4,384,128]) -> bf16[2,4,256,128] {{
  %q = {array} parameter(0)
  %k = bf16[2,4,384,128]{{3,2,1,0}} parameter(1)
  %m = s8[1,2,2]{{2,1,0}} constant({{...}})
  ROOT %{kernel}.1 = {array} custom-call(%m, %m, %q, %k, %k), custom_call_target="tpu_custom_call"
}}""")
  cost = program_cost(text)
  assert cost.flops == products * 2 * 2 * 4 * 256 * 384 * 128
  assert cost.hbm_bytes == 2 * (2 * 4 * 128) * (256 + 384 + 384 + 256) + 2 * 4


def test_a_collective_of_a_sparse_core_counts():
  """As libtpu 0.0.52 writes it for tpu7x."""
  text = module("""%called (x: bf16[12,4]) -> bf16[48,4] {
  %x = bf16[12,4]{1,0} parameter(0)
  ROOT %g = bf16[48,4]{1,0} all-gather(%x), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}
}""", """%wrapped (y: bf16[12,4]) -> bf16[48,4] {
  %y = bf16[12,4]{1,0} parameter(0)
  ROOT %c = bf16[48,4]{1,0} custom-call(%y), custom_call_target="sparse", called_computations={%called}
}""", """ENTRY %main (z: bf16[12,4]) -> bf16[48,4] {
  %z = bf16[12,4]{1,0} parameter(0)
  %s = ((bf16[12,4]{1,0}), bf16[48,4]{1,0}, s32[]) async-start(%z), async_execution_thread="sparsecore", calls=%wrapped
  ROOT %d = bf16[48,4]{1,0} async-done(%s), calls=%wrapped
}""")
  assert program_cost(text).collectives == {"all-gather": (1, 3 * 12 * 4 * 2)}


def test_an_asynchronous_slice_reads_what_it_takes():
  text = module("""%slice (p: f32[4,8,8]) -> f32[1,8,8] {
  %p = f32[4,8,8]{2,1,0} parameter(0)
  ROOT %taken = f32[1,8,8]{2,1,0:S(1)} slice(%p), slice={[0:1], [0:8], [0:8]}
}""", """ENTRY %main (x: f32[4,8,8]) -> f32[1,8,8] {
  %x = f32[4,8,8]{2,1,0} parameter(0)
  %s = ((f32[4,8,8]{2,1,0}), f32[1,8,8]{2,1,0:S(1)}, s32[]{:S(2)}) async-start(%x), calls=%slice
  ROOT %d = f32[1,8,8]{2,1,0:S(1)} async-done(%s), calls=%slice
}""")
  assert program_cost(text).hbm_bytes == 8 * 8 * 4


@pytest.mark.parametrize("kind, target, share", [
  ("ALL_REDUCE", '"{1,2}x{0:3}"', 1), ("ALL_REDUCE", '"{1:4}x{0:15}"', 2 * 3 / 4), ("ALL_GATHER", '"{1:4}x{0:15}"', 3),
  ("REDUCE_SCATTER", '"{1,3}x{0:15}"', 1 / 2), ("ALL_TO_ALL", '"{1,2,5:6}x{0}"', 3 / 4),
  ("ALL_TO_ALL", "{{100000,200000,300000,400000},{100001,200001,300001,400001}}", 3 / 4),
  ("ONE_TO_ONE", "{{100003->200000},{200000->100003}}", 1),
])
def test_what_is_handed_to_megascale_goes_to_other_slices(kind, target, share):
  """As libtpu 0.0.52 writes it, here in a loop that runs three times."""
  send = f"""  %after = token[] after-all()
  %send = (f32[4,8,8]{{2,1,0}}, u32[]{{:S(2)}}, token[]) send(%w, %after), channel_id=2, is_host_transfer=true, """ \
    f"""frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime","""  \
    f"""_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}
"""
  cost = program_cost(module(*LOOP).replace("  ROOT %t = ", f"{send}  ROOT %t = ").replace("%LIMIT", "7"))
  assert cost.between_slices == {kind.lower().replace("_", "-"): (3, 3 * share * 4 * 8 * 8 * 4)}
  assert cost.bytes_between_slices == 3 * share * 4 * 8 * 8 * 4 and cost.collective_bytes == 0


@pytest.mark.parametrize("groups, size", [
  ("{{0,1},{2,3}}", 2), ("[1,4]<=[4]", 4), ("[2,2]<=[2,2]T(1,0)", 2), ("{}", 4),
  ("mesh['axis_0'=4] {'axis_0'}", 4), ("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", 2),
  ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", 2), ("mesh['a'=2,'b'=2] {'a','b'}", 4),
  ("mesh['a'=4] {'a':(2)2}", 2),
])
def test_groups_of_a_collective_in_every_notation(groups, size):
  text = module("""ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  ROOT %r = f32[64]{0} all-reduce(%x), channel_id=1, replica_groups=""" + groups + """, to_apply=%add
}""")
  assert program_cost(text).collectives == {"all-reduce": (1, 2 * (size - 1) / size * 64 * 4)}


def test_a_loop_whose_length_the_text_does_not_tell_is_reported():
  """Its limit is carried, and changes."""
  text = module(*LOOP).replace("%limit = s32[] constant(%LIMIT)", "%limit = s32[] get-tuple-element(%s.1), index=0")
  assert program_cost(text).loops_of_unknown_length == 1


# Plans, with the test's own eight devices in the place of a slice.


@pytest.fixture
def chips(monkeypatch):
  """Sets how many of them there are."""
  return lambda count: monkeypatch.setattr(pod_plan, "slice_devices", lambda *_: (jax.devices()[:count], V5E))


def tiny(**changes):
  config = load_recipe("gdsd_math").get_config("tiny")
  config.update_from_flattened_dict({
    "group_size": 4, "prompts_per_step": 4, "optimizer.accumulation": 2, "objective.num_iterations": 2,
    "eval.num_examples": 8, "eval.batch_size": 8, "sampler.steps": 4, **changes,
  })
  return run_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("rank, in_blocks", [(0, False), (4, False), (4, True)])
def test_the_programs_are_those_that_training_calls(tmp_path, monkeypatch, rank, in_blocks):
  """Same static arguments, and of every array the same shape, type and layout."""
  changes = {**SAMPLED, "model.path": str(write_block_folder(tmp_path / "model"))} if in_blocks else {}
  config = tiny(**{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "model.lora.rank": rank, **changes})
  calls = {}

  def spy(module, name):
    function = getattr(module, name)

    def called(*arguments, **keywords):
      calls.setdefault(name, []).append(described((arguments, keywords)))
      return function(*arguments, **keywords)

    monkeypatch.setattr(module, name, called)

  def described(call):
    """Static arguments as they are; arrays as (shape, type, how each dimension is split)."""

    def leaf(x):
      if not hasattr(x, "sharding"):
        return "optimizer" if callable(x) else x  # its functions are made anew each time
      return x.shape, x.dtype, str(x.sharding.shard_shape(x.shape))

    return jax.tree.map(leaf, call)

  spy(generator, "sample"), spy(updates, "score_rollouts"), spy(updates, "distillation_step")
  trainer = training.Trainer(config, tmp_path / "run")
  trainer.iterate(training.Stopwatch())
  planned = list(pod_plan.AbstractRun(config, trainer.mesh).calls())
  assert [name for name, *_ in planned] == list(calls)
  for name, times, _, arguments, keywords in planned:
    assert len(calls[name]) == times
    assert all(call == described((arguments, keywords)) for call in calls[name])


@pytest.mark.slow
def test_a_plan_of_the_embedded_run(chips):
  chips(2)
  plan = pod_plan.plan(tiny(**{"mesh.fsdp": 2}), "v5e:1x2")
  sample, score, step = plan.programs
  assert (sample.name, score.name, step.name) == ("sample", "score_rollouts", "distillation_step")
  assert (sample.calls, score.calls, step.calls) == (1, 2 + 2 + 1, 2)
  assert plan.parameters == plan.trained_parameters == 412_320
  share = 4 * plan.parameters / 2  # float32, over fsdp
  assert plan.state_bytes == pytest.approx(
    {"params": share, "frozen": 0, "opt_state": 2 * share, "reference": share}, rel=0.01
  )
  assert score.resident_bytes == pytest.approx(3 * share, rel=0.01) and step.resident_bytes == 0
  # Two samples, two passes of a pair, 16 rollouts of 36 + 16 tokens over two chips; the head sees each token once.
  D, F, V, T, layers, rollouts = 96, 256, 416, 52, 3, 16 / 2
  block = 2 * T * (4 * D * D + 3 * D * F) + 4 * T * T * D
  assert score.cost.flops == 2 * rollouts * (2 * layers * block + 2 * 16 * D * V)
  assert plan.fits and plan.peak_bytes == step.peak_bytes + plan.code_bytes
  fields = json.loads(json.dumps(report(plan)))
  assert fields["fits"] is True and fields["iteration"]["flops"] == sum(p.calls * p.cost.flops for p in plan.programs)
  assert table(fields).splitlines()[-1].startswith("fits: 0.0")


def test_evaluation_that_samples_more_at_once_is_compiled_too():
  config = tiny(**{"eval.batch_size": 32})
  run = pod_plan.AbstractRun(config, make_mesh())
  assert [name for name, *_ in run.calls()] == ["sample", "evaluate", "score_rollouts", "distillation_step"]


@pytest.mark.slow
def test_chips_and_rollouts_doubled_together_leave_each_chip_its_work(chips):
  plans = []
  for count in (4, 8):
    chips(count)
    plans.append(pod_plan.plan(tiny(**{"mesh.fsdp": 2, "prompts_per_step": count}), "v5e:2x4"))
  assert [p.cost.flops for p in plans[0].programs] == [p.cost.flops for p in plans[1].programs]


def a_plan(**program) -> pod_plan.PodPlan:
  programs = (pod_plan.Program("sample", 1, resident_bytes=4 * 10**9, **program),)
  return pod_plan.PodPlan("v5e:4x4", V5E, {"data": 1, "fsdp": 16, "tensor": 1}, 1, 1, 16, 16, 8, 8, 2, {}, programs)


def test_what_goes_to_other_slices_is_a_number_of_its_own_with_its_own_time():
  cost = Cost(flops=197e12, collectives={"all-gather": (3, 4e9)}, between_slices={"all-reduce": (2, 6.25e9)})
  plan = dataclasses.replace(a_plan(cost=cost), mesh={"data": 2, "fsdp": 16, "tensor": 1}, slices=2)
  fields = json.loads(json.dumps(report(plan)))
  program = fields["programs"]["sample"]
  assert fields["chips"] == 32 and program["bytes_between_slices"] == 6.25e9 and program["collective_bytes"] == 4e9
  assert program["between_slices"] == {"all-reduce": {"count": 2, "bytes": 6.25e9}}
  # v5e's 6.4 Tbit/s for 256 chips are 25 Gbit/s for each.
  assert program["seconds"]["between slices"] == program["roofline_seconds"] == 2
  assert fields["iteration"]["roofline_seconds"] == 2
  lines = table(fields).splitlines()
  assert lines[0] == "2 slices of v5e:4x4: 32 chips of 16 GB, mesh data 2, fsdp 16, tensor 1"
  rows = {line.strip().rsplit("  ", 1)[0].strip(): line.split()[-1] for line in lines if "slices" in line}
  assert rows["bytes between slices, GB"] == "6.25" and rows["between slices"] == "2"
  assert "between slices" not in table(report(a_plan(cost=cost)))


def test_a_chip_of_two_devices_is_counted_once():
  plan = dataclasses.replace(a_plan(cost=Cost(flops=1e12)), topology="tpu7x:2x2x2", chip=CHIPS["TPU7x"])
  first = table(report(plan)).splitlines()[0]
  assert first == "tpu7x:2x2x2: 8 chips of 2 devices of 96 GB, mesh data 1, fsdp 16, tensor 1"


def test_peak_memory_is_what_lies_there_at_once():
  gigabytes = {name: int(size * 1e9) for name, size in {
    "argument_bytes": 3, "output_bytes": 2, "alias_bytes": 1.5, "temporary_bytes": 7, "code_bytes": 0.5,
  }.items()}
  plan = a_plan(**gigabytes, cost=Cost(flops=1e12))
  assert plan.peak_bytes == (4 + 3 + 2 - 1.5 + 7 + 2 * 0.5) * 1e9 and plan.fits
  more = dataclasses.replace(plan, prompt_buckets=4)
  assert not more.fits and table(report(more)).splitlines()[-1] == "DOES NOT FIT: 16.50 of 16 GB"


def test_a_program_that_does_not_compile_for_want_of_memory_does_not_fit():
  plan = a_plan(error="needs 22.40GiB of memory, of 15.75GiB that programs may use")
  fields = report(plan)
  assert not plan.fits and fields["peak_bytes"] is None and fields["iteration"] is None
  assert table(fields).splitlines()[-2:] == [
    "sample needs 22.40GiB of memory, of 15.75GiB that programs may use", "DOES NOT FIT"
  ]


@pytest.mark.parametrize("message, line", [
  ("RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO temporaries (22.40G) exceeds"
   " available HBM (15.75G). HLO module: jit_step.", "needs 22.40GiB of memory, of 15.75GiB that programs may use"),
  ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded capacity by 4.7G.",
   "needs 20.5GiB of memory, of 15.75GiB that programs may use"),
  ("RESOURCE_EXHAUSTED: something\n else", "RESOURCE_EXHAUSTED: something else"),
])
def test_want_of_memory_is_told_in_one_line(message, line):
  assert pod_plan._out_of_memory(message) == line


# What cannot be planned is told in one line.


def test_without_libtpu_its_installation_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"--topology: needs libtpu.*pip install libtpu.*gdsd_jax\[tpu\]"):
    pod_plan.slice_devices("v5e:4x4")


@pytest.mark.parametrize("slices", [0, -1])
def test_a_number_of_slices_that_cannot_be_is_refused(slices):
  with pytest.raises(ValueError, match=f"^--slices: must be at least 1, not {slices}$"):
    pod_plan.slice_devices("v5e:4x4", slices)


@pytest.mark.parametrize("topology", ["v9:4x4", "4x4", "", "v5litepod-16"])
def test_a_slice_of_no_known_chip_is_refused(monkeypatch, topology):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
  with pytest.raises(ValueError, match="is no slice of v5e, v5p, v6e, tpu7x: a generation and its chips, as v5e:4x4"):
    pod_plan.slice_devices(topology)


@pytest.mark.parametrize("topology", [
  "v5e:2x2x2", "v6e:4x4x4", "v5e:0x0", "v5e:3x3", "v5e:4x2", "v5e:32x32", "v5e:12x12", "v5e:", "v5e:axb", "v5e:-4x4",
  "v5e:4x4_twisted", "tpu7x:1x1x1", "v5p:4x4", "v5p:3x3x3", "v5p:2x2x3", "v5p:2x2x8", "v5p:8x4x4", "v5p:32x32x32",
  "v5p:0x0x0",
])
def test_a_shape_that_no_slice_has_is_refused_with_those_that_exist(topology):
  """libtpu itself compiles for most of these."""
  generation, _, shape = topology.partition(":")
  largest = {"v5p": 6144, "tpu7x": 9216}
  exist = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16$" if generation not in largest else (
    "2x2x1, 2x2x2, 2x2x4, 2x4x4, and those of three ascending multiples of 4, as 4x4x8, up to"
    f" {largest[generation]} chips$")
  with pytest.raises(ValueError, match=rf"^--topology: {generation} has no slice '{shape}'; it has {exist}"):
    pod_plan.slice_devices(topology)


@pytest.mark.parametrize("topology", [
  "v5e:1x1", "v6e:2x4", "v6e:16x16", "v4:2x2x4", "v4:8x16x16", "v5p:4x4x4", "v5p:4x4x12", "v5p:16x16x24",
  "v5p:4x4x8_twisted", "tpu7x:2x2x1", "tpu7x:8x8x16",
])
def test_shapes_that_exist_are_let_through(topology):
  generation, _, shape = topology.partition(":")
  check_shape(generation, shape)


def test_a_mesh_that_does_not_fit_the_slice_is_refused_with_the_numbers(chips):
  chips(8)
  with pytest.raises(ValueError, match="mesh.fsdp=3.*their product must be the number of devices, 8"):
    pod_plan.plan(tiny(**{"mesh.fsdp": 3}), "v5e:2x4")


def test_memory_of_a_host_that_is_the_device_is_refused(chips):
  chips(1)
  with pytest.raises(ValueError, match="^model.remat: 'offload' is for TPUs and GPUs, whose memory is not the host's"):
    pod_plan.plan(tiny(**{"model.remat": "offload"}), "v5e:1x1")


def test_a_published_architecture_needs_no_files_and_a_folder_no_weights(tmp_path):
  name = "Dream-org/Dream-v0-Instruct-7B"
  (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
  assert architecture(name) == architecture(str(tmp_path))
  assert architecture("tiny").vocab_size == 416


def test_a_model_that_would_have_to_be_downloaded_is_refused_with_what_is_known():
  with pytest.raises(ValueError, match=r"model.path: 'some/Other' is no folder.*LLaDA-8B.*Dream.*its config.json"):
    architecture("some/Other")


# The command, with libtpu.


def run_command(*arguments):
  environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}  # libtpu does not know all of the tests'
  return subprocess.run(
    [sys.executable, "launch/compile.py", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    timeout=600,
  )


@needs_libtpu
@pytest.mark.slow
def test_the_embedded_run_is_planned_for_a_slice(tmp_path):
  done = run_command("--config=configs/gdsd_math.py", "--topology=v5e:2x4", "--config.mesh.fsdp=2",
                     "--config.mesh.tensor=2", f"--hlo={tmp_path}", "--explain")
  assert done.returncode == 0, done.stderr
  told = done.stdout.partition("distillation_step, when most of its temporaries are in use, ")[2]
  assert "  argument " in told and re.search(r"  (models|diffusion|objectives)/\w+\.py:\d+ ", done.stdout)
  fields = json.loads(done.stdout.splitlines()[-1])
  assert fields["chips"] == 8 and fields["fits"] and fields["peak_bytes"] < 1e9
  programs = fields["programs"]
  assert all(program["loops_of_unknown_length"] == 0 for program in programs.values())
  for program in programs.values():  # nearly all that is temporary lies in the chip's vector memory
    assert program["peak"]["live_bytes"] <= program["peak"]["temporary_bytes"] <= program["temporary_bytes"]
  D, F, V, T, layers, rollouts = 96, 256, 416, 52, 3, 64 / 8
  block = 2 * T * (4 * D * D + 3 * D * F) + 4 * T * T * D
  assert programs["score_rollouts"]["flops"] == 2 * rollouts * (2 * layers * block + 2 * 16 * D * V)
  assert sorted(file.stem for file in tmp_path.iterdir()) == sorted(programs)


@needs_libtpu
@pytest.mark.slow
def test_only_the_adapters_gradient_crosses_slices():
  done = run_command("--config=configs/gdsd_math.py", "--topology=v5e:2x2", "--slices=2", "--config.mesh.fsdp=-1",
                     "--config.model.lora.rank=4", "--config.optimizer.accumulation=2")
  assert done.returncode == 0, done.stderr
  fields = json.loads(done.stdout.splitlines()[-1])
  assert fields["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1} and fields["chips"] == 8
  sent = {name: program["between_slices"] for name, program in fields["programs"].items()}
  step = sent.pop("distillation_step")
  assert not any(sent.values()) and list(step) == ["all-reduce"]
  # Once, and a piece from each chip; small matrices are padded to tiles of 8 × 128, and three scalars to 512 bytes.
  assert step["all-reduce"]["count"] < 10
  assert fields["trained_parameters"] * 4 / 4 <= step["all-reduce"]["bytes"] < 2 * fields["trained_parameters"] * 4 / 4


@needs_libtpu
@pytest.mark.slow
def test_a_run_that_does_not_fit_ends_with_status_1():
  done = run_command("--config=configs/gdsd_math.py:llada_8b", "--topology=v5e:1x1", "--config.mesh.fsdp=1",
                     "--config.optimizer.accumulation=256", "--explain")
  assert done.returncode == 1, done.stderr
  fields = json.loads(done.stdout.splitlines()[-1])
  assert fields["fits"] is False
  # What it is that does not fit is told all the same: the head's weights, an argument of 4096 × 126464 bfloat16.
  held = {buffer["made_by"]: buffer["nbytes"] for buffer in fields["programs"]["distillation_step"]["peak"]["buffers"]}
  assert held["state.frozen['head']"] == 2 * 4096 * 126464
  assert "DOES NOT FIT" in done.stdout


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("arguments, message", [
  (["--topology=v5e:2x2x2"], "error: --topology: v5e has no slice '2x2x2'; it has 1x1, 2x2, "),
  (["--topology=v5e:4x4", "--config.mesh.fsdp=5"], "mesh.fsdp=5, mesh.tensor=1: their product must be the number of"),
  (["--topology=v5e:4x4", "--slices=2", "--config.mesh.data=1", "--config.mesh.fsdp=-1"],
   "mesh.data=1: must be a multiple of the 2 slices, which no other axis crosses"),
  (["--topology=v5e:4x8", "--config.optimizer.accumulation=4"], "cannot be split over mesh.data × mesh.fsdp = 32"),
  (["--topology=v5e:4x4", "--config.mesh.context=3"], "mesh.context=3, mesh.tensor=1: their product must be the"),
  (["--topology=v5e:4x4", "--config.mesh.context=16", "--config.sampler.prompt_buckets=(100,)"],
   "sampler.prompt_buckets, sampler.completion_length: 100 + 16 tokens are no multiple of mesh.context=16, which"),
])
def test_what_cannot_be_planned_is_one_line(arguments, message):
  done = run_command("--config=configs/gdsd_math.py", *arguments)
  assert done.returncode == 1 and message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
