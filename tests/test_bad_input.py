"""A hundred bad inputs through commands and files: each ends in one line that names the field and the fix.

The commands run as users start them, forked from one process (commands.py). The quick suite takes a sample of them.
"""

from collections.abc import Callable
import csv
import gzip
import io
import json
from pathlib import Path
import re
import shlex
import shutil
import typing

from commands import run_command
from conftest import REPOSITORY
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

TINY = REPOSITORY / "gdsd_jax" / "models" / "assets" / "tiny"
TRAIN = "launch/train.py --config=configs/gdsd_math.py --config.steps=1 --workdir={f}/run"
OWN = f"{TRAIN} --config.task.name=prompts --config.task.prompt_column=question --config.task.answer_column=answer"
SFT = "launch/pretrain.py --config=configs/sft.py --out={f}/out --config.steps=1"
SAMPLE = "launch/sample.py --config=configs/gdsd_math.py"
EVALUATE = "launch/evaluate.py --config=configs/gdsd_math.py --out={f}/out"
MODEL = f"{TRAIN} --config.model.path={{f}}/m"
ADAPTER = f"{TRAIN} --config.model.lora.rank=4 --config.model.lora.path={{f}}/a"
ROWS = f"{OWN} --config.task.train_source={{f}}/rows.jsonl"
CHATS = f"{SFT} --config.data.train_source={{f}}/c.jsonl"
NO_SYSTEM = (
  "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"
  "{% for message in messages %}<|start_header_id|>{{ message['content'] }}<|eot_id|>{% endfor %}")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
ROW = {"question": "1 + 1?", "answer": "2"}


class Case(typing.NamedTuple):
  """A command that cannot be, with {f} for a folder of its own; what is in that; and the line that it ends with."""

  command: str
  line: str  # regular expression for all of it, behind "error: "
  files: dict[str, str | bytes | Callable[[Path], None]] = {}
  quick: bool = False
  status: int = 1


def jsonl(*rows) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)


def model(change: Callable[[Path], None] = lambda folder: None, remove: str | None = None, **config):
  """A copy of the embedded model, `change`d, with these fields of its config.json; None takes one out."""

  def make(folder: Path) -> None:
    shutil.copytree(TINY, folder)
    fields = json.loads((folder / "config.json").read_text()) | config
    fields = {name: value for name, value in fields.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))
    if remove is not None:
      (folder / remove).unlink()
    change(folder)

  return make


def config_json(**fields):
  """A folder with a config.json alone."""

  def make(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))

  return make


SDAR = {
  "model_type": "sdar", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
  "intermediate_size": 48, "vocab_size": 416, "max_position_embeddings": 256, "block_size": 4, "mask_token_id": 413,
  "eos_token_id": 409, "tie_word_embeddings": False,
}
LLADA_MOE = {
  **SDAR, "model_type": "lladamoe", "num_experts": 4, "num_experts_per_tok": 2, "expert_intermediate_size": 8,
}
IN_BLOCKS = f"{MODEL} --config.sampler.kind=block"


def written(name: str, content: str | bytes):
  return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def template(text: str):
  return model(written("chat_template.jinja", text))


