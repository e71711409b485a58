"""What is said while waiting: one live line in a terminal, plain lines elsewhere, and the time that is left."""

import contextlib
import fcntl
import logging
import math
import os
from pathlib import Path
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import types

from conftest import REPOSITORY, slow
from hypothesis import given, settings, strategies as st
import jax
import pytest
from rich.cells import cell_len
from test_metrics import screen  # noqa: F401

from gdsd_jax import screen as terminal, waiting as module
from gdsd_jax.compiling import compiling
from gdsd_jax.huggingface.folder import resolve_path
from gdsd_jax.huggingface.weights import load_pretrained, save_pretrained
from gdsd_jax.parallel import processes
from gdsd_jax.runs.progress import Progress
from gdsd_jax.training.report import evaluation_row, Learning, numbers_of
from gdsd_jax.waiting import Clock, format_seconds, Wait, waiting

ROW = {"step": 1, "reward": 0.5, "loss": 0.25, "kl": 0.1, "reward/format": 0.25, "reward/right": 0.75}


@pytest.fixture
def time_now():
  """The time that waiting.py sees, and a clock of estimates that begins anew; a test moves it on by setting `now`.

  The thread that looks now and then has to wait for as long: it would log what it saw of such times whenever the
  machine happens to let it run within a test.
  """
  now, fresh = types.SimpleNamespace(now=1000.0), Clock()
  with module._changed, pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now.now, sleep=time.sleep))
    for user in ("waiting", "runs.progress", "compiling"):
      patch.setattr(f"gdsd_jax.{user}.clock", fresh)
    yield now


# The line of a step


def shown(progress, steps, now, step_seconds, told, evaluate=None):
  """Lines of a run, of which each step takes so long, and in which `told` seconds of a step were compiling."""
  for step in steps:
    progress.begin(step)
    now.now += step_seconds + told.get(step, 0)
    module.clock.leave_out(told.get(step, 0))
    if evaluate and step % evaluate[0] == 0:
      progress.timed(lambda: setattr(now, "now", now.now + evaluate[1]) or {"accuracy": 1.0})
    progress.show(step, f"reward {step}")
    now.now += 60 * (step == 1)  # libraries are imported for the first picture


def test_the_line_of_a_step_tells_reward_speed_and_time_left(time_now, screen):  # noqa: F811
  progress = Progress(steps=100, every=1)
  time_now.now += 50
  progress.show(1, *numbers_of(ROW, None))
  assert screen.messages[-1].startswith("step   1/100  reward 0.500  kl 0.10  50 s/step  1h22m left")
  progress.begin(2)
  time_now.now += 6
  progress.show(3, *numbers_of(ROW, -0.125))
  assert screen.messages[-1] == (
    "step   3/100  reward 0.500 (-0.12)  kl 0.10  3.0 s/step  4m51s left  (format 0.25, right 0.75)")


def test_nothing_that_was_compiled_counts_for_the_time_left(time_now, screen):  # noqa: F811
  """The first step compiles; so does a later one, of new shapes."""
  shown(Progress(steps=11, every=1), range(1, 12), time_now, 2.0, {1: 300.0, 2: 40.0, 7: 40.0})
  assert [line.split("  ")[-1] for line in screen.messages] == [f"{20 - 2 * i} s left" for i in range(11)]
  assert all("  2.0 s/step  " in line for line in screen.messages)


def test_between_the_lines_a_terminal_shows_what_is_left(time_now, screen):  # noqa: F811
  progress = Progress(steps=10, every=4)
  with progress.shown(start=5):
    time_now.now += 30
    assert module._waits[-1].end() == ": 5 of 10 steps"
    shown(progress, [6, 7], time_now, 2.0, {})
    assert module._waits[-1].what + module._waits[-1].end() == "training: 7 of 10 steps, 6 s left"
  assert len(screen.messages) == 1


