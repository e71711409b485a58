"""Launchers of Cloud TPU pods, Slurm and GKE: what they run, arguments unchanged through every shell, and restarts.

gcloud, srun, scontrol, sbatch and kubectl are small programs here that do what the real ones do with a command line.
"""

import json
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
HOSTILE = [
  "--config.task.train_source=my data/a  b.jsonl",
  "it's",
  '"quoted"',
  "$HOME $(id) `id` ${x} $$ $$$(HOME)",
  "a;b|c&d>e<f",
  "*?[a-z]~!#%",
  "back\\slash\\",
  "",
  "two\nlines\ttab",
  "--flag",
  "--",
  "é=ü: {x: [1, 'y']} # z",
  "1e-5",
  "yes",
]
ARGV_TO_FILE = "import json, os, sys; open(os.environ['HOME'] + '/argv', 'w').write(json.dumps(sys.argv[1:]))"

GCLOUD = """#!{python}
import json, os, shutil, subprocess, sys
from pathlib import Path

state = Path(os.environ["FAKE_CLOUD"])
words = [word for word in sys.argv[1:] if not word.startswith("--")]
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
with open(state / "calls", "a") as calls:
  calls.write(json.dumps(sys.argv[1:]) + "\\n")
assert words[:2] == ["compute", "tpus"], words
kind, verb, *rest = words[2:]
vm, request = state / "vm", state / "request"
homes = [state / "worker0", state / "worker1"]

def end_workers():
  for home in homes:
    pid = home / "gdsd_jax/.tpu_pod/pid"
    if pid.exists():
      subprocess.run(["kill", "-KILL", "--", "-" + pid.read_text().strip()], stderr=subprocess.DEVNULL)
    shutil.rmtree(home, ignore_errors=True)

def advance():  # what happens in the cloud meanwhile: one line of the file a look
  plan = state / "plan"
  steps = plan.read_text().splitlines() if plan.exists() else []
  if steps:
    plan.write_text("\\n".join(steps[1:]))
    for path, text in zip((vm, request), steps[0].split("/")):
      path.write_text(text)

if verb == "list":
  name = vm if kind == "tpu-vm" else request
  if kind == "tpu-vm":
    advance()
  print(name.read_text() if name.exists() else "")
elif (kind, verb) == ("queued-resources", "create"):
  for home in homes:
    home.mkdir()
  if not (state / "plan").exists():
    vm.write_text("READY")
    request.write_text("ACTIVE")
elif verb == "delete":
  end_workers()
  vm.unlink(missing_ok=True)
  request.unlink(missing_ok=True)
elif verb == "scp":
  source, target = rest
  for home in homes:
    shutil.copy(source, home / target.partition(":")[2])
elif verb == "ssh":
  if (state / "preempt").exists() and " worker log " in flags["command"]:
    (state / "preempt").unlink()
    end_workers()
    vm.write_text("PREEMPTED")
    request.write_text("SUSPENDED")
  if vm.read_text() != "READY":
    sys.exit("TPU is in state " + vm.read_text())
  command = " ".join(flags["command"].split(" "))  # as gcloud and ssh do
  running = [
    subprocess.Popen(["bash", "-c", command], cwd=home, env=os.environ | {{"HOME": str(home)}}, stdin=None)
    for home in (homes if flags["worker"] == "all" else homes[:1])
  ]
  sys.exit(next((status for status in [process.wait() for process in running] if status), 0))
else:
  sys.exit("unknown: " + " ".join(words))
"""
UV = """#!/usr/bin/env bash
echo "$*" >> uv_calls
if [ "$1" = venv ]; then mkdir -p .venv/bin && ln -s {python} .venv/bin/python; fi
"""
# Leaves with the next status of those that are in the file `statuses` of the worker, and writes down its start.
NEXT_STATUS = """
import os, pathlib, sys
home = pathlib.Path(os.environ["HOME"])
starts = home.parent / (home.name + "_starts")
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
print("start", count)
sys.exit(int((home.parent / (home.name + "_statuses")).read_text().split()[count]))
"""


def program(folder: Path, name: str, text: str) -> None:
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(text.replace("{python}", sys.executable).replace("{{", "{").replace("}}", "}"))
  (folder / name).chmod(0o755)