def cut(name: str, size: int):
  return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def weights(change: Callable[[dict], None]):
  def make(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

  return make


def whole_numbers(tensors: dict) -> None:
  tensors["model.transformer.wte.weight"] = np.zeros((416, 96), np.int32)


def turns(*roles: str) -> list[dict[str, str]]:
  return [{"role": role, "content": "a"} for role in roles]


def adapter(tensors: Callable[[Path], None] | None = None, **fields):
  """A folder with a PEFT adapter's config, and weights that `tensors` writes."""

  def make(folder: Path) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config["base_model_name_or_path"] = "tiny"
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    (tensors or (lambda folder: save_file({}, folder / "adapter_model.safetensors")))(folder)

  return make


def folder_of(**files):
  def make(folder: Path) -> None:
    folder.mkdir()
    for name, content in files.items():
      (folder / name.replace("__", ".")).write_text(content)

  return make


def csv_text(*rows) -> str:
  text = io.StringIO()
  csv.writer(text).writerows(rows)
  return text.getvalue()


def parquet(rows):
  def make(file: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)

  return make


BAD = {
  # The command line.
  "flag": Case(f"{TRAIN} --wokdir=x", "Unknown command line flag 'wokdir'. Did you mean: workdir .", quick=True),
  "no flag": Case(f"{TRAIN} fast", "'fast' is no flag; flags begin with --"),
  "near name of a recipe": Case(
    "launch/train.py --config=gdsd-math:tiny",
    "--config: no recipe 'gdsd-math'; did you mean 'gdsd_math'.; known are .*"),
  "fine-tuning recipe": Case(
    "launch/evaluate.py --config=configs/sft.py --lengths=16 --out={f}/out",
    "--config: a recipe of the kind 'sft' is for launch/pretrain.py"),
  "folder of a model": Case(
    "launch/train.py --config=configs/gdsd_math.py --workdir={f}/m",
    "--workdir: {f}/m/config.json is not that of a run, which has `steps`; choose another folder",
    {"m": lambda folder: model()(folder)}),
  "no recipe": Case("launch/train.py --config=configs/none.py", "--config: .*configs/none.py.*"),
  "recipe name": Case(
    "launch/train.py --config=gdsd_maths",
    "--config: no recipe 'gdsd_maths'; did you mean 'gdsd_math'.; known are .*or name a file"),
  "preset": Case(
    "launch/train.py --config=configs/gdsd_math.py:gpt",
    "--config: unknown preset 'gpt', known are tiny, llada_8b, dream_7b, sdar_8b, .*"),
  "recipe that raises": Case(
    "launch/train.py --config={f}/r.py", "--config: {f}/r.py, line 2: KeyError: 'boo'",
    {"r.py": "def get_config(preset=''):\n  raise KeyError('boo')\n"}),
  "recipe that is none": Case(
    "launch/train.py --config={f}/r.py", "--config: get_config of {f}/r.py returned nothing; it must return a recipe",
    {"r.py": "def get_config():\n  pass\n"}, quick=True),
  "recipe that leaves": Case(
    "launch/train.py --config={f}/r.py", "--config: {f}/r.py, line 1: SystemExit: 3",
    {"r.py": "raise SystemExit(3)\n"}),
  "recipe's types": Case(
    "launch/train.py --config={f}/r.py", "--config: {f}/r.py, line 4: TypeError: .*",
    {"r.py": "from gdsd_jax.runs.config_dict import base_config\ndef get_config(preset=''):\n"
             "  config = base_config()\n  config.steps = 'many'\n  return config\n"}),
  "no config": Case("launch/train.py --workdir={f}/run", "--config: is not given.*"),
  "field": Case(
    f"{TRAIN} --config.objective.psy=1",
    "--config.objective.psy.*: the config has no field '.*psy'; did you mean '.*psi'.", quick=True),
  "misspelt section": Case(
    f"{TRAIN} --config.optimiser.clip=1",
    "--config.optimiser.clip=1: .* no field 'optimiser.clip'; did you mean 'optimizer.clip'."),
  "section": Case(
    f"{TRAIN} --config.objective=espo",
    "--config.objective=espo: is a section, .* such as --config.objective.name; --help lists them"),
  "unset section": Case(
    f"{TRAIN} --config.sampler=None", "--config.sampler=None: is a section, .* one by one, .*", quick=True),
  "unset in a field": Case(
    f"{TRAIN} --config.seed.psi=None", "--config.seed.psi=None: the config has no field 'seed.psi'.*"),
  "two recipes": Case(f"{TRAIN} --config=configs/gdsd_sudoku.py", "--config: is given twice; name one recipe"),
  "unset field": Case(
    f"{TRAIN} --config.objective.psy=None", "--config.objective.psy=None: the config has no field 'objective.psy'.*"),
  "number": Case(f"{TRAIN} --config.steps=many", "flag --config.steps=many: must be a whole number"),
  "whole number": Case(f"{TRAIN} --config.steps=1.5", "flag --config.steps=1.5: must be a whole number"),
  "negative": Case(f"{TRAIN} --config.steps=-1", "steps: must be at least 1, not -1", quick=True),
  "group": Case(f"{TRAIN} --config.group_size=1", "group_size: must be at least 2, not 1"),
  "psi": Case(f"{TRAIN} --config.objective.psi=0", "objective.psi: must be positive, not 0.0"),
  "epsilon": Case(f"{TRAIN} --config.objective.epsilon=2", "objective.epsilon: must lie between 0 and 1, not 2.0"),
  "objective": Case(f"{TRAIN} --config.objective.name=ppo", "objective.name: 'ppo' is not one of gdsd, .*FILE.py:NAME"),
  "centre": Case(
    f"{TRAIN} --config.objective.center_top_k=8", "objective.center_top_k: gdsd has no such setting; .*gdsd_tlc.*"),
  "no objective": Case(f"{TRAIN} --config.objective.name=None", "objective.name: must not be None"),
  "no sampler": Case(f"{TRAIN} --config.sampler.kind=None", "sampler.kind: must not be None"),
  "too large": Case(
    f"{TRAIN} --config.optimizer.learning_rate=1e300",
    "optimizer.learning_rate: must be 0, or between 1e-37 and 1e37, not 1e.300"),
  "too small": Case(f"{TRAIN} --config.objective.epsilon=1e-300", "objective.epsilon: must be 0, or between 1e-37 .*"),
  "seconds": Case(f"{TRAIN} --config.log.plot_seconds=-1", "log.plot_seconds: must be at least 0, not -1.0"),
  "no alg": Case(f"{TRAIN} --config.eval.alg=", "eval.alg: '' is not one of entropy, .*"),
  "no cache": Case(f"{TRAIN} --config.eval.cache=", "eval.cache: '' is not one of none, prefix, dual, exact"),
  "sampler": Case(f"{TRAIN} --config.sampler.kind=gpt", "sampler.kind: 'gpt' is not one of llada, dream.*"),
  "block": Case(
    f"{TRAIN} --config.sampler.block_length=5", "sampler.block_length: 5 must divide completion_length, 16"),
  "temperature": Case(
    f"{TRAIN} --config.sampler.temperature=-1", "sampler.temperature: must be a number and not negative.*"),
  "remasking": Case(
    f"{TRAIN} --config.sampler.remasking=high", "sampler.remasking: 'high' is not one of low_confidence.*"),
  "buckets": Case(
    f"{TRAIN} '--config.sampler.prompt_buckets=(64,32)'", "sampler.prompt_buckets: must be ascending positive.*"),
  "learning rate": Case(
    f"{TRAIN} --config.optimizer.learning_rate=-1", "optimizer.learning_rate: must be positive, not -1.0"),
  "accumulation": Case(
    f"{TRAIN} --config.optimizer.accumulation=7", "optimizer.accumulation: 7 must divide the 64 rollouts.*"),
  "mesh": Case(f"{TRAIN} --config.mesh.fsdp=3", "mesh.data=-1, mesh.fsdp=3, mesh.tensor=1: their product must be.*"),
  "dtype": Case(f"{TRAIN} --config.model.dtype=int8", "model.dtype: 'int8' is not one of float32, bfloat16"),
  "rank": Case(f"{TRAIN} --config.model.lora.rank=-1", "model.lora.rank: must be at least 1, not -1"),
  "targets": Case(
    f"{TRAIN} --config.model.lora.rank=4 \"--config.model.lora.targets=('qqq',)\"",
    "model.lora.targets: 'qqq' is not one of q, k, v, o, gate, up, down"),
  "positions": Case(
    f"{TRAIN} --config.sampler.completion_length=512 --config.sampler.steps=512",
    ".*sampler.completion_length: 548 tokens exceed the 256 positions of tiny"),
  "workdir": Case(
    "launch/train.py --config=configs/gdsd_math.py --workdir={f}/file",
    "--workdir: cannot make {f}/file: .*File exists.*", {"file": "x"}),
  "checkpoints": Case(
    "launch/train.py --config=configs/gdsd_math.py --workdir={f}",
    "--workdir: {f}/checkpoints is no folder, where a run has its own; choose another --workdir", {"checkpoints": ""}),
  "metrics": Case(
    "launch/train.py --config=configs/gdsd_math.py --workdir={f}",
    "--workdir: {f}/metrics.jsonl is a folder, where a run has its own; choose another --workdir",
    {"metrics.jsonl": lambda folder: folder.mkdir()}),
  "lock": Case(
    "launch/train.py --config=configs/gdsd_math.py --workdir={f}", "--workdir: cannot write to {f}: .*Is a directory.*",
    {".lock": lambda folder: folder.mkdir()}),
  "out": Case(f"{EVALUATE}", "--out: cannot write to {f}/out: .*Not a directory.*", {"out": "x"}),
  "workdir scheme": Case(
    "launch/train.py --config=configs/gdsd_math.py --workdir=ftp://a/b", "--workdir: ftp://a/b is neither.*"),
  # Models.
  "model path": Case(
    f"{TRAIN} --config.model.path={{f}}/none", "model.path: '{f}/none' is neither a folder nor a hub name.*",
    quick=True),
  "empty model": Case(MODEL, "model.path: {f}/m/config.json is missing", {"m": lambda folder: folder.mkdir()}),
  "config.json": Case(
    MODEL, "model.path: {f}/m/config.json is not JSON: .*", {"m": model(written("config.json", "{"))}),
  "config list": Case(
    MODEL, "model.path: {f}/m/config.json holds no JSON object", {"m": model(written("config.json", "[]"))}),
  "run for a model": Case(
    MODEL, "model.path: {f}/m is the folder of a run; launch/export.py --workdir={f}/m --out=DIR makes a model of it",
    {"m": config_json(steps=3, model={"path": "tiny"})}),
  "model type": Case(
    MODEL, "model.path: {f}/m/config.json has model_type 'gpt2'; known are.*", {"m": model(model_type="gpt2")}),
  "missing field": Case(MODEL, "model.path: {f}/m/config.json lacks the field 'd_model'", {"m": model(d_model=None)}),
  "field type": Case(
    MODEL, "model.path: {f}/m/config.json: num_layers must be an integer, not 'three'", {"m": model(n_layers="three")}),
  "heads": Case(MODEL, "model.path: {f}/m/config.json: n_heads must be a positive.*", {"m": model(n_heads=0)}),
  "layers": Case(MODEL, "model.path: .*num_layers must be at most 10000.*", {"m": model(n_layers=10**9)}),
  "second end": Case(
    MODEL, "model.path: .*: eos_token_id .9999. must lie in the vocabulary of 416",
    {"m": model(eos_token_id=[3, 9999])}),
  "kind of end": Case(
    MODEL, "model.path: .*: eos_token_id is \\['a'\\]; it must be.*", {"m": model(eos_token_id=["a"])}),
  "no mask token": Case(MODEL, "model.path: .* lacks the field 'mask_token_id'", {"m": model(mask_token_id=None)}),
  "rope": Case(
    MODEL, "model.path: .*rope_scaling is .*; only unscaled and linearly.*",
    {"m": model(rope_scaling={"type": "yarn"})}),
  "rope type": Case(
    MODEL, "model.path: .*rope_parameters is .1.; only unscaled and linearly.*", {"m": model(rope_parameters=[1])}),
  "base of rope": Case(
    MODEL, "model.path: .*rope_theta must be a positive number, not 'x'", {"m": model(rope_theta="x")}),
  "quantised": Case(
    MODEL, "model.path: .*its weights are quantised.*", {"m": model(quantization_config={"load_in_4bit": True})}),
  "pickles": Case(
    MODEL, "model.path: .* has neither model.safetensors nor .*pytorch_model.bin is pickles.*",
    {"m": model(written("pytorch_model.bin", b"PK"), remove="model.safetensors")}),
  "tokenizer pointer": Case(
    MODEL, "model.path: {f}/m/tokenizer.json is a Git LFS pointer, .*",
    {"m": model(written("tokenizer.json", POINTER))}),
  "template pointer": Case(
    MODEL, "model.path: {f}/m/chat_template.jinja is a Git LFS pointer, .*", {"m": template(POINTER)}),
  "special token": Case(
    MODEL, "model.path: {f}/m/config.json: mask_token_id .9999. must lie.*", {"m": model(mask_token_id=9999)}),
  "no weights": Case(
    MODEL, "model.path: {f}/m has neither model.safetensors nor .*", {"m": model(remove="model.safetensors")}),
  "truncated weights": Case(
    MODEL, "model.path: weight file {f}/m/model.safetensors is damaged.*",
    {"m": model(cut("model.safetensors", 100_000))}, quick=True),
  "empty weights": Case(
    MODEL, "model.path: weight file {f}/m/model.safetensors is damaged.*", {"m": model(cut("model.safetensors", 0))}),
  "LFS pointer": Case(
    MODEL, "model.path: {f}/m/model.safetensors is a Git LFS pointer, .*git lfs pull.*",
    {"m": model(written("model.safetensors", POINTER))}),
  "lacking weight": Case(
    MODEL, "model.path: no weight file in {f}/m holds model.transformer.wte.*",
    {"m": model(weights(lambda tensors: tensors.pop("model.transformer.wte.weight")))}),
  "weight shape": Case(
    MODEL, "model.path: .* has shape .*; config.json asks for .*", {"m": model(mlp_hidden_size=128)}),
  "weight dtype": Case(
    MODEL, "model.path: .* is I32, no floating-point weight.*", {"m": model(weights(whole_numbers))}),
  "NaN weights": Case(
    MODEL, "model.path: model.transformer.ln_f.weight .*",
    {"m": model(weights( lambda tensors: tensors["model.transformer.ln_f.weight"].fill(np.nan)))}),
  "weight index": Case(
    MODEL, "model.path: .*index.json is no index of weights: .*",
    {"m": model(written("model.safetensors.index.json", "{}"))}),
  "index elsewhere": Case(
    MODEL, "model.path: .* names .*, which is no file of its folder",
    {"m": model(written("model.safetensors.index.json", '{"weight_map": {"a": "../b"}}'))}),
  # Tokenizers and chat templates.
  "no tokenizer": Case(MODEL, "model.path: {f}/m has no tokenizer.json", {"m": model(remove="tokenizer.json")}),
  "tokenizer": Case(
    MODEL, "model.path: {f}/m: the tokenizer's files cannot be read: .*", {"m": model(cut("tokenizer.json", 500))}),
  "tokenizer config": Case(
    MODEL, "model.path: {f}/m: the tokenizer's files cannot be read: .*",
    {"m": model(written("tokenizer_config.json", "[1"))}),
  "template": Case(
    MODEL, "model.path: {f}/m: the model's chat template refuses it: Unexpected.*",
    {"m": template("{% for message in messages %}")}),
  "template name": Case(
    MODEL, "model.path: {f}/m: .*'nothing' is undefined.*", {"m": template("{{ nothing.at.all }}")}),
  "system turn": Case(
    f"{ROWS} --config.task.system_prompt=Think. --config.model.path={{f}}/m",
    "task.train_source: the model's chat template refuses it: No system turns; without its .*task.system_prompt.*",
    {"rows.jsonl": jsonl(*[ROW] * 4), "m": template(NO_SYSTEM)}),
  # Models that attend from block to block, and mixtures of experts.
  "block model by a dense recipe": Case(
    MODEL, "model.path: llada's sampler knows models whose tokens all see each other; those of the family sdar attend"
    " from block to block: give sampler.kind=block and sampler.block_length=4", {"m": config_json(**SDAR)}),
  "dense model by a recipe of blocks": Case(
    f"{TRAIN} --config.sampler.kind=block", "sampler.kind: 'block' is for models that attend from block to block; .*"),
  "block length of the model": Case(
    IN_BLOCKS, "sampler.block_length: 8 is not the model's block length; give 4", {"m": config_json(**SDAR)}),
  "block length of no model": Case(
    MODEL, "model.path: {f}/m/config.json: block_length must be at least 1, not -4",
    {"m": config_json(**SDAR | {"block_size": -4})}),
  "guidance in blocks": Case(
    f"{IN_BLOCKS} --config.sampler.cfg_scale=1.0",
    "sampler.cfg_scale: only the llada sampler has it .sampler.kind is 'block'.", {"m": config_json(**SDAR)}),
  "dream's field in blocks": Case(
    f"{IN_BLOCKS} --config.sampler.alg=origin",
    "sampler.alg: only the dream sampler has it .sampler.kind is 'block'.", {"m": config_json(**SDAR)}),
  "exact cache of a dense model": Case(
    f"{TRAIN} --config.sampler.cache=exact", "sampler.cache: must be one of none, prefix, dual with the llada sampler, "
    "not 'exact': only of a block-causal model do the keys of finished blocks never change"),
  "steps of no block": Case(
    f"{IN_BLOCKS} --config.sampler.steps=1 --config.sampler.threshold=0.9",
    r"sampler.steps: 1 must be a multiple of the 2 blocks \(completion_length / block_length\)",
    {"m": config_json(**SDAR)}),
  "block that divides no completion": Case(
    f"{IN_BLOCKS} --config.sampler.block_length=5", "sampler.block_length: 5 must divide completion_length, 16",
    {"m": config_json(**SDAR)}),
  "editing alone": Case(
    f"{IN_BLOCKS} --config.sampler.editing_threshold=0.5", "sampler.editing_threshold: needs sampler.threshold, .*",
    {"m": config_json(**SDAR)}),
  "steps of edited tokens": Case(
    f"{IN_BLOCKS} --config.sampler.threshold=0.7 --config.sampler.editing_threshold=0.5"
    " --config.objective.name=trace_rl", "sampler.editing_threshold: must be None with trace_rl, which goes through .*",
    {"m": config_json(**SDAR)}),
  "trajectory of edited tokens": Case(
    f"{IN_BLOCKS} --config.sampler.threshold=0.7 --config.sampler.editing_threshold=0.5 --config.log.trajectory=True",
    "log.trajectory: must be False with sampler.editing_threshold: .*", {"m": config_json(**SDAR)}),
  "cache of another sampler": Case(
    f"{IN_BLOCKS} --config.sampler.cache=dual", "sampler.cache: must be one of none, exact with the block sampler, .*",
    {"m": config_json(**SDAR)}),
  "masks of other blocks": Case(
    f"{IN_BLOCKS} --config.sampler.block_length=4 --config.masks.kind=blocks --config.masks.block_length=8",
    "masks.kind: 'blocks' is for models whose tokens all see each other; .*give sampler or uniform",
    {"m": config_json(**SDAR)}),
  "router": Case(
    MODEL, "model.path: {f}/m/config.json: moe_router_score_function is 'top'; only 'softmax' is supported",
    {"m": config_json(**LLADA_MOE, moe_router_score_function="top")}),
  "experts of a token": Case(
    MODEL, "model.path: {f}/m/config.json: 9 experts of a token are more than the 4 that it may choose from",
    {"m": config_json(**LLADA_MOE | {"num_experts_per_tok": 9})}),
  "router of a dense model": Case(
    f"{TRAIN} --config.model.train_router=True", "model.train_router: tiny has no experts, and so no router"),
  "router over an adapter": Case(
    f"{TRAIN} --config.model.train_router=True --config.model.lora.rank=4",
    "model.train_router: needs model.lora.rank=0: .*"),
  "balance of no experts": Case(
    f"{CHATS} --config.router.bias_rate=0.1",
    "router.bias_rate: must be 0: tiny has no experts, and so no router", {"c.jsonl": ""}),
  "axis of experts": Case(
    f"{TRAIN} --config.mesh.expert=3", "mesh.data=-1, mesh.fsdp=1, mesh.expert=3, .*must be the number of devices, 1"),
  # Adapters.
  "adapter": Case(
    f"{TRAIN} --config.model.lora.rank=4 --config.model.lora.path={{f}}/none",
    "model.lora.path: '{f}/none' is neither a folder nor a hub name.*"),
  "adapter config": Case(ADAPTER, "model.lora.path: .* is not JSON: .*", {"a": folder_of(adapter_config__json="{")}),
  "adapter pointer": Case(
    ADAPTER, "model.lora.path: {f}/a/adapter_config.json is a Git LFS pointer, .*",
    {"a": folder_of(adapter_config__json=POINTER)}),
  "adapter kind": Case(
    ADAPTER, "model.lora.path: {f}/a/adapter_config.json describes no LoRA adapter .*IA3.*",
    {"a": adapter(peft_type="IA3")}),
  "adapter rank": Case(ADAPTER, "model.lora.path: .*r must be an integer.*", {"a": adapter(r="four")}),
  "adapter weights": Case(
    f"{TRAIN} --config.model.lora.rank=4 --config.model.lora.alpha=8 --config.model.lora.path={{f}}/a",
    "model.lora.path: .*adapter_model.safetensors.*", {"a": adapter(written("adapter_model.safetensors", "nothing"))}),
  # Rows of problems.
  "source": Case(
    f"{OWN} --config.task.train_source={{f}}/none.jsonl",
    "task.train_source: cannot read {f}/none.jsonl: No such file.*", quick=True),
  "kind of source": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.xml", "task.train_source: '.*rows.xml' is neither a file.*",
    {"rows.xml": "<a/>"}),
  "JSONL": Case(
    ROWS, "task.train_source: {f}/rows.jsonl, line 2: not JSON: .*", {"rows.jsonl": jsonl(ROW) + "{\n"}, quick=True),
  "JSON row": Case(ROWS, ".*rows.jsonl, line 2: must be a JSON object.*", {"rows.jsonl": jsonl(ROW, [1])}),
  "column": Case(
    ROWS, ".*rows.jsonl, line 1: no column 'question', it has 'q', 'answer'",
    {"rows.jsonl": jsonl({"q": "1", "answer": "1"})}),
  "column type": Case(
    ROWS, ".*line 2: column 'question' must be text, it is 5",
    {"rows.jsonl": jsonl(ROW, {"question": 5, "answer": "1"})}),
  "empty source": Case(ROWS, "task.train_source: .*rows.jsonl: no problems in it", {"rows.jsonl": ""}),
  "JSON list": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.json", ".*rows.json, the whole file: must be a JSON list.*",
    {"rows.json": "5"}),
  "surrogate": Case(
    ROWS, ".*rows.jsonl, line 1: not JSON: .*", {"rows.jsonl": '{"question": "\\ud800", "answer": "1"}\n'}),
  "deep JSON": Case(ROWS, ".*rows.jsonl, line 1: not JSON: .*", {"rows.jsonl": "[" * 100_000 + "\n"}),
  "gzip": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.jsonl.gz", "task.train_source: cannot read .*rows.jsonl.gz: .*",
    {"rows.jsonl.gz": gzip.compress(jsonl(*[ROW] * 9).encode())[:40]}),
  "no gzip": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.jsonl.gz", "task.train_source: cannot read .*rows.jsonl.gz: .*",
    {"rows.jsonl.gz": jsonl(ROW)}),
  "CSV quotes": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.csv", ".*rows.csv, line 2: not CSV: .*",
    {"rows.csv": 'question,answer\n"a"b,1\n'}),
  "CSV fields": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.csv", ".*rows.csv, line 2: 3 fields, but the header names 2",
    {"rows.csv": "question,answer\na,b,c\n"}),
  "CSV header": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.csv", ".*rows.csv, line 1: it has the column 'question' twice",
    {"rows.csv": "question,question\na,b\n"}),
  "CSV cell": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.csv",
    "sampler.prompt_buckets: none of the 3 train prompts fits 36 tokens; the shortest has 30013",
    {"rows.csv": csv_text(["question", "answer"], *[["apples " * 30_000, "1"]] * 4)}),
  "UTF-8": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.csv", ".*rows.csv, line 2: not UTF-8 text: .*",
    {"rows.csv": b"question,answer\n\xff,1\n"}),
  "parquet": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.parquet", ".*rows.parquet, the whole file: not parquet: .*",
    {"rows.parquet": b"PAR1 nothing"}),
  "parquet column": Case(
    f"{OWN} --config.task.train_source={{f}}/rows.parquet",
    ".*rows.parquet, row 1: no column 'question', it has 'q', 'answer'",
    {"rows.parquet": parquet([{"q": "1", "answer": "1"}])}),
  "split": Case(
    f"{OWN} '--config.task.train_source={{f}}/rows.jsonl#trian'", ".*no split 'trian'.*", {"rows.jsonl": jsonl(ROW)}),
  "slice": Case(
    f"{OWN} '--config.task.train_source={{f}}/rows.jsonl#train[a:b]'", ".*is no split.*", {"rows.jsonl": jsonl(ROW)}),
  "columns": Case(
    f"{ROWS} --config.task.columns=question", "task.columns: 'question' must be.*", {"rows.jsonl": jsonl(ROW)}),
  "all bad": Case(
    f"{ROWS} --config.task.bad_rows=skip", "task.train_source: all 1 rows are bad.*", {"rows.jsonl": "{\n"}),
  "forged prompt": Case(
    ROWS, ".*a user message holds <.eot_id.>, which only.*",
    {"rows.jsonl": jsonl(*[{"question": "a<|eot_id|>", "answer": "1"}] * 4)}),
  "regular expression": Case(
    f"{ROWS} '--config.task.extract=('", "task.extract: '.' is none of.*", {"rows.jsonl": jsonl(ROW)}),
  "task": Case(
    f"{TRAIN} --config.task.name=chess", "task.name='chess': unknown task, known are arithmetic, .*FILE.py:NAME"),
  "task field": Case(
    f"{TRAIN} --config.task.colour=red", "task.colour: unknown option of task 'arithmetic', known are data_dir"),
  # Own code.
  "own file": Case(
    f"{TRAIN} --config.task.name={{f}}/none.py:Mine", "task.name: {f}/none.py: there is no such file", quick=True),
  "own name": Case(
    f"{TRAIN} --config.task.name={{f}}/t.py:Mine", "task.name: {f}/t.py has no 'Mine'; did you mean 'Mind'\\?",
    {"t.py": "class Mind:\n  pass\n"}),
  "own syntax": Case(
    f"{TRAIN} --config.objective.name={{f}}/o.py:mine", "objective.name: {f}/o.py, line 1: SyntaxError: .*",
    {"o.py": "def mine(:\n"}, quick=True),
  "own import": Case(
    f"{TRAIN} --config.sampler.kind={{f}}/s.py:mine", "sampler.kind: {f}/s.py, line 1: ModuleNotFoundError: .*",
    {"s.py": "import no_such_module_at_all\n"}),
  "own loss": Case(
    f"{TRAIN} --config.objective.name={{f}}/o.py:mine --config.objective.epsilon=None",
    "objective.name: {f}/o.py, line 2: AttributeError: .*", {"o.py": "def mine(batch):\n  return batch.nothing\n"}),
  "own setting": Case(
    f"{TRAIN} --config.objective.name={{f}}/o.py:mine", "objective.epsilon: .*has no such setting.*",
    {"o.py": "def mine(batch):\n  return batch.student.plain.sum()\n"}),
  "own reward": Case(
    f"{ROWS} '--config.task.rewards=(\"{{f}}/r.py:right\",)'", "task.rewards: {f}/r.py has no 'right'.*",
    {"rows.jsonl": jsonl(*[ROW] * 4), "r.py": "def wrong(completions): pass\n"}),
  "own layout": Case(
    f"{TRAIN} --config.model.layout={{f}}/l.py:Mine", "model.layout: {f}/l.py:Mine must be a gdsd_jax.Layout, not 5",
    {"l.py": "Mine = 5\n"}),
  # Fine-tuning and pretraining.
  "no chats": Case(SFT, "data.train_source: name a source of chats.*"),
  "chat column": Case(CHATS, ".*c.jsonl, line 1: no column `messages`, nor.*", {"c.jsonl": jsonl({"text": "a"})}),
  "turns": Case(CHATS, ".*c.jsonl, line 1: `messages` must be a list of turns", {"c.jsonl": jsonl({"messages": "a"})}),
  "turn": Case(
    CHATS, ".*c.jsonl, line 1: a turn must have `role` and `content`.*",
    {"c.jsonl": jsonl({"messages": [{"role": "user"}]})}),
  "last turn": Case(
    CHATS, ".*line 1: the last turn must be the assistant's.*",
    {"c.jsonl": jsonl({"messages": [{"role": "user", "content": "a"}]})}),
  "system chat": Case(
    f"{CHATS} --config.model.path={{f}}/m",
    "data.train_source: .*c.jsonl, line 1: the model's chat template refuses .*No system turns.*",
    {"c.jsonl": jsonl({"messages": turns("system", "user", "assistant")}), "m": template(NO_SYSTEM)}),
  "sft mesh": Case(f"{CHATS} --config.batch_size=0", "batch_size: must be at least 1, not 0", {"c.jsonl": ""}),
  "pretrain field": Case(
    "launch/pretrain.py --config=configs/pretrain_tiny.py --out={f}/out --config.slips=2",
    "slips: must lie between 0 and 1, not 2.0"),
  "pretrain field that is not said": Case(
    "launch/pretrain.py --config=configs/pretrain_tiny.py --out={f}/out --config.sampler.slots=8",
    "--config.sampler.slots=8: changes what the recipe says, and it does not say sampler.slots; write it there"),
  "out is remote": Case("launch/pretrain.py --config=configs/sft.py --out=gs://a/b", "--out: .*gs://a/b.*"),
  # Runs: evaluation and export.
  "no run": Case("launch/export.py --workdir={f}/none --out={f}/out", "--workdir: {f}/none does not exist", quick=True),
  "empty run": Case(
    "launch/export.py --workdir={f} --out={f}/out", "--workdir: {f} holds no run: config.json is missing"),
  "damaged run": Case(
    "launch/export.py --workdir={f} --out={f}/out", "--workdir: {f}/config.json is not the config of a run: .*",
    {"config.json": "{"}),
  "run without steps": Case(
    "launch/export.py --workdir={f} --out={f}/out", "--workdir: {f} has no complete checkpoint yet",
    {"config.json": '{"model": {"path": "tiny"}}'}),
  "two models": Case(
    f"{EVALUATE} --workdir={{f}} --model=tiny", "--model: --workdir names a model already; give one of them"),
  "step alone": Case(f"{EVALUATE} --step=5", "--step: needs --workdir, whose checkpoint it chooses"),
  "lengths": Case(f"{EVALUATE} --lengths=a,b", "--lengths: .*", quick=True),
  "examples": Case(f"{EVALUATE} --num_examples=0", "--num_examples: must be at least 1, not 0"),
  # A prompt.
  "no prompt": Case(f"{SAMPLE} --prompt=", "--prompt: is empty", quick=True),
  "nothing on standard input": Case(SAMPLE, "--prompt: standard input: is empty"),
  "two questions": Case(f"{SAMPLE} --prompt=a --index=0", "--prompt: --index names a problem; give one of them"),
  "no such problem": Case(
    f"{SAMPLE} --index=400", "--index: 400 is none of the 400 test problems of arithmetic, which are counted from 0"),
  "problem before the first": Case(f"{SAMPLE} --index=-1 --split=train", "--index: -1 is none of the 9000 train .*"),
  "no such split": Case(
    f"{SAMPLE} --index=0 --split=dev", "flag --split=dev: value should be one of <train.validation.*"),
  "task without a problem": Case(f"{SAMPLE} --task=gsm8k --prompt=a", "--task: needs --index, the number .*"),
  "split without a problem": Case(f"{SAMPLE} --split=train --prompt=a", "--split: needs --index, the number .*"),
  "no such task": Case(f"{SAMPLE} --index=0 --task=algebra", "task.name='algebra': unknown task, known are .*"),
  "nobody to answer": Case(
    "launch/sample.py --prompt=a", "--model: name one, such as tiny, or a --workdir or --config"),
  "two to answer": Case(
    "launch/sample.py --workdir={f}/run --model=tiny --prompt=a", "--workdir: {f}/run does not exist"),
  "two models of a recipe's": Case(
    f"{SAMPLE} --workdir={{f}} --model=tiny --prompt=a", "--model: --workdir names a model already; give one of them"),
  "step of no run": Case(f"{SAMPLE} --step=3 --prompt=a", "--step: needs --workdir, whose checkpoint it chooses"),
  "answering model": Case(
    "launch/sample.py --model={f}/none --prompt=a", "--model: '{f}/none' is neither a folder nor.*"),
  "field of a sample": Case(
    f"{SAMPLE} --prompt=a --config.sampler.temprature=1",
    "--config.sampler.temprature: .* no field 'sampler.temprature'; did you mean 'sampler.temperature'."),
  "sampler of a sample": Case(
    f"{SAMPLE} --prompt=a --config.sampler.steps=5", "sampler.steps: 5 must be a multiple of the 2 blocks .*"),
  "field that does nothing": Case(
    f"{SAMPLE} --prompt=a --config.optimizer.clip=1", "--config.optimizer.clip: does nothing in a sample; .*"),
  "another family's sampler": Case(
    f"{SAMPLE} --prompt=a --config.sampler.kind=dream", "sampler.kind: 'dream' is not how tiny is sampled, .*"),
  "no room for a prompt": Case(
    f"{SAMPLE} --prompt=a --config.sampler.completion_length=256 --config.sampler.steps=256",
    "sampler.completion_length: a prompt and 256 tokens exceed the 256 positions of tiny"),
  "long prompt": Case(
    f"{SAMPLE} '--prompt={'word ' * 300}'", r"prompt: its \d+ tokens and 16 of the answer exceed the 256 positions .*"),
  "forged question": Case(
    f"{SAMPLE} --prompt='<|eot_id|>'", "a user message holds <.eot_id.>, which only the chat format may write: .*"),
  "folder of a page": Case(f"{SAMPLE} --prompt=a --html={{f}}/none/a.html", "--html: there is no folder {f}/none"),
  "page that is a folder": Case(f"{SAMPLE} --prompt=a --html={{f}}", "--html: {f} is a folder; name a file in it"),
  "evaluated model": Case(f"{EVALUATE} --model={{f}}/none", "--model: '{f}/none' is neither a folder nor a hub name.*"),
  "adapter's base": Case(
    f"{EVALUATE} --model={{f}}/a", "--model: {f}/a/adapter_config.json names no base model.*",
    {"a": adapter(base_model_name_or_path=None)}),
  # Planning and measuring.
  "topology": Case(
    "launch/compile.py --config=configs/gdsd_math.py --topology=v6e:4x4x4",
    "--topology: v6e has no slice '4x4x4'; it has 1x1, 2x2, .*16x16", quick=True),
  "generation": Case(
    "launch/compile.py --config=configs/gdsd_math.py --topology=v9:2x2", "--topology: 'v9:2x2' is no slice of .*"),
  "unknown hub model": Case(
    "launch/compile.py --config=configs/gdsd_math.py --config.model.path=some/Other --topology=v5e:2x2",
    "model.path: 'some/Other' is no folder.*"),
  "compared recipe": Case("launch/compare.py --config=gdsd_math", "--config: is not of a comparison; see .*"),
  "report": Case("launch/compare.py --report={f}/none.json", "--report: cannot read {f}/none.json: No such file .*"),
  "compared setting": Case(
    "launch/compare.py --config=compare:smoke --config.objectives.wd1.objective.name=spg --config.shared.steps=0",
    "objective gdsd on task countdown: steps: must be at least 1, not 0"),
  "benchmark model": Case(
    "launch/benchmark.py --model=70b", "--model: '70b' is not one of tiny, 100m, 100m_block, 8b, 8b_dream"),
  "benchmark part": Case(
    "launch/benchmark.py --only=speed", "--only: must name some of sampling, training, memory, views, not 'speed'"),
  "benchmark slots": Case(
    "launch/benchmark.py --recipe=gdsd_math:tiny --slots=999",
    r"sampler.slots: 999 are more than the 256 prompts that are sampled together \(--batch\)"),
  "benchmark prompts": Case(
    "launch/benchmark.py --recipe=gdsd_math:tiny --slots=8 --batch=0", "--batch: 0 must be a multiple of the 64 .*"),
  "benchmark step": Case(
    "launch/benchmark.py --prompts_per_step=8", "--prompts_per_step: is of --recipe; give that, too"),
  "benchmark step of none": Case(
    "launch/benchmark.py --recipe=gdsd_math:tiny --slots=8 --prompts_per_step=0",
    "prompts_per_step: must be at least 1, not 0"),
  "benchmark repeats": Case(
    "launch/benchmark.py --recipe=gdsd_math:tiny --slots=8 --repeats=0", "--repeats: must be at least 1, not 0"),
  "benchmark objective": Case(
    "launch/benchmark.py --objective=ppo", "--objective: 'ppo' is not one of gdsd, gdsd_tlc, espo.*"),
}


def end_of(case: Case, folder: Path):
  """What the command of a case ends with, its files being in `folder`."""
  for name, content in case.files.items():
    (content if callable(content) else written(name, content))(folder / name if callable(content) else folder)
  return run_command(*shlex.split(case.command.format(f=folder)), XLA_FLAGS="")


@pytest.mark.parametrize("name", [
  pytest.param(name, marks=[] if case.quick else pytest.mark.slow) for name, case in BAD.items()])
def test_a_bad_input_ends_in_one_line(name, tmp_path):
  result = end_of(BAD[name], tmp_path)
  lines = result.stderr.strip().splitlines()
  assert result.returncode == BAD[name].status and len(lines) == 1, result.stderr
  assert re.fullmatch(f"error: (?:{BAD[name].line.replace('{f}', re.escape(str(tmp_path)))})", lines[0]), lines[0]


def test_a_hundred_bad_inputs_are_in_the_table():
  assert len(BAD) >= 100
