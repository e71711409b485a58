"""Exact likelihoods and true rewards on a vocabulary small enough to write every completion down.

  python launch/exact.py --out=runs/exact                                # all of it, some 15 minutes of CPU time
  python launch/exact.py --out=runs/few --objectives=gdsd,gdsd:psi=0.4,espo --seeds=3
  python launch/exact.py --out=runs/estimators --only=estimators --denoising_steps=3

A small model of LLaDA's layout is pretrained on a pattern. The distribution of its completions under LLaDA's and
Dream's samplers is computed exactly. It gives (1) the bias and the noise of every estimate of the likelihood that an
objective makes, and (2) the true expected reward before and after training by each objective. Training is by the
updates of a real run. Each has the learning rate of --rates that ends with the largest true reward on other seeds.

Writes to --out: found.jsonl, each result as it comes, behind which an interrupted command goes on; exact.json, exact.md
and exact.png, the whole of them. The last line of standard output is exact.json in one line.
"""

from gdsd_jax import signals

if __name__ == "__main__":
  # Before imports that take seconds.
  signals.begin("asked to stop: what was found is saved; the same command goes on", signals.START_AGAIN)

import json

from absl import flags

from gdsd_jax import command

_OUT = flags.DEFINE_string("out", "runs/exact", "Folder for the results.")
_ONLY = flags.DEFINE_list("only", None, "Some of estimators, objectives; by default both.")
_OBJECTIVES = flags.DEFINE_list("objectives", None, "NAME or NAME:FIELD=VALUE; by default all that have rollouts.")
_SEEDS = flags.DEFINE_integer("seeds", None, "Seeds that are reported.")
_TUNING_SEEDS = flags.DEFINE_integer("tuning_seeds", None, "Other seeds, that learning rates are chosen on.")
_RATES = flags.DEFINE_list("rates", None, "Learning rates to choose from.")
_BUDGET = [
  flags.DEFINE_integer("steps", None, "Iterations of each training."),
  flags.DEFINE_integer("group_size", None, "Rollouts of each prompt in an iteration."),
  flags.DEFINE_integer("num_iterations", None, "Updates on the rollouts of an iteration."),
]
_PROBLEM = [
  flags.DEFINE_integer("tokens", None, "Tokens of the vocabulary beside the mask, and prompts."),
  flags.DEFINE_integer("length", None, "Tokens of a completion."),
  flags.DEFINE_integer("block_length", None, "Tokens of the sampler's block."),
  flags.DEFINE_integer("denoising_steps", None, "Steps of the sampler for a completion."),
  flags.DEFINE_float("temperature", None, "Of the sampler."),
  flags.DEFINE_float("coupling", None, "Share of the reward that depends on neighbours."),
  flags.DEFINE_float("order", None, "Probability that the model was pretrained on tokens in order."),
  flags.DEFINE_integer("pretraining", None, "Steps of the model's pretraining."),
]


def _numbers(flag: str, texts: list[str]) -> tuple[float, ...]:
  try:
    return tuple(map(float, texts))
  except ValueError:
    raise ValueError(f"{flag}: must be numbers, not {','.join(texts)!r}") from None


def main():
  from gdsd_jax.exact.problem import Problem
  from gdsd_jax.exact.study import run_study, Study
  from gdsd_jax.exact.summary import markdown, picture, summarize
  from gdsd_jax.exact.training import Budget
  from gdsd_jax.runs.files import local_folder, write_whole
  from gdsd_jax.runs.metrics import log_to_stdout

  log_to_stdout()
  given = lambda flags: {flag.name: flag.value for flag in flags if flag.value is not None}
  some = {flag.name: tuple(flag.value) for flag in (_ONLY, _OBJECTIVES) if flag.value is not None}
  rates = {} if _RATES.value is None else {"rates": _numbers("--rates", _RATES.value)}
  study = Study(Problem(**given(_PROBLEM)), Budget(**given(_BUDGET)), **some, **rates,
                **given((_SEEDS, _TUNING_SEEDS)))
  out = local_folder("--out", _OUT.value)
  summary = summarize(run_study(study, out))
  line, tables = json.dumps(summary), markdown(summary)
  write_whole(out / "exact.json", line + "\n")
  write_whole(out / "exact.md", tables)
  write_whole(out / "exact.png", picture(summary))
  print(tables)
  print(line, flush=True)


if __name__ == "__main__":
  command.run(main)
