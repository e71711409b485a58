"""rollouts.jsonl on the disk: bounded, and the same whenever a run was killed."""

import json
import logging
import os
import random

import pytest

from gdsd_jax.runs import files
from gdsd_jax.runs.earlier import keep_rows, set_aside
from gdsd_jax.runs.log_config import LogConfig
from gdsd_jax.runs.rollouts_file import FILE, RolloutsFile


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
  monkeypatch.setattr(os, "fsync", lambda _: None)


def rows_of(step, largest=150, groups=2):
  """A step's rows, of lengths of their own."""
  chance = random.Random(step)
  return [{"step": step, "group": group, "text": "é\ud83d" * chance.randrange(1, largest)} for group in range(groups)]


def config_of(kilobytes, **fields):
  return LogConfig(keep_megabytes=kilobytes / 1000, **fields)


def written(folder):
  return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def go_through(folder, config, start, end, rows=rows_of):
  """What a run does that has a checkpoint of step `start`, -1 for a new one, and is over after `end`."""
  file = RolloutsFile(folder, start, config)
  for step in range(max(start, 0) + 1, end + 1):
    if file.keeps(step):
      file.write(rows(step))
      assert (folder / FILE).stat().st_size <= config.keep_megabytes * 1e6


@pytest.mark.parametrize("seed", range(12))
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_file(tmp_path, seed):
  chance = random.Random(seed)
  config, each = config_of(chance.uniform(2, 40), keep_every=chance.choice([1, 2, 5])), chance.choice([1, 3, 7])
  for name in ("undisturbed", "killed"):
    (tmp_path / name).mkdir()
  go_through(tmp_path / "undisturbed", config, -1, 150)
  saved = -1
  while saved < 140:
    killed = min(max(saved, 0) + chance.randrange(1, 40), 150)
    go_through(tmp_path / "killed", config, saved, killed)
    if (tmp_path / "killed" / FILE).is_file():
      with (tmp_path / "killed" / FILE).open("a") as file:  # the next step's rows, as far as they came
        lines = "".join(json.dumps({**row, "thinned": 0}) + "\n" for row in rows_of(killed + 1))
        file.write(lines[:chance.randrange(len(lines))])
    saved = killed // each * each or -1
  go_through(tmp_path / "killed", config, saved, 150)
  assert (tmp_path / "killed" / FILE).read_bytes() == (tmp_path / "undisturbed" / FILE).read_bytes()


def test_where_it_would_outgrow_its_bound_every_second_step_is_dropped(tmp_path):
  alike = lambda step: [{"step": step, "text": "x" * 60}]  # 100 bytes
  file = RolloutsFile(tmp_path, -1, config_of(0.4, keep_every=5))
  seen = []
  for step in range(1, 82, 5):
    if file.keeps(step):
      file.write(alike(step))
    seen.append([row["step"] for row in written(tmp_path)])
  assert seen[:5] == [[1], [1, 6], [1, 6, 11], [1, 6, 11, 16], [1, 11, 21]]
  assert seen[6:9] == [[1, 11, 21, 31], [1, 11, 21, 31], [1, 21, 41]] and seen[-1] == [1, 41, 81]
  assert {row["thinned"] for row in written(tmp_path)} == {3}


def test_what_is_too_large_by_itself_is_left_out_and_told_once(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  file = RolloutsFile(tmp_path, -1, config_of(0.25, keep_every=1))
  for step in (1, 2):
    file.write([{"step": step, "text": "x" * 500}])
  assert not (tmp_path / FILE).exists()
  file.write([{"step": 3, "text": "x" * 100}, {"step": 3, "text": "x" * 100}])
  assert [row["step"] for row in written(tmp_path)] == [3]
  assert [record.message for record in caplog.records] == [
    f"log.keep_megabytes: 0 of a step's 1 groups fit into {FILE}; the others are not kept"]


def test_another_interval_is_obeyed_when_a_run_goes_on(tmp_path):
  go_through(tmp_path, config_of(1000, keep_every=2), -1, 6)
  go_through(tmp_path, config_of(1000, keep_every=5), 6, 16)
  assert [row["step"] for row in written(tmp_path)] == [1, 1, 3, 3, 5, 5, 11, 11, 16, 16]


def test_without_an_interval_nothing_is_written_and_what_comes_after_a_checkpoint_is_dropped(tmp_path):
  off = config_of(1000, keep_every=0)
  go_through(tmp_path, off, -1, 5)
  assert not (tmp_path / FILE).exists()
  go_through(tmp_path, config_of(1000, keep_every=1), -1, 4)
  go_through(tmp_path, off, 3, 5)
  assert [row["step"] for row in written(tmp_path)] == [1, 1, 2, 2, 3, 3]
  RolloutsFile(tmp_path, -1, off)
  assert not (tmp_path / FILE).exists()


def test_an_object_store_gets_the_same_file(tmp_path, monkeypatch):
  config = config_of(6, keep_every=1)
  go_through(tmp_path, config, -1, 30)
  (tmp_path / "remote").mkdir()
  monkeypatch.setattr(files, "is_remote", lambda path: True)  # as far as these files are concerned
  go_through(tmp_path / "remote", config, -1, 12)
  go_through(tmp_path / "remote", config, 10, 30)
  assert (tmp_path / "remote" / FILE).read_bytes() == (tmp_path / FILE).read_bytes()


@pytest.mark.parametrize("line", [
  "no JSON", "[]", "{}", '{"step": 1}', '{"step": null, "thinned": 0}', '{"step": 1, "thinned": Infinity}',
  '{"step": 1e999, "thinned": 0}', '{"step": 1, "thinned": -1}', '{"step": 1, "thinned": 99999999999}', "[" * 100_000,
])
def test_a_damaged_line_is_named(tmp_path, line):
  go_through(tmp_path, config_of(1000, keep_every=1), -1, 1)
  with (tmp_path / FILE).open("a") as file:
    file.write(f"{line}\n")
  with pytest.raises(ValueError, match=f"{tmp_path / FILE}, line 3: no row of {FILE}: ") as caught:
    RolloutsFile(tmp_path, 1, LogConfig())
  assert "\n" not in str(caught.value)
  assert str(caught.value).endswith("; delete that line, or move the file away: nothing is computed from it")


def test_rows_that_a_run_is_about_to_lose_are_kept_beside_those_of_metrics(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(10)))
  go_through(tmp_path, config_of(1000, keep_every=1), -1, 9)
  before = (tmp_path / FILE).read_bytes()
  keep_rows(tmp_path, 8, most=4)
  assert not list(tmp_path.glob("earlier-*"))
  keep_rows(tmp_path, 2, most=4)
  [earlier] = tmp_path.glob("earlier-*")
  assert (earlier / FILE).read_bytes() == (tmp_path / FILE).read_bytes() == before
  moved = set_aside(tmp_path)
  assert (moved / FILE).read_bytes() == before and not (tmp_path / FILE).exists()
