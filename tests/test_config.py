"""Configuration: defaults, one clear refusal for each bad field, and what a resumed run may change."""

import dataclasses
import json
import sys

from absl import flags
from conftest import load_recipe
from ml_collections import config_flags
import pytest

from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import base_config, config_json, flatten, run_config
from gdsd_jax.runs.fit import validate_mesh
from gdsd_jax.runs.saved_config import contradictions


def recipe(**fields):
  """base_config with fields "section__name" set."""
  config = base_config()
  with config.ignore_type():
    config.update_from_flattened_dict({path.replace("__", "."): value for path, value in fields.items()})
  return config


def changed(**fields) -> RunConfig:
  """The typed config of such a recipe."""
  return run_config(recipe(**fields))


def as_saved(config: RunConfig):
  return json.loads(config_json(config))


def test_the_columns_of_a_source_are_one_word_on_the_command_line(monkeypatch):
  command, values = ["train", "--config.task.columns=question=problem,answer=solution"], flags.FlagValues()
  monkeypatch.setattr(sys, "argv", command)  # ml_collections looks there for the fields that are set
  config_flags.DEFINE_config_dict("config", base_config(), flag_values=values)
  values(command)
  assert run_config(values.config).task.options == {"columns": "question=problem,answer=solution"}


def test_every_field_of_a_recipe_reaches_the_typed_config():
  """Each is set to another value, and nothing but what it was is read from anywhere."""
  others = {
    "seed": 1, "steps": 7, "group_size": 4, "prompts_per_step": 3, "async_rollouts": True, "max_skipped_steps": 2,
    "model.path": "there", "model.revision": "v1", "model.dtype": "bfloat16", "model.remat": "none",
    "model.mlp_tokens": 7,
    "model.lora.rank": 3, "model.lora.alpha": 2.0, "model.lora.dropout": 0.5, "model.lora.targets": ("q",),
    "model.lora.path": "adapter", "model.train_router": False, "model.layout": "own.py:Layout",
    "model.mask_token_id": 3, "model.eos_token_id": 5, "model.block_length": 8,
    "model.quantize.kind": "int4", "model.quantize.block_size": 32, "model.quantize.head": True,
    "model.quantize.embedding": True,
    "task.name": "mine", "task.train_source": "a", "task.test_source": "b", "task.data_dir": "c",
    "task.validation_source": "d", "task.rewards": ("e",), "task.reward_weights": (0.5,),
    "task.columns": "d=e", "task.bad_rows": "skip",
    "sampler.kind": "dream", "sampler.completion_length": 64, "sampler.steps": 32, "sampler.temperature": 0.5,
    "sampler.block_length": 16, "sampler.remasking": "low_confidence", "sampler.cfg_scale": 0.0,
    "sampler.noise": "exact", "sampler.eos_penalty": 0.5,
    "sampler.alg": "maskgit_plus", "sampler.alg_temp": 0.0, "sampler.top_p": 0.5, "sampler.top_k": 9,
    "sampler.eps": 1e-2, "sampler.cache": "dual", "sampler.threshold": 0.8, "sampler.factor": None,
    "sampler.editing_threshold": None, "sampler.max_post_steps": 16,
    "sampler.early_stop": True, "sampler.prompt_buckets": (7,), "sampler.microbatches": 2,
    "sampler.other_family": True, "sampler.slots": 2,
    "masks.kind": "blocks", "masks.block_length": 4, "masks.remasking": "random", "masks.fresh": False,
    "objective.name": "gdsd_tlc", "objective.psi": 0.1, "objective.epsilon": 0.3, "objective.beta": 0.7,
    "objective.center_top_k": 8, "objective.center_gradient": True, "objective.weighted": False,
    "objective.coupled": False,
    "objective.num_mc": 3, "objective.num_iterations": 5, "objective.scale_rewards": True,
    "objective.advantages": "leave_one_out", "objective.least_accuracy": 0.1, "objective.largest_accuracy": 0.9,
    "objective.redraws": 0,
    "objective.reference_sync_every": 0, "objective.reference_sync_mix": 0.1, "optimizer.learning_rate": 1.0,
    "optimizer.schedule": "linear", "optimizer.warmup_steps": 1, "optimizer.warmup_ratio": 0.0,
    "optimizer.final_share": 0.5, "optimizer.b1": 0.1, "optimizer.b2": 0.2, "optimizer.weight_decay": 0.3,
    "optimizer.clip": 0.4, "optimizer.moments_dtype": "bfloat16", "optimizer.accumulation": 3, "eval.every": 8,
    "eval.num_examples": 9, "eval.batch_size": 10, "eval.lengths": (32,), "eval.steps_per_token": 1.0,
    "eval.block_length": 8, "eval.prompt_buckets": (5,), "eval.prefill": "so", "eval.prompt": "training",
    "eval.temperature": 0.1, "eval.top_p": 0.9, "eval.top_k": 7, "eval.alg": "topk_margin", "eval.alg_temp": 0.0,
    "eval.remasking": "low_confidence", "eval.cfg_scale": 0.0, "eval.cache": "dual", "eval.threshold": 0.7,
    "eval.factor": None, "eval.test_size": 5, "eval.eos_penalty": 0.25,
    "checkpoint.every": 2,
    "checkpoint.keep": 3, "mesh.data": 2, "mesh.fsdp": 3, "mesh.tensor": 4, "mesh.expert": 2, "mesh.context": 2,
    "log.every": 5, "log.rollouts_every": 6,
    "log.keep_every": 3, "log.keep_groups": 5, "log.keep_megabytes": 1.5,
    "log.trajectory": True, "log.plot_seconds": 7.0, "log.tensorboard": False, "log.wandb_project": "",
  }
  fields = base_config()
  assert others.keys() == flatten(fields.to_dict()).keys()
  fields.update_from_flattened_dict(others)
  typed = run_config(fields)
  config = dataclasses.asdict(typed) | {"sampler": typed.sampler.settings}
  config.pop("as_given")
  sections = {
    **config, "model": {**config["model"], "lora": {**config["model"]["lora"], "path": config["model"]["lora_path"]}},
    "task": {"name": config["task"]["name"], **config["task"]["options"]},
    "sampler": config["sampler"] | config["rollouts"],
    "objective": {"name": typed.objective.name, **config["objective"], **config["distillation"]},
  }
  del sections["rollouts"], sections["distillation"], sections["model"]["lora_path"]
  assert flatten(sections) == flatten(fields.to_dict())