def test_evaluations_to_come_count_as_those_before(time_now, screen):  # noqa: F811
  """Steps of 1 s, evaluations of 5 s after every fourth and the last of 10."""
  progress = Progress(steps=10, every=1, evaluate_every=4)
  progress.timed(lambda: setattr(time_now, "now", time_now.now + 5) or {"accuracy": 1.0})
  shown(progress, range(1, 11), time_now, 1.0, {1: 30.0}, (4, 5.0))
  left = [9 + 15, 8 + 15, 7 + 15, 6 + 10, 5 + 10, 4 + 10, 3 + 10, 2 + 5, 1 + 5, 0]
  assert [line.split("  ")[-1] for line in screen.messages] == [f"{seconds} s left" for seconds in left]


def test_what_evaluates_nothing_counts_for_none(time_now, screen):  # noqa: F811
  progress = Progress(steps=10, every=1, evaluate_every=2)
  assert progress.timed(dict) == {}
  shown(progress, [1], time_now, 1.0, {})
  assert screen.messages[0].endswith("9 s left")


@pytest.mark.parametrize("first, every, lines", [(1, 4, [1, 4, 8, 10]), (1, 1, list(range(1, 11))), (6, 4, [6, 8, 10])])
def test_the_first_the_last_and_every_nth_step_have_a_line(time_now, screen, first, every, lines):  # noqa: F811
  shown(Progress(steps=10, every=every), range(first, 11), time_now, 1.0, {})
  assert [int(message.split()[1].partition("/")[0]) for message in screen.messages] == lines


def test_a_run_without_a_reference_tells_no_divergence():
  assert "kl" not in numbers_of({name: value for name, value in ROW.items() if name != "kl"}, 0.0)[0]


def test_the_gain_is_that_of_the_last_steps_above_the_reward_before_training():
  learning, gains = Learning(), []
  rewards = [0.5, *[0.1 * step for step in range(1, 31)]]
  for step, reward in enumerate(rewards):
    learning.see({"step": step, "reward": reward})
    learning.see({"step": step, "reward": math.nan})
    learning.see({"step": step, "reward": None})
    gains.append(learning.gain)
  assert gains[:5] == [None] * 5 and gains[5] == pytest.approx(0.3 - 0.5)
  assert learning.gain == pytest.approx(sum(rewards[-10:]) / 10 - 0.5)


def test_an_evaluation_tells_by_how_much_it_is_above_the_first(screen):  # noqa: F811
  learning, found = Learning(), {"accuracy": 0.664, "reward": 0.906, "reward/right": 0.66, "sampled_reward": 0.576}
  learning.see({"step": 0, "reward": 0.5, **evaluation_row(0, lambda: found, learning)})
  better = {name: value + 0.1 for name, value in found.items()}
  assert evaluation_row(25, lambda: better, learning) == {f"eval/{name}": value for name, value in better.items()}
  assert screen.messages == [
    "evaluation after step 0: accuracy 0.664  reward 0.906  sampled_reward 0.576  (right 0.660)",
    "evaluation after step 25: accuracy 0.764 (+0.10)  reward 1.01 (+0.10)  sampled_reward 0.676 (+0.10)"]


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("ab_é重💡", min_size=1, max_size=40) | st.sampled_from(["correctness", "soft_format", "strict_format"])


@settings(max_examples=40)
@given(reward=finite, gain=st.floats(-1e6, 1e6), kl=finite, named=st.dictionaries(names, finite, max_size=8),
       steps=st.integers(1, 99_999), seconds=st.floats(0, 3600.0))
