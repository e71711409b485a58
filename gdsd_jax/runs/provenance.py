"""What a run is made of: versions, and fingerprints of its inputs, in config.json, which a resumed run is held to."""

from collections.abc import Mapping, Sequence
import importlib.metadata
import json
import logging
import os
from pathlib import Path
import platform
import subprocess
from typing import Any

from etils import epath
import numpy as np

from gdsd_jax import own_code
from gdsd_jax.checks import require
from gdsd_jax.huggingface.folder import hub_commit, tokenizer_files
from gdsd_jax.huggingface.weight_files import weight_files
from gdsd_jax.parallel.processes import gather_json, is_first_process, share_work
from gdsd_jax.runs import fingerprints
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.waiting import waiting

_log = logging.getLogger(__name__)

_LIBRARIES = ("gdsd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "qwix", "transformers", "numpy")
_PACKAGE = Path(__file__).parents[1]


def versions() -> dict[str, str | None]:
  """Versions of Python, this package and the libraries that decide on numbers, and the commit of its checkout."""
  found = {"python": platform.python_version(), "commit": _commit(_PACKAGE.parent)}
  for name in _LIBRARIES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a clone that is not installed
      found[name] = None
  return found


def _commit(root: Path) -> str | None:
  """The commit that a checkout is at, with "+changes" where its files are not those of it; None without a checkout."""
  if not (root / ".git").exists():
    return None
  ask = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
  try:
    answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True,
                            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})
  except (OSError, subprocess.SubprocessError):  # no git, or another user's checkout
    return None
  lines = answer.stdout.splitlines()
  commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
  return commit and commit + "+changes" * any(not line.startswith("#") for line in lines)


def provenance_of(
  model: ModelConfig | None, data: Mapping[str, Sequence[Any]], given: Sequence[Any] = ()
) -> dict[str, Any]:
  """What config.json holds of a run's origins, besides its recipe: `versions`, the hub's `model_commit`, and `inputs`.

  Collective. The first process alone reads the weights; of all other inputs each process has its own, and they must be
  the same.

  Args:
    model: what the run starts from; None where it starts from nothing.
    data: rows by what they are called, such as "training data".
    given: tasks and functions that are objects of the user's program.

  Raises:
    ValueError: processes have different inputs; the line names them.
    OSError: a file cannot be read.
  """
  inputs = {name: fingerprints.of_rows(rows) for name, rows in data.items()}
  code = {f"code of {name}": fingerprints.of_text(text) for name, text in own_code.sources(given).items()}
  commit, weights = None, {}
  if model is not None:
    folder = model.folder
    inputs["config.json of the model"] = fingerprints.of_files([folder / "config.json"])
    inputs["tokenizer"], commit = fingerprints.of_files(tokenizer_files(folder)), hub_commit(folder)
    if model.lora_path:
      inputs["adapter"] = fingerprints.of_files(model.lora_folder.glob("adapter_*"))
    alone = np.arange(1 if is_first_process() else 0)
    with waiting(f"taking the fingerprint of {model.path}"):
      [weights["base weights"]] = share_work(1, lambda _: [fingerprints.of_files(weight_files(folder))], alone)
  for process, other in enumerate(gather_json(inputs | code)):
    differing = [name for name, value in (inputs | code).items() if other.get(name) != value]
    require(not differing, "processes", f"process {process} has other {', '.join(differing)} than another; all of a"
                                        " run's processes must read the same")
  return {"versions": versions(), "model_commit": commit, "inputs": weights | inputs | code}


def check_inputs(workdir: epath.Path, provenance: Mapping[str, Any], allow_changed: bool) -> dict[str, Any]:
  """What config.json is to hold: `provenance`, and those before it where another was in `earlier`, the first one first.

  A run that was begun with other libraries goes on, which is told. So does one with other inputs, if that is allowed.

  Raises:
    ValueError: the run in `workdir` was begun with other inputs; the line names them.
  """
  file = workdir / "config.json"
  saved = json.loads(file.read_text()).get("provenance") if file.is_file() else None
  if not isinstance(saved, dict):  # of a run from before there was any
    return dict(provenance)
  earlier = saved.pop("earlier", [])
  if saved == provenance:
    return {**provenance, "earlier": earlier} if earlier else dict(provenance)
  changed = _differing(saved.get("inputs", {}), provenance["inputs"])
  require(not changed or allow_changed, "--workdir", f"{workdir} holds a run with other {', '.join(changed)}; restore"
          " what changed, choose another --workdir, or go on with --allow_changed_inputs")
  if changed:
    _log.info("INPUTS CHANGED since the run began: %s", ", ".join(changed))
  old, new = saved.get("versions", {}), provenance["versions"]
  if told := [f"{name} {old[name]} → {new[name]}" for name in _differing(old, new)]:
    _log.info("the run was last started with other versions: %s", ", ".join(told))
  return {**provenance, "earlier": [*earlier, saved]}


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Names of what both have, and differs: one that only one side has was not looked at by another version of this."""
  return [name for name in new if name in old and old[name] != new[name]]
