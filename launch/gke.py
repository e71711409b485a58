"""Starts a command on a TPU slice of GKE, or on several, as a JobSet made from launch/gke.yaml (docs/gke.md):

python launch/gke.py NAME --image=IMAGE --type=v5e --topology=4x4 -- \
  python launch/train.py --config=CONFIG --workdir=gs://BUCKET/DIR

It needs PyYAML and kubectl but neither JAX nor this package installed, so that it starts at once on any machine.
"""

import argparse
from collections.abc import Sequence
import math
from pathlib import Path
import re
import subprocess
import sys

import yaml

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of a clone that is not installed

from gdsd_jax.planning.slices import check_shape

_TEMPLATE = Path(__file__).with_suffix(".yaml")

# Type -> the node label cloud.google.com/gke-tpu-accelerator.
ACCELERATORS = {
  "v4": "tpu-v4-podslice",
  "v5e": "tpu-v5-lite-podslice",
  "v5p": "tpu-v5p-slice",
  "v6e": "tpu-v6e-slice",
  "tpu7x": "tpu7x",
}
_SPOT = "cloud.google.com/gke-spot"
# Secrets that have no place in a manifest, nor in what `ps` shows on the nodes; as launch/secrets.sh finds them.
_ASSIGNED = re.compile(
  r"""(?<![a-z0-9_.-])[a-z_]\w*?(?:(?:token|key|secret|password)(?==["']?[^$"'\s])|credentials?(?==["']?[^$"'\s/]))""",
  re.IGNORECASE)
_FLAG = re.compile(r"(--?(?:[a-z][a-z0-9_-]*[_-])?(?:token|api[_-]?key|secret|password))($|=[^$])", re.IGNORECASE)
_TOKEN = re.compile(r"(?<![a-z0-9])hf_(?=[a-z0-9]{30})", re.IGNORECASE)
_LONGEST_NAME = 40  # pods add to it, and their names are host names of at most 63 characters


class _Quoted(str):
  """Text that is written in quotes: kubectl takes 1e-5 for a number, PyYAML does not."""


yaml.SafeDumper.add_representer(
  _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)