def test_a_field_that_no_run_has_is_refused():
  config = base_config()
  config.sampler.tempreature = 0.5
  with pytest.raises(ValueError, match="^--config.sampler.tempreature: the config has no field 'sampler.tempreature'; "
                                          "did you mean 'sampler.temperature'\\?$"):
    run_config(config)


def test_a_task_has_fields_of_its_own():
  config = base_config()
  config.task.variant = "small"
  assert run_config(config).task.options == {"variant": "small"}


@pytest.mark.parametrize("field, value", [
  ("seed", -1), ("seed", 2**32), ("seed", 2**63), ("seed", 2**64),
  ("steps", 2**31), ("steps", 2**30), ("log.every", 2**40), ("objective.num_mc", 10**6), ("sampler.steps", 2**21),
  ("eval.lengths", (2**40,)),
  ("steps", 0),
  ("steps", None),
  ("group_size", 1),
  ("prompts_per_step", 0),
  ("max_skipped_steps", 0),
  ("model.remat", "other"),
  ("sampler.kind", "other"),
  ("sampler.remasking", "other"),
  ("sampler.completion_length", 0),
  ("sampler.steps", 0),
  ("sampler.steps", 257),
  ("sampler.block_length", 0),
  ("sampler.block_length", 100),
  ("sampler.temperature", -0.5),
  ("sampler.cfg_scale", -1.0),
  ("sampler.microbatches", 0),
  ("sampler.microbatches", 3),
  ("sampler.prompt_buckets", ()),
  ("sampler.prompt_buckets", (64, 32)),
  ("sampler.prompt_buckets", (32, 32)),
  ("sampler.prompt_buckets", (0, 32)),
  ("sampler.prompt_buckets", ("32",)),
  ("eval.lengths", (128, 256.0)),
  ("masks.kind", "other"),
  ("masks.block_length", 8),
  ("masks.remasking", "random"),
  ("model.layout", "dream"),
  ("model.mask_token_id", -1),
  ("model.block_length", 0),
  ("objective.name", "other"),
  ("objective.psi", 0.0),
  ("objective.psi", float("nan")),
  ("objective.epsilon", 0.0),
  ("objective.epsilon", 1.0),
  ("objective.beta", -1e-3),
  ("objective.num_mc", 0),
  ("objective.num_iterations", 0),
  ("objective.center_top_k", 64),
  ("objective.reference_sync_every", -1),
  ("objective.reference_sync_mix", -0.1),
  ("objective.reference_sync_mix", 1.1),
  ("optimizer.learning_rate", 0.0),
  ("optimizer.learning_rate", float("inf")),
  ("optimizer.schedule", "other"),
  ("optimizer.warmup_steps", -1),
  ("optimizer.warmup_ratio", -0.1),
  ("optimizer.warmup_ratio", 1.0),
  ("optimizer.final_share", -0.1),
  ("optimizer.final_share", 0.5),
  ("optimizer.b1", 1.0),
  ("optimizer.b2", -0.1),
  ("optimizer.weight_decay", -0.01),
  ("optimizer.clip", 0.0),
  ("optimizer.moments_dtype", "float16"),
  ("optimizer.accumulation", 0),
  ("optimizer.accumulation", 3),
  ("eval.every", 0),
  ("eval.num_examples", 0),
  ("eval.batch_size", 0),
  ("eval.temperature", -0.1),
  ("eval.top_p", 0.9),
  ("eval.top_k", 5),
  ("eval.alg_temp", -1.0),
  ("eval.alg", "other"),
  ("eval.remasking", "other"),
  ("eval.cfg_scale", -1.0),
  ("eval.cache", "other"),
  ("eval.threshold", 2.0),
  ("eval.factor", 0.0),
  ("eval.prompt", "other"),
  ("eval.test_size", 0),
  ("checkpoint.every", 0),
  ("checkpoint.keep", 0),
  ("log.every", 0),
  ("log.rollouts_every", -1),
  ("log.keep_every", -1),
  ("log.keep_groups", 0),
  ("log.keep_megabytes", 0.0),
])
def test_a_bad_value_is_refused_in_one_line_that_begins_with_its_field(field, value):
  with pytest.raises(ValueError) as caught:
    changed(**{field.replace(".", "__"): value})
  message = str(caught.value)
  assert message.startswith(field) and "\n" not in message


