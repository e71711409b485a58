"""Folders of runs for the tests of pages: ordinary ones, and with texts that are up to no good."""

import json

from gdsd_jax.runs.given import load_config

HOSTILE = {
  "script": "<script>window.pwned=1</script>",
  "end of script": "</script><script>window.pwned=2</script>",
  "comment": "<!-- <script> --!><img src=x onerror='window.pwned=3'>",
  "link": "<a href='javascript:window.pwned=4'>x</a>",
  "template": "$data ${window.pwned=5} {{7*7}} %(title)s",
  "right to left": "\u202e\u0645\u0631\u062d\u0628\u0627 abc",
  "emoji": "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467",
  "controls": "a\x00b\x1b[31m\x07c",
  "separators": "x\u2028y\u2029z\u0085",
  "surrogate": "\ud800 alone",
}


def completion(pieces, reward=1.0, length=None, **more):
  """One whose tokens are unmasked from the last to the first."""
  count = len(pieces)
  return {
    "text": "".join(pieces[:length]), "reward": reward, "rewards": {"correctness": reward, "format": None},
    "accuracy": float(reward >= 1), "advantage": reward - 0.5, "length": count if length is None else length,
    "tokens": list(pieces), "unmasked": list(range(count))[::-1],
    "confidence": [(at + 1) / count for at in range(count)], "logp": [-at / count for at in range(count)], **more,
  }


def row(step, group=0, question="How many apples?", rewards=(1.0, 0.0), **more):
  pieces = [f"{step}", " apples", " in", " all", "<|end|>", "<|end|>"]
  completions = [completion(pieces, reward, 4) for reward in rewards]
  return {"step": step, "group": group, "prompt": [{"role": "user", "content": question}], "reference": "5",
          "completions": completions, **more}


def hostile_row(step):
  """All of HOSTILE, each as a token, a reward's name, a prompt and a reference."""
  texts = list(HOSTILE.values())
  completions = [completion([text, "\n", text], rewards={text: 0.5}) for text in texts]
  return {"step": step, "group": 0, "prompt": [{"role": text, "content": text} for text in texts],
          "reference": "".join(texts), "completions": completions}


def metrics(steps, names=("reward/correctness", "kl", "grad_norm", "tokens_per_second", "seconds/step")):
  """Rows of a run whose reward rises from 0.5 to 1, evaluated before the first and after the last step."""
  evaluated = lambda accuracy: {"eval/accuracy": accuracy, "eval/reward": accuracy, "eval/sampled_reward": accuracy}
  rows = [{"step": 0, "reward": 0.5, **evaluated(0.25)}]
  for step in range(1, steps + 1):
    rows.append({"step": step, "reward": 0.5 + 0.5 * step / steps, **dict.fromkeys(names, step / 4)})
  return [*rows[:-1], rows[-1] | evaluated(0.75)]


def write_run(folder, steps=20, done=None, rollouts=None, more=None, **changes):
  """The folder of a run of gdsd_math:tiny, of which `done` steps are written, with these `changes` of its config.

  `rollouts` are rows of rollouts.jsonl, and `more` numbers of every step.
  """
  folder.mkdir(parents=True, exist_ok=True)
  config = load_config("gdsd_math:tiny", {"steps": steps, **changes}).to_dict()
  provenance = {"versions": {"jax": "0.9.0", "commit": "abc"}, "inputs": {"tokenizer": "f" * 64}, "model_commit": None}
  (folder / "config.json").write_text(json.dumps(config | {"provenance": provenance}))
  rows = [row | (more or {}) for row in metrics(steps)][: (steps if done is None else done) + 1]
  (folder / "metrics.jsonl").write_text(lines(rows))
  if rollouts is not None:
    (folder / "rollouts.jsonl").write_text(lines(rollouts))
  return folder


def lines(rows) -> str:
  return "".join(json.dumps(each) + "\n" for each in rows)