class Cloud:
  """Two workers with a home folder each, and the states of the VM and of its queued resource as files."""

  def __init__(self, folder: Path):
    self.folder = folder / "cloud"
    self.folder.mkdir()
    program(folder / "bin", "gcloud", GCLOUD)
    program(folder / "bin", "uv", UV)
    self.environment = os.environ | {
      "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
      "FAKE_CLOUD": str(self.folder),
      "TPU_POD_POLL_SECONDS": "0.1",
    }

  def start(self, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
      [LAUNCH / "tpu_pod.sh", *arguments],
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, *arguments: str) -> subprocess.CompletedProcess:
    process = self.start(*arguments)
    try:
      out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
      kill_session(process)
      raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)

  def run_statuses(self, *options: str, worker0: str, worker1: str) -> subprocess.CompletedProcess:
    (self.folder / "worker0_statuses").write_text(worker0)
    (self.folder / "worker1_statuses").write_text(worker1)
    return self.run("run", "my-pod", "--type=v5litepod-16", *options, "--", "python", "-c", NEXT_STATUS)

  def starts(self) -> list[int]:
    return [len((self.folder / f"worker{worker}_starts").read_text()) for worker in (0, 1)]

  def calls(self, *words: str) -> list[list[str]]:
    path = self.folder / "calls"
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [call for call in calls if set(words) <= set(call)]

  def close(self):
    for pid in self.folder.glob("worker?/gdsd_jax/.tpu_pod/pid"):
      subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], stderr=subprocess.DEVNULL)


def kill_session(process: subprocess.Popen) -> None:
  """Ends a script with its gcloud, as a laptop does that is switched off."""
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate(timeout=10)


@pytest.fixture
def cloud(tmp_path):
  if subprocess.run(["git", "ls-files", "--error-unmatch", "setup.py"], cwd=ROOT, capture_output=True).returncode:
    pytest.skip("needs a git checkout")
  cloud = Cloud(tmp_path)
  yield cloud
  cloud.close()


# A marker that stands for a secret, quotes and blanks among it: no output, argument, manifest or file may show it.
SECRET = "hf_MARKER'\"$x 7"


def shown(*texts) -> bool:
  """Whether any of them shows the secret, whichever way it is quoted."""
  return any("MARKER" in str(text) for text in texts)


def without(program_name: str, tmp_path: Path) -> dict:
  """Environment in which a program is not on PATH, while the shell's usual ones are."""
  folder = tmp_path / "few"
  folder.mkdir(exist_ok=True)
  for name in ("bash", "env", "dirname", "git", "tar", "mktemp", "rm", "sed", "tr", "cat"):
    if name != program_name and not (folder / name).exists():
      (folder / name).symlink_to(shutil.which(name))
  return {"PATH": str(folder), "HOME": str(tmp_path)}


def gke(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, LAUNCH / "gke.py", *arguments], capture_output=True, text=True, **kwargs)


GKE = ["my-run", "--image=eu-docker.pkg.dev/p/r/gdsd_jax", "--type=v6e", "--topology=4x4"]


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which("shellcheck")
  if shellcheck is None:
    pytest.skip("needs shellcheck")
  scripts = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]
  result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


# ------------------------------------------------------------------------------------------------- Cloud TPU pods