def test_a_centre_of_no_logits_is_refused():
  with pytest.raises(ValueError, match=r"^objective\.center_top_k: .* not 0$"):
    changed(objective__name="gdsd_tlc", objective__center_top_k=0)


def test_accumulation_that_does_not_divide_the_rollouts_is_refused_with_the_numbers():
  with pytest.raises(ValueError, match=r"^optimizer\.accumulation: 5 must divide the 12 rollouts of a step"):
    changed(group_size=4, prompts_per_step=3, optimizer__accumulation=5)


@pytest.mark.parametrize("fields, message", [
  ({"warmup_steps": 3, "warmup_ratio": 0.1}, "warmup_ratio: optimizer.warmup_steps says 3 updates already"),
  ({"schedule": "linear", "final_share": 1.5}, "final_share: must lie between 0 and 1, not 1.5"),
  ({"schedule": "cosine", "warmup_steps": 40}, "warmup_steps: 40 updates leave none of the run's 40 for the cosine"),
  ({"schedule": "linear", "warmup_ratio": 0.99}, "warmup_ratio: 40 updates leave none of the run's 40 for the linear"),
])
def test_a_schedule_that_contradicts_itself_is_refused(fields, message):
  with pytest.raises(ValueError) as caught:
    changed(steps=5, **{f"optimizer__{name}": value for name, value in fields.items()})
  assert str(caught.value).startswith(f"optimizer.{message}")


