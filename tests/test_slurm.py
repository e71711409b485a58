"""launch/slurm.sbatch under a real Slurm: slurmctld and slurmd, started for these tests on the loopback."""

from datetime import datetime, timedelta
import json
import os
from pathlib import Path
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = Path(__file__).parent.parent
DAEMONS = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for name in ("slurmctld", "slurmd")}

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not all(DAEMONS.values()) or shutil.which("sbatch") is None, reason="needs Slurm: apt-get install slurm-wlm"
  ),
]

# Counts to a number of steps and writes down each, as training does. A task notices after a while that the other one
# does not count any more and leaves with 75, as it does after SIGTERM.
COUNTER = """
import json, os, signal, sys, time
from pathlib import Path

folder, steps, *arguments = sys.argv[1:]
steps = int(steps)
rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
own, other = Path(folder, f"count{rank}"), Path(folder, f"count{1 - rank}")
terminated = []
signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))

def write(count):
  own.with_suffix(".new").write_text(str(count))
  own.with_suffix(".new").rename(own)

count = int(own.read_text()) if own.exists() else 0
write(count)
print("START", json.dumps(dict(rank=rank, size=size, pid=os.getpid(), count=count, arguments=arguments)), flush=True)
time.sleep(1)  # until both have started
while count < steps:
  time.sleep(0.2)
  count += 1
  write(count)
  dead = int(other.read_text()) < steps and time.time() - other.stat().st_mtime > 3
  if terminated or dead:
    sys.exit(75)
"""


class Cluster:
  """One node, `localhost`, with the daemons' files in `folder`."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    self.environment |= {"SLURM_CONF": str(folder / "slurm.conf")}
    user = pwd.getpwuid(os.getuid()).pw_name
    with socket.socket() as a, socket.socket() as b:
      for free in (a, b):
        free.bind(("localhost", 0))
      ports = [free.getsockname()[1] for free in (a, b)]
    (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=localhost CPUs=2 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
""")
    (folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName=localhost Name=gpu File={folder}/gpu[0-3]\n")
    for index in range(4):  # GPUs in name only
      (folder / f"gpu{index}").touch()
    for name in ("state", "spool"):
      (folder / name).mkdir()
    self.daemons = []

  def start(self):
    for name, options in (("slurmctld", []), ("slurmd", ["-N", "localhost"])):
      with open(self.folder / f"{name}.log", "wb") as log:
        command = [DAEMONS[name], "-D", *options]
        self.daemons.append(
          subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )
    for _ in wait("the node to be idle", 30, self.logs):
      if any(daemon.poll() is not None for daemon in self.daemons):
        pytest.skip(f"Slurm does not start without munge here: {self.logs()[-500:]}")
      nodes = subprocess.run(["sinfo", "-h", "-o", "%T"], env=self.environment, capture_output=True, text=True)
      if nodes.stdout.strip() == "idle":
        return

  def stop(self):
    self.run("scancel", "--user", pwd.getpwuid(os.getuid()).pw_name)
    for _ in wait("the jobs to end", 60):
      if not self.run("squeue", "-h", "-t", "RUNNING,COMPLETING"):
        break
    for daemon in reversed(self.daemons):
      daemon.terminate()
    for daemon in self.daemons:
      daemon.wait(30)

  def logs(self) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("slurm*.log")))

  def run(self, *command: str) -> str:
    return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True, cwd=ROOT).stdout


