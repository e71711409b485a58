"""The benchmark's suite: rows are kept as they come, left out where they are there, and told in one table."""

import json
import re
import time

from commands import run_command
from conftest import REPOSITORY
import pytest

from gdsd_jax.benchmark import suite, suite_table
from gdsd_jax.benchmark.suite_rows import rows_of, SUITES

NUMBERS = {"seconds": 2.0, "steps": 16, "seconds_per_step": 0.125, "tokens_per_second": 8.0}


class FakeWorker:
  """In the place of a process: the rows that it was asked for, over all of them."""

  asked, fails = [], ()

  def __init__(self, row):
    self.place, self.device = row.place, {"ours": {"kind": "H100", "platform": "gpu", "jax": "0.11"}}

  def measure(self, row):
    self.asked.append((row.key, id(self)))
    return {"error": "no"} if row.key in self.fails else dict(NUMBERS)

  def end(self):
    return None


@pytest.fixture
def fake(monkeypatch):
  FakeWorker.asked, FakeWorker.fails = [], ()
  monkeypatch.setattr(suite, "_Worker", FakeWorker)
  return FakeWorker


@pytest.mark.parametrize("name", SUITES)
def test_rows_have_keys_of_their_own_and_both_suites_the_same_ones(name):
  keys = [row.key for row in rows_of(name)]
  assert len(set(keys)) == len(keys)
  assert keys == [row.key for row in rows_of("gpu")]


def test_what_is_there_is_not_measured_again(fake, tmp_path):
  file = tmp_path / "out.json"
  suite.run("tiny", file, ["product.ours"], say=str)
  suite.run("tiny", file, ["product.ours", "sample_short.ours"], say=str)
  assert [key for key, _ in fake.asked] == ["product.ours", "sample_short.ours"]
  assert json.loads(file.read_text())["rows"].keys() == {"product.ours", "sample_short.ours"}


def test_rows_of_two_devices_are_not_in_one_file(fake, monkeypatch, tmp_path):
  file = tmp_path / "out.json"
  suite.run("tiny", file, ["product.ours"], say=str)
  before, other = file.read_text(), {"ours": {"kind": "H200", "platform": "gpu", "jax": "0.11"}}
  monkeypatch.setattr(fake, "measure", lambda self, row: setattr(self, "device", other) or dict(NUMBERS))
  with pytest.raises(ValueError, match="--out: .* has rows of .*H100.*H200.*; choose another file"):
    suite.run("tiny", file, ["sample_short.ours"], say=str)
  assert file.read_text() == before


def test_a_row_that_fails_is_tried_again_and_the_next_has_a_process_of_its_own(fake, tmp_path):
  fake.fails = ("sample_short.ours",)
  names = ["product.ours", "sample_short.ours", "fast_short.ours", "sample_long.ours"]
  report = suite.run("tiny", tmp_path / "out.json", names, say=str)
  assert report["rows"]["sample_short.ours"] == {"error": "no"}
  product, failed, fast, long = (process for _, process in fake.asked)
  assert product == failed and fast == long
  fake.fails, fake.asked = (), []
  report = suite.run("tiny", tmp_path / "out.json", names, say=str)
  assert [key for key, _ in fake.asked] == ["sample_short.ours"]
  assert report["rows"]["sample_short.ours"] == NUMBERS


def test_a_row_beyond_its_limit_is_ended(monkeypatch):
  row = rows_of("tiny")[0]._replace(limit=0.0)
  monkeypatch.setattr(suite, "_START", 0.1)
  worker, started = suite._Worker(row), time.time()
  assert worker.measure(row) == {"error": "it took longer than 0 s"}
  worker.end()
  assert time.time() - started < 20


def test_the_table_has_both_sides_their_ratio_and_an_rl_step(fake, tmp_path):
  file, page = tmp_path / "out.json", tmp_path / "page.md"
  report = suite.run("tiny", file, ["product", "sample_short", "update", "rollouts"], say=str)
  for key, numbers in report["rows"].items():
    numbers.update(seconds=2.0 if key.endswith("ours") else 6.0)
    numbers.update(flops_per_second=1e12, tokens_per_second=32.0 if key.endswith("ours") else 8.0)
  report["rows"]["sample_short.ours"]["flops"] = 5e11
  report["rows"]["update.torch"] = {"error": "out of | memory"}
  text = suite_table.table(report)
  lines = {cells[1]: cells[2:] for cells in ([cell.strip() for cell in line.split("|")] for line in text.splitlines())
           if len(cells) > 3}
  sampled = lines["tiny samples, every step whole: batch 1, 16 + 16 tokens"]
  assert sampled[:4] == ["32 tokens/s", "8 tokens/s", "4.00", "25%"]
  update = lines["tiny, an update, M 2: batch 4, 16 + 16 tokens, LoRA r 4"]
  assert update[:3] == ["2 s", "", ""] and "PyTorch: out of / memory" in update
  assert "ours 6 s (2 s of rollouts, 4 s of updates)." in text
  page.write_text(f"before\n{suite_table.BEGIN}\nold\n{suite_table.END}\nafter\n")
  suite_table.check_page(page)
  suite_table.write(text, page)
  assert page.read_text() == f"before\n{suite_table.BEGIN}\n{text}\n{suite_table.END}\nafter\n"


def test_the_page_of_the_repository_has_the_marks():
  suite_table.check_page(REPOSITORY / "docs/performance.md")


@pytest.mark.parametrize("flags, message", [
  (["--suite=gpus", "--out=OUT"], "--suite: 'gpus' is not one of gpu, tiny"),
  (["--suite=tiny"], "--out: must name the file"),
  (["--suite=tiny", "--out=OUT", "--rows=sample"], "--rows: 'sample' is not one of product, sample_short"),
  (["--rows=product"], "--rows: is of --suite"),
  (["--suite=tiny", "--out=OUT", "--rows=", "--page=README.md"], "--page: .*README.md lacks the two lines"),
])
def test_a_wrong_flag_is_told_in_one_line(tmp_path, flags, message):
  finished = run_command("launch/benchmark.py", *(flag.replace("OUT", str(tmp_path / "x.json")) for flag in flags))
  assert finished.returncode == 1
  assert re.match(f"error: {message}", finished.stderr.splitlines()[-1])


def test_a_file_of_something_else_is_not_replaced(tmp_path):
  (tmp_path / "x.json").write_text('{"parameters": 1}')
  with pytest.raises(ValueError, match="^--out: .* no report of --suite"):
    suite.run("tiny", tmp_path / "x.json", ["product"])


@pytest.mark.slow
def test_each_measurement_of_ours_gives_its_numbers(tmp_path):
  names = ["product.ours", "sample_short.ours", "update.ours", "rollouts.ours", "attention", "views", "dream",
           "sdar_exact_cache"]
  rows = suite.run("tiny", tmp_path / "x.json", names)["rows"]
  assert {key: found for key, found in rows.items() if "error" in found} == {}
  assert rows["sample_short.ours"]["steps"] == 16 and rows["rollouts.ours"]["steps"] == 4
  assert 0 < rows["update.ours"]["score_seconds"] < rows["update.ours"]["seconds"]
  assert suite_table.table(suite.read_report(tmp_path / "x.json", "tiny")).count("\n") > 8
