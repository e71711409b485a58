"""Ctrl-C and SIGTERM at any moment: one line, the right status, and nothing lost."""

import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

from conftest import REPOSITORY, without_times
import pytest

from gdsd_jax import signals
from gdsd_jax.runs.files import read_rows

# A process that has taken the signals. `stuck` holds the main thread outside of the interpreter, as XLA does.
PROLOGUE = """
import ctypes, gc, os, sys, threading, time
from gdsd_jax import signals
signals.begin("asked to stop: nothing to save", STATUS)
stuck = lambda: ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""


def start(body, status=75):
  program = PROLOGUE.replace("STATUS", str(status)) + body
  process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "gdsd_jax: loading\n"  # its first words
  return process


def end(process, *numbers, ready=True):
  """(status, standard output, standard error) after these signals, each sent when a line says that it may be."""
  for number in numbers:
    if ready:
      process.stdout.readline()
    process.send_signal(number)
  out, errors = process.communicate(timeout=60)
  return process.returncode, out, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", [
  "print(flush=True); stuck()",
  "gc.callbacks.append(lambda *_: (print(flush=True), stuck())); gc.collect()",
  "import atexit; atexit.register(lambda: (print(flush=True), stuck()))",
  "threading.Thread(target=stuck).start(); print(flush=True)",
], ids=["compiling", "collecting garbage", "at exit", "waiting for threads"])
def test_a_command_with_nothing_to_save_leaves_at_once_wherever_it_is(where, number):
  assert end(start(where), number) == (75, "", "asked to stop: nothing to save\n")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_cannot_go_on_leaves_as_a_shell_expects(number, status):
  assert end(start("print(flush=True); stuck()", None), number)[0] == status


BREAKING = """
for _ in range(2):
  broke = threading.Event()
  with signals.broken_by(broke.set):
    print(flush=True)
    broke.wait()
with signals.broken_by(lambda: print(flush=True)):
  print(flush=True)
  stuck()
"""


@pytest.mark.parametrize("numbers", [[signal.SIGINT] * 4, [signal.SIGTERM]], ids=["Ctrl-C", "SIGTERM"])
def test_ctrl_c_breaks_off_what_is_done_and_ends_the_process_when_it_comes_again(numbers):
  assert end(start(BREAKING), *numbers) == (75, "", "asked to stop: nothing to save\n")


SAVING = """
signals._PATIENCE = SOON
with signals.waiting(lambda: print("asked", flush=True) or "asked to stop: it is being saved"):
  print(flush=True)
  time.sleep(SECONDS)
print("saved", flush=True)
"""


def test_the_first_waits_for_what_is_to_be_saved_and_sigterm_is_always_the_first():
  process = start(SAVING.replace("SECONDS", "0.5").replace("SOON", "60"))
  assert end(process, signal.SIGTERM, signal.SIGTERM) == (0, "saved\n", "")


def test_a_second_ctrl_c_leaves_at_once():
  process = start(SAVING.replace("SECONDS", "60").replace("SOON", "60"))
  status, _, errors = end(process, signal.SIGTERM, signal.SIGINT)
  assert status == 75 and errors.startswith("stopped at once; ") and len(errors.splitlines()) == 1


def test_what_is_waited_for_is_said_when_it_takes_long():
  process = start(SAVING.replace("SECONDS", "60").replace("SOON", "0.1"))
  assert process.stdout.readline() == "\n"
  process.send_signal(signal.SIGINT)
  assert [process.stdout.readline() for _ in range(2)] == ["asked\n", "asked to stop: it is being saved\n"]
  process.kill()
  process.communicate()


def test_a_command_that_is_done_keeps_its_status():
  process = start("signals.finish(0); print(flush=True); time.sleep(0.5)")
  assert end(process, signal.SIGINT) == (0, "", "")


def test_what_is_to_be_done_before_leaving_is_done_or_given_up(tmp_path):
  body = f"""
import pathlib
with signals.at_leaving(pathlib.Path({str(tmp_path)!r}, "done").touch), signals.at_leaving(stuck):
  print(flush=True)
  time.sleep(60)
"""
  assert end(start(body), signal.SIGINT)[0] == 75
  assert (tmp_path / "done").exists()


def test_a_fork_dies_of_a_signal_without_a_word_and_does_not_tell_its_parent():
  process = start("""
child = os.fork()
if child == 0:
  print(os.getpid(), flush=True)
  stuck()
print(os.waitpid(child, 0)[1], flush=True)
""")
  os.kill(int(process.stdout.readline()), signal.SIGINT)
  assert end(process) == (0, f"{int(signal.SIGINT)}\n", "")


@pytest.fixture
def pythons_own_handler():
  """A shell starts its background commands with SIGINT ignored, these tests too."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def test_in_a_users_program_the_first_is_noted_and_the_second_is_what_it_was(pythons_own_handler):
  before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  with signals.Noted(lambda: None) as noted:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert noted.came
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
  assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("name", ["train", "evaluate", "export", "pretrain", "compile", "benchmark", "compare"])
