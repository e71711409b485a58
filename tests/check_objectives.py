"""Holds every objective against golden data of its authors' code: python tests/check_objectives.py FOLDER [MODEL].

A line a case: the worst differences of token scores (absolute), loss, gradient of the final norm and norm of the head's
gradient (relative), each of which may be 1e-4. Exit status 1 where one is more. The model is a folder in the Hugging
Face layout: MODEL, or FOLDER/hf, or FOLDER/../llada_tiny/hf. Scores and gradients are those of training.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import json
from pathlib import Path
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gdsd_jax
from gdsd_jax.objectives.mdpo import step_advantages
from gdsd_jax.objectives.named import objective_class, OBJECTIVES
from gdsd_jax.objectives.objective import Objective, ScoredRollouts, ScoredViews
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.views import Views
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.gradient import DistillationBatch, loss_and_gradient, ScoringBatch
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import score_rollouts

MOST = 1e-4  # of each difference
_LEAST_LOSS = 0.01  # losses near zero by cancellation are compared to this


@dataclasses.dataclass
class Case:
  """One loss of golden data, as our objective takes it; arrays have the shapes of `ScoredRollouts`."""

  label: str
  objective: Objective
  tokens: Any  # int[N, P+L]
  views: Views
  attention_mask: Any  # bool[N, P+L]
  group_size: int
  expected: Mapping[str, Any]  # loss, grad_final_norm, grad_head_norm
  advantages: Any
  rewards: Any = None
  counted: Any = None  # bool[N, L] up to the first end of text
  old: Any = None  # float[N, V, L]; None for the student's own scores
  ref: Any = None
  logp: Any = None  # float[N, V, L], what the student's scores should be where they count
  recorded: Any = None  # float[N, L], the rollout's own log-probabilities
  kept: Any = None  # int[N, L, K]
  fixed: ScoredViews | None = None
  loss_is_told: bool = True  # False where the value says nothing


def differences(case: Case, denoiser, params) -> dict[str, float]:
  """Worst differences by name, of token scores where the data has them."""
  state = init_state(denoiser, params, optax.sgd(1.0), 0, False, make_mesh(1, 1, 1, jax.devices()[:1]))
  array = functools.partial(jax.tree.map, jnp.asarray)
  views, (batch, _, length) = array(case.views), case.views.masks.shape
  attention_mask = jnp.asarray(case.attention_mask, bool)
  scoring = ScoringBatch(jnp.asarray(case.tokens), attention_mask, views.inputs, array(case.kept))
  student = score_rollouts(state.params, scoring, denoiser=denoiser, objective=case.objective)
  counted = np.ones((batch, length), bool) if case.counted is None else np.asarray(case.counted)
  given = lambda scores: None if scores is None else Scores(jnp.asarray(scores, jnp.float32))
  zeros = np.zeros(batch, np.float32)
  scored = ScoredRollouts(
    tokens=jnp.asarray(case.tokens)[:, -length:], lengths=jnp.asarray(counted.sum(axis=1)),
    rewards=jnp.asarray(zeros if case.rewards is None else case.rewards), advantages=jnp.asarray(case.advantages),
    confidence=jnp.zeros((batch, length)), logp=array(case.recorded), group_size=case.group_size, views=views,
    student=student, old=student if case.old is None else given(case.old), ref=given(case.ref), fixed=array(case.fixed),
  )
  (loss, _), gradient, _ = jax.jit(functools.partial(loss_and_gradient, denoiser, case.objective, accumulation=1))(
    state, DistillationBatch(scoring, scored))
  found, expected = {}, case.expected
  if case.logp is not None:
    where = np.asarray(case.views.counted)
    found["scores"] = np.abs(np.where(where, np.asarray(student.plain) - case.logp, 0)).max()
  if case.loss_is_told:
    found["loss"] = abs(float(loss) - expected["loss"]) / max(abs(expected["loss"]), _LEAST_LOSS)
  norm = np.asarray(gradient["final_norm"])
  found["final_norm"] = np.linalg.norm(norm - expected["grad_final_norm"]) / np.linalg.norm(expected["grad_final_norm"])
  head = np.linalg.norm(np.asarray(gradient["head" if "head" in gradient else "embedding"]))
  found["head"] = abs(head - expected["grad_head_norm"]) / expected["grad_head_norm"]
  return {name: float(value) for name, value in found.items()}


class Data:
  """A file of golden data: its arrays below a prefix, and the settings beside it."""

  def __init__(self, arrays, settings: Mapping[str, Any], prefix: str = ""):
    self.arrays, self.settings, self.prefix = arrays, settings, prefix

  def __getitem__(self, name: str):
    return self.arrays[self.prefix + name] if self.prefix + name in self.arrays else self.arrays[name]

  def __contains__(self, name: str) -> bool:
    return self.prefix + name in self.arrays

  def below(self, prefix: str) -> "Data":
    return Data(self.arrays, {**self.settings, **self.settings.get(prefix, {})}, prefix + "/")

  @property
  def length(self) -> int:
    return self["completion_mask"].shape[1]

  @property
  def attention_mask(self):
    """Padding attends to nothing where a prompt mask tells of it."""
    ids, told = self["ids"], "prompt_mask" in self or "prompt_mask" in self.arrays
    if "attends_to_padding" in self and self["attends_to_padding"] or not told:
      return np.ones(ids.shape, bool)
    return np.concatenate([self["prompt_mask"], np.ones((len(ids), self.length), bool)], axis=1)

  def expected(self, index=None) -> dict[str, Any]:
    """Loss and gradients, of an inner update where there are several."""
    names = ("loss", "grad_final_norm", "grad_head_norm")
    if index is None:
      return {name: self[name] for name in names}
    of_updates = "iteration/" if self.prefix == "" else ""
    return {name: self[of_updates + name][index] for name in names}

  def case(self, label: str, objective: Objective, masks, expected=None, **fields) -> Case:
    """A case in the views of masks bool[N, V, P+L]; `scored` and `weights` are the views'."""
    P = masks.shape[2] - self.length
    of_views = {name: fields.pop(name) for name in ("scored", "weights", "targets") if name in fields}
    if "scored" in of_views:
      of_views["scored"] = of_views["scored"][..., -self.length:]
    views = Views(masks[..., P:], prompt_masks=masks[..., :P], **of_views)
    for name, value in (("advantages", "advantages"), ("counted", "completion_mask"), ("group_size", "group_size")):
      if name not in fields:
        fields[name] = self[value]
    fields = {"attention_mask": self.attention_mask, **fields, "group_size": int(fields["group_size"])}
    return Case(label, objective, self["ids"], views, expected=expected or self.expected(), **fields)


