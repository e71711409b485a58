"""Times sampling and training on this machine, beside a straightforward PyTorch version of the official loops.

  python launch/benchmark.py --model=tiny --reference                # the embedded model, a minute
  python launch/benchmark.py --model=100m --only=sampling --reference  # V 126,464, L 128, 128 steps, batch 8
  python launch/benchmark.py --model=100m --only=training --reference  # GDSD-TLC, k 64, M 2
  python launch/benchmark.py --model=8b --only=sampling --reference    # LLaDA-8B's shape, bf16, prompt 400, L 256: GPU
  python launch/benchmark.py --model=8b --only=training --reference    # LoRA r 128, M 2; --accumulation if too large
  python launch/benchmark.py --model=8b --only=sampling --cache=dual --threshold=0.9  # Fast-dLLM beside the exact one
  python launch/benchmark.py --model=100m_block                        # the exact cache on and off: block 32, L 256
  python launch/benchmark.py --model=100m --only=memory                # one rollout's scores at V 8k, 32k, 128k
  python launch/benchmark.py --model=100m --only=views                 # an update's memory at M 2, 4, 8, 16

  python launch/benchmark.py --recipe=gdsd_math:tiny --slots=16 --batch=256  # rollouts in slots beside whole batches

  python launch/benchmark.py --suite=gpu --out=gpu.json --page=docs/performance.md  # all of a GPU's rows, eight minutes

Weights are random, but those of `tiny`; both sides have the same weights, prompts, masks and tokens in one run, and it
says whether sampled tokens (at temperature 0), loss and gradient norm are the same. Compilation and a warm-up are left
out of the times. FLOPs are those that the algorithm needs, over what a large matrix product reached in the same run:
see gdsd_jax/benchmark/flops.py. `training` is what follows the rollouts of an iteration with mu = 1: old scores, the
reference's, loss, gradient, AdamW. Memory is of the whole process on a CPU, of the allocator on a GPU. The weights pass
through the temporary folder (16 GB of 8b). --reference needs `pip install torch`.

--suite measures its rows one after another and writes each to --out as soon as it is there: a call that was ended goes
on where it was, and --rows chooses (none, --rows=, only writes the table again). The other flags do not count there.
`tiny` is the same on small models, for any machine. See gdsd_jax/benchmark/suite_rows.py.

--recipe samples that recipe's problems, at --threshold (0.9) with early stop, in --block_length and by --cache if they
are given: --batch of them (four steps') in --slots, and in batches of as many as a step of the recipe has, or one of
--prompts_per_step.

On a CPU that other processes use, too, seconds say little; cpu_seconds, of all threads of a side, say more.

Prints a table; the last line of standard output is one JSON object of the same, with ratios. A side that runs out of
memory has an `error` in place of its numbers; exit status 1 if that is ours.
"""

from gdsd_jax import signals

if __name__ == "__main__":
  signals.begin()  # before imports that take seconds

import json
from pathlib import Path
import sys

from absl import flags

from gdsd_jax import command
from gdsd_jax.checks import require
from gdsd_jax.paths import local_path
from gdsd_jax.runs.compiler_flags import take_most_memory

if __name__ == "__main__":
  take_most_memory()  # ours has a GPU to itself, as PyTorch has

_MODEL = flags.DEFINE_string("model", "tiny", "tiny, 100m, 100m_block (block-causal), 8b (LLaDA's shape) or 8b_dream.")
_REFERENCE = flags.DEFINE_bool("reference", False, "Measure the PyTorch version, too.")
_ONLY = flags.DEFINE_list("only", None, "Some of sampling, training, memory, views; by default all.")
_SUITE = flags.DEFINE_string("suite", None, "Measure a whole list of rows: gpu, or tiny to try it.")
_ROWS = flags.DEFINE_list("rows", None, "Some rows of the suite; by default all.")
_PAGE = flags.DEFINE_string("page", None, "Markdown file that the suite's table goes into, between its two marks.")
_OUT = flags.DEFINE_string("out", None, "File for the JSON object.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a trace of our sampling and of our update.")
_RECIPE = flags.DEFINE_string("recipe", None, "Recipe whose rollouts are sampled in slots and in whole batches.")
_SLOTS = flags.DEFINE_integer("slots", None, "Slots of the sampler of --recipe.")
_PROMPTS = flags.DEFINE_integer("prompts_per_step", None, "Prompts of a step of --recipe; by default its own.")
_FIELDS = [  # by default the model's own
  flags.DEFINE_integer("batch", None, "Completions that are sampled, rollouts of an update."),
  flags.DEFINE_integer("prompt_length", None, "Tokens of a prompt."),
  flags.DEFINE_integer("completion_length", None, "Tokens of a completion."),
  flags.DEFINE_integer("block_length", None, "Tokens of a sampler's block."),
  flags.DEFINE_integer("steps", None, "Denoising steps of a completion."),
  flags.DEFINE_float("temperature", None, "Of the sampler; above 0 tokens are not compared."),
  flags.DEFINE_integer("num_mc", None, "Mask samples of a rollout (M)."),
  flags.DEFINE_string("objective", None, "gdsd, gdsd_tlc or espo."),
  flags.DEFINE_integer("center_top_k", None, "k of gdsd_tlc; unset is 64."),
  flags.DEFINE_string("dtype", None, "Of matrix products: float32 or bfloat16."),
  flags.DEFINE_integer("lora_rank", None, "Of the adapter; 0 trains all weights."),
  flags.DEFINE_integer("accumulation", None, "Microbatches of an update."),
  flags.DEFINE_string("remat", None, "What our backward pass computes again: none, all but products, or full."),
  flags.DEFINE_string("cache", None, "Sample by Fast-dLLM's cache, too: prefix or dual; or by 100m_block's exact one."),
  flags.DEFINE_float("threshold", None, "Sample by Fast-dLLM's threshold, too."),
  flags.DEFINE_integer("repeats", None, "Times that each side is measured, in turn; the median counts."),
]


