"""Weights & Biases: a run's curves on its server, under an id that is drawn once and kept in the run's folder."""

import configparser
import contextlib
import netrc
import os
from pathlib import Path
import re
from typing import Any
import urllib.parse
import uuid

from etils import epath

from gdsd_jax.checks import require
from gdsd_jax.runs.files import is_remote, write_whole

ID_FILE = "wandb_id"
_REFUSED = r"[/\\#?%:]"  # in the name of a project, by wandb's settings
_LONGEST = 128
_FIELD = "log.wandb_project"


def check(project: str) -> None:
  """Raises ValueError, before anything is loaded, where W&B would refuse the project, or ask who this is."""
  refused = sorted(set(re.findall(_REFUSED, project)))
  require(not refused, _FIELD, f"W&B takes no {' '.join(refused)} in the name of a project, here {project!r}")
  require(len(project) <= _LONGEST, _FIELD, f"has {len(project)} characters; W&B takes {_LONGEST}")
  if project:
    require(_is_logged_in(), _FIELD, "W&B has no key here; run `wandb login`, set WANDB_API_KEY, or write to a local"
                                     " folder by WANDB_MODE=offline")


def _is_logged_in() -> bool:
  """Whether wandb finds a key without asking for it, or needs none."""
  said = {"base_url": "https://api.wandb.ai", "mode": "online"}
  folder = os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb"))
  files = Path(folder) / "settings", Path("wandb/settings")
  with contextlib.suppress(configparser.Error):
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(files)
    said |= dict(settings["default"]) if settings.has_section("default") else {}
  if os.environ.get("WANDB_MODE", said["mode"]).lower() in ("offline", "disabled", "dryrun"):
    return True
  if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or "api_key" in said:
    return True
  host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", said["base_url"])).netloc
  for file in filter(None, (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")):
    with contextlib.suppress(OSError, netrc.NetrcParseError):
      if netrc.netrc(os.path.expanduser(file)).authenticators(host):
        return True
  return False


def open_run(workdir: epath.Path, config, resumed: bool) -> Any:
  """The W&B run of a run's folder. Raises OSError, one line with the cause, where W&B refuses it."""
  folder = workdir.resolve()
  name = f"{folder.parent.name}_{folder.name}" if (folder.parent / "sweep.json").is_file() else folder.name
  try:
    import wandb

    return wandb.init(
      project=config.log.wandb_project, id=_id_of(workdir, name, resumed), name=re.sub(_REFUSED, "_", name)[:_LONGEST],
      resume="allow", dir=None if is_remote(workdir) else os.fspath(workdir), config=config.as_given,
    )
  except Exception as error:  # wandb has many kinds
    cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise OSError(f"{_FIELD}: W&B refuses the run: {cause[:500]}") from error


def _id_of(workdir: epath.Path, name: str, resumed: bool) -> str:
  """The id in the run's folder, by which a resumed run goes on with its curves. Names are no ids: runs share them."""
  file = workdir / ID_FILE
  if file.is_file() and (kept := file.read_text().strip()):
    return kept
  was_its_name = resumed and not re.search(r"[:;,#?/']", name)  # of a run from before there was the file
  drawn = name if was_its_name else uuid.uuid4().hex[:12]
  write_whole(file, drawn + "\n")
  return drawn