def by_rollout(x):
  """[V, N, …] as [N, V, …]."""
  return np.swapaxes(x, 0, 1)


def made(name: str, **fields) -> Objective:
  return objective_class(name)(**fields)


def first_batch(name: str, data: Data) -> Iterator[Case]:
  """diffu_grpo, wd1, wd1_positive and spg: several cases in a file."""
  for index in range(int(data["num_cases"])):
    of = Data(data.arrays, {}, f"case{index}/")
    masks, scores, more = of["masks"], of["logps"], {}
    if name == "spg":
      how = {"eubo_beta": float(of["eubo_beta"]), "mix_weight": float(of["mix_weight"])}
      objective = made("spg", negative=str(of["logp_estimation"]), **how)
      more["scored"] = masks[..., -of.length:] & of["completion_mask"][:, None]
    else:
      masks, scores = masks[:, None], scores[:, None]
      if name == "diffu_grpo":
        objective = made("diffu_grpo", epsilon=float(of["epsilon"]), beta=float(of["beta"]))
        more = {"old": of["old_logps"][:, None], "ref": of["ref_logps"][:, None] if of["beta"] > 0 else None}
      else:
        objective = made(name, weights_over="batch")
    yield of.case(f"case{index}", objective, masks, logp=scores, **more)


def espo(name: str, data: Data) -> Iterator[Case]:
  for index in range(int(data["num_cases"])):
    of = Data(data.arrays, {}, f"case{index}/")
    L, count = of.length, int(of["num_mc"])
    objective = made("espo", epsilon=float(of["epsilon"]), beta=float(of["beta"]))
    masks = by_rollout(of["masks"])
    # The data has sums alone of old and reference: these are token scores with such sums.
    weights = np.where(masks, (L + 1) / masks.sum(-1, keepdims=True).clip(1),
                       (L + 1) / (~masks).sum(-1, keepdims=True).clip(1))
    spread = lambda sums, weights=weights, count=count: np.broadcast_to(
      (2 * sums[:, None] / weights.sum(-1))[..., None], weights.shape)
    yield Case(f"case{index}", objective, of["ids"], Views(masks, coupled=True), of.attention_mask,
               int(of["group_size"]), of.expected(), of["advantages"], counted=of["completion_mask"],
               old=spread(of["old_elbo"]), ref=spread(of["ref_elbo"]) if of["beta"] > 0 else None)


