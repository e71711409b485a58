"""Where a run's numbers go: metrics.jsonl, TensorBoard, W&B, reward.png and the lines on the screen."""

import dataclasses
import errno
import functools
import importlib.machinery
import json
import logging
import math
import re
import sys
import types

from conftest import files_of_at_most, REPOSITORY
from matplotlib.figure import Figure
import matplotlib.pyplot as plt
import pytest

from gdsd_jax.runs import files, metrics
from gdsd_jax.runs.config import LogConfig
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.metrics import MetricsWriter, Stopwatch
from gdsd_jax.runs.saved_config import open_workdir

ROW = {"step": 1, "reward": 0.5, "loss": 0.25, "kl": 0.1, "reward/format": 0.25, "seconds/step": 2.0}


def config_of(**log):
  log = LogConfig(**{"tensorboard": False, "plot_seconds": math.inf, **log})
  return dataclasses.replace(run_config(base_config()), log=log)


@pytest.mark.parametrize("line, wrong", [
  ("[]", "no row of a run, which has its `step`"), ('{"reward": 1}', "no row of a run, which has its `step`"),
  ('{"step": "3"}', "no row of a run, which has its `step`"), ('{"step": 3', "not JSON: .*"),
])
def test_a_line_that_is_no_row_is_named_with_what_to_do(tmp_path, line, wrong):
  (tmp_path / "metrics.jsonl").write_text(f'{json.dumps(ROW)}\n{line}\n')
  with pytest.raises(ValueError, match=rf"metrics.jsonl, line 2: {wrong}; delete that line$"):
    MetricsWriter(tmp_path, 1, config_of())


def write_rows(workdir, rows, last_step=-1, **log):
  """Writes rows with a writer that draws them and is closed again."""
  writer = MetricsWriter(workdir, last_step, config_of(**log))
  for row in rows:
    writer.write(row)
    writer.draw()
  writer.plot()
  writer.close()


def lines_of(workdir):
  return (workdir / "metrics.jsonl").read_text().splitlines()


def steps_of(workdir):
  return [json.loads(line)["step"] for line in lines_of(workdir)]


def no_constant(name):
  raise AssertionError(f"{name} is no JSON")


@pytest.fixture
def clock(monkeypatch):
  """The time that metrics.py sees; a test moves it on by setting `now`, and of its processors, `cpu`."""
  clock = types.SimpleNamespace(now=1000.0, cpu=0.0)
  time = types.SimpleNamespace(monotonic=lambda: clock.now, process_time=lambda: clock.cpu)
  monkeypatch.setattr(metrics, "time", time)
  return clock


@pytest.fixture
def screen(caplog, monkeypatch):
  """The package's messages, whether or not it was told to write them to standard output."""
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  caplog.set_level(logging.INFO, logger="gdsd_jax")
  return caplog


def test_a_row_is_one_line_of_json(tmp_path):
  write_rows(tmp_path, [ROW, {**ROW, "step": 2}])
  assert [json.loads(line) for line in lines_of(tmp_path)] == [ROW, {**ROW, "step": 2}]


def test_a_row_can_be_read_as_soon_as_it_is_written(tmp_path):
  writer = MetricsWriter(tmp_path, -1, config_of())
  writer.write(ROW)
  assert steps_of(tmp_path) == [1]
  writer.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_becomes_null(tmp_path, value):
  write_rows(tmp_path, [{**ROW, "loss": value}])
  assert json.loads(lines_of(tmp_path)[0], parse_constant=no_constant)["loss"] is None


def test_opening_drops_the_rows_after_the_last_step(tmp_path):
  write_rows(tmp_path, [{**ROW, "step": step} for step in range(6)])
  write_rows(tmp_path, [{**ROW, "step": 4}], last_step=3)
  assert steps_of(tmp_path) == [0, 1, 2, 3, 4]


def test_opening_for_a_new_run_drops_every_row(tmp_path):
  write_rows(tmp_path, [{**ROW, "step": step} for step in range(3)])
  write_rows(tmp_path, [], last_step=-1)
  assert lines_of(tmp_path) == []


@pytest.mark.parametrize("rest", ['{"step": 2, "rew', '{"step": 2, "reward": 1.0}', "{", "\0\0\0"])
def test_a_last_line_without_its_end_is_dropped(tmp_path, rest):
  (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW) + "\n" + rest)
  write_rows(tmp_path, [{**ROW, "step": 2}], last_step=5)
  assert [json.loads(line) for line in lines_of(tmp_path)] == [ROW, {**ROW, "step": 2}]


def test_rows_of_a_missing_file_are_none(tmp_path):
  assert read_rows(tmp_path / "metrics.jsonl") == []