def test_every_command_takes_the_signals_before_imports_that_take_seconds(name):
  lines = (REPOSITORY / "launch" / f"{name}.py").read_text().split('"""', 2)[2].split("\n")
  code = [line for line in lines if line and not line.lstrip().startswith("#")]
  assert code[:2] == ["from gdsd_jax import signals", 'if __name__ == "__main__":']
  assert code[2].startswith("  signals.begin")


# Whole commands

SMALL = {
  "steps": 12, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 4,
  "sampler.steps": 4, "objective.num_iterations": 1, "objective.num_mc": 1, "optimizer.learning_rate": 1e-3,
  "eval.every": 4, "eval.num_examples": 8, "eval.batch_size": 8, "checkpoint.every": 5, "log.plot_seconds": 1000.0,
  "log.tensorboard": False,
}


def train(workdir, **environment):
  overrides = [f"--config.{name}={value}" for name, value in SMALL.items()]
  return subprocess.Popen(
    [sys.executable, "launch/train.py", "--config=configs/gdsd_math.py", f"--workdir={workdir}", *overrides],
    cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
  )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """(rows, seconds) of a run that nobody disturbs, with what it compiled at hand."""
  workdir = tmp_path_factory.mktemp("undisturbed")
  for first in (True, False):
    started = time.monotonic()
    assert train(workdir).wait(600) == 0
    seconds = time.monotonic() - started
    rows = without_times(read_rows(workdir / "metrics.jsonl"))
    if first:
      (workdir / "metrics.jsonl").unlink()
      subprocess.run(["rm", "-r", workdir / "checkpoints"], check=True)
  return rows, seconds


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_is_one_line_and_loses_nothing(tmp_path, undisturbed, number):
  """Twenty random moments of starts of one run, half of them with nothing compiled yet: imports and compiling, too."""
  rows, seconds = undisturbed
  chance, ends = random.Random(int(number)), set()
  for moment in range(20):
    cold = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if moment % 2 else {}
    process = train(tmp_path, **cold)
    time.sleep(chance.uniform(0.1, seconds))
    before = read_rows(tmp_path / "metrics.jsonl")
    process.send_signal(number)
    out, errors = process.communicate(timeout=600)
    ends.add(errors.partition(";")[0].rstrip("0123456789 of"))
    assert process.returncode in (0, 75), errors
    assert len(errors.splitlines()) == (1 if process.returncode else 0), errors
    assert not errors or errors.startswith("asked to stop: "), errors
    after = without_times(read_rows(tmp_path / "metrics.jsonl"))
    assert after == rows[:len(after)]
    saved = {int(path.name) for path in (tmp_path / "checkpoints").glob("*") if path.name.isdigit()}
    if before and before[-1]["step"] > 0 and errors:  # something was done, by this start or an earlier one: it is saved
      assert f"saved step {max(saved)} of 12" in errors or "nothing new to save" in errors
      assert max(saved) >= before[-1]["step"]
  assert train(tmp_path).wait(600) == 0
  assert without_times(read_rows(tmp_path / "metrics.jsonl")) == rows


@pytest.mark.slow
@pytest.mark.parametrize("command", [
  ["evaluate", "--config=configs/gdsd_math.py", "--out=OUT"],
  ["compile", "--config=configs/gdsd_math.py", "--topology=v5e:2x2"],
  ["benchmark", "--model=tiny"],
  ["pretrain", "--config=configs/pretrain_tiny.py", "--out=OUT"],
  ["train", "--config=configs/gdsd_math.py", "--config.seed=0,1", "--workdir=OUT"],
  ["compare", "--config=configs/compare.py:smoke", "--workdir=OUT"],
], ids=lambda command: command[0] if command[0] != "train" else "sweep")
@pytest.mark.parametrize("seconds", [0.3, 3.0, 12.0])
def test_ctrl_c_of_a_terminal_ends_every_command_and_its_children_in_one_line(tmp_path, command, seconds):
  """A terminal sends it to all of them."""
  name, *arguments = [argument.replace("OUT", str(tmp_path / "out")) for argument in command]
  # The tests' own flags are unknown to libtpu, and so is what they have compiled.
  environment = os.environ | {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
  process = subprocess.Popen([sys.executable, f"launch/{name}.py", *arguments], cwd=REPOSITORY, text=True,
                             env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
  time.sleep(seconds)
  os.killpg(process.pid, signal.SIGINT)
  _, errors = process.communicate(timeout=300)
  if process.returncode == 0 and seconds > 10:  # it was done by then
    return
  assert process.returncode == (130 if name in ("compile", "benchmark") else 75), errors
  assert errors.startswith("asked to stop") and len(errors.splitlines()) == 1
  for file in Path(tmp_path).rglob("output.log"):
    assert "Traceback" not in file.read_text()