def check_report(file: Path) -> None:
  """Raises ValueError where the file of --out is there and no report of an earlier call, which may be replaced."""
  try:
    ours = not file.exists() or "parameters" in json.loads(file.read_text())
  except (OSError, ValueError, TypeError):
    ours = False
  require(ours, "--out", f"{file} is there, and no report of this command; choose another file")


def run_suite() -> None:
  from gdsd_jax.benchmark import suite, suite_table

  require(_OUT.value is not None, "--out", "must name the file that --suite keeps its rows in")
  out, page = (flag.value and local_path(flag.value, f"--{flag.name}") for flag in (_OUT, _PAGE))
  if page is not None:
    suite_table.check_page(page)
  report = suite.run(_SUITE.value, out, _ROWS.value, say=lambda line: print(line, flush=True))
  text = suite_table.table(report)
  if page is not None:
    suite_table.write(text, page)
  print(text)
  print(json.dumps(report), flush=True)
  if any("error" in found for key, found in report["rows"].items() if key.endswith(".ours")):
    sys.exit(1)


def run_slots(out: str | None) -> None:
  from gdsd_jax.benchmark import slots
  from gdsd_jax.runs.config_dict import run_config
  from gdsd_jax.runs.files import write_whole
  from gdsd_jax.runs.given import load_config

  require(_SLOTS.value is not None, "--slots", "must say how many --recipe is measured with")
  given = {flag.name: flag.value for flag in _FIELDS if flag.value is not None}
  for name in given:
    require(name in ("batch", "threshold", "block_length", "cache", "repeats"), f"--{name}", "is none of --recipe's")
  changes = {"sampler.threshold": given.get("threshold", 0.9), "sampler.early_stop": True}
  for name in ("block_length", "cache"):
    changes |= {f"sampler.{name}": given[name]} if name in given else {}
  if _PROMPTS.value is not None:
    changes["prompts_per_step"] = _PROMPTS.value
  config = run_config(load_config(_RECIPE.value, changes))
  result = slots.compare(config, _SLOTS.value, given.get("batch", 4 * config.rollouts_per_step),
                         given.get("repeats", 3))
  text = json.dumps({"recipe": _RECIPE.value, **result})
  if out is not None:
    write_whole(out, text + "\n")
  print(slots.line(result))
  print(text, flush=True)


def main():
  for flag in (_ROWS, _PAGE):
    require(flag.value is None or _SUITE.value is not None, f"--{flag.name}", "is of --suite; give that, too")
  if _SUITE.value is not None:
    return run_suite()
  from gdsd_jax.benchmark.measure import measure
  from gdsd_jax.benchmark.report import table
  from gdsd_jax.benchmark.setting import setting
  from gdsd_jax.runs.files import write_whole

  fields = {flag.name: flag.value for flag in _FIELDS}
  out, profile = (flag.value and str(local_path(flag.value, f"--{flag.name}")) for flag in (_OUT, _PROFILE))
  only = tuple(_ONLY.value) if _ONLY.value is not None else None
  if out is not None:
    check_report(Path(out))
  for flag in (_SLOTS, _PROMPTS):
    require(flag.value is None or _RECIPE.value is not None, f"--{flag.name}", "is of --recipe; give that, too")
  if _RECIPE.value is not None:
    return run_slots(out)
  chosen = setting(_MODEL.value, only=only, reference=_REFERENCE.value, profile=profile, **fields)
  result = measure(chosen, say=lambda line: print(line, flush=True))
  line = json.dumps(result)
  if out is not None:
    write_whole(out, line + "\n")
  print(table(result))
  print(line, flush=True)
  ours = (result.get(name, {}).get(side, {}) for name in ("sampling", "training")
          for side in ("ours", "fast_dllm", "exact_cache"))
  if any("error" in side for side in ours):
    sys.exit(1)


if __name__ == "__main__":
  command.run(main)