def test_pod_dry_run_prints_the_commands_and_needs_no_gcloud(tmp_path):
  command = ["run", "my-pod", "--type=v6e-16", "--spot", "--zone=us-east5-b", "--delete", "--dry-run", "--", "python"]
  result = subprocess.run(
    [LAUNCH / "tpu_pod.sh", *command, *HOSTILE], env=without("gcloud", tmp_path), capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  printed = shlex.split(result.stdout.replace("\ngcloud ", " ; gcloud "))
  calls = [list(call) for call in _split(printed, ";")]
  assert all(call[:3] == ["gcloud", "compute", "tpus"] and call[-1] == "--zone=us-east5-b" for call in calls)
  assert [call[4] for call in calls] == ["create", "ssh", "scp", "ssh", "ssh", "ssh", "ssh", "ssh", "ssh", "delete"]
  assert {"--accelerator-type=v6e-16", "--spot", "--runtime-version=v2-alpha-tpuv6e"} <= set(calls[0])
  started = next(flag for call in calls for flag in call if "worker start" in flag)
  assert shlex.split(started)[-len(HOSTILE) :] == HOSTILE


def _split(words: list[str], separator: str):
  call = []
  for word in words:
    if word == separator and call:
      yield call
      call = []
    else:
      call.append(word)
  yield call


def test_pod_command_reaches_every_worker_unchanged(cloud):
  result = cloud.run("run", "my-pod", "--type=v5litepod-16", "--", "python", "-c", ARGV_TO_FILE, *HOSTILE)
  assert result.returncode == 0, result.stderr
  for worker in ("worker0", "worker1"):
    assert json.loads((cloud.folder / worker / "argv").read_text()) == HOSTILE


def test_pod_run_installs_the_tracked_files(cloud):
  command = ["python", "-c", "print('from 0')"]
  result = cloud.run("run", "my-pod", "--type=v5litepod-16", "--extras=tpu,hub", "--", *command)
  assert result.returncode == 0, result.stderr
  assert "from 0\n" in result.stdout  # the log of worker 0
  code = cloud.folder / "worker1" / "gdsd_jax"
  for path in ("setup.py", "launch/train.py", "gdsd_jax/models/assets/tiny/config.json"):
    assert (code / path).read_bytes() == (ROOT / path).read_bytes()
  assert "-e .[tpu,hub]" in (code / "uv_calls").read_text()
  assert not cloud.calls("delete")


@pytest.mark.slow
def test_pod_starts_again_after_75_and_after_death_by_a_signal(cloud):
  result = cloud.run_statuses(worker0="75 134 0", worker1="75 137 0")
  assert result.returncode == 0, result.stderr
  assert cloud.starts() == [3, 3]
  assert len(cloud.calls("scp")) == 1  # edits made here meanwhile do not come with a restart
  assert [line for line in result.stdout.splitlines() if "start" in line] == ["start 0", "start 1", "start 2"]
  assert "status 75 75; starting again (1 of at most 100 times)" in result.stderr


def test_pod_ends_with_the_error_of_any_worker(cloud):
  result = cloud.run_statuses("--delete", worker0="75 75", worker1="1 0")
  assert result.returncode == 1 and cloud.starts() == [1, 1]
  assert result.stderr.endswith("tpu_pod.sh: the command failed with status 1\n")
  assert len(cloud.calls("queued-resources", "delete")) == 1


@pytest.mark.slow
def test_pod_restarts_are_limited(cloud):
  result = cloud.run_statuses("--max-restarts=1", worker0="75 75 0", worker1="75 75 0")
  assert result.returncode == 1 and cloud.starts() == [2, 2]
  assert "not started again after 1 restarts (--max-restarts)" in result.stderr


def test_a_preempted_pod_is_created_again(cloud):
  (cloud.folder / "preempt").touch()
  result = cloud.run_statuses("--spot", worker0="0 0", worker1="0 0")
  assert result.returncode == 0, result.stderr
  assert len(cloud.calls("queued-resources", "create", "--spot")) == 2
  assert len(cloud.calls("queued-resources", "delete")) == 1
  assert len(cloud.calls("scp")) == 2  # the new VMs have nothing


def test_pod_waits_in_the_queue_and_reuses_what_is_ready(cloud):
  (cloud.folder / "plan").write_text("/\n/WAITING_FOR_RESOURCES\n/PROVISIONING\nCREATING/PROVISIONING\nREADY/ACTIVE")
  result = cloud.run("create", "my-pod", "--type=v5p-16", "--create-flag=--network=mine")
  assert result.returncode == 0, result.stderr
  assert "request WAITING_FOR_RESOURCES" in result.stderr
  assert len(cloud.calls("create", "--network=mine", "--runtime-version=v2-alpha-tpuv5")) == 1
  assert cloud.run("create", "my-pod").returncode == 0
  assert len(cloud.calls("create")) == 1


def test_a_refused_request_is_told(cloud):
  (cloud.folder / "plan").write_text("/\n/FAILED")
  result = cloud.run("create", "my-pod", "--type=v5p-16")
  assert result.returncode == 1
  assert "the request failed: gcloud compute tpus queued-resources describe my-pod says why" in result.stderr


def test_pod_command_outlives_the_script_and_is_followed_again(cloud):
  code = "import pathlib, time\nprint('ready', flush=True)\nwhile not pathlib.Path('end').exists(): time.sleep(0.1)"
  arguments = ["run", "my-pod", "--type=v5litepod-16", "--", "python", "-c", code, "it's mine"]
  first = cloud.start(*arguments)
  assert first.stdout.readline() == "ready\n"
  kill_session(first)

  other = cloud.run(*arguments[:-1], "another")
  assert other.returncode == 1
  assert "another command runs on my-pod: launch/tpu_pod.sh stop my-pod" in other.stderr

  again = cloud.start(*arguments)
  assert again.stdout.readline() == "ready\n"
  for worker in ("worker0", "worker1"):
    (cloud.folder / worker / "gdsd_jax" / "end").touch()
  out, err = again.communicate(timeout=60)
  assert again.returncode == 0 and "runs already" in err and "ready" not in out


def test_stop_lets_the_command_save(cloud):
  code = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (open('saved', 'w'), sys.exit(75)))\n"
    "print('ready', flush=True)\ntime.sleep(100)"
  )
  run = cloud.start("run", "my-pod", "--type=v5litepod-16", "--", "python", "-c", code)
  assert run.stdout.readline() == "ready\n"
  kill_session(run)
  while "ready" not in (cloud.folder / "worker1" / "gdsd_jax" / ".tpu_pod" / "log").read_text():
    time.sleep(0.02)  # it may be later than worker 0
  result = cloud.run("stop", "my-pod")
  assert result.returncode == 0 and result.stdout.splitlines() == ["worker 75", "worker 75"]
  assert all((cloud.folder / worker / "gdsd_jax" / "saved").exists() for worker in ("worker0", "worker1"))


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["run", "my-pod"], "no command"),
    (["run", "My Pod", "--", "ls"], "NAME must be lowercase"),
    (["run", "my-pod", "--tpye=x", "--", "ls"], "--tpye=x is no option of run"),
    (["run", "my-pod", "--max-restarts=x", "--", "ls"], "--max-restarts: must be a whole number"),
    (["create", "my-pod"], "--type says what to create"),
    (["stop", "my-pod", "--", "ls"], "takes no command"),
    (["run", "my-pod", "--", "python", "launch/train.py", "--workdir=/local"],
     "run: --workdir=/local: each worker has a disk of its own: gs://BUCKET/DIR"),
    (["run", "my-pod", "--", "python", "launch/evaluate.py", "--workdir", "runs/a"], "--workdir=runs/a: each worker"),
    (["run", "my-pod", "--", "gdsd-train", "--config=gdsd_math:tiny"], "run: the command needs --workdir=gs://BUCKET/DIR"),
    (["run", "my-pod", "--", "python", "launch/pretrain.py", "--config=configs/sft.py", "--out=sft"],
     "run: the command needs --workdir=gs://BUCKET/DIR"),
    (["run", "my-pod", "--secret=HF_TOKEN=abc", "--", "ls"], "--secret: the name of an environment variable, not"),
    (["run", "my-pod", "--secret=NOT_SET_AT_ALL", "--", "ls"], "--secret=NOT_SET_AT_ALL: the environment has no"),
    (["run", "my-pod", "--", "env", f"HF_TOKEN={SECRET}", "ls"],
     "run: HF_TOKEN=…: process lists show it: export a secret by its name, HF_TOKEN say, and give --secret=HF_TOKEN"),
    (["run", "my-pod", "--dry-run", "--", "env", f"wandb_api_key={SECRET}", "ls"], "run: wandb_api_key=…: process"),
    (["run", "my-pod", f"--create-flag=--metadata=HF_TOKEN={SECRET}", "--dry-run", "--", "ls"], "run: HF_TOKEN=…"),
  ],
)
def test_pod_refuses_in_one_line(cloud, arguments, message):
  result = cloud.run(*arguments)
  assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
  assert not shown(result.stdout, result.stderr)