def coupled_grpo(name: str, data: Data) -> Iterator[Case]:
  settings = data.settings["settings"]
  objective = made("coupled_grpo", epsilon=settings["epsilon_low"], beta=settings["beta"])
  for update, masks in enumerate(data["noised/mask"]):
    masks, weights = by_rollout(masks), data["noised/weight"][update]
    weights = np.broadcast_to(weights[:, None], (len(masks), 3, 1))
    # The data has the combined scores alone of old and reference, ½ (1 + w) s of a token in its two views.
    counted = masks[..., -data.length:]
    total = np.sum(counted * weights, axis=1, keepdims=True)
    spread = lambda scores, counted=counted, total=total: np.where(counted, 2 * scores[:, None] / total, 0)
    yield data.case(f"update {update}", objective, masks, data.expected(update), weights=weights,
                    old=spread(data["old_logp"][update]), ref=spread(data["ref_logp"][update]))


def dmpo(name: str, data: Data) -> Iterator[Case]:
  settings, masks = data.settings["settings"], by_rollout(data["noised/mask"])
  fields = {"alpha": settings["alpha"], "coefficient": settings["coeff"], "centering": settings["centering_strength"]}
  fixed_masks = by_rollout(data["elbo/mask"])[..., -data.length:]
  share = fixed_masks.any(axis=-1).mean(axis=-1)  # of views with masked tokens; the others add nothing
  spread = lambda elbos: Scores(np.broadcast_to((elbos / share)[:, None, None] / data.length, fixed_masks.shape))
  fixed = ScoredViews(Views(fixed_masks), spread(data["log_prob_behaviour"]), spread(data["log_prob_ref"]))
  variants = {"": "negative", "mean_centering": "mean", "unbiased_centering": "policy", "no_centering": "none",
              "not_antithetic": "negative"}
  for variant, center in variants.items():
    of = data.below(f"variant/{variant}") if variant else data
    if variant and "loss" not in of:
      continue
    of_variant = by_rollout(of["mask"]) if variant == "not_antithetic" else masks
    scores = {} if variant == "not_antithetic" else {"logp": by_rollout(data["logp"])}
    yield of.case(variant or "main", made("dmpo", center=center, **fields), of_variant, rewards=data["rewards"],
                  fixed=fixed, **scores)


def bgpo(name: str, data: Data) -> Iterator[Case]:
  settings, masks = data.settings["settings"], data["noised/mask"]
  objective = made("bgpo", epsilon=settings["clip_ratio_low"], dual_clip=settings["clip_ratio_c"])
  weights = (1 / data["noised/p_mask"])[..., None]
  counted = masks[..., -data.length:]
  spread = data["old_logp"][..., None] * data.length / (weights * counted.sum(-1, keepdims=True))
  yield data.case("main", objective, masks, scored=data["noised/scored"], weights=weights,
                  old=np.where(counted, spread, 0))


