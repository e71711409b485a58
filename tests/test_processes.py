"""Runs of several processes: the result of one, and what happens when one of them is asked to stop, or dies."""

import json
import os
from pathlib import Path
import random
import signal
import socket
import subprocess
import sys
import time

from commands import Command
from conftest import slow, without_times
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import gdsd_jax
from gdsd_jax.command import START_AGAIN
from gdsd_jax.parallel import processes
from gdsd_jax.parallel.processes import is_lost_process, join_processes, share_work
from gdsd_jax.runs.files import read_rows

REPOSITORY = Path(__file__).parent.parent
SMALL = {
  "steps": 4, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 4,
  "sampler.steps": 4, "objective.num_iterations": 1, "objective.num_mc": 1, "eval.every": 100, "eval.num_examples": 8,
  "eval.batch_size": 8, "checkpoint.every": 2, "log.plot_seconds": 1000.0, "log.tensorboard": False,
  "log.keep_every": 2,
}


# Of the flags that make tests compile faster (conftest.py) one is for single processes: with it XLA may run an update's
# collectives in one order here and in another there, which Gloo takes for a mismatch and aborts.
ALONE = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def environments(count, devices):
  """What the environment of each process has of its own."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  compilation = os.environ["XLA_FLAGS"].replace(ALONE, "")
  flags = {"XLA_FLAGS": f"{compilation} --xla_force_host_platform_device_count={devices}"}
  names = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
  return [{**flags, **names, "JAX_PROCESS_ID": str(i)} for i in range(count)] if count > 1 else [flags]


class Processes:
  """`count` processes of one command, with `devices` virtual devices each, that find each other by hand."""

  def __init__(self, count, devices, *command):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    self.all = [
      subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env={**environment, **own}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
      )
      for own in environments(count, devices)
    ]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.all:
      process.kill()
      process.communicate()

  def finish(self, timeout=1500):
    """Exit statuses, and the last line that each printed. The limit is for what hangs, on however busy a machine."""
    printed = [process.communicate(timeout=timeout)[0] for process in self.all]
    self.output = printed
    return [process.returncode for process in self.all], [text.strip().rpartition("\n")[2] for text in printed]

  def succeed(self):
    """The last line that each printed; all must leave with 0."""
    statuses, lines = self.finish()
    assert not any(statuses), self.output
    return lines

  def compute_process(self, index):
    """The child that computes, whose parent only waits."""
    pid = self.all[index].pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def train(workdir, count=2, devices=4, **changes):
  overrides = [f"--config.{name}={value}" for name, value in {**SMALL, **changes}.items()]
  return Processes(
    count, devices, "launch/train.py", "--config=configs/gdsd_math.py", f"--workdir={workdir}", *overrides
  )


def wait_for_step(workdir, step, processes):
  deadline = time.monotonic() + 1500
  while not any(row["step"] >= step for row in read_rows(workdir / "metrics.jsonl")):
    assert all(process.poll() is None for process in processes.all)
    assert time.monotonic() < deadline
    time.sleep(0.05)


def saved_state(workdir, step):
  with ocp.PyTreeCheckpointer() as checkpointer:
    folder = (workdir / "checkpoints" / str(step) / "state").absolute()
    as_numpy = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)  # the devices of two processes are not here
    restore_args = jax.tree.map(as_numpy, checkpointer.metadata(folder).item_metadata.tree)
    return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore_args))


def assert_same_state(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A run of two processes over a mesh that they share in every axis but one."""
  workdir = tmp_path_factory.mktemp("two")
  with train(workdir, **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}) as processes:
    processes.succeed()
  return workdir, processes.output


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one")
  with train(workdir, 1, 1) as processes:
    processes.succeed()
  return workdir


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(one, two):
  rows, other = (read_rows(workdir / "metrics.jsonl") for workdir in (one, two[0]))
  assert [row["step"] for row in other] == [0, 1, 2, 3, 4]
  first, other_first = rows[1], other[1]
  for name in ("reward", "completion_length", "diversity", "reward_std", "token_agreement", "distinct_1"):
    assert other_first[name] == first[name]
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(other_first[name], first[name], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_keep_the_rollouts_that_one_keeps(one, two):
  rows, other = (read_rows(workdir / "rollouts.jsonl") for workdir in (one, two[0]))
  assert [(row["step"], row["group"]) for row in other] == [(1, 0), (1, 1), (3, 0), (3, 1)]
  for row, expected in zip(other[:2], rows):  # the first step's, sampled by the same parameters
    assert (row["prompt"], row["reference"]) == (expected["prompt"], expected["reference"])
    for completion, its in zip(row["completions"], expected["completions"], strict=True):
      for name in ("confidence", "logp"):
        np.testing.assert_allclose(completion.pop(name), its.pop(name), rtol=1e-3, atol=1e-5)
      assert completion == its


@pytest.mark.slow
def test_the_first_process_alone_tells_of_the_run(two):
  assert "step 4/4" in two[1][0]
  assert "step" not in two[1][1]


@pytest.mark.slow
def test_one_that_is_asked_to_stop_stops_all_at_the_same_saved_step(tmp_path):
  with train(tmp_path, **{"steps": 500, "checkpoint.every": 1000}) as processes:
    wait_for_step(tmp_path, 2, processes)
    processes.all[1].send_signal(signal.SIGTERM)
    statuses, lines = processes.finish()
  assert statuses == [START_AGAIN] * 2
  [folder] = [path for path in (tmp_path / "checkpoints").iterdir()]
  last = read_rows(tmp_path / "metrics.jsonl")[-1]["step"]
  assert int(folder.name) == last
  assert lines == [f"asked to stop: saved step {last} of 500; the same command goes on from there"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_other_within_a_minute_in_one_line(tmp_path, victim):
  with train(tmp_path, **{"steps": 500}) as processes:
    wait_for_step(tmp_path, 2, processes)
    processes.all[victim].kill()
    killed = time.monotonic()
    statuses, lines = processes.finish(120)
    assert time.monotonic() - killed < 60
  assert statuses[1 - victim] == START_AGAIN
  assert lines[1 - victim].startswith("another process of this run is gone; the same command goes on")


# A command of two processes, of which the second does something before both wait for each other.
WITH_BODY = """
import os, signal, time
from gdsd_jax import command

def main():
  import jax
  from gdsd_jax.parallel.processes import gather_json, is_lost_process, join_processes, share_work
  gather_json(None)
  if jax.process_index() == 1:
    {body}
  gather_json(None)

command.run(main)
"""


def finish_with_body(tmp_path, body):
  script = tmp_path / "command.py"
  script.write_text(WITH_BODY.replace("{body}", body))
  ends = [command.finish(60) for command in [Command(script, **own) for own in environments(2, 1)]]
  return [end.returncode for end in ends], [end.stderr.strip().rpartition("\n")[2] for end in ends]


@pytest.mark.parametrize("error", ["KeyError('a bug')", *map(slow, ("RuntimeError('a bug')", "KeyboardInterrupt"))])
def test_whatever_one_raises_ends_both(tmp_path, error):
  statuses, lines = finish_with_body(tmp_path, f"raise {error}")
  assert statuses == [START_AGAIN, 1]
  assert lines[1].startswith("interrupted" if error == "KeyboardInterrupt" else "error: ")


def test_sigterm_ends_a_command_that_has_nothing_to_save(tmp_path):
  statuses, _ = finish_with_body(tmp_path, "os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)")
  assert statuses == [START_AGAIN, 128 + signal.SIGTERM]


@pytest.mark.slow
def test_two_processes_sample_ahead_and_in_parts_as_one_does_and_resume_bit_for_bit(tmp_path):
  changes = {"async_rollouts": True, "sampler.microbatches": 2, "group_size": 8, "eval.every": 2}
  mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
  runs = ("one", 1, 1, {}, [4]), ("two", 2, 4, mesh, [4]), ("twice", 2, 4, mesh, [2, 4])
  for name, count, devices, more, ends in runs:
    for steps in ends:
      with train(tmp_path / name, count, devices, **{**changes, **more, "steps": steps}) as processes:
        processes.succeed()
  one, two, twice = (without_times(read_rows(tmp_path / name / "metrics.jsonl")) for name in ("one", "two", "twice"))
  for name in ("completion_length", "diversity"):  # of the first two iterations, both sampled by the same parameters
    assert [row[name] for row in two[1:3]] == [row[name] for row in one[1:3]]
  assert twice == two
  assert_same_state(saved_state(tmp_path / "twice", 4), saved_state(tmp_path / "two", 4))


@pytest.mark.slow
def test_one_that_hangs_ends_the_other_within_a_minute(tmp_path):
  with train(tmp_path, **{"steps": 500}) as processes:
    wait_for_step(tmp_path, 2, processes)
    os.kill(processes.compute_process(1), signal.SIGSTOP)
    stopped = time.monotonic()
    status = processes.all[0].wait(120)
    assert time.monotonic() - stopped < 60
    assert status == START_AGAIN


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_nothing(tmp_path):
  """Both processes, or one, killed at 20 random moments, also during saves: the end is that of an undisturbed run."""
  steps, chance = {"steps": 200, "checkpoint.every": 1}, random.Random(0)
  undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
  with train(undisturbed, **steps) as processes:
    processes.succeed()
  for kill in range(20):
    rows = read_rows(killed / "metrics.jsonl")
    done = rows[-1]["step"] if rows else 0
    with train(killed, **steps) as processes:
      if kill % 4 == 0:
        time.sleep(chance.uniform(0, 12))  # while it starts
      else:
        wait_for_step(killed, done + chance.randint(1, 12), processes)
        time.sleep(chance.uniform(0, 0.3))
      victims = chance.choice([[0], [1], [0, 1]])
      assert all(process.poll() is None for process in processes.all)
      for victim in victims:
        processes.all[victim].kill()
      processes.finish(120)
  with train(killed, **steps) as processes:
    processes.succeed()
  assert_same_state(saved_state(killed, 200), saved_state(undisturbed, 200))
  rows = [without_times(read_rows(workdir / "metrics.jsonl")) for workdir in (killed, undisturbed)]
  assert rows[0] == rows[1]
  kept = [(workdir / "rollouts.jsonl").read_bytes() for workdir in (killed, undisturbed)]
  assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices_and_then_fewer(tmp_path):
  """8 devices in two processes, then 4 and 1 in one."""
  for steps, count, devices, mesh in ((2, 2, 4, {"mesh.fsdp": 4}), (4, 1, 4, {"mesh.tensor": 2}), (6, 1, 1, {})):
    with train(tmp_path, count, devices, **{**mesh, "steps": steps}) as processes:
      processes.succeed()
  assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_an_evaluation_by_two_processes_writes_what_one_writes(tmp_path):
  def evaluate(out, count, devices):
    arguments = ["launch/evaluate.py", "--config=configs/gdsd_math.py", f"--out={out}", "--num_examples=12",
                 "--lengths=16", "--config.eval.block_length=8", "--config.eval.batch_size=8"]
    return Processes(count, devices, *arguments)

  with evaluate(tmp_path / "two", 2, 2) as processes:
    lines = processes.succeed()
  with evaluate(tmp_path / "one", 1, 1) as processes:
    processes.succeed()
  written = [(tmp_path / name / "generations.jsonl").read_bytes() for name in ("one", "two")]
  assert written[0] == written[1]
  assert json.loads(lines[0])["n"] == 12


@pytest.mark.slow
def test_fine_tuning_by_two_processes_writes_the_model_of_one(tmp_path):
  chats = [{"messages": [{"role": "user", "content": f"{i}+1="}, {"role": "assistant", "content": f"{i + 1}"}]}
           for i in range(20)]
  (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))

  def finetune(out, count, devices):
    overrides = {"data.train_source": tmp_path / "chats.jsonl", "steps": 2, "batch_size": 8, "mesh.fsdp": -1,
                 "mesh.data": 1, "data.validation_size": 5}
    return Processes(count, devices, "launch/pretrain.py", "--config=configs/sft.py", f"--out={out}",
                     *[f"--config.{name}={value}" for name, value in overrides.items()])

  loaded = []
  for name, count, devices in (("two", 2, 2), ("one", 1, 1)):
    with finetune(tmp_path / name, count, devices) as processes:
      processes.succeed()
    loaded.append(gdsd_jax.load_pretrained(tmp_path / name)[1])
  losses = [[row["eval/loss"] for row in read_rows(tmp_path / f"{name}.run" / "metrics.jsonl") if "eval/loss" in row]
            for name in ("two", "one")]
  np.testing.assert_allclose(*losses, rtol=1e-3)
  start = gdsd_jax.load_pretrained("tiny")[1]
  for two, one, before in zip(*map(jax.tree.leaves, (*loaded, start))):
    np.testing.assert_allclose(two, one, atol=0.05 * float(np.abs(one - before).max()))


@pytest.mark.parametrize("environment, message", [
  ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "JAX_NUM_PROCESSES: is not set"),
  ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID: is not set"),
  ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "not '2', '2'"),
  ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "not '0', 'two'"),
  ({"JAX_COORDINATOR_ADDRESS": "localhost", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "HOST:PORT, not 'localh"),
])
def test_half_an_environment_is_refused(monkeypatch, environment, message):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    join_processes()