class Job:
  """Two tasks of one job by launch/slurm.sh."""

  def __init__(self, cluster: Cluster, folder: Path, *command: str, options=()):
    self.cluster, self.log_path = cluster, folder / "job.log"
    options = ["--shared-disk", "--ntasks-per-node=2", "--time=60", f"--output={self.log_path}", *options]
    self.id = re.search(r"\d+", cluster.run("launch/slurm.sh", *options, "--", *command))[0]

  def log(self) -> str:
    return self.log_path.read_text() if self.log_path.exists() else ""

  def starts(self) -> list[dict]:
    return [json.loads(line[6:]) for line in self.log().splitlines() if line.startswith("START ")]

  def field(self, name: str) -> str:
    return re.search(rf"(?:^|\s){name}=(\S*)", self.cluster.run("scontrol", "show", "job", self.id))[1]

  def wait_for(self, *states: str, seconds: float = 60):
    for _ in wait(f"job {self.id} to be {states}", seconds, self.log):
      if self.field("JobState") in states:
        return
      # Slurm waits two minutes before it starts a job again, since a start within the second of the end fails. Four
      # seconds do.
      begin = self.field("EligibleTime")
      if self.field("Reason") == "BeginTime" and begin > (datetime.now() + timedelta(seconds=10)).isoformat():
        self.cluster.run("scontrol", "update", f"JobId={self.id}", "StartTime=now+4")

  def wait_until_queued_again(self, restarts: int):
    for _ in wait("the job to be queued again", 120, self.log):
      if self.field("JobState") == "PENDING" and self.field("Restarts") == str(restarts):
        return