def gdpo(name: str, data: Data) -> Iterator[Case]:
  settings = data.settings["settings"]
  for part in ("", "truncated"):
    of = data.below(part) if part else data
    if part and "loss" not in of:
      continue
    masks = by_rollout(of["noised/mask"])
    objective = made("gdpo", epsilon=settings["eps_low"], beta=settings["beta"], truncated=part == "truncated")
    weights = np.broadcast_to(of["noised/weight"][:, None], (len(masks), masks.shape[1], 1))
    counted, attention = masks[..., -data.length:], data.attention_mask
    if part:
      attention = attention & np.concatenate([np.ones_like(attention[:, :-data.length]), of["valid"]], axis=1)
    total, masked = np.sum(counted * weights, axis=1), counted.any(axis=1)
    valid = of["valid"] if part else np.ones(masked.shape, bool)

    def spread(parts, counted=counted, total=total):
      """A position's part in the ELBO, over what its views weigh in all."""
      return np.where(counted, (parts / np.where(total, total, 1))[:, None], 0)

    # Old and reference have parts of positions that no view masks, too: in a sum any position can have them, and in the
    # KL they are a constant.
    old = np.where(masked, of["old_logp"], 0)
    first = masked.argmax(axis=1)
    old[np.arange(len(old)), first] += np.where(masked, 0, of["old_logp"]).sum(axis=1)
    difference = np.clip(np.where(masked, 0, of["ref_logp"]), -20, 20)
    constant = np.clip(np.expm1(difference) - difference, -10, 10).sum(axis=1) / valid.sum(axis=1)
    expected = of.expected()
    expected["loss"] = expected["loss"] - settings["beta"] * constant.mean()
    yield of.case(part or "main", objective, masks, expected, weights=weights, attention_mask=attention,
                  counted=valid if part else data["completion_mask"], old=spread(old),
                  ref=spread(of["ref_logp"]) if settings["beta"] > 0 else None)


def unigrpo(name: str, data: Data) -> Iterator[Case]:
  settings = data.settings["settings"]
  for divided_by, part in (("scored", ""), ("length", "per_length")):
    objective = made("unigrpo", epsilon=settings["epsilon"], beta=settings["beta"], divided_by=divided_by)
    of = data.below(part) if part else data
    for update in range(len(data["noised/mask"])):
      masks, scored = data["noised/mask"][update][:, None], data["noised/scored"][update][:, None]
      scores = {key: data[f"{key}_logp".removeprefix("_")][update][:, None] for key in ("old", "ref")}
      yield of.case(f"{part or 'main'} update {update}", objective, masks, of.expected(update), scored=scored,
                    logp=data["logp"][update][:, None], **scores)


def trace_rl(name: str, data: Data) -> Iterator[Case]:
  settings, rows = data.settings["settings"], data["noised/row"]
  place = _places(rows)
  views = lambda x: _by_row(x, rows, place)
  objective = made("trace_rl", epsilon=settings["eps"], beta=settings["beta"], shrink=settings["shrink"])
  yield data.case("main", objective, views(data["noised/mask"]), scored=views(data["noised/scored"]),
                  old=views(data["old_logp"]), logp=views(data["logp"]))


def d2(name: str, data: Data) -> Iterator[Case]:
  settings, scored = data.settings["settings"], by_rollout(data["noised/scored"])
  objective = made("d2", epsilon=settings["epsilon"], beta=settings["beta"], segments=settings["N"])
  for update, masks in enumerate(data["noised/mask"]):
    masks = by_rollout(masks)
    each = lambda scores, update=update: np.broadcast_to(scores[update][:, None], scored.shape)
    yield data.case(f"update {update}", objective, masks, data.expected(update), scored=scored,
                    logp=each(data["logp"]), old=each(data["old_logp"]), ref=each(data["ref_logp"]))


