"""Objectives side by side on the embedded tasks: which learns more, how steadily, at what cost.

Command:   python launch/compare.py --config=configs/compare.py --jobs=2
ablations: python launch/compare.py --config=configs/compare.py:ablations --workdir=runs/compare_tiny --jobs=2
           one setting of GDSD changed at a time, on arithmetic, at the rate chosen for gdsd or gdsd_tlc; it goes on in
           the folder of the comparison, whose runs of these two it has in common with it
smoke:     python launch/compare.py --config=configs/compare.py:smoke, minutes: does all of it run?
Hardware:  CPU cores: about a minute of one for each run, of which there are 216, and 45 more of the ablations.

Alike for all, for a fair comparison: model, problems and their order, the sampler, 4 prompts × 8 rollouts a step, 2
updates on each batch (the authors' numbers go from 1 to 12; 2 is the least at which old scores matter), AdamW with the
recipes' clip, steps, evaluations. Each objective has a learning rate of its own, chosen on other seeds by the reward of
sampled completions of held-out problems: AdamW moves weights by about the rate, whatever the gradient's scale.

Their own, as their authors have them: views and how many (M), advantages, KL and clip range. Other than theirs are:
- gdsd's epsilon, 0.2 for 4e-4: the official one presumes LoRA's small updates (configs/gdsd_math.py);
- psi, 0.04 on every task, where the embedded Sudoku recipe has 0.1;
- spg's views, one where a completion is one block (it takes each view from another block), and its eubo_beta, 1.5 on
  Sudoku too, where its authors have 1.0;
- trace_rl's filter of groups by accuracy is off: all learn from the same rollouts.
"""

import ml_collections

PRESETS = ("tiny", "ablations", "smoke")


_GDSD = {"psi": 0.04, "epsilon": 0.2, "beta": 1e-3, "num_mc": 2}


def get_config(preset: str = "tiny"):
  if preset not in PRESETS:
    raise ValueError(f"unknown preset {preset!r}, known are {', '.join(PRESETS)}")
  config = ml_collections.ConfigDict()
  config.kind = "comparison"
  one_block = {"spg": {"objective": {"num_mc": 1}}}
  config.tasks = {
    "arithmetic": {"recipe": "gdsd_math:tiny"},
    "countdown": {"recipe": "gdsd_countdown:tiny", "objectives": one_block},
    "sudoku": {"recipe": "gdsd_sudoku:tiny", "objectives": one_block},
  }
  config.objectives = {
    "gdsd": _objective("gdsd", **_GDSD),
    "gdsd_tlc": _objective("gdsd_tlc", **_GDSD, center_top_k=64),
    "espo": _objective("espo", epsilon=0.2, beta=1e-2, num_mc=2),
    "spg": _objective("spg", num_mc=2, eubo_beta=1.5, mix_weight=0.5),
    "wd1": _objective("wd1"),
    "diffu_grpo": _objective("diffu_grpo", epsilon=0.5, beta=0.04),
    "coupled_grpo": _objective("coupled_grpo", epsilon=0.5, beta=0.01),
    "trace_rl": _objective("trace_rl", epsilon=0.2, beta=0.01, shrink=8),
  }
  config.shared = {
    "steps": 24, "group_size": 8, "prompts_per_step": 4, "objective": {"num_iterations": 2},
    "model": {"remat": "none"},  # nothing of these small models need be computed twice
    "eval": {"every": 24, "num_examples": 256, "batch_size": 32},  # the size of a step's batch: one compiled sampler
    "checkpoint": {"every": 12, "keep": 1},
    "log": {"every": 10, "rollouts_every": 0, "keep_every": 0, "tensorboard": False, "plot_seconds": 1e9},
  }
  config.learning_rates = (3e-5, 1e-4, 3e-4, 1e-3)
  config.sweep_seeds = (100,)
  config.seeds = (0, 1, 2, 3, 4)
  config.judged_by = "sampled_reward"
  config.window = 8
  config.over_others = ("gdsd", "gdsd_tlc")
  config.report = "comparison"
  if preset == "ablations":
    _ablations(config)
  elif preset == "smoke":
    _smoke(config)
  return config


def _objective(name: str, **settings):
  return {"objective": {"name": name, **settings}}


def _ablations(config):
  config.report = "ablations"
  config.tasks = {"arithmetic": {"recipe": "gdsd_math:tiny"}}  # completions of two blocks, and most to learn
  config.over_others = ("gdsd",)
  plain = lambda **settings: {"rate_of": "gdsd", **_objective("gdsd", **{**_GDSD, **settings})}
  tlc = lambda k: {"rate_of": "gdsd_tlc", **_objective("gdsd_tlc", **{**_GDSD, "center_top_k": k})}
  config.objectives = {
    "gdsd": config.objectives["gdsd"], "gdsd_tlc": config.objectives["gdsd_tlc"],
    "psi_0p01": plain(psi=0.01), "psi_0p16": plain(psi=0.16),
    "epsilon_0p02": plain(epsilon=0.02),
    "uniform_masks": {**plain(), "masks": {"kind": "uniform"}},
    "uncoupled": plain(coupled=False, num_mc=4),  # as many passes as two pairs take
    "m_1": plain(num_mc=1),
    "tlc_k_8": tlc(8), "tlc_k_all": tlc(512),  # vocabularies have at most 416 tokens
    "official_noise": {**plain(), "sampler": {"noise": "official"}},
  }


def _smoke(config):
  config.tasks = {"countdown": {"recipe": "gdsd_countdown:tiny"}}
  config.objectives = {name: config.objectives[name] for name in ("gdsd", "wd1")}
  config.shared.update({"steps": 2, "group_size": 2, "prompts_per_step": 2, "eval": {"every": 2, "num_examples": 4,
                        "batch_size": 4}, "checkpoint": {"every": 1}})
  config.learning_rates = (1e-4, 1e-3)
  config.seeds = (0, 1)
  config.window = 2
  config.over_others = ()