def test_weights_and_biases_without_its_package_is_refused(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
  with pytest.raises(ValueError, match=r"^log\.wandb_project: wandb is not installed"):
    changed(log__wandb_project="mine")


@pytest.mark.parametrize("fields", [
  {"optimizer__accumulation": 16},
  {"optimizer__moments_dtype": "bfloat16"},
  {"sampler__microbatches": 128},
  {"objective__name": "gdsd_tlc"},
  {"objective__name": "espo"},
  {"objective__beta": 0.0},
  {"log__rollouts_every": 0},
  {"log__keep_every": 0},
  {"sampler__temperature": 0.0},
  {"sampler__prompt_buckets": (36,)},
])
def test_a_value_at_the_edge_is_accepted(fields):
  changed(**fields)


@pytest.mark.parametrize("name, epsilon", [("gdsd", 4e-4), ("gdsd_tlc", 0.2), ("espo", 0.2)])
def test_an_unset_trust_region_is_the_objectives_own(name, epsilon):
  assert changed(objective__name=name).objective.epsilon == epsilon


DREAMS_OWN = {"countdown": ("gdsd_tlc", 8, 8, 4, 256, 2, 1e-5, 3e-3, 64)}  # run_gdsd_dream_ctd.sh


@pytest.mark.parametrize("preset", ["llada_8b", "dream_7b"])
@pytest.mark.parametrize("recipe, numbers", [
  # objective, mu, batch a device, accumulation, denoising steps, M, learning rate, beta, center_top_k
  ("math", ("gdsd", 8, 8, 4, 256, 2, 1e-5, 1e-4, None)),
  ("gsm8k", ("gdsd", 8, 10, 4, 256, 2, 3e-6, 1e-3, None)),
  ("countdown", ("gdsd", 8, 10, 4, 256, 2, 1e-5, 3e-3, None)),
  ("sudoku", ("gdsd_tlc", 1, 8, 4, 128, 2, 1e-5, 1e-3, 8)),
  ("code", ("gdsd_tlc", 8, 3, 20, 256, 4, 3e-6, 5e-2, 64)),
])
def test_recipes_have_the_official_numbers(recipe, numbers, preset):
  config = run_config(load_recipe(f"gdsd_{recipe}").get_config(preset))
  validate_mesh(config, make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor))
  objective, optimizer, sampler, lora = config.objective, config.optimizer, config.sampler, config.model.lora
  updates = config.distillation
  per_device = config.group_size * config.prompts_per_step / optimizer.accumulation / 8
  assert (objective.name, updates.num_iterations, per_device, optimizer.accumulation, sampler.steps, updates.num_mc,
          optimizer.learning_rate, objective.beta, objective.scoring.center_top_k
          ) == (DREAMS_OWN.get(recipe, numbers) if preset == "dream_7b" else numbers)
  assert (config.group_size, objective.psi) == (16, 0.04)
  assert (sampler.completion_length, config.rollouts.prompt_buckets[-1], sampler.temperature) == (256, 400, 1.0)
  assert (lora.rank, lora.alpha, lora.dropout, len(lora.targets)) == (128, 64, 0.05, 7)
  assert (sampler.kind, sampler.top_p) == (("dream", 0.95) if preset == "dream_7b" else ("llada", None))
  assert (sampler.remasking == "random") == (recipe == "sudoku" and preset == "llada_8b")


@pytest.mark.parametrize("recipe, preset, epsilon", [
  ("countdown", "llada_8b", 4e-4), ("countdown", "dream_7b", 4e-4), ("code", "llada_8b", 4e-4),
  ("sudoku", "dream_7b", 0.2),
])
def test_recipes_have_the_official_trust_region(recipe, preset, epsilon):
  assert run_config(load_recipe(f"gdsd_{recipe}").get_config(preset)).objective.epsilon == epsilon


def test_dreams_sudoku_is_scored_in_states_with_blocks():
  masks = run_config(load_recipe("gdsd_sudoku").get_config("dream_7b")).masks
  assert (masks.kind, masks.block_length, masks.remasking) == ("blocks", 32, "random")


def test_flatten_names_every_leaf_by_its_path():
  assert flatten({"a": 1, "b": {"c": (2, 3), "d": {"e": None}}}) == {"a": 1, "b.c": [2, 3], "b.d.e": None}


def test_flatten_reads_a_saved_config_as_it_does_the_live_one():
  config = changed()
  assert flatten(as_saved(config)) == flatten(base_config().to_dict())


def test_a_config_does_not_contradict_itself_after_saving():
  config = changed(objective__name="gdsd_tlc", model__lora__rank=2, model__lora__targets=("v", "q"))
  assert contradictions(as_saved(config), config) == []


@pytest.mark.parametrize("now, differs", [({}, False), (dict(sampler__block_length=64), True)])
def test_a_run_from_before_blocks_could_be_unset_goes_on(now, differs):
  saved = as_saved(changed())
  saved["sampler"] = {name: value for name, value in saved["sampler"].items() if name != "noise"} | {"block_length": 32}
  assert contradictions(saved, changed(**now)) == ["sampler.block_length: 32 → 64"] * differs


def test_contradictions_are_exactly_the_fields_that_differ():
  saved = as_saved(changed())
  current = changed(seed=3, sampler__steps=128, sampler__prompt_buckets=(64,), objective__epsilon=0.1)
  assert contradictions(saved, current) == [
    "objective.epsilon: None → 0.1",
    "sampler.prompt_buckets: [128, 256, 400] → [64]",
    "sampler.steps: 256 → 128",
    "seed: 0 → 3",
  ]


@pytest.mark.parametrize("fields", [
  {"steps": 5}, {"checkpoint__every": 7}, {"checkpoint__keep": 1}, {"log__every": 9}, {"log__tensorboard": False},
  {"mesh__data": 1, "mesh__fsdp": 4}, {"mesh__tensor": 2},
  {"model__remat": "none"}, {"model__revision": "v1"},
])
def test_fields_that_do_not_change_the_computation_may_change(fields):
  assert contradictions(as_saved(changed()), changed(**fields)) == []