def test_the_line_of_a_step_fits_a_hundred_columns(reward, gain, kl, named, steps, seconds):
  lines, now = [], types.SimpleNamespace(now=0.0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("gdsd_jax.runs.progress.clock", lambda: now.now)
    patch.setattr("gdsd_jax.runs.progress._log", types.SimpleNamespace(info=lambda text, *a: lines.append(text % a)))
    progress, now.now = Progress(steps, 1), seconds
    progress.show(1, *numbers_of({"reward": reward, "kl": kl, **{f"reward/{k}": v for k, v in named.items()}}, gain))
  [line] = lines
  assert cell_len(line) <= 100
  details = numbers_of({"reward": 0.0, **{f"reward/{k}": v for k, v in named.items()}}, 0.0)[1]
  told = line.partition(" left")[2]
  assert told == "" or any(
    told == f"  ({', '.join(details[:n] + ['…'] * (n < len(details)))})" for n in range(1, len(details) + 1))


@pytest.mark.parametrize("seconds, text", [
  (0, "0 s"), (0.4, "0 s"), (42, "42 s"), (59.4, "59 s"), (59.6, "1m00s"), (61, "1m01s"), (3599, "59m59s"),
  (3599.7, "1h00m"), (3725, "1h02m"), (360_000, "100h00m"),
])
def test_seconds_are_shown_in_the_units_of_a_reader(seconds, text):
  assert format_seconds(seconds) == text


# What is waited for


def test_how_much_is_done_and_what_is_left(time_now):
  wait = Wait("reading weights of GSAI-ML/LLaDA-8B-Instruct", 16.1e9, "bytes", 10.0)
  assert wait.end() == ": 0.0 of 16.1 GB"
  wait.advance(5.2e9)
  time_now.now += 20
  assert f"{wait.what}{wait.end()}" == "reading weights of GSAI-ML/LLaDA-8B-Instruct: 5.2 of 16.1 GB, 42 s left"
  time_now.now += 100  # something was compiled
  module.clock.leave_out(100)
  assert wait.end() == ": 5.2 of 16.1 GB, 42 s left"


@pytest.mark.parametrize("total, unit, done, text", [
  (900, "bytes", 450, ": 450.0 of 900.0 B"), (5e6, "bytes", 5e6, ": 5.0 of 5.0 MB"),
  (9, "batches", 3, ": 3 of 9 batches"), (27, "", 9, ": 33 %"), (27, "", 28, ": 100 %"),
  (None, "", 0, ": 1 s"), (0, "rows", 0, ": 1 s"),
])
def test_what_is_done_is_told_by_its_unit(time_now, total, unit, done, text):
  wait = Wait("it", total, unit, 10.0)
  wait.advance(done)
  time_now.now += 1
  assert wait.end() == text


@pytest.mark.parametrize("spans", [
  [(1, 3)], [(1, 2), (2, 3)], [(1, 2), (1, 3)], [(1, 1.5), (2, 2.5), (1, 3)], [(1, 2), (1.5, 3)],
  [*[(1 + i / 500, 1 + i / 500 + 0.001) for i in range(900)], (1, 3)],
])
def test_what_is_left_out_counts_once_however_it_overlaps(time_now, spans):
  for start, end in spans:
    time_now.now = end
    module.clock.leave_out(end - start)
  assert module.clock.left_out == pytest.approx(2.0) and module.clock() == pytest.approx(time_now.now - 2.0)


def log_of(time_now, seconds):
  """When there is a line while something is waited for."""
  said, wait = [], Wait("it", None, "", 10.0)
  for second in range(seconds):
    time_now.now = wait.began + second
    if wait.look():
      said.append(second)
  return said


def test_a_log_hears_of_it_after_ten_seconds_and_then_ever_more_seldom(time_now, screen):  # noqa: F811
  assert log_of(time_now, 400) == [10, 20, 40, 80, 160, 320]
  assert screen.messages[:2] == ["it: 10 s", "it: 20 s"]
  day = log_of(time_now, 24 * 3600)
  assert len(day) < 160 and max(after - before for before, after in zip(day, day[1:])) == 600


def test_a_short_wait_has_no_word_and_a_long_one_has_a_last(time_now, screen):  # noqa: F811
  for seconds in (9, 75):
    with waiting("it"):
      time_now.now += seconds
  assert screen.messages == ["it: done in 1m15s"]


def test_nobody_who_does_not_ask_for_the_log_hears_of_anything(caplog):
  caplog.set_level(logging.ERROR, logger="gdsd_jax")  # as in all processes but the first
  before = list(module._waits)
  with waiting("it"):
    assert module._waits == before


def test_an_error_while_waiting_is_raised_as_it_is_without_a_last_word(time_now, screen):  # noqa: F811
  with pytest.raises(ValueError, match="bad"), waiting("it"):
    time_now.now += 100
    raise ValueError("bad")
  assert screen.messages == [] and module._waits == []


# In a terminal


SAYS = """
import logging, os, sys, threading, time, types
from gdsd_jax import screen, signals, waiting
signals.begin()
from absl import logging as absl_logging
waiting._FIRST_LINE, waiting._TICK = 0.0, 0.01
waiting.time = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=time.sleep)  # however slow the machine is
screen.open_line()
log = logging.getLogger("gdsd_jax")
log.handlers[:], log.propagate = [logging.StreamHandler(sys.stdout)], False
log.setLevel(logging.INFO)
looks, look = [], waiting.Wait.look
waiting.Wait.look = lambda wait: looks.append(look(wait)) or looks[-1]
def ticks(number=4):
  before = len(looks)
  while len(looks) < before + number:
    time.sleep(0.001)
with waiting.waiting("reading weights of GSAI-ML/LLaDA-8B-Instruct", 16.1e9, "bytes", logged_after=10.0) as wait:
  wait.advance(5.2e9)
  ticks()
  for number in range(5):
    log.info("a line of the log, number %d", number)
    print("said beside it, number", number, file=sys.stderr)
    print("a library's warning, number", number, file=absl_logging.get_absl_handler().python_handler.stream)
    while number == 2 and "RESIZED" in os.environ and os.get_terminal_size().columns != int(os.environ["RESIZED"]):
      time.sleep(0.001)
    wait.advance(1e9)
    ticks(2)
  print("a question? ", end="", flush=True)
  ticks()
  print("its answer")
  with waiting.waiting("compiling a\\x1b[31m\\nthing"):
    ticks()
  ticks()
  END
print("the end")
"""


class Screen:
  """What a terminal shows of what was written to it, as far as line feeds, returns and the erasing go."""

  def __init__(self, columns):
    self.rows, self.row, self.column, self.columns = [""], 0, 0, columns

  def feed(self, text):
    for part in re.findall(r"\x1b\[J|[^\x1b]|\x1b", text):
      if part == "\x1b[J":
        self.rows[self.row:] = [self.rows[self.row][:self.column]]
      elif part == "\n":
        self.row += 1
        self.rows += [""] * (self.row + 1 - len(self.rows))
      elif part == "\r":
        self.column = 0
      else:
        assert part.isprintable(), f"{part!r} is no sign of a terminal"
        if self.column == self.columns:
          self.feed("\r\n")
        row = self.rows[self.row].ljust(self.column)
        self.rows[self.row], self.column = row[:self.column] + part + row[self.column + 1:], self.column + 1

  def lines(self):
    return [row.rstrip() for row in self.rows if row.strip()]


def in_a_terminal(columns, end="pass", interrupt=False, resized=None, **environment):
  """(what was written to a terminal of so many columns, exit status)."""
  leader, follower = pty.openpty()
  fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
  command = [sys.executable, "-c", SAYS.replace("END", end)]
  environment = {**os.environ, "TERM": "xterm", **({"RESIZED": str(resized)} if resized else {}), **environment}
  process = subprocess.Popen(command, cwd=REPOSITORY, stdin=follower, stdout=follower, stderr=follower, env=environment)
  os.close(follower)
  written = ""
  while True:
    try:
      new = os.read(leader, 65536).decode()
    except OSError:  # its other end is closed
      break
    if not new:
      break
    written += new
    if resized and "number 2" in written:
      fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, resized, 0, 0))
    if interrupt and re.search(r"asleep\s", written):  # the end of the line, too
      process.send_signal(signal.SIGINT)
      interrupt = False
  os.close(leader)
  return written, process.wait(30)