def test_kept_rows_are_drawn_again(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(metrics, "plot_reward", lambda rows, path: drawn.append([row["step"] for row in rows]))
  write_rows(tmp_path, [{**ROW, "step": 1}, {**ROW, "step": 2}])
  write_rows(tmp_path, [{**ROW, "step": 3}], last_step=2)
  assert drawn[-1] == [1, 2, 3]


def test_the_plot_is_a_png(tmp_path):
  write_rows(tmp_path, [{"step": 0, "reward": 0.2, "eval/accuracy": 0.1}, ROW, {**ROW, "step": 2}])
  assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("rows", [[{"step": 0, "reward": None}], [{"step": 1, "reward": math.nan}]])
def test_a_run_whose_rewards_all_failed_has_a_plot_too(tmp_path, rows):
  write_rows(tmp_path, rows)
  assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_supervised_training_has_no_plot_of_rewards(tmp_path):
  write_rows(tmp_path, [{"step": 1, "loss": 0.5}])
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_another_process_than_the_first_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "is_first_process", lambda: False)
  write_rows(tmp_path, [ROW], tensorboard=True)
  assert list(tmp_path.iterdir()) == []


def test_the_plot_is_replaced_whole(tmp_path):
  old = tmp_path / "reward.png"
  old.write_bytes(b"the plot of before")
  with old.open("rb") as reader:
    write_rows(tmp_path, [ROW])
    assert reader.read() == b"the plot of before"


def test_nothing_unfinished_is_left(tmp_path):
  write_rows(tmp_path, [ROW])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "reward.png"]


def test_the_plot_is_drawn_no_more_often_than_asked(tmp_path, clock, monkeypatch):
  drawn = []
  monkeypatch.setattr(metrics, "plot_reward", lambda rows, path: drawn.append(len(rows)))
  writer = MetricsWriter(tmp_path, -1, config_of(plot_seconds=20.0))
  for step in range(1, 7):
    clock.now += 8
    writer.write({**ROW, "step": step})
    writer.draw()
  assert drawn == [1, 4]
  writer.close()