@pytest.mark.parametrize("fields", [
  {"schedule": "cosine"}, {"schedule": "linear", "final_share": 0.5}, {"warmup_ratio": 0.1},
])
def test_steps_may_not_change_where_the_rate_follows_them(fields):
  fields = {f"optimizer__{name}": value for name, value in fields.items()}
  assert contradictions(as_saved(changed(**fields)), changed(steps=5, **fields)) == [
    "steps: 1000 → 5 (optimizer.schedule or warmup_ratio makes the rate follow them)"
  ]


def test_a_run_begun_when_rematerialisation_had_two_fields_resumes():
  saved = as_saved(changed())
  saved["model"] |= {"remat": True, "remat_saves": "nothing"}
  assert contradictions(saved, changed()) == []


def test_a_field_that_recipes_lost_is_a_contradiction():
  saved = as_saved(changed())
  saved["optimizer"]["momentum"] = 0.9
  assert contradictions(saved, changed()) == ["optimizer.momentum: 0.9 → None"]


def test_a_field_that_was_added_since_counts_as_its_default():
  saved = as_saved(changed())
  for section, name in (("optimizer", "b1"), ("model", "lora"), ("sampler", "prompt_buckets"), ("eval", "every")):
    del saved[section][name]
  del saved["max_skipped_steps"]
  assert contradictions(saved, changed()) == []
  assert contradictions(saved, changed(optimizer__b1=0.5, max_skipped_steps=9, model__lora__rank=2)) == [
    "max_skipped_steps: 5 → 9", "model.lora.rank: 0 → 2", "optimizer.b1: 0.9 → 0.5",
  ]


def test_provenance_is_no_field_of_a_recipe():
  saved = json.loads(config_json(changed(), {"versions": {"jax": "1"}, "inputs": {}}))
  assert saved["provenance"]["versions"] == {"jax": "1"} and contradictions(saved, changed()) == []


def test_batches_that_split_evenly_over_the_mesh_are_accepted():
  config = changed(group_size=4, prompts_per_step=4, optimizer__accumulation=2, eval__batch_size=16)
  validate_mesh(config, make_mesh(data=4, fsdp=2))


@pytest.mark.parametrize("fields, message", [
  (
    {"group_size": 3, "prompts_per_step": 4, "optimizer__accumulation": 2},
    "group_size × prompts_per_step / optimizer.accumulation: 6 rollouts cannot be split over"
    " mesh.data × mesh.fsdp = 4 devices",
  ),
  (
    {"group_size": 4, "prompts_per_step": 4, "sampler__microbatches": 8, "eval__batch_size": 8},
    "group_size × prompts_per_step / sampler.microbatches: 2 rollouts cannot be split over"
    " mesh.data × mesh.fsdp = 4 devices",
  ),
  ({"eval__batch_size": 6}, "eval.batch_size: 6 rollouts cannot be split over mesh.data × mesh.fsdp = 4 devices"),
  ({"sampler__slots": 6}, "sampler.slots: 6 slots cannot be split over mesh.data × mesh.fsdp = 4 devices"),
])
def test_batches_that_do_not_split_over_the_mesh_are_refused_with_the_numbers(fields, message):
  with pytest.raises(ValueError) as caught:
    validate_mesh(changed(**fields), make_mesh(data=2, fsdp=2, tensor=2))
  assert str(caught.value) == message


CACHED = {"sampler__kind": "block", "sampler__cache": "exact", "sampler__block_length": 8}


@pytest.mark.parametrize("fields, message", [
  ({"sampler__prompt_buckets": (36, 40)}, None),
  (
    {"sampler__prompt_buckets": (36, 37)},
    "sampler.prompt_buckets, sampler.completion_length: 37 + 256 tokens are no multiple of mesh.context=4, which splits"
    " each sequence; change one of them",
  ),
  (CACHED, None),
  (
    {**CACHED, "eval__batch_size": 4},
    "eval.batch_size: 4 rollouts cannot be split over mesh.data × mesh.fsdp × mesh.context (with a cache) = 8 devices",
  ),
  (
    {"sampler__kind": "block", "sampler__block_length": 2},
    "sampler.block_length: 2 must be a multiple of mesh.context=4 without a cache: the last block is sampled whole;"
    " give sampler.cache=exact",
  ),
])
def test_a_mesh_that_splits_sequences_must_divide_them(fields, message):
  config, mesh = changed(**fields), make_mesh(data=1, fsdp=2, context=4)
  if message is None:
    return validate_mesh(config, mesh)
  with pytest.raises(ValueError) as caught:
    validate_mesh(config, mesh)
  assert str(caught.value) == message