def manifest(options: argparse.Namespace) -> dict:
  """The JobSet of launch/gke.yaml with the options filled in.

  Raises:
    ValueError: an option that cannot be; the message names it.
  """
  if not re.fullmatch(rf"[a-z][a-z0-9-]{{0,{_LONGEST_NAME - 2}}}[a-z0-9]", options.name):
    raise ValueError(f"NAME: lowercase letters, digits and -, at most {_LONGEST_NAME} characters, not {options.name!r}")
  check_shape(options.type, options.topology)
  chips = math.prod(map(int, re.findall(r"\d+", options.topology)))
  machines = [min(chips, 4)] + [8] * (chips == 8 and options.type in ("v5e", "v6e"))  # of 8 chips there is one alone
  chips_per_host = machines[0] if options.chips_per_host is None else options.chips_per_host
  if chips_per_host not in machines:
    raise ValueError(f"--chips-per-host={chips_per_host}: machines of {options.type} {options.topology} have"
                     f" {' or '.join(map(str, machines))} chips")
  hosts = chips // chips_per_host
  if options.slices < 1:
    raise ValueError(f"--slices={options.slices}: must be at least 1")
  if options.slices > 1 and hosts == 1:  # which GKE does not join
    raise ValueError(f"--slices={options.slices}: {options.type} {options.topology} is one host; slices that are joined"
                     " have several")
  if options.max_restarts < 0:
    raise ValueError(f"--max-restarts={options.max_restarts}: must not be negative")
  if not options.command:
    raise ValueError("no command: write it after --, e.g. -- python launch/train.py --config=configs/gdsd_math.py")
  _check_command(options)

  jobset = yaml.safe_load(_TEMPLATE.read_text())
  jobset["metadata"]["name"] = options.name
  if options.namespace:
    jobset["metadata"]["namespace"] = options.namespace
  jobset["spec"]["failurePolicy"]["maxRestarts"] = options.max_restarts
  slices = jobset["spec"]["replicatedJobs"][0]
  slices["replicas"] = options.slices
  job = slices["template"]["spec"]
  job["parallelism"] = job["completions"] = hosts
  pod = job["template"]["spec"]
  pod["nodeSelector"] = {
    "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[options.type],
    "cloud.google.com/gke-tpu-topology": options.topology,
  }
  if options.spot:
    pod["nodeSelector"][_SPOT] = "true"
    pod["tolerations"] = [{"key": _SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
  if options.service_account:
    pod["serviceAccountName"] = options.service_account
  container = pod["containers"][0]
  container["image"] = options.image
  # Kubernetes expands $(NAME) in a command, and turns $$ into $.
  container["command"] = [_Quoted(argument.replace("$", "$$")) for argument in options.command]
  if options.secret:
    container["envFrom"] = [{"secretRef": {"name": name}} for name in options.secret]
  container["resources"] = {kind: {"google.com/tpu": chips_per_host} for kind in ("requests", "limits")}
  return jobset


def _check_command(options: argparse.Namespace) -> None:
  """Refuses a run's folder that is gone with its pod, and secrets that everybody could read."""
  words = options.command
  if secret := _secret_in(words):
    raise ValueError(f"{secret}=…: a secret in the command can be read in the manifest and in process lists; put it"
                     " into a Kubernetes secret, and name it by --secret=NAME (docs/gke.md)")
  followed = [f"{word}={after}" for word, after in zip(words, words[1:]) if re.fullmatch("--?workdir", word)]
  given = [word.partition("=")[2] for word in [*words, *followed] if re.match("--?workdir=", word)]
  trains = ("launch/train.py", "gdsd-train", "launch/pretrain.py", "gdsd-pretrain")
  needs_one = not given and any(word.endswith(trains) for word in words)
  if (needs_one or not all(folder.startswith("gs://") for folder in given)) and not options.shared_disk:
    raise ValueError("--workdir=gs://BUCKET/DIR: the command needs it; a pod's own files are gone when it starts again,"
                     " and the others do not see them (--shared-disk, if the manifest mounts a disk that all share)")


def _secret_in(words: Sequence[str]) -> str | None:
  """The name of a secret whose value is among the words of a command."""
  for word, after in zip(words, [*words[1:], ""]):
    found = _TOKEN.search(word) or (None if word.startswith("--config") else _ASSIGNED.search(word))
    if found:
      return found[0]
    if (flag := _FLAG.match(word)) and (flag[2] or after[:1] not in ("", "-", "$")):
      return flag[1]
  return None


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise ValueError(message)


def _parse(argv: list[str]) -> argparse.Namespace:
  split = argv.index("--") if "--" in argv else len(argv)
  parser = _Parser(
    prog="launch/gke.py",
    usage="%(prog)s NAME --image=IMAGE --type=TYPE --topology=TOPOLOGY [OPTION...] -- COMMAND [ARGUMENT...]",
    description="Starts COMMAND in every pod of TPU slices, and again where it left off after preemption.",
    allow_abbrev=False,
  )
  parser.add_argument("name", metavar="NAME", help="of the JobSet")
  parser.add_argument("--image", required=True, help="container image, the code in /gdsd_jax, installed")
  parser.add_argument("--type", required=True, choices=ACCELERATORS, help="of the TPU: %(choices)s")
  parser.add_argument("--topology", required=True, help="of the slice, e.g. 4x4 or 2x2x4")
  parser.add_argument("--slices", type=int, default=1, help="of this topology, joined into one run (default: 1)")
  parser.add_argument("--chips-per-host", type=int, help="of the node pool's machines (default: 4, or all if fewer)")
  parser.add_argument("--spot", action="store_true", help="on Spot nodes")
  parser.add_argument("--namespace", help="of the JobSet (default: kubectl's)")
  parser.add_argument("--service-account", help="Kubernetes service account that may write to the bucket")
  parser.add_argument("--secret", action="append", metavar="NAME",
                      help="Kubernetes secret, whose keys become environment variables; may be repeated")
  parser.add_argument("--shared-disk", action="store_true", help="--workdir is on a volume that all pods mount")
  parser.add_argument("--max-restarts", type=int, default=100, help="(default: %(default)s)")
  parser.add_argument("--dry-run", action="store_true", help="prints the manifest instead")
  options = parser.parse_args(argv[:split])
  options.command = argv[split + 1 :]
  return options


def main(argv: list[str]) -> None:
  options = _parse(argv)
  text = yaml.safe_dump(manifest(options), sort_keys=False, width=10**6)
  if options.dry_run:
    print(text, end="")
    return
  try:
    # create, not apply: a JobSet of this name that has ended would stay as it is.
    result = subprocess.run(["kubectl", "create", "-f", "-"], input=text, text=True)
  except FileNotFoundError as error:
    raise ValueError("kubectl is not on PATH: https://kubernetes.io/docs/tasks/tools") from error
  if result.returncode:
    raise ValueError(f"kubectl refused the JobSet; one that exists goes by: kubectl delete jobset {options.name}")


if __name__ == "__main__":
  try:
    main(sys.argv[1:])
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