PLAIN = ["gdsd_jax: loading", *(f"{said} {i}" for i in range(5) for said in (
  "a line of the log, number", "said beside it, number", "a library's warning, number")),
         "a question? its answer"]


@pytest.mark.parametrize("columns, resized, environment", [
  (100, None, {}), (40, None, {"NO_COLOR": "1"}), (100, 40, {}), (0, None, {}), slow(7, None, {}),
])
def test_a_terminal_has_a_line_that_is_gone_in_the_end(columns, resized, environment):
  written, status = in_a_terminal(columns, resized=resized, **environment)
  final = Screen(columns or 80)
  final.feed(written)
  expected = [line[i:i + (columns or 80)].rstrip() for line in [*PLAIN, "the end"]
              for i in range(0, len(line), columns or 80)]
  assert status == 0 and final.lines() == expected
  live = [cell_len(line) for line in re.findall(r"\x1b\[J([^\r\n\x1b]+)\r(?!\n)", written)]
  assert len(live) > 5 and max(live) < (columns or 80)
  if columns == 100:
    assert "reading weights of GSAI-ML/LLaDA-8B-Instruct: 5.2 of 16.1 GB\r" in written
    assert "compiling a?[31m?thing: 0 s" in written
  if columns == 40 or resized:
    assert re.search(r"reading weights of GSA\S*…: \d+\.2 of 16\.1 GB\r", written)