def test_a_port_that_is_taken_is_told(monkeypatch):
  with socket.create_server(("", 0)) as taken:
    port = taken.getsockname()[1]
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"localhost:{port}")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(OSError, match=f"^JAX_COORDINATOR_ADDRESS: its port {port} cannot be had here: .*in use"):
      join_processes()


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
         "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
ALONE_ON_ITS_NODE = {**SLURM, "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "4"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}


@pytest.mark.parametrize("environment, given", [
  (SLURM | {"SLURM_GPUS_ON_NODE": "2"}, None),  # JAX's own choice, the second
  (SLURM | {"CUDA_VISIBLE_DEVICES": "3"}, [0]),  # the only one it sees, by --gpus-per-task=1
  (ALONE_ON_ITS_NODE | {"SLURM_GPUS_ON_NODE": "4"}, [0, 1, 2, 3]),
  (ALONE_ON_ITS_NODE | {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "2,3"}, [0, 1]),
  (ALONE_ON_ITS_NODE | {"SLURM_GPUS_ON_NODE": "4", "JAX_LOCAL_DEVICE_IDS": "2"}, None),
  (ALONE_ON_ITS_NODE | {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
  (ALONE_ON_ITS_NODE, None),
  (OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "0,1"}, [0, 1]),
])
def test_a_process_alone_on_its_node_drives_all_its_gpus(monkeypatch, environment, given):
  for name in ("CUDA_VISIBLE_DEVICES", "JAX_COORDINATOR_ADDRESS"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
  monkeypatch.setattr(jax.config, "update", lambda *_: None)
  join_processes()
  assert calls[0].get("local_device_ids") == given


def test_work_is_shared_by_one_process_too():
  assert share_work(3, lambda items: [2 * item for item in items]) == [0, 2, 4]


def test_what_work_raises_is_raised():
  with pytest.raises(ZeroDivisionError):
    share_work(3, lambda items: [1 / item for item in items])


@pytest.mark.parametrize("message, lost", [
  ("UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer", True),
  ("DEADLINE_EXCEEDED: Barrier timed out", True),
  ("model.path: '/data/gloo/llada' is neither a folder nor a hub name", False),
  ("cannot start the reward processes: [Errno 11] Resource temporarily unavailable", False),
])
def test_a_lost_process_is_told_from_bad_input(monkeypatch, message, lost):
  monkeypatch.setattr(processes, "joined", lambda: True)
  assert is_lost_process(ValueError(message)) == lost