def cj_grpo(name: str, data: Data) -> Iterator[Case]:
  settings = data.settings["settings"]
  each = lambda scores, of: np.broadcast_to(scores[:, None], of.shape)
  objective = made("cj_grpo", epsilon=settings["epsilon"], beta=settings["beta"])
  masks, scored = by_rollout(data["noised/mask"]), by_rollout(data["noised/scored"])
  yield data.case("main", objective, masks, scored=scored, logp=each(data["logp"], scored),
                  old=each(data["old_logp"], scored), ref=each(data["ref_logp"], scored))
  of, settings = data.below("dare"), settings["dare"]
  if "loss" in of:
    objective = made("cj_grpo", epsilon=settings["clip_ratio_low"], beta=0.0, dual_clip=settings["clip_ratio_c"])
    steps = np.arange(of["step_map"].max() + 1)[:, None]
    masks, scored = of["step_map"][:, None] >= steps, of["step_map"][:, None] == steps
    masks = np.concatenate([np.zeros((*masks.shape[:2], of["ids"].shape[1] - data.length), bool), masks], axis=2)
    yield of.case("dare", objective, masks, scored=scored, logp=each(of["logp"], scored),
                  old=each(of["old_logp"], scored))


def just_grpo(name: str, data: Data) -> Iterator[Case]:
  settings, scored = data.settings["settings"], by_rollout(data["noised/scored"])
  masks = by_rollout(data["noised/mask"])
  each = lambda scores: np.broadcast_to(scores[:, None], (*scored.shape[:2], data.length))
  objective = made("just_grpo", epsilon=settings["eps"], temperature=settings["temperature"])
  yield data.case("main", objective, masks, scored=scored, logp=each(data["logp"]), loss_is_told=False)
  of, settings = data.below("dare"), settings["dare"]
  if "loss" in of:
    how = {"token-mean": "tokens"}.get(settings["loss_agg_mode"], "rows")
    objective = made("just_grpo", epsilon=settings["clip_ratio_low"], dual_clip=settings["clip_ratio_c"], mean_over=how,
                     temperature=settings["temperature"])
    P = of["ids"].shape[1] - data.length
    attention = np.concatenate([of["prompt_mask"], of["response_mask"]], axis=1)
    yield of.case("dare", objective, masks[..., -(P + data.length):], scored=scored, attention_mask=attention,
                  counted=of["response_mask"], old=each(of["old_logp"]))


def agrpo(name: str, data: Data) -> Iterator[Case]:
  settings = data.settings["settings"]
  bits = np.unpackbits(data["sampling_masks"], axis=-1).astype(bool)
  kept = np.full((*bits.shape[:2], bits.sum(-1).max()), -1, np.int32)
  for row in np.ndindex(bits.shape[:2]):
    found = np.flatnonzero(bits[row])
    kept[row][:len(found)] = found
  for part in ("", "uniform"):
    of = data.below(part) if part else data
    if part and "loss" not in of:
      continue
    objective = made("agrpo", epsilon=settings["eps_low"], beta=settings["beta"], temperature=settings["temperature"],
                     filtered=True, steps_by=part or settings["importance_sampling"])
    masks, scored = by_rollout(of["noised/mask"]), by_rollout(of["noised/scored"])
    replayed = np.broadcast_to(data["logp"][:, None], scored.shape)
    yield of.case(part or "main", objective, masks, scored=scored, weights=of["importance_weights"][..., None],
                  recorded=data["old_logp"], ref=by_rollout(of["ref_logp"]), kept=kept, logp=replayed)


def vrpo(name: str, data: Data) -> Iterator[Case]:
  settings, length = data.settings["settings"], data.length
  truncated = settings["response"] != "all tokens"
  counted, attention = data["response_mask"], data.attention_mask
  attention = attention & np.concatenate([np.ones_like(attention[:, :-length]), counted], axis=1)
  weights, masks = (1 / data["noised/p_mask"])[..., None], data["noised/mask"]
  scored = masks[..., -length:]
  rewards = np.zeros(len(masks), np.float32)
  rewards[data["chosen"]] = 1
  per_view = weights * scored.sum(-1, keepdims=True)
  spread = lambda elbos: np.where(scored, elbos[:, None, None] / per_view, 0)
  for part, per_token, ref in (("", True, data["ref_logp"] * length), ("paper", False, data["paper/ref_elbo"])):
    of = data.below(part) if part else data
    objective = made("vrpo", beta=settings["beta"], per_token=per_token, truncated=truncated)
    yield of.case(part or "main", objective, masks, weights=weights, ref=spread(ref), rewards=rewards, group_size=2,
                  advantages=np.zeros(len(masks), np.float32), counted=counted, attention_mask=attention)