def test_pod_workdir_may_be_on_a_disk_that_all_workers_mount(cloud):
  command = ["python", "launch/train.py", "--workdir=/mnt/shared/run"]
  result = cloud.run("run", "my-pod", "--type=v5litepod-16", "--shared-disk", "--dry-run", "--", *command)
  assert result.returncode == 0, result.stderr


def test_pod_secrets_reach_the_command_and_nothing_else(cloud):
  cloud.environment |= {"HF_TOKEN": SECRET, "WANDB_API_KEY": "MARKER2"}
  code = (
    "import os, subprocess; out = open(os.environ['HOME'] + '/seen', 'w')\n"
    "print(os.environ['HF_TOKEN'], os.environ['WANDB_API_KEY'], file=out)\n"
    "print(subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout, file=open('processes', 'w'))"
  )
  arguments = ["run", "my-pod", "--type=v5litepod-16", "--secret=HF_TOKEN", "--secret=WANDB_API_KEY"]
  result = cloud.run(*arguments, "--", "env", "-u", "FAKE_CLOUD", "python", "-c", code)
  assert result.returncode == 0, result.stderr
  for worker in ("worker0", "worker1"):
    home = cloud.folder / worker
    assert (home / "seen").read_text() == f"{SECRET} MARKER2\n"
    assert "tpu_pod.sh" in (home / "gdsd_jax" / "processes").read_text()
    kept = [home / "gdsd_jax" / "processes", *home.glob("gdsd_jax/.tpu_pod/*")]
    assert not shown(*(file.read_text() for file in kept))
  assert not shown((cloud.folder / "calls").read_text(), result.stdout, result.stderr)
  dry = cloud.run(*arguments, "--dry-run", "--", "python", "x.py")
  assert dry.returncode == 0 and "secrets" in dry.stdout and not shown(dry.stdout, dry.stderr)