def test_plot_draws_the_last_rows(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(metrics, "plot_reward", lambda rows, path: drawn.append(len(rows)))
  write_rows(tmp_path, [ROW, {**ROW, "step": 2}])
  assert drawn[-1] == 2


def test_tensorboard_has_its_event_files(tmp_path):
  write_rows(tmp_path, [ROW], tensorboard=True)
  (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
  assert b"reward/format" in events.read_bytes()


def test_tensorboard_gets_the_rows_that_were_not_drawn(tmp_path):
  writer = MetricsWriter(tmp_path, -1, config_of(tensorboard=True))
  writer.write({**ROW, "told": 1.0})
  writer.close()
  (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
  assert b"told" in events.read_bytes()


def test_rewards_below_zero_are_on_the_plot(tmp_path, monkeypatch):
  limits, save = [], Figure.savefig
  monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **settings: (
    limits.append(figure.axes[0].get_ylim()), save(figure, *arguments, **settings)))
  for low in (-3.0, 0.5):
    metrics.plot_reward([{"step": 1, "reward": low}, {"step": 2, "reward": 1.0}], tmp_path / "reward.png")
  assert limits[0][0] < -3 and limits[1][0] == 0


def test_the_figures_of_a_notebook_stay_its_own(tmp_path):
  before = plt.get_backend()
  try:
    plt.switch_backend("svg")  # neither ours nor the one of a machine without a screen
    mine = plt.figure()
    metrics.plot_reward([{"step": 1, "reward": 1.0}], tmp_path / "reward.png")
    assert plt.get_backend() == "svg" and plt.get_fignums() == [mine.number]
  finally:
    plt.close("all")
    plt.switch_backend(before)
  package = (file for folder in ("gdsd_jax", "launch") for file in (REPOSITORY / folder).rglob("*.py"))
  assert [file for file in package if re.search(r"matplotlib\.(pyplot|use)", file.read_text())] == []


def test_tensorboard_can_be_off(tmp_path):
  write_rows(tmp_path, [ROW], tensorboard=False)
  assert not (tmp_path / "tensorboard").exists()


def test_phases_of_a_step_are_timed(clock):
  watch = Stopwatch()
  for name, seconds in (("rollout", 3), ("update", 2), ("rollout", 1)):
    with watch.phase(name):
      clock.now += seconds
  clock.now, clock.cpu = clock.now + 4, clock.cpu + 15.0
  assert watch.metrics() == {"seconds/rollout": 4, "seconds/update": 2, "seconds/step": 10, "seconds/cpu": 15}


def test_a_step_whose_phases_nobody_times_tells_no_seconds(clock):
  assert Stopwatch().metrics() == {}


# What fails beside the rows


def one_warning(screen):
  [line] = [record.getMessage() for record in screen.records if record.levelname == "WARNING"]
  assert "\n" not in line
  return line


def full(*_, **__):
  raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("method", ["__init__", "write", "close"])
def test_a_full_disk_under_tensorboard_is_one_line_and_the_rows_go_on(tmp_path, monkeypatch, screen, method):
  monkeypatch.setattr(metrics.EventFile, method, full)
  write_rows(tmp_path, [ROW, {**ROW, "step": 2}], tensorboard=True)
  assert one_warning(screen) == (f"{tmp_path / 'tensorboard'}: cannot be written ([Errno 28] No space left on device);"
                                 " the run goes on, and metrics.jsonl has all numbers")
  assert steps_of(tmp_path) == [1, 2]


def test_a_plot_that_cannot_be_written_is_one_line_that_names_it(tmp_path, monkeypatch, screen):
  writer = MetricsWriter(tmp_path, -1, config_of(plot_seconds=0.0))
  writer.write(ROW)
  monkeypatch.setattr(files.os, "replace", full)
  writer.draw()
  writer.draw()
  assert f"{tmp_path / 'reward.png'}: cannot be written (" in one_warning(screen)
  writer.close()
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_row_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path):
  writer = MetricsWriter(tmp_path, -1, config_of())
  with files_of_at_most(50), pytest.raises(OSError) as caught:
    writer.write(ROW)
  assert str(caught.value).endswith(f"cannot write {tmp_path / 'metrics.jsonl'} (is the disk full?): File too large")
  writer.close()


# Weights & Biases


class FakeRun:
  def __init__(self, **told):
    self.told, self.rows, self.finished = told, {}, False

  def log(self, numbers, step):
    self.rows[step] = numbers

  def finish(self):
    self.finished = True


@pytest.fixture
def wandb(monkeypatch):
  """In the place of W&B's package; it refuses what the real one refuses."""
  module = types.ModuleType("wandb")
  module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
  module.runs = []

  def init(**told):
    if set(told["id"]) & set(":;,#?/'"):
      raise RuntimeError("Run ID cannot contain the characters: :;,#?/'\nand more of it")
    module.runs.append(FakeRun(**told))
    return module.runs[-1]

  module.init = init
  monkeypatch.setitem(sys.modules, "wandb", module)
  monkeypatch.setenv("WANDB_API_KEY", "a key")
  return module


def test_runs_that_are_named_alike_are_two_and_a_resumed_one_goes_on(tmp_path, wandb):
  for parent in ("one", "two"):
    (tmp_path / parent / "run:1").mkdir(parents=True)
    write_rows(tmp_path / parent / "run:1", [ROW], wandb_project="mine")
  write_rows(tmp_path / "two" / "run:1", [{**ROW, "step": 2}], last_step=1, wandb_project="mine")
  one, two, again = (run.told["id"] for run in wandb.runs)
  assert one != two == again and {run.told["name"] for run in wandb.runs} == {"run_1"}
  assert all(run.told["resume"] == "allow" and run.finished for run in wandb.runs)


def test_a_run_from_before_there_was_an_id_in_its_folder_goes_on_under_its_name(tmp_path, wandb):
  write_rows(tmp_path, [{**ROW, "step": 2}], last_step=1, wandb_project="mine")
  assert wandb.runs[0].told["id"] == tmp_path.name == (tmp_path / "wandb_id").read_text().strip()


def test_what_wandb_refuses_is_one_line_and_no_row_is_dropped(tmp_path, wandb, monkeypatch):
  write_rows(tmp_path, [ROW])
  (tmp_path / "wandb_id").write_text("a:b")
  with pytest.raises(OSError) as caught:
    write_rows(tmp_path, [], last_step=-1, wandb_project="mine")
  assert str(caught.value) == "log.wandb_project: W&B refuses the run: Run ID cannot contain the characters: :;,#?/'"
  assert steps_of(tmp_path) == [1]


def test_rows_go_on_when_wandb_fails(tmp_path, wandb, monkeypatch, screen):
  monkeypatch.setattr(FakeRun, "log", full)
  write_rows(tmp_path, [ROW, {**ROW, "step": 2}], wandb_project="mine")
  assert one_warning(screen).startswith("W&B: cannot be written (")
  assert steps_of(tmp_path) == [1, 2]


@pytest.mark.parametrize("project, message", [
  ("a:b", "W&B takes no : in the name of a project, here 'a:b'"), ("a/b?", "W&B takes no / ? in the name"),
  ("x" * 129, "has 129 characters; W&B takes 128"),
])
def test_a_project_that_wandb_refuses_is_refused_before_anything_is_loaded(tmp_path, wandb, project, message):
  with pytest.raises(ValueError, match=f"^log.wandb_project: {re.escape(message)}"):
    open_workdir(tmp_path, config_of(wandb_project=project))


def test_a_missing_key_is_told_before_anything_is_loaded(tmp_path, wandb, monkeypatch):
  monkeypatch.delenv("WANDB_API_KEY")
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  check = functools.partial(open_workdir, tmp_path / "run", config_of(wandb_project="mine"))
  with pytest.raises(ValueError, match="^log.wandb_project: W&B has no key here; run `wandb login`"):
    check()
  monkeypatch.setenv("WANDB_MODE", "offline")
  check()
  monkeypatch.delenv("WANDB_MODE")
  (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
  check()
  monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
  with pytest.raises(ValueError, match="W&B has no key here"):
    check()