@pytest.mark.parametrize("end, interrupt, told, status", [
  ('raise ValueError("bad")', False, "ValueError: bad", 1),
  slow('sys.exit("error: bad")', False, "error: bad", 1),
  ('print("asleep"); time.sleep(30)', True, "asked to stop before it was done", 130),
])
def test_no_line_remains_where_a_command_ends_early(end, interrupt, told, status):
  written, found = in_a_terminal(100, end, interrupt)
  final = Screen(100)
  final.feed(written)
  assert found == status and final.lines()[-1] == told, final.lines()
  assert not any("5.2 of" in line or "of 16.1 GB" in line for line in final.lines())


def test_a_dumb_terminal_gets_plain_lines():
  written, status = in_a_terminal(100, TERM="dumb")
  assert status == 0 and written.replace("\r\n", "\n").splitlines() == [*PLAIN, "the end"]


@pytest.mark.parametrize("shell", ['"$@" | cat', slow('"$@" > file && cat file')])
def test_a_pipe_and_a_file_get_plain_lines(tmp_path, shell):
  script = SAYS.replace("END", "pass").replace("logged_after=10.0", "logged_after=0.0")
  result = subprocess.run(
    ["bash", "-c", f"set -o pipefail; cd {tmp_path}; {shell}", "bash", sys.executable, "-c", script],
    capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
  assert result.returncode == 0, result.stderr
  assert not re.search(r"[^\n -~]", result.stdout)
  assert "reading weights of GSAI-ML/LLaDA-8B-Instruct: 5.2 of 16.1 GB\n" in result.stdout


@pytest.mark.parametrize("encoding, columns, text", [
  ("utf-8", 20, "reading…: 1 of 9 it"), ("ascii", 20, "reading.: 1 of 9 it"), ("utf-8", 9, ": 1 of 9 "),
  ("utf-8", 0, ""), ("utf-8", 80, "reading 重み: 1 of 9 it"),
])
def test_a_line_is_cut_where_its_beginning_is(monkeypatch, encoding, columns, text):
  monkeypatch.setattr(terminal, "_terminal", types.SimpleNamespace(encoding=encoding))
  assert terminal._fitted("reading 重み", ": 1 of 9 it", columns) == text


# What waits


def test_reading_weights_tells_the_bytes_of_their_files(time_now, monkeypatch, tmp_path):
  """All of them, be they in several files, and at the end all were read."""
  seen = []
  monkeypatch.setattr("gdsd_jax.huggingface.weights.waiting", keeping(seen))
  denoiser, params = load_pretrained("tiny")
  save_pretrained(tmp_path, denoiser, params, max_shard_bytes=2**20, layout="published")
  load_pretrained(tmp_path)
  (read, stored), (written, size), (again, shards) = [(wait.what, wait.total) for wait in seen]
  assert (read, written, again) == (
    "reading weights of tiny", f"writing the model to {tmp_path}", f"reading weights of {tmp_path}")
  assert stored == pytest.approx((Path(denoiser.source) / "model.safetensors").stat().st_size)
  files = list(tmp_path.glob("*.safetensors"))
  assert shards == pytest.approx(sum(file.stat().st_size for file in files)) and len(files) > 1
  assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert all(wait.done == pytest.approx(wait.total) and wait.unit == "bytes" for wait in seen)


def keeping(seen):
  """`waiting`, whose waits are kept."""

  @contextlib.contextmanager
  def kept(*arguments, **options):
    with waiting(*arguments, **options) as wait:
      seen.append(wait)
      yield wait

  return kept


def test_a_download_tells_its_bytes_by_the_bars_of_the_hubs_library(monkeypatch, tmp_path, capsys):
  seen = []
  monkeypatch.setattr("gdsd_jax.huggingface.folder.waiting", keeping(seen))

  def download(name, revision, allow_patterns, ignore_patterns, tqdm_class):
    bytes_, files = tqdm_class(total=0, initial=0, unit="B", unit_scale=True, desc="it"), tqdm_class(total=3, desc="it")
    bytes_.total += 900
    for bar, amount in ((bytes_, 500), (files, 2), (bytes_, 50)):
      bar.set_description("it")
      bar.update(amount)
    return tmp_path

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  assert resolve_path("owner/name") == tmp_path
  [wait] = seen
  assert wait.what + wait.end() == "downloading owner/name: 550.0 of 900.0 B" and capsys.readouterr() == ("", "")


def test_what_is_compiled_is_told_with_how_long_it_took(time_now, screen):  # noqa: F811
  def tell(event, seconds):
    time_now.now += seconds
    jax.monitoring.record_event_duration_secs(event, seconds)

  for saved in (None, 30.0):
    with compiling("the sampler"):
      time_now.now += 100  # what is dispatched, say
      tell("/jax/core/compile/jaxpr_trace_duration", 1.0)
      tell("/jax/core/compile/backend_compile_duration", 11.25)
      if saved:
        jax.monitoring.record_event_duration_secs("/jax/compilation_cache/compile_time_saved_sec", saved)
  with compiling("nothing new"):
    pass
  with compiling("a trifle", least=1.0):
    tell("/jax/core/compile/jaxpr_trace_duration", 0.5)
  assert [message for message in screen.messages if "done in" not in message] == [
    "compiled in 12.2 s: the sampler", "loaded in 12.2 s, compiled before: the sampler"]


def test_a_compilation_of_jax_is_measured(screen):  # noqa: F811
  number = time.monotonic()  # a program that nobody has compiled before
  with compiling("it"):
    jax.jit(lambda x: x * number)(1.0)
  *_, message = screen.messages  # behind those of a second or more, should the machine be so slow
  assert re.fullmatch(r"compiled in \S+( s)?: it", message)


@pytest.mark.parametrize("variables, speaks", [
  ({}, True), ({"JAX_PROCESS_ID": "0"}, True), ({"JAX_PROCESS_ID": "3"}, False), ({"SLURM_PROCID": "1"}, False),
])
def test_of_several_processes_the_first_says_that_it_waits_for_the_others(
    time_now, screen, monkeypatch, variables, speaks):  # noqa: F811
  for name in ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "TPU_WORKER_ID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with processes._saying_that_others_are_awaited():
    time_now.now += 30
  assert screen.messages == ["waiting for the other processes of this run: done in 30 s"] * speaks


def test_a_terminal_that_is_gone_disturbs_nobody_who_waits(monkeypatch):
  class Gone:
    encoding = "utf-8"

    def put(self, *_):
      raise OSError("Input/output error")

    fileno = put

  monkeypatch.setattr(terminal, "_terminal", Gone())
  monkeypatch.setattr(terminal, "_line", "")
  terminal.show_line("it", ": 1 s")
  terminal.clear_line()