# ---------------------------------------------------------------------------------------------------------- Slurm


def test_slurm_dry_run_prints_the_command(tmp_path):
  options = ["--nodes=2", "--dry-run", "--comment=a b"]
  command = [LAUNCH / "slurm.sh", *options, "--", "python", "launch/train.py", *HOSTILE]
  result = subprocess.run(command, env=without("sbatch", tmp_path), capture_output=True, text=True)
  printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {result.stdout}"], capture_output=True, text=True).stdout
  expected = ["sbatch", "--nodes=2", "--comment=a b", "launch/slurm.sbatch", "python", "launch/train.py", *HOSTILE]
  assert printed.split("\0")[:-1] == expected


def test_slurm_submits_the_command_unchanged(tmp_path):
  program(tmp_path / "bin", "sbatch", f"#!{sys.executable}\n{ARGV_TO_FILE}\n")
  environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
  subprocess.run([LAUNCH / "slurm.sh", "--nodes=2", "--", "python", *HOSTILE], env=environment, check=True)
  assert json.loads((tmp_path / "argv").read_text()) == ["--nodes=2", "launch/slurm.sbatch", "python", *HOSTILE]


def test_slurm_says_what_is_missing(tmp_path):
  for arguments, message in [(["--nodes=2"], "no command"), (["--", "ls"], "sbatch is not on PATH")]:
    result = subprocess.run(
      [LAUNCH / "slurm.sh", *arguments], env=without("sbatch", tmp_path), capture_output=True, text=True
    )
    assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments, message", [
  (["--", "python", "launch/train.py", "--workdir=/tmp/run"], "--workdir=/tmp/run: only one node sees it"),
  (["--", "python", "launch/train.py", "--workdir", "/dev/shm/run"], "--workdir=/dev/shm/run: only one node sees it"),
  (["--", "env", f"HF_TOKEN={SECRET}", "python"], "HF_TOKEN=…: process lists show it: export secrets"),
  ([f"--export=ALL,WANDB_API_KEY={SECRET}", "--", "python"], "WANDB_API_KEY=…: process lists show it"),
  (["--dry-run", f"--export=WANDB_API_KEY={SECRET}", "--", "python"], "WANDB_API_KEY=…: process lists show it"),
])
def test_slurm_refuses_in_one_line(tmp_path, arguments, message):
  result = subprocess.run([LAUNCH / "slurm.sh", *arguments], capture_output=True, text=True)
  assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
  assert not shown(result.stdout, result.stderr)