def mdpo(name: str, data: Data) -> Iterator[Case]:
  settings, rows = data.settings["settings"], data["noised/row"]
  views = lambda x: _by_row(x, rows, _places(rows))
  objective = made("mdpo", epsilon=settings["epsilon"], beta=settings["beta"], temperature=settings["temperature"])
  advantages = np.asarray(step_advantages(jnp.asarray(data["step_rewards"]), int(data["group_size"])))
  assert np.abs(advantages - data["advantages"]).max() < MOST
  confidence = views(data["noised/confidence"])
  weights = np.broadcast_to(views(data["noised/advantage"])[..., None], confidence.shape)
  yield data.case("main", objective, views(data["noised/mask"]), scored=views(data["noised/scored"]),
                  weights=np.stack([weights, confidence], axis=-1), targets=views(data["noised/targets"]),
                  old=views(data["old_logp"]), ref=views(data["ref_logp"]), logp=views(data["logp"]),
                  advantages=np.zeros(len(data["ids"]), np.float32))


def _places(rows):
  """Which of its rollout's rows each row is."""
  return np.array([np.sum(rows[:i] == row) for i, row in enumerate(rows)])


def _by_row(x, rows, place):
  """Rows [R, …] as [N, V, …], 0 where a rollout has fewer."""
  found = np.zeros((rows.max() + 1, place.max() + 1, *x.shape[1:]), x.dtype)
  found[rows, place] = x
  return found


CASES: Mapping[str, Callable[[str, Data], Iterator[Case]]] = {
  **dict.fromkeys(("diffu_grpo", "wd1", "wd1_positive", "spg"), first_batch), "espo": espo,
  "coupled_grpo": coupled_grpo, "dmpo": dmpo, "bgpo": bgpo, "gdpo": gdpo, "unigrpo": unigrpo, "trace_rl": trace_rl,
  "d2": d2, "cj_grpo": cj_grpo, "just_grpo": just_grpo, "agrpo": agrpo, "vrpo": vrpo, "mdpo": mdpo,
}


def cases_of(file: Path) -> Iterator[Case]:
  beside = file.with_suffix(".json")
  settings = json.loads(beside.read_text()) if beside.is_file() else {}
  return CASES[file.stem](file.stem, Data(np.load(file), settings))


def model_of(folder: Path, model: str | None) -> Path:
  places = [Path(model)] if model else [folder / "hf", folder.parent / "llada_tiny" / "hf"]
  found = next((place for place in places if (place / "config.json").is_file()), None)
  if found is None:
    sys.exit(f"no model: {' or '.join(map(str, places))} has no config.json")
  return found


def main(folder: str, model: str | None = None) -> int:
  folder, misses = Path(folder), 0
  files = [file for file in sorted(folder.glob("*.npz")) if file.stem in OBJECTIVES]
  if not files:
    sys.exit(f"{folder} has no golden data of {', '.join(OBJECTIVES)}")
  denoiser, params = gdsd_jax.load_pretrained(model_of(folder, model))
  for file in files:
    for case in cases_of(file):
      found = differences(case, denoiser, params)
      missed = [name for name, value in found.items() if not value <= MOST]
      misses += bool(missed)
      shown = "  ".join(f"{name} {value:.1e}" for name, value in found.items())
      print(f"{file.stem:13} {case.label:20} {shown}{'  MISS' if missed else ''}", flush=True)
  return 1 if misses else 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