def wait(what: str, seconds: float, details=lambda: ""):
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    yield
    time.sleep(0.2)
  raise AssertionError(f"waited {seconds} s for {what}\n{details()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  cluster = Cluster(tmp_path_factory.mktemp("slurm"))
  try:
    cluster.start()
    yield cluster
  finally:
    cluster.stop()


@pytest.fixture
def counter(tmp_path):
  """Command line of COUNTER in tmp_path, without its number of steps."""
  script = tmp_path / "counter.py"
  script.write_text(COUNTER)
  return [sys.executable, str(script), str(tmp_path)]


def counts(folder: Path) -> list[int]:
  return [int(path.read_text()) for path in sorted(folder.glob("count?"))]


def wait_for_counts(job: Job, folder: Path, at_least: int):
  for _ in wait(f"two counts of at least {at_least}", 60, job.log):
    if len(counts(folder)) == 2 and min(counts(folder)) >= at_least:
      return


def test_two_tasks_get_the_command_unchanged_and_finish(cluster, tmp_path, counter):
  arguments = ["--config.a=b c", "it's", '"$HOME"; `id` $(id) \\', "*", "", "two\nlines"]
  job = Job(cluster, tmp_path, *counter, "3", *arguments)
  job.wait_for("COMPLETED")
  starts = sorted(job.starts(), key=lambda start: start["rank"])
  assert [(start["rank"], start["size"]) for start in starts] == [(0, 2), (1, 2)]
  assert all(start["arguments"] == arguments for start in starts)
  assert counts(tmp_path) == [3, 3] and job.field("Restarts") == "0"


def test_a_killed_task_has_the_job_queued_again_where_it_left_off(cluster, tmp_path, counter):
  job = Job(cluster, tmp_path, *counter, "40")
  wait_for_counts(job, tmp_path, 5)
  os.kill(next(start["pid"] for start in job.starts() if start["rank"] == 1), signal.SIGKILL)
  job.wait_until_queued_again(1)
  job.wait_for("COMPLETED")
  assert counts(tmp_path) == [40, 40] and job.field("Restarts") == "1"
  assert len(job.starts()) == 4 and all(start["count"] >= 5 for start in job.starts()[2:])
  assert f"job {job.id} is queued again" in job.log()  # both runs are in one log


def test_the_time_limit_has_the_tasks_save_and_the_job_queued_again(cluster, tmp_path, counter):
  # The file's own two minutes before the limit would take a limit of three; Slurm looks every 30 seconds.
  job = Job(cluster, tmp_path, *counter, "1000", options=["--time=1", "--signal=TERM@50"])
  job.wait_until_queued_again(1)
  assert "status 75" in job.log()
  job.wait_for("RUNNING")
  for _ in wait("both tasks to start again", 30, job.log):
    if len(job.starts()) == 4:
      break
  assert all(start["count"] > 0 for start in job.starts()[2:])
  cluster.run("scancel", job.id)


def test_scontrol_requeue_resumes(cluster, tmp_path, counter):
  job = Job(cluster, tmp_path, *counter, "40")
  wait_for_counts(job, tmp_path, 5)
  cluster.run("scontrol", "requeue", job.id)
  job.wait_until_queued_again(1)
  job.wait_for("COMPLETED")
  assert counts(tmp_path) == [40, 40]
  assert len(job.starts()) == 4 and all(start["count"] >= 5 for start in job.starts()[2:])


def test_a_cancelled_job_stays_cancelled(cluster, tmp_path, counter):
  job = Job(cluster, tmp_path, *counter, "400")
  wait_for_counts(job, tmp_path, 5)
  cluster.run("scancel", job.id)
  job.wait_for("CANCELLED")
  time.sleep(3)
  assert job.field("JobState") == "CANCELLED" and job.field("Restarts") == "0"


def test_an_error_is_not_repeated_even_if_it_kills_the_other_task(cluster, tmp_path):
  script = "import os, sys; sys.exit(1) if os.environ['SLURM_PROCID'] == '1' else os.abort()"
  job = Job(cluster, tmp_path, sys.executable, "-c", script)
  job.wait_for("FAILED")
  assert job.field("Restarts") == "0" and "task 1 left with status 1" in job.log()


@pytest.mark.parametrize("tasks, devices", [(1, ["[0, 1, 2, 3]"]), (2, ["None", "None"])])
def test_a_task_alone_on_its_node_drives_all_gpus(cluster, tmp_path, tasks, devices):
  script = "from gdsd_jax.parallel.processes import own_gpus; print('DEVICES', own_gpus())"
  options = [f"--ntasks-per-node={tasks}", "--gpus-per-node=4"]
  job = Job(cluster, tmp_path, sys.executable, "-c", script, options=options)
  job.wait_for("COMPLETED")
  assert re.findall(r"^DEVICES ?(.*)$", job.log(), re.MULTILINE) == devices  # None: JAX gives each one GPU


def test_restarts_are_limited(cluster, tmp_path, monkeypatch):
  monkeypatch.setitem(cluster.environment, "GDSD_MAX_RESTARTS", "1")
  job = Job(cluster, tmp_path, sys.executable, "-c", "import sys; sys.exit(75)")
  job.wait_until_queued_again(1)
  job.wait_for("FAILED")
  assert "not started again after 1 restarts" in job.log()


TRAINING = [
  "--config=configs/gdsd_math.py",
  "--config.steps=12",
  "--config.prompts_per_step=2",
  "--config.group_size=4",
  "--config.objective.num_iterations=1",
  "--config.eval.every=6",
  "--config.eval.num_examples=8",
  "--config.eval.batch_size=8",
  "--config.checkpoint.every=1",
]


def train(cluster: Cluster, folder: Path) -> Job:
  folder.mkdir()
  return Job(cluster, folder, sys.executable, "launch/train.py", *TRAINING, f"--workdir={folder / 'run'}")


def metrics(folder: Path) -> list[dict]:
  """Rows of metrics.jsonl without times."""
  path = folder / "run" / "metrics.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def process_of_task(rank: int, folder: Path) -> int:
  """Process id of the training command of a task."""
  found = []
  for process in Path("/proc").glob("[0-9]*"):
    try:
      command = process.joinpath("cmdline").read_bytes().split(b"\0")
      environment = process.joinpath("environ").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
      continue
    if (
      command[:2] == [sys.executable.encode(), b"launch/train.py"]
      and f"--workdir={folder / 'run'}".encode() in command
      and f"SLURM_PROCID={rank}".encode() in environment
    ):
      found.append(int(process.name))
  return min(found)  # its own children, if any, came later


def test_training_by_two_tasks_survives_the_death_of_one(cluster, tmp_path):
  undisturbed = train(cluster, tmp_path / "undisturbed")
  undisturbed.wait_for("COMPLETED", seconds=300)
  assert "data 2" in undisturbed.log()  # one run of two processes, not two runs

  killed = train(cluster, tmp_path / "killed")
  for _ in wait("the third step", 300, killed.log):
    if len(metrics(tmp_path / "killed")) > 3:
      break
  os.kill(process_of_task(1, tmp_path / "killed"), signal.SIGKILL)
  killed.wait_until_queued_again(1)
  killed.wait_for("COMPLETED", seconds=300)
  assert killed.field("Restarts") == "1" and "RESUMING" in killed.log()
  assert metrics(tmp_path / "killed") == metrics(tmp_path / "undisturbed")