def test_slurm_hands_secrets_over_by_the_environment(tmp_path):
  code = "import json, os, sys; open(os.environ['HOME'] + '/got', 'w').write(os.environ['HF_TOKEN']); print(sys.argv)"
  program(tmp_path / "bin", "sbatch", f"#!{sys.executable}\n{code}\n")
  environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
  command = [LAUNCH / "slurm.sh", "--shared-disk", "--export=ALL,HF_TOKEN", "--", "python", "--workdir=/tmp/run"]
  result = subprocess.run(command, env=environment | {"HF_TOKEN": SECRET}, capture_output=True, text=True)
  assert result.returncode == 0 and (tmp_path / "got").read_text() == SECRET
  assert not shown(result.stdout, result.stderr) and "--shared-disk" not in result.stdout


@pytest.mark.parametrize(
  "statuses, again, left",
  [
    ([0, 0], False, 0),
    ([75, 75], True, 0),
    ([75, 137], True, 0),  # one was killed
    ([134, 75], True, 0),
    ([1, 134], False, 255),  # an error, and what it did to the other
    ([2, 75], False, 255),
  ],
)
def test_slurm_job_is_queued_again_unless_it_is_done_or_has_an_error(tmp_path, statuses, again, left):
  # Like srun: every task runs the command, and the highest status is srun's.
  program(
    tmp_path / "bin",
    "srun",
    '#!/usr/bin/env bash\nwhile [[ $1 = --* ]]; do shift; done\nhighest=0\nfor SLURM_PROCID in 0 1; do\n'
    '  export SLURM_PROCID; "$@"; s=$?; [ $s -le $highest ] || highest=$s\ndone\nexit $highest\n',
  )
  program(tmp_path / "bin", "scontrol", f'#!/usr/bin/env bash\necho "$*" >> {tmp_path}/scontrol\n')
  code = "import os, sys; sys.exit([int(s) for s in sys.argv[1].split()][int(os.environ['SLURM_PROCID'])])"
  environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
  command = ["bash", LAUNCH / "slurm.sbatch", sys.executable, "-c", code, " ".join(map(str, statuses))]
  result = subprocess.run(command, env=environment, capture_output=True, text=True)
  requeued = tmp_path / "scontrol"
  assert requeued.exists() == again and result.returncode == left, result.stderr
  if again:
    assert requeued.read_text() == "requeue 7\n"


def test_slurm_script_asks_for_what_surviving_needs():
  options = re.findall(r"^#SBATCH (\S+)", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
  assert {"--requeue", "--open-mode=append", "--signal=TERM@120", "--ntasks-per-node=1"} <= set(options)


# ------------------------------------------------------------------------------------------------------------ GKE


def test_gke_manifest_is_a_jobset_of_the_slice():
  result = gke(*GKE, "--spot", "--service-account=trainer", "--namespace=rl", "--dry-run", "--", "python", "x.py")
  assert result.returncode == 0, result.stderr
  jobset = yaml.safe_load(result.stdout)
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert jobset["metadata"]["name"] == "my-run" and jobset["metadata"]["namespace"] == "rl"
  job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 4  # hosts of 16 chips
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
    "cloud.google.com/gke-tpu-topology": "4x4",
    "cloud.google.com/gke-spot": "true",
  }
  assert pod["serviceAccountName"] == "trainer" and pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
  assert container["image"] == "eu-docker.pkg.dev/p/r/gdsd_jax" and container["command"] == ["python", "x.py"]


def test_gke_joins_several_slices():
  [slices] = yaml.safe_load(gke(*GKE, "--slices=3", "--dry-run", "--", "ls").stdout)["spec"]["replicatedJobs"]
  assert slices["replicas"] == 3 and slices["template"]["spec"]["parallelism"] == 4


def test_gke_starts_again_after_75_and_preemption_but_not_after_an_error():
  spec = yaml.safe_load(gke(*GKE, "--max-restarts=7", "--dry-run", "--", "ls").stdout)["spec"]
  assert spec["failurePolicy"]["maxRestarts"] == 7
  assert spec["failurePolicy"]["rules"] == [
    {"name": "Error", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  ]
  job = spec["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
  assert pod["terminationGracePeriodSeconds"] >= 120
  preempted, error = job["podFailurePolicy"]["rules"]  # the first that fits counts
  assert preempted == {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
  assert error["action"] == "FailJob" and error["onExitCodes"]["operator"] == "NotIn"
  again = error["onExitCodes"]["values"]
  assert {75, 128 + signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGABRT} <= set(again)
  assert not {1, 2, 126, 127} & set(again)
  assert error["onExitCodes"]["containerName"] == pod["containers"][0]["name"]


def expand(text: str) -> str:
  """What Kubernetes makes of a word of a command where no variable is defined: $$ is $, $(NAME) stays."""
  return re.sub(r"\$\$|\$\([^)]*\)", lambda match: "$" if match[0] == "$$" else match[0], text)


def test_gke_command_reaches_the_container_unchanged():
  command = yaml.safe_load(gke(*GKE, "--dry-run", "--", "python", *HOSTILE).stdout)["spec"]["replicatedJobs"][0][
    "template"
  ]["spec"]["template"]["spec"]["containers"][0]["command"]
  assert [expand(word) for word in command] == ["python", *HOSTILE]
  assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in command)  # no variable is looked up


def test_kubectl_reads_the_manifest_as_it_was_meant():
  kubectl = shutil.which("kubectl")
  if kubectl is None:
    pytest.skip("needs kubectl")
  # JobSet is no type that kubectl knows by itself; its job is one.
  lines = gke(*GKE, "--spot", "--dry-run", "--", "python", *HOSTILE).stdout.splitlines()
  template = lines.index("    template:")
  job = "\n".join(["apiVersion: batch/v1", "kind: Job", *(line[6:] for line in lines[template + 1 :])])
  annotate = [kubectl, "annotate", "--local", "-f", "-", "a=b", "-o", "json"]
  result = subprocess.run(annotate, input=job, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  spec = json.loads(result.stdout)["spec"]
  command = spec["template"]["spec"]["containers"][0]["command"]
  assert [expand(word) for word in command] == ["python", *HOSTILE]
  assert len(spec["podFailurePolicy"]["rules"]) == 2


def test_gke_creates_the_jobset(tmp_path):
  program(tmp_path, "kubectl", f'#!/usr/bin/env bash\necho "$*" > {tmp_path}/arguments\ncat > {tmp_path}/manifest\n')
  result = gke(*GKE, "--", "ls", env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
  assert result.returncode == 0, result.stderr
  assert (tmp_path / "arguments").read_text() == "create -f -\n"
  assert (tmp_path / "manifest").read_text() == gke(*GKE, "--dry-run", "--", "ls").stdout


@pytest.mark.parametrize(
  "topology, options, hosts, chips",
  [("1x1", [], 1, 1), ("2x2", [], 1, 4), ("2x4", [], 2, 4), ("2x4", ["--chips-per-host=8"], 1, 8),
   ("2x2x4", ["--type=v5p"], 4, 4), ("2x2x2", ["--type=tpu7x"], 2, 4), ("4x4x8_untwisted", ["--type=v4"], 32, 4)],
)
def test_gke_hosts_of_a_topology(topology, options, hosts, chips):
  result = gke("my-run", "--image=i", "--type=v5e", f"--topology={topology}", *options, "--dry-run", "--", "ls")
  job = yaml.safe_load(result.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == hosts
  assert job["template"]["spec"]["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["My_Run", *GKE[1:], "--", "ls"], "NAME: lowercase"),
    ([*GKE[:3], "--topology=16", "--", "ls"], "--topology: v6e has no slice '16'; it has 1x1, 2x2, 2x4, 4x4"),
    ([*GKE[:3], "--topology=4x4x4", "--", "ls"], "--topology: v6e has no slice '4x4x4'; it has 1x1"),
    ([*GKE[:2], "--type=v4", "--topology=4x4", "--", "ls"], "multiples of 4, as 4x4x8, up to 4096 chips"),
    ([*GKE, "--chips-per-host=3", "--", "ls"], "--chips-per-host=3: machines of v6e 4x4 have 4 chips"),
    ([*GKE, "--chips-per-host=0", "--", "ls"], "--chips-per-host=0: machines of v6e 4x4 have 4 chips"),
    ([*GKE[:2], "--type=v5e", "--topology=2x4", "--chips-per-host=2", "--", "ls"], "v5e 2x4 have 4 or 8 chips"),
    ([*GKE[:2], "--type=v5p", "--topology=8x8x8_twisted", "--", "ls"], "--topology: v5p has no slice '8x8x8_twisted'"),
    ([*GKE, "--slices=0", "--", "ls"], "--slices=0: must be at least 1"),
    ([*GKE[:3], "--topology=2x2", "--slices=2", "--", "ls"], "--slices=2: v6e 2x2 is one host; slices that"),
    ([*GKE, "--max-restarts=-1", "--", "ls"], "--max-restarts=-1: must not be negative"),
    ([*GKE[:2], "--type=v9", *GKE[3:], "--", "ls"], "--type: invalid choice: 'v9'"),
    (GKE, "no command"),
    ([*GKE, "--", "python", "launch/train.py", "--workdir=runs/a"], "--workdir=gs://BUCKET/DIR: the command needs it"),
    ([*GKE, "--", "gdsd-train", "--config=gdsd_math:tiny"], "--workdir=gs://BUCKET/DIR: the command needs it"),
    ([*GKE, "--", "gdsd-pretrain", "--config=sft", "--out=sft"], "--workdir=gs://BUCKET/DIR: the command needs it"),
    ([*GKE, "--", "gdsd-evaluate", "--workdir", "/local"], "--workdir=gs://BUCKET/DIR: the command needs it"),
    ([*GKE, "--dry-run", "--", "env", f"HF_TOKEN={SECRET}", "ls"], "HF_TOKEN=…: a secret in the command can be read"),
    ([*GKE, "--", "env", f"wandb_api_key={SECRET}", "ls"], "put it into a Kubernetes secret, and name it by"),
  ],
)
def test_gke_refuses_in_one_line(arguments, message):
  result = gke(*arguments)
  assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
  assert not shown(result.stdout, result.stderr)


def test_gke_takes_secrets_from_kubernetes():
  options = ["--secret=keys", "--secret=more", "--shared-disk", "--dry-run"]
  jobset = yaml.safe_load(gke(*GKE, *options, "--", "gdsd-train", "--workdir=/mnt/a").stdout)
  (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
  assert container["envFrom"] == [{"secretRef": {"name": "keys"}}, {"secretRef": {"name": "more"}}]


@pytest.mark.parametrize("words, name", [
  (["bash", "-c", f"export HF_TOKEN={SECRET}; ls"], "HF_TOKEN"), (["bash", "-c", f'X="a" WANDB_API_KEY="{SECRET}" ls'],
   "WANDB_API_KEY"), (["hf", "login", "--token", SECRET], "--token"), (["x", f"--hf-token={SECRET}"], "--hf-token"),
  (["x", f"--api_key={SECRET}"], "--api_key"), (["x", "--config.task.hub=hf_" + 34 * "M"], "hf_"),
  (["env", f"AWS_CREDENTIALS={SECRET}", "ls"], "AWS_CREDENTIALS"),
  (["bash", "-c", "HF_TOKEN=$(cat /secrets/hf) HF_KEY='$K' ls"], None),
  (["env", "GOOGLE_APPLICATION_CREDENTIALS=/secrets/key.json", "ls"], None), (["x", "--token", "$HF_TOKEN"], None),
  (["x", "--config.task.columns=question=q,answer_key=a", "--config.task.key=1", "--token"], None),
  (["x", "--max_tokens=5", "--tokenizer=hf_internal", "monkey=5a", "--split_token", "-1"], "monkey"),
])
def test_a_secret_in_a_command_is_found_in_whatever_it_is_wrapped(words, name):
  """By both the shell's rule and Python's."""
  script = f'. {LAUNCH / "secrets.sh"}; secret_in "$@"'
  by_shell = subprocess.run(["bash", "-euc", script, "bash", *words], capture_output=True, text=True, check=True).stdout
  refused = gke(*GKE, "--dry-run", "--shared-disk", "--", *words)
  by_python = re.match("error: (.*?)=…: a secret", refused.stderr)
  assert (by_shell or None, by_python and by_python[1]) == (name, name)
  assert not name or not shown(by_shell, refused.stdout, refused.stderr)
